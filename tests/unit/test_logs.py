"""Logging: stderr only, one line an event, nothing secret, nothing forged, nothing unbounded."""

import io
import json
import logging
import re
import subprocess
import sys
import time

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from switch.ops import logs
from switch.ops.logs import RateLimit
from switch.ops.masking import (
    MASKED,
    SEARCHED_CHARS_MAX,
    TEXT_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    luhn,
    masked,
    masked_text,
    masked_traceback,
)

PAN = "4539148803436467"
KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
SEED = "AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ"


@pytest.fixture
def out():
    """A stream to log to; logging is put back as it was."""
    yield io.StringIO()
    structlog.reset_defaults()
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, logs._StandardFormatter):
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


# ---- masking by name -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["token", "key", "nonce", "mac", "seed", "Seeds", "peer_key", "macKey", "x-api-token", "keys",
     "master.key", "password", "otpauth", "supervisor_code", "vale", "client_nonce", "declaration"],
)  # fmt: skip
def test_t21_secrets_by_name(key) -> None:
    assert masked(key, "004512") == MASKED
    assert masked(key, 4512) == MASKED
    assert masked(key, b"004512") == MASKED
    assert masked(key, ["004512"]) == [MASKED]
    assert masked(key, {"a": "004512"}) == MASKED


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("document", "4123456", "****456"),
        ("phone", "+595981123456", "****456"),
        ("card", "card-000042", "****042"),
        ("depositor", "CI4567890", "****890"),
        ("name", "Ana María", "A*** MA***"),
        ("holder_name", "Ana María", "A*** MA***"),
        ("pan", PAN, "453914******6467"),
        ("authorization", "A7K2Q9", "A7K2Q9"),
        ("authorization", "Bearer abcdef", MASKED),
    ],
)
def test_s06_people_and_cards_by_name(key, value, shown) -> None:
    assert masked(key, value) == shown


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("monkey", "banana"),
        ("code", "55"),
        ("key_version", 2),
        ("file_name", "CONC_0012_20260101_1.csv"),
        ("document_type", "CI"),
        ("terminal", "00000017"),
        ("reference", "00120000123420260101000123"),
        ("operation", "260010000123"),
        ("at_ns", 1795352400000000002),
        ("card_count", 3),
        ("address", "127.0.0.1:7001"),
        ("ok", True),
        ("nothing", None),
        ("ratio", 0.5),
    ],
)
def test_harmless_values_stay(key, value) -> None:
    assert masked(key, value) == value


# ---- masking by pattern --------------------------------------------------------------------------


def test_luhn() -> None:
    assert luhn(PAN)
    assert luhn("6011000990139424")
    assert not luhn("4539148803436468")


@pytest.mark.parametrize(
    "text",
    [
        PAN,
        f"card {PAN}.",
        "4539 1488 0343 6467",
        "4539-1488-0343-6467",
        f"12 {PAN} 34",
        "20 26 4539 1488 0343 6467 1234",
        f"x{PAN}y",
        f"{PAN} {PAN}",
    ],
)
def test_card_numbers_in_any_text(text) -> None:
    shown = masked_text(text)
    assert PAN not in re.sub(r"\D", "", shown)
    assert "453914******6467" in shown or MASKED in shown


def test_overlapping_card_numbers_show_nothing() -> None:
    # By chance the 18 digits pass Luhn too, and only one of the two can be a card.
    assert luhn("26" + PAN)
    assert masked_text("26 4539 1488 0343 6467 1234") == f"{MASKED} 1234"
    assert masked_text("27 4539 1488 0343 6467 1234") == "27 453914******6467 1234"


@pytest.mark.parametrize(
    "text",
    ["00120000123420260101000123", "260010000123", "4539148803436468", "2026-11-22T13:00:00.123Z"],
)
def test_other_numbers_stay(text) -> None:
    assert masked_text(text) == text


