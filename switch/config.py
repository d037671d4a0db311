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
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta

from switch import calendar, limits, routing
from switch.limits import DeclarationRow, LimitRow, UnitRow
from switch.routing import ROUTES_MAX, HostName, Route, TimeOfDay
from switch.sections import cip, transfiya, webpay
from switch.sections.cip import Cip
from switch.sections.forms import File, says, span
from switch.sections.transfiya import Transfiya
from switch.sections.webpay import Code, Webpay, WebpayShop
from switch.toml_reader import (
    ConfigError,
    KeyPath,
    Mistake,
    Override,
    Reader,
    environment,
    expected,
    item_struct,
    line_index,
    line_of,
    named,
    plain,
    suggestion,
    without_none,
)

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "LinkAddress",
    "LinkSettings",
    "LinkTls",
    "Mistake",
    "check_hosts",
    "default_toml",
    "link_addresses",
    "load",
    "parse_address",
    "reference",
    "reread",
]

ENVIRONMENT_PREFIX = "TRONCAL_"
FILE_NAME = "troncal.toml"
TIERS_MAX = 32
ADDRESSES_MAX = 16
LISTENERS = ("terminals", "sicoop", "ceibo", "http", "ops")

Role = Literal["red", "sicoop", "ceibo", "webpay", "transfiya", "cip"]
MatchPart = Literal["class", "7", "11", "37", "41"]
Fee = Annotated[int, Meta(ge=0, le=1_000_000_000)]
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
Pem = Annotated[str, Meta(max_length=4096)]
Line = Annotated[str, Meta(max_length=40)]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z",
        extra={"form": "1 to 32 letters, digits, '.', '_' or '-'"},
    ),
]


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

    name: Annotated[Name, says("name of the node, in logs and metrics")] = "troncal"
    data: Annotated[File, says("data directory, relative to this file")] = "data"
    zone: Annotated[str, says("time zone of business dates")] = "America/Asuncion"
    roles: Annotated[tuple[Role, ...], says("roles this process plays")] = (
        "red",
        "sicoop",
        "ceibo",
        "webpay",
        "transfiya",
        "cip",
    )
    simulator: Annotated[
        bool, says("magic amounts and documents choose behaviour; for tests only")
    ] = False
    cashiers: Annotated[
        Literal["open", "listed"], says("open: any cashier number; listed: only those added")
    ] = "open"
    shift_hours: Annotated[int, span(1, 24, "a cashier's shift ends by itself after this")] = 12
    straight_through: Annotated[
        bool, says("decide common cash_outs and deposits natively where this process has all roles")
    ] = True
    followers: Annotated[
        Literal["idle", "nice", "equal"],
        says(
            "how the projector runs; idle: only on CPU time nobody wants, so answers are even; "
            "nice: on a machine that is never idle; equal: the read model is as pressing as answers"
        ),
    ] = "idle"
    cpu: Annotated[
        int, span(-1, 4095, "CPU that the main loop stays on; -1: whichever is free")
    ] = -1
    spin_us: Annotated[
        int,
        span(0, 1000, "after work, look for more this long before sleeping; takes a core's time"),
    ] = 0
    plaintext: Annotated[
        bool, says("allow listeners outside loopback without TLS; the MAC hides nothing")
    ] = False
    master_key_file: Annotated[
        File, says("file of the master key (hex), mode 0600, relative to this file")
    ] = "master.key"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], says("least level logged")
    ] = "info"


class Listen(msgspec.Struct, frozen=True):
    """Listeners, HOST:PORT each; all on loopback until configured otherwise."""

    terminals: Annotated[HostPort, says("cashier terminals")] = "127.0.0.1:7001"
    sicoop: Annotated[HostPort, says("networks")] = "127.0.0.1:7002"
    ceibo: Annotated[HostPort, says("ISO 8583 hosts")] = "127.0.0.1:7003"
    http: Annotated[HostPort, says("public HTTP")] = "127.0.0.1:8080"
    ops: Annotated[HostPort, says("/metrics, /healthz, /readyz")] = "127.0.0.1:9090"


