"""Dialects, messages and their errors: what the native ISO 8583 codec promises its callers."""

import json
import os
import random
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from core_ext._iso8583 import Message
from protocols.iso8583 import Dialect, DialectError, FormatError
from tests.models.iso_layouts import dialect_of

FUZZ = int(os.environ.get("TRONCAL_FUZZ", "0") or 0)
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "iso8583.json").read_text())
CEIBO = Dialect.load("ceibo")
TOKEN = "5A" * 34
HOLD: dict[str, Any] = {
    "mti": "0100", "3": "010000", "4": "000000050000", "7": "0922143015", "11": "004217",
    "12": "113015", "13": "0922", "15": "0922", "32": "0001", "37": "626511004217",
    "41": "00000042", "42": "B1",
    "48": {"01": "CI4567890", "03": TOKEN, "04": "17", "12": ["a,one", "b,two"]}, "49": "600",
}  # fmt: skip
SPEC: dict[str, Any] = {
    "name": "small",
    "mac": [64, 128],
    "echo": [3, 11],
    "elements": {
        "2": {"content": "n", "prefix": "LL", "max": 19},
        "3": {"content": "n", "length": 6},
        "11": {"content": "n", "length": 6},
        "37": {"content": "an", "length": 12},
        "39": {"content": "an", "length": 2},
        "41": {"content": "ans", "length": 8},
        "64": {"content": "b", "length": 8},
        "70": {"content": "n", "length": 3},
        "128": {"content": "b", "length": 8},
    },
}


def small(**elements: Any) -> Dialect:
    more = {name.removeprefix("e"): field for name, field in elements.items()}
    return Dialect.from_dict({**SPEC, "elements": {**SPEC["elements"], **more}})


