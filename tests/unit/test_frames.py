"""`_frames`: session channels and length-headed framings, at any split, under garbage."""

import copy
import hmac
import os
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core_ext._frames import Channel, LengthPrefixed, session_key
from core_ext._mac import MacKey

EXAMPLES = settings(max_examples=3000 if os.environ.get("TRONCAL_FUZZ") else 200, deadline=None)
SECRET = bytes(range(32))
KEYS = {
    "hmac-sha256": MacKey("hmac-sha256", SECRET),
    "aes-cmac": MacKey("aes-cmac", SECRET[:16]),
    "retail-2": MacKey("retail-2", SECRET[:16]),
}
KEY = KEYS["hmac-sha256"]


def frame(payload: bytes, direction: int, counter: int, algorithm: str = "hmac-sha256") -> bytes:
    """One session frame in plain Python, wire.md §1 and §2."""
    data = bytes([direction]) + counter.to_bytes(8, "big") + payload
    if algorithm == "hmac-sha256":
        mac = hmac.digest(SECRET, data, "sha256")
    elif algorithm == "aes-cmac":
        cmac = CMAC(AES(SECRET[:16]))
        cmac.update(data)
        mac = cmac.finalize()
    else:
        mac = KEYS[algorithm].mac(data)
    return (len(payload) + 8).to_bytes(2, "big") + payload + mac[:8]


def reference(data: bytes, direction: int, frame_bytes_max: int) -> tuple[list[bytes], int]:
    """What a channel must deliver of a whole stream: payloads in order, and the fault."""
    payloads: list[bytes] = []
    while len(data) >= 2:
        n = int.from_bytes(data[:2], "big")
        if n > frame_bytes_max:
            return payloads, 1
        if n < 9:
            return payloads, 2
        if len(data) < 2 + n:
            break
        payload = data[2 : n - 6]
        if data[: 2 + n] != frame(payload, direction, len(payloads)):
            return payloads, 3
        payloads.append(payload)
        data = data[2 + n :]
    return payloads, 0


def channel(direction: int = 2, frame_bytes_max: int = 8192, key: MacKey = KEY) -> Channel:
    made = Channel(direction, frame_bytes_max)
    made.rekey(key)
    return made


def stream(payloads: list[bytes], direction: int = 1) -> bytes:
    return b"".join(frame(p, direction, i) for i, p in enumerate(payloads))


@pytest.mark.parametrize("algorithm", KEYS)
def test_seal_and_take_agree_with_the_oracle(algorithm: str) -> None:
    one, other = channel(1, key=KEYS[algorithm]), channel(2, key=KEYS[algorithm])
    payloads = [bytes([n & 255]) * n for n in (1, 2, 6, 7, 8, 15, 16, 23, 24, 55, 200, 8184)]
    for direction, sender, receiver in ((1, one, other), (2, other, one)):
        wire = sender.seal(payloads[:5]) + sender.seal([]) + sender.seal(payloads[5:])
        assert wire == b"".join(frame(p, direction, i, algorithm) for i, p in enumerate(payloads))
        receiver.push(wire)
        assert receiver.take() == payloads
        assert sender.sent == receiver.received == len(payloads)
        assert (receiver.fault, receiver.more) == (0, False)


