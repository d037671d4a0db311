"""What `troncal webpay doctor` examines, and how an old kit's configuration reads as ours."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import httpx

from switch.cli.webpay_keys import shown
from switch.config import Config
from switch.ops.key_store import KeyStore, KeyStoreError
from switch.ops.keys import UnsealError
from switch.products.webpay_periods import Period, Periods

State = Literal["good", "note", "wrong"]
Connect = Callable[[str], str]

BITS_OWN: Final = 4096
BITS_MERCHANT_MIN: Final = 2048
CLOCK_OFF_S_MAX: Final = 30
HEAD_S: Final = 3.0
LINE: Final = re.compile(r"([A-Z0-9_]+)\s*=\s*(.*)", re.ASCII)
KIT_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def examine(config: Config, store: KeyStore, connect: Connect) -> list[dict[str, Any]]:
    """Examine keys, addresses, clock and reachability.

    Args:
        connect: opens a connection to the server of an address and returns what it was.

    Returns:
        Rows of `what`, `subject`, `state` (good, note, wrong) and `detail`.
    """
    rows = [*_keys(config, store), *_debit(config), *_reach(config, connect), *_clock(config)]
    return [dict(zip(("what", "subject", "state", "detail"), row, strict=True)) for row in rows]


Row = tuple[str, str, State, str]


def _keys(config: Config, store: KeyStore) -> Iterator[Row]:
    """Own pairs must be whole; keys of others long enough; all versions, and when they end."""
    webpay = config.webpay
    if not (webpay.merchant or config.webpay_shop):
        yield "keys", "", "note", "no merchant and no shop is configured"
    try:
        periods = Periods(config.data / "keys")
    except KeyStoreError as error:
        yield "keys", "", "wrong", str(error)
        return
    for name, private, bits_min in _wanted(config):
        for period in periods.of(name):
            yield _key(store, period, private=private, bits_min=bits_min)
        if all(p.until_ns and p.until_ns <= time.time_ns() for p in periods.of(name)):
            yield "key", name, "wrong", "all its versions have ended"


def _wanted(config: Config) -> Iterator[tuple[str, bool, int]]:
    """(key, whether its private part is ours, bits at least) of all that are configured."""
    webpay = config.webpay
    if webpay.merchant:
        yield webpay.own_key, True, BITS_OWN
        if webpay.allow.key_100:
            yield webpay.own_key_100, True, 1024
    short = 1024 if webpay.allow.short_merchant_keys else BITS_MERCHANT_MIN
    for merchant in webpay.merchant.values():
        yield merchant.key, False, short
    for shop in config.webpay_shop.values():
        yield shop.key, True, short
        yield shop.webpay_key, False, 1024


def _key(store: KeyStore, period: Period, *, private: bool, bits_min: int) -> Row:
    name = period.name
    try:
        info = store.info(name)
        gone = private and not info.private and period.ended(time.time_ns())
        if private and not gone:
            store.private(name)
    except LookupError as error:
        return "key", name, "wrong", str(error).strip("'\"")
    except (KeyStoreError, UnsealError) as error:
        return "key", name, "wrong", str(error)
    detail = f"{info.bits} bits, sha256 {info.sha256}"
    detail += f", used from {shown(period.from_ns)}" if period.from_ns else ""
    detail += f", accepted until {shown(period.until_ns)}" if period.until_ns else ""
    detail += ", private part deleted" if gone else ""
    if info.bits < bits_min:
        return "key", name, "wrong", detail
    return "key", name, "note" if period.until_ns else "good", detail


def _debit(config: Config) -> Iterator[Row]:
    """A form of the third generation without anybody who asks the banks has credit only."""
    webpay = config.webpay
    asked = webpay.authentication.bank_url or any(bank.auth_url for bank in webpay.debit_banks)
    for code, merchant in webpay.merchant.items():
        if merchant.form == "3G" and not (asked and webpay.holder_auth != "none"):
            yield "debit", code, "note", "not offered: webpay.authentication.bank_url is empty"


def _reach(config: Config, connect: Connect) -> Iterator[Row]:
    """Everybody we would connect to, asked for nothing but a connection."""
    for code, merchant in config.webpay.merchant.items():
        if merchant.notify_mode == "direct":
            yield _reached("closing page", code, merchant.direct.closing_url, connect)
        elif merchant.notify_url:
            scheme = urlsplit(merchant.notify_url).scheme
            host = f"[{merchant.notify_ip}]" if ":" in merchant.notify_ip else merchant.notify_ip
            url = f"{scheme}://{host}:{merchant.notify_port}/"
            yield _reached("kit", code, url, connect)
    for name, url in _holder_banks(config):
        yield _reached("holders' bank", name, url, connect)
    for code, shop in config.webpay_shop.items():
        if shop.acquirer_url:
            yield _reached("acquirer", code, shop.acquirer_url, connect)
        if shop.closing != "store":
            yield _reached("closing page", code, shop.closing, connect)


def _holder_banks(config: Config) -> Iterator[tuple[str, str]]:
    """Every service that is asked about holders, once."""
    webpay = config.webpay
    if webpay.merchant and webpay.authentication.bank_url:
        yield "", webpay.authentication.bank_url
    yield from ((bank.id, bank.auth_url) for bank in webpay.debit_banks if bank.auth_url)


def _reached(what: str, code: str, url: str, connect: Connect) -> Row:
    try:
        return what, code, "good", f"{url}: {connect(url)}"
    except OSError as error:
        return what, code, "wrong", f"{url}: {error.strerror or error}"


def _clock(config: Config) -> Iterator[Row]:
    """The zone of dates in results, and how far our clock is from the acquirer's."""
    try:
        now = datetime.now(ZoneInfo(config.webpay.timezone))
        yield "clock", config.webpay.timezone, "good", f"{now:%Y-%m-%d %H:%M:%S %z}"
    except (ZoneInfoNotFoundError, ValueError):
        yield "clock", config.webpay.timezone, "wrong", "no such time zone"
    for code, shop in config.webpay_shop.items():
        if shop.acquirer_url:
            off_s = _off_s(shop.acquirer_url)
            if off_s is not None:
                state: State = "good" if abs(off_s) <= CLOCK_OFF_S_MAX else "wrong"
                yield "clock", code, state, f"{off_s:+.0f} s from the acquirer's"