def test_card_number_as_an_int() -> None:
    assert masked("value", int(PAN)) == "453914******6467"
    assert masked("value", int(PAN) + 1) == int(PAN) + 1
    assert masked("value", 1 << 64) == MASKED


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.upper(),
        f"0x{KEY}",
        f"got {KEY}, want other",
        KEY[:32],
        SEED,
        f"otpauth://totp/x:y?secret={SEED[:16]}",
        '{"op":"cash_out","token":"004512","amount":1}',
        "{'token': '004512'}",
        "token=004512",
        "bad token: 004512",
        "supervisor_code=004512&x=1",
        'document="4123456"',
        "peer_key = b'004512'",
        'x "phone" : "+595981123456"',
    ],
)
def test_t21_secrets_inside_texts(text) -> None:
    shown = masked_text(text)
    assert MASKED in shown
    for secret in (KEY[:32], SEED[:16], "004512", "4123456", "595981123456"):
        assert secret.lower() not in shown.lower()


def test_what_is_around_a_secret_stays() -> None:
    assert (
        masked_text('{"op":"cash_out","token":"004512","amount":150000}')
        == f'{{"op":"cash_out","token":{MASKED},"amount":150000}}'
    )
    assert masked_text("card:000042") == "card:000042"


# ---- bounds and forged lines ---------------------------------------------------------------------


def test_s05_control_characters_are_escaped() -> None:
    assert masked_text("a\nb\r\x1b[31m\x85\u2028\u202ec\ud800") == (
        "a\\nb\\r\\x1b[31m\\x85\\u2028\\u202ec?"
    )


def test_long_values_are_cut() -> None:
    assert len(masked_text("ñ" * 10_000)) == TEXT_CHARS_MAX
    assert len(masked("items", list(range(1000)))) == 64
    deep: object = "end"
    for _ in range(50):
        deep = {"a": [deep]}
    assert "end" not in json.dumps(masked("deep", deep))
    assert len(masked("key" * 5000, {"k" * 500: 1})) == 1
    assert max(map(len, masked("x", {"k" * 500: 1}))) == 64


def test_no_half_card_number_at_a_cut() -> None:
    text = " " * (SEARCHED_CHARS_MAX - 12 - 600) + "\n" * 600 + PAN
    assert PAN[:12] not in masked_text(text, 10**6)


@pytest.mark.timed
@pytest.mark.parametrize(
    "text",
    ["a-" * 40_000, "token" * 15_000, "1 " * 40_000, "\"'" * 40_000, "f" * 80_000,
     "token=" * 12_000, "token" + " " * 70_000, "A" * 70_000, "1234 5678 9012 " * 5000,
     "otpauth:" * 9000],
    ids=range(10),
)  # fmt: skip
def test_s04_no_text_is_expensive(text) -> None:
    began = time.thread_time()  # what others do meanwhile is not its expense
    masked_text(text)
    assert time.thread_time() - began < 1.0


def test_tracebacks_keep_lines_but_begin_none() -> None:
    text = masked_traceback(
        "Traceback:\n  File x\nValueError: a\x1b\n2026-11-22T00:00:00Z info forged"
    )
    assert all(line.startswith("    ") for line in text.splitlines())
    assert "\x1b" not in text
    assert len(masked_traceback("x\n" * 50_000)) < 4 * TRACEBACK_CHARS_MAX


@given(st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
), st.text())  # fmt: skip
def test_anything_becomes_printable_and_encodable(value, key) -> None:
    shown = json.dumps(masked(key, value))
    assert shown.isprintable()
    assert len(shown) < 200_000


# ---- the pipeline --------------------------------------------------------------------------------


def test_json_lines(out) -> None:
    logs.configure("info", "json", out)
    log = logs.logger("net")
    log.debug("unseen")
    log.warning("peer_refused", peer="0012", document="4123456", token="004512", note=f"pan {PAN}")
    (line,) = lines(out)
    timestamp = line.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", str(timestamp))
    assert line == {
        "area": "net",
        "event": "peer_refused",
        "level": "warning",
        "peer": "0012",
        "document": "****456",
        "token": MASKED,
        "note": "pan 453914******6467",
    }


