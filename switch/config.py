"""The configuration: one TOML file, read once, every value with a name, a unit and a range.

The Structs below are the reference: a key's type, range, default and meaning stand here, and the
file that ``troncal init`` writes, the table in the documentation and the messages about mistakes
are made from them. Secrets are never in it; the master key has a file of its own or comes in
``TRONCAL_MASTER_KEY``.

Precedence: command-line options, environment (``TRONCAL_<SECTION>_<KEY>``), file, default.
"""

import ipaddress
import itertools
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from switch import calendar, limits
from switch.limits import DeclarationRow, LimitRow, UnitRow
from switch.toml_reader import (
    ConfigError,
    KeyPath,
    Mistake,
    Override,
    Reader,
    environment,
    expected,
    plain,
    suggestion,
)

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "Mistake",
    "default_toml",
    "load",
    "parse_address",
    "reference",
]

ENVIRONMENT_PREFIX = "TRONCAL_"
FILE_NAME = "troncal.toml"
TIERS_MAX = 32
LISTENERS = ("terminals", "sicoop", "ceibo", "http", "ops")

Role = Literal["red", "sicoop", "ceibo"]
Fee = Annotated[int, Meta(ge=0, le=1_000_000_000)]
TimeOfDay = Annotated[
    str,
    Meta(
        pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)\Z",
        extra={"form": "a time from 00:00 to 24:00"},
    ),
]
CutOff = Annotated[
    str,
    Meta(
        pattern=r"^((1[2-9]|2[0-3]):[0-5][0-9]|24:00)\Z",
        extra={"form": "a time from 12:00 to 24:00"},
    ),
]
HostPort = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}\Z",
        extra={"form": 'HOST:PORT, as "127.0.0.1:7001" or "[::1]:7001"'},
    ),
]
Line = Annotated[str, Meta(max_length=40)]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z",
        extra={"form": "1 to 32 letters, digits, '.', '_' or '-'"},
    ),
]
File = Annotated[str, Meta(min_length=1, max_length=4096)]


def _says(text: str) -> Meta:
    return Meta(description=text)


def _int(low: int, high: int, text: str) -> Meta:
    return Meta(ge=low, le=high, description=text)


