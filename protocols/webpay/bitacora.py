"""The Bitácora: one line per payment, `ACK` or `ERR` and the result; and what a line means.

    ACK, 0       charged: the shop accepted in time
    ACK, not 0   declined, and the shop knows
    ERR, not 0   declined, and the shop did not say so in time
    ERR, 0       charged and reversed: the shop rejected it, or did not accept it in time

Files of twenty years, copied by hand, wrapped by editors, cut by full disks, are read as far as
they can be.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Struct

from protocols.webpay.mac import signature_bytes, verify_mac
from protocols.webpay.pairs import Pairs

Style = Literal["seed", "kcc602"]
MacStatus = Literal["absent", "unchecked", "not_checkable", "ok", "bad"]
Keys = RSAPublicKey | Sequence[RSAPublicKey]
"""A key, or all that a signature may be by: files are older than keys."""

UNREADABLE: Final = "UNREADABLE"
CHECKED_PIECES_MAX: Final = 4096

COLUMNS: Final[tuple[tuple[str, str], ...]] = (
    ("respuesta", "TBK_RESPUESTA"),
    ("order", "TBK_ORDEN_COMPRA"),
    ("merchant", "TBK_CODIGO_COMERCIO"),
    ("amount", "TBK_MONTO"),
    ("auth_code", "TBK_CODIGO_AUTORIZACION"),
    ("accounting_date", "TBK_FECHA_CONTABLE"),
    ("tx_date", "TBK_FECHA_TRANSACCION"),
    ("tx_time", "TBK_HORA_TRANSACCION"),
    ("session", "TBK_ID_SESION"),
    ("tx_id", "TBK_ID_TRANSACCION"),
    ("type", "TBK_TIPO_TRANSACCION"),
    ("pay_type", "TBK_TIPO_PAGO"),
    ("instalments", "TBK_NUMERO_CUOTAS"),
)
"""What a record shows of its pairs, by the names of `troncal webpay bitacora`."""

_NOT_ZERO: Final = re.compile(r"-?[1-9][0-9]{0,3}", re.ASCII)
_START: Final = re.compile(r"[\s*-]*(ACK|ERR)\s*;")
_BEGINS: Final = re.compile(r"[\s*-]*(ACK|ERR)")
_DIVIDER: Final = re.compile(r";\s*(?=TBK[_ ][A-Z0-9 _]*=)")
_NAME: Final = re.compile(r"TBK[_ ][A-Z0-9 _]*")
_BLANKS: Final = re.compile(r"\s+")
_MMDD: Final = re.compile(r"[0-9]{4}", re.ASCII)


class Outcome(NamedTuple):
    """What became of a payment in the end."""

    name: str
    charged: bool
    reversed: bool


OUTCOMES: Final = {
    ("ACK", True): Outcome("CONFIRMED", True, False),
    ("ACK", False): Outcome("DECLINED", False, False),
    ("ERR", False): Outcome("DECLINED_UNACKED", False, False),
    ("ERR", True): Outcome("REVERSED", False, True),
}
"""By the prefix and whether TBK_RESPUESTA is zero."""


def outcome(prefix: str, respuesta: str) -> Outcome | None:
    """The outcome of a line; None: it cannot be told."""
    zero = respuesta == "0"
    if not zero and not _NOT_ZERO.fullmatch(respuesta):
        return None
    return OUTCOMES.get((prefix, zero))


# ---- writing


def line(prefix: str, merchant: str, pairs: Pairs, mac: str, style: Style = "seed") -> bytes:
    """One line, LF included.

    Args:
        pairs: the result, in order.
        style: `kcc602` leaves the merchant's code out of ERR lines, as kit 6.0.2 did.
    """
    code = (("TBK_CODIGO_COMERCIO", merchant),)
    with_code = style == "seed" or prefix == "ACK"
    whole = (*pairs[:1], *(code if with_code else ()), *pairs[1:], ("TBK_MAC", mac))
    return "".join((prefix, *(f"; {name}={value}" for name, value in whole), "\n")).encode(
        "latin-1"
    )


def file_name(pairs: Pairs) -> str:
    """The file a line belongs into: by type, and accounting date, else date of the transaction."""
    fields = dict(pairs)
    date = fields.get("TBK_FECHA_CONTABLE", "")
    if not _MMDD.fullmatch(date):
        date = fields.get("TBK_FECHA_TRANSACCION", "")
    return f"tbk_bitacora_{fields.get('TBK_TIPO_TRANSACCION', '')}_{date}.log"


# ---- reading


class Record(Struct, frozen=True, kw_only=True):
    """One record of a file.

    Attributes:
        line: its first physical line, from 1.
        outcome: None: it is unreadable; `pairs` then holds what could be read.
        mac: what the check of its MAC gave; it changes no outcome.
    """

    line: int
    prefix: str
    pairs: Pairs = ()
    outcome: Outcome | None = None
    mac: MacStatus = "absent"

    @property
    def outcome_name(self) -> str:
        return UNREADABLE if self.outcome is None else self.outcome.name

    def value(self, column: str) -> str | None:
        """The value of a column of `COLUMNS`; None where the record has none."""
        return dict(self.pairs).get(dict(COLUMNS)[column])


class Parsed(NamedTuple):
    """A file: its records in order, and how many lines were none."""

    records: list[Record]
    skipped: int


def parse(data: bytes, key: Keys | None = None) -> Parsed:
    """Read a file, whatever became of it; never raises.

    Args:
        key: checks the MACs; without one they are `unchecked`.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    keys = _keys(key)
    records: list[Record] = []
    skipped = 0
    for number, kind, content in _records(text.split("\n")):
        if kind == "record":
            records.append(_record(number, content, keys))
        elif kind == "unreadable":
            begins = _BEGINS.match(content)
            records.append(Record(line=number, prefix=begins[1] if begins else ""))
        else:
            skipped += 1
    return Parsed(records, skipped)