class Tls(msgspec.Struct, frozen=True):
    """TLS of one listener; paths relative to this file."""

    cert: Annotated[File, says("certificate chain, PEM")]
    key: Annotated[File, says("its private key, PEM, without a password")]
    client_ca: Annotated[
        Pem, says("authorities whose client certificates are demanded; empty: none are")
    ] = ""
    client_cert: Annotated[
        Literal["required", "optional"],
        says("optional: who comes without one is let in, and may do what needs none"),
    ] = "required"


class Http(msgspec.Struct, frozen=True):
    """The HTTP listener of the products; each product's part of it has bounds of its own."""

    connections_max: Annotated[
        int, span(1, 65_536, "open connections; one more is answered 503 and closed")
    ] = 2048
    body_bytes_max: Annotated[int, span(1024, 1 << 26, "longest body of a request")] = 1 << 20
    header_bytes_max: Annotated[int, span(1024, 1 << 18, "request line and headers")] = 16 << 10
    request_s: Annotated[float, span(1, 300, "an answer begins within this, or is 503")] = 60.0
    idle_s: Annotated[float, span(1, 300, "a connection without a request is closed")] = 15.0


class Session(msgspec.Struct, frozen=True):
    """Framed sessions with terminals and networks, and bounds of all connections."""

    frame_bytes_max: Annotated[int, span(2048, 65535, "longest frame accepted")] = 8192
    max_in_flight: Annotated[
        int, span(1, 1024, "unanswered requests per session; above it nothing more is read")
    ] = 64
    heartbeat_s: Annotated[int, span(1, 3600, "echo after this silence; dead after twice it")] = 30
    sign_on_s: Annotated[int, span(1, 60, "a new connection signs on within this")] = 10
    network_sessions_max: Annotated[int, span(1, 64, "sessions a network may have at once")] = 8
    connections_max: Annotated[
        int, span(1, 100_000, "connections of a listener at once; one more is closed")
    ] = 12_000
    outbox_bytes_max: Annotated[
        int, span(1 << 16, 1 << 26, "unsent bytes per connection; above it it is closed")
    ] = 1 << 20
    drain_s: Annotated[int, span(0, 10, "SIGTERM waits this long for work in flight")] = 10
    clock_tolerance_s: Annotated[int, span(1, 600, "a request's sent_at may be off by this")] = 60


class Budgets(msgspec.Struct, frozen=True):
    """How long each hop waits for the next; each shorter than the one before it."""

    terminal_s: Annotated[int, span(1, 300, "a terminal waits for red")] = 30
    red_s: Annotated[int, span(1, 300, "red waits for sicoop")] = 25
    sicoop_s: Annotated[int, span(1, 300, "sicoop waits for ceibo")] = 15
    ceibo_s: Annotated[int, span(1, 300, "ceibo answers within this, or not at all")] = 8
    confirm_s: Annotated[
        int, span(1, 3600, "sicoop asks for the state when no confirmation came in this time")
    ] = 60


class Journal(msgspec.Struct, frozen=True):
    """The journal: nothing is answered before it is durable in it."""

    segment_bytes: Annotated[
        int, span(1 << 20, 1 << 30, "size of a segment file, a multiple of 4096")
    ] = 64 << 20
    group_bytes_max: Annotated[
        int, span(1 << 16, 1 << 26, "largest group committed at once; less than a segment")
    ] = 8 << 20
    direct: Annotated[bool, says("O_DIRECT where the file system allows it, else fdatasync")] = True
    snapshot_every_bytes: Annotated[
        int, span(1 << 20, 1 << 40, "a snapshot after this much journal")
    ] = 1 << 30
    segments_kept: Annotated[
        int, span(0, 1_000_000, "segments kept that no snapshot needs any more")
    ] = 16
    digest_every_groups: Annotated[
        int, span(1, 1_000_000, "a digest of the state is recorded every so many groups")
    ] = 1024
    retention_h: Annotated[
        int, span(1, 720, "idempotency keys and closed holds stay this long")
    ] = 72
    reserve_bytes: Annotated[
        int, span(1 << 16, 1 << 30, "space kept for confirmations and reversals of open work")
    ] = 1 << 20