class Address(NamedTuple):
    """Where to listen or connect."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Tell whether nobody outside this machine can reach it. A name other than localhost
        may resolve to anything, so it does not count."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT`` or ``[IPv6]:PORT``; port 0 lets the system choose.

    Raises:
        ValueError: another form, or a port above 65535.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 0 to 65535")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        ipaddress.IPv6Address(host[1:-1])
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets")
    return Address(host[1:-1] if bracketed else host, int(port))


class Node(msgspec.Struct, frozen=True):
    """This node: what it is, what it plays, where it keeps things."""

    name: Annotated[Name, _says("name of the node, in logs and metrics")] = "troncal"
    data: Annotated[File, _says("data directory, relative to this file")] = "data"
    zone: Annotated[str, _says("time zone of business dates")] = "America/Asuncion"
    roles: Annotated[tuple[Role, ...], _says("roles this process plays")] = (
        "red",
        "sicoop",
        "ceibo",
    )
    simulator: Annotated[
        bool, _says("magic amounts and documents choose behaviour; for tests only")
    ] = False
    cashiers: Annotated[
        Literal["open", "listed"], _says("open: any cashier number; listed: only those added")
    ] = "open"
    shift_hours: Annotated[int, _int(1, 24, "a cashier's shift ends by itself after this")] = 12
    plaintext: Annotated[
        bool, _says("allow listeners outside loopback without TLS; the MAC hides nothing")
    ] = False
    master_key_file: Annotated[
        File, _says("file of the master key (hex), mode 0600, relative to this file")
    ] = "master.key"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _says("least level logged")
    ] = "info"


class Listen(msgspec.Struct, frozen=True):
    """Listeners, HOST:PORT each; all on loopback until configured otherwise."""

    terminals: Annotated[HostPort, _says("cashier terminals")] = "127.0.0.1:7001"
    sicoop: Annotated[HostPort, _says("networks")] = "127.0.0.1:7002"
    ceibo: Annotated[HostPort, _says("ISO 8583 hosts")] = "127.0.0.1:7003"
    http: Annotated[HostPort, _says("public HTTP")] = "127.0.0.1:8080"
    ops: Annotated[HostPort, _says("/metrics, /healthz, /readyz")] = "127.0.0.1:9090"


class Tls(msgspec.Struct, frozen=True):
    """TLS of one listener; paths relative to this file.

    Fields:
        cert: certificate chain, PEM. key: its private key, PEM, without a password.
        client_ca: authorities whose client certificates are demanded; empty: none are.
    """

    cert: File
    key: File
    client_ca: Annotated[str, Meta(max_length=4096)] = ""


class Session(msgspec.Struct, frozen=True):
    """Framed sessions with terminals and networks, and bounds of all connections."""

    frame_bytes_max: Annotated[int, _int(2048, 65535, "longest frame accepted")] = 8192
    max_in_flight: Annotated[
        int, _int(1, 1024, "unanswered requests per session; above it nothing more is read")
    ] = 64
    heartbeat_s: Annotated[int, _int(1, 3600, "echo after this silence; dead after twice it")] = 30
    sign_on_s: Annotated[int, _int(1, 60, "a new connection signs on within this")] = 10
    network_sessions_max: Annotated[int, _int(1, 64, "sessions a network may have at once")] = 8
    connections_max: Annotated[
        int, _int(1, 100_000, "connections of a listener at once; one more is closed")
    ] = 12_000
    outbox_bytes_max: Annotated[
        int, _int(1 << 16, 1 << 26, "unsent bytes per connection; above it it is closed")
    ] = 1 << 20
    drain_s: Annotated[int, _int(0, 10, "SIGTERM waits this long for work in flight")] = 10
    clock_tolerance_s: Annotated[int, _int(1, 600, "a request's sent_at may be off by this")] = 60


class Budgets(msgspec.Struct, frozen=True):
    """How long each hop waits for the next; each shorter than the one before it."""

    terminal_s: Annotated[int, _int(1, 300, "a terminal waits for red")] = 30
    red_s: Annotated[int, _int(1, 300, "red waits for sicoop")] = 25
    sicoop_s: Annotated[int, _int(1, 300, "sicoop waits for ceibo")] = 15
    ceibo_s: Annotated[int, _int(1, 300, "ceibo answers within this, or not at all")] = 8
    confirm_s: Annotated[
        int, _int(1, 3600, "sicoop asks for the state when no confirmation came in this time")
    ] = 60


class Journal(msgspec.Struct, frozen=True):
    """The journal: nothing is answered before it is durable in it."""

    segment_bytes: Annotated[
        int, _int(1 << 20, 1 << 30, "size of a segment file, a multiple of 4096")
    ] = 64 << 20
    group_bytes_max: Annotated[
        int, _int(1 << 16, 1 << 26, "largest group committed at once; less than a segment")
    ] = 8 << 20
    direct: Annotated[bool, _says("O_DIRECT where the file system allows it, else fdatasync")] = (
        True
    )
    snapshot_every_bytes: Annotated[
        int, _int(1 << 20, 1 << 40, "a snapshot after this much journal")
    ] = 1 << 30
    segments_kept: Annotated[
        int, _int(0, 1_000_000, "segments kept that no snapshot needs any more")
    ] = 16
    digest_every_groups: Annotated[
        int, _int(1, 1_000_000, "a digest of the state is recorded every so many groups")
    ] = 1024
    retention_h: Annotated[
        int, _int(1, 720, "idempotency keys and closed holds stay this long")
    ] = 72
    reserve_bytes: Annotated[
        int, _int(1 << 16, 1 << 30, "space kept for confirmations and reversals of open work")
    ] = 1 << 20


class Ledger(msgspec.Struct, frozen=True):
    """Bounds of the state in memory; reaching one refuses new work (91), never old."""

    accounts_max: Annotated[int, _int(1000, 100_000_000, "accounts")] = 1_000_000
    holds_max: Annotated[int, _int(1000, 100_000_000, "holds, open and remembered")] = 2_000_000
    keys_max: Annotated[int, _int(1000, 100_000_000, "idempotency keys remembered")] = 2_000_000
    records_bytes_max: Annotated[
        int, _int(1 << 20, 1 << 40, "operations and registry in memory")
    ] = 1 << 30


class Tokens(msgspec.Struct, frozen=True):
    """One-time codes of the cards (código semilla): defaults of a new card, and attempts."""

    mode: Annotated[Literal["totp", "ocra", "vale"], _says("kind of code")] = "totp"
    digits: Annotated[int, _int(6, 8, "length of a TOTP code")] = 6
    algorithm: Annotated[Literal["sha256", "sha1"], _says("hash of TOTP")] = "sha256"
    step_s: Annotated[int, _int(30, 300, "length of a TOTP step")] = 60
    back: Annotated[int, _int(0, 10, "past steps accepted")] = 2
    forward: Annotated[int, _int(0, 10, "future steps accepted")] = 1
    probe: Annotated[
        int, _int(0, 60, "steps either way tried only to tell an expired code from a wrong one")
    ] = 15
    max_cards: Annotated[
        int, _int(1, 16, "cards of one person tried; a miss costs as many seeds whoever it is")
    ] = 4
    ocra_above: Annotated[
        int, _int(0, limits.AMOUNT_MAX, "amount above which the code is bound to it; 0: never")
    ] = 0
    attempts_card: Annotated[int, _int(1, 10, "wrong codes that lock a card's cash_out")] = 3
    lock_s: Annotated[int, _int(60, 86_400, "how long a lock lasts")] = 900
    row_max: Annotated[
        int, _int(1, 20, "wrong codes in a row, over locks, that lock until unlocked in the app")
    ] = 5
    attempts_terminal: Annotated[int, _int(1, 10_000, "wrong codes that lock a terminal")] = 20
    attempts_cashier: Annotated[int, _int(1, 10_000, "wrong codes that lock a cashier")] = 20
    attempts_window_s: Annotated[
        int, _int(60, 86_400, "over what time a terminal's and a cashier's are counted")
    ] = 900
    attempts_network_alarm: Annotated[
        int, _int(1, 1_000_000, "wrong codes of a network in that time that raise an alarm")
    ] = 200


class Red(msgspec.Struct, frozen=True):
    """The cashier network as its tickets show it."""

    company: Annotated[Line, _says("name on the ticket")] = "RED DEMO S.A."
    ruc: Annotated[Line, _says("tax number on the ticket")] = "80000000-0"
    address: Annotated[Line, _says("address on the ticket")] = "Avda. Ejemplo 123, Asuncion"
    ticket_declines: Annotated[bool, _says("print a ticket for a declined operation")] = False
    delivery_mark: Annotated[bool, _says("ask the cashier to mark that cash moved")] = True


class Business(msgspec.Struct, frozen=True):
    """Business dates, hours and customer tiers."""

    cut_off: Annotated[CutOff, _says("a business date ends then, local time")] = "24:00"
    annul_until: Annotated[
        str,
        Meta(
            pattern=r"^(|([01][0-9]|2[0-3]):[0-5][0-9]|24:00)\Z",
            extra={"form": "a time from 00:00 to 24:00, or empty"},
            description="annulments are taken until then on the business date; empty: the cut-off",
        ),
    ] = ""
    night_from: Annotated[TimeOfDay, _says("start of the night window of limits")] = "22:00"
    night_until: Annotated[TimeOfDay, _says("its end; equal to the start: no night")] = "06:00"
    tiers: Annotated[
        tuple[Name, ...],
        Meta(max_length=TIERS_MAX, description="customer tiers; a new card gets the first"),
    ] = ("basic",)


class Fees(msgspec.Struct, frozen=True):
    """Paid by the user per operation, PYG."""

    cash_out: Annotated[Fee, _says("fee of a cash_out")] = 0


class Commissions(msgspec.Struct, frozen=True):
    """Paid to the network per operation, PYG."""

    cash_out: Annotated[Fee, _says("commission of a cash_out")] = 0
    deposit: Annotated[Fee, _says("commission of a deposit")] = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that a file may hold."""

    node: Node = Node()
    listen: Listen = Listen()
    tls: dict[Literal["terminals", "sicoop", "ceibo", "http", "ops"], Tls] = {}
    session: Session = Session()
    budgets: Budgets = Budgets()
    journal: Journal = Journal()
    ledger: Ledger = Ledger()
    tokens: Tokens = Tokens()
    red: Red = Red()
    business: Business = Business()
    fees: Fees = Fees()
    commissions: Commissions = Commissions()
    units: dict[str, tuple[UnitRow, ...]] = {}
    limits: dict[str, LimitRow] = {}
    declarations: dict[str, DeclarationRow] = {}