def refusal(dialect: Dialect, data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        dialect.decode(data)
    return caught.value


# ---- messages


def test_a_message_is_read_by_keys() -> None:
    message = CEIBO.decode(CEIBO.encode(HOLD))
    assert message.mti == message["mti"] == "0100"
    assert message["11"] == "004217"
    assert message.get("48.03") == TOKEN
    assert message["48.12"] == ["a,one", "b,two"]
    assert message["42"] == "B1".ljust(15)
    assert message.get("48.99", "none") == "none"
    assert message.get("39") is None
    assert "48.01" in message
    assert "48.02" not in message
    assert "39" not in message
    assert "0" not in message
    assert "193" not in message
    assert "mti" in message
    assert list(message) == list(HOLD)[1:]
    assert {"mti": "0100", **dict(message.items())} == message.to_dict()
    assert message.to_dict() == {**HOLD, "42": "B1".ljust(15)}
    assert message.raw == CEIBO.encode(HOLD)
    assert message.layout is CEIBO
    with pytest.raises(KeyError):
        message["39"]


def test_messages_are_only_made_by_decoding() -> None:
    with pytest.raises(TypeError):
        Message()


def test_nested_and_dotted_keys_are_the_same() -> None:
    dotted = {key: value for key, value in HOLD.items() if key != "48"}
    dotted |= {f"48.{tag}": value for tag, value in HOLD["48"].items()}
    assert CEIBO.encode(dotted) == CEIBO.encode(HOLD)


def test_none_is_not_there() -> None:
    assert CEIBO.encode({**HOLD, "38": None}) == CEIBO.encode(HOLD)


def test_many_frames_keep_their_order_and_their_errors() -> None:
    good = CEIBO.encode(HOLD)
    found = CEIBO.decode_many([good, b"", good[:-1], good])
    assert [type(one) for one in found] == [Message, FormatError, FormatError, Message]


@pytest.mark.parametrize("data", [bytearray, memoryview])
def test_any_buffer_is_decoded(data: Any) -> None:
    assert CEIBO.decode(data(CEIBO.encode(HOLD))).raw == CEIBO.encode(HOLD)


def test_unknown_tags_are_kept_and_counted() -> None:
    known = CEIBO.encode({**HOLD, "48": {"01": "CI1", "97": b"\x00\xff", "98": "text"}})
    message = CEIBO.decode(known)
    assert message.unknown_tags == 2
    assert message["48.97"] == b"\x00\xff"
    assert message["48.98"] == "text"
    assert CEIBO.encode(message) == known
    assert message.replaced({"48.01": "CI2"}) == known.replace(b"CI1", b"CI2")


def test_repeated_tags_apart_keep_their_places() -> None:
    data = CEIBO.encode({**HOLD, "48": [("12", "a"), ("01", "CI1"), ("12", "b")]})
    message = CEIBO.decode(data)
    assert message["48"] == [("12", "a"), ("01", "CI1"), ("12", "b")]
    assert message["48.12"] == ["a", "b"]
    assert CEIBO.encode(message) == data
    assert message.masked()["48"] == [("12", "a"), ("01", "***"), ("12", "b")]


def test_a_tag_that_may_not_be_repeated() -> None:
    with pytest.raises(FormatError, match=r"element 48\.01.*repeated"):
        CEIBO.encode({**HOLD, "48": {"01": ["CI1", "CI2"]}})
    data = CEIBO.encode({**HOLD, "48": {"01": "CI1", "98": "CI2"}}).replace(b"98003", b"01003")
    assert refusal(CEIBO, data).element == "48.01"


# ---- what is refused, and what of it stays sound


def test_an_error_names_element_byte_and_reason() -> None:
    data = CEIBO.encode(HOLD).replace(b"000000050000", b"00000005000x")
    error = refusal(CEIBO, data)
    assert (error.element, error.offset, error.reason) == ("4", 29, "wrong character")
    assert error.partial == {
        "mti": "0100", "7": "0922143015", "11": "004217", "37": "626511004217", "41": "00000042"
    }  # fmt: skip
    assert str(error) == "element 4, byte 29: wrong character"


def test_an_unsound_element_is_not_in_the_partial_answer() -> None:
    data = CEIBO.encode(HOLD).replace(b"004217", b"0042x7", 1)
    error = refusal(CEIBO, data)
    assert error.element == "11"
    assert "11" not in error.partial
    assert error.partial["37"] == "626511004217"


def test_nothing_is_sound_behind_a_broken_boundary() -> None:
    data = CEIBO.encode(HOLD).replace(b"040001", b"0x0001", 1)
    error = refusal(CEIBO, data)
    assert (error.element, error.reason) == ("32", "its length is not a number")
    assert error.partial == {"mti": "0100", "7": "0922143015", "11": "004217"}


@pytest.mark.parametrize(
    ("change", "element", "reason"),
    [
        (lambda d: d[:3], "mti", "the message ends inside it"),
        (lambda d: b"01x0" + d[4:], "mti", "the message type is not four digits"),
        (lambda d: d[:9], "bitmap", "the message ends inside it"),
        (lambda d: d + b"0", "", "bytes follow the last element"),
        (lambda d: d[:4] + b"\x7f" + d[5:], "2", "the dialect does not define it"),
        (lambda d: d.replace(b"040001", b"050001"), "32", "its length is above the most"),
        (lambda d: d.replace(b"040001", b"000001"), "32", "its length is below the least"),
        (lambda d: d.replace(b"03068", b"03468"), "48.03", "it ends inside a part"),
        (lambda d: d.replace(b"03068", b"03x68"), "48.03", "its length is not a number"),
        (lambda d: d.replace(b"03068", b"0 068"), "48.03", "wrong tag"),
        (lambda d: d.replace(b"CI4567890", b"CI456789\x07"), "48.01", "wrong character"),
        (lambda d: d.replace(b"B1   ", b"B1  x"), "42", "wrong character"),
    ],
)
def test_what_is_refused(change: Any, element: str, reason: str) -> None:
    error = refusal(CEIBO, change(CEIBO.encode(HOLD)))
    # A tag is only named once it has been read.
    assert error.element in (element, element.partition(".")[0], "48.01")
    assert error.reason == reason


def test_no_value_is_in_an_error() -> None:
    secret = "4111111111111111"
    for bad in ({"2": secret + "x"}, {"2": secret * 2}, {"3": secret}, {"11": int(secret)}):
        with pytest.raises(FormatError) as caught:
            small().encode({"mti": "0200", **bad})
        assert secret not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("elements", "element"),
    [
        ({"3": "010000"}, "mti"),
        ({"mti": "01000"}, "mti"),
        ({"mti": 100}, "mti"),
        ({"mti": "0100", "3": "01000"}, "3"),
        ({"mti": "0100", "3": "0100000"}, "3"),
        ({"mti": "0100", "3": "01000a"}, "3"),
        ({"mti": "0100", "3": 10000}, "3"),
        ({"mti": "0100", "3": "01000٣"}, "3"),
        ({"mti": "0100", "64": "xx"}, "64"),
        ({"mti": "0100", "64": b"1234567"}, "64"),
        ({"mti": "0100", "5": "1"}, "5"),
        ({"mti": "0100", "03": "1"}, "03"),
        ({"mti": "0100", "193": "1"}, "193"),
        ({"mti": "0100", 3: "010000"}, "int"),
        ({"mti": "0100", "1": "x"}, "1"),
        ({"mti": "0100", "48": {"1": "x"}}, "48"),
        ({"mti": "0100", "48": {"01": 7}}, "48.01"),
        ({"mti": "0100", "48": 7}, "48"),
        ({"mti": "0100", "48": ["x"]}, "48"),
        ({"mti": "0100", "48": {"03": "x" * 401}}, "48.03"),
        ({"mti": "0100", "48.01.02": "x"}, "48.01"),
        ({"mti": "0100", "48": {"98": "x" * 998}}, "48"),
        ({"mti": "0100", "48": "not tags"}, "48"),
    ],
)
def test_what_is_not_encoded(elements: dict[Any, Any], element: str) -> None:
    with pytest.raises(FormatError) as caught:
        CEIBO.encode(elements)
    assert caught.value.element == element


