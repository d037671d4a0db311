"""The sections of Webpay: the acquirer (`[webpay]`), and shops of ours (`[webpay_shop.<code>]`)."""

import datetime
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from switch.calendar import load_zone
from switch.sections.forms import File, Finding, says, span

MERCHANTS_MAX = 10_000

Code = Annotated[
    str, Meta(pattern=r"^[0-9]{12}\Z", extra={"form": "a merchant's code of 12 digits"})
]
KeyName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
        extra={"form": "a name in the key store, of letters, digits, '.', '_' or '-'"},
    ),
]
Prefix = Annotated[
    str, Meta(pattern=r"^(/[A-Za-z0-9._-]+){1,4}\Z", extra={"form": "a path, as /cgi-bin"})
]
Text = Annotated[str, Meta(min_length=1, max_length=60)]
Url = Annotated[str, Meta(max_length=256)]
Choice = Annotated[
    str,
    Meta(
        pattern=r"^(VN-0|S2-2|SI-3|(NC-([2-9]|1[0-2]))|((VC|CI)-([2-9]|[1-3][0-9]|4[0-8])))\Z",
        extra={"form": "VN-0, S2-2, SI-3, NC-2 to NC-12, VC-2 to VC-48 or CI-2 to CI-48"},
    ),
]
KeyId = Literal["101", "100"]
Respuesta = Annotated[int, Meta(ge=-8, le=0)]
HostCode = Annotated[
    str, Meta(pattern=r"^[0-9A-Z]{2}\Z", extra={"form": "two digits or capital letters (DE39)"})
]
Date = Annotated[
    str,
    Meta(
        pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])\Z",
        extra={"form": "a date, as 2026-09-18"},
    ),
]


class DebitBank(msgspec.Struct, frozen=True):
    """A bank whose debit cards are taken."""

    id: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9-]{1,8}\Z",
            extra={"form": "1 to 8 small letters, digits or '-'"},
            description="its name in tag 22 of DE48",
        ),
    ]
    name: Annotated[Text, says("its name in the payment form")]
    auth_url: Annotated[Url, says("its own service; empty: authentication.bank_url")] = ""


DEBIT_BANKS = (
    DebitBank("santandr", "Santander (Banco Santander y Banefe)"),
    DebitBank("bbva", "BBVA"),
    DebitBank("corpbanc", "Corpbanca"),
    DebitBank("bci", "BCI (BCI y Tbanc)"),
    DebitBank("falabell", "Banco Falabella"),
    DebitBank("itau", "Banco Itaú"),
    DebitBank("chile", "Banco de Chile / Edwards Citi"),
    DebitBank("estado", "BancoEstado"),
    DebitBank("bice", "Banco BICE"),
    DebitBank("securyte", "Banco Securyte"),
)


class Limits(msgspec.Struct, frozen=True):
    """Times and bounds of payments."""

    form_ttl_s: Annotated[int, span(1, 86_400, "a payment form, and a token, are good for")] = 600
    holder_auth_s: Annotated[int, span(1, 3600, "the holder has this to authenticate")] = 300
    auth_timeout_ms: Annotated[int, span(10, 60_000, "the issuer answers within this")] = 20_000
    ack_timeout_ms: Annotated[
        int, span(10, 30_000, "the shop's answer counts within this, from the result on")
    ] = 30_000
    late_watch_s: Annotated[
        int, span(0, 3600, "an answer that is late is waited for, to be noted")
    ] = 60
    rsa_threads: Annotated[int, span(1, 256, "threads of RSA operations")] = 4
    seal_fail_per_min: Annotated[
        int, span(1, 100_000, "unreadable requests of an address; above it it is locked out")
    ] = 20
    address_per_min: Annotated[
        int,
        span(1, 1_000_000, "payment requests and status queries of an address; more are 429"),
    ] = 600
    merchant_per_min: Annotated[
        int, span(1, 1_000_000, "payment requests in the name of a merchant; more are 429")
    ] = 3000
    requests_max: Annotated[int, span(1, 65_536, "HTTP requests at once")] = 512
    notifications_max: Annotated[int, span(1, 65_536, "shops notified at once")] = 1024


class Files(msgspec.Struct, frozen=True):
    """Where Bitácora files go, and their form."""

    dir: Annotated[File, says("directory, relative to the configuration")] = "bitacora"
    style: Annotated[
        Literal["seed", "kcc602"], says("kcc602: ERR lines without the merchant's code")
    ] = "seed"
    layout: Annotated[
        Literal["dated", "flat"], says("dated: <dir>/<merchant>/<year>/; flat: as old kits")
    ] = "dated"


