"""The framed session protocol, both sides: sign-on, keys, encodings, refusals, limits."""

import json
import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core_ext._frames import Channel, session_key
from protocols.codec import Codec, ProtocolError
from protocols.messages import (
    Answer,
    CashOut,
    Delivered,
    Deposit,
    EchoAnswer,
    Error,
    Hold,
    Holder,
    HolderAnswer,
    LastOperation,
    NetworkAnswer,
    Notice,
    Status,
    StatusAnswer,
)
from protocols.session import (
    NETWORK,
    TERMINAL,
    Acceptor,
    BadRequest,
    Initiator,
    PeerKey,
    SessionCodec,
    SignOnGuard,
    Vocabulary,
)
from protocols.session.keys import NOBODY, SignOnAnswer, unauthenticated_key
from protocols.session.vocabulary import Encoding, decoder, field_of

K = PeerKey(bytes(range(32)))
CMAC = PeerKey(bytes(range(32)), "aes-cmac")
OTHER = PeerKey(bytes(range(1, 33)))
CLIENT_NONCE = b"\xaa" * 16
SERVER_NONCE = b"\xbb" * 16
NOW = "2026-11-22T13:00:00.000Z"
ERROR_63 = {"op": "error", "code": "63"}
REFERENCE = "00120000001720261122000123"
CASH_OUT = {
    "op": "cash_out",
    "trace": 123,
    "cashier": "000345",
    "document": "4567890",
    "token": "004512",
    "amount": 150000,
    "currency": "PYG",
}
DEPOSIT = {key: value for key, value in CASH_OUT.items() if key != "token"} | {"op": "deposit"}


def acceptor(
    vocabulary: Vocabulary = TERMINAL, key: PeerKey | None = K, **options: Any
) -> Acceptor:
    return Acceptor(
        vocabulary=vocabulary,
        authenticate=lambda peer, version: key if version == 1 else None,
        nonce=SERVER_NONCE,
        now_iso=lambda: NOW,
        **options,
    )


def initiator(vocabulary: Vocabulary = TERMINAL, key: PeerKey = K, **options: Any) -> Initiator:
    options.setdefault("peer", "00000017" if vocabulary is TERMINAL else "0012")
    return Initiator(vocabulary=vocabulary, key=key, nonce=CLIENT_NONCE, **options)


def pair(
    vocabulary: Vocabulary = TERMINAL, key: PeerKey = K, encoding: Encoding = "json"
) -> tuple[Initiator, Acceptor]:
    """Both sides of one session, signed on."""
    client = initiator(vocabulary, key, encoding=encoding)
    server = acceptor(vocabulary, key)
    assert server.receive(client.sign_on()) == []
    assert client.receive(server.output()) == []
    assert client.signed_on
    assert server.signed_on
    assert (client.output(), server.output()) == (b"", b"")
    return client, server


def raw(client: Initiator, *payloads: bytes) -> bytes:
    """Authentic frames of any payload."""
    return client._channel.seal(list(payloads))


def payloads(data: bytes) -> list[bytes]:
    """The payloads of whole frames, unverified."""
    found = []
    while data:
        length = int.from_bytes(data[:2], "big")
        assert len(data) >= 2 + length
        found.append(data[2 : 2 + length - 8])
        data = data[2 + length :]
    return found


def plain(payload: bytes) -> dict[str, Any]:
    decode = msgspec.json.decode if payload[:1] == b"{" else msgspec.msgpack.decode
    message: dict[str, Any] = decode(payload)
    return message


def exchange(server: Acceptor, data: bytes) -> tuple[list[Any], list[dict[str, Any]]]:
    """What the server hands up, and what it answers by itself."""
    events = server.receive(data)
    return events, [plain(payload) for payload in payloads(server.output())]


def signed(message: dict[str, Any], key: PeerKey = K, encode: Any = msgspec.json.encode) -> bytes:
    """A first frame, MACed with the key itself."""
    return Channel(1).seal_with(key.mac_key(), encode(message))


SIGN_ON = {
    "op": "sign_on",
    "peer": "00000017",
    "key": 1,
    "nonce": CLIENT_NONCE.hex(),
    "version": 1,
}


# ---- sign-on


@pytest.mark.parametrize("vocabulary", [TERMINAL, NETWORK], ids=["terminal", "network"])
@pytest.mark.parametrize("key", [K, CMAC], ids=["hmac", "cmac"])
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_sign_on(vocabulary: Vocabulary, key: PeerKey, encoding: Encoding) -> None:
    client, server = pair(vocabulary, key, encoding)
    assert (server.peer, server.key_version) == (client._peer, 1)
    assert (server.encoding, server.refused, server.confirmed) == (encoding, False, False)
    assert (client.code, client.heartbeat_s, client.server_time) == ("00", 30, NOW)
    server.receive(client.silence(30))
    assert server.confirmed