class Config(Settings, frozen=True, kw_only=True):
    """The whole configuration, and the file it came from; relative paths start beside it."""

    path: Path = Path(FILE_NAME)

    def file(self, name: str) -> Path:
        """Return a configured path, relative ones taken from the directory of the file."""
        return self.path.parent / name

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.file(self.node.data)

    def address(self, listener: str) -> Address:
        """Return the address of a listener by its name."""
        return parse_address(getattr(self.listen, listener))

    def calendar(self) -> calendar.Calendar:
        """Return a new calendar of the configured zone, cut-off and night."""
        night = (self.business.night_from, self.business.night_until)
        return calendar.Calendar(self.node.zone, self.business.cut_off, night)


def _sections() -> dict[str, type[msgspec.Struct]]:
    """Return the sections whose keys are fixed, by name."""
    return {
        field.name: field.type
        for field in msgspec.structs.fields(Settings)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
    }


def _keys(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


SECTIONS = _sections()
TABLES = ("units", "limits", "declarations")


def load(
    path: str | Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    options: Mapping[str, str] | None = None,
) -> Config:
    """Read and check the configuration.

    Args:
        path: the file; by default ``TRONCAL_CONFIG``, else ``troncal.toml`` here.
        environ: the environment.
        options: values of the command line by dotted key: ``{"listen.terminals": "[::1]:0"}``.

    Raises:
        ConfigError: with every mistake found.
    """
    file = Path(path if path is not None else environ.get("TRONCAL_CONFIG", FILE_NAME))
    overrides, unknown = _from_environment(environ)
    for key, text in (options or {}).items():
        overrides[tuple(key.split("."))] = Override(text, f"option {key}")
    sections = {name: _keys(kind) for name, kind in SECTIONS.items()}
    reader = Reader(file, _text(file), overrides, sections)
    reader.mistakes += unknown
    settings = reader.struct(Settings, reader.data)
    config = Config(path=file, **msgspec.structs.asdict(settings))
    for where, what, hint in _findings(config):
        if not reader.noted(where):
            reader.note(where, what, hint)
    if reader.mistakes:
        raise ConfigError(file, reader.mistakes)
    return config


def _findings(config: Config) -> Iterator[limits.Finding]:
    """Check what no single value shows."""
    for check in (_budgets, _journal, _tokens, _listeners, _tls, _roles, _times):
        yield from check(config)
    yield from limits.findings(config, config.business.tiers)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(file, [Mistake(line, "", "not UTF-8")]) from None
    except OSError as error:
        hint = "troncal init makes one; -c FILE or TRONCAL_CONFIG names another"
        what = f"{file} cannot be read: {error.strerror}"
        raise ConfigError(file, [Mistake(0, "", what, hint)]) from None


def _from_environment(
    environ: Mapping[str, str],
) -> tuple[dict[KeyPath, Override], list[Mistake]]:
    """Find the variables that set a key, and those that only seem to."""
    known = {
        "_".join((section, key)).upper(): (section, key)
        for section, kind in SECTIONS.items()
        for key in _keys(kind)
    } | {
        f"TLS_{listener}_{key}".upper(): ("tls", listener, key)
        for listener in LISTENERS
        for key in _keys(Tls)
    }
    mistakes: list[Mistake] = []
    for name in sorted(environ):
        short = name.removeprefix(ENVIRONMENT_PREFIX)
        section = short.partition("_")[0].lower()
        if short == name or short in known:
            continue
        if section in TABLES:
            what = f"[{section}] cannot be set by the environment"
            mistakes.append(Mistake(0, name, what, "edit the file"))
        elif section in SECTIONS or section == "tls":
            names = [ENVIRONMENT_PREFIX + k for k in known if k.startswith(section.upper())]
            mistakes.append(Mistake(0, name, "unknown key", suggestion(name, names)))
    return environment(environ, known.get, ENVIRONMENT_PREFIX), mistakes


def _budgets(config: Config) -> Iterator[limits.Finding]:
    """Nobody may wait longer than the one who waits for him (rule R3)."""
    order = ("terminal_s", "red_s", "sicoop_s", "ceibo_s")
    for outer, inner in itertools.pairwise(order):
        longer, shorter = getattr(config.budgets, outer), getattr(config.budgets, inner)
        if shorter >= longer:
            what = f"is {shorter}, but must be less than {outer} = {longer}"
            hint = "each hop waits less than the one before it: 30, 25, 15, 8"
            yield ("budgets", inner), what, hint


def _journal(config: Config) -> Iterator[limits.Finding]:
    journal = config.journal
    if journal.segment_bytes % 4096:
        lower = journal.segment_bytes // 4096 * 4096
        yield ("journal", "segment_bytes"), "is no multiple of 4096", f"{lower} is one"
    if journal.group_bytes_max >= journal.segment_bytes:
        what = f"must be less than segment_bytes = {journal.segment_bytes}"
        yield ("journal", "group_bytes_max"), what, "an eighth of a segment is usual"


def _tokens(config: Config) -> Iterator[limits.Finding]:
    tokens = config.tokens
    if tokens.probe < max(tokens.back, tokens.forward):
        what = f"is {tokens.probe}, but must not be less than back and forward"
        yield ("tokens", "probe"), what, "expired codes are looked for outside the window"
    if tokens.row_max < tokens.attempts_card:
        what = f"is {tokens.row_max}, but must not be less than attempts_card"
        yield ("tokens", "row_max"), what, "it counts over several locks"


def _listeners(config: Config) -> Iterator[limits.Finding]:
    """Outside loopback a listener needs TLS, or somebody who says that it does not."""
    taken: dict[Address, str] = {}
    for name in LISTENERS:
        where = ("listen", name)
        try:
            address = config.address(name)
        except ValueError as error:
            yield where, str(error), ""
            continue
        if address in taken and address.port:
            yield where, f"has the address of {taken[address]}", "give each its own port"
        taken[address] = name
        if not (address.loopback or name in config.tls or config.node.plaintext):
            what = f"{address.host} is outside loopback and has no TLS"
            hint = f"add [tls.{name}], or node.plaintext = true where the network is trusted"
            yield where, what, hint


def _tls(config: Config) -> Iterator[limits.Finding]:
    for listener, tls in config.tls.items():
        for key in ("cert", "key", "client_ca"):
            name = getattr(tls, key)
            if name and not config.file(name).is_file():
                yield ("tls", listener, key), f"no file {config.file(name)}", "PEM is expected"


def _roles(config: Config) -> Iterator[limits.Finding]:
    roles, tiers = config.node.roles, config.business.tiers
    if not roles:
        yield ("node", "roles"), "is empty", f"choose from {', '.join(get_args(Role))}"
    if len(set(roles)) < len(roles):
        yield ("node", "roles"), "names a role twice", ""
    if not tiers or len(set(tiers)) < len(tiers):
        yield ("business", "tiers"), "must name at least one tier, and none twice", ""


def _times(config: Config) -> Iterator[limits.Finding]:
    business = config.business
    if business.annul_until and (
        calendar.minutes_of(business.annul_until) > calendar.minutes_of(business.cut_off)
    ):
        what = f"is {business.annul_until}, after cut_off = {business.cut_off}"
        yield ("business", "annul_until"), what, "leave it empty for the cut-off"
    try:
        zone = calendar.load_zone(config.node.zone)
    except ValueError as error:
        yield ("node", "zone"), str(error), 'a name of the tz database, as "America/Asuncion"'
        return
    if calendar.is_stale(zone, config.node.zone):
        what = "the time-zone data are older than 2025a: midnight would be an hour off in winter"
        yield ("node", "zone"), what, "pip install --upgrade tzdata"


LIMITS_TOML = """\
# What things are worth in PYG, from a date on: the newest row not after the business date counts.
# Wages as in force since July 2024; the dollar is only an example. Check them, and add new rows
# when they change; old rows stay.
[units]
py_monthly_wage = [{ from = "2024-07-01", pyg = 2798309 }]
py_daily_wage = [{ from = "2024-07-01", pyg = 107627 }]
usd = [{ from = "2026-01-01", pyg = 7000 }]

# Limits, one row each, any name.
#   scope   card, person, depositor, terminal, cashier, branch, network
#   kind    cash_out, deposit, any (each kind with its own count)
#   window  operation (min, max, multiple of each amount),
#           day, night, calendar_week, calendar_month (max: sum of amounts, max_count: how many)
#   tier    only for cards or persons of that tier
[limits]
card_month = { scope = "card", kind = "cash_out", window = "calendar_month", \
max = "40 py_daily_wage", tier = "basic" }
operation = { scope = "card", kind = "any", window = "operation", \
min = "1000 PYG", max = "5000000 PYG", multiple = "1000 PYG" }

# From which sum on the origin of funds must be declared (kind: deposit, unless it says another).
[declarations]
cash = { scope = "depositor", window = "day", threshold = "10000 usd" }
"""

HEAD_TOML = f"""\
# Troncal. Every key with its default; `troncal check-config` tells every mistake with its line.
# The environment goes before this file: {ENVIRONMENT_PREFIX}<SECTION>_<KEY>, as in
# TRONCAL_SESSION_HEARTBEAT_S=20. Secrets do not belong here.
"""

TLS_TOML = """\
# TLS, per listener (terminals, sicoop, ceibo, http, ops); client_ca: certificates are demanded.
# [tls.terminals]
# cert = "terminals.pem"
# key = "terminals.key"
# client_ca = "terminals-ca.pem"
"""


def default_toml(**values: Any) -> str:
    """Render the commented file that ``troncal init`` writes.

    Args:
        values: other values than the defaults, by ``section_key`` (``node_simulator=True``).
    """
    parts = [HEAD_TOML]
    for section, kind in SECTIONS.items():
        lines = [f"# {(kind.__doc__ or '').strip()}", f"[{section}]"]
        for field in msgspec.structs.fields(kind):
            value = values.get(f"{section}_{field.name}", field.default)
            lines += (*_comment(field), f"{field.name} = {_toml(value)}")
        parts.append("\n".join(lines) + "\n")
        if section == "listen":
            parts.append(TLS_TOML)
    return "\n".join([*parts, LIMITS_TOML])


def reference() -> str:
    """Return every key as a Markdown table: the documentation's, and never edited by hand."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            allowed = expected(field.type, field.name)
            shown = f"| `{section}.{field.name}` | `{_toml(field.default)}` "
            rows.append(f"{shown}| {allowed} | {_meaning(field)} |")
    return "\n".join(rows) + "\n"


def _comment(field: msgspec.structs.FieldInfo) -> list[str]:
    """Return a key's meaning and, where it says more, what is allowed, as comment lines."""
    allowed = expected(field.type, field.name).removeprefix("a whole number ")
    plainly = allowed.startswith("a text") or allowed == "true or false"
    text = _meaning(field) + ("" if plainly else f"; {allowed}")
    return textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent="#   ")


def _meaning(field: msgspec.structs.FieldInfo) -> str:
    return plain(field.type).description


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