class Allow(msgspec.Struct, frozen=True):
    """What is weak, and off until somebody asks for it."""

    key_100: Annotated[bool, says("key id 100, of 1024 bits")] = False
    short_merchant_keys: Annotated[bool, says("merchant keys under 2048 bits")] = False
    kcc51: Annotated[bool, says("`troncal webpay kcc51`, for archives")] = False
    private: Annotated[bool, says("addresses of private networks, and plain HTTP to them")] = False


class Authentication(msgspec.Struct, frozen=True):
    """Who asks holders' banks who it is that pays. Without it no debit card is taken."""

    bank_url: Annotated[Url, says("the service of all banks; empty: there is none")] = ""
    bank_key: Annotated[
        str,
        Meta(
            max_length=4096,
            description="our key at it, as env:NAME or file:PATH; empty: it asks for none",
        ),
    ] = ""
    bank_ca: Annotated[
        str, Meta(max_length=4096, description="PEM file of further roots; empty: none")
    ] = ""
    bank_answer_ms: Annotated[
        int, span(10, 25_000, "it answers within this, or it is an internal failure (U3)")
    ] = 10_000


class Direct(msgspec.Struct, frozen=True):
    """The closing page, where we do the kit's part."""

    closing_url: Annotated[Url, says("its address")] = ""
    ca: Annotated[
        str, Meta(max_length=4096, description="PEM file of further roots; empty: none")
    ] = ""
    encoding: Annotated[Literal["plain", "kcc"], says("kcc: as kit 6.0.2 posted it")] = "plain"
    answer_match: Annotated[
        Literal["strict", "kcc"], says("kcc: ACEPTADO anywhere in the answer; for old pages")
    ] = "strict"
    send_code: Annotated[bool, says("post the merchant's code, which is not signed")] = True


class Merchant(msgspec.Struct, frozen=True, kw_only=True):
    """A shop of ours, by its code."""

    name: Annotated[Text, says("as cardholders know it")]
    key: Annotated[KeyName, says("its public key, in the key store")]
    active: Annotated[bool, says("its payments are taken")] = True
    currency: Annotated[Literal["CLP", "USD"], says("of all its payments")] = "CLP"
    key_ids: Annotated[
        tuple[KeyId, ...], Meta(min_length=1, max_length=2, description="keys of ours it may use")
    ] = ("101",)
    form: Annotated[Literal["3G", "2G", "1G"], says("3G: credit and debit; others: credit")] = "3G"
    instalments: Annotated[
        tuple[Choice, ...],
        Meta(min_length=1, max_length=60, description="choices of instalments offered"),
    ] = ("VN-0",)
    fixed_instalments: Annotated[bool, says("the shop may fix instalments itself")] = False
    authoriser: Annotated[
        str,
        Meta(
            pattern=r"^(ledger|bank:[A-Za-z0-9][A-Za-z0-9._-]{0,31})\Z",
            extra={"form": '"ledger", or "bank:HOST"'},
            description="who authorises: our own ledger, or a bank behind a link",
        ),
    ] = "ledger"
    mcc: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]{4}\Z",
            extra={"form": "4 digits"},
            description="merchant category (DE18)",
        ),
    ] = "5999"
    order_policy: Annotated[
        Literal["once_paid", "unique", "any"],
        says("an order again: not after it was paid; never; always"),
    ] = "once_paid"
    notify_mode: Annotated[
        Literal["kcc60", "direct"], says("kcc60: its kit is told; direct: its closing page")
    ] = "kcc60"
    notify_url: Annotated[Url, says("where its kit listens, in full")] = ""
    notify_ip: Annotated[
        str, Meta(max_length=45, description="address that is connected to; never a name")
    ] = ""
    notify_port: Annotated[int, span(0, 65535, "and its port")] = 0
    target: Annotated[
        Literal["absolute", "origin"], says("form of the request target to the kit")
    ] = "absolute"
    direct: Annotated[Direct, says("with notify_mode = direct")] = Direct()
    return_hosts: Annotated[
        tuple[Annotated[str, Meta(max_length=260)], ...],
        Meta(max_length=64, description="hosts (or HOST:PORT) a cardholder may be sent back to"),
    ] = ()
    api_key: Annotated[
        str,
        Meta(
            max_length=4096,
            description="of status queries, as env:NAME or file:PATH; empty: none are answered",
        ),
    ] = ""