def test_sign_on_answer_says_what_the_protocol_wants() -> None:
    server = acceptor(heartbeat_s=7)
    _, (answer,) = exchange(server, signed(SIGN_ON | {"nonce": "AbCdEf" + "0" * 26}))
    assert answer == {
        "op": "sign_on_answer",
        "code": "00",
        "nonce": SERVER_NONCE.hex(),
        "client_nonce": "AbCdEf" + "0" * 26,
        "heartbeat": 7,
        "time": NOW,
    }


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
@pytest.mark.parametrize(
    ("message", "key", "known"),
    [
        (SIGN_ON, K, None),
        (SIGN_ON, OTHER, K),
        (SIGN_ON, NOBODY, None),
        (SIGN_ON | {"key": 2}, K, K),
        (SIGN_ON | {"key": "1"}, K, K),
        (SIGN_ON | {"peer": 17}, K, K),
        (SIGN_ON | {"peer": None}, K, K),
        (SIGN_ON | {"padding": "x" * 512}, K, K),
        (CASH_OUT, K, K),
        ({"op": "echo"}, K, K),
        ({}, K, K),
    ],
    ids=[
        "unknown peer",
        "bad MAC",
        "under nobody's key",
        "unknown key version",
        "key is text",
        "peer is a number",
        "peer is null",
        "too long",
        "cash_out first",
        "echo first",
        "empty",
    ],
)
def test_refusals_before_sign_on_look_all_the_same(
    message: dict[str, Any], key: PeerKey, known: PeerKey | None, encode: Any
) -> None:
    server = acceptor(key=known)
    assert server.receive(signed(message, key, encode)) == []
    expected = Channel(2).seal_with(unauthenticated_key(), encode(ERROR_63))
    assert server.output() == expected
    assert server.closing
    assert server.refused
    assert (server.signed_on, server.peer) == (False, "")
    assert server.receive(signed(SIGN_ON)) == []
    assert server.output() == b""


@pytest.mark.parametrize("payload", [b"\x00", b"{", b"null", b"[1]", b"\xc1", b"\xff" * 40])
def test_first_frame_that_is_no_sign_on(payload: bytes) -> None:
    server = acceptor()
    server.receive(Channel(1).seal_with(K.mac_key(), payload))
    (error,) = payloads(server.output())
    assert plain(error) == ERROR_63
    assert server.closing


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"version": 2}, {"op": "error", "code": "12"}),
        ({"version": 2, "nonce": None}, {"op": "error", "code": "12"}),
        ({"version": 0}, {"op": "error", "code": "12"}),
        ({"op": "cash_out"}, {"op": "error", "code": "12"}),
        ({"version": "1"}, {"op": "error", "code": "30", "field": "version"}),
        ({"nonce": "zz" * 16}, {"op": "error", "code": "30", "field": "nonce"}),
        ({"nonce": "aa"}, {"op": "error", "code": "30", "field": "nonce"}),
        ({"peer": "17"}, {"op": "error", "code": "30", "field": "peer"}),
    ],
)
def test_authentic_sign_ons_that_are_refused(change: dict[str, Any], answer: Any) -> None:
    """Answered under K, so that a peer can believe it, and closed."""
    server = acceptor()
    server.receive(signed(SIGN_ON | change))
    out = server.output()
    client = Channel(1)
    client.push(out)
    payload = client.accept_first(K.mac_key())
    assert payload is not None
    assert plain(payload) == answer
    assert server.closing
    assert not server.refused
    client_side = initiator()
    client_side.sign_on()
    assert client_side.receive(out) == []
    assert (client_side.code, client_side.signed_on) == (answer["code"], False)
    assert client_side.closing


def test_missing_sign_on_fields() -> None:
    for name in ("nonce", "version"):
        server = acceptor()
        message = {key: value for key, value in SIGN_ON.items() if key != name}
        _, (error,) = exchange(server, signed(message))
        assert error in (
            {"op": "error", "code": "30", "field": name},
            {"op": "error", "code": "12"},
        )
        assert server.closing


def test_key_defaults_to_1_and_unknown_fields_are_ignored() -> None:
    server = acceptor()
    message = {key: value for key, value in SIGN_ON.items() if key != "key"} | {"model": [1, {}]}
    _, (answer,) = exchange(server, signed(message))
    assert answer["code"] == "00"
    assert server.key_version == 1


def test_sign_on_of_512_bytes_is_the_longest() -> None:
    room = 512 - len(msgspec.json.encode(SIGN_ON | {"pad": ""}))
    for extra, refused in ((0, False), (1, True)):
        server = acceptor()
        server.receive(signed(SIGN_ON | {"pad": "x" * (room + extra)}))
        assert server.refused is refused


def test_duplicate_peer_in_a_sign_on_cannot_split_the_two_readings() -> None:
    asked = []
    server = Acceptor(
        vocabulary=TERMINAL,
        authenticate=lambda peer, version: (asked.append(peer), K)[1],
        nonce=SERVER_NONCE,
        now_iso=lambda: NOW,
    )
    payload = msgspec.json.encode(SIGN_ON)[:-1] + b',"peer":"00000018"}'
    server.receive(Channel(1).seal_with(K.mac_key(), payload))
    assert asked == [server.peer] == ["00000018"]