def test_references_are_given_back_when_encoding_fails() -> None:
    value = "x" * 300
    before = sys.getrefcount(value)
    for _ in range(50):
        with pytest.raises(FormatError):
            CEIBO.encode({**HOLD, "48": {"01": value}, "38": value})
        with pytest.raises(FormatError):
            CEIBO.encode({"mti": "0100", "38": value, "nonsense": "1"})
    assert sys.getrefcount(value) == before


def test_lengths_of_peers_allocate_nothing() -> None:
    spec = {"name": "big", "elements": {"2": {"content": "ans", "prefix": "LLLL", "max": 9999}}}
    dialect = Dialect.from_dict(spec)
    data = dialect.encode({"mti": "0100"})[:4] + b"\x40" + bytes(7) + b"9999" + b"x"
    tracemalloc.start()
    try:
        for _ in range(200):
            dialect.decode_many([data])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_nothing_leaks() -> None:
    good = CEIBO.encode(HOLD)
    frames = [good, good[:-1], good.replace(b"01009", b"98009")]

    def work() -> None:
        for one in CEIBO.decode_many(frames):
            if isinstance(one, Message):
                one.to_dict()
                one.masked()
                one.answer({"39": "00"}, mac=True)
                one.replaced({"48.01": "CI1"})

    work()
    tracemalloc.start()
    try:
        work()
        first = tracemalloc.get_traced_memory()[0]
        for _ in range(300):
            work()
        assert tracemalloc.get_traced_memory()[0] < first + 20_000
    finally:
        tracemalloc.stop()


# ---- vectors, damaged


@pytest.mark.parametrize("case", VECTORS["vectors"], ids=lambda case: case["id"])
def test_every_flipped_bit_is_refused_or_encodes_again(case: dict[str, Any]) -> None:
    dialect = Dialect.from_dict(dialect_of(case["spec"], VECTORS["specs"][case["spec"]]))
    data = bytes.fromhex(case["hex"])
    damaged = [
        data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        for at in range(len(data))
        for bit in range(8)
    ]
    for wire, found in zip(damaged, dialect.decode_many(damaged), strict=True):
        if isinstance(found, Message):
            assert dialect.encode(found) == wire
        else:
            assert 0 <= found.offset <= len(wire)


def test_vectors_damaged_at_random() -> None:
    """Several wounds each: FormatError and nothing else, or a message that every use survives."""
    source = random.Random(8583)
    dialects = {
        name: Dialect.from_dict(dialect_of(name, layout))
        for name, layout in VECTORS["specs"].items()
    }
    whole = [(dialects[v["spec"]], bytes.fromhex(v["hex"])) for v in VECTORS["vectors"]]
    whole += [(CEIBO, CEIBO.encode({**HOLD, "48": {**HOLD["48"], "97": b"\x00"}}))] * 20
    for _ in range(400_000 * FUZZ or 6_000):
        dialect, data = source.choice(whole)
        wire = bytearray(data)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(wire) or 1)
            wire[at : at + source.randint(0, 3)] = source.randbytes(source.randint(0, 3))
        (found,) = dialect.decode_many([bytes(wire)])
        if isinstance(found, FormatError):
            continue
        assert dialect.encode(found) == wire
        found.masked()
        assert found.replaced({}) == wire
        if int(found.mti[2]) % 2 == 0:
            dialect.decode(found.answer({}))