class Webpay(msgspec.Struct, frozen=True):
    """Webpay: shops of the KCC generation sell through us. Shops: [webpay.merchant."<code>"]."""

    enabled: Annotated[bool, says("played, where node.roles has webpay")] = True
    prefixes: Annotated[
        tuple[Prefix, ...],
        Meta(min_length=1, max_length=8, description="paths of bp_validacion and bp_revision"),
    ] = ("/filtroUnificado", "/cgi-bin", "/webpayserver")
    own_key: Annotated[KeyName, says("our key of id 101, in the key store")] = "webpay-101"
    own_key_100: Annotated[KeyName, says("that of id 100")] = "webpay-100"
    timezone: Annotated[str, Meta(max_length=64, description="zone of dates in results")] = (
        "America/Santiago"
    )
    accounting_cutoff: Annotated[
        str,
        Meta(
            pattern=r"^(|([01][0-9]|2[0-3]):[0-5][0-9])\Z",
            extra={"form": "a time as HH:MM, or empty"},
            description="later payments count for the next bank business day; empty: the same day",
        ),
    ] = ""
    holidays: Annotated[
        tuple[Date, ...],
        Meta(max_length=1000, description="no bank business, beside Saturdays and Sundays"),
    ] = ()
    limits: Annotated[Limits, says("times and bounds")] = Limits()
    bitacora: Annotated[Files, says("the Bitácora's files")] = Files()
    allow: Annotated[Allow, says("what is weak")] = Allow()
    wipe_memory: Annotated[
        bool, says("freed memory is overwritten at once, for some processor time; by `serve`")
    ] = False
    holder_auth: Annotated[
        Literal["none", "debit", "all"],
        says("whose holders authenticate at their bank; without, no debit is taken"),
    ] = "debit"
    authentication: Annotated[Authentication, says("who asks holders' banks")] = Authentication()
    vci_not_tried: Annotated[
        str,
        Meta(
            pattern=r"^[A-Z0-9]{1,4}\Z",
            extra={"form": "1 to 4 capital letters or digits"},
            description="TBK_VCI where nobody was to authenticate",
        ),
    ] = "NP"
    respuesta_map: Annotated[
        dict[HostCode, Respuesta], says("TBK_RESPUESTA by DE39, over the usual one")
    ] = {}
    debit_banks: Annotated[
        tuple[DebitBank, ...], Meta(min_length=1, max_length=64, description="in the debit form")
    ] = DEBIT_BANKS
    merchant: Annotated[dict[Code, Merchant], says("the shops, by their codes")] = {}


class WebpayShop(msgspec.Struct, frozen=True, kw_only=True):
    """A shop that this program is the kit of, by its code at the acquirer."""

    key: Annotated[KeyName, says("its private key, in the key store")]
    webpay_key: Annotated[KeyName, says("the acquirer's public key")] = "webpay-101"
    key_id: Annotated[KeyId, says("of the acquirer's key")] = "101"
    acquirer_url: Annotated[Url, says("the acquirer, with its prefix")] = ""
    closing: Annotated[Url, says('"store": our own closing page; else the URL of the shop\'s')] = (
        "store"
    )
    currency: Annotated[Literal["CLP", "USD"], says("of all its payments")] = "CLP"
    notify_url: Annotated[Url, says("where its acquirer reaches us, in full")] = ""
    notify_ip: Annotated[str, Meta(max_length=45, description="our address for the acquirer")] = ""
    notify_port: Annotated[int, span(0, 65535, "and our port")] = 0
    bitacora: Annotated[Files, says("the Bitácora's files")] = Files()


# ---- what no single value shows

_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?", re.ASCII)
_SECRET = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]{0,63})|(file:.{1,4000})", re.ASCII)
_READ_ONLY = (-4, -5)
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


