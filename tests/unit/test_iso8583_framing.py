"""Framings of payment hosts: every form of length, headers, keep-alives, and no length at all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._iso8583 import SelfDelimited
from protocols.iso8583 import Dialect, Framing, FramingError

CEIBO = Dialect.load("ceibo")
ECHO = CEIBO.encode({"mti": "0800", "7": "0922143015", "11": "000001", "70": "301"})
LONG = CEIBO.encode({"mti": "0100", "11": "000002", "48": {"03": "a" * 300}})

FRAMES: list[tuple[dict[str, Any], str]] = [
    ({}, "0003"),
    ({"length": "bin", "bytes": 2}, "0003"),
    ({"length": "bin", "bytes": 3}, "000003"),
    ({"length": "bin", "bytes": 4}, "00000003"),
    ({"length": "bin", "bytes": 2, "order": "little"}, "0300"),
    ({"length": "bin", "bytes": 2, "counts_self": True}, "0005"),
    ({"length": "bcd", "bytes": 2}, "0003"),
    ({"length": "ascii"}, "30303033"),
    ({"length": "hex", "bytes": 4}, "30303033"),
    ({"length": "bin", "before": "cafe", "after": "00"}, "cafe000300"),
]


@pytest.mark.parametrize(("keys", "head"), FRAMES)
def test_every_form_of_length(keys: dict[str, Any], head: str) -> None:
    framing = Framing.from_dict(keys)
    assert framing.wrap(b"abc") == bytes.fromhex(head) + b"abc"
    assert framing.framer().feed(framing.wrapped([], [b"abc", b"d"])) == [b"abc", b"d"]


def test_a_length_that_says_nothing_of_longer_messages() -> None:
    framing = Framing.from_dict({"length": "bin", "bytes": 1})
    assert framing.wrap(b"x" * 255)
    with pytest.raises(ValueError, match="out of bounds"):
        framing.wrap(b"x" * 256)


def test_a_trailer_counted_or_not() -> None:
    counted = Framing.from_dict({"length": "bin", "trailer": "03", "counts_trailer": True})
    assert counted.wrap(b"abc") == b"\x00\x04abc\x03"
    plain = Framing.from_dict({"length": "bin", "trailer": "03"})
    assert plain.wrap(b"abc") == b"\x00\x03abc\x03"
    alone = Framing.from_dict({"length": "none", "trailer": "03"})
    assert alone.wrap(b"abc") == b"abc\x03"
    assert alone.framer().feed(b"abc\x03de\x03f") == [b"abc", b"de"]


def test_a_tpdu_comes_back_with_its_addresses_swapped() -> None:
    framing = Framing.from_dict({"header": "6000030000", "bytes": 2})
    assert framing.header_kind == "tpdu"
    wire = framing.wrap(b"abc")
    assert wire == bytes.fromhex("0008 6000030000") + b"abc"
    header, message = framing.split(framing.framer().feed(wire)[0])
    assert message == b"abc"
    assert framing.wrap(b"xyz", header) == bytes.fromhex("0008 6000000003") + b"xyz"


def test_an_opaque_header_is_echoed() -> None:
    framing = Framing.from_dict({"header_kind": "echo", "header_bytes": 4})
    assert framing.wrap(b"abc") == b"\x00\x07\x00\x00\x00\x00abc"
    assert framing.wrap(b"abc", b"ISO1") == b"\x00\x07ISO1abc"
    fixed = Framing.from_dict({"header_kind": "fixed", "header": "49534F30"})
    assert fixed.wrap(b"abc", b"ISO1") == b"\x00\x07ISO0abc"
    many = framing.wrapped([b"ISO1", b"ISO2"], [b"a", b"b"])
    assert many == b"\x00\x05ISO1a\x00\x05ISO2b"


@pytest.mark.parametrize(
    ("kind", "frames", "answer"),
    [("silent", [b"", b"abc"], b""), ("answered", [b"", b"abc"], b"\0\0"), ("none", [], b"")],
)
def test_keep_alives(kind: str, frames: list[bytes], answer: bytes) -> None:
    framing = Framing.from_dict({"keep_alive": kind})
    framer = framing.framer()
    assert framer.feed(b"\x00\x00\x00\x03abc") == frames
    assert (framer.broken is not None) == (kind == "none")
    assert framing.keep_alive_answer() == answer


def test_a_limit_of_the_owner() -> None:
    framing = Framing.from_dict({"frame_bytes_max": 100})
    framer = framing.framer(50)
    assert framer.feed(b"\x00\x33" + b"x" * 51) == []
    assert framer.broken == "the frame is too long"
    assert framing.framer(5000).feed(b"\x00\x64" + b"x" * 100) == [b"x" * 100]


@pytest.mark.parametrize("framer", [Framing().framer(), SelfDelimited(CEIBO)])
def test_nothing_fed_is_nothing_found(framer: Any) -> None:
    assert framer.feed(b"") == []
    assert framer.broken is None


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"size": 2}, "size"),
        ({"length": "binary"}, "length"),
        ({"bytes": 9}, "bytes"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": "2"}, "bytes"),
        ({"length": "none", "bytes": 2}, "bytes"),
        ({"length": "none", "counts_self": True}, "counts_self"),
        ({"length": "ascii", "order": "little"}, "order"),
        ({"counts_self": 1}, "counts_self"),
        ({"before": "xy"}, "before"),
        ({"before": "00" * 17}, "before"),
        ({"header_kind": "echo"}, "header_bytes"),
        ({"header_kind": "tpdu", "header": "600003"}, "header_bytes"),
        ({"header_kind": "fixed", "header_bytes": 4}, "header"),
        ({"header_bytes": 4}, "header"),
        ({"header": "600003", "header_bytes": 5}, "header_bytes"),
        ({"keep_alive": "yes"}, "keep_alive"),
        ({"frame_bytes_max": 0}, "frame_bytes_max"),
    ],
)
def test_what_is_no_framing(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(FramingError) as caught:
        Framing.from_dict(keys)
    assert caught.value.key == key


# ---- messages that only their layout ends


def alone(**keys: Any) -> Framing:
    return Framing.from_dict({"length": "none", **keys})


@given(st.lists(st.sampled_from([ECHO, LONG]), max_size=6), st.data())
def test_the_layout_ends_messages_at_any_split(messages: list[bytes], data: st.DataObject) -> None:
    stream = alone().wrapped([], messages)
    assert stream == b"".join(messages)
    framer = alone().framer(layout=CEIBO)
    found = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += framer.feed(stream[:cut])
        stream = stream[cut:]
    assert found == messages
    assert framer.pending_bytes == 0


def test_the_layout_ends_messages_behind_a_header() -> None:
    framing = alone(header_kind="echo", header_bytes=3)
    wire = framing.wrapped([b"one", b"two"], [ECHO, LONG])
    for cut in range(len(wire)):
        framer = framing.framer(layout=CEIBO)
        assert framer.feed(wire[:cut]) + framer.feed(wire[cut:]) == [b"one" + ECHO, b"two" + LONG]


def test_a_wrong_character_does_not_hide_the_end() -> None:
    framer = alone().framer(layout=CEIBO)
    bad = ECHO.replace(b"000001", b"0000x1")
    assert framer.feed(bad + ECHO) == [bad, ECHO]
    assert framer.broken is None


def test_where_no_end_is_found_the_stream_is_lost() -> None:
    framer = alone().framer(layout=CEIBO)
    assert framer.feed(ECHO + b"08x0" + ECHO) == [ECHO]
    assert framer.broken == "no end of the message: the message type, byte 2: the message type is not four digits"  # fmt: skip  # noqa: E501
    assert framer.feed(ECHO) == []


def test_a_message_above_the_limit_is_not_waited_for() -> None:
    framer = alone(frame_bytes_max=200).framer(layout=CEIBO)
    assert framer.feed(LONG[:199]) == []
    assert framer.broken is None
    assert framer.feed(LONG[199:]) == []
    assert framer.broken == "the frame is too long"
    assert framer.pending_bytes == 0


def test_a_layout_is_needed() -> None:
    with pytest.raises(ValueError, match="dialect is needed"):
        alone().framer()
    with pytest.raises(ValueError, match="header_bytes"):
        SelfDelimited(CEIBO, 10, 10)
