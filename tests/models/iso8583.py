"""ISO 8583 in plain Python: the oracle of the native codec.

It takes a dialect in full words (every key that `spelled` adds), goes through messages a character
at a time, and knows nothing of the native one. Slow and short is its point.
"""

from typing import Any

Spec = dict[str, Any]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
PRINTABLE = "".join(map(chr, range(32, 127)))
LATIN = "".join(map(chr, range(160, 256)))
ALPHABETS = {
    "n": DIGITS, "a": LETTERS, "an": DIGITS + LETTERS, "ans": PRINTABLE, "z": DIGITS + ":;<=>?D",
    "any": "".join(map(chr, range(256))),
}  # fmt: skip
DEPTH_MAX = 8


class Refused(Exception):
    """The message does not fit."""


def refuse_if(wrong: bool) -> None:
    if wrong:
        raise Refused


def page(spec: Spec, encoding: str) -> str:
    return spec["code_page"] if "ebcdic" in encoding else "latin-1"


# ---- numbers, bitmaps


def number_to(spec: Spec, encoding: str, value: int, size: int) -> bytes:
    if encoding == "binary":
        return value.to_bytes(size, "big")
    if encoding == "bcd":
        return bytes.fromhex(f"{value:0{2 * size}d}")
    return f"{value:0{size}d}".encode(page(spec, encoding))


def number_from(spec: Spec, encoding: str, data: bytes) -> int:
    if encoding == "binary":
        return int.from_bytes(data, "big")
    text = data.hex() if encoding == "bcd" else data.decode(page(spec, encoding))
    refuse_if(any(c not in DIGITS for c in text))
    return int(text)


def hex_to(spec: Spec, encoding: str, data: bytes) -> bytes:
    return data if encoding == "binary" else data.hex().upper().encode(page(spec, encoding))


def hex_from(spec: Spec, encoding: str, data: bytes) -> bytes:
    if encoding == "binary":
        return data
    text = data.decode(page(spec, encoding))
    refuse_if(any(c not in "0123456789ABCDEF" for c in text))
    return bytes.fromhex(text)


def bits_to(numbers: set[int], size: int) -> bytes:
    return sum(1 << (8 * size - n) for n in numbers).to_bytes(size, "big")


def bits_from(data: bytes) -> set[int]:
    value = int.from_bytes(data, "big")
    return {n for n in range(1, 8 * len(data) + 1) if value >> (8 * len(data) - n) & 1}


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, n: int) -> bytes:
        refuse_if(n < 0 or self.at + n > len(self.data))
        self.at += n
        return self.data[self.at - n : self.at]

    @property
    def left(self) -> int:
        return len(self.data) - self.at


# ---- one value


def wire_size(field: Spec, units: int) -> int:
    if field["encoding"] == "bcd":
        return 1 + units // 2 if field["content"] == "x+n" else (units + 1) // 2
    return 2 * units if "hex" in field["encoding"] else units


def plain_to(spec: Spec, field: Spec, value: Any) -> tuple[bytes, int]:
    """The wire form of a value, and its units."""
    if field["content"] == "b":
        return hex_to(spec, field["encoding"], value), len(value)
    if "length" in field and field["pad"] != "none":
        just = str.rjust if field["pad"] == "left" else str.ljust
        value = just(value, field["length"], field["fill"])
    if field["encoding"] != "bcd":
        return value.encode(page(spec, field["encoding"])), len(value)
    sign, digits = b"", value.replace("=", "D")
    if field["content"] == "x+n":
        sign, digits = digits[:1].encode(), digits[1:]
    if len(digits) % 2:
        filler = field["filler"]
        digits = filler + digits if field["odd"] == "left" else digits + filler
    return sign + bytes.fromhex(digits), len(value)


def plain_from(spec: Spec, field: Spec, data: bytes, units: int) -> Any:
    content = field["content"]
    if content == "b":
        return hex_from(spec, field["encoding"], data)
    if field["encoding"] == "bcd":
        return bcd_from(field, data, units)
    text = data.decode(page(spec, field["encoding"]))
    bare = text
    if field["pad"] == "right":
        bare = text.rstrip(field["fill"])
    elif field["pad"] == "left":
        bare = text.lstrip(field["fill"])
    check = bare
    if content == "x+n":
        refuse_if(bare[:1] not in ("C", "D"))
        check = bare[1:]
    allowed = ALPHABETS.get(content, DIGITS)
    if content == "ans" and spec["charset"] == "latin-1":
        allowed += LATIN
    refuse_if(any(c not in allowed for c in check))
    return bare if field["strip"] else text