def test_every_split_point() -> None:
    payloads = [b"one", b"x", b"three" * 9]
    wire = stream(payloads)
    for cut in range(len(wire) + 1):
        receiver = channel()
        receiver.push(wire[:cut])
        taken = receiver.take()
        assert not receiver.more
        receiver.push(wire[cut:])
        assert taken + receiver.take() == payloads
        assert receiver.fault == 0


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, int]:
    """Good frames, then perhaps damage; and a bound on frames."""
    payloads = draw(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
    wire = bytearray(stream(payloads))
    damage = draw(st.sampled_from(["none", "flip", "tail", "cut", "swap"]))
    if damage == "flip" and wire:
        wire[draw(st.integers(0, len(wire) - 1))] ^= draw(st.integers(1, 255))
    elif damage == "cut" and wire:
        del wire[draw(st.integers(0, len(wire) - 1))]
    elif damage == "tail":
        wire += draw(st.binary(max_size=200))
    elif damage == "swap" and len(payloads) > 1:
        wire = bytearray(frame(payloads[1], 1, 1) + frame(payloads[0], 1, 0))
    return bytes(wire), draw(st.integers(9, 70))


@EXAMPLES
@given(streams(), st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(1, 4))
@example((b"\0\x08" + bytes(8), 9), [300], 1)
@example((frame(b"a", 1, 0) + b"\xff\xff", 70), [1], 1)
@example((frame(b"a" * 62, 1, 0), 70), [72], 1)
def test_any_stream_in_any_pieces(
    wire_and_bound: tuple[bytes, int], pieces: list[int], portion: int
) -> None:
    wire, bound = wire_and_bound
    receiver = channel(2, bound)
    taken: list[bytes] = []
    at = turn = 0
    while at < len(wire):
        size = pieces[turn % len(pieces)]
        receiver.push(wire[at : at + size] if turn % 2 else bytearray(wire[at : at + size]))
        taken += receiver.take(portion)  # perhaps fewer than there are
        at += size
        turn += 1
    while receiver.more:
        before = len(taken)
        taken += receiver.take(portion)
        assert len(taken) > before or receiver.fault
    assert (taken, receiver.fault) == reference(wire, 1, bound)
    assert receiver.received == len(taken)
    assert receiver.take() == []


@pytest.mark.parametrize(
    ("bad", "fault"),
    [(b"\x20\x01" + bytes(8193), 1), (b"\xff\xff", 1), (b"\0\x08" + bytes(8), 2), (b"\0\0", 2),
     (frame(b"replayed", 1, 0), 3), (frame(b"skipped", 1, 3), 3), (frame(b"ours", 2, 2), 3)],
)  # fmt: skip
def test_a_fault_comes_after_the_good_frames_and_stays(bad: bytes, fault: int) -> None:
    receiver = channel()
    receiver.push(stream([b"a", b"b"]) + bad)
    assert (receiver.fault, receiver.more) == (0, True)
    assert receiver.take(2) == [b"a", b"b"]
    assert (receiver.fault, receiver.more) == (0, True)
    assert receiver.take() == []
    assert (receiver.fault, receiver.more) == (fault, False)
    receiver.push(bytes(100_000))  # dropped
    receiver.push(frame(b"c", 1, 2))
    assert (receiver.take(), receiver.first(), receiver.accept_first(KEY)) == ([], None, None)
    assert (receiver.fault, receiver.received) == (fault, 2)
    assert receiver.seal([b"bye"]) == frame(b"bye", 2, 0)  # what we send is not concerned


def test_sign_on() -> None:
    """First frames under the long key, all later ones under the session's."""
    session = MacKey("hmac-sha256", b"session")
    client, server = Channel(1), Channel(2)
    hello = client.seal_with(KEY, b"hello")
    assert hello == frame(b"hello", 1, 0)
    for byte in hello[:-1]:
        server.push(bytes([byte]))
        assert server.first() is None
        assert server.accept_first(KEY) is None
        assert server.fault == 0
    server.push(hello[-1:])
    assert server.first() == server.first() == hello[2:]
    assert server.received == 0
    assert server.accept_first(KEY) == b"hello"
    assert server.received == 1
    server.rekey(session)
    client.push(server.seal_with(KEY, b"welcome") + server.seal([b"at once"]))
    assert client.accept_first(KEY) == b"welcome"
    client.rekey(session)
    assert client.take() == [b"at once"]
    server.push(client.seal([b"payload"]))
    assert server.take() == [b"payload"]
    assert (client.sent, client.received, server.sent) == (2, 2, 2)


def test_a_bad_sign_on() -> None:
    server = Channel(2)
    server.push(frame(b"hello", 1, 0))
    assert server.accept_first(MacKey("hmac-sha256", bytes(32))) is None
    assert (server.fault, server.received) == (3, 0)
    for bad, fault in ((b"\0\x01", 2), (b"\xff\xff", 1)):
        for method in (Channel.first, lambda c: c.accept_first(KEY)):
            server = Channel(2)
            server.push(bad)
            assert server.more
            assert method(server) is None
            assert server.fault == fault


def test_the_bound_on_frames_may_be_raised_after_sign_on() -> None:
    server = channel(2, 20)
    assert (server.frame_bytes_max, server.room) == (20, 44 + 65536)
    server.push(frame(b"x" * 12, 1, 0))
    assert server.take() == [b"x" * 12]
    server.frame_bytes_max = 8192
    server.push(frame(b"x" * 8184, 1, 1))
    assert server.take() == [b"x" * 8184]
    for wrong in (8, 65536):
        with pytest.raises(ValueError, match=r"9\.\.65535"):
            server.frame_bytes_max = wrong
        with pytest.raises(ValueError, match=r"9\.\.65535"):
            Channel(1, wrong)


def test_memory_is_bounded() -> None:
    receiver = channel()
    room = receiver.room
    assert room == receiver.buffer_bytes_max == 2 * 8194 + 65536
    receiver.push(bytes(room))
    assert receiver.room == 0
    with pytest.raises(OverflowError, match="room"):
        receiver.push(b"x")
    receiver = channel()
    receiver.push(frame(b"first", 1, 0) + frame(b"x" * 8184, 1, 1)[:-1])
    assert receiver.take() == [b"first"]
    assert not receiver.more
    assert receiver.room >= 65536
    for _ in range(3000):  # the buffer is reused, not crept along
        receiver = channel()
        receiver.push(b"")
    receiver = channel()
    for i in range(2000):
        whole = frame(bytes(100), 1, i)
        receiver.push(whole[:50])
        assert receiver.take() == []
        receiver.push(whole[50:])
        assert receiver.take() == [bytes(100)]


def test_bad_arguments() -> None:
    for direction in (0, 3, -1):
        with pytest.raises(ValueError, match="direction"):
            Channel(direction)
    keyless = Channel(1)
    with pytest.raises(RuntimeError, match="no session key"):
        keyless.take()
    with pytest.raises(RuntimeError, match="no session key"):
        keyless.seal([b"x"])
    sender = channel(1)
    for payloads in ([b"good", b""], [b"good", bytes(8185)]):
        with pytest.raises(ValueError, match="does not fit"):
            sender.seal(payloads)
    wrong: Any
    for wrong in (["text"], [None], [bytearray(1)]):
        with pytest.raises(TypeError):
            sender.seal(wrong)
    wrong = "text"
    with pytest.raises(TypeError):
        sender.push(wrong)
    wrong = None
    for call in (sender.rekey, sender.accept_first, sender.push, sender.seal):
        with pytest.raises(TypeError):
            call(wrong)
    assert sender.sent == 0
    with pytest.raises(TypeError):
        pickle.dumps(sender)
    with pytest.raises(TypeError):
        copy.copy(sender)


def test_session_key() -> None:
    one, other = b"\xaa" * 16, b"\xbb" * 16
    expected = hmac.digest(SECRET, b"troncal/1" + one + other, "sha256")
    assert session_key(SECRET, one, other) == expected
    for bad in ((one[:15], other), (one, other + b"x")):
        with pytest.raises(ValueError, match="16 bytes"):
            session_key(SECRET, *bad)


# -------------------------------------------------------------------------------- generic framer

FRAMINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "four bytes": {"length_bytes": 4},
    "little-endian": {"length_bytes": 3, "little_endian": True},
    "BASE24": {"trailer": b"\x03", "counts_trailer": True},
    "trailer not counted": {"trailer": b"\r\n"},
    "counts itself": {"counts_self": True},
    "counts all": {"counts_self": True, "counts_trailer": True, "trailer": b"\x03"},
    "BCD with TPDU": {"length": "bcd", "header_bytes": 5, "frame_bytes_max": 9999},
    "ASCII": {"length": "ascii", "length_bytes": 4},
    "ASCII hex": {"length": "hex", "length_bytes": 4},
    "before": {"before": b"\0\0"},
    "after": {"after": b"\0\0", "before": b"ISO"},
    "only a trailer": {"length": "none", "trailer": b"\x03"},
    "a long trailer": {"length": "none", "trailer": b"aab", "header_bytes": 2},
}


