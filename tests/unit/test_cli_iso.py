"""`troncal iso`: messages in and out, what is masked, and how mistakes are told."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from protocols.iso8583 import Dialect
from switch.cli import root

TOKEN = "5A" * 34
HOLD: dict[str, Any] = {
    "mti": "0100", "3": "010000", "4": "000000050000", "7": "0922143015", "11": "004217",
    "37": "626511004217", "41": "00000042",
    "48": {"01": "CI4567890", "03": TOKEN, "12": ["a,one", "b,two"], "99": "what"}, "49": "600",
    "64": "0102030405060708",
}  # fmt: skip
DATA = Dialect.load("ceibo").encode(HOLD)


def run(*args: str, stdin: bytes | str = b"", code: int = 0) -> Result:
    result = CliRunner().invoke(root, ["iso", *args], input=stdin)
    assert result.exit_code == code, result.output
    return result


def test_encode_and_decode_are_inverse() -> None:
    encoded = run("encode", "-d", "ceibo", json.dumps(HOLD)).stdout.strip()
    assert bytes.fromhex(encoded) == DATA
    decoded = run("decode", "-d", "ceibo", "--json", "--unmask", encoded).stdout
    assert json.loads(decoded)["elements"] == {k: v for k, v in HOLD.items() if k != "mti"}
    assert run("encode", "-d", "ceibo", stdin=decoded).stdout.strip() == encoded


@pytest.mark.parametrize(
    ("form", "stdin"),
    [
        ("auto", DATA.hex().encode()),
        ("auto", DATA.hex(" ", 8).upper().encode() + b"\n"),
        ("auto", base64.b64encode(DATA)),
        ("auto", DATA),
        ("binary", DATA),
        ("base64", base64.encodebytes(DATA)),
    ],
)
def test_messages_in_every_form(form: str, stdin: bytes, tmp_path: Path) -> None:
    found = json.loads(run("decode", "-d", "ceibo", "--json", "--form", form, stdin=stdin).stdout)
    assert found["elements"]["11"] == "004217"
    assert (found["mti"], found["bytes"], found["unknown_tags"]) == ("0100", len(DATA), 1)
    file = tmp_path / "message"
    file.write_bytes(stdin)
    again = run("decode", "-d", "ceibo", "--json", "--form", form, "-f", str(file)).stdout
    assert json.loads(again) == found


@pytest.mark.parametrize("command", ["decode", "explain"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_secrets_are_only_shown_when_asked(command: str, options: list[str]) -> None:
    shown = run(command, "-d", "ceibo", *options, DATA.hex()).output
    for secret in (TOKEN, "CI4567890", "what"):
        assert secret not in shown
    assert "626511004217" in shown
    unmasked = run(command, "-d", "ceibo", *options, "--unmask", DATA.hex()).output
    for secret in (TOKEN, "CI4567890", "what"):
        assert secret in unmasked


def test_a_table_for_people() -> None:
    shown = run("decode", "-d", "ceibo", DATA.hex()).stdout
    assert "0100: ISO 8583:1987, authorisation, request, acquirer" in shown
    assert "operation of sicoop" in shown
    assert "48.12" in shown


def test_explain_says_where_everything_is() -> None:
    rows = json.loads(run("explain", "-d", "ceibo", "--json", DATA.hex()).stdout)["elements"]
    assert [row["element"] for row in rows] == ["mti", "bitmap", *list(HOLD)[1:]]
    end = 0
    for row in rows:
        assert row["offset"] == end
        end += row["bytes"]
    assert end == len(DATA)
    assert rows[3] == {
        "element": "4", "offset": 18, "bytes": 12, "name": "amount", "format": "n 12",
        "value": "000000050000",
    }  # fmt: skip


def test_explain_shows_all_that_comes_before_the_fault() -> None:
    cut = DATA[:50].hex()
    result = run("explain", "-d", "ceibo", cut, code=1)
    assert "004217" in result.stdout
    assert "error: element 37, byte 46: the message ends inside it" in result.stderr
    found = json.loads(run("explain", "-d", "ceibo", "--json", cut, code=1).stdout)
    assert found["fault"]["element"] == "37"
    assert found["elements"][-1]["element"] == "11"


def test_what_does_not_fit_is_told_with_its_place() -> None:
    bad = DATA.replace(b"000000050000", b"00000005000x").hex()
    result = run("decode", "-d", "ceibo", bad, code=1)
    assert result.stdout == ""
    assert "error: element 4, byte 29: wrong character" in result.stderr
    assert "sound are: mti 0100" in result.stderr
    fault = json.loads(run("decode", "-d", "ceibo", "--json", bad, code=1).stdout)["fault"]
    assert (fault["element"], fault["offset"], fault["reason"]) == ("4", 29, "wrong character")
    assert fault["partial"]["11"] == "004217"
    wrong = json.dumps({**HOLD, "11": "secret"})
    result = run("encode", "-d", "ceibo", wrong, code=1)
    assert "element 11" in result.stderr
    assert "secret" not in result.output


def test_frames() -> None:
    framed = run("encode", "-d", "ceibo", "--framed", json.dumps(HOLD)).stdout.strip()
    assert bytes.fromhex(framed) == len(DATA).to_bytes(2, "big") + DATA
    assert json.loads(run("decode", "-d", "ceibo", "--framed", "--json", framed).stdout)["mti"]
    result = run("decode", "-d", "ceibo", "--framed", framed[:-2], code=1)
    assert "expected one frame" in result.stderr
    result = run("decode", "-d", "ceibo", "--framed", framed + "ffff", code=1)
    assert "no frame: the frame is too long" in result.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["decode", "-d", "nonsense", "00"], "there is no such dialect"),
        (["decode", "-d", "ceibo", "0g"], "neither hexadecimal nor base64"),
        (["decode", "-d", "ceibo", "--form", "hex", "0"], "no pairs of hexadecimal digits"),
        (["encode", "-d", "ceibo", "{"], "no JSON object"),
        (["encode", "-d", "ceibo", "[]"], "no JSON object"),
        (["encode", "-d", "ceibo", "{}"], "the message type"),
    ],
)
def test_mistakes(args: list[str], told: str) -> None:
    assert told in run(*args, code=1).stderr


def test_usage() -> None:
    run("decode", "00", code=2)
    run("decode", "-d", "ceibo", "-f", "x", "00", code=2)


def test_a_dialect_of_ones_own_and_its_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('extend = "ceibo"\nname = "own"\n[elements]\n5 = { content = "n" }\n')
    result = run("decode", "-d", str(file), "00", code=1)
    assert "own.toml:4: elements.5.max" in result.stderr
    file.write_text(
        'extend = "ceibo"\nname = "own"\n[elements]\n5 = { content = "n", length = 1 }\n'
    )
    encoded = run("encode", "-d", str(file), '{"mti":"0100","5":"7"}').stdout.strip()
    assert encoded == b"0100\x08\0\0\0\0\0\0\x007".hex()


def test_the_dialects() -> None:
    listed = json.loads(run("dialects", "--json").stdout)
    assert {row["dialect"] for row in listed} >= {"ceibo", "bank", "iso87-ascii"}
    assert "iso2003-ascii" in run("dialects").stdout
