"""Random dialects, every key of them spelled out, and messages that fit them."""

from typing import Any

from hypothesis import strategies as st

from tests.models.iso8583 import ALPHABETS, DIGITS, LATIN, LETTERS, PRINTABLE

Spec = dict[str, Any]
TEXTS = ("ascii", "ebcdic")
PREFIXES = ("L", "LL", "LLL", "LLLL")
CODE_PAGES = ("cp037", "cp500", "cp273", "cp1140")
BER_TAGS = ("82", "9A", "5F2A", "9F26", "9F8101", "C1", "DF8129", "57")
TEMPLATES = ("70", "E1", "BF0C")


def choice(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def plain_fields(draw: Any, *, tagged: bool = False, rest: bool = False) -> Spec:
    """An element, or a part; `tagged`: its tag has the length; `rest`: it takes what is left."""
    content = draw(choice("n", "a", "an", "ans", "z", "x+n", "b", "any"))
    encodings: tuple[str, ...] = TEXTS
    if content == "b":
        encodings = ("binary", "hex", "ebcdic-hex")
    elif content in ("n", "z", "x+n"):
        encodings = ("ascii", "ebcdic", "bcd")
    field: Spec = {
        "content": content,
        "encoding": draw(choice(*encodings)),
        "pad": "none",
        "fill": " ",
        "strip": False,
    }
    bcd = field["encoding"] == "bcd"
    field |= {"odd": "left", "filler": "0"}
    if bcd:
        field |= {"odd": draw(choice("left", "right")), "filler": draw(choice("0", "F"))}
    signed = 1 if content == "x+n" else 0
    if not rest and draw(st.booleans()):
        field["length"] = draw(st.integers(1 + signed, 24))
        padding(draw, field)
    else:
        field["min"] = draw(st.integers(signed, 3))
        field["max"] = draw(st.integers(max(field["min"], 1 + signed), 40))
    unprefixed = tagged or rest
    if unprefixed and bcd:
        if signed:
            field["content"] = "n"
        if tagged and draw(st.booleans()):
            field["filler"] = "F"
        elif field["filler"] == "0":
            evened(field)
    if "max" in field and not unprefixed:
        prefixed(draw, field)
    return field


def evened(field: Spec) -> None:
    """Only even numbers of digits: nothing tells odd ones."""
    for key in ("length", "max"):
        if key in field:
            field[key] += field[key] % 2


def padding(draw: Any, field: Spec) -> None:
    text = field["encoding"] in TEXTS and field["content"] not in ("b", "x+n")
    if text and draw(st.booleans()):
        field["pad"] = draw(choice("left", "right"))
        field["fill"] = draw(choice(" ", "0", "*"))
        field["strip"] = draw(st.booleans())
    elif field["encoding"] == "bcd" and field["content"] == "n" and draw(st.booleans()):
        field |= {"pad": "left", "fill": "0"}


def prefixed(draw: Any, field: Spec) -> None:
    field["prefix"] = draw(choice(*PREFIXES))
    field["prefix_encoding"] = draw(choice("ascii", "ebcdic", "bcd", "binary"))
    natural = {"bcd": "digits", "binary": "bytes", "hex": "bytes", "ebcdic-hex": "bytes"}
    field["counts"] = natural.get(field["encoding"], "characters")
    if field["content"] == "b":
        field["counts"] = draw(choice("bytes", "characters", "digits"))
    elif field["encoding"] == "bcd" and field["content"] != "x+n":
        field["counts"] = draw(choice("digits", "bytes"))
        if field["counts"] == "bytes" and field["filler"] == "0":
            evened(field)
    if field["prefix"] == "L" and field["prefix_encoding"] != "binary":
        field["max"] = min(field["max"], 9 if field["counts"] == natural.get(
            field["encoding"], "characters") else 4)  # fmt: skip
        field["min"] = min(field["min"], field["max"])


def given_form(field: Spec) -> Spec:
    """A field as a dialect's author may write it."""
    out = dict(field)
    if out.get("encoding") != "bcd":
        out.pop("odd", None)
        out.pop("filler", None)
    if "composite" in out:
        for key in ("pad", "fill", "strip"):
            out.pop(key, None)
    for key in ("parts", "tags"):
        if key in out:
            out[key] = {name: given_form(part) for name, part in out[key].items()}
    return out


@st.composite
def composites(draw: Any, depth: int = 1) -> Spec:
    shape = draw(choice("positional", "tlv", "ber-tlv", "bitmapped"))
    field: Spec = {"composite": shape, "content": "ans", "encoding": draw(choice(*TEXTS))}
    if shape == "ber-tlv":
        field |= {"content": "b", "encoding": "binary"}
    if shape in ("tlv", "ber-tlv"):
        field |= draw(tables(shape, field["encoding"], depth))
    else:
        keys = sorted(draw(st.sets(st.integers(1, 16), min_size=1, max_size=4)))
        field["parts"] = {str(n): draw(parts(depth)) for n in keys}
        if shape == "bitmapped":
            field |= {"bitmap": draw(choice("binary", "hex", "ebcdic-hex")), "bitmap_bytes": 2}
        else:
            ended(draw, field)
    field |= {"min": 0, "max": 900, "prefix": "LLL", "counts": "bytes"}
    field["prefix_encoding"] = draw(choice("ascii", "ebcdic", "bcd", "binary"))
    if field["encoding"] != "binary":
        field["counts"] = "characters"
    return field


def ended(draw: Any, field: Spec) -> None:
    """The last of the positional parts may be the rest, or not there."""
    last = max(field["parts"], key=int)
    end = draw(choice("plain", "rest", "optional"))
    if end == "rest":
        field["parts"][last] = draw(plain_fields(rest=True))
    elif end == "optional":
        field["parts"][last]["optional"] = True
        if "composite" not in field["parts"][last] and "max" in field["parts"][last]:
            return
        if "length" not in field["parts"][last]:
            field["parts"][last].pop("optional")


def parts(depth: int) -> st.SearchStrategy[Spec]:
    if depth >= 2:
        return plain_fields()
    return st.one_of(plain_fields(), plain_fields(), composites(depth + 1))


@st.composite
def tables(draw: Any, shape: str, encoding: str, depth: int) -> Spec:
    """The tags of a composite, and how it writes them."""
    out: Spec = {"unknown": draw(choice("keep", "refuse"))}
    if shape == "tlv":
        size = draw(choice(1, 2, 3))
        names = st.text(DIGITS + "ABxy", min_size=size, max_size=size)
        out |= {
            "tag_bytes": size,
            "length_bytes": 3,
            "length_encoding": draw(choice("ascii", "ebcdic", "bcd", "binary")),
        }
    else:
        names = choice(*BER_TAGS)
    out["tags"] = {}
    for name in draw(st.sets(names, max_size=4)):
        tag = draw(plain_fields(tagged=True))
        tag["repeatable"] = draw(st.booleans())
        out["tags"][name] = tag
    return out


@st.composite
def dialects(draw: Any) -> Spec:
    """A dialect for the oracle; `written` makes of it what `Dialect.from_dict` takes."""
    spec: Spec = {
        "name": "random",
        "mti": draw(choice("ascii", "ebcdic", "bcd")),
        "bitmap": draw(choice("binary", "hex", "ebcdic-hex")),
        "bitmap_fixed": draw(choice(None, None, 8, 16, 24)),
        "tertiary": "none",
        "code_page": draw(choice(*CODE_PAGES)),
        "charset": draw(choice("ascii", "latin-1")),
        "message_bytes_max": 65536,
    }
    least, most = 2, 128
    if spec["bitmap_fixed"]:
        least, most = 1, 8 * spec["bitmap_fixed"]
    else:
        spec["tertiary"] = draw(choice("none", "none", "follows", "element-65"))
        most = 128 if spec["tertiary"] == "none" else 192
    numbers = draw(st.sets(st.integers(least, most), min_size=1, max_size=10))
    if spec["tertiary"] != "none":
        numbers -= {65}
    numbers = numbers or {2}
    elements = st.one_of(plain_fields(), plain_fields(), plain_fields(), composites())
    spec["elements"] = {str(n): draw(elements) for n in sorted(numbers)}
    return spec


def written(spec: Spec) -> Spec:
    out = {key: value for key, value in spec.items() if value is not None}
    out["elements"] = {key: given_form(field) for key, field in spec["elements"].items()}
    return out


# ---- messages


@st.composite
def messages(draw: Any, spec: Spec) -> dict[str, Any]:
    message: dict[str, Any] = {"mti": draw(st.text(DIGITS, min_size=4, max_size=4))}
    present = draw(st.sets(st.sampled_from(sorted(spec["elements"]))))
    for key in sorted(present, key=int):
        message[key] = draw(values(spec, spec["elements"][key]))
    empty = not spec["bitmap_fixed"] and all(int(key) <= 64 for key in present)
    if empty and draw(st.integers(0, 9)) == 0:
        message["1"] = True
    return message


def values(spec: Spec, field: Spec) -> st.SearchStrategy[Any]:
    if "composite" in field:
        return inside(spec, field)
    least, most = field.get("min", field.get("length")), field.get("max", field.get("length"))
    assert least is not None
    assert most is not None
    if "length" in field and field["pad"] != "none":
        least = 0
    content = field["content"]
    if content == "b":
        return st.binary(min_size=least, max_size=most)
    if content == "x+n":
        digits = st.text(DIGITS, min_size=max(least - 1, 0), max_size=most - 1)
        return st.builds(lambda sign, rest: sign + rest, choice("C", "D"), digits)
    alphabet = ALPHABETS[content]
    if field["encoding"] == "bcd":
        alphabet = DIGITS + "D" if content == "z" else DIGITS
    if content == "ans" and spec["charset"] == "latin-1":
        alphabet += LATIN
    known = "".join(c for c in alphabet if encodable(c, spec, field["encoding"]))
    text = st.text(known, min_size=least, max_size=most)
    return text.map(lambda value: evenly(value, field, least))


def encodable(c: str, spec: Spec, encoding: str) -> bool:
    if "ebcdic" not in encoding:
        return True
    try:
        return c.encode(spec["code_page"]).decode(spec["code_page"]) == c
    except UnicodeError:
        return False


def evenly(value: str, field: Spec, least: int) -> str:
    """An even number of digits where nothing would tell an odd one."""
    unprefixed = "prefix" not in field and "length" not in field
    if field["encoding"] != "bcd" or field["filler"] == "F":
        return value
    if len(value) % 2 == 0 or "length" in field:
        return value
    if field.get("counts") == "bytes" or unprefixed:
        return value[1:] if len(value) > least else value + "1"
    return value


@st.composite
def inside(draw: Any, spec: Spec, field: Spec) -> Any:
    if field["composite"] in ("tlv", "ber-tlv"):
        return draw(tagged(spec, field))
    out = {}
    for key in sorted(field["parts"], key=int):
        part = field["parts"][key]
        absent = part.get("optional") or field["composite"] == "bitmapped"
        if absent and draw(st.booleans()):
            continue
        out[key] = draw(values(spec, part))
    return out


@st.composite
def tagged(draw: Any, spec: Spec, field: Spec) -> Any:
    """Known tags, unknown ones, and repeated ones."""
    out: dict[str, Any] = {}
    for name in draw(st.permutations(sorted(field["tags"]))):
        known = field["tags"][name]
        if draw(st.booleans()):
            value = values(spec, known)
            out[name] = draw(
                st.lists(value, min_size=1, max_size=3) if known["repeatable"] else value
            )
    if field["unknown"] == "refuse":
        return out
    if field["composite"] == "tlv":
        size = field["tag_bytes"]
        names = st.text(DIGITS + LETTERS, min_size=size, max_size=size)
        content: st.SearchStrategy[Any] = st.text(PRINTABLE, max_size=20)
    else:
        names = st.sampled_from(BER_TAGS)
        content = st.binary(max_size=200)
    for name in draw(st.sets(names, max_size=2)) - set(field["tags"]):
        out[name] = draw(content)
    if field["composite"] == "ber-tlv" and draw(st.booleans()):
        out[draw(st.sampled_from(TEMPLATES))] = {"9C": draw(st.binary(max_size=3))}
    return out