# ---- nesting


def test_templates_in_templates_end() -> None:
    dialect = small(e55={"composite": "ber-tlv", "prefix": "LLL", "max": 999})
    value: Any = {"9F26": b"\x01"}
    for _ in range(5):
        value = {"70": value}
    message = dialect.decode(dialect.encode({"mti": "0100", "55": value}))
    assert message.get("55.70.70.70.70.70.9F26") == b"\x01"
    assert message.unknown_tags == 6
    bomb = b""
    for _ in range(100):
        size = bytes([len(bomb)]) if len(bomb) < 128 else b"\x81" + bytes([len(bomb)])
        bomb = b"\x70" + size + bomb
    with pytest.raises(FormatError, match="nested too deep"):
        dialect.encode({"mti": "0100", "55": bomb})
    data = dialect.encode({"mti": "0100"})[:4] + bytes(6) + b"\x02\x00"
    error = refusal(dialect, data + f"{len(bomb):03}".encode() + bomb)
    assert error.reason == "nested too deep"


def test_a_value_that_holds_itself_ends() -> None:
    dialect = small(e55={"composite": "ber-tlv", "prefix": "LLL", "max": 999})
    endless: dict[str, Any] = {}
    endless["70"] = endless
    with pytest.raises(FormatError, match="nested too deep"):
        dialect.encode({"mti": "0100", "55": endless})


def test_bad_tags_of_ber() -> None:
    dialect = small(e55={"composite": "ber-tlv", "prefix": "LLL", "max": 999})
    for inner in ("00", "5F", "5F2A", "9F818181", "DF8080", "5A8105" + "00" * 5, "5A80", "5A0241"):
        data = dialect.encode({"mti": "0100"})[:4] + bytes(6) + b"\x02\x00"
        inside = bytes.fromhex(inner)
        assert refusal(dialect, data + f"{len(inside):03}".encode() + inside).element[:2] == "55"


# ---- answers and MACs


def test_an_answer_echoes_what_its_dialect_says() -> None:
    request = CEIBO.decode(CEIBO.encode(HOLD))
    answer = CEIBO.decode(request.answer({"39": "00", "38": "A1B2C3"}))
    expected = {key: HOLD[key] for key in ("3", "4", "7", "11", "37", "41", "49")}
    assert dict(answer.items()) == {**expected, "39": "00", "38": "A1B2C3"}
    assert answer.mti == "0110"
    assert "3" not in CEIBO.decode(request.answer({}, drop=["3", "4"]))
    assert CEIBO.decode(request.answer({"mti": "0130"})).mti == "0130"


@pytest.mark.parametrize(
    ("request_mti", "answer_mti"),
    [
        ("0100", "0110"), ("0101", "0110"), ("0220", "0230"), ("0221", "0230"), ("0421", "0430"),
        ("0600", "0610"), ("0800", "0810"), ("0402", "0412"), ("0423", "0432"), ("1240", "1250"),
    ],
)  # fmt: skip
def test_the_type_of_an_answer(request_mti: str, answer_mti: str) -> None:
    request = CEIBO.decode(CEIBO.encode({"mti": request_mti, "11": "000001"}))
    assert CEIBO.decode(request.answer({"39": "00"})).mti == answer_mti


def test_an_answer_is_not_answered() -> None:
    with pytest.raises(FormatError, match="not that of a request"):
        CEIBO.decode(CEIBO.encode({"mti": "0110"})).answer({})


@pytest.mark.parametrize("more", [{}, {"70": "001"}])
def test_a_message_made_for_its_mac(more: dict[str, str]) -> None:
    body = CEIBO.encode_for_mac({**HOLD, **more})
    (data,) = CEIBO.sealed([body], [b"12345678"])
    message = CEIBO.decode(data)
    assert message.mac == b"12345678"
    assert message.mac_input == body
    assert ("128" in message) == bool(more)
    assert ("64" in message) != bool(more)
    forward = message.replaced({"11": "000002"}, mac=True)
    again = CEIBO.decode(forward + b"87654321")
    assert (again.mac, again["11"]) == (b"87654321", "000002")
    answer = CEIBO.decode(message.answer({"39": "00", **more}, mac=True) + b"abcdefgh")
    assert answer.mac == b"abcdefgh"
    assert message.replaced({}) == data