def _off_s(url: str) -> float | None:
    """Seconds by which our clock is ahead of a server's; None where it does not say."""
    try:
        answer = httpx.head(url, timeout=HEAD_S, follow_redirects=False)
        theirs = parsedate_to_datetime(answer.headers["date"])
    except (httpx.HTTPError, KeyError, ValueError):
        return None
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    return time.time() - theirs.timestamp()


def kit_toml(content: bytes) -> str:
    """Return our sections for an old kit's `tbk_config.dat`, lines ended by LF or CR LF.

    Raises:
        ValueError: no merchant's code in it, or an address that is none.
    """
    values = _kit_values(content)
    code = values.get("IDCOMERCIO", "")
    if not re.fullmatch(r"[0-9]{12}", code, re.ASCII):
        raise ValueError("there is no IDCOMERCIO of 12 digits in it")
    notify = values.get("URLCGICOM", "")
    server = values.get("SERVERCOM", "")
    port = values.get("PORTCOM", "")
    if port and not port.isdigit():
        raise ValueError("PORTCOM is no number")
    path = urlsplit(notify).path or "/cgi-bin/tbk_bp_resultado.cgi"
    whole = notify if "://" in notify else f"http://{server}:{port or 80}{path}"
    lines = [
        "# Key: `troncal webpay key add NAME FILE.pem` with the kit's private key.",
        f'[webpay_shop."{code}"]',
        f'key = "merchant-{code}"',
        f'key_id = "{values.get("TBK_KEY_ID", "101")}"',
        f'webpay_key = "webpay-{values.get("TBK_KEY_ID", "101")}"',
        f'notify_url = "{_quoted(whole)}"',
        f'notify_ip = "{_quoted(server)}"',
        f"notify_port = {int(port or KIT_DEFAULT_PORTS.get(urlsplit(whole).scheme, 80))}",
        f'closing = "{_quoted(values.get("HTML_TR_NORMAL", "") or "store")}"',
    ]
    if values.get("TIMEOUT"):
        lines.append(f"# The kit waited {_quoted(values['TIMEOUT'])} s; ours waits 25.")
    return "\n".join(lines) + "\n"


def _kit_values(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in content.decode("latin-1").splitlines():
        match = LINE.fullmatch(line.strip())
        if match:
            found[match[1]] = match[2].strip().strip('"')
    return found


def _quoted(text: str) -> str:
    """Return a text as it may stand between the quotes of a TOML string."""
    return "".join(c for c in text if " " <= c <= "~" and c not in '"\\')
