"""The section of TransfiYa: banks that take part in the network through this switch."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from switch.sections.forms import Finding, Url, says, span

# Nothing of protocols.transfiya: a switch that plays no bank needs none of its libraries.

BANKS_MAX = 64
_RESERVED = frozenset(("v1", "v2"))  # of profiles, in names of work
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_BASE = re.compile(r"/[a-z0-9/_-]{1,63}(?<!/)", re.ASCII)
_HANDLE = re.compile(r"w[1-9A-HJ-NP-Za-km-z]{25,34}", re.ASCII)


BankName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9-]{0,23}\Z",
        extra={"form": "1 to 24 small letters, digits or '-'"},
    ),
]
Secret = Annotated[
    str,
    Meta(
        pattern=r"^((env:[A-Za-z_][A-Za-z0-9_]{0,63})|(file:.{1,4000}))?\Z",
        extra={"form": '"env:NAME" or "file:PATH"; a secret never stands here itself'},
    ),
]
RouterParameter = Annotated[
    str,
    Meta(
        max_length=4000,
        extra={"form": 'text; a secret as "env:NAME" or "file:PATH"'},
    ),
]
KeyName = Annotated[
    str,
    Meta(
        pattern=r"^keystore:[A-Za-z0-9._-]{1,64}\Z",
        extra={"form": 'a key, as "keystore:NAME"'},
    ),
]
Path = Annotated[str, Meta(max_length=64)]
Offset = Annotated[
    str,
    Meta(
        pattern=r"^[+-](0[0-9]|1[0-4]):[0-5][0-9]\Z",
        extra={"form": "an offset from UTC, as -05:00"},
    ),
]
Symbol = Annotated[str, Meta(min_length=1, max_length=64)]


class SymbolRow(msgspec.Struct, frozen=True):
    """A currency of the network and what it is here."""

    currency: Annotated[str, Meta(max_length=3, description="ISO 4217, three letters")] = "COP"
    exponent: Annotated[int, span(0, 6, "decimal places of its amounts")] = 2


class Bank(msgspec.Struct, frozen=True):
    """One bank's part in the network."""

    id: Annotated[BankName, says("its name here")]
    profile: Annotated[
        Literal["v1", "v2"], says("v1: actions and IOUs; v2: ledger records and proofs")
    ] = "v1"
    base: Annotated[Path, says("path the network calls us under; empty: /transfiya/<id>")] = ""
    network_url: Annotated[Url, says("base of the network's API")] = "http://127.0.0.1:8090/v1"
    token_url: Annotated[Url, says("where tokens come from, in full; empty: no bearer token")] = ""
    token_style: Annotated[
        Literal["form", "tinapi"], says("tinapi: identifier and secret without colon, no body")
    ] = "form"
    client_id: Annotated[Secret, says("for our tokens")] = ""
    client_secret: Annotated[Secret, says("for our tokens")] = ""
    api_key: Annotated[Secret, says("header x-api-key of our calls")] = ""
    inbound_auth: Annotated[
        Literal["none", "api_key", "oauth2", "oauth2+api_key"],
        says("what the network must show us"),
    ] = "oauth2+api_key"
    inbound_api_key: Annotated[Secret, says("header x-api-key of the network's calls")] = ""
    inbound_client_id: Annotated[Secret, says("for the network's tokens")] = ""
    inbound_client_secret: Annotated[Secret, says("for the network's tokens")] = ""
    inbound_username: Annotated[Secret, says("for tokens of grant password")] = ""
    inbound_password: Annotated[Secret, says("for tokens of grant password")] = ""
    inbound_token_s: Annotated[int, span(60, 86_400, "life of a token we give")] = 3600
    public_url: Annotated[
        Url, says("where the network reaches us, before `base`; told with signers; empty: not told")
    ] = ""
    router_auth_params: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=64)], RouterParameter],
        says("what the network is told with signers of how to authenticate, by its names of it"),
    ] = msgspec.field(default_factory=dict)
    expired_token_status: Annotated[
        Literal[401, 403], says("answer to missing, wrong or expired credentials")
    ] = 401
    bank_signer: Annotated[
        str, Meta(max_length=35, description="handle of the bank's settlement signer (v1)")
    ] = ""
    bank_signer_key: Annotated[KeyName, says("its key, and the bridge's in v2")] = (
        "keystore:settlement"
    )
    ledger_public: Annotated[
        str, Meta(max_length=44, description="v2: the ledger's public key, base64, pinned")
    ] = ""
    ledger: Annotated[
        str, Meta(max_length=64, description="v2: name of the ledger, header x-ledger")
    ] = ""
    proofs_path: Annotated[Path, says("v2: where proofs go; {intent} is the intent's handle")] = (
        "/intents/{intent}/proofs"
    )
    allow_short_secret: Annotated[bool, says("keys of fewer than 32 bytes may sign")] = False
    symbols: Annotated[
        dict[Symbol, SymbolRow], says("currencies of the network, by their symbol")
    ] = msgspec.field(default_factory=lambda: {"$tin": SymbolRow()})
    label_timezone: Annotated[Offset, says("zone of time stamps in labels")] = "-05:00"
    iou_ttl_s: Annotated[int, span(10, 3600, "how long an IOU may be used")] = 60
    sync_budget_s: Annotated[float, span(0.1, 60, "until a call is answered")] = 8.0
    call_timeout_s: Annotated[float, span(0.1, 60, "of one call to the network")] = 5.0
    alarm_after_s: Annotated[float, span(1, 3600, "work unfinished so long is told")] = 120.0
    continue_limit_s: Annotated[
        float, span(10, 3600, "the network gives up a transfer after this")
    ] = 480.0
    deadline_margin_s: Annotated[
        float, span(0, 600, "so long before it no new money work begins")
    ] = 30.0
    deadline_base: Annotated[
        Literal["arrival", "initiated"], says("where the limit is counted from")
    ] = "arrival"
    action_mode: Annotated[
        Literal["async", "sync"], says("sync: /action is answered with the proof's result")
    ] = "async"
    continue_after_action: Annotated[bool, says("/continue also after a signed main action")] = (
        False
    )
    accept_policy: Annotated[
        Literal["own-default", "any"],
        says("whose transfers are accepted: whose default we are, or of all we know"),
    ] = "own-default"
    core: Annotated[
        Literal["ledger", "iso8583"], says("where the accounts are: here, or behind a link")
    ] = "ledger"
    link: Annotated[str, Meta(max_length=32, description="the core's host, with iso8583")] = ""
    hold: Annotated[
        bool, says("iso8583: a debit is a 0100 and its 0220; false: one 0200, which books at once")
    ] = True
    core_budget_s: Annotated[float, span(0.5, 60, "until the core's answer, iso8583")] = 8.0
    error_codes: Annotated[
        dict[str, Annotated[int, Meta(ge=300, le=399)]],
        says("code the network is told for a reason; `default` for all others"),
    ] = msgspec.field(default_factory=lambda: {"account-inactive": 307, "default": 314})

    @property
    def mount(self) -> str:
        """The path the network calls us under."""
        return self.base or f"/transfiya/{self.id}"


