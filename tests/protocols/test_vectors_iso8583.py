"""Every vector of ISO 8583: messages of many layouts both ways, framings, bitmaps, and bad ones."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from protocols.iso8583 import Dialect, FormatError, Framing
from tests.models.iso_layouts import dialect_of, plain

_OURS = Path(__file__).parents[1] / "vectors" / "iso8583.json"
_THEIRS = Path(os.environ.get("TRONCAL_VECTORS") or _OURS.parent) / "iso8583.json"
VECTORS: dict[str, Any] = json.loads((_THEIRS if _THEIRS.exists() else _OURS).read_text())


def cases(name: str) -> Any:
    found = VECTORS.get(name, [])
    ids = [case.get("id", case.get("hex", str(i))) for i, case in enumerate(found)]
    return pytest.mark.parametrize("case", found, ids=ids)


@functools.cache
def dialect(name: str, tolerant: bool = False) -> Dialect:
    return Dialect.from_dict(dialect_of(name, VECTORS["specs"][name], tolerant=tolerant))


def dialect_for(case: dict[str, Any]) -> Dialect:
    return dialect(case["spec"], not case.get("reencodes", True))


@cases("vectors")
def test_decodes_to_its_fields(case: dict[str, Any]) -> None:
    message = dialect_for(case).decode(bytes.fromhex(case["hex"]))
    assert message.mti == case["mti"]
    assert {key: plain(value) for key, value in message.items()} == case["fields"]
    for key, value in case["fields"].items():
        assert plain(message[key]) == value
        assert key in message
    assert len(message) == len(case["fields"])


@cases("vectors")
def test_encodes_back_byte_for_byte(case: dict[str, Any]) -> None:
    if not case.get("reencodes", True):
        pytest.skip("its source is not what its fields encode to")
    data = bytes.fromhex(case["hex"])
    known = dialect_for(case)
    message = known.decode(data)
    assert known.encode({"mti": case["mti"], **case["fields"]}) == data
    assert known.encode(message) == data
    assert known.encode(message.to_dict()) == data
    assert message.replaced({}) == data


@cases("vectors")
def test_no_prefix_of_it_is_a_message(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    known = dialect_for(case)
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            known.decode(data[:cut])
    with pytest.raises(FormatError, match="bytes follow"):
        known.decode(data + b"0")


@cases("negative_vectors")
def test_bad_messages_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        dialect(case["spec"]).decode(bytes.fromhex(case["hex"]))


def with_chip_tags() -> list[dict[str, Any]]:
    return [case for case in VECTORS["vectors"] if "emv_tags_55" in case]


@pytest.mark.parametrize("case", with_chip_tags(), ids=lambda case: case["id"])
def test_chip_data_as_tags(case: dict[str, Any]) -> None:
    spec = dialect_of(case["spec"], VECTORS["specs"][case["spec"]])
    chip = {"composite": "ber-tlv", "prefix": "LLL", "prefix_encoding": "ascii", "max": 255}
    spec["elements"]["55"] = chip
    known = Dialect.from_dict(spec)
    message = known.decode(bytes.fromhex(case["hex"]))
    assert plain(message["55"]) == case["emv_tags_55"]
    for tag, value in case["emv_tags_55"].items():
        assert plain(message.get(f"55.{tag}")) == value
    assert message.unknown_tags == len(case["emv_tags_55"])
    fields = {**case["fields"], "55": case["emv_tags_55"], "mti": case["mti"]}
    order = list(message["55"])
    fields["55"] = {tag: fields["55"][tag] for tag in order}
    assert known.encode(fields) == message.raw


def payload_of(framing: Framing, case: dict[str, Any]) -> bytes:
    """Header and message, as a framer gives them."""
    header = bytes.fromhex(case["frame"].get("header", ""))
    return header + bytes.fromhex(case["message_hex"])


@cases("framing_vectors")
def test_framing_at_every_split(case: dict[str, Any]) -> None:
    framing = Framing.from_dict(case["frame"])
    wire = bytes.fromhex(case["wire_hex"])
    layout = dialect(case["spec"]) if "spec" in case else None
    expected = [payload_of(framing, case)] if "message_hex" in case else []
    for cut in range(len(wire) + 1):
        framer = framing.framer(layout=layout)
        assert framer.feed(wire[:cut]) + framer.feed(wire[cut:]) == expected
        assert framer.broken is None
    if expected:
        framer = framing.framer(layout=layout)
        assert framer.feed(wire * 3) == expected * 3
        assert framing.wrap(bytes.fromhex(case["message_hex"])) == wire
        header, message = framing.split(expected[0])
        assert header.hex() == case["frame"].get("header", "")
        assert message.hex() == case["message_hex"]


@cases("bitmap_vectors")
def test_bitmaps(case: dict[str, Any]) -> None:
    """A message of one digit an element, behind the bitmap of the vector."""
    elements = {str(n): {"content": "n", "length": 1} for n in range(2, 129)}
    known = Dialect.from_dict({"name": "bits", "elements": elements})
    present = [n for n in case["fields"] if n != 1]
    data = b"0800" + bytes.fromhex(case["hex"]) + b"7" * len(present)
    message = known.decode(data)
    assert [int(key) for key in message] == present
    assert ("1" in message) == (1 in case["fields"])
    assert known.encode(message) == data
