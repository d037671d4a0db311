"""From the keys of a dialect to what the native codec takes, every choice made and checked."""

import difflib
from collections.abc import Iterable
from typing import Any

from protocols.iso8583.framing import Framing, FramingError
from protocols.iso8583.source import DialectError, KeyPath, Mistake, Source

CONTENTS = ("n", "a", "an", "ans", "b", "z", "x+n", "any")
ENCODINGS = ("ascii", "ebcdic", "bcd", "binary", "hex", "ebcdic-hex")
MASKS = ("shown", "hidden", "pan", "tail")
MESSAGE_BYTES_MAX = 1 << 24
LENGTH_MAX = 1 << 20

MASKED = {
    2: "pan", 14: "hidden", 34: "pan", 35: "pan", 36: "hidden", 45: "pan", 52: "hidden",
    55: "hidden", 102: "tail", 103: "tail",
}  # fmt: skip
"""What is masked although a dialect does not say so; of these, NEVER_SHOWN whatever it says."""

NEVER_SHOWN = (2, 35, 45, 52, 55)

_TOP = (
    "name", "description", "mti", "bitmap", "bitmap_fixed", "tertiary", "code_page", "charset",
    "text", "digits", "binary", "prefix", "odd", "filler", "signs", "tolerate", "mac", "echo",
    "message_bytes_max", "framing", "elements", "extend", "remove",
)  # fmt: skip
_FIELD = (
    "name", "content", "length", "min", "max", "prefix", "prefix_encoding", "prefix_bytes",
    "counts", "encoding", "odd", "filler", "pad", "fill", "strip", "mask", "composite", "parts",
    "tags", "tag_bytes", "length_bytes", "length_encoding", "bitmap", "bitmap_bytes", "unknown",
    "optional", "repeatable",
)  # fmt: skip
_PREFIXES = {"L": 1, "LL": 2, "LLL": 3, "LLLL": 4}
_COMPOSITES = ("positional", "tlv", "ber-tlv", "bitmapped")
_TOLERATED = ("hex_case", "filler", "lengths")
_DEPTH_MAX = 6

Keys = dict[str, Any]