def test_console_lines(out) -> None:
    logs.configure("debug", "console", out)
    logs.logger("net").info("opened", peer="0012", text="two words\nforged", empty="")
    (line,) = out.getvalue().splitlines()
    assert line.endswith(r"info    net opened peer=0012 text='two words\\nforged' empty=''")


@pytest.mark.parametrize("form", ["json", "console"])
def test_errors_show_no_secret_and_forge_no_line(out, form) -> None:
    logs.configure("info", form, out)
    token = "004512"
    try:
        raise ValueError(f"token={token}\n2026-11-22T00:00:00Z info net forged")
    except ValueError:
        logs.logger("net").exception("failed")
    text = out.getvalue()
    assert token not in text
    assert "ValueError" in text
    if form == "json":
        assert len(lines(out)) == 1
    else:
        assert all(line.startswith("    ") for line in text.splitlines()[1:])


def test_standard_logging_goes_the_same_way(out) -> None:
    logs.configure("info", "json", out)
    other = logging.getLogger("library.part")
    other.info("every request")
    other.warning("bad %s for %s", "token=004512", "x")
    try:
        raise RuntimeError(PAN)
    except RuntimeError:
        other.exception("failed")
    first, second = lines(out)
    assert first["event"] == f"bad token={MASKED} for x"
    assert first["area"] == "library.part"
    assert first["level"] == "warning"
    assert PAN not in json.dumps(second)


def test_a_librarys_wrong_format_costs_no_line(out) -> None:
    logs.configure("info", "json", out)
    (handler,) = (
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler.formatter, logs._StandardFormatter)
    )
    handler.handle(logging.makeLogRecord({"msg": "two %s %s", "args": ("one",), "name": "x"}))
    assert lines(out)[0]["event"] == "two %s %s"


def test_configuring_again_does_not_double_lines(out) -> None:
    logs.configure("info", "json", out)
    logs.configure("error", "json", out)
    logging.getLogger("library").warning("no")
    logging.getLogger("library").error("once")
    logs.logger("net").error("once")
    assert len(lines(out)) == 2


def test_nothing_on_stdout() -> None:
    program = (
        "import logging; from switch.ops import logs; logs.configure();"
        "logs.logger('net').error('one', name='Ana'); logging.getLogger('x').error('two')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == ""
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["one", "two"]


# ---- rate limit ----------------------------------------------------------------------------------


def test_a_burst_then_silence_then_the_count() -> None:
    limit = RateLimit(burst=2, window_s=60)
    assert [limit.admit("a", now) for now in (0, 1, 2, 3, 59)] == [0, 0, None, None, None]
    assert limit.admit("b", 3) == 0
    assert [limit.admit("a", now) for now in (60, 61, 62)] == [3, 0, None]


def test_keys_are_bounded_and_the_unused_goes_first() -> None:
    limit = RateLimit(burst=1, keys_max=2)
    assert limit.admit("a", 0) == limit.admit("b", 0) == 0
    assert limit.admit("a", 1) is None
    assert limit.admit("c", 2) == 0
    assert len(limit) == 2
    assert limit.admit("a", 3) is None
    assert limit.admit("b", 4) == 0
    assert limit.admit("x" * 10_000, 5) == 0
    assert max(map(len, limit._keys)) == 128


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=200))
def test_every_line_is_written_or_counted(steps) -> None:
    limit = RateLimit(burst=3, window_s=50)
    now = 0
    asked = written = counted = 0
    for key, passed in steps:
        now += passed
        asked += 1
        if (held_back := limit.admit(key, now)) is not None:
            written += 1
            counted += held_back
    waiting = sum(window.held_back for window in limit._keys.values())
    assert asked == written + counted + waiting


@pytest.mark.parametrize("wrong", [{"burst": 0}, {"window_s": 0}, {"keys_max": 0}])
def test_limits_of_the_rate_limit(wrong) -> None:
    with pytest.raises(ValueError, match="positive"):
        RateLimit(**wrong)