def _records(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """(first line, "record", its text), and for other lines "unreadable" or "skipped"."""
    parts: list[str] = []
    begun = 0
    open_ended = False  # the record under way goes on in the next line
    for number, raw in enumerate(lines, 1):
        text = raw.replace("\r", "")
        starts = _START.match(text) is not None
        if parts and (starts or not text.strip() or not open_ended):
            yield begun, "record", " ".join(parts)
            parts = []
        if starts or parts:
            begun = number if starts else begun
            parts.append(text.strip())
            has_mac = any("TBK_MAC" in part or "TBK MAC" in part for part in parts[-1:])
            open_ended = text.rstrip().endswith(";") and not has_mac
        elif text.strip():
            suspect = "TBK_" in text or "TBK " in text or _BEGINS.match(text) is not None
            yield number, "unreadable" if suspect else "skipped", text
    if parts:
        yield begun, "record", " ".join(parts)


def _record(number: int, text: str, keys: Sequence[RSAPublicKey]) -> Record:
    start = _START.match(text)
    assert start is not None, "a record begins with its prefix"
    prefix = start[1]
    first, *pieces = _DIVIDER.split(text[start.end() - 1 :])
    pairs = tuple(_pair(piece) for piece in pieces)
    fields = dict(pairs)
    readable = not first.strip() and len(fields) == len(pairs)
    found = outcome(prefix, fields.get("TBK_RESPUESTA", "")) if readable else None
    status = _check(pairs, fields.get("TBK_MAC"), keys) if found is not None else "absent"
    return Record(line=number, prefix=prefix, pairs=pairs, outcome=found, mac=status)


def _pair(piece: str) -> tuple[str, str]:
    name, _, value = piece.partition("=")
    name = name.strip().replace(" ", "_")
    value = value.strip().removesuffix(";").rstrip()
    return name, _BLANKS.sub("", value) if name == "TBK_MAC" else value


def _keys(key: Keys | None) -> Sequence[RSAPublicKey]:
    if key is None:
        return ()
    return (key,) if isinstance(key, RSAPublicKey) else key


def _check(pairs: Pairs, mac: str | None, keys: Sequence[RSAPublicKey]) -> MacStatus:
    if mac is None:
        return "absent"
    if not keys:
        return "unchecked"
    fitting = [key for key in keys if len(mac) == 2 * signature_bytes(key)]
    if not fitting or not re.fullmatch(r"[0-9A-Fa-f]+", mac, re.ASCII):
        return "not_checkable"
    return "ok" if any(verify_mac(pairs, mac, key) for key in fitting) else "bad"


# ---- `troncal webpay check-mac`


class MacCheck(NamedTuple):
    """Whether the MAC of a file of pairs is right; if not, why."""

    good: bool
    reason: str = ""


def check_mac(content: bytes, key: Keys) -> MacCheck:
    """Check the pairs of a file: joined by `&` in the order received, TBK_MAC anywhere."""
    text = content.decode("latin-1").rstrip("&\r\n")
    if not text:
        return MacCheck(False, "the file is empty")
    pieces = text.split("&")
    if len(pieces) > CHECKED_PIECES_MAX:
        return MacCheck(False, "too many pairs")
    pairs: list[tuple[str, str]] = []
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not equals:
            return MacCheck(False, "a piece has no =")
        pairs.append((name, value))
    fields = dict(pairs)
    if len(fields) < len(pairs):
        return MacCheck(False, "a name occurs twice")
    mac = fields.get("TBK_MAC")
    if mac is None:
        return MacCheck(False, "there is no TBK_MAC")
    good = any(verify_mac(pairs, mac, each) for each in _keys(key))
    return MacCheck(True) if good else MacCheck(False, "the MAC is wrong")