def test_claimed_peer_is_kept_for_counting_failures() -> None:
    server = acceptor(key=OTHER)
    server.receive(signed(SIGN_ON))
    assert (server.claimed_peer, server.peer) == ("00000017", "")
    unreadable = acceptor()
    unreadable.receive(Channel(1).seal_with(K.mac_key(), b"?"))
    assert unreadable.claimed_peer == ""


def test_a_replayed_sign_on_is_never_confirmed() -> None:
    client, _ = pair()
    recorded = signed(SIGN_ON) + client.encode([Delivered(original=1)])
    replayed = Acceptor(
        vocabulary=TERMINAL,
        authenticate=lambda peer, version: K,
        nonce=b"\xcc" * 16,
        now_iso=lambda: NOW,
    )
    assert replayed.receive(recorded) == []
    assert replayed.signed_on
    assert not replayed.confirmed
    assert replayed.closing == "bad MAC"


def test_initiator_rejects_a_wrong_client_nonce() -> None:
    client = initiator()
    client.sign_on()
    answer = SignOnAnswer(
        code="00", nonce=SERVER_NONCE.hex(), client_nonce="cc" * 16, heartbeat=30, time=NOW
    )
    assert client.receive(Channel(2).seal_with(K.mac_key(), msgspec.json.encode(answer))) == []
    assert client.closing == "sign-on answer for another nonce"
    assert not client.signed_on


@pytest.mark.parametrize(
    ("key", "payload", "code"),
    [
        (unauthenticated_key(), b'{"op":"error","code":"63"}', "63"),
        (unauthenticated_key(), b'{"op":"answer"}', ""),
        (OTHER.mac_key(), b'{"op":"error","code":"63"}', ""),
        (K.mac_key(), b"garbage", ""),
        (K.mac_key(), b'{"op":"echo"}', ""),
        (K.mac_key(), b'{"op":"error","code":"91"}', "91"),
        (K.mac_key(), msgspec.json.encode(SIGN_ON), ""),
    ],
)
def test_initiator_takes_anything_else_as_the_end(key: Any, payload: bytes, code: str) -> None:
    client = initiator()
    client.sign_on()
    assert client.receive(Channel(2).seal_with(key, payload)) == []
    assert client.closing
    assert (client.code, client.signed_on, client.output()) == (code, False, b"")


def test_unauthenticated_63_ends_the_session_and_answers_nothing() -> None:
    client, server = pair()
    bad = client.encode([Delivered(original=1)])
    server.receive(bad[:-1] + bytes([bad[-1] ^ 1]))
    out = server.output()
    assert plain(payloads(out)[0]) == ERROR_63
    assert client.receive(out) == []
    assert client.closing == "bad MAC"
    assert client.output() == b""
    assert client.encode([Delivered(original=1)]) == b""


def test_authentic_63_is_the_end_too_on_either_side() -> None:
    client, server = pair()
    client.receive(server.encode([Error(code="63")]))
    assert client.closing
    client, server = pair()
    events, answers = exchange(server, client.encode([Error(code="63"), Delivered(original=1)]))
    assert (events, answers) == ([], [])
    assert server.closing


# ---- encodings


@pytest.mark.parametrize("own", ["json", "msgpack"])
def test_an_answer_has_the_encoding_of_its_request(own: Encoding) -> None:
    other: Encoding = "msgpack" if own == "json" else "json"
    client, server = pair(encoding=own)
    base = msgspec.convert(CASH_OUT, CashOut)
    requests = [msgspec.structs.replace(base, trace=trace) for trace in (1, 2, 3)]
    data = (
        client.encode(requests[:1])
        + client.encode(requests[1:2], encoding=other)
        + client.encode(requests[2:])
    )
    assert server.receive(data) == requests
    answers: list[Any] = [Answer("00", "APROBADA", "", trace=trace) for trace in (3, 2, 1)]
    out = server.encode([*answers, Notice("hola", "info")])
    names = ["json" if payload[:1] == b"{" else "msgpack" for payload in payloads(out)]
    assert names == [own, other, own, own]
    assert client.receive(out) == [*answers, Notice("hola", "info")]
    assert server._deviating == {}


def test_repeats_of_one_number_in_two_encodings_and_requests_without_number() -> None:
    client, server = pair()
    request = Delivered(original=1, trace=7)
    data = client.encode([request], encoding="msgpack") + client.encode([request, request])
    server.receive(data + client.encode([Holder(document="4567890")], encoding="msgpack"))
    answers = [Answer("00", "APROBADA", "", trace=7)] * 4 + [HolderAnswer("05")] * 2
    kinds = [payload[:1] == b"{" for payload in payloads(server.encode(answers))]
    assert kinds == [False, True, True, True, False, True]