def test_a_mac_that_is_not_the_last_element_is_none() -> None:
    data = CEIBO.encode({**HOLD, "64": b"12345678", "70": "001"})
    assert CEIBO.decode(data).mac is None
    assert CEIBO.decode(data).mac_input == data


def test_a_mac_in_hexadecimal_digits() -> None:
    dialect = Dialect.load("iso87-ascii")
    body = dialect.encode_for_mac({"mti": "0800", "11": "000001"})
    (data,) = dialect.sealed([body], [bytes(range(8))])
    assert data == body + b"0001020304050607"
    assert dialect.decode(data).mac == bytes(range(8))
    with pytest.raises(FormatError):
        dialect.mac_field(b"1234567")


def test_no_place_for_a_mac() -> None:
    dialect = Dialect.from_dict({**SPEC, "mac": [64]})
    assert dialect.encode_for_mac({"mti": "0800"})
    with pytest.raises(FormatError, match="no place"):
        dialect.encode_for_mac({"mti": "0800", "70": "001"})


def test_a_changed_message_keeps_every_other_byte() -> None:
    data = CEIBO.encode({**HOLD, "64": b"12345678"})
    message = CEIBO.decode(data)
    assert message.replaced({}) == data
    assert message.replaced({"11": "999999"}) == data.replace(b"004217", b"999999", 1)
    without = CEIBO.decode(message.replaced({"48.03": None}, drop=["64"]))
    assert "48.03" not in without
    assert without["48.01"] == "CI4567890"
    assert "64" not in without
    forwarded = CEIBO.decode(message.replaced({"mti": "0101", "70": "001"}))
    assert (forwarded.mti, forwarded["70"], forwarded["64"]) == ("0101", "001", b"12345678")


def test_native_splices_are_those_of_python() -> None:
    body = CEIBO.encode_for_mac(HOLD) + b"12345678"
    message = CEIBO.decode(body)
    for mac in (False, True):
        changes = {"39": "00", "38": "A1B2C3", "4": "000000000001"}
        wire = {key: value.encode() for key, value in changes.items()}
        assert message.spliced(wire, mac=mac) == message.answer(changes, mac=mac)
        assert message.spliced(wire, answer=False, mac=mac) == message.replaced(changes, mac=mac)
    tags = {"48": b"10006ACTIVA"}
    assert message.spliced(tags) == message.answer({"48": {"10": "ACTIVA"}})
    for bad in ({"39": b"0"}, {"39": b"000"}, {"5": b"1"}, {"48": b"x" * 1000}):
        with pytest.raises(ValueError, match="spliced"):
            message.spliced(bad)
    assert message.wire("48.03") == TOKEN.encode()
    assert message.wire("mac") == b"12345678"
    assert message.wire("42") == b"B1".ljust(15)
    message = CEIBO.decode(CEIBO.encode({**HOLD, "70": "001", "64": b"12345678"}))
    for missing in ("39", "48.05", "42.1", "x", "mti", "mac"):
        with pytest.raises(KeyError):
            message.wire(missing)


@pytest.mark.parametrize("name", Dialect.shipped())
def test_native_splices_in_every_dialect(name: str) -> None:
    dialect = Dialect.load(name)
    trace, terminal = ("1".zfill(12), "7" * 16) if "2003" in name else ("1".zfill(6), "7" * 8)
    elements = {"mti": "0200", "3": "010000", "11": trace, "41": terminal}
    message = dialect.decode(dialect.encode(elements))
    code = {"iso93-ascii": "000", "iso2003-ascii": "0000"}.get(name, "00")
    answer = dialect.decode(message.answer({"39": code}))
    assert message.spliced({"39": answer.wire("39")}) == answer.raw
    assert message.spliced({}, answer=False) == message.raw
    for number, value in {"3": b"", "11": b"1", "41": b"x" * 100, "102": b"x" * 29}.items():
        with pytest.raises(ValueError, match="spliced"):
            message.spliced({number: value})


# ---- bitmaps


def test_an_empty_second_bitmap_stays() -> None:
    dialect = small()
    data = b"0800" + bytes.fromhex("80200000000000000000000000000000") + b"000001"
    message = dialect.decode(data)
    assert message["1"] is True
    assert message.to_dict() == {"mti": "0800", "1": True, "11": "000001"}
    assert dialect.encode(message) == data
    assert message.replaced({"11": "000002"}) == data[:-1] + b"2"


