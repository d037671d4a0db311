"""The demo codec: vectors both ways, every split point, garbage. Copy this with the package."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codec import Codec, ProtocolError
from protocols.demo import AuthorizationReply, AuthorizationRequest, DemoCodec, ResponseCode
from protocols.demo.messages import Message

_OWN = Path(__file__).parents[1] / "vectors"
_GIVEN = Path(os.environ.get("TRONCAL_VECTORS") or _OWN)
_FILE = (_GIVEN if (_GIVEN / "demo.json").exists() else _OWN) / "demo.json"
VECTORS: dict[str, list[dict[str, Any]]] = json.loads(_FILE.read_text())

each_frame = pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["name"])
each_malformed = pytest.mark.parametrize("vector", VECTORS["malformed"], ids=lambda v: v["name"])

MESSAGES = st.one_of(
    st.builds(
        AuthorizationRequest,
        stan=st.integers(1, 999_999),
        card=st.integers(0, 2**64 - 1),
        amount_minor=st.integers(1, 999_999_999_999),
        currency=st.integers(1, 999),
        terminal=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(
            lambda text: text[:8].ljust(8)
        ),
    ),
    st.builds(AuthorizationReply, st.integers(1, 999_999), st.sampled_from(ResponseCode)),
)


def message_of(vector: dict[str, Any]) -> Message:
    fields = dict(vector["message"])
    if fields.pop("type") == "request":
        return AuthorizationRequest(**fields)
    return AuthorizationReply(fields["stan"], ResponseCode(fields["code"]))


def drain(codec: DemoCodec, data: bytes = b"") -> list[Any]:
    """All messages and errors that `data` brings, in order, as a driver takes them."""
    events: list[Any] = []
    while True:
        try:
            messages = codec.feed(data)
        except ProtocolError as error:
            events.append(error)
            if error.fatal:
                return events
            messages = None
        data = b""
        if messages == []:
            return events
        events += messages or []


def test_it_is_a_codec() -> None:
    assert isinstance(DemoCodec(), Codec)
    assert DemoCodec.name == "demo"


@each_frame
def test_vector_both_ways(vector: dict[str, Any]) -> None:
    data, message = bytes.fromhex(vector["frame"]), message_of(vector)
    assert DemoCodec().feed(data) == [message]
    assert DemoCodec().encode(message) == data


@each_frame
def test_every_split_point(vector: dict[str, Any]) -> None:
    """The same message must come out wherever the network cut it."""
    data = bytes.fromhex(vector["frame"])
    for cut in range(len(data) + 1):
        codec = DemoCodec()
        assert codec.feed(data[:cut]) + codec.feed(data[cut:]) == [message_of(vector)]


@each_malformed
def test_malformed(vector: dict[str, Any]) -> None:
    """Good frames before it are delivered; behind it only where it is not fatal."""
    good = VECTORS["frames"][0]
    wire = bytes.fromhex(good["frame"])
    codec = DemoCodec()
    first, error, *rest = drain(codec, wire + bytes.fromhex(vector["frame"]) + wire)
    assert first == message_of(good)
    assert error.fatal is vector["fatal"]
    assert vector["reason"] in str(error)
    if vector["fatal"]:
        with pytest.raises(ProtocolError):
            codec.feed(wire)
    else:
        assert rest == [message_of(good)]


@pytest.mark.parametrize(
    "message",
    [
        AuthorizationRequest(0, 7, 1, 600, "TERM0001"),
        AuthorizationRequest(1, -1, 1, 600, "TERM0001"),
        AuthorizationRequest(1, 2**64, 1, 600, "TERM0001"),
        AuthorizationRequest(1, 7, 0, 600, "TERM0001"),
        AuthorizationRequest(1, 7, 1, 1000, "TERM0001"),
        AuthorizationRequest(1, 7, 1, 600, "TERM"),
        AuthorizationRequest(1, 7, 1, 600, "TERMINÁL"),
        AuthorizationReply(10**6, ResponseCode.APPROVED),
    ],
)
def test_nothing_out_of_range_goes_out(
    message: Message,
) -> None:
    with pytest.raises(ValueError):
        DemoCodec().encode(message)


@given(st.lists(MESSAGES, max_size=20), st.lists(st.integers(0, 800)))
def test_any_split_of_any_messages(messages: list[Any], cuts: list[int]) -> None:
    codec = DemoCodec()
    data = b"".join(map(codec.encode, messages))
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    received: list[Any] = []
    for at, edge in enumerate(edges[1:], 1):
        received += codec.feed(data[edges[at - 1] : edge])
    assert received == messages


@given(st.lists(st.binary(max_size=200)))
def test_garbage_raises_protocol_errors_only(chunks: list[bytes]) -> None:
    codec = DemoCodec()
    for chunk in chunks:
        events = drain(codec, chunk)
        assert all(isinstance(event, ProtocolError | Message) for event in events)