class Compiler:
    """One run over one dialect.

    Attributes:
        name, description, framing, titles, formats: as of `Dialect`; complete after `compiled`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._spec = source.spec
        self._mistakes: list[Mistake] = []
        self.name = source.name.removesuffix(".toml")
        self.description = ""
        self.framing: Framing | None = None
        self.titles: dict[str, str] = {}
        self.formats: dict[str, str] = {}

    def compiled(self) -> Keys:
        """The spec for `core_ext._iso8583.Layout`.

        Raises:
            DialectError: all that is wrong.
        """
        top = self._spec
        self._unknown_keys(top, (), _TOP)
        self.name = self._text(top, (), "name", self.name)
        self.description = self._text(top, (), "description", "")
        self._defaults()
        out = self._message()
        out["elements"] = self._elements()
        self._check_numbers(out)
        self.framing = self._framing()
        if self._mistakes:
            raise DialectError(self._mistakes)
        return out

    # ---- the message as a whole

    def _defaults(self) -> None:
        """Encodings of what does not say its own."""
        top = self._spec
        self._text_encoding = self._choice(top, (), "text", ("ascii", "ebcdic"), "ascii")
        digits = ("ascii", "ebcdic", "bcd")
        self._digits_encoding = self._choice(top, (), "digits", digits, self._text_encoding)
        binary = ("binary", "hex", "ebcdic-hex")
        self._binary_encoding = self._choice(top, (), "binary", binary, "binary")
        prefixes = ("ascii", "ebcdic", "bcd", "binary")
        self._prefix_encoding = self._choice(top, (), "prefix", prefixes, self._digits_encoding)
        self._odd = self._choice(top, (), "odd", ("left", "right"), "left")
        self._filler = self._choice(top, (), "filler", ("0", "F"), "0")
        self._latin = self._choice(top, (), "charset", ("ascii", "latin-1"), "ascii") == "latin-1"

    def _message(self) -> Keys:
        top = self._spec
        fixed = self._choice(top, (), "bitmap_fixed", (8, 16, 24), None)
        tertiary = self._choice(top, (), "tertiary", ("none", "follows", "element-65"), "none")
        if fixed and tertiary != "none":
            self._mistake(("tertiary",), "a bitmap of fixed size announces no third one")
        latin, known = self._code_page()
        return {
            "mti": self._choice(top, (), "mti", ("ascii", "ebcdic", "bcd"), self._digits_encoding),
            "bitmap": self._choice(top, (), "bitmap", ("binary", "hex", "ebcdic-hex"), "binary"),
            "bitmap_words_fixed": (fixed or 0) // 8,
            "tertiary": ("none", "follows", "element-65").index(tertiary),
            "ebcdic": latin,
            "known": known,
            "latin": self._latin,
            "tolerate": self._list(top, "tolerate", _TOLERATED),
            "mac": self._list(top, "mac", (64, 128)),
            "echo": self._list(top, "echo", range(1, 193)),
            "signs": self._text(top, (), "signs", "CD"),
            "message_bytes_max": self._number(
                top, (), "message_bytes_max", 20, MESSAGE_BYTES_MAX, 65536
            ),
        }

    def _code_page(self) -> tuple[bytes, set[int]]:
        """The ISO 8859-1 character of every byte of the EBCDIC code page, and which have one."""
        name = self._text(self._spec, (), "code_page", "cp037")
        latin, known = bytearray(256), set()
        try:
            for byte in range(256):
                character = ord(bytes([byte]).decode(name, "replace"))
                if character < 256:
                    latin[byte] = character
                    known.add(byte)
        except (LookupError, TypeError):
            self._mistake(("code_page",), "expected a code page of EBCDIC: cp037, cp500, cp273 …")
            return bytes(256), set()
        if bytes(latin[0xF0:0xFA]) != b"0123456789":
            self._mistake(("code_page",), "expected a code page of EBCDIC: cp037, cp500, cp273 …")
        return bytes(latin), known

    def _framing(self) -> Framing | None:
        keys = self._spec.get("framing")
        if keys is None:
            return None
        if not isinstance(keys, dict):
            self._mistake(("framing",), "expected a table")
            return None
        try:
            return Framing.from_dict(keys)
        except FramingError as error:
            self._mistake(("framing", error.key), error.what)
            return None

    def _check_numbers(self, out: Keys) -> None:
        """MAC and echoes speak of elements that there are."""
        elements, encodings = out["elements"], set()
        for number in out["mac"]:
            field = elements.get(number)
            if field is None or field["shape"] != "plain" or not field["fixed"]:
                self._mistake(("mac",), f"element {number} is not defined with a fixed length")
            elif field["content"] != "b" or field["most"] > 32:
                self._mistake(("mac",), f"element {number} must be bytes, at most 32")
            else:
                encodings.add(field["encoding"])
        if len(encodings) > 1:
            self._mistake(("mac",), "both MAC elements must be written in the same way")
        for number in out["echo"]:
            if number not in elements:
                self._mistake(("echo",), f"element {number} is not defined")
        if 1 in elements and not out["bitmap_words_fixed"]:
            self._mistake(("elements", "1"), "its bit announces the second bitmap")
        if 65 in elements and out["tertiary"]:
            self._mistake(("elements", "65"), "its bit announces the third bitmap")
        most = 64 * (out["bitmap_words_fixed"] or (3 if out["tertiary"] else 2))
        for number in elements:
            if number > most:
                self._mistake(("elements", str(number)), f"the bitmaps end at {most}")

    # ---- elements and parts

    def _elements(self) -> dict[int, Keys]:
        elements = self._spec.get("elements")
        if not isinstance(elements, dict) or not elements:
            self._mistake(("elements",), "expected a table of elements by number")
            return {}
        out = {}
        for key, keys in elements.items():
            where = ("elements", key)
            number = int(key) if key.isascii() and key.isdigit() and len(key) <= 3 else 0
            if not 0 < number <= 192 or str(number) != key:
                self._mistake(where, "an element has a number from 1 to 192")
            elif not isinstance(keys, dict):
                self._mistake(where, "expected a table")
            else:
                field = self._field(keys, where, key, 1)
                field["mask"] = self._mask_of(number, keys, where)
                out[number] = field
        return out

    def _mask_of(self, number: int, keys: Keys, where: KeyPath) -> str:
        mask: str = self._choice(keys, where, "mask", MASKS, MASKED.get(number, "shown"))
        if mask == "shown" and number in NEVER_SHOWN:
            self._mistake((*where, "mask"), "this element is never shown")
        return mask

    def _field(self, keys: Keys, where: KeyPath, path: str, depth: int, chip: bool = False) -> Keys:
        """An element, a part or a tag; what only some have is settled by their parents.

        `chip`: within BER, where text is ASCII, numbers are BCD and bytes are bytes.
        """
        self._unknown_keys(keys, where, _FIELD)
        self.titles[path] = self._text(keys, where, "name", "")
        shape = self._shape(keys, where)
        content = self._content(keys, where, shape)
        out: Keys = {
            "key": where[-1],
            "shape": shape,
            "content": content,
            "encoding": self._encoding(keys, where, shape, content, chip),
            "latin": self._latin,
            "mask": self._choice(keys, where, "mask", MASKS, "shown"),
            "number": 0,
            "tag": b"",
            "optional": self._flag(keys, where, "optional"),
            "repeatable": self._flag(keys, where, "repeatable"),
            "keep_unknown": self._choice(keys, where, "unknown", ("keep", "refuse"), "keep")
            == "keep",
        }
        self._filled(out, keys, where)
        self._sized(out, keys, where, path)
        self._padded(out, keys, where)
        out.update(self._inside(out, keys, where))
        out["children"] = self._children(out, keys, where, path, depth)
        self.formats[path] = _format(out, str(keys.get("prefix", "")))
        return out

    def _shape(self, keys: Keys, where: KeyPath) -> str:
        default = "plain"
        if "parts" in keys:
            default = "positional"
        elif "tags" in keys:
            default = "tlv"
        return str(self._choice(keys, where, "composite", _COMPOSITES, default))

    def _content(self, keys: Keys, where: KeyPath, shape: str) -> str:
        if shape != "plain":
            return str(self._choice(keys, where, "content", ("ans", "b"), "ans"))
        if "content" not in keys:
            self._mistake((*where, "content"), f"it is missing: one of {', '.join(CONTENTS)}")
            return "ans"
        return str(self._choice(keys, where, "content", CONTENTS, "ans"))

    def _encoding(self, keys: Keys, where: KeyPath, shape: str, content: str, chip: bool) -> str:
        choices: tuple[str, ...] = ("ascii", "ebcdic")
        default = "ascii" if chip else self._text_encoding
        if shape == "ber-tlv" or (shape != "plain" and content == "b"):
            choices, default = ("binary",), "binary"
        elif shape == "plain" and content == "b":
            choices = ("binary", "hex", "ebcdic-hex")
            default = "binary" if chip else self._binary_encoding
        elif shape == "plain" and content in ("n", "z", "x+n"):
            choices = (*choices, "bcd")
            default = "bcd" if chip else self._digits_encoding
        return str(self._choice(keys, where, "encoding", choices, default))

    def _filled(self, out: Keys, keys: Keys, where: KeyPath) -> None:
        """Where the filler of an odd number of digits goes."""
        side = self._choice(keys, where, "odd", ("left", "right"), self._odd)
        filler = self._choice(keys, where, "filler", ("0", "F"), self._filler)
        out["odd"] = f"{side}-{filler.lower()}"
        if out["encoding"] != "bcd" and ("odd" in keys or "filler" in keys):
            key = "odd" if "odd" in keys else "filler"
            self._mistake((*where, key), "only BCD has a filler")

    def _sized(self, out: Keys, keys: Keys, where: KeyPath, path: str) -> None:
        """Least and most, and the prefix; `path` with a dot: a part, which may do without one."""
        out.update(fixed=False, prefix_bytes=0, prefix_encoding="binary", counts="units")
        signed = 1 if out["content"] == "x+n" else 0
        if "length" in keys:
            for key in ("min", "max", "prefix"):
                if key in keys:
                    self._mistake((*where, key), "a fixed length has none")
            length = self._number(keys, where, "length", 1 + signed, LENGTH_MAX, 1 + signed)
            out.update(fixed=True, least=length, most=length)
            return
        if "max" not in keys:
            self._mistake((*where, "max"), "it is missing, or a fixed `length`")
        most = self._number(keys, where, "max", 1 + signed, LENGTH_MAX, 1 + signed)
        out.update(least=self._number(keys, where, "min", signed, most, signed), most=most)
        if "prefix" not in keys:
            if "." not in path:
                self._mistake((*where, "prefix"), "it is missing: L, LL, LLL or LLLL")
            return
        self._prefixed(out, keys, where)

    def _prefixed(self, out: Keys, keys: Keys, where: KeyPath) -> None:
        digits = _PREFIXES[self._choice(keys, where, "prefix", tuple(_PREFIXES), "LL")]
        encodings = ("ascii", "ebcdic", "bcd", "binary")
        encoding = self._choice(keys, where, "prefix_encoding", encodings, self._prefix_encoding)
        natural = {"bcd": (digits + 1) // 2, "binary": 1 if digits < 3 else 2}.get(encoding, digits)
        size = self._number(keys, where, "prefix_bytes", 1, 4, natural)
        if size != natural and encoding != "binary":
            self._mistake((*where, "prefix_bytes"), "only of a binary prefix")
        counts = self._counts(out, keys, where)
        out.update(prefix_bytes=size, prefix_encoding=encoding, counts=counts)
        most = out["most"] * 2 if counts == "nibbles" else out["most"]
        most = (most + 1) // 2 if counts == "bytes" else most
        if most >= (256**size if encoding == "binary" else 10**digits):
            self._mistake((*where, "max"), "it does not fit the prefix")

    def _counts(self, out: Keys, keys: Keys, where: KeyPath) -> str:
        """Characters of text, digits of BCD and bytes of the rest, unless it is said otherwise."""
        natural = {"bcd": "digits", "binary": "bytes", "hex": "bytes", "ebcdic-hex": "bytes"}.get(
            out["encoding"], "characters"
        )
        said = self._choice(keys, where, "counts", ("characters", "digits", "bytes"), natural)
        if said == natural or natural == "characters":
            return "units"
        if out["encoding"] == "bcd":
            if said == "characters":
                return "units"
            if out["content"] == "x+n":
                self._mistake((*where, "counts"), "a signed amount is counted in digits")
            return "bytes"
        return "nibbles"

    def _padded(self, out: Keys, keys: Keys, where: KeyPath) -> None:
        text = out["encoding"] in ("ascii", "ebcdic") and out["shape"] == "plain"
        pad = self._choice(keys, where, "pad", ("none", "left", "right"), "none")
        natural = "0" if out["content"] in ("n", "z") else " "
        fill = self._text(keys, where, "fill", natural)
        if len(fill) != 1 or not " " <= fill <= "~":
            self._mistake((*where, "fill"), "expected one printable character")
            fill = natural
        strip = self._flag(keys, where, "strip")
        if pad != "none" and (not out["fixed"] or out["content"] in ("b", "x+n")):
            self._mistake((*where, "pad"), "only text or digits of fixed length are padded")
        elif pad != "none" and not text and (pad == "right" or fill != "0"):
            self._mistake((*where, "pad"), "BCD is padded on the left, with 0")
        if strip and (pad == "none" or not text):
            self._mistake((*where, "strip"), "only padding of text is stripped")
            strip = False
        out.update(pad=pad, fill=fill, strip=strip)

    def _inside(self, out: Keys, keys: Keys, where: KeyPath) -> Keys:
        """How a composite marks its parts."""
        lengths = ("ascii", "ebcdic", "bcd", "binary")
        text = out["encoding"] if out["encoding"] != "binary" else "ascii"
        tlv = out["shape"] == "tlv"
        if tlv and out["encoding"] == "binary":
            self._mistake((*where, "content"), "tags and lengths are characters; or ber-tlv")
        binary = ("binary", "hex", "ebcdic-hex")
        return {
            "tag_bytes": self._number(keys, where, "tag_bytes", 1, 4, 2) if tlv else 0,
            "length_bytes": self._number(keys, where, "length_bytes", 1, 6, 3) if tlv else 0,
            "length_encoding": self._choice(keys, where, "length_encoding", lengths, text),
            "bitmap_encoding": self._choice(keys, where, "bitmap", binary, self._binary_encoding),
            "bitmap_bytes": self._number(keys, where, "bitmap_bytes", 1, 8, 8)
            if out["shape"] == "bitmapped"
            else 0,
        }

    def _children(self, out: Keys, keys: Keys, where: KeyPath, path: str, depth: int) -> list[Keys]:
        shape = out["shape"]
        tagged = shape in ("tlv", "ber-tlv")
        for key, is_there in (("parts", shape in ("positional", "bitmapped")), ("tags", tagged)):
            if key in keys and not is_there:
                self._mistake((*where, key), f"a composite that is {shape} has none")
        if shape == "plain":
            return []
        if depth >= _DEPTH_MAX:
            self._mistake(where, f"composites are at most {_DEPTH_MAX} deep")
            return []
        name = "tags" if tagged else "parts"
        given = keys.get(name, {})
        if not isinstance(given, dict) or (not given and not tagged):
            self._mistake((*where, name), "expected a table")
            return []
        if len(given) > 200:
            self._mistake((*where, name), "at most 200 parts")
            return []
        children = []
        for key, inner in given.items():
            place = (*where, name, key)
            if not isinstance(inner, dict):
                self._mistake(place, "expected a table")
                continue
            chip = shape == "ber-tlv"
            child = self._field(inner, place, f"{path}.{key}", depth + 1, chip)
            if tagged:
                self._tag(out, child, place, inner)
            else:
                self._part(out, child, place)
            children.append(child)
        if not tagged:
            children.sort(key=lambda child: int(child["number"]))
            self._check_parts(out, children, where)
        return children

    def _tag(self, parent: Keys, child: Keys, where: KeyPath, keys: Keys) -> None:
        """A part that its tag announces; the tag's length is its prefix."""
        tag = where[-1]
        if "prefix" in keys:
            self._mistake((*where, "prefix"), "the length of a tag is its prefix")
        if _hides_odd(child):
            self._mistake(where, "a tag's length does not tell an odd number of BCD digits")
        if parent["shape"] == "tlv":
            if len(tag) != parent["tag_bytes"] or not (tag.isascii() and tag.isalnum()):
                self._mistake(where, f"a tag has {parent['tag_bytes']} letters or digits")
                return
            encoding = "ascii"
            if parent["encoding"] == "ebcdic":
                encoding = self._text(self._spec, (), "code_page", "cp037")
            child["tag"] = tag.encode(encoding)
            return
        try:
            child["tag"] = bytes.fromhex(tag)
        except ValueError:
            child["tag"] = b""
        if not _is_ber_tag(child["tag"]) or tag != tag.upper():
            self._mistake(where, "expected a BER tag in capital hexadecimal digits")
        elif child["tag"][0] & 32 and child["shape"] != "ber-tlv":
            self._mistake(where, "a constructed tag holds tags: composite = ber-tlv")

    def _part(self, parent: Keys, child: Keys, where: KeyPath) -> None:
        number = int(where[-1]) if where[-1].isascii() and where[-1].isdigit() else 0
        most = 8 * parent["bitmap_bytes"] if parent["shape"] == "bitmapped" else 200
        if not 0 < number <= most or str(number) != where[-1]:
            self._mistake(where, f"a part has a number from 1 to {most}")
        child["number"] = number
        if child["repeatable"]:
            self._mistake((*where, "repeatable"), "only tags are repeated")

    def _check_parts(self, out: Keys, children: list[Keys], where: KeyPath) -> None:
        """Only the last part may be the rest; an optional one is followed by none that is not."""
        optional = False
        for i, child in enumerate(children):
            place = (*where, "parts", child["key"])
            last = i == len(children) - 1
            if (
                not child["fixed"]
                and not child["prefix_bytes"]
                and not (last and out["shape"] == "positional")
            ):
                self._mistake((*place, "prefix"), "only the last part may do without a prefix")
            if _hides_odd(child) and not child["fixed"] and not child["prefix_bytes"]:
                self._mistake(place, "the rest as BCD has an even number of digits")
            if optional and not child["optional"]:
                self._mistake(place, "a part before it is optional, so it is too")
            optional = optional or child["optional"]
        if out["shape"] == "positional" and out["fixed"] and children:
            self._check_sum(out, children, where)

    def _check_sum(self, out: Keys, children: list[Keys], where: KeyPath) -> None:
        least = sum(0 if c["optional"] else _wire_bytes(c, c["least"]) for c in children)
        most = sum(_wire_bytes(c, c["most"]) + c["prefix_bytes"] for c in children)
        if not least <= out["most"] <= most:
            self._mistake((*where, "length"), f"its parts have {least} to {most} bytes")

    # ---- keys

    def _mistake(self, where: KeyPath, what: str) -> None:
        self._mistakes.append(self._source.mistake(tuple(str(step) for step in where), what))

    def _unknown_keys(self, keys: Keys, where: KeyPath, known: tuple[str, ...]) -> None:
        for key in keys:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, 1)
                hint = f"; perhaps {close[0]}" if close else ""
                self._mistake((*where, key), f"there is no such key{hint}")

    def _choice(
        self, keys: Keys, where: KeyPath, key: str, choices: tuple[Any, ...], default: Any
    ) -> Any:
        value = keys.get(key, default)
        if value is default or (value in choices and not isinstance(value, bool)):
            return value
        self._mistake((*where, key), f"expected one of {', '.join(map(str, choices))}")
        return default

    def _text(self, keys: Keys, where: KeyPath, key: str, default: str) -> str:
        value = keys.get(key, default)
        if isinstance(value, str) and len(value) <= 200:
            return value
        self._mistake((*where, key), "expected a text of at most 200 characters")
        return default

    def _number(
        self, keys: Keys, where: KeyPath, key: str, least: int, most: int, default: int
    ) -> int:
        value = keys.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self._mistake((*where, key), f"expected a number from {least} to {most}")
        return default

    def _flag(self, keys: Keys, where: KeyPath, key: str) -> bool:
        value = keys.get(key, False)
        if isinstance(value, bool):
            return value
        self._mistake((*where, key), "expected true or false")
        return False

    def _list(self, keys: Keys, key: str, choices: Iterable[Any]) -> list[Any]:
        value = keys.get(key, [])
        allowed = list(choices)
        if isinstance(value, list) and all(v in allowed for v in value):
            return value
        few = ", ".join(map(str, allowed)) if len(allowed) < 10 else f"{allowed[0]}…{allowed[-1]}"
        self._mistake((key,), f"expected a list of {few}")
        return []