class Transfiya(msgspec.Struct, frozen=True):
    """TransfiYa: instant transfers, as a bank; each bank is a [[transfiya.bank]]."""

    max_body: Annotated[int, span(1024, 262_144, "bytes of a request's body")] = 262_144
    resume_parallel: Annotated[int, span(1, 1024, "items taken up at once after a start")] = 64
    calls_max: Annotated[int, span(1, 4096, "items worked on at once")] = 256
    connections_max: Annotated[int, span(1, 1024, "connections to each network")] = 64
    requests_max: Annotated[int, span(1, 4096, "requests under way; one more is answered 503")] = (
        512
    )
    bank: Annotated[
        tuple[Bank, ...], Meta(max_length=BANKS_MAX, description="the banks, one table each")
    ] = ()

    @property
    def enabled(self) -> bool:
        """Played where a bank is configured."""
        return bool(self.bank)


def _safe_url(text: str) -> bool:
    parts = urlsplit(text)
    if parts.scheme == "https":
        return bool(parts.hostname)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK


def findings(section: Transfiya) -> Iterator[Finding]:
    """What no single value shows, each with its key, what is wrong and a hint."""
    seen: set[str] = set()
    for number, bank in enumerate(section.bank):
        where = ("transfiya", "bank", f"[{number}]")
        for name in (bank.id, bank.mount):
            if name in seen:
                yield (*where, "id"), f"{name} is there twice", "each bank has its own"
            seen.add(name)
        yield from _bank_findings(where, bank)


def _bank_findings(where: tuple[str, ...], bank: Bank) -> Iterator[Finding]:
    if bank.id in _RESERVED:
        yield (*where, "id"), f"{bank.id} is a name of our own", "another one"
    if not _BASE.fullmatch(bank.mount):
        yield (*where, "base"), "is no path", "such as /transfiya/rojo"
    for key in ("network_url", "token_url", "public_url"):
        url = getattr(bank, key)
        if url and not _safe_url(url):
            yield (*where, key), "is no safe address", "https, or http to this machine only"
    if bank.profile == "v1" and not _HANDLE.fullmatch(bank.bank_signer):
        yield (*where, "bank_signer"), "is no handle", "`troncal transfiya key new` prints it"
    if bank.core == "iso8583" and not bank.link:
        yield (*where, "link"), "is missing", "the host behind which the accounts are"
    if bank.core == "iso8583" and bank.profile == "v2" and not bank.hold:
        yield (*where, "hold"), "is false", "v2 prepares and commits: it needs both phases"
    needed = {
        "api_key": ("inbound_api_key",),
        "oauth2": ("inbound_client_id", "inbound_client_secret"),
        "oauth2+api_key": ("inbound_api_key", "inbound_client_id", "inbound_client_secret"),
    }.get(bank.inbound_auth, ())
    for key in needed:
        if not getattr(bank, key):
            yield (*where, key), "is missing", f'inbound_auth = "{bank.inbound_auth}" needs it'
    if bank.token_url and not (bank.client_id and bank.client_secret):
        yield (*where, "client_id"), "is missing", "token_url needs client_id and client_secret"
    if bank.deadline_margin_s >= bank.continue_limit_s:
        yield (*where, "deadline_margin_s"), "leaves no time", "less than continue_limit_s"
