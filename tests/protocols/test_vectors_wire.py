"""Every frame of the wire vectors, byte for byte, made and read by the code that serves peers."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core_ext._frames import Channel, session_key
from core_ext._mac import MacKey
from protocols.messages import Error
from protocols.session import NETWORK, TERMINAL, Acceptor, Initiator, PeerKey, Vocabulary
from protocols.session.keys import SignOn, SignOnAnswer, unauthenticated_key
from protocols.session.vocabulary import Side, decoder, decoder_of, encoder

_DIRECTORY = Path(os.environ.get("TRONCAL_VECTORS") or Path(__file__).parents[1] / "vectors")
_FILE = _DIRECTORY / "wire.json"
if not _FILE.exists():
    _FILE = Path(__file__).parents[1] / "vectors" / "wire.json"
VECTORS: dict[str, Any] = json.loads(_FILE.read_text())
KEY = bytes.fromhex(VECTORS["key"])
CLIENT_NONCE = bytes.fromhex(VECTORS["client_nonce"])
SERVER_NONCE = bytes.fromhex(VECTORS["server_nonce"])
CASES = VECTORS["cases"]
IDS = [f"{case['mac']}-{case['encoding']}" for case in CASES]

each_case = pytest.mark.parametrize("case", CASES, ids=IDS)


def channel_at(direction: int, counter: int) -> Channel:
    """A channel whose next frame, sent as `direction`, has this counter."""
    channel = Channel(direction)
    for _ in range(counter):
        channel.seal_with(unauthenticated_key(), b"{}")
    return channel


def key_of(case: dict[str, Any], frame: dict[str, Any]) -> MacKey:
    key = PeerKey(KEY, case["mac"])
    if frame["counter"] == 0:
        return key.mac_key()
    return key.derived(session_key(KEY, CLIENT_NONCE, SERVER_NONCE))


def acceptor_of(case: dict[str, Any]) -> Acceptor:
    """An acceptor that knows the peer of the case and answers as its vectors do."""
    messages = {frame["name"]: frame["message"] for frame in case["frames"]}
    sign_on, answer = messages["sign_on"], messages["sign_on_answer"]
    known = {(sign_on["peer"], sign_on["key"]): PeerKey(KEY, case["mac"])}
    return Acceptor(
        vocabulary=vocabulary_of(case),
        authenticate=lambda peer, version: known.get((peer, version)),
        nonce=SERVER_NONCE,
        now_iso=lambda: answer["time"],
        heartbeat_s=answer["heartbeat"],
    )


def test_session_key() -> None:
    assert session_key(KEY, CLIENT_NONCE, SERVER_NONCE).hex() == VECTORS["session_key"]


@each_case
def test_every_frame_encodes_byte_for_byte(case: dict[str, Any]) -> None:
    for frame in case["frames"]:
        payload = encoder(case["encoding"])(frame["message"])
        channel = channel_at(frame["direction"], frame["counter"])
        sealed = channel.seal_with(key_of(case, frame), payload)
        assert sealed.hex() == frame["frame"], frame["name"]


def vocabulary_of(case: dict[str, Any]) -> Vocabulary:
    """Terminals have eight digits, networks four."""
    return TERMINAL if len(case["frames"][0]["message"]["peer"]) == 8 else NETWORK


@each_case
def test_every_frame_decodes_to_its_message_and_back(case: dict[str, Any]) -> None:
    vocabulary, encoding = vocabulary_of(case), case["encoding"]
    for frame in case["frames"]:
        payload = bytes.fromhex(frame["frame"])[2:-8]
        side: Side = "acceptor" if frame["direction"] == 1 else "initiator"
        if frame["name"].startswith("sign_on"):
            sign_on = SignOn if side == "acceptor" else SignOnAnswer
            message = decoder_of(sign_on, encoding)(payload)
        else:
            message = decoder(vocabulary, side, encoding)(payload)
        assert message == msgspec.convert(frame["message"], type(message)), frame["name"]
        again = encoder(encoding)(message)
        assert decoder_of(type(message), encoding)(again) == message, frame["name"]
        if list(msgspec.to_builtins(message).items()) == list(frame["message"].items()):
            assert again == payload, frame["name"]


@each_case
def test_a_whole_session_through_both_sides(case: dict[str, Any]) -> None:
    """Acceptor and Initiator take each other's frames of the vectors, and make what they owe."""
    frames = {frame["name"]: bytes.fromhex(frame["frame"]) for frame in case["frames"]}
    messages = {frame["name"]: frame["message"] for frame in case["frames"]}
    sign_on, answer = messages["sign_on"], messages["sign_on_answer"]
    key = PeerKey(KEY, case["mac"])
    client = Initiator(
        vocabulary=vocabulary_of(case),
        peer=sign_on["peer"],
        key=key,
        key_version=sign_on["key"],
        nonce=CLIENT_NONCE,
        encoding=case["encoding"],
    )
    server = acceptor_of(case)
    assert client.sign_on() == frames["sign_on"]
    assert server.receive(frames["sign_on"]) == []
    assert server.output() == frames["sign_on_answer"]
    assert client.receive(frames["sign_on_answer"]) == []
    assert client.signed_on
    assert (client.heartbeat_s, client.server_time) == (answer["heartbeat"], answer["time"])
    assert (server.peer, server.confirmed) == (sign_on["peer"], False)
    for frame in case["frames"][2:]:
        name, wire = frame["name"], frames[frame["name"]]
        receiver, sender = (server, client) if frame["direction"] == 1 else (client, server)
        received = receiver.receive(wire)
        assert receiver.closing is None, name
        if name == "echo":
            assert received == []
            assert sender.silence(sender.heartbeat_s) == wire
        elif name == "echo_answer":
            assert received == []
            assert sender.output() == wire
        else:
            assert received == [msgspec.convert(frame["message"], type(received[0]))], name
            assert len(sender.encode(received, encoding=case["encoding"])) <= len(wire), name
    assert server.confirmed


@pytest.mark.parametrize("frame", VECTORS["unauthenticated_error"]["frames"])
def test_unauthenticated_errors(frame: dict[str, Any]) -> None:
    payload = encoder(frame["encoding"])(Error(code="63"))
    assert msgspec.to_builtins(Error(code="63")) == frame["message"]
    channel = channel_at(frame["direction"], frame["counter"])
    assert channel.seal_with(unauthenticated_key(), payload).hex() == frame["frame"]


@each_case
def test_a_bad_mac_gets_the_unauthenticated_error(case: dict[str, Any]) -> None:
    """At the sign-on and in place of frame 2, whatever the peer's algorithm is."""
    errors = {
        (frame["counter"], frame["encoding"]): frame["frame"]
        for frame in VECTORS["unauthenticated_error"]["frames"]
    }
    frames = {frame["name"]: bytes.fromhex(frame["frame"]) for frame in case["frames"]}
    for spoilt in ("sign_on", "cash_out"):
        server = acceptor_of(case)
        sent = b"".join(frames[name] for name in ("sign_on", "echo", "cash_out"))
        at = sent.index(frames[spoilt]) + len(frames[spoilt]) - 1
        assert server.receive(sent[:at] + bytes([sent[at] ^ 1]) + sent[at + 1 :]) == []
        assert server.closing
        out = server.output().hex()
        expected = errors.get((0 if spoilt == "sign_on" else 2, case["encoding"]))
        if expected is not None:
            assert out.endswith(expected)
            assert spoilt != "sign_on" or out == expected
