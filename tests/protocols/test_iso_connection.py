"""An ISO 8583 connection against itself and against a peer that does everything wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._mac import MacKey
from protocols.iso8583.connection import (
    ASKED_MAX,
    Connection,
    Cutover,
    EchoAnswered,
    ExchangeRefused,
    KeyChanged,
    Received,
    Refused,
    SignedOff,
    SignedOn,
    SignOnRefused,
)
from protocols.iso8583.dialect import Dialect, Framing, Message
from protocols.iso8583.keys import HostKeys, mac_key

CEIBO = Dialect.load("ceibo")
FRAMING = Framing.from_dict({})
MAC_1, MAC_2, MAC_3 = (bytes([i]) * 16 for i in (1, 2, 3))
ZONE, DATA = b"z" * 32, b"d" * 32
NOW_NS = 1_767_268_800_000_000_000  # 2026-01-01T12:00:00Z
DE7 = "0101120000"

CAPTURE = {
    "3": "010000",
    "4": "000000150000",
    "7": DE7,
    "11": "000042",
    "25": "00",
    "32": "0012",
    "37": "260010000123",
    "49": "600",
    "90": "0100" + "0" * 16 + "0" * 7 + "0012" + "0" * 11,
}
STATUS = {"7": DE7, "11": "000007", "32": "0012", "37": "260010000123"}


def host_keys(mac: dict[int, bytes] | None = None) -> HostKeys:
    pairs = [*(mac or {1: MAC_1}).items()]
    return HostKeys.of("aes-cmac", pairs, [(1, DATA)], [(1, ZONE)])


def counter(start: int = 1) -> Callable[[], str]:
    state = [start]

    def following() -> str:
        state[0] += 1
        return f"{state[0] - 1:06}"

    return following


def connection(
    initiator: bool, keys: HostKeys | list[HostKeys] | None = None, **more: Any
) -> Connection:
    return Connection(
        CEIBO,
        FRAMING,
        host_keys() if keys is None else keys,
        initiator=initiator,
        wall_ns=lambda: NOW_NS,
        next_stan=counter(100 if initiator else 500),
        **more,
    )


class Peer:
    """The other side, by hand: makes any message under any key and reads what comes back."""

    def __init__(self, key: bytes = MAC_1) -> None:
        self.key: MacKey = mac_key("aes-cmac", key)
        self._framer = FRAMING.framer(8192)

    def message(self, mti: str, elements: dict[str, object], key: bytes | None = None) -> bytes:
        body = CEIBO.encode_for_mac({"mti": mti, **elements})
        signer = self.key if key is None else mac_key("aes-cmac", key)
        return framed(body + signer.mac(body)[:8])

    def manage(self, function: str, stan: str = "000001", **more: object) -> bytes:
        return self.message("0800", {"7": DE7, "11": stan, "70": function, **more})

    def read(self, data: bytes, key: bytes | None = None) -> list[Message]:
        """What was answered; every MAC must be good under the key."""
        signer = self.key if key is None else mac_key("aes-cmac", key)
        messages = [CEIBO.decode(frame) for frame in self._framer.feed(data)]
        for message in messages:
            assert message.mac is not None
            assert signer.verify(message.mac_input, message.mac)
            assert message.mac_input + message.mac == message.raw
        return messages


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def accepted(keys: HostKeys | None = None) -> Connection:
    """An accepting side that has signed on."""
    side = connection(False, keys)
    assert side.receive(Peer().manage("001")) == [SignedOn()]
    assert side.output()
    return side


def joined() -> tuple[Connection, Connection]:
    """Both sides, signed on."""
    ours, theirs = connection(True), connection(False)
    ours.sign_on()
    assert not ours.signed_on
    assert theirs.receive(ours.output()) == [SignedOn()]
    assert ours.receive(theirs.output()) == [SignedOn()]
    assert ours.signed_on
    assert theirs.signed_on
    return ours, theirs


def summary(message: Message) -> dict[str, object]:
    return {"mti": message.mti, **{k: v for k, v in message.items() if k not in ("64", "128")}}


# ---- the normal run


def test_request_and_answer() -> None:
    ours, theirs = joined()
    ours.request("0220", CAPTURE)
    (asked,) = theirs.receive(ours.output())
    assert isinstance(asked, Received)
    assert asked.is_request
    assert asked.key_version == 1
    assert asked.message["37"] == CAPTURE["37"]
    assert asked.message.mac_input[-8:] != asked.message.mac
    theirs.answer(asked, {"38": "A7K2Q9", "39": "00"})
    (told,) = ours.receive(theirs.output())
    assert isinstance(told, Received)
    assert not told.is_request
    echoed = {k: CAPTURE[k] for k in ("3", "4", "7", "11", "37", "49")}
    assert summary(told.message) == {"mti": "0230", **echoed, "38": "A7K2Q9", "39": "00"}


def test_the_secondary_bitmap_moves_the_mac_to_128() -> None:
    ours, theirs = joined()
    ours.request("0220", CAPTURE)  # has DE90
    ours.request("0600", STATUS)
    with_90, without = theirs.receive(ours.output())
    assert "128" in with_90.message
    assert "64" not in with_90.message
    assert "64" in without.message
    assert len(with_90.message.mac) == len(without.message.mac) == 8


def test_many_in_one_read_and_any_cut() -> None:
    ours, theirs = joined()
    stans = [f"{i:06}" for i in range(1, 41)]
    for stan in stans:
        ours.request("0220", {**CAPTURE, "11": stan})
    data = ours.output()
    assert ours.output() == b""
    for cut in range(0, len(data), 97):
        again = accepted()
        events = again.receive(data[:cut]) + again.receive(data[cut:])
        assert [event.message["11"] for event in events] == stans
    for event in theirs.receive(data):
        theirs.answer(event, {"39": "00"})
    assert [event.message["11"] for event in ours.receive(theirs.output())] == stans


# ---- sign-on and the rest of network management


def test_sign_on_carries_what_it_must() -> None:
    ours = connection(True)
    ours.sign_on()
    (message,) = Peer().read(ours.output())
    assert summary(message) == {"mti": "0800", "7": DE7, "11": "000100", "70": "001"}


def test_before_sign_on_everything_but_0800_gets_12() -> None:
    side, peer = connection(False), Peer()
    events = side.receive(peer.message("0220", CAPTURE) + peer.manage("301"))
    assert [event.code for event in events] == ["12"]
    first, echo = peer.read(side.output())
    assert (first.mti, first["39"], first["11"]) == ("0230", "12", "000042")
    assert (echo.mti, echo["39"], echo["70"]) == ("0810", "00", "301")
    assert not side.signed_on
    assert side.early == 1


def test_sign_on_again_and_traffic_in_the_same_read() -> None:
    side, peer = connection(False), Peer()
    data = (
        peer.manage("001", "000001") + peer.message("0220", CAPTURE) + peer.manage("001", "000003")
    )
    first, request, again = side.receive(data)
    assert first == again == SignedOn()
    assert isinstance(request, Received)
    assert [(m["11"], m["39"]) for m in peer.read(side.output())] == [
        ("000001", "00"),
        ("000003", "00"),
    ]
    assert side.signed_on


def test_sign_off() -> None:
    ours, theirs = joined()
    ours.sign_off()
    assert theirs.receive(ours.output()) == [SignedOff()]
    assert ours.receive(theirs.output()) == [SignedOff()]
    assert not ours.signed_on
    assert not theirs.signed_on
    assert [e.code for e in theirs.receive(Peer().message("0600", STATUS))] == ["12"]
    ours.sign_on()
    assert theirs.receive(ours.output()) == [SignedOn()]


def test_a_refused_sign_on_ends_the_connection() -> None:
    ours, peer = connection(True), Peer()
    ours.sign_on()
    (asked,) = peer.read(ours.output())
    refusal = {"7": DE7, "11": asked["11"], "39": "05", "70": "001"}
    assert ours.receive(peer.message("0810", refusal)) == [SignOnRefused("05")]
    assert ours.closing is not None
    assert not ours.signed_on
    assert ours.receive(peer.message("0810", {**refusal, "39": "00"})) == []


def test_an_answer_to_another_sign_on_is_not_taken() -> None:
    ours, peer = connection(True), Peer()
    ours.sign_on()
    answer = {"7": DE7, "11": "999999", "39": "00", "70": "001"}
    assert ours.receive(peer.message("0810", answer)) == []
    assert not ours.signed_on
    assert ours.unmatched == 1


def test_the_side_that_was_called_cannot_sign_on() -> None:
    ours, peer = connection(True), Peer()
    (event,) = ours.receive(peer.manage("001"))
    assert event.code == "12"
    assert [m["39"] for m in peer.read(ours.output())] == ["12"]
    assert not ours.signed_on


def test_echoes_are_counted_until_one_is_answered() -> None:
    ours, theirs = joined()
    ours.echo()
    assert ours.echoes_missed == 0
    ours.echo()
    ours.echo()
    assert ours.echoes_missed == 2
    theirs.receive(ours.output())
    assert ours.receive(theirs.output()) == [EchoAnswered()] * 3
    assert ours.echoes_missed == 0
    ours.echo()
    assert ours.echoes_missed == 0


def test_cutover_names_the_day() -> None:
    ours, theirs = joined()
    ours.cutover("0102")
    assert theirs.receive(ours.output()) == [Cutover(20_455)]
    assert ours.receive(theirs.output()) == []
    assert theirs.receive(Peer().manage("201")) == [Cutover(None)]
    (refused,) = theirs.receive(Peer().manage("201", **{"15": "0230"}))
    assert (refused.code, refused.element) == ("30", "15")


@pytest.mark.parametrize(("function", "code"), [("999", "12"), ("", "30")])
def test_unknown_network_management(function: str, code: str) -> None:
    side, peer = accepted(), Peer()
    elements: dict[str, object] = {"7": DE7, "11": "000009"}
    if function:
        elements["70"] = function
    (event,) = side.receive(peer.message("0800", elements))
    assert (event.code, event.element) == (code, "70")
    assert [m["39"] for m in peer.read(side.output())] == [code]


def test_what_we_asked_is_bounded() -> None:
    ours, theirs = joined()
    for _ in range(ASKED_MAX + 3):
        ours.echo()
    theirs.receive(ours.output())
    assert len(ours.receive(theirs.output())) == ASKED_MAX
    assert ours.unmatched == 3


# ---- MACs and keys


def test_a_wrong_mac_is_answered_63_and_never_delivered() -> None:
    side, peer = accepted(), Peer()
    events = side.receive(peer.message("0220", CAPTURE, MAC_2) + peer.message("0600", STATUS))
    refused, good = events
    assert isinstance(refused, Refused)
    assert (refused.code, refused.mti, refused.stan) == ("63", "0220", "000042")
    assert isinstance(good, Received)
    assert side.mac_failures == 1
    (answer,) = peer.read(side.output())  # under our newest key
    assert (answer.mti, answer["39"], answer["11"]) == ("0230", "63", "000042")


@pytest.mark.parametrize("where", ["mti", "bitmap", "amount", "last", "mac"])
def test_one_bit_anywhere_is_seen(where: str) -> None:
    side, peer = accepted(), Peer()
    data = bytearray(peer.message("0220", CAPTURE))
    at = {"mti": 2 + 3, "bitmap": 2 + 4 + 7, "amount": 2 + 4 + 16 + 17, "last": -9, "mac": -1}
    data[at[where]] ^= 1
    (event,) = side.receive(bytes(data))
    assert isinstance(event, Refused)
    assert side.mac_failures + side.format_errors == 1


def test_no_mac_at_all_is_a_wrong_one() -> None:
    side = accepted()
    (event,) = side.receive(framed(CEIBO.encode({"mti": "0220", **CAPTURE})))
    assert event.code == "63"
    assert Peer().read(side.output())[0]["39"] == "63"


def test_a_wrong_mac_on_an_answer_is_not_answered() -> None:
    ours, _ = joined()
    events = ours.receive(Peer().message("0230", {**CAPTURE, "39": "00"}, MAC_3))
    assert [event.code for event in events] == ["63"]
    assert ours.output() == b""
    assert ours.mac_failures == 1


def test_a_wrong_mac_on_a_sign_on() -> None:
    side = connection(False)
    (event,) = side.receive(Peer(MAC_2).manage("001"))
    assert event.code == "63"
    assert not side.signed_on
    assert Peer().read(side.output())[0]["39"] == "63"


def test_an_answer_goes_out_under_the_key_of_its_request() -> None:
    side, peer = accepted(host_keys({1: MAC_1, 2: MAC_2})), Peer()
    old = peer.message("0220", CAPTURE)
    new = peer.message("0600", STATUS, MAC_2)
    first, second = side.receive(old + new)
    assert (first.key_version, second.key_version) == (1, 2)
    side.answer(second, {"39": "25"})
    side.answer(first, {"39": "00"})
    data = side.output()
    cut = 2 + int.from_bytes(data[:2], "big")
    assert peer.read(data[:cut], MAC_2)[0]["39"] == "25"
    assert peer.read(data[cut:], MAC_1)[0]["39"] == "00"
    side.request("0600", STATUS)
    assert peer.read(side.output(), MAC_2), "ours go out under the newest"


def test_early_and_malformed_are_answered_under_a_key_the_peer_has() -> None:
    side, peer = connection(False, host_keys({1: MAC_1, 2: MAC_2})), Peer()
    side.receive(peer.message("0220", CAPTURE))
    assert peer.read(side.output(), MAC_1)[0]["39"] == "12"


def test_a_link_without_macs() -> None:
    bare = HostKeys([], algorithm="none")
    ours, theirs = connection(True, bare), connection(False, bare)
    ours.sign_on()
    assert theirs.receive(ours.output()) == [SignedOn()]
    ours.receive(theirs.output())
    ours.request("0220", CAPTURE)
    (asked,) = theirs.receive(ours.output())
    assert asked.key_version == 0
    assert asked.message.mac is None
    theirs.answer(asked, {"39": "00"})
    (told,) = ours.receive(theirs.output())
    assert told.message.mac is None


def test_the_host_is_known_by_its_key() -> None:
    hosts = [host_keys({1: MAC_1}), host_keys({1: MAC_2, 2: MAC_3})]
    side, peer = connection(False, hosts), Peer(MAC_2)
    assert side.keys is None
    assert side.receive(peer.manage("001")) == [SignedOn()]
    assert side.keys is hosts[1]
    assert peer.read(side.output())
    (event,) = side.receive(Peer(MAC_1).message("0220", CAPTURE))
    assert event.code == "63", "the key of another host is as wrong as any"


def test_nobodys_key_ends_the_connection_without_a_word() -> None:
    side = connection(False, [host_keys({1: MAC_1}), host_keys({1: MAC_2})])
    (event,) = side.receive(Peer(MAC_3).manage("001"))
    assert event.code == "63"
    assert side.closing is not None
    assert side.output() == b""


# ---- key exchange


@pytest.mark.parametrize("from_initiator", [True, False])
def test_a_mac_key_is_exchanged(from_initiator: bool) -> None:
    pair = joined()
    ours, theirs = pair if from_initiator else pair[::-1]
    ours.exchange_key("mac", MAC_2)
    asked = ours.output()
    assert theirs.receive(asked) == [KeyChanged("mac", 2, MAC_2, ours=False)]
    answer = theirs.output()
    assert Peer().read(answer, MAC_1)[0]["39"] == "00", "answered under the key it came under"
    theirs.request("0600", STATUS)
    early = theirs.output()
    assert Peer().read(early, MAC_2)
    assert [event.key_version for event in ours.receive(early)] == [2], "taken before the answer"
    ours.request("0600", STATUS)
    assert Peer().read(ours.output(), MAC_1)
    assert ours.receive(answer) == [KeyChanged("mac", 2, MAC_2, ours=True)]
    ours.request("0600", STATUS)
    assert [event.key_version for event in theirs.receive(ours.output())] == [2]
    theirs.request("0600", STATUS)
    old = Peer().message("0600", STATUS, MAC_1)
    assert [event.key_version for event in ours.receive(theirs.output() + old)] == [2, 1]


def test_a_lost_answer_and_the_same_key_again() -> None:
    ours, theirs = joined()
    ours.exchange_key("mac", MAC_2)
    theirs.receive(ours.output())
    theirs.output()  # lost
    ours.exchange_key("mac", MAC_2)
    assert theirs.receive(ours.output()) == [KeyChanged("mac", 2, MAC_2, ours=False)]
    assert ours.receive(theirs.output()) == [KeyChanged("mac", 2, MAC_2, ours=True)]


def test_a_data_key_is_exchanged() -> None:
    ours, theirs = joined()
    new = b"n" * 32
    ours.exchange_key("data", new)
    (event,) = theirs.receive(ours.output())
    assert event == KeyChanged("data", 2, new, ours=False)
    assert "nnn" not in repr(event)
    assert ours.keys is not None
    assert ours.keys.sealing_key == DATA
    ours.receive(theirs.output())
    assert ours.keys.sealing_key == new


def test_a_key_under_another_zone_key_is_refused_and_forgotten() -> None:
    keys = HostKeys.of("aes-cmac", [(1, MAC_1)], [], [(1, b"y" * 32)])
    ours, theirs = connection(True, keys), accepted()
    ours.sign_on()
    theirs.receive(ours.output())
    ours.receive(theirs.output())
    ours.exchange_key("mac", MAC_2)
    assert theirs.receive(ours.output()) == [ExchangeRefused("mac", "63", ours=False)]
    answer = theirs.output()
    assert Peer().read(answer)[0]["39"] == "63"
    assert ours.receive(answer) == [ExchangeRefused("mac", "63", ours=True)]
    assert keys.versions("mac") == [1]
    assert theirs.keys is not None
    assert theirs.keys.versions("mac") == [1]


def test_a_key_exchange_without_its_parts_is_refused() -> None:
    side, peer = accepted(), Peer()
    assert side.receive(peer.manage("101", **{"48": {"30": "mac"}})) == [
        ExchangeRefused("mac", "30", ours=False)
    ]
    assert side.receive(peer.manage("101")) == [ExchangeRefused("", "12", ours=False)]
    assert [m["39"] for m in peer.read(side.output())] == ["30", "12"]


def test_other_kinds_of_key_are_not_named_in_events() -> None:
    side, peer = accepted(), Peer()
    tags = {"30": "4111", "31": "00" * 24, "32": "000000"}
    assert side.receive(peer.manage("101", **{"48": tags})) == [
        ExchangeRefused("", "12", ours=False)
    ]


# ---- framings


def test_headers_come_back_and_keep_alives_are_answered() -> None:
    framing = Framing.from_dict({"header": "6000030001", "keep_alive": "answered"})
    side = Connection(
        CEIBO, framing, host_keys(), initiator=False, wall_ns=lambda: NOW_NS, next_stan=counter()
    )
    peer = Peer()
    request = bytes.fromhex("60AAAABBBB") + peer.manage("001")[2:]
    assert side.receive(framed(b"") + framed(request) + framed(b"")) == [SignedOn()]
    out = side.output()
    assert out[:4] == bytes(4), "both keep-alives"
    assert out[6:11] == bytes.fromhex("60BBBBAAAA"), "a TPDU's addresses change places"
    assert peer.read(framed(out[11:]))[0]["39"] == "00"
    side.request("0600", STATUS)
    assert side.output()[2:7] == bytes.fromhex("6000030001"), "our own header"
    assert side.output() == b""


def test_a_stream_that_the_layout_cuts() -> None:
    framing = Framing.from_dict({"length": "none"})
    side = Connection(
        CEIBO, framing, host_keys(), initiator=False, wall_ns=lambda: NOW_NS, next_stan=counter()
    )
    peer = Peer()
    data = peer.manage("001")[2:] + peer.message("0220", CAPTURE)[2:]
    events = side.receive(data[:70]) + side.receive(data[70:])
    assert [type(event) for event in events] == [SignedOn, Received]


def test_a_dialect_that_cannot_say_what_must_be_said() -> None:
    spec = {"name": "x", "extend": "ceibo", "mac": [64], "elements": {}}
    for change in ({"mac": [64]}, {"elements": {"39": {"content": "n", "length": 3}}}):
        poor = Dialect.from_dict({**spec, "mac": [64, 128], **change})
        with pytest.raises(ValueError):
            Connection(poor, FRAMING, host_keys(), initiator=True, wall_ns=int, next_stan=counter())


# ---- broken messages and broken streams


def test_a_malformed_request_is_answered_30() -> None:
    side, peer = accepted(), Peer()
    body = CEIBO.encode_for_mac({"mti": "0220", **CAPTURE})
    assert body.count(b"000000150000") == 1
    broken = body.replace(b"000000150000", b"0000001500x0")
    events = side.receive(framed(broken + bytes(8)) + peer.message("0600", STATUS))
    refused, good = events
    assert isinstance(refused, Refused)
    assert (refused.code, refused.element, refused.mti) == ("30", "4", "0220")
    assert isinstance(good, Received), "the next frame is in step"
    (answer,) = peer.read(side.output())
    expected = {k: CAPTURE[k] for k in ("7", "11", "37")}
    assert summary(answer) == {"mti": "0230", **expected, "39": "30"}
    assert side.format_errors == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0220", b"02x0"),  # no sound MTI
        (b"000042", b"00004x"),  # no sound STAN
        (b"0220", b"0230"),  # an answer
    ],
)
def test_malformed_and_not_to_be_answered(old: bytes, new: bytes) -> None:
    side = accepted()
    body = CEIBO.encode_for_mac({"mti": "0220", **CAPTURE})
    broken = body.replace(b"000000150000", b"0000001500x0").replace(old, new, 1)
    (event,) = side.receive(framed(broken + bytes(8)))
    assert event.code == "30"
    assert side.output() == b""


def test_a_repeat_that_is_malformed_is_answered_as_its_original_would_be() -> None:
    side, peer = accepted(), Peer()
    body = CEIBO.encode_for_mac({"mti": "0421", **CAPTURE, "25": "21"})
    side.receive(framed(body.replace(b"000000150000", b"0000001500x0") + bytes(8)))
    assert [m.mti for m in peer.read(side.output())] == ["0430"]


def test_a_request_without_stan_is_dropped() -> None:
    side, peer = accepted(), Peer()
    bare = {k: v for k, v in CAPTURE.items() if k != "11"}
    (event,) = side.receive(peer.message("0220", bare))
    assert (event.code, event.element) == ("30", "11")
    assert side.output() == b""


@pytest.mark.parametrize("garbage", [b"", b"0", b"0220", b"GET / HTTP/1.1\r\n", bytes(40)])
def test_garbage_in_a_frame_is_counted_and_survived(garbage: bytes) -> None:
    side, peer = accepted(), Peer()
    events = side.receive(framed(garbage) + peer.message("0220", CAPTURE))
    assert isinstance(events[-1], Received)
    assert side.format_errors == (1 if garbage else 0), "a length of zero is a keep-alive"
    assert side.output() == b""


def test_a_frame_over_the_cap_ends_the_connection() -> None:
    side = connection(False, frame_bytes_max=256)
    assert side.receive(b"\x01\x01" + bytes(10)) == []
    assert side.closing is not None
    assert side.receive(Peer().manage("001")) == []


def test_what_we_send_has_the_same_cap() -> None:
    side, peer = connection(False, frame_bytes_max=200), Peer()
    side.receive(peer.manage("001") + peer.message("0600", STATUS))
    with pytest.raises(ValueError):
        side.request("0600", {**STATUS, "48": {"10": "X" * 200}})
    assert peer.read(side.output()), "what was queued before is sent all the same"


# ---- anything at all


@given(st.lists(st.binary(max_size=80), max_size=6), st.booleans(), st.booleans())
def test_whatever_bytes_come(pieces: list[bytes], as_frames: bool, initiator: bool) -> None:
    """Nothing is raised, nothing is delivered: nobody without the key says anything."""
    side = connection(initiator)
    for piece in pieces:
        for event in side.receive(framed(piece) if as_frames else piece):
            assert isinstance(event, Refused)
    assert not side.signed_on
    side.output()


@given(
    st.lists(st.sampled_from(["0220", "0421", "0600", "0230", "0800"]), min_size=1, max_size=5),
    st.data(),
)
def test_a_spoilt_stream_delivers_nothing_that_was_not_sent(kinds: list[str], data: Any) -> None:
    """Bytes changed, cut out or put in: what is still delivered is byte for byte what was sent."""
    peer, side = Peer(), accepted()
    messages = []
    for i, mti in enumerate(kinds):
        elements = {**(STATUS if mti == "0600" else CAPTURE), "11": f"{i:06}"}
        if mti == "0800":
            elements = {"7": DE7, "11": f"{i:06}", "70": "301"}
        messages.append(peer.message(mti, elements))
    stream = bytearray(b"".join(messages))
    at = data.draw(st.integers(0, len(stream) - 1))
    match data.draw(st.sampled_from(["change", "cut", "put"])):
        case "change":
            stream[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del stream[at : at + data.draw(st.integers(1, 30))]
        case _:
            stream[at:at] = data.draw(st.binary(min_size=1, max_size=30))
    cut = data.draw(st.integers(0, len(stream)))
    for event in side.receive(bytes(stream[:cut])) + side.receive(bytes(stream[cut:])):
        if isinstance(event, Received):
            assert framed(event.message.raw) in messages
    for answer in peer.read(side.output()):
        assert answer["39"] in ("00", "12", "30", "63")
        assert answer["39"] != "00" or answer["70"] == "301"