def test_session_answers_follow_the_request_too() -> None:
    client, server = pair()
    data = client.silence(30) + client._channel.seal(
        [
            msgspec.msgpack.encode({"op": "echo", "trace": 5}),
            msgspec.msgpack.encode({"op": "cash_out", "trace": 9}),
            msgspec.msgpack.encode({"op": "nothing"}),
        ]
    )
    server.receive(data)
    answers = payloads(server.output())
    assert [payload[:1] == b"{" for payload in answers] == [True, False, False, False]
    assert plain(answers[1]) == {"op": "echo_answer", "trace": 5}


def test_own_requests_do_not_use_up_a_noted_encoding() -> None:
    """Numbers count per direction: our request 5 is not the answer to the peer's request 5."""
    client, server = pair(NETWORK)
    server.receive(client.encode([Status(id=5, reference=REFERENCE)], encoding="msgpack"))
    first, second = payloads(
        server.encode([Status(id=5, reference=REFERENCE), StatusAnswer(id=5, state="TUMBA")])
    )
    assert (first[:1] == b"{", second[:1] == b"{") == (True, False)


def test_the_memory_of_encodings_is_bounded() -> None:
    client, server = pair(NETWORK)
    for start in range(0, 2000, 50):
        batch: list[Any] = [Status(id=start + i, reference=REFERENCE) for i in range(50)]
        server.receive(client.encode(batch, encoding="msgpack"))
    server.receive(client.encode([Status(id=1999, reference=REFERENCE)] * 2000, "msgpack"))
    assert len(server._deviating) <= 256
    assert sum(map(len, server._deviating.values())) <= 512


def test_only_fields_that_exist_are_sent() -> None:
    _, server = pair()
    (payload,) = payloads(server.encode([Answer("00", "APROBADA", "", fee=0, duplicate=False)]))
    assert plain(payload) == {
        "op": "answer",
        "code": "00",
        "key": "APROBADA",
        "text": "",
        "fee": 0,
        "duplicate": False,
    }


# ---- refusals of authentic frames

BAD_FIELDS = [
    ({"amount": "150000"}, "amount"),
    ({"amount": 1.5}, "amount"),
    ({"amount": 150000.0}, "amount"),
    ({"amount": True}, "amount"),
    ({"amount": 0}, "amount"),
    ({"amount": -1}, "amount"),
    ({"amount": 10**12}, "amount"),
    ({"amount": None}, "amount"),
    ({"cashier": 345}, "cashier"),
    ({"cashier": "1234567"}, "cashier"),
    ({"cashier": "12a"}, "cashier"),
    ({"cashier": "123\n"}, "cashier"),
    ({"cashier": "\u0661\u0662"}, "cashier"),
    ({"currency": "pyg"}, "currency"),
    ({"document": 4567890}, "document"),
    ({"document_type": "DNI"}, "document_type"),
    ({"document_type": "`$.amount`"}, "document_type"),
    ({"document_type": "' - at `$.amount`"}, "document_type"),
    ({"branch": []}, "branch"),
]


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
@pytest.mark.parametrize(("change", "field"), BAD_FIELDS)
@pytest.mark.parametrize(
    ("request_", "instruction"), [(CASH_OUT, "NO_ENTREGUE"), (DEPOSIT, "NO_RECIBA")]
)
def test_bad_field(
    request_: dict[str, Any], instruction: str, change: dict[str, Any], field: str, encode: Any
) -> None:
    client, server = pair()
    events, (answer,) = exchange(server, raw(client, encode(request_ | change)))
    assert events == [BadRequest(field=field, op=request_["op"], trace=123)]
    text = answer.pop("text")
    assert text.startswith("Dato no válido: ")
    assert answer == {
        "op": "answer",
        "trace": 123,
        "code": "30",
        "key": "FORMATO",
        "instruction": instruction,
        "field": field,
    }
    assert server.closing is None


@pytest.mark.parametrize("field", sorted(set(CASH_OUT) - {"op", "document"}))
def test_missing_field(field: str) -> None:
    client, server = pair()
    message = {key: value for key, value in CASH_OUT.items() if key != field}
    _, (answer,) = exchange(server, raw(client, msgspec.json.encode(message)))
    if field == "trace":
        assert answer == {"op": "error", "code": "30", "field": "trace"}
    else:
        assert (answer["code"], answer["field"], answer["trace"]) == ("30", field, 123)


def test_the_number_is_read_past_any_other_nonsense() -> None:
    client, server = pair()
    message = json.dumps(CASH_OUT | {"amount": 5}).replace(": 5", ': 1e999, "id": 1e999').encode()
    _, (answer,) = exchange(server, raw(client, message))
    assert (answer["trace"], answer["field"]) == (123, "amount")


@pytest.mark.parametrize("trace", [0, 1_000_000, "123", 1.0, None, True, [1], 10**30])
def test_bad_trace_is_not_echoed(trace: Any) -> None:
    client, server = pair()
    _, (answer,) = exchange(server, raw(client, json.dumps(CASH_OUT | {"trace": trace}).encode()))
    assert answer == {"op": "error", "code": "30", "field": "trace"}