def _is_ber_tag(tag: bytes) -> bool:
    """One tag of BER, of one to four bytes, as EMV has them."""
    if not 1 <= len(tag) <= 4 or tag[0] in (0, 255):
        return False
    if tag[0] & 31 != 31:
        return len(tag) == 1
    return len(tag) > 1 and tag[1] != 128 and tag[-1] < 128 and all(b > 127 for b in tag[1:-1])


def _hides_odd(field: Keys) -> bool:
    """True of BCD whose number of bytes does not tell that of its digits; a filler F does."""
    if field["encoding"] != "bcd":
        return False
    return field["content"] == "x+n" or bool(field["most"] & 1 and field["odd"].endswith("0"))


def _format(field: Keys, prefix: str) -> str:
    """As people write it: `n 12`, `ans ..999 LLL`, `tlv ..999 LLL`."""
    content = field["content"] if field["shape"] == "plain" else field["shape"]
    if field["fixed"]:
        return f"{content} {field['most']}"
    least = field["least"] or ""
    return f"{content} {least}..{field['most']} {prefix}".rstrip()


def _wire_bytes(field: Keys, units: int) -> int:
    encoding = field["encoding"]
    if encoding == "bcd":
        return 1 + units // 2 if field["content"] == "x+n" else (units + 1) // 2
    return 2 * units if encoding in ("hex", "ebcdic-hex") else units