def bcd_from(field: Spec, data: bytes, units: int) -> str:
    sign = ""
    if field["content"] == "x+n":
        sign = data[:1].decode("latin-1")
        refuse_if(sign not in ("C", "D"))
        data, units = data[1:], units - 1
    digits = data.hex().upper()
    if units % 2:
        filler = digits[0] if field["odd"] == "left" else digits[-1]
        refuse_if(filler != field["filler"])
        digits = digits[1:] if field["odd"] == "left" else digits[:-1]
    refuse_if(any(c not in (DIGITS + "D" if field["content"] == "z" else DIGITS) for c in digits))
    return sign + digits


# ---- a field with its prefix


def field_to(spec: Spec, field: Spec, value: Any) -> bytes:
    if "composite" in field:
        data = inside_to(spec, field, value)
        units = len(data)
    else:
        data, units = plain_to(spec, field, value)
    if "prefix" not in field:
        return data
    natural = {"bcd": "digits", "binary": "bytes", "hex": "bytes", "ebcdic-hex": "bytes"}.get(
        field["encoding"], "characters"
    )
    if field["encoding"] == "bcd" and field["counts"] == "bytes":
        units = (units + 1) // 2
    elif natural == "bytes" and field["counts"] != "bytes":
        units *= 2
    return number_to(spec, field["prefix_encoding"], units, prefix_size(field)) + data


def prefix_size(field: Spec) -> int:
    digits = len(field["prefix"])
    if field["prefix_encoding"] == "bcd":
        return (digits + 1) // 2
    if field["prefix_encoding"] == "binary":
        return 1 if digits < 3 else 2
    return digits


def field_from(spec: Spec, field: Spec, reader: Reader, depth: int) -> Any:
    if "length" in field:
        units = field["length"]
    elif "prefix" in field:
        counted = number_from(spec, field["prefix_encoding"], reader.take(prefix_size(field)))
        units = counted_units(field, counted, reader)
    else:
        units = rest_units(field, reader)
    if "length" not in field:
        refuse_if(not field["min"] <= units <= field["max"])
    data = reader.take(wire_size(field, units))
    if "composite" in field:
        return inside_from(spec, field, data, depth)
    return plain_from(spec, field, data, units)


def counted_units(field: Spec, counted: int, reader: Reader) -> int:
    if field["encoding"] == "bcd" and field["counts"] == "bytes":
        return bcd_units(field, reader.data[reader.at :], counted)
    if field["content"] == "b" and field["counts"] != "bytes" and "composite" not in field:
        refuse_if(counted % 2 == 1)
        return counted // 2
    return counted


def bcd_units(field: Spec, data: bytes, counted: int) -> int:
    """Digits of so many bytes: a filler F tells that they are odd."""
    digits = data[:counted].hex().upper()
    if len(digits) == 2 * counted and counted and field["filler"] == "F":
        filler = digits[0] if field["odd"] == "left" else digits[-1]
        return 2 * counted - (filler == "F")
    return 2 * counted


def rest_units(field: Spec, reader: Reader) -> int:
    n = reader.left
    if field["encoding"] == "bcd":
        return bcd_units(field, reader.data[reader.at :], n)
    if "hex" in field["encoding"]:
        refuse_if(n % 2 == 1)
        return n // 2
    return n


# ---- composites


def inside_to(spec: Spec, field: Spec, value: Any) -> bytes:
    if field["composite"] in ("tlv", "ber-tlv"):
        return b"".join(tag_to(spec, field, key, part) for key, part in pairs_of(value))
    keys = sorted(field["parts"], key=int)
    data = b"".join(field_to(spec, field["parts"][k], value[k]) for k in keys if k in value)
    if field["composite"] == "bitmapped":
        bits = bits_to({int(key) for key in value}, field["bitmap_bytes"])
        return hex_to(spec, field["bitmap"], bits) + data
    return data


