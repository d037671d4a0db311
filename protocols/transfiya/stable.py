"""Stable JSON: one text for one value, as the network's own programs write it before hashing.

UTF-8 without blanks; keys in the order of their UTF-16 code units; strings escaped as JavaScript
does; numbers as ECMAScript prints them (RFC 8785).
"""

from hashlib import sha256
from json.encoder import encode_basestring
from typing import Any

import msgspec

DEPTH_MAX = 64
_SAFE_INTEGER = 2**53


class BodyError(ValueError):
    """The bytes are no JSON that we take: syntax, nesting, or text that is not Unicode."""


def decode(body: bytes) -> Any:
    """Return the untyped value of a received body: nothing is dropped or renamed.

    Raises:
        BodyError: no JSON, nested deeper than `DEPTH_MAX`, or with lone surrogates.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyError("not JSON") from error
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise BodyError("nested too deep")


def encode(value: Any) -> bytes:
    """Return a body as it is sent: compact, in the order given, nothing escaped without need."""
    return msgspec.json.encode(value)


def stable(value: Any) -> bytes:
    """Return the stable JSON of a decoded value.

    Raises:
        BodyError: a string holds a lone surrogate.
        TypeError: the value is none that JSON knows.
    """
    out: list[str] = []
    _write(value, out.append)
    try:
        return "".join(out).encode()
    except UnicodeEncodeError as error:
        raise BodyError("lone surrogate") from error


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _write(value: Any, put: Any) -> None:
    kind = type(value)
    if kind is str:
        put(encode_basestring(value))
    elif kind is dict:
        # Up to U+FFFF the order of code points is that of code units.
        plain = all(key.isascii() for key in value)
        before = "{"
        for key in sorted(value) if plain else sorted(value, key=_utf16):
            put(before + encode_basestring(key) + ":")
            _write(value[key], put)
            before = ","
        put("}" if before == "," else "{}")
    elif kind is list or kind is tuple:
        put("[")
        for at, inner in enumerate(value):
            if at:
                put(",")
            _write(inner, put)
        put("]")
    elif value is None:
        put("null")
    elif kind is bool:
        put("true" if value else "false")
    elif kind is int or kind is float:
        put(es_number(value))
    else:
        raise TypeError(f"no JSON value: {kind.__name__}")


def es_number(value: float) -> str:
    """Return a number as ECMAScript prints it.

    Raises:
        BodyError: not finite, or beyond the range of a double.
    """
    if isinstance(value, int) and -_SAFE_INTEGER < value < _SAFE_INTEGER:
        return str(value)
    try:
        double = float(value)
    except OverflowError as error:
        raise BodyError("number out of range") from error
    if double != double or double in (float("inf"), float("-inf")):
        raise BodyError("number out of range")
    if double == 0:
        return "0"
    sign = "-" if double < 0 else ""
    mantissa, _, exponent_text = repr(abs(double)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    # The value is 0.digits × 10^point.
    point = len(whole) + int(exponent_text or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    return sign + _layout(digits, point)


def _layout(digits: str, point: int) -> str:
    count = len(digits)
    if count <= point <= 21:
        return digits + "0" * (point - count)
    if 0 < point <= 21:
        return digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    exponent = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return digits[0] + ("." + digits[1:] if count > 1 else "") + exponent


def double_sha256(data: bytes) -> bytes:
    """The second pass takes the 32 raw bytes of the first."""
    return sha256(sha256(data).digest()).digest()


def iou_hash(data: Any) -> str:
    """Return the hash of an IOU's data, lower-case hex."""
    return double_sha256(stable(data)).hex()