def test_nested_errors_name_the_top_level_field() -> None:
    client, server = pair()
    for declaration in ({"name": 5}, {"x" * 33: "a"}, {str(i): "a" for i in range(9)}, "a", [1]):
        message = DEPOSIT | {"declaration": declaration}
        _, (answer,) = exchange(server, raw(client, msgspec.json.encode(message)))
        assert answer["field"] == "declaration"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b"{", "payload"),
        (b"{}", "op"),
        (b'{"op":null}', "op"),
        (b'{"op":["cash_out"]}', "op"),
        (b'{"trace":"5","op":5}', "op"),
        (b" {}", "payload"),
        (b"[]", "payload"),
        (b"\x00", "payload"),
        (b"\x90", "payload"),
        (b"\xc1", "payload"),
        (b'{"op":"cash_out","trace":5} x', "payload"),
        (b'{"op":"\xff\xfe","trace":0}', "op"),
        (b'{"op":"cash_out","trace":NaN}', "payload"),
        (b'{"op":"echo","x":' + b"[" * 5000 + b"]" * 3000 + b"}", "payload"),
        (b'{"op":"echo","x":' + b'{"a":' * 1000, "payload"),
        (b"\x81\xa2op" + b"\x91" * 8000, "payload"),
        (b"\x81\x80\x01", "payload"),
        (b"\x81\xa2op\xdb\xff\xff\xff\xff", "payload"),
        (b"\xdf\xff\xff\xff\xff", "payload"),
        (b'{"op":"echo","trace":1e999}', "trace"),
        (b'{"op":"echo","trace":' + b"9" * 5000 + b"}", "trace"),
    ],
)
def test_unreadable_payload_gets_an_error_and_the_connection_stays(
    payload: bytes, field: str
) -> None:
    client, server = pair()
    events, answers = exchange(server, raw(client, payload, b'{"op":"echo"}'))
    assert answers == [
        {"op": "error", "code": "30", "field": field},
        {"op": "echo_answer"},
    ]
    assert [event.code for event in events] == ["30"]
    assert server.closing is None
    assert server.bad_frames == 1


def test_the_number_is_echoed_even_without_an_operation() -> None:
    client, server = pair()
    _, answers = exchange(server, raw(client, b'{"trace":5}', b'{"op":5,"trace":6}'))
    assert [(answer["op"], answer["field"], answer["trace"]) for answer in answers] == [
        ("answer", "op", 5),
        ("answer", "op", 6),
    ]
    assert [answer["text"] for answer in answers] == ["Dato no válido: operación."] * 2


def test_harmless_oddities_are_taken() -> None:
    client, server = pair()
    odd = [
        b'{"op":"delivered","original":1,"original":2}',
        b'{"op":"delivered","original":2,"unknown":{"op":"x","a":[1,2.5,null,"\xff"]}}',
        b'{ "original" : 2 , "\\u006fp" : "delivered" } ',
        b"\xde\x00\x02\xa2op\xa9delivered\xa8original\x02",
        b"\x82\xa2op\xa9delivered\xa8original\xd3\x00\x00\x00\x00\x00\x00\x00\x02",
    ]
    events, answers = exchange(server, raw(client, *odd))
    assert events == [Delivered(original=2)] * len(odd)
    assert answers == []


def test_unknown_operation() -> None:
    client, server = pair()
    events, answers = exchange(
        server,
        raw(
            client,
            b'{"op":"transfer","trace":7}',
            b'{"op":"transfer"}',
            b'{"op":"sign_on","trace":8}',
            b'{"op":"answer","code":"00","trace":9}',
            b'{"op":"hold","trace":0}',
        ),
    )
    twelve = {"op": "answer", "code": "12", "key": "OPERACION_NO_VALIDA"}
    text = {"text": "Operación no válida."}
    assert answers == [
        twelve | text | {"trace": 7},
        {"op": "error", "code": "12"},
        twelve | text | {"trace": 8},
        twelve | text | {"trace": 9},
        {"op": "error", "code": "12"},
    ]
    assert {event.code for event in events} == {"12"}
    assert server.closing is None


def test_refusals_on_a_network_session() -> None:
    client, server = pair(NETWORK)
    events, answers = exchange(
        server,
        raw(
            client,
            b'{"op":"confirm","id":7,"reference":"1","registered_at":"x"}',
            b'{"op":"confirm","reference":"%s","registered_at":"x"}' % REFERENCE.encode(),
            b'{"op":"transfer","id":0,"trace":5}',
            b'{"op":"status_answer","id":9}',
            b'{"op":"confirm","id":9223372036854775808}',
        ),
    )
    assert answers == [
        {"op": "answer", "id": 7, "code": "30", "key": "FORMATO", "field": "reference"},
        {"op": "error", "code": "30", "field": "id"},
        {"op": "answer", "id": 0, "code": "12", "key": "OPERACION_NO_VALIDA"},
        {"op": "error", "code": "30", "field": "state"},
        {"op": "error", "code": "30", "field": "id"},
    ]
    assert [event.id for event in events] == [7, None, 0, 9, None]


