"""The grammar of a payment request, and its checks in the order in which the first one decides.

Error numbers are places in the kit's own table of texts; only 0 and 1 were ever seen from Webpay.
"""

import hmac
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from protocols.webpay.mac import payment_mac
from protocols.webpay.pairs import Pairs, PairsError, parse_pairs

VERSION: Final = "6.0"
NORMAL: Final = "TR_NORMAL"
AMOUNT_DIGITS_MAX: Final = 10
URL_CHARACTERS_MAX: Final = 256
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

ERRORS: Final[Mapping[str, int]] = {
    "VERSION": 12,
    "MERCHANT": 14,
    "INACTIVE": 22,
    "KEY": 1,
    "SEAL": 1,
    "PAIRS": 1,
    "DUPLICATE_NAME": 1,
    "CODE_MISMATCH": 14,
    "PAYMENT_MAC": 1,
    "TYPE": 16,
    "UNKNOWN_NAME": 1,
    "TX_ID": 30,
    "AMOUNT": 33,
    "ORDER": 29,
    "SESSION": 94,
    "URL_OK": 31,
    "URL_FAIL": 32,
    "CGI_URL": 17,
    "CGI_SERVER": 18,
    "CGI_PORT": 19,
    "INSTALMENTS": 91,
    "DUPLICATE_ORDER": 21,
}
"""Error number of each refusal, by its tag."""

REQUIRED: Final = (
    "TBK_TIPO_TRANSACCION", "TBK_CODIGO_COMERCIO", "TBK_ID_TRANSACCION", "TBK_URL_CGI_COMERCIO",
    "TBK_SERVIDOR_COMERCIO", "TBK_PUERTO_COMERCIO", "TBK_VERSION_KCC", "TBK_KEY_ID", "TBK_MAC",
    "TBK_MONTO", "TBK_ORDEN_COMPRA", "TBK_URL_EXITO", "TBK_URL_FRACASO",
)  # fmt: skip
OPTIONAL: Final = ("PARAMVERIFCOM", "TBK_ID_SESION", "TBK_NUMERO_CUOTAS", "TBK_MONTO_CUOTA")
NAMES: Final = frozenset((*REQUIRED, *OPTIONAL))

_CODE: Final = re.compile(r"[0-9]{12}", re.ASCII)
_TX_ID: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_MD5: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_TEXT: Final = re.compile(r"(?! )[ -~]*(?<! )")
_TEXT_NOT: Final = frozenset("#&=%+;")
_COUNT: Final = re.compile(r"[0-9]{1,2}", re.ASCII)
_INSTALMENT: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_CLP: Final = re.compile(r"([1-9][0-9]{0,9})|([1-9][0-9]{0,6})\.00", re.ASCII)
_USD: Final = re.compile(r"([1-9][0-9]{0,9})|((?:0|[1-9][0-9]{0,6})\.[0-9]{2})", re.ASCII)
_URL: Final = re.compile(
    r"(https?)://([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?"
    r"((?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?)",
    re.ASCII,
)


class Url(NamedTuple):
    """An address a browser may be sent to."""

    scheme: str
    host: str  # lower case
    port: int
    rest: str  # path and query


class Refusal(NamedTuple):
    """A request is refused: by which check, and the number for it."""

    tag: str
    error: int


class Profile(Struct, frozen=True, kw_only=True):
    """A merchant as the checks of its requests see it.

    Attributes:
        notify_url: where its kit listens; requests name it, or its path.
        return_hosts: `host` (default port of the scheme) or `host:port` a browser may go back to.
    """

    code: str
    currency: str
    active: bool = True
    key_ids: tuple[str, ...] = ("101",)
    return_hosts: tuple[str, ...] = ()
    notify_url: str = ""
    notify_ip: str = ""
    notify_port: int = 0
    fixed_instalments: bool = False


class PaymentRequest(Struct, frozen=True, kw_only=True):
    """A payment request that passed all checks but that of its order.

    Attributes:
        amount: as the shop wrote it. hundredths: the same in hundredths of the currency's unit.
        session: empty where there is none.
        fixed: number and amount of the instalments the shop fixed; None: the holder chooses.
    """

    merchant: str
    key_id: str
    tx_id: str
    amount: str
    hundredths: int
    order: str
    session: str
    url_ok: str
    url_fail: str
    fixed: tuple[int, int] | None = None


def refusal(tag: str) -> Refusal:
    """The refusal of a tag, with its number."""
    return Refusal(tag, ERRORS[tag])


def parse_amount(text: str, currency: str) -> int | None:
    """Hundredths of an amount with two implied or explicit decimals; None where it is none."""
    found = (_CLP if currency == "CLP" else _USD).fullmatch(text)
    if found is None:
        return None
    if found[1] is not None:
        hundredths = int(found[1])
        return None if currency == "CLP" and hundredths % 100 else hundredths
    if currency == "CLP":
        return int(found[2]) * 100
    return int(found[2].replace(".", "")) or None


def de4_amount(hundredths: int, exponent: int) -> int | None:
    """An amount in the unit a host counts in: 10^-exponent; None where it has no whole number."""
    scaled = hundredths * 10**exponent
    return None if scaled % 100 else scaled // 100


def is_text(text: str, most: int) -> bool:
    """Tell whether a value is one that old kits pass on unharmed: 1 to `most` characters."""
    return (
        0 < len(text) <= most
        and _TEXT.fullmatch(text) is not None
        and not _TEXT_NOT.intersection(text)
    )