def pairs_of(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return value
    out = []
    for key, part in value.items():
        many = isinstance(part, list) and not (part and isinstance(part[0], tuple))
        out += [(key, one) for one in part] if many else [(key, part)]
    return out


def tag_to(spec: Spec, field: Spec, key: str, value: Any) -> bytes:
    known = field["tags"].get(key)
    if field["composite"] == "tlv":
        if known is not None:
            data = field_to(spec, known, value)
        else:
            data = (
                value if isinstance(value, bytes) else value.encode(page(spec, field["encoding"]))
            )
        size, encoding = field["length_bytes"], field["length_encoding"]
        head = key.encode(page(spec, field["encoding"]))
        return head + number_to(spec, encoding, len(data), size) + data
    if known is not None:
        data = field_to(spec, known, value)
    else:
        data = value if isinstance(value, bytes) else inside_to(spec, field, value)
    n = len(data)
    if n < 128:
        return bytes.fromhex(key) + bytes([n]) + data
    size = (n.bit_length() + 7) // 8
    return bytes.fromhex(key) + bytes([128 | size]) + n.to_bytes(size, "big") + data


def inside_from(spec: Spec, field: Spec, data: bytes, depth: int) -> Any:
    refuse_if(depth >= DEPTH_MAX)
    reader = Reader(data)
    if field["composite"] in ("tlv", "ber-tlv"):
        return tags_from(spec, field, reader, depth)
    keys = sorted(field["parts"], key=int)
    if field["composite"] == "bitmapped":
        size = field["bitmap_bytes"] * (1 if field["bitmap"] == "binary" else 2)
        present = bits_from(hex_from(spec, field["bitmap"], reader.take(size)))
        refuse_if(any(str(n) not in field["parts"] for n in present))
        keys = [key for key in keys if int(key) in present]
    out = {}
    for key in keys:
        part = field["parts"][key]
        if part.get("optional") and field["composite"] == "positional" and not reader.left:
            break
        out[key] = field_from(spec, part, reader, depth + 1)
    refuse_if(reader.left > 0)
    return out


def tags_from(spec: Spec, field: Spec, reader: Reader, depth: int) -> Any:
    pairs: list[tuple[str, Any]] = []
    while reader.left:
        key, constructed, data = (ber_from if field["composite"] == "ber-tlv" else tlv_from)(
            spec, field, reader
        )
        known = field["tags"].get(key)
        if known is not None:
            repeated = any(key == other for other, _ in pairs)
            refuse_if(repeated and not known["repeatable"])
            value = tagged_from(spec, known, data, depth + 1)
        else:
            refuse_if(field["unknown"] == "refuse")
            value = data
            if constructed:
                value = inside_from(spec, field, data, depth + 1)
            elif field["composite"] == "tlv":
                text = data.decode(page(spec, field["encoding"]))
                value = text if all(c in PRINTABLE for c in text) else data
        pairs.append((key, value))
    return gathered(field, pairs)


def gathered(field: Spec, pairs: list[tuple[str, Any]]) -> Any:
    """A dict, repeated tags as lists; or the pairs, where repeated ones stand apart."""
    names = [key for key, _ in pairs]
    for i, key in enumerate(names):
        if i and key in names[:i] and names[i - 1] != key:
            return pairs
    out: dict[str, Any] = {}
    for key in dict.fromkeys(names):
        values = [value for other, value in pairs if other == key]
        known = field["tags"].get(key)
        many = len(values) > 1 or (known is not None and known["repeatable"])
        out[key] = values if many else values[0]
    return out


def tagged_from(spec: Spec, field: Spec, data: bytes, depth: int) -> Any:
    units = len(data)
    if "composite" not in field and field["encoding"] == "bcd":
        units = bcd_units(field, data, len(data))
    elif "composite" not in field and "hex" in field["encoding"]:
        refuse_if(units % 2 == 1)
        units //= 2
    least, most = field.get("min", field.get("length")), field.get("max", field.get("length"))
    assert least is not None
    assert most is not None
    refuse_if(not least <= units <= most)
    if "composite" in field:
        return inside_from(spec, field, data, depth)
    return plain_from(spec, field, data, units)


def tlv_from(spec: Spec, field: Spec, reader: Reader) -> tuple[str, bool, bytes]:
    key = reader.take(field["tag_bytes"]).decode(page(spec, field["encoding"]))
    refuse_if(any(c not in DIGITS + LETTERS for c in key))
    n = number_from(spec, field["length_encoding"], reader.take(field["length_bytes"]))
    return key, False, reader.take(n)


def ber_from(spec: Spec, field: Spec, reader: Reader) -> tuple[str, bool, bytes]:
    tag = reader.take(1)
    constructed = bool(tag[0] & 32)
    refuse_if(tag[0] in (0, 255))
    if tag[0] & 31 == 31:
        while True:
            tag += reader.take(1)
            refuse_if(len(tag) > 4 or (len(tag) == 2 and tag[1] == 128))
            if tag[-1] < 128:
                break
    n = reader.take(1)[0]
    if n > 127:
        size = n & 127
        refuse_if(not 1 <= size <= 3)
        encoded = reader.take(size)
        n = int.from_bytes(encoded, "big")
        refuse_if(n < 128 or encoded[0] == 0)
    return tag.hex().upper(), constructed, reader.take(n)


# ---- messages


def encode(spec: Spec, message: dict[str, Any]) -> bytes:
    elements = sorted(
        int(key) for key, value in message.items() if key != "mti" and value is not True
    )
    words = 1
    if spec["bitmap_fixed"]:
        words = spec["bitmap_fixed"] // 8
    else:
        words = max([1, *(-(-n // 64) for n in elements)])
        words = max(
            words, 2 if message.get("1") is True else 1, 3 if message.get("65") is True else 1
        )
    bits = set(elements)
    if not spec["bitmap_fixed"]:
        bits |= {64 * word + 1 for word in range(words - 1)}
    bitmap = bits_to(bits, 8 * words)
    pieces = [hex_to(spec, spec["bitmap"], bitmap[i : i + 8]) for i in range(0, len(bitmap), 8)]
    mti = message["mti"]
    out = bytes.fromhex(mti) if spec["mti"] == "bcd" else mti.encode(page(spec, spec["mti"]))
    inside = spec["tertiary"] == "element-65" and words == 3
    out += b"".join(pieces[:2] if inside else pieces)
    for n in elements:
        if inside and n > 64:
            out += pieces[2]
            inside = False
        out += field_to(spec, spec["elements"][str(n)], message[str(n)])
    return out + (pieces[2] if inside else b"")


def decode(spec: Spec, data: bytes) -> dict[str, Any]:
    reader = Reader(data)
    refuse_if(len(data) > spec["message_bytes_max"])
    if spec["mti"] == "bcd":
        mti = reader.take(2).hex()
    else:
        mti = reader.take(4).decode(page(spec, spec["mti"]))
    refuse_if(any(c not in DIGITS for c in mti))
    out: dict[str, Any] = {"mti": mti}
    bits: set[int] = set()
    most = (spec["bitmap_fixed"] or 0) // 8 or (3 if spec["tertiary"] == "follows" else 2)
    for word in range(most):
        found = word_from(spec, reader)
        bits |= {64 * word + n for n in found}
        if not spec["bitmap_fixed"] and 1 not in found:
            break
    more = {1, 65} if spec["tertiary"] != "none" else {1}
    announcing = set() if spec["bitmap_fixed"] else bits & more
    pending = spec["tertiary"] == "element-65" and 65 in announcing
    queue = sorted(bits - announcing)
    while queue or pending:
        if pending and (not queue or queue[0] > 64):
            third = {128 + n for n in word_from(spec, reader)}
            bits |= third
            queue = sorted([*queue, *third])
            pending = False
            continue
        n = queue.pop(0)
        refuse_if(str(n) not in spec["elements"])
        out[str(n)] = field_from(spec, spec["elements"][str(n)], reader, 1)
    refuse_if(reader.left > 0)
    for n, above in ((1, 64), (65, 128)):
        if n in announcing and not any(b > above and b not in announcing for b in bits):
            out[str(n)] = True
    return out


def word_from(spec: Spec, reader: Reader) -> set[int]:
    size = 8 if spec["bitmap"] == "binary" else 16
    return bits_from(hex_from(spec, spec["bitmap"], reader.take(size)))