def findings(section: Webpay, shops: Mapping[str, WebpayShop]) -> Iterator[Finding]:
    """Every inconsistency, with its key, what is wrong and a hint."""
    banks = [bank.id for bank in section.debit_banks]
    if len(set(banks)) < len(banks):
        yield ("webpay", "debit_banks"), "names a bank twice", ""
    yield from _authentication(section)
    yield from _dates(section)
    for code, respuesta in section.respuesta_map.items():
        if respuesta == 0 and code != "00":
            yield ("webpay", "respuesta_map"), f"{code} is no approval", "only 00 may be 0"
        elif respuesta in _READ_ONLY:
            yield ("webpay", "respuesta_map"), f"{respuesta} is never told to shops", ""
    if len(section.merchant) > MERCHANTS_MAX:
        yield ("webpay", "merchant"), f"more than {MERCHANTS_MAX}", ""
    for code, merchant in section.merchant.items():
        where = ("webpay", "merchant", code)
        if "100" in merchant.key_ids and not section.allow.key_100:
            yield (*where, "key_ids"), "has 100", "webpay.allow.key_100 = true, if it must be"
        if merchant.api_key and not _SECRET.fullmatch(merchant.api_key):
            yield (*where, "api_key"), "is no secret's place", "env:NAME or file:PATH"
        yield from _addresses(where, merchant, section.allow.private)
        yield from _returns(where, merchant, section.allow.private)
    for code, shop in shops.items():
        for key in ("acquirer_url", "notify_url"):
            if getattr(shop, key) and not _is_url(getattr(shop, key)):
                hint = "http or https, a host, a path"
                yield ("webpay_shop", code, key), "is not an address", hint
        if shop.closing != "store" and not _is_url(shop.closing):
            yield ("webpay_shop", code, "closing"), "is not an address", '"store", or a URL'


def _dates(section: Webpay) -> Iterator[Finding]:
    try:
        load_zone(section.timezone)
    except ValueError as error:
        hint = 'a name of the tz database, as "America/Santiago"'
        yield ("webpay", "timezone"), str(error), hint
    for number, text in enumerate(section.holidays):
        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            yield ("webpay", "holidays", f"[{number}]"), f"there is no {text}", ""


def _authentication(section: Webpay) -> Iterator[Finding]:
    """Passwords of holders go to known services only, over TLS unless on this machine."""
    given = section.authentication
    where = ("webpay", "authentication")
    if given.bank_key and not _SECRET.fullmatch(given.bank_key):
        yield (*where, "bank_key"), "is no secret's place", "env:NAME or file:PATH"
    if section.holder_auth == "all" and section.merchant and not given.bank_url:
        yield (*where, "bank_url"), "is missing", "holder_auth is all: who asks the banks?"
    urls: list[tuple[tuple[str, ...], str]] = [((*where, "bank_url"), given.bank_url)]
    urls += [(("webpay", "debit_banks"), bank.auth_url) for bank in section.debit_banks]
    for key, url in urls:
        if url and not _is_url(url):
            yield key, f"{url!r} is not an address", "https, a host, a path"
        elif url and urlsplit(url).scheme != "https" and not section.allow.private:
            yield key, "is not HTTPS", "webpay.allow.private = true where it is meant"


def _addresses(where: tuple[str, ...], m: Merchant, private: bool) -> Iterator[Finding]:
    """Where it is notified: known, whole, and in no private network unless that is allowed."""
    if m.notify_url and not _is_url(m.notify_url):
        yield (*where, "notify_url"), "is not an address", "http or https, a host, a path"
    address = None
    if m.notify_ip:
        try:
            address = ipaddress.ip_address(m.notify_ip)
        except ValueError:
            yield (*where, "notify_ip"), "is not an IP address", "names are not looked up"
    hint = "webpay.allow.private = true where it is meant"
    if address is not None and not address.is_global and not private:
        yield (*where, "notify_ip"), "is in a private network", hint
    for key in ("notify_url", "notify_ip", "notify_port"):
        if not getattr(m, key):
            yield (*where, key), "is missing", "its kit's; every request has to name it"
    if m.notify_mode == "kcc60":
        return
    closing = m.direct.closing_url
    if not _is_url(closing):
        yield (*where, "direct", "closing_url"), "is not an address", "the shop's closing page"
        return
    parts = urlsplit(closing)
    if parts.scheme != "https" and not private:
        yield (*where, "direct", "closing_url"), "is not HTTPS", hint
    elif _is_private(parts.hostname or "") and not private:
        yield (*where, "direct", "closing_url"), "is in a private network", hint


def _returns(where: tuple[str, ...], m: Merchant, private: bool) -> Iterator[Finding]:
    for host in m.return_hosts:
        if not _HOST.fullmatch(host):
            yield (*where, "return_hosts"), f"{host!r} is no host", "HOST or HOST:PORT"
        elif _is_private(host.partition(":")[0]) and not private:
            hint = "webpay.allow.private = true where it is meant"
            yield (*where, "return_hosts"), f"{host} is in a private network", hint


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_private(host: str) -> bool:
    if host in _LOOPBACK:
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False