@pytest.mark.parametrize("tertiary", ["follows", "element-65"])
def test_a_third_bitmap(tertiary: str) -> None:
    elements = {**SPEC["elements"], "130": {"content": "n", "length": 2}}
    dialect = Dialect.from_dict({**SPEC, "elements": elements, "tertiary": tertiary})
    message = {"mti": "0800", "11": "000001", "70": "301", "130": "77"}
    data = dialect.encode(message)
    first, second = bytes.fromhex("8020000000000000"), bytes.fromhex("8400000000000000")
    third = bytes.fromhex("4000000000000000")
    if tertiary == "follows":
        assert data == b"0800" + first + second + third + b"000001" + b"301" + b"77"
    else:
        assert data == b"0800" + first + second + b"000001" + third + b"301" + b"77"
    found = dialect.decode(data)
    assert found.to_dict() == message
    assert found.replaced({"70": "001"}) == data.replace(b"301", b"001")
    empty = dialect.encode({"mti": "0800", "11": "000001", "65": True})
    expected = {"mti": "0800", "11": "000001", "1": True, "65": True}
    assert dialect.decode(empty).to_dict() == expected
    assert dialect.encode(expected) == empty


def test_a_bitmap_of_fixed_size_has_an_ordinary_first_bit() -> None:
    elements = {**SPEC["elements"], "1": {"content": "n", "length": 1}}
    dialect = Dialect.from_dict({**SPEC, "elements": elements, "bitmap_fixed": 16})
    data = dialect.encode({"mti": "0800", "1": "7", "11": "000001"})
    assert data == b"0800" + bytes.fromhex("80200000000000000000000000000000") + b"7000001"
    assert dialect.decode(data).to_dict() == {"mti": "0800", "1": "7", "11": "000001"}
    plain = Dialect.from_dict({**SPEC, "bitmap_fixed": 16})
    assert refusal(plain, data).element == "1"


# ---- masks


def test_secrets_are_masked_in_every_printed_form() -> None:
    bank = Dialect.load("bank")
    message = bank.decode(
        bank.encode(
            {
                "mti": "0200", "2": "4111111111111111", "14": "2812",
                "35": "4111111111111111=28121011234567890", "52": bytes(range(8)),
                "55": bytes.fromhex("9F2608FFFFFFFFFFFFFFFF"), "102": "0012345678",
                "48": {"03": TOKEN, "24": "987", "25": "TSY", "77": "unknown"},
            }
        )
    )  # fmt: skip
    masked = message.masked()
    assert masked["2"] == "411111******1111"
    assert masked["35"] == "411111******1111***"
    assert masked["48"] == {"03": "***", "24": "***", "25": "TSY", "77": "***"}
    assert masked["102"] == "***678"
    for key in ("14", "52", "55"):
        assert masked[key] == "***"
    everything = repr(message) + str(message) + json.dumps(masked)
    for secret in ("4111111111111111", "2812", TOKEN, "987", "unknown", "FFFF"):
        assert secret not in everything


@pytest.mark.parametrize(
    ("track", "masked"),
    [
        ("B4111111111111111^DOE/J^2812101", "411111******1111***"),
        ("411111111111", "411111**1111"),
        ("41111111111", "***"),
        ("XX4111111111111111", "***"),
        ("", "***"),
    ],
)
def test_a_track_shows_the_ends_of_its_card(track: str, masked: str) -> None:
    dialect = small(e45={"content": "ans", "prefix": "LL", "max": 76})
    message = dialect.decode(dialect.encode({"mti": "0200", "45": track}))
    assert message.masked()["45"] == masked


# ---- dialects