class Ledger(msgspec.Struct, frozen=True):
    """Bounds of the state in memory; reaching one refuses new work (91), never old."""

    accounts_max: Annotated[int, span(1000, 100_000_000, "accounts")] = 1_000_000
    holds_max: Annotated[int, span(1000, 100_000_000, "holds, open and remembered")] = 2_000_000
    keys_max: Annotated[int, span(1000, 100_000_000, "idempotency keys remembered")] = 2_000_000
    records_bytes_max: Annotated[
        int, span(1 << 20, 1 << 35, "operations and registry in memory")
    ] = 1 << 30


class Tokens(msgspec.Struct, frozen=True):
    """One-time codes of the cards (código semilla): defaults of a new card, and attempts."""

    mode: Annotated[Literal["totp", "ocra", "vale"], says("kind of code")] = "totp"
    digits: Annotated[int, span(6, 8, "length of a TOTP code")] = 6
    algorithm: Annotated[Literal["sha256", "sha1"], says("hash of TOTP")] = "sha256"
    step_s: Annotated[int, span(30, 300, "length of a TOTP step")] = 60
    back: Annotated[int, span(0, 10, "past steps accepted")] = 2
    forward: Annotated[int, span(0, 10, "future steps accepted")] = 1
    probe: Annotated[
        int, span(0, 60, "steps either way tried only to tell an expired code from a wrong one")
    ] = 15
    max_cards: Annotated[
        int, span(1, 16, "cards of one person tried; a miss costs as many seeds whoever it is")
    ] = 4
    ocra_above: Annotated[
        int, span(0, limits.AMOUNT_MAX, "amount above which the code is bound to it; 0: never")
    ] = 0
    attempts_card: Annotated[int, span(1, 10, "wrong codes that lock a card's cash_out")] = 3
    lock_s: Annotated[int, span(60, 86_400, "how long a lock lasts")] = 900
    row_max: Annotated[
        int, span(1, 20, "wrong codes in a row, over locks, that lock until unlocked in the app")
    ] = 5
    attempts_terminal: Annotated[int, span(1, 10_000, "wrong codes that lock a terminal")] = 20
    attempts_cashier: Annotated[int, span(1, 10_000, "wrong codes that lock a cashier")] = 20
    attempts_window_s: Annotated[
        int, span(60, 86_400, "over what time a terminal's and a cashier's are counted")
    ] = 900
    attempts_network_alarm: Annotated[
        int, span(1, 1_000_000, "wrong codes of a network in that time that raise an alarm")
    ] = 200


class Red(msgspec.Struct, frozen=True):
    """The cashier network as its tickets show it."""

    company: Annotated[Line, says("name on the ticket")] = "RED DEMO S.A."
    ruc: Annotated[Line, says("tax number on the ticket")] = "80000000-0"
    address: Annotated[Line, says("address on the ticket")] = "Avda. Ejemplo 123, Asuncion"
    ticket_declines: Annotated[bool, says("print a ticket for a declined operation")] = False
    delivery_mark: Annotated[bool, says("ask the cashier to mark that cash moved")] = True


class Business(msgspec.Struct, frozen=True):
    """Business dates, hours and customer tiers."""

    cut_off: Annotated[CutOff, says("a business date ends then, local time")] = "24:00"
    annul_until: Annotated[
        str,
        Meta(
            pattern=r"^(|([01][0-9]|2[0-3]):[0-5][0-9]|24:00)\Z",
            extra={"form": "a time from 00:00 to 24:00, or empty"},
            description="annulments are taken until then on the business date; empty: the cut-off",
        ),
    ] = ""
    night_from: Annotated[TimeOfDay, says("start of the night window of limits")] = "22:00"
    night_until: Annotated[TimeOfDay, says("its end; equal to the start: no night")] = "06:00"
    tiers: Annotated[
        tuple[Name, ...],
        Meta(max_length=TIERS_MAX, description="customer tiers; a new card gets the first"),
    ] = ("basic",)


class Fees(msgspec.Struct, frozen=True):
    """Paid by the user per operation, PYG."""

    cash_out: Annotated[Fee, says("fee of a cash_out")] = 0


class Commissions(msgspec.Struct, frozen=True):
    """Paid to the network per operation, PYG."""

    cash_out: Annotated[Fee, says("commission of a cash_out")] = 0
    deposit: Annotated[Fee, says("commission of a deposit")] = 0