@st.composite
def framed(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    """A framing, and frames that it can carry."""
    options = FRAMINGS[draw(st.sampled_from(sorted(FRAMINGS)))]
    header = options.get("header_bytes", 0)
    body = st.binary(min_size=header, max_size=120)
    if options.get("length") == "none":
        body = body.map(lambda b: b[:header] + b[header:].translate(None, options["trailer"]))
    return options, draw(st.lists(body, max_size=6))


@EXAMPLES
@given(framed(), st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_framing_round_trip_in_any_pieces(
    case: tuple[dict[str, Any], list[bytes]], pieces: list[int]
) -> None:
    options, frames = case
    framer = LengthPrefixed(**options)
    wire = b"".join(framer.wrap(each) for each in frames)
    received: list[bytes] = []
    at = turn = 0
    while at < len(wire):
        size = pieces[turn % len(pieces)]
        received += framer.feed(wire[at : at + size])
        at += size
        turn += 1
    assert received == frames
    assert (framer.broken, framer.pending_bytes) == (None, 0)


@pytest.mark.parametrize("name", FRAMINGS)
@settings(EXAMPLES, max_examples=EXAMPLES.max_examples // 8)
@given(tail=st.binary(max_size=200))
def test_garbage_is_told_or_waited_for(name: str, tail: bytes) -> None:
    """However it is cut, the same frames come out, then silence; and little is kept."""
    options = FRAMINGS[name] | {"frame_bytes_max": 40}
    good = LengthPrefixed(**options).wrap(b"12345")
    garbage = good + tail
    whole = LengthPrefixed(**options)
    frames = whole.feed(garbage)
    bytewise = LengthPrefixed(**options)
    pieces: list[bytes] = []
    for byte in garbage:
        pieces += bytewise.feed(bytes([byte]))
        assert bytewise.pending_bytes <= 40 + 16
    assert frames[0] == b"12345"
    assert pieces == frames
    assert bytewise.broken == whole.broken
    assert bytewise.pending_bytes == whole.pending_bytes
    if whole.broken:
        assert whole.feed(good) == []
        assert whole.pending_bytes == 0


@pytest.mark.parametrize(
    ("options", "wire", "frames", "reason"),
    [
        ({}, "0003414243 0000 0001", [b"ABC", b""], None),
        ({"frame_bytes_min": 1}, "0003414243 0000", [b"ABC"], "below the least"),
        ({"frame_bytes_max": 3}, "0003414243 0004", [b"ABC"], "too long"),
        ({"counts_self": True}, "0005414243 0002 0001", [b"ABC", b""], "below the least"),
        ({"trailer": b"\3", "counts_trailer": True}, "000441424303 0000 00024104", [b"ABC", b""],
         "trailer"),
        ({"trailer": b"\3", "counts_trailer": True}, "000103 000103", [b"", b""], None),
        ({"length": "bcd"}, "0012 303030303030303030303030 001a", [b"0" * 12], "not a number"),
        ({"length": "ascii", "length_bytes": 4}, "30303032 4142 2b303032", [b"AB"],
         "not a number"),
        ({"length": "hex", "length_bytes": 2, "frame_bytes_max": 255},
         "3041" + "61" * 10 + "3061" + "62" * 10 + "3067", [b"a" * 10, b"b" * 10],
         "not a number"),
        ({"before": b"\0\0"}, "0000000141 00010001", [b"A"], "before"),
        ({"after": b"\0\0"}, "0001000041 000100ff", [b"A"], "after"),
        ({"length": "bcd", "header_bytes": 5}, "0007 60000300004142 0000 0004",
         [b"\x60\0\3\0\0AB", b""], "below the least"),
        ({"length": "none", "trailer": b"\3", "header_bytes": 2}, "0303410303030303",
         [b"\3\3A", b"\3\3"], None),
        ({"length": "none", "trailer": b"\3", "frame_bytes_max": 2}, "414203 414243", [b"AB"],
         "too long"),
        ({"length": "none", "trailer": b"\3", "frame_bytes_min": 1}, "4103 03", [b"A"],
         "below the least"),
    ],
)  # fmt: skip
def test_framing_cases(
    options: dict[str, Any], wire: str, frames: list[bytes], reason: str | None
) -> None:
    framer = LengthPrefixed(**options)
    assert framer.feed(bytes.fromhex(wire)) == frames
    if reason is None:
        assert framer.broken is None
    else:
        assert framer.broken is not None
        assert reason in framer.broken


@pytest.mark.parametrize(
    "options",
    [{"length": "utf8"}, {"length_bytes": 0}, {"length_bytes": 5}, {"frame_bytes_max": 0},
     {"frame_bytes_max": 65536}, {"frame_bytes_min": 10, "frame_bytes_max": 9},
     {"frame_bytes_max": 1 << 25, "length_bytes": 4}, {"frame_bytes_max": 65534,
     "counts_self": True}, {"length": "bcd", "length_bytes": 1, "frame_bytes_max": 100},
     {"length": "ascii", "length_bytes": 9}, {"header_bytes": 65}, {"header_bytes": -1},
     {"trailer": bytes(17)}, {"length": "ascii", "little_endian": True, "length_bytes": 4},
     {"length": "none"}, {"length": "none", "trailer": b"x", "before": b"y"},
     {"frame_bytes_min": -1}],
)  # fmt: skip
def test_bad_framings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LengthPrefixed(**options)


def test_frames_that_cannot_be_wrapped() -> None:
    for options, bad in (
        ({"frame_bytes_max": 3}, b"four"), ({"frame_bytes_min": 1}, b""),
        ({"header_bytes": 5}, b"TPDU"), ({"length": "none", "trailer": b"\3"}, b"a\3b"),
        ({"length": "none", "trailer": b"\3\3"}, b"a\3"),
        ({"length": "none", "trailer": b"\3", "header_bytes": 2}, b""),
    ):  # fmt: skip
        arguments: Any = options
        with pytest.raises(ValueError, match="frame"):
            LengthPrefixed(**arguments).wrap(bad)