def test_no_complaint_is_answered_with_a_complaint() -> None:
    client, server = pair()
    events, answers = exchange(
        server, raw(client, b'{"op":"error"}', b'{"op":"error","code":"30","field":"x"}')
    )
    assert answers == []
    assert [type(event) for event in events] == [BadRequest]
    assert server.errors_received == 1
    client, server = pair()
    frames = server._channel.seal(
        [b'{"op":"novelty"}', b'{"op":"answer"}', b"[", b'{"op":"error","code":"12"}']
    )
    *bad, error = client.receive(frames)
    assert [type(event) for event in bad] == [BadRequest] * 3
    assert error == Error(code="12")
    assert client.output() == b""
    assert client.closing is None


def test_the_initiator_answers_a_bad_status_request() -> None:
    client, server = pair(NETWORK)
    client.receive(server._channel.seal([b'{"op":"status","id":3}']))
    (answer,) = payloads(client.output())
    assert plain(answer)["field"] == "reference"
    assert plain(answer)["id"] == 3


def test_both_sides_may_ask_for_a_status() -> None:
    client, server = pair(NETWORK)
    question = Status(id=server.new_id(), reference=REFERENCE)
    assert client.receive(server.encode([question])) == [question]
    answer = StatusAnswer(id=question.id, state="REGISTRADA", code="00")
    assert server.receive(client.encode([answer])) == [answer]
    assert client.new_id() == 1
    assert client.new_id() == 2


# ---- frames and limits


@pytest.mark.parametrize("length", [0, 1, 8, 8193, 65535])
def test_impossible_length_before_and_after_sign_on(length: int) -> None:
    server = acceptor()
    server.receive(length.to_bytes(2, "big"))
    (error,) = payloads(server.output())
    assert plain(error)["code"] == "30"
    assert server.closing

    client, server = pair()
    good = client.encode([Delivered(original=1)])
    assert server.receive(good + length.to_bytes(2, "big") + b"x" * 100) == [Delivered(original=1)]
    out = server.output()
    assert server.closing
    assert client.receive(out) == [Error(code="30", field="length")]
    assert server.receive(client.encode([Delivered(original=2)])) == []
    assert server.encode([Answer("00", "", "")]) == b""

    client = initiator()
    client.sign_on()
    assert client.receive(length.to_bytes(2, "big")) == []
    assert client.closing


def test_good_frames_before_a_bad_one_are_delivered() -> None:
    client, server = pair()
    good = client.encode([Delivered(original=i) for i in range(1, 4)])
    bad = bytearray(client.encode([Delivered(original=4)]))
    bad[10] ^= 1
    late = client.encode([Delivered(original=5)])
    assert server.receive(good + bytes(bad) + late) == [Delivered(original=i) for i in (1, 2, 3)]
    assert server.closing == "bad MAC"


def test_replayed_dropped_and_reordered_frames_fail() -> None:
    for order in ([0, 0], [1], [1, 0], [0, 2]):
        client, server = pair()
        frames = [client.encode([Delivered(original=i)]) for i in (1, 2, 3)]
        server.receive(b"".join(frames[i] for i in order))
        assert server.closing == "bad MAC"


def test_limit_holds_back_and_more_tells() -> None:
    client, server = pair()
    data = client.encode([Delivered(original=i) for i in range(1, 201)]) + client.silence(30)
    taken = server.receive(data, limit=64)
    assert (len(taken), server.more) == (64, True)
    assert server.receive(limit=0) == []
    while server.more:
        batch = server.receive(limit=64)
        assert len(batch) <= 64
        taken += batch
    assert [message.original for message in taken] == list(range(1, 201))
    assert plain(payloads(server.output())[-1]) == {"op": "echo_answer"}


def test_a_fault_behind_the_limit_is_met_later() -> None:
    client, server = pair()
    data = client.encode([Delivered(original=1), Delivered(original=2)]) + b"\0\0"
    assert len(server.receive(data, limit=2)) == 2
    assert (server.closing, server.more) == (None, True)
    assert server.receive(limit=2) == []
    assert server.closing
    assert not server.more


def test_one_read_may_be_longer_than_the_buffer() -> None:
    client, server = pair()
    messages: list[Any] = [Delivered(original=1 + i % 999) for i in range(8000)]
    data = b"".join(client.encode(messages[i : i + 64]) for i in range(0, 8000, 64))
    assert len(data) > 300_000
    assert server.receive(data) == messages


def test_too_long_a_message_of_ours_is_our_fault() -> None:
    _, server = pair()
    with pytest.raises(ValueError, match="payload"):
        server.encode([Notice("x" * 9000, "info")])
    assert server.encode([Notice("x", "info")])


def test_owed_bytes_go_first() -> None:
    client, server = pair()
    server.receive(client.silence(30))
    answers = payloads(server.encode([Notice("x", "info")]))
    assert [plain(answer)["op"] for answer in answers] == ["echo_answer", "notice"]
    assert server.output() == b""