class LinkTls(msgspec.Struct, frozen=True):
    """TLS of an outgoing connection; paths relative to this file."""

    ca: Annotated[Pem, says("authorities trusted, PEM; empty: those of the system")] = ""
    cert: Annotated[Pem, says("our certificate chain, PEM; empty: none is shown")] = ""
    key: Annotated[Pem, says("its private key, PEM, without a password")] = ""
    server_name: Annotated[
        str, Meta(max_length=253, description="name in the host's certificate; empty: its address")
    ] = ""


class Platform(msgspec.Struct, frozen=True):
    """The way to sicoop; used where this process plays red and not sicoop."""

    connect: Annotated[
        tuple[HostPort, ...],
        Meta(
            max_length=ADDRESSES_MAX,
            description="where sicoop listens for networks; the first that answers is used",
        ),
    ] = ()
    sessions: Annotated[int, span(1, 64, "sessions of each network at once")] = 1
    backoff_min_s: Annotated[
        float, span(0.01, 60, "first pause before connecting again; doubled each time")
    ] = 0.2
    backoff_max_s: Annotated[float, span(0.01, 3600, "longest pause between tries")] = 30.0
    tls: Annotated[LinkTls | None, says("TLS towards sicoop")] = None


class IssuerRoute(msgspec.Struct, frozen=True):
    """The way to ceibo; used where this process plays sicoop and not ceibo."""

    link: Annotated[HostName, says("host to which operations go that no route claims")] = "ceibo"


class Watch(msgspec.Struct, frozen=True):
    """Patterns of cash that people should look at; sicoop alarms, and refuses nothing by itself."""

    structuring: Annotated[
        Literal["off", "alarm", "declare"],
        says("many deposits just below a threshold: alarm, or also demand the declaration (A4)"),
    ] = "alarm"
    structuring_percent: Annotated[int, span(1, 99, "from this part of the threshold on")] = 80
    structuring_count: Annotated[int, span(2, 1000, "and from so many deposits on")] = 3
    loop_minutes: Annotated[
        int,
        span(0, 1440, "deposit and cash_out of one person at one branch within this; 0: not told"),
    ] = 0
    terminal_persons: Annotated[
        int,
        span(0, 1000, "so many persons at one terminal within `terminal_minutes`; 0: not told"),
    ] = 0
    terminal_minutes: Annotated[int, span(1, 1440, "for `terminal_persons`")] = 60
    night_amount: Annotated[
        int,
        span(0, 999_999_999_999, "from this amount on in the night of [business]; 0: not told"),
    ] = 0

    @property
    def looks_at_each(self) -> bool:
        """Every operation counts for a pattern, not deposits near a threshold alone."""
        return bool(self.loop_minutes or self.terminal_persons or self.night_amount)


class Conciliation(msgspec.Struct, frozen=True):
    """Daily files between networks and sicoop. Times are local, on the day after the date."""

    directory: Annotated[File, says("where files are exchanged, relative to this file")] = (
        "conciliation"
    )
    format: Annotated[Literal["csv", "fixed"], says("form of the files that are made here")] = "csv"
    line_end: Annotated[Literal["lf", "crlf"], says("their line ends")] = "lf"
    network_closes: Annotated[
        TimeOfDay, says("networks put what they take later into the file of the next date")
    ] = "24:00"
    deadline: Annotated[TimeOfDay, says("alarm where a file is not here by then")] = "12:00"
    late_alarm: Annotated[
        Literal["auto", "always", "never"],
        says(
            "whether there is that alarm; auto: of a network whose red is played by this process "
            "only while an operation of it is open"
        ),
    ] = "auto"
    grace: Annotated[
        TimeOfDay, says("from then on what a balanced file has no line of is released")
    ] = "12:00"


class LinkAddress(msgspec.Struct, frozen=True):
    """One address of a host; a bare `"HOST:PORT"` stands for one with all defaults."""

    short: ClassVar[str] = "address"

    address: Annotated[HostPort, says("where the host listens")]
    priority: Annotated[int, span(0, 255, "the lowest that is up is used alone")] = 0
    weight: Annotated[int, span(1, 256, "share among addresses of equal priority")] = 1
    connections: Annotated[
        int, span(0, 64, "connections to it; 0: as the link's `connections`")
    ] = 0


