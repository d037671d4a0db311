"""What may be read by whoever reads logs and audit trails: masking by name and by pattern. Pure.

By name: a value under a key such as `document` or `peer_key` is masked whatever it looks like. By
pattern: any text is searched for card numbers (13 to 19 digits that pass Luhn), keys in hex (32
digits or more), seeds in base32, `otpauth:` URIs and `name=value` of the names above, so that a
secret inside an error text or a quoted frame is caught too. Both are the second line: the first is
not to pass such values at all.

Everything is bounded and printable: a peer decides neither the length of a line nor, with control
characters, where it seems to end.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from switch.flows.norms import mask_document, mask_name, mask_pan

MASKED: Final = "[masked]"
TEXT_CHARS_MAX: Final = 512
"""Longest text value that is shown."""

TRACEBACK_CHARS_MAX: Final = 8192
"""Longest traceback that is shown: its end, which names the error."""

SEARCHED_CHARS_MAX: Final = 65_536
"""A longer text is cut before it is searched, so that no peer buys much work with one line."""

KEY_CHARS_MAX: Final = 64
DEPTH_MAX: Final = 4
ITEMS_MAX: Final = 64

# Words of a key, singular or plural, between the ends or underscores: `peer_key`, `x-api-token`.
_SECRETS: Final = (
    r"token|key|nonce|mac|seed|secret|password|passphrase|pin|pinblock|cvv2?|cvc|track2?|otpauth"
    r"|cookie|credential|kek|vale|voucher|cashier_code|supervisor_code|codigo_semilla|clave"
)
_DOCUMENTS: Final = r"document|phone|msisdn|depositor|card|ruc|passport|documento|telefono|cedula"
_NAMES: Final = r"name|holder|titular|nombre|occupation|nationality"

# Keys that contain such a word and say nothing about anybody.
_HARMLESS: Final = re.compile(
    r"(?:metric|file|host|node|role|field|error|alarm|check|logger|task|thread|process|area)_name"
    r"|key_version|document_type"
)
# Numbers that are times, sizes or counts, whatever else their key says.
_MEASURES: Final = ("_ns", "_us", "_ms", "_s", "_at", "_bytes", "_count", "_max", "_minor", "_seq")

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_WORD: Final = re.compile(r"[^0-9a-z]+")
_HEX: Final = re.compile(r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{32,}(?![0-9A-Za-z])")
_BASE32: Final = re.compile(r"(?<![0-9A-Za-z])[A-Z2-7]{32,}={0,6}(?![0-9A-Za-z])")
_OTPAUTH: Final = re.compile(r"otpauth:\S*", re.IGNORECASE)
# Too short for a key or a card number, and without what a pair or a URI needs: nothing to search.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./+-]{0,12}|[a-z_.]{13,31}")
_DIGITS: Final = re.compile(r"[0-9](?:[ -]?[0-9]){12,}")
_GROUP: Final = re.compile(r"[0-9]+")
# `token=…`, `"token": …` and `token: …`, but not `card:000042`, the way subjects are written. The
# prefix is bounded: a long run of `a-a-a-` would else cost the square of its length.
_PAIR: Final = re.compile(
    rf"""(?P<label>
            (?P<quote>["']?)\b(?:[a-z0-9]{{1,32}}[_-]){{0,3}}(?:{_SECRETS}|{_DOCUMENTS}|pan)s?
            (?:(?P=quote)\s*=\s*|(?<=[a-z0-9])["']\s*:\s*|(?P=quote):\s+)
        )
        (?P<value>b?"(?:[^"\\]|\\.)*"?|b?'(?:[^'\\]|\\.)*'?|[^\s,;&"'\])}}]+)""",
    re.IGNORECASE | re.VERBOSE,
)
# What a terminal or a reader of lines would obey: C0, C1, line and paragraph separators, and the
# signs that turn the direction of text.
_C0: Final = "\x00-\x1f"
_C0_BUT_NEWLINE: Final = "\x00-\x09\x0b-\x1f"
_OTHER_CONTROLS: Final = "\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROLS: Final = re.compile(f"[{_C0}{_OTHER_CONTROLS}]")
_CONTROLS_BUT_NEWLINE: Final = re.compile(f"[{_C0_BUT_NEWLINE}{_OTHER_CONTROLS}]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_ESCAPES: Final = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}


def masked(key: str, value: Any) -> Any:
    """Return what may be shown of a value under a key; containers are gone through.

    The result holds only str, int, float, bool, None, dict and list, and is bounded.
    """
    return _masked(key, value, DEPTH_MAX)


def masked_text(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Return a text without secrets and control characters, at most `chars_max` long."""
    if _PLAIN.fullmatch(text) and len(text) <= chars_max:
        return text
    return _bounded(_escaped(_searched(text)), chars_max)


def masked_traceback(text: str) -> str:
    """Return the end of a traceback likewise; lines stay lines, each set in by four blanks.

    Set in, so that a line break in an error's text cannot begin what looks like a record.
    """
    text = _searched(text[-SEARCHED_CHARS_MAX:])
    text = _SURROGATES.sub("?", _CONTROLS_BUT_NEWLINE.sub(_escape, text))
    if len(text) > TRACEBACK_CHARS_MAX:
        text = "…" + text[1 - TRACEBACK_CHARS_MAX :]
    return "\n".join("    " + line for line in text.split("\n"))


def luhn(digits: str) -> bool:
    """Tell whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        if place % 2:
            value = value * 2 - 9 * (value > 4)
        total += value
    return total % 10 == 0


def _masked(key: str, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and key.endswith(_MEASURES):
        return _number(value, measure=True)
    mask = _mask_of(key)
    if isinstance(value, Mapping):
        if mask is not None:
            return MASKED
        return _mapping(value, depth - 1) if depth else "…"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = islice(value, ITEMS_MAX)
        return [_masked(key, item, depth - 1) for item in items] if depth else "…"
    if isinstance(value, (bytes, bytearray, memoryview)):
        # Bytes are frames, keys or digests: none of them helps a reader.
        return MASKED if mask is not None else f"<{len(value)} bytes>"
    if mask is not None:
        return mask(str(value))
    if isinstance(value, (int, float)):
        return _number(value, measure=False)
    return masked_text(value if isinstance(value, str) else str(value))


def _mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {
        masked_text(str(name), KEY_CHARS_MAX): _masked(str(name), item, depth)
        for name, item in islice(value.items(), ITEMS_MAX)
    }


def _number(value: int | float, *, measure: bool) -> int | float | str:
    if isinstance(value, float):
        return value
    if abs(value) >= 1 << 63:
        return MASKED  # wider than any quantity here: a key, or a digest of something
    digits = str(abs(value))
    return mask_pan(digits) if not measure and _is_pan(digits) else value


@lru_cache(maxsize=1024)
def _mask_of(key: str) -> Callable[[str], str] | None:
    """The function that masks a value under this key, None where the name is harmless."""
    plain = _NO_WORD.sub("_", _CAMEL.sub("_", key).lower())
    if _HARMLESS.fullmatch(plain):
        return None
    for words, mask in _BY_NAME:
        if words.search(plain):
            return mask
    return None


def _nothing(value: str) -> str:
    return MASKED


def _document(value: str) -> str:
    return masked_text(mask_document(value))


def _name(value: str) -> str:
    return masked_text(mask_name(value[:200]))


def _authorization(value: str) -> str:
    # The credential of HTTP, or the six characters of an approval, which everybody may see.
    return masked_text(value) if len(value) <= 6 else MASKED


def _words(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|_)(?:{words})s?(?:_|$)")


_BY_NAME: Final[tuple[tuple[re.Pattern[str], Callable[[str], str]], ...]] = (
    (_words(f"{_SECRETS}|declaration"), _nothing),
    (_words("pan"), mask_pan),
    (_words(_DOCUMENTS), _document),
    (_words(_NAMES), _name),
    (_words("authorization"), _authorization),
)


def _searched(text: str) -> str:
    if len(text) > SEARCHED_CHARS_MAX:
        # The last word may be half a card number, which no pattern would know.
        text = _HALF_WORD.sub("", text[:SEARCHED_CHARS_MAX]) + "…"
    text = _OTPAUTH.sub(MASKED, text)
    text = _PAIR.sub(_pair, text)
    text = _HEX.sub(MASKED, text)
    text = _BASE32.sub(MASKED, text)
    return _DIGITS.sub(_pans, text)


_HALF_WORD: Final = re.compile(r"(?<![\w -])[\w -]+\Z")


def _pair(found: re.Match[str]) -> str:
    return f"{found['label']}{MASKED}"


def _pans(found: re.Match[str]) -> str:
    """Mask the card numbers in a run of digit groups.

    A card number may be printed in groups and stand beside other figures, so every window that
    begins and ends with a group is tried; a group of more than 19 digits (a reference) is none.
    Where windows overlap nobody knows which is the number: then no digit of them is shown.
    """
    text = found[0]
    spans: list[tuple[int, int, bool]] = []  # start, end, one window only
    for start, end in _windows(text):
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]), False)
        else:
            spans.append((start, end, True))
    out: list[str] = []
    done = 0
    for start, end, single in spans:
        out += [text[done:start], mask_pan(_plain(text[start:end])) if single else MASKED]
        done = end
    return "".join(out) + text[done:]


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Where a run of digit groups holds 13 to 19 digits that pass Luhn, ordered by start."""
    groups = [group.span() for group in _GROUP.finditer(text)]
    for first, (start, _) in enumerate(groups):
        digits = 0
        for begin, end in islice(groups, first, first + 19):
            digits += end - begin
            if digits > 19:
                break
            if _is_pan(_plain(text[start:end])):
                yield start, end


def _plain(text: str) -> str:
    return text.replace(" ", "").replace("-", "")


def _is_pan(digits: str) -> bool:
    return 13 <= len(digits) <= 19 and luhn(digits)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _ESCAPES.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return _SURROGATES.sub("?", _CONTROLS.sub(_escape, text))


def _bounded(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