def test_silence() -> None:
    client, server = pair()
    assert server.silence(29.9) == b""
    echo = server.silence(30)
    assert plain(payloads(echo)[0]) == {"op": "echo"}
    assert server.silence(45) == b""
    client.receive(echo)
    assert server.receive(client.output()) == []
    assert server.silence(1) == b""
    assert server.silence(31) != b""
    assert server.closing is None
    assert server.silence(60) == b""
    assert server.closing
    assert acceptor().silence(1000) == b""


def test_secrets_are_in_no_repr() -> None:
    key = PeerKey(b"secret-secret-secret-secret-secr")
    assert "secret" not in repr(key)
    assert "004512" not in repr(msgspec.convert(CASH_OUT, CashOut))
    with pytest.raises(ValueError, match="32"):
        PeerKey(b"short")
    with pytest.raises(ValueError, match="algorithm"):
        PeerKey(bytes(32), "rot13")


def test_fields_of_errors_never_quote_the_peer() -> None:
    assert field_of(ValueError("secret")) == "payload"
    assert field_of(msgspec.ValidationError("Expected `object`, got `array`")) == "payload"
    assert field_of(msgspec.ValidationError("Invalid 'x' - at `$.op`")) == "op"
    assert field_of(msgspec.ValidationError("Invalid ' - at `$.a`' - at `$.d[...]`")) == "d"
    assert field_of(msgspec.ValidationError("Expected `str` - at `key` in `$.d`")) == "d"


def test_decoders_are_made_once() -> None:
    assert decoder(TERMINAL, "acceptor", "json") is decoder(TERMINAL, "acceptor", "json")
    assert decoder(TERMINAL, "acceptor", "json") is not decoder(NETWORK, "acceptor", "json")


# ---- properties

TERMINAL_MESSAGES = st.one_of(
    st.builds(Delivered, original=st.integers(1, 999_999)),
    st.builds(LastOperation, trace=st.integers(1, 999_999)),
    st.builds(
        CashOut,
        trace=st.integers(1, 999_999),
        cashier=st.from_regex(r"[0-9]{1,6}", fullmatch=True),
        token=st.from_regex(r"[0-9]{6,8}", fullmatch=True),
        amount=st.integers(1, 999_999_999_999),
        currency=st.just("PYG"),
        document=st.from_regex(r"[0-9]{5,8}", fullmatch=True),
    ),
    st.builds(
        Deposit,
        trace=st.integers(1, 999_999),
        cashier=st.just("1"),
        amount=st.integers(1, 999_999_999_999),
        currency=st.just("PYG"),
        declaration=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    ),
)


@given(
    messages=st.lists(st.tuples(TERMINAL_MESSAGES, st.sampled_from(["json", "msgpack"]))),
    cuts=st.lists(st.integers(0, 4000)),
    limit=st.none() | st.integers(1, 5),
)
def test_any_split_of_pipelined_frames_gives_the_same(
    messages: list[tuple[Any, Encoding]], cuts: list[int], limit: int | None
) -> None:
    client, server = initiator(), acceptor()
    sign_on = client.sign_on()
    twin = acceptor()
    twin.receive(sign_on)
    client.receive(twin.output())
    data = sign_on + b"".join(client.encode([m], encoding) for m, encoding in messages)
    received: list[Any] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in pairwise(edges):
        received += server.receive(data[start:stop], limit)
        while server.more:
            received += server.receive(limit=limit)
    assert received == [message for message, _ in messages]
    assert server.closing is None
    assert server.signed_on


def test_every_single_split_point_of_a_session() -> None:
    client = initiator()
    sign_on = client.sign_on()
    twin = acceptor()
    twin.receive(sign_on)
    client.receive(twin.output())
    data = sign_on + client.encode([msgspec.convert(CASH_OUT, CashOut)]) + client.silence(30)
    whole = acceptor()
    expected = whole.receive(data), whole.output()
    for cut in range(len(data) + 1):
        server = acceptor()
        received = server.receive(data[:cut])
        out = server.output()
        received += server.receive(data[cut:])
        assert (received, out + server.output()) == expected


@given(st.lists(st.binary(max_size=600), max_size=5))
@example([b"\0\x09" + bytes(9)])
def test_garbage_never_raises(chunks: list[bytes]) -> None:
    fresh, dialling = acceptor(), initiator()
    dialling.sign_on()
    client, server = pair()
    for chunk in chunks:
        for session in (fresh, dialling, client, server):
            assert session.receive(chunk) == []
            session.output()
    data = b"".join(chunks)
    if len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2], "big"):
        # A whole frame of garbage is a bad MAC, whatever else it is.
        assert all(session.closing for session in (fresh, dialling, client, server))


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_authentic_garbage_never_raises_nor_closes(payloads_: list[bytes]) -> None:
    client, server = pair()
    events, answers = exchange(server, raw(client, *payloads_))
    assert server.closing is None
    assert len(answers) <= len(payloads_)
    assert all(answer["op"] in ("error", "answer", "echo_answer") for answer in answers)
    assert len(events) <= len(payloads_)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted(
    {field for message in (CashOut, Deposit, Hold, Status) for field in message.__struct_fields__}
)