class LinkSettings(msgspec.Struct, frozen=True):
    """One remote ISO 8583 host, under the name it has in the registry (`troncal host add`).

    A host without a section has all defaults and the address it was added with.
    """

    connect: Annotated[
        tuple[LinkAddress, ...],
        Meta(
            max_length=ADDRESSES_MAX,
            description="addresses of the host; empty: the one it was added with",
        ),
    ] = ()
    connections: Annotated[int, span(1, 64, "connections to each address")] = 1
    max_in_flight: Annotated[
        int, span(1, 65_536, "unanswered requests per connection; above it they queue")
    ] = 256
    queue_max: Annotated[
        int, span(0, 1_000_000, "requests that wait for room; above it they are refused (91)")
    ] = 1024
    echo_interval_s: Annotated[
        float, span(0.05, 3600, "echo after this silence; three missed close the connection")
    ] = 30.0
    answer_s: Annotated[
        float, span(0.05, 300, "the host answers within this, or its answer is late")
    ] = 15.0
    sign_on_s: Annotated[float, span(0.05, 60, "connecting and signing on take at most")] = 10.0
    backoff_min_s: Annotated[
        float, span(0.01, 60, "first pause before connecting again; doubled each time")
    ] = 0.2
    backoff_max_s: Annotated[float, span(0.01, 3600, "longest pause between tries")] = 30.0
    match: Annotated[
        tuple[MatchPart, ...],
        Meta(
            min_length=1,
            max_length=5,
            description="what an answer has in common with its request: class of the MTI, "
            "data elements",
        ),
    ] = ("class", "11", "41")
    institution: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]{0,11}\Z",
            extra={"form": "at most 11 digits, or empty"},
            description="DE32 towards the host; empty: the network of the operation",
        ),
    ] = ""
    de4_exponent: Annotated[
        int, span(-1, 4, "decimal places of DE4 towards a bank; -1: those of the currency")
    ] = -1
    reversal: Annotated[
        Literal["0420", "0400"], says("the message a bank takes reversals as; 0421, 0401 repeat")
    ] = "0420"
    framing: Annotated[dict[str, Any], says("framing, where it is another than the dialect's")] = {}
    tls: Annotated[LinkTls | None, says("TLS towards the host")] = None
    hold_policy: Annotated[
        Literal["ask-network", "never-auto"],
        says("a hold that nobody decides: ask the host for its state, or wait for it"),
    ] = "ask-network"
    hold_ask_after_s: Annotated[
        int,
        span(1, 86_400, "ceibo asks for the state of a hold that nobody decided in this time"),
    ] = 600
    clock_tolerance_s: Annotated[int, span(1, 600, "DE7 of a hold may be off by this")] = 60
    late_keep: Annotated[
        int, span(16, 1_000_000, "answered and expired requests kept to tell late answers by")
    ] = 4096

    @property
    def exponent(self) -> int | None:
        """Decimal places of DE4 towards a bank; None: those of the currency."""
        return None if self.de4_exponent < 0 else self.de4_exponent


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that a file may hold."""

    node: Node = Node()
    listen: Listen = Listen()
    tls: dict[Literal["terminals", "sicoop", "ceibo", "http", "ops"], Tls] = {}
    http: Http = Http()
    session: Session = Session()
    budgets: Budgets = Budgets()
    journal: Journal = Journal()
    ledger: Ledger = Ledger()
    tokens: Tokens = Tokens()
    red: Red = Red()
    business: Business = Business()
    fees: Fees = Fees()
    commissions: Commissions = Commissions()
    platform: Platform = Platform()
    issuer: IssuerRoute = IssuerRoute()
    conciliation: Conciliation = Conciliation()
    watch: Watch = Watch()
    webpay: Webpay = Webpay()
    webpay_shop: dict[Code, WebpayShop] = {}
    transfiya: Transfiya = Transfiya()
    cip: Cip = Cip()
    links: dict[HostName, LinkSettings] = {}
    routes: Annotated[tuple[Route, ...], Meta(max_length=ROUTES_MAX)] = ()
    units: dict[str, tuple[UnitRow, ...]] = {}
    limits: dict[str, LimitRow] = {}
    declarations: dict[str, DeclarationRow] = {}


class Config(Settings, frozen=True, kw_only=True):
    """The whole configuration, and the file it came from; relative paths start beside it.

    `given` are the values of the command line, which go before the file at each reading.
    """

    path: Path = Path(FILE_NAME)
    given: dict[str, str] = {}

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

    def link(self, name: str) -> LinkSettings:
        """Return the settings of a host's link; all defaults where it has no section."""
        return self.links.get(name, LinkSettings())

    def dialect(self, name: str) -> str | Path:
        """Return a dialect as `Dialect.load` takes it: one of ours by name, or a file's path."""
        return self.file(name) if name.endswith(".toml") else name

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


