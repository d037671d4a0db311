"""The payment application's section of the configuration."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from protocols.cip.transaction import AmountRule, FeeRule, FieldRule
from protocols.currencies import CURRENCIES
from switch.sections.forms import Finding, Url, says, span

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

Mode = Literal["gateway", "partial", "full"]
Variant = Literal["p0", "p1"]
SourceName = Literal["simulator", "bank", "dimo", "ledger"]
KeyName = Annotated[
    str,
    Meta(
        pattern=r"^(keystore:[A-Za-z0-9._-]{1,24}|env:[A-Za-z_][A-Za-z0-9_]{0,63})\Z",
        extra={"form": 'a key, as "keystore:NAME" or "env:NAME"'},
    ),
]
ApplicationId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z0-9_-]{3,16}\Z",
        extra={"form": "3 to 16 capital letters, digits, '_' or '-'"},
    ),
]
Fingerprint = Annotated[
    str, Meta(pattern=r"^[0-9a-f]{64}\Z", extra={"form": "64 hex digits in lower case"})
]
HourMinute = Annotated[
    str,
    Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z", extra={"form": "a time from 00:00 to 23:59"}),
]


class Auth(msgspec.Struct, frozen=True):
    """How passwords are hashed and guarded."""

    memory_kib: Annotated[int, span(8, 1 << 21, "memory of one password hash")] = 19456
    time_cost: Annotated[int, span(1, 100, "passes of one password hash")] = 2
    parallelism: Annotated[int, span(1, 16, "lanes of one password hash")] = 1
    threads: Annotated[int, span(1, 64, "passwords hashed at once")] = 2
    queue_max: Annotated[int, span(1, 10_000, "passwords waiting; one more is answered 503")] = 64
    cache_s: Annotated[int, span(0, 60, "a machine's right credentials are remembered so long")] = (
        60
    )
    max_failures: Annotated[int, span(1, 100, "wrong passwords until a user is locked")] = 10
    lock_s: Annotated[int, span(60, 86_400, "a locked user stays locked")] = 1800
    rate_per_minute: Annotated[
        int, span(1, 100_000, "tries per minute of one address at one application; then 429")
    ] = 600


class SessionTimes(msgspec.Struct, frozen=True):
    """Lives of sessions and signed contexts."""

    idle_s: Annotated[int, span(5, 86_400, "a session ends after this without a request")] = 900
    absolute_s: Annotated[int, span(10, 86_400, "a session ends after this in any case")] = 3600
    context_ttl_s: Annotated[
        int, span(900, 1800, "the one-time address of a signed session works so long")
    ] = 1800
    ts_tolerance_s: Annotated[
        int, span(1, 900, "a signed time may be so far from ours, either way")
    ] = 300
    open_max: Annotated[int, span(1, 1_000_000, "open sessions; one more is answered 503")] = 50_000


class Budget(msgspec.Struct, frozen=True):
    """Time budgets of a payment."""

    auth_s: Annotated[float, span(0.1, 30, "authentication with its queue; then 503")] = 1.0
    source_s: Annotated[
        float, span(0.1, 60, "the source's answer; then the payment is pending")
    ] = 6.0
    total_s: Annotated[float, span(1, 120, "steps 3 to 10; more is a miss")] = 10.0
    full_total_s: Annotated[float, span(1, 120, "steps 1 to 9 in full mode")] = 9.0


class Mail(msgspec.Struct, frozen=True):
    """How locked users are sent the link that unlocks them; without a host nobody is."""

    host: Annotated[str, Meta(max_length=253, description="mail server; empty: none")] = ""
    port: Annotated[int, span(1, 65_535, "of the mail server")] = 587
    tls: Annotated[
        Literal["starttls", "tls", "none"], says("none: to a mail server on this machine only")
    ] = "starttls"
    user: Annotated[str, Meta(max_length=254, description="at the mail server; empty: none")] = ""
    password: Annotated[
        str,
        Meta(
            pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]{0,63})?\Z",
            extra={"form": 'a variable, as "env:NAME"'},
            description="of that user, in the environment",
        ),
    ] = ""
    sender: Annotated[str, Meta(max_length=254, description="address it comes from")] = ""
    base_url: Annotated[Url, says("public address of this node, for the link")] = ""
    link_s: Annotated[int, span(60, 86_400, "the link works so long")] = 1800


class CipApplication(msgspec.Struct, frozen=True):
    """An application, made or overruled at the start."""

    app_no: Annotated[int, span(-1, 1023, "its number; -1: the next free one")] = -1
    name: Annotated[str, Meta(max_length=64, description="shown on pages")] = ""
    modes: Annotated[tuple[Mode, ...], says("modes it may use")] = ("gateway", "partial", "full")
    partial_variants: Annotated[
        tuple[Variant, ...], says("p0: only the id travels; p1: signed session")
    ] = ("p0", "p1")
    source: Annotated[SourceName, says("who authorises the money")] = "simulator"
    late_approval: Annotated[
        Literal["confirm", "void"], says("of a payment that was pending already")
    ] = "confirm"
    return_urls: Annotated[
        tuple[Url, ...], says("where customers may be sent back to, beside the query")
    ] = ()
    default_return_url: Annotated[Url, says("where they are sent without another address")] = ""
    timezone: Annotated[str, says("of its days and report hours")] = "UTC"
    report_hours: Annotated[tuple[HourMinute, ...], says("when reports are cut")] = ()
    amount: Annotated[AmountRule, says("currency, min and max, minor units")] = AmountRule()
    fee: Annotated[FeeRule, says("fixed, minor units, and basis_points")] = FeeRule()
    fields: Annotated[tuple[FieldRule, ...], Meta(max_length=64, description="its form")] = ()
    webhook_url: Annotated[Url, says("told of every change of a payment; empty: none")] = ""
    report_url: Annotated[Url, says("reports are posted to; empty: none")] = ""
    report_folder: Annotated[
        Url, says("reports are put into, relative to the data directory; empty: none")
    ] = ""
    csv_totals: Annotated[bool, says("a line of totals at the end of the CSV")] = False
    bank: Annotated[str, Meta(max_length=32, description="link of the bank, for source bank")] = ""
    bank_inquiry: Annotated[
        bool, says("the bank answers status inquiries (0600); else a time-out is reversed")
    ] = True
    terminal: Annotated[
        str, Meta(max_length=8, description="its virtual terminal, for source dimo")
    ] = ""
    addresses: Annotated[
        tuple[str, ...], says("networks its machines may call from, CIDR; none: any")
    ] = ()
    machine_passwords: Annotated[
        bool, says("its machines may call with a password; else signed only")
    ] = True
    certificates: Annotated[
        tuple[Fingerprint, ...],
        says("SHA-256 of the client certificates its machines may call with; none: any, or none"),
    ] = ()


class Cip(msgspec.Struct, frozen=True):
    """The payment application."""

    enabled: Annotated[bool, says("play it, where the role cip is played")] = True
    confirmation_key: Annotated[KeyName, says("scrambles confirmation numbers")] = (
        "keystore:cip-confirmation"
    )
    idempotency_key: Annotated[KeyName, says("keys the hashes of requests")] = (
        "keystore:cip-idempotency"
    )
    requests_max: Annotated[int, span(1, 100_000, "requests under way; one more gets 503")] = 512
    webhook_concurrent: Annotated[int, span(1, 256, "webhooks and reports sent at once")] = 8
    private_webhooks: Annotated[
        bool, says("allow webhooks and reports over plain HTTP to loopback; for tests only")
    ] = False
    network: Annotated[
        str,
        Meta(pattern=r"^([0-9]{4})?\Z", description="its network number, for source dimo"),
    ] = ""
    branch: Annotated[
        str, Meta(pattern=r"^[0-9]{1,6}\Z", description="its branch, for source dimo")
    ] = "1"
    auth: Annotated[Auth, says("passwords")] = Auth()
    session: Annotated[SessionTimes, says("sessions")] = SessionTimes()
    budget: Annotated[Budget, says("time budgets")] = Budget()
    mail: Annotated[Mail, says("mail to locked users")] = Mail()
    application: Annotated[
        dict[ApplicationId, CipApplication], says("applications, by their ids")
    ] = {}


def findings(cip: Cip) -> Iterator[Finding]:
    """Check what no single value shows."""
    numbers: dict[int, str] = {}
    for name, application in cip.application.items():
        where = ("cip", "application", name)
        if application.app_no in numbers:
            what = f"is that of {numbers[application.app_no]} already"
            yield (*where, "app_no"), what, "numbers are unique"
        if application.app_no >= 0:
            numbers[application.app_no] = name
        yield from application_findings(where, application)
    mail = cip.mail
    if mail.host and not (is_return_url(mail.base_url) and "@" in mail.sender):
        yield ("cip", "mail", "base_url"), "and sender are needed with a host", ""
    if mail.host and mail.tls == "none" and mail.host not in LOOPBACK:
        yield ("cip", "mail", "tls"), "is needed to another machine", '"starttls" or "tls"'
    if cip.budget.source_s > cip.budget.full_total_s:
        yield ("cip", "budget", "source_s"), "is longer than full_total_s", "6.0 is usual"


def application_findings(where: tuple[str, ...], row: CipApplication) -> Iterator[Finding]:
    """Check one application, from the file or from an operator."""
    for name in ("return_urls", "default_return_url", "webhook_url", "report_url"):
        value = getattr(row, name)
        for url in value if isinstance(value, tuple) else (value,):
            if url and not is_return_url(url):
                what = f"{url!r} cannot be used"
                yield (*where, name), what, "https, without user, query and fragment"
    if row.default_return_url and row.default_return_url not in row.return_urls:
        yield (*where, "default_return_url"), "is not one of return_urls", ""
    if row.amount.min > row.amount.max:
        yield (*where, "amount", "min"), "is above max", ""
    if row.amount.currency not in CURRENCIES:
        yield (*where, "amount", "currency"), "is no currency known here", "as PYG or USD"
    try:
        ZoneInfo(row.timezone)
    except (KeyError, ValueError, OSError):
        hint = 'a name of the tz database, as "America/Asuncion"'
        yield (*where, "timezone"), f"{row.timezone!r} is no time zone", hint
    for rule in row.fields:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            yield (*where, "fields", rule.name), f"its pattern is none: {error}", ""
    for text in row.addresses:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            yield (*where, "addresses"), f"{text!r} is no network", "as 10.0.0.0/8"


def is_return_url(url: str) -> bool:
    """True for an address a browser or a message may be sent to: https, or http on loopback, which
    no browser of another machine can be led to."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in LOOPBACK
    return (
        (parts.scheme == "https" or local)
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and not parts.fragment
        and not parts.query
        and url.isascii()
        and not any(character <= " " or character in "\\\"'<>;," for character in url)
    )


def is_address(text: str) -> bool:
    """True for what one mail can be sent to; nothing that could name a second one."""
    local, at, domain = text.rpartition("@")
    return bool(
        local and at and "." in domain and len(text) <= 254 and text.isascii()
        and not any(c <= " " or c in '<>()[],;:"\\@' for c in local + domain)
    )  # fmt: skip