@pytest.mark.parametrize("name", Dialect.shipped())
def test_every_shipped_dialect_compiles(name: str) -> None:
    dialect = Dialect.load(name)
    assert dialect.name == name
    assert dialect.description
    assert all(dialect.titles[str(number)] for number in dialect.elements)
    body = dialect.encode_for_mac({"mti": "0800", "11": "1".zfill(12 if "2003" in name else 6)})
    (data,) = dialect.sealed([body], [bytes(8)])
    assert dialect.decode(data).mac == bytes(8)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("iso87-ascii", "jpos-iso87ascii"), ("iso87-binary", "jpos-iso87binary"),
        ("iso87-ebcdic", "iso87-ebcdic"), ("iso93-ascii", "jpos-iso93ascii"),
    ],
)  # fmt: skip
def test_shipped_dialects_read_the_vectors_of_their_kind(ours: str, theirs: str) -> None:
    """Those of realistic content; the test files of jPOS fill elements with anything."""
    dialect = Dialect.load(ours)
    chosen = [v for v in VECTORS["vectors"] if v["spec"] == theirs and "jpos-test" not in v["id"]]
    assert len(chosen) >= 3
    for case in chosen:
        message = dialect.decode(bytes.fromhex(case["hex"]))
        assert message.mti == case["mti"]
        for key, value in case["fields"].items():
            found = message[key]
            assert (found.hex().upper() if isinstance(found, bytes) else found) == value, key
        assert dialect.encode(message) == message.raw


def test_mistakes_are_told_all_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(
        'name = "wrong"\n'
        'mti = "utf-8"\n'
        "echo = [3, 4]\n"
        "\n"
        "[elements]\n"
        '3 = { content = "n", length = 6, max = 7 }\n'
        '4 = { content = "q", length = 12 }\n'
        '5 = { content = "n", lenght = 12 }\n'
        '200 = { content = "n", length = 1 }\n'
        '52 = { content = "b", length = 8, mask = "shown" }\n'
        "\n"
        "[elements.48]\n"
        'prefix = "LLL"\n'
        "max = 1000\n"
        "\n"
        "[elements.48.tags]\n"
        '001 = { content = "n", length = 1 }\n'
    )
    with pytest.raises(DialectError) as caught:
        Dialect.load(file)
    told = {(m.line, m.where) for m in caught.value.mistakes}
    assert told == {
        (2, "mti"), (6, "elements.3.max"), (7, "elements.4.content"),
        (8, "elements.5.lenght"), (8, "elements.5.max"), (8, "elements.5.prefix"),
        (9, "elements.200"), (10, "elements.52.mask"),
        (14, "elements.48.max"), (17, "elements.48.tags.001"),
    }  # fmt: skip
    assert caught.value.line == 2
    assert "wrong.toml:8: elements.5.lenght: there is no such key; perhaps length" in str(
        caught.value
    )


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text()
    file = tmp_path / "acme.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    dialect = Dialect.load(file)
    message = {
        "mti": "0200", "4": "000000001000", "42": "SHOP", "48": {"01": "CI1", "02": ["1", "2"]},
        "60": "123", "62": {"1": "ABCDEFGH", "2": "000000000012"}, "63": {"9F26": bytes(8)},
    }  # fmt: skip
    data = dialect.encode(message)
    assert dialect.decode(data).to_dict() == message
    assert b"\x00\x00\x00\x00\x10\x00SHOP           " in data
    assert b"\x03\x12\x30" + b"ABCDEFGH000000000012" + b"011\x9f\x26\x08" in data
    assert 55 not in dialect.elements
    assert dialect.framing is not None
    assert dialect.framing.header_kind == "tpdu"


def test_no_toml_and_no_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("name = 'x'\nmti = = 2\n")
    with pytest.raises(DialectError) as caught:
        Dialect.load(file)
    assert caught.value.line == 2
    with pytest.raises(DialectError, match=r"there is no such dialect.*iso87-ascii"):
        Dialect.load("nonsense")
    with pytest.raises(DialectError):
        Dialect.load(tmp_path / "missing.toml")


def test_a_dialect_extends_another(tmp_path: Path) -> None:
    above = tmp_path / "above.toml"
    below = tmp_path / "below.toml"
    below.write_text('extend = "iso87-ascii"\nremove = [55]\n[elements]\n2 = { max = 16 }\n')
    above.write_text(
        'extend = "below.toml"\nname = "above"\nbitmap = "binary"\n'
        '[elements]\n32 = { length = 6 }\n60 = { content = "b", prefix = "LL", max = 9 }\n'
    )
    dialect = Dialect.load(above)
    assert dialect.name == "above"
    assert 55 not in dialect.elements
    data = dialect.encode({"mti": "0100", "2": "4111", "32": "123456", "60": b"\xff"})
    assert data == b"0100" + bytes.fromhex("4000000100000010") + b"044111" + b"123456" + b"01FF"
    above.write_text('extend = "above.toml"\n')
    with pytest.raises(DialectError, match="extend one another"):
        Dialect.load(above)
    above.write_text('name = "x"\nextend = "below"\n')
    with pytest.raises(DialectError) as caught:
        Dialect.load(above)
    assert caught.value.line == 2
    above.write_text('extend = "iso87-ascii"\nremove = [200]\n')
    with pytest.raises(DialectError, match="has no element 200"):
        Dialect.load(above)