def _paths(where: KeyPath, kind: type[msgspec.Struct]) -> Iterator[KeyPath]:
    """Yield the path of every key, those of tables inside included."""
    for field in msgspec.structs.fields(kind):
        inner = without_none(plain(field.type).base)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from _paths((*where, field.encode_name), inner)
        else:
            yield (*where, field.encode_name)


def _keys(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


SECTIONS = _sections()
TABLES = ("links", "routes", "units", "limits", "declarations")


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
    given = dict(options or {})
    config = Config(path=file, given=given, **msgspec.structs.asdict(settings))
    for where, what, hint in _findings(config, reader):
        if not reader.noted(where):
            reader.note(where, what, hint)
    if reader.mistakes:
        raise ConfigError(file, reader.mistakes)
    return config


def reread(config: Config) -> Config:
    """Read the file of a configuration again, with the environment and the same command line.

    Raises:
        ConfigError: with every mistake found.
    """
    return load(config.path, options=config.given)


def check_hosts(config: Config, hosts: Mapping[str, str]) -> None:
    """Check what needs the registry: names of hosts, and the addresses they were added with.

    Args:
        hosts: the address to connect to of every host, by its name; empty: the host dials us.

    Raises:
        ConfigError: with every mistake found.
    """
    lines = line_index(_text(config.path))
    found = [
        Mistake(line_of(lines, where), named(where), what, hint)
        for where, what, hint in _host_findings(config, hosts)
    ]
    if found:
        raise ConfigError(config.path, found)


def link_addresses(settings: LinkSettings, connect: str) -> tuple[LinkAddress, ...]:
    """Return the addresses of a link, `connections` filled in; empty: the host dials us.

    Args:
        connect: the address the host was added with, or empty; used where the section has none.
    """
    found = settings.connect or ((LinkAddress(connect),) if connect else ())
    return tuple(
        msgspec.structs.replace(a, connections=a.connections or settings.connections) for a in found
    )


def _findings(config: Config, reader: Reader) -> Iterator[limits.Finding]:
    """Check what no single value shows."""
    for check in (_budgets, _journal, _tokens, _listeners, _tls, _roles, _times, _platform, _links):
        yield from check(config)
    yield from limits.findings(config, config.business.tiers)
    yield from webpay.findings(config.webpay, config.webpay_shop)
    yield from transfiya.findings(config.transfiya)
    yield from cip.findings(config.cip)
    if not reader.noted(("routes",)):
        yield from routing.findings(config.routes, lambda n: reader.line(("routes", f"[{n}]")))


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
    paths = [path for section, kind in SECTIONS.items() for path in _paths((section,), kind)]
    paths += [("tls", listener, key) for listener in LISTENERS for key in _keys(Tls)]
    known = {"_".join(path).upper(): path for path in paths}
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
        if address.loopback or name in config.tls:
            continue
        if name == "http" and config.webpay.merchant:
            # Card numbers are typed there: no network is trusted so far.
            what = f"{address.host} is outside loopback and takes cards without TLS"
            yield where, what, "add [tls.http], or let what ends TLS run on this machine"
        elif not config.node.plaintext:
            what = f"{address.host} is outside loopback and has no TLS"
            hint = f"add [tls.{name}], or node.plaintext = true where the network is trusted"
            yield where, what, hint


def _tls(config: Config) -> Iterator[limits.Finding]:
    for listener, tls in config.tls.items():
        for key in ("cert", "key", "client_ca"):
            name = getattr(tls, key)
            if name and not config.file(name).is_file():
                yield ("tls", listener, key), f"no file {config.file(name)}", "PEM is expected"


def _platform(config: Config) -> Iterator[limits.Finding]:
    where = ("platform", "connect")
    for address in config.platform.connect:
        yield from _outgoing(config, where, address, config.platform.tls, "platform")
    yield from _outgoing_tls(config, ("platform", "tls"), config.platform.tls)
    yield from _backoff(("platform",), config.platform)


def _links(config: Config) -> Iterator[limits.Finding]:
    for name, link in config.links.items():
        where = ("links", name)
        for number, entry in enumerate(link.connect):
            here = (*where, "connect", f"[{number}]")
            yield from _outgoing(config, here, entry.address, link.tls, f"links.{name}")
            if entry.address in [other.address for other in link.connect[:number]]:
                yield here, f"names {entry.address} again", "give it more connections instead"
        yield from _outgoing_tls(config, (*where, "tls"), link.tls)
        yield from _backoff(where, link)
        if len(set(link.match)) < len(link.match):
            yield (*where, "match"), "names an element twice", ""
        if not {"11", "37"} & set(link.match):
            hint = "without the STAN or the reference, answers of two requests look the same"
            yield (*where, "match"), 'has neither "11" nor "37"', hint
        yield from _framing((*where, "framing"), link.framing)


def _framing(where: KeyPath, framing: Mapping[str, Any]) -> Iterator[limits.Finding]:
    if not framing:
        return
    from protocols.iso8583 import Framing  # with native modules, which most files do not need

    try:
        Framing.from_dict(framing)
    except (ValueError, TypeError, KeyError) as error:
        yield where, str(error), "see docs/dialects.md, Framing"


def _outgoing(
    config: Config, where: KeyPath, text: str, tls: LinkTls | None, table: str
) -> Iterator[limits.Finding]:
    """Outside loopback an outgoing connection needs TLS too, or somebody who says it does not."""
    try:
        address = parse_address(text)
    except ValueError as error:
        yield where, str(error), ""
        return
    if address.port == 0:
        yield where, f"{text} has no port to connect to", ""
    elif not (address.loopback or tls or config.node.plaintext):
        what = f"{address.host} is outside loopback and there is no TLS towards it"
        hint = f"add [{table}.tls], or node.plaintext = true where the network is trusted"
        yield where, what, hint


def _outgoing_tls(config: Config, where: KeyPath, tls: LinkTls | None) -> Iterator[limits.Finding]:
    if tls is None:
        return
    for key in ("ca", "cert", "key"):
        name = getattr(tls, key)
        if name and not config.file(name).is_file():
            yield (*where, key), f"no file {config.file(name)}", "PEM is expected"
    if bool(tls.cert) != bool(tls.key):
        yield (*where, "cert"), "needs key, and key needs cert", "both, or neither"


def _backoff(where: KeyPath, link: LinkSettings | Platform) -> Iterator[limits.Finding]:
    if link.backoff_min_s > link.backoff_max_s:
        what = f"is {link.backoff_min_s}, above backoff_max_s = {link.backoff_max_s}"
        yield (*where, "backoff_min_s"), what, "0.2 and 30 are usual"


def _host_findings(config: Config, hosts: Mapping[str, str]) -> Iterator[limits.Finding]:
    for name in config.links:
        if name not in hosts:
            hint = f"`troncal host add {name}` makes it; known: {', '.join(hosts) or 'none'}"
            yield ("links", name), f"there is no host {name}", hint
    for name, connect in hosts.items():
        link = config.link(name)
        if connect and not link.connect:
            where = ("links", name) if name in config.links else (f"host {name}",)
            yield from _outgoing(config, where, connect, link.tls, f"links.{name}")
    yield from routing.missing_hosts(config.routes, hosts)
    roles, default = config.node.roles, config.issuer.link
    if "sicoop" in roles and "ceibo" not in roles and default not in hosts:
        hint = f"`troncal host add {default} --dialect ceibo --connect HOST:PORT --keys FILE`"
        yield ("issuer", "link"), f"there is no host {default}", hint


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

LINKS_TOML = """\
# TLS towards sicoop: `[platform.tls]`, keys as below.
#
# ISO 8583 hosts, each under the name it has in the registry (`troncal host add`). A host without a
# section has all defaults and the address it was added with.
# [links.bank1]
# connect = ["10.0.0.5:9100", { address = "10.0.0.6:9100", priority = 1 }]
# connections = 2
# tls = { ca = "bank1-ca.pem", cert = "us.pem", key = "us.key" }
#
# Where operations go: the first rule that matches counts; without one, [issuer].
# [[routes]]
# to = ["bank1", "bank2"]
# operations = ["purchase"]
# bins = ["4507", "510000-559999"]
# amount_max = 5_000_000
# from = "06:00"
# until = "22:00"
"""

TLS_TOML = """\
# TLS, per listener (terminals, sicoop, ceibo, http, ops); client_ca: certificates are demanded.
# [tls.terminals]
# cert = "terminals.pem"
# key = "terminals.key"
# client_ca = "terminals-ca.pem"
"""


EXAMPLES_TOML = {"listen": TLS_TOML, "issuer": LINKS_TOML}


def default_toml(**values: Any) -> str:
    """Render the commented file that ``troncal init`` writes.

    Args:
        values: other values than the defaults, by ``section_key`` (``node_simulator=True``).
    """
    parts = [HEAD_TOML]
    for section, kind in SECTIONS.items():
        parts += _section_toml(section, kind, values)
        parts += [EXAMPLES_TOML[section]] if section in EXAMPLES_TOML else []
    return "\n".join([*parts, LIMITS_TOML])


def _section_toml(
    section: str, kind: type[msgspec.Struct], values: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a section, then the tables inside it; tables of free names are left to the handbook."""
    lines = [f"# {(kind.__doc__ or '').strip()}", f"[{section}]"]
    inside: list[str] = []
    for field in msgspec.structs.fields(kind):
        value = values.get(f"{section}_{field.name}", field.default)
        inner = _inner(field)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            if isinstance(value, msgspec.Struct):
                inside += _section_toml(f"{section}.{field.name}", inner, values)
        elif value not in (None, msgspec.NODEFAULT) and not _is_nested(field):
            lines += (*_comment(field), f"{field.name} = {_toml(value)}")
    yield "\n".join(lines) + "\n"
    yield from inside


def _inner(field: msgspec.structs.FieldInfo) -> Any:
    """The type of a key, without what may be absent and what is said about it."""
    return without_none(plain(field.type).base)


def _entries(field: msgspec.structs.FieldInfo) -> type[msgspec.Struct] | None:
    """The form of the entries of a table of free names; None: the key is something else."""
    inner = _inner(field)
    entries = get_args(inner)[1] if get_origin(inner) is dict else None
    is_struct = isinstance(entries, type) and issubclass(entries, msgspec.Struct)
    return entries if is_struct else None


def reference() -> str:
    """Return every key as a Markdown table: the documentation's, and never edited by hand."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for section, kind in SECTIONS.items():
        rows += _reference(section, kind)
    rows += _reference("tls.<listener>", Tls)
    rows += _reference("links.<host>", LinkSettings)
    rows += _reference("routes[]", Route)
    rows += _reference("webpay_shop.<code>", WebpayShop)
    return "\n".join(rows) + "\n"


def _reference(where: str, kind: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        here = f"{where}.{field.encode_name}"
        told = field.default not in (None, msgspec.NODEFAULT)
        default = f"`{_toml(field.default)}`" if told and not _is_nested(field) else "–"
        inner, item, entries = _inner(field), item_struct(_inner(field)), _entries(field)
        is_table = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
        allowed = "a table" if is_table or entries else expected(field.type, field.encode_name)
        yield f"| `{here}` | {default} | {allowed} | {_meaning(field)} |"
        if item is not None:
            yield from _reference(f"{here}[]", item)
        elif entries is not None:
            yield from _reference(f"{here}.<name>", entries)
        elif is_table:
            yield from _reference(here, inner)


def _is_nested(field: msgspec.structs.FieldInfo) -> bool:
    """True where tables stand inside: their own rows tell the defaults."""
    inner = _inner(field)
    is_table = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
    return is_table or item_struct(inner) is not None or _entries(field) is not None


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
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