def parse_url(text: str) -> Url | None:
    """Read an address of 1 to 256 characters; None where it is none, or has a user part."""
    found = _URL.fullmatch(text) if len(text) <= URL_CHARACTERS_MAX else None
    if found is None:
        return None
    scheme, host, port = found[1], found[2].lower(), found[3]
    number = DEFAULT_PORTS[scheme] if port is None else int(port)
    return Url(scheme, host, number, found[4]) if 0 < number < 65536 else None


def is_returnable(url: Url, hosts: tuple[str, ...]) -> bool:
    """Tell whether a browser may be sent there: `hosts` as of `Profile.return_hosts`."""
    for entry in hosts:
        host, colon, port = entry.lower().partition(":")
        if host == url.host and url.port == (int(port) if colon else DEFAULT_PORTS[url.scheme]):
            return True
    return False


def check_clear(clear: Mapping[str, str], profiles: Mapping[str, Profile]) -> Profile | Refusal:
    """The checks that come before the seal is opened.

    Args:
        clear: the fields beside `TBK_PARAM`, those that came.
    """
    if clear.get("TBK_VERSION_KCC") != VERSION:
        return refusal("VERSION")
    code = clear.get("TBK_CODIGO_COMERCIO", "")
    profile = profiles.get(code) if _CODE.fullmatch(code) else None
    if profile is None:
        return refusal("MERCHANT")
    if not profile.active:
        return refusal("INACTIVE")
    if clear.get("TBK_KEY_ID") not in profile.key_ids:
        return refusal("KEY")
    return profile


def check_message(
    clear: Mapping[str, str], message: bytes, profile: Profile
) -> PaymentRequest | Refusal:
    """The checks of an opened message, all but that of the order's history."""
    try:
        pairs = parse_pairs(message)
    except PairsError as error:
        return refusal(error.tag)
    fields = dict(pairs)
    tag = _identity(clear, pairs, fields) or _content(fields, profile)
    if tag:
        return refusal(tag)
    count = fields.get("TBK_NUMERO_CUOTAS")
    hundredths = parse_amount(fields["TBK_MONTO"], profile.currency)
    assert hundredths is not None, "the amount was checked"
    return PaymentRequest(
        merchant=profile.code,
        key_id=fields["TBK_KEY_ID"],
        tx_id=fields["TBK_ID_TRANSACCION"],
        amount=fields["TBK_MONTO"],
        hundredths=hundredths,
        order=fields["TBK_ORDEN_COMPRA"],
        session=fields.get("TBK_ID_SESION", ""),
        url_ok=fields["TBK_URL_EXITO"],
        url_fail=fields["TBK_URL_FRACASO"],
        fixed=None if count is None else (int(count), int(fields["TBK_MONTO_CUOTA"])),
    )


def check_request(
    clear: Mapping[str, str], message: bytes, profiles: Mapping[str, Profile]
) -> PaymentRequest | Refusal:
    """All checks of a request whose seal has opened to `message`."""
    profile = check_clear(clear, profiles)
    return profile if isinstance(profile, Refusal) else check_message(clear, message, profile)


def _identity(clear: Mapping[str, str], pairs: Pairs, fields: Mapping[str, str]) -> str:
    """Who and what it is by its own word, and whether its checksum and names are right."""
    for name, tag in (
        ("TBK_CODIGO_COMERCIO", "CODE_MISMATCH"),
        ("TBK_VERSION_KCC", "VERSION"),
        ("TBK_KEY_ID", "KEY"),
    ):
        if fields.get(name) != clear.get(name):
            return tag
    mac = fields.get("TBK_MAC", "")
    right = payment_mac(pairs, fields["TBK_CODIGO_COMERCIO"])
    if not _MD5.fullmatch(mac) or not hmac.compare_digest(mac, right):
        return "PAYMENT_MAC"
    if fields.get("TBK_TIPO_TRANSACCION") != NORMAL:
        return "TYPE"
    return "" if NAMES.issuperset(fields) else "UNKNOWN_NAME"


def _content(fields: Mapping[str, str], profile: Profile) -> str:
    session = fields.get("TBK_ID_SESION", "")
    checks = (
        ("TX_ID", _TX_ID.fullmatch(fields.get("TBK_ID_TRANSACCION", ""))),
        ("AMOUNT", parse_amount(fields.get("TBK_MONTO", ""), profile.currency)),
        ("ORDER", is_text(fields.get("TBK_ORDEN_COMPRA", ""), 26)),
        ("SESSION", not session or is_text(session, 61)),
        ("URL_OK", _is_return(fields.get("TBK_URL_EXITO", ""), profile)),
        ("URL_FAIL", _is_return(fields.get("TBK_URL_FRACASO", ""), profile)),
        ("CGI_URL", _is_notify(fields.get("TBK_URL_CGI_COMERCIO", ""), profile)),
        ("CGI_SERVER", fields.get("TBK_SERVIDOR_COMERCIO") == profile.notify_ip),
        ("CGI_PORT", fields.get("TBK_PUERTO_COMERCIO") == str(profile.notify_port)),
        ("INSTALMENTS", _are_instalments(fields, profile)),
    )
    return next((tag for tag, good in checks if not good), "")


def _is_return(text: str, profile: Profile) -> bool:
    url = parse_url(text)
    return url is not None and is_returnable(url, profile.return_hosts)


def _is_notify(text: str, profile: Profile) -> bool:
    parts = urlsplit(profile.notify_url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return bool(text) and text in (profile.notify_url, path)


def _are_instalments(fields: Mapping[str, str], profile: Profile) -> bool:
    count, each = fields.get("TBK_NUMERO_CUOTAS"), fields.get("TBK_MONTO_CUOTA")
    if count is None and each is None:
        return True
    if not profile.fixed_instalments or count is None or each is None:
        return False
    return bool(_COUNT.fullmatch(count) and 2 <= int(count) <= 48 and _INSTALMENT.fullmatch(each))
