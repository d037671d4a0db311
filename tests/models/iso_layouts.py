"""The layout and framing notation of tests/vectors/iso8583.json as dialects of ours."""

from typing import Any

_CONTENT = {"ascii": "ans", "ebcdic": "ans", "bcd": "n", "sbcd": "x+n", "bin": "b", "hexascii": "b"}
_ENCODING = {
    "ascii": "ascii", "ebcdic": "ebcdic", "bcd": "bcd", "sbcd": "bcd", "bin": "binary",
    "hexascii": "hex",
}  # fmt: skip
_PREFIX = {"ascii": "ascii", "ebcdic": "ebcdic", "bcd": "bcd", "bin": "binary"}
_TRACKS = ("35", "36")  # bcd values write the track separator as D


def dialect_of(name: str, layout: dict[str, Any], *, tolerant: bool = False) -> dict[str, Any]:
    """A layout as `Dialect.from_dict` takes it.

    Args:
        tolerant: take what cannot be encoded to the same bytes again, for vectors that say so.
    """
    spec: dict[str, Any] = {
        "name": name,
        "mti": layout["mti"],
        "bitmap": {"bin": "binary", "hex": "hex"}[layout["bitmap"]],
        "signs": "CD+-0123456789 ",
        "elements": {n: field_of(n, field) for n, field in layout["fields"].items()},
    }
    if "bitmap_fixed" in layout:
        spec["bitmap_fixed"] = layout["bitmap_fixed"]
    if tolerant:
        spec["tolerate"] = ["hex_case", "filler", "lengths"]
    return spec


def field_of(number: str, field: list[Any]) -> dict[str, Any]:
    """[kind, max, data, length, odd, length_bytes] as keys of a dialect."""
    kind, most, data, length, odd, length_bytes = [*field, None, None, None][:6]
    out: dict[str, Any] = {"content": _CONTENT[data], "encoding": _ENCODING[data]}
    if data == "bcd" and number in _TRACKS:
        out["content"] = "z"
    if odd:
        out["odd"] = odd.rstrip("0F")
        out["filler"] = odd[-1]
    if kind == "fix":
        return {**out, "length": most}
    out |= {"prefix": kind.upper(), "prefix_encoding": _PREFIX[length]}
    if length_bytes:
        out["prefix_bytes"] = length_bytes
    size = length_bytes or (1 if len(kind) < 3 else 2)
    room = 256**size - 1 if length == "bin" else 10 ** len(kind) - 1
    return {**out, "max": min(most, room)}


def plain(value: Any) -> Any:
    """A value as the vectors write it: bytes as hexadecimal digits."""
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value
