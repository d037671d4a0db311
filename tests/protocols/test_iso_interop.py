"""Messages of ours read by pyiso8583, and its messages read by us, in three dialects."""

import random
from typing import Any

import iso8583
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.iso8583 import Dialect
from protocols.iso8583.source import read

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEXT = DIGITS + LETTERS + LETTERS.lower() + " .,-/"
PREFIX = {"L": 1, "LL": 2, "LLL": 3, "LLLL": 4}
NAMES = ("iso87-ascii", "iso87-binary", "iso87-ebcdic")
DIALECTS = {name: Dialect.load(name) for name in NAMES}
FIELDS: dict[str, dict[str, Any]] = {name: read(name).spec for name in NAMES}


def their_encoding(encoding: str) -> str:
    return {"ebcdic": "cp037", "binary": "b", "bcd": "b", "hex": "ascii"}.get(encoding, encoding)


def their_field(spec: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """One element in the words of pyiso8583."""
    content = field["content"]
    number, binary = content in ("n", "z"), content == "b"
    encoding = spec["binary"] if binary else spec.get("digits" if number else "text", "ascii")
    out: dict[str, Any] = {"data_enc": their_encoding(encoding), "len_enc": "ascii", "desc": ""}
    size = field.get("length", field.get("max", 0))
    out |= {"len_type": 0, "max_len": 2 * size if encoding == "hex" else size}
    if encoding == "bcd":
        out |= {"len_count": "nibbles"}
        out["right_pad" if field.get("odd") == "right" else "left_pad"] = "0"
    if "prefix" in field:
        digits = PREFIX[field["prefix"]]
        bcd = spec["prefix"] == "bcd"
        out["len_enc"] = "bcd" if bcd else their_encoding(spec["prefix"])
        out["len_type"] = (digits + 1) // 2 if bcd else digits
    return out


def their_spec(name: str) -> dict[str, Any]:
    spec = FIELDS[name]
    fixed = {"len_enc": "ascii", "len_type": 0, "desc": ""}
    size = 16 if spec["bitmap"] == "hex" else 8
    bitmap = {**fixed, "data_enc": their_encoding(spec["bitmap"]), "max_len": size}
    mti = {**fixed, "data_enc": their_encoding(spec["mti"]), "max_len": 2}
    if spec["mti"] != "bcd":
        mti["max_len"] = 4
    out = {"h": {**fixed, "data_enc": "ascii", "max_len": 0}, "t": mti, "p": bitmap, "1": bitmap}
    for number in range(2, 129):
        field = spec["elements"].get(str(number), {"content": "ans", "length": 1})
        out[str(number)] = their_field(spec, field)
    return out


def value(field: dict[str, Any], source: random.Random) -> Any:
    size = field.get("length") or source.randint(field.get("min", 1), min(field["max"], 60))
    match field["content"]:
        case "b":
            return source.randbytes(size)
        case "n":
            return "".join(source.choices(DIGITS, k=size))
        case "z":
            return "".join(source.choices(DIGITS, k=size - 1)) + "D"
        case "an":
            return "".join(source.choices(DIGITS + LETTERS, k=size))
        case _:
            return "".join(source.choices(TEXT, k=size))


def message_of(name: str, source: random.Random) -> dict[str, Any]:
    """Signed amounts aside, whose sign pyiso8583 has no word for."""
    elements = FIELDS[name]["elements"]
    plain = [number for number, field in elements.items() if field["content"] != "x+n"]
    chosen = sorted(source.sample(plain, source.randint(1, 25)), key=int)
    return {"mti": f"0{source.randint(1, 8)}00"} | {
        number: value(elements[number], source) for number in chosen
    }


@pytest.mark.parametrize("name", NAMES)
@given(st.randoms(use_true_random=False))
def test_both_ways(name: str, source: random.Random) -> None:
    dialect, spec = DIALECTS[name], their_spec(name)
    message = message_of(name, source)
    ours = dialect.encode(message)
    theirs, _ = iso8583.decode(ours, spec)
    for number, expected in message.items():
        if number != "mti":
            text = expected.hex().upper() if isinstance(expected, bytes) else expected
            assert theirs[number] == text, number
    assert theirs["t"] == message["mti"]
    encoded, _ = iso8583.encode(dict(theirs), spec)
    assert bytes(encoded) == ours
    assert dialect.decode(bytes(encoded)).to_dict() == message