def test_a_mistake_in_what_is_extended_is_told_there(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text('mti = "ascii"\n[elements]\n2 = { content = "n" }\n')
    (tmp_path / "above.toml").write_text('extend = "below.toml"\nbitmap = "hexa"\n')
    with pytest.raises(DialectError) as caught:
        Dialect.load(tmp_path / "above.toml")
    places = {(m.source, m.line) for m in caught.value.mistakes}
    assert places == {("above.toml", 2), ("below.toml", 3)}


ELEMENT = {"content": "n", "length": 6}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"elements": {}}, "elements"),
        ({"elements": {"2": 7}}, "elements.2"),
        ({"elements": {"02": ELEMENT}}, "elements.02"),
        ({"elements": {"1": ELEMENT}}, "elements.1"),
        ({"elements": {"129": ELEMENT}}, "elements.129"),
        ({"bitmap_fixed": 12}, "bitmap_fixed"),
        ({"bitmap_fixed": 16, "tertiary": "follows"}, "tertiary"),
        ({"code_page": "nonsense"}, "code_page"),
        ({"code_page": "utf-8"}, "code_page"),
        ({"mac": [3]}, "mac"),
        ({"mac": [64]}, "mac"),
        ({"echo": [70]}, "echo"),
        ({"framing": {"length": "bin", "bytes": 9}}, "framing.bytes"),
        ({"extra": 1}, "extra"),
        ({"message_bytes_max": 1 << 30}, "message_bytes_max"),
    ],
)
def test_what_does_not_compile(change: dict[str, Any], where: str) -> None:
    with pytest.raises(DialectError) as caught:
        Dialect.from_dict({"name": "x", "elements": {"3": ELEMENT}, **change})
    assert where in {m.where for m in caught.value.mistakes}


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ({"content": "n"}, "max"),
        ({"content": "n", "max": 9}, "prefix"),
        ({"content": "n", "max": 100, "prefix": "LL"}, "max"),
        ({"content": "n", "max": 300, "prefix": "LL", "prefix_encoding": "binary"}, "max"),
        ({"content": "n", "max": 9, "min": 10, "prefix": "L"}, "min"),
        ({"content": "n", "length": 0}, "length"),
        ({"content": "x+n", "length": 1}, "length"),
        ({"content": "n", "length": 6, "encoding": "binary"}, "encoding"),
        ({"content": "b", "length": 6, "encoding": "bcd"}, "encoding"),
        ({"content": "n", "length": 6, "odd": "left"}, "odd"),
        ({"content": "n", "max": 6, "prefix": "L", "pad": "left"}, "pad"),
        ({"content": "ans", "length": 6, "strip": True}, "strip"),
        ({"content": "ans", "length": 6, "pad": "left", "fill": "xx"}, "fill"),
        ({"content": "n", "length": 6, "mask": "some"}, "mask"),
        ({"content": "n", "length": 6, "parts": {"1": ELEMENT}}, "content"),
        ({"length": 6, "parts": {"2": ELEMENT, "x": ELEMENT}}, "parts.x"),
        ({"length": 9, "parts": {"1": {"content": "n", "max": 6}, "2": ELEMENT}}, "parts.1.prefix"),
        ({"prefix": "LL", "max": 9, "tags": {"1": ELEMENT}}, "tags.1"),
        (
            {"prefix": "LL", "max": 9, "composite": "ber-tlv", "tags": {"9f26": ELEMENT}},
            "tags.9f26",
        ),
        ({"prefix": "LL", "max": 9, "composite": "ber-tlv", "tags": {"5F": ELEMENT}}, "tags.5F"),
        ({"prefix": "LL", "max": 9, "composite": "positional"}, "parts"),
    ],
)
def test_what_is_no_element(field: dict[str, Any], key: str) -> None:
    with pytest.raises(DialectError) as caught:
        Dialect.from_dict({"name": "x", "elements": {"60": field}})
    assert f"elements.60.{key}" in {m.where for m in caught.value.mistakes}