@given(
    op=st.sampled_from(sorted({"cash_out", "deposit", "hold", "status", "echo", "error", "x"})),
    fields=st.dictionaries(st.sampled_from([*FIELDS, "zz"]), JSON_VALUES, max_size=8),
    vocabulary=st.sampled_from([TERMINAL, NETWORK]),
    binary=st.booleans(),
)
def test_near_misses_are_answered_once(
    op: str, fields: dict[str, Any], vocabulary: Vocabulary, binary: bool
) -> None:
    client, server = pair(vocabulary)
    try:
        encoded = msgspec.msgpack.encode if binary else json.dumps
        payload: Any = encoded({"op": op} | fields)
    except OverflowError:
        return
    payload = payload if binary else payload.encode()
    events, answers = exchange(server, raw(client, payload))
    assert len(events) + len(answers) <= 2
    if op == "error":
        # Infinity is no JSON: then not even the operation is readable.
        assert answers in ([], [{"op": "error", "code": "30", "field": "payload"}])
    elif op == "echo":
        assert len(answers) == 1
    elif events and isinstance(events[0], BadRequest):
        (answer,) = answers
        assert answer["code"] in ("30", "12")
        assert answer.get("field") in {None, "payload", "op", *FIELDS}


# ---- as a Codec


def test_session_codec() -> None:
    client = SessionCodec.connect(TERMINAL, "00000017", K, CLIENT_NONCE, "msgpack")
    server = SessionCodec.accept(TERMINAL, lambda peer, version: K, SERVER_NONCE, lambda: NOW)
    assert isinstance(client, Codec)
    assert isinstance(client.session, Initiator)
    assert server.feed(client.session.sign_on()) == []
    assert client.feed(server.output()) == []
    assert server.feed(client.encode(Delivered(original=1))) == [Delivered(original=1)]
    assert server.feed(client.encode(Delivered(original=2)) + b"\0\0") == [Delivered(original=2)]
    with pytest.raises(ProtocolError) as caught:
        server.feed(b"")
    assert caught.value.fatal
    assert server.output()


def test_session_key_is_bound_to_both_nonces() -> None:
    keys = {
        session_key(K.key, client, server)
        for client in (CLIENT_NONCE, SERVER_NONCE)
        for server in (CLIENT_NONCE, SERVER_NONCE)
    }
    assert len(keys) == 4


# ---- lock-out


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_five_failures_lock_the_pair_and_nobody_else() -> None:
    clock = Clock()
    guard = SignOnGuard(clock)
    for _ in range(4):
        guard.failed("10.0.0.1", "00000017")
        clock.now_s += 1
    assert guard.allowed("10.0.0.1", "00000017")
    guard.failed("10.0.0.1", "00000017")
    assert not guard.allowed("10.0.0.1", "00000017")
    assert guard.allowed("10.0.0.2", "00000017")
    assert guard.allowed("10.0.0.1", "00000018")
    assert guard.locked == 1
    for _ in range(20):
        guard.failed("10.0.0.1", "00000017")
    clock.now_s += 59
    assert not guard.allowed("10.0.0.1", "00000017")
    clock.now_s += 1
    assert guard.allowed("10.0.0.1", "00000017")
    assert guard.locked == 1


def test_slow_failures_never_lock() -> None:
    clock = Clock()
    guard = SignOnGuard(clock)
    for _ in range(50):
        guard.failed("10.0.0.1", "00000017")
        clock.now_s += 15
        assert guard.allowed("10.0.0.1", "00000017")


def test_a_failing_address_is_slowed_to_one_a_second() -> None:
    clock = Clock()
    guard = SignOnGuard(clock)
    assert guard.wait_s("10.0.0.1") == 0
    for number in range(100):
        assert guard.wait_s("10.0.0.1") == 0
        guard.failed("10.0.0.1", f"{number:08}")
    assert [guard.wait_s("10.0.0.1") for _ in range(13)] == [*range(11), math.inf, math.inf]
    assert guard.wait_s("10.0.0.2") == 0
    clock.now_s += 5
    assert guard.wait_s("10.0.0.1") == 6
    clock.now_s += 60
    assert guard.wait_s("10.0.0.1") == 0


def test_the_guard_is_bounded() -> None:
    guard = SignOnGuard(Clock(), entries_max=10)
    for number in range(1000):
        guard.failed(f"10.0.{number // 256}.{number % 256}", "00000017")
    assert len(guard) == 20
    with pytest.raises(ValueError, match="entries_max"):
        SignOnGuard(Clock(), entries_max=0)


def test_network_answers_and_echo_numbers() -> None:
    client, server = pair(NETWORK)
    server.receive(client._channel.seal([b'{"op":"echo","id":4}']))
    assert client.receive(server.output()) == []
    answer = NetworkAnswer(id=1, code="00", operation="000000000042")
    assert client.receive(server.encode([answer, EchoAnswer(id=9)])) == [answer]
