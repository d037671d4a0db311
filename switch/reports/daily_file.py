"""The daily conciliation file: one per network and business date, as `;` separated or fixed width.

    CONC_<network>_<yyyymmdd>_<version>.csv | .txt
    H  header     format version, network, business date, file version, generated (UTC)
    D  detail     one operation: kind, number, amount, state, … as `Detail`
    T  trailer    count of details, sums over R and E, SHA-256 of all bytes before the trailer

Every field is digits, letters of ASCII or hex, so that UTF-8 and ISO-8859-1 are the same bytes.
Files are written and read as streams; nothing here holds a day. A file is balanced when count,
sums and hash agree, else it is refused whole. Source: cashier domain specification, section 7.
"""

import datetime
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

from msgspec import Struct

Form = Literal["csv", "fixed"]
LineEnd = Literal["lf", "crlf"]

FORMAT_VERSION: Final = 1
VERSION_MAX: Final = 999
FIXED_COLUMNS: Final = 128
LINE_BYTES_MAX: Final = 512
MISTAKES_MAX: Final = 100
"""Mistakes of one file that are told; more are only counted."""

PAID: Final = frozenset("RE")
"""States in which cash has moved: only these count in the sums."""

SUFFIXES: Final[dict[Form, str]] = {"csv": ".csv", "fixed": ".txt"}
_ENDS: Final[dict[LineEnd, bytes]] = {"lf": b"\n", "crlf": b"\r\n"}
_NAME = re.compile(r"CONC_([0-9]{4})_([0-9]{8})_([0-9]{1,3})\.(csv|txt)", re.ASCII)
_DATE = re.compile(r"(20[0-9]{2})(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])", re.ASCII)


class Header(Struct, frozen=True, gc=False):
    """Whose file it is. `business_date` is yyyymmdd, `generated` yyyyMMddHHmmss in UTC."""

    network: str
    business_date: str
    version: int
    generated: str


class Detail(Struct, frozen=True, gc=False):
    """One operation.

    Fields:
        kind: C cash_out, D deposit.
        operation: sicoop's number, 12 digits; empty where it never got one.
        document_hash: 16 hex digits of a keyed hash; zeros where the document is not known.
        state: R registered, E cash moved, A annulled, N declined, X error or reversed.
        business_date, hhmmss: yyyymmdd, and the local time of day.
        amount, fee, commission: minor units.
    """

    reference: str
    kind: str
    operation: str
    document_hash: str
    amount: int
    state: str
    authorization: str
    business_date: str
    hhmmss: str
    branch: str
    cashier: str
    fee: int
    commission: int


class Trailer(Struct, frozen=True, gc=False):
    """Control totals; the sums are over details in R and E."""

    count: int
    cash_out: int
    deposit: int
    commission: int
    sha256: str


class Mistake(NamedTuple):
    """One thing wrong with a file. `line` counts from 1, 0 is the file; values are never told."""

    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.field + ': ' if self.field else ''}{self.reason}"


class FileRefused(ValueError):
    """A file that is malformed or not balanced; nothing of it counts.

    Attributes:
        mistakes: at most MISTAKES_MAX of them. count: how many there are.
    """

    def __init__(self, mistakes: list[Mistake], count: int = 0) -> None:
        super().__init__("; ".join(map(str, mistakes[:3])) or "refused")
        self.mistakes = mistakes
        self.count = max(count, len(mistakes))


class _Field(NamedTuple):
    name: str
    width: int
    number: bool  # zero-padded left in the fixed form, no padding in the other; else text
    pattern: re.Pattern[str]
    optional: bool = False


def _number(name: str, digits: int) -> _Field:
    return _Field(name, digits, True, re.compile(rf"[0-9]{{1,{digits}}}", re.ASCII))


def _text(name: str, width: int, pattern: str, optional: bool = False) -> _Field:
    return _Field(name, width, False, re.compile(pattern, re.ASCII), optional)


_HEADER: Final = (
    _text("record", 1, "H"),
    _number("format_version", 2),
    _text("network", 4, "[0-9]{4}"),
    _text("business_date", 8, _DATE.pattern),
    _number("file_version", 3),
    _text("generated", 14, r"[0-9]{14}"),
)
_DETAIL: Final = (
    _text("record", 1, "D"),
    _text("reference", 26, "[0-9]{26}"),
    _text("kind", 1, "[CD]"),
    _text("operation", 12, "[0-9]{12}", optional=True),
    _text("document_hash", 16, "[0-9a-f]{16}"),
    _number("amount", 12),
    _text("state", 1, "[REANX]"),
    _text("authorization", 6, "[0-9A-Za-z]{1,6}", optional=True),
    _text("business_date", 8, _DATE.pattern),
    _text("hhmmss", 6, "([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9]"),
    _text("branch", 6, "[0-9]{6}"),
    _text("cashier", 6, "[0-9]{6}"),
    _number("fee", 10),
    _number("commission", 10),
)
_TRAILER: Final = (
    _text("record", 1, "T"),
    _number("count", 7),
    _number("cash_out", 15),
    _number("deposit", 15),
    _number("commission", 15),
    _text("sha256", 64, "[0-9a-f]{64}"),
)
_RECORDS: Final = {"H": _HEADER, "D": _DETAIL, "T": _TRAILER}


def document_hash(key: bytes, document_type: str, number: str) -> str:
    """How a file names a person: `key` is the network's conciliation key."""
    text = f"DOC1|{document_type}|{number}".encode()
    return hmac.digest(key, text, "sha256").hex()[:16]


def network_key(key: bytes, network: str) -> bytes:
    """The conciliation key of one network, from the node's."""
    return hmac.digest(key, f"CONC1|{network}".encode(), "sha256")


def file_name(network: str, business_date: str, version: int, form: Form) -> str:
    """`business_date` is yyyymmdd."""
    return f"CONC_{network}_{business_date}_{version}{SUFFIXES[form]}"


class Name(NamedTuple):
    """What a file's name says it is."""

    network: str
    business_date: str
    version: int
    form: Form


def parse_name(name: str) -> Name | None:
    """None: no name of a conciliation file."""
    found = _NAME.fullmatch(name)
    if found is None or not _DATE.fullmatch(found[2]) or int(found[3]) < 1:
        return None
    return Name(found[1], found[2], int(found[3]), "csv" if found[4] == "csv" else "fixed")


# ---- writing


class Writer:
    """Writes one file into a stream; the totals are known when `close` has written the trailer."""

    def __init__(
        self, stream: BinaryIO, header: Header, form: Form = "csv", line_end: LineEnd = "lf"
    ) -> None:
        assert 1 <= header.version <= VERSION_MAX, "a version has at most three digits"
        self._stream = stream
        self._form = form
        self._end = _ENDS[line_end]
        self._hash = hashlib.sha256()
        self._totals = Totals()
        self._put(_HEADER, ("H", FORMAT_VERSION, *_values(header)))

    def add(self, detail: Detail) -> None:
        """Write one operation."""
        self._totals.add(detail)
        self._put(_DETAIL, ("D", *_values(detail)))

    def close(self) -> Trailer:
        """Write the trailer and return it."""
        trailer = self._totals.trailer(self._hash.hexdigest())
        self._stream.write(_line(_TRAILER, ("T", *_values(trailer)), self._form) + self._end)
        return trailer

    def _put(self, fields: tuple[_Field, ...], values: tuple[object, ...]) -> None:
        data = _line(fields, values, self._form) + self._end
        self._hash.update(data)
        self._stream.write(data)


def write(
    path: Path, header: Header, details: Iterable[Detail], form: Form, line_end: LineEnd = "lf"
) -> Trailer:
    """Write a file so that it is there whole, or not at all, also after a power cut."""
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as stream:
            writer = Writer(stream, header, form, line_end)
            for detail in details:
                writer.add(detail)
            trailer = writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)
    return trailer


def sync_directory(path: Path) -> None:
    """Make a new name in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(fields: tuple[_Field, ...], values: tuple[object, ...], form: Form) -> bytes:
    if form == "csv":
        return ";".join(map(str, values)).encode("ascii")
    cells = []
    for field, value in zip(fields, values, strict=True):
        text = str(value)
        if field.number or field.name == "operation":
            text = text.zfill(field.width)
        cells.append(text.ljust(field.width))
        assert len(cells[-1]) == field.width, f"{field.name} is wider than its column"
    return "".join(cells).ljust(FIXED_COLUMNS).encode("ascii")


def _values(record: Header | Detail | Trailer) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in record.__struct_fields__)


class Totals:
    """Control totals of the details that were added."""

    def __init__(self) -> None:
        self.count = self.cash_out = self.deposit = self.commission = 0

    def add(self, detail: Detail) -> None:
        self.count += 1
        if detail.state in PAID:
            if detail.kind == "C":
                self.cash_out += detail.amount
            else:
                self.deposit += detail.amount
            self.commission += detail.commission

    def trailer(self, sha256: str) -> Trailer:
        return Trailer(self.count, self.cash_out, self.deposit, self.commission, sha256)


# ---- reading


class DailyFile:
    """One file as it is read: `details` yields its operations with their lines, in order.

    Everything is checked on the way, so the file is known to be sound only when `details` has come
    to its end.

    Attributes:
        header: known from the start.
        trailer: known at the end. sha256: of the whole file, likewise.
    """

    def __init__(self, path: Path) -> None:
        """Raises: FileRefused: the name or the header is not that of such a file. OSError."""
        name = parse_name(path.name)
        if name is None:
            raise FileRefused([Mistake(0, "name", "not CONC_<network>_<yyyymmdd>_<version>.csv")])
        self.path = path
        self.name = name
        self._mistakes: list[Mistake] = []
        self._count = 0
        self.trailer: Trailer | None = None
        self.sha256 = ""
        with open(path, "rb") as stream:
            self.header = self._header(stream.readline(LINE_BYTES_MAX + 1))
        if self._mistakes:
            raise FileRefused(self._mistakes)

    def details(self) -> Iterator[tuple[int, Detail]]:
        """Yield (line, detail).

        Raises:
            FileRefused: at the end, with all that is wrong: malformed lines, a missing or early
                trailer, count, sums or hash that do not agree.
        """
        totals, before, whole = Totals(), hashlib.sha256(), hashlib.sha256()
        self.trailer = None
        with open(self.path, "rb") as stream:
            for number, raw in enumerate(_lines(stream), start=1):
                whole.update(raw)
                if self.trailer is not None:
                    self._note(number, "record", "nothing may follow the trailer")
                    break
                if number > 1 and raw[:1] == b"T":
                    self.trailer = self._trailer(number, raw)
                    continue
                before.update(raw)
                if number == 1:
                    continue
                detail = self._detail(number, raw)
                if detail is not None:
                    totals.add(detail)
                    yield number, detail
        self.sha256 = whole.hexdigest()
        self._balance(totals.trailer(before.hexdigest()))
        if self._mistakes:
            raise FileRefused(self._mistakes, self._count)

    def _balance(self, found: Trailer) -> None:
        if self.trailer is None:
            if not self._mistakes or self._mistakes[-1].field != "record":
                self._note(0, "trailer", "missing: the file is cut short")
            return
        if self._mistakes:
            return  # lines that could not be read are missing from the totals
        for field in Trailer.__struct_fields__:
            if getattr(found, field) != getattr(self.trailer, field):
                self._note(0, f"trailer.{field}", "does not agree with the lines before it")

    def _header(self, raw: bytes) -> Header:
        empty = Header("", "", 0, "")
        if raw.startswith(b"\xef\xbb\xbf"):
            self._note(1, "record", "a byte order mark stands before it")
            return empty
        values = self._split(1, raw, "H")
        if values is None:
            return empty
        header = Header(values[2], values[3], int(values[4]), values[5])
        if int(values[1]) != FORMAT_VERSION:
            self._note(1, "format_version", f"is not {FORMAT_VERSION}")
        if (header.network, header.business_date, header.version) != self.name[:3]:
            self._note(1, "network, business_date or file_version", "is not that of the name")
        return header

    def _detail(self, number: int, raw: bytes) -> Detail | None:
        v = self._split(number, raw, "D")
        if v is None:
            return None
        if v[1][:4] != self.header.network:
            self._note(number, "reference", "is of another network")
            return None
        operation = "" if v[3] == "0" * 12 else v[3]
        return Detail(
            v[1], v[2], operation, v[4], int(v[5]), v[6], v[7], v[8], v[9], v[10], v[11],
            int(v[12]), int(v[13]),
        )  # fmt: skip

    def _trailer(self, number: int, raw: bytes) -> Trailer | None:
        v = self._split(number, raw, "T")
        if v is None:
            return Trailer(0, 0, 0, 0, "")  # that there is one is known; what is wrong is noted
        return Trailer(int(v[1]), int(v[2]), int(v[3]), int(v[4]), v[5])

    def _split(self, number: int, raw: bytes, kind: str) -> list[str] | None:
        """The fields of a line, each checked; None where something is wrong, which is noted."""
        found = self._fields(raw, kind)
        if isinstance(found, list):
            return found
        self._note(number, *found)
        return None

    def _fields(self, raw: bytes, kind: str) -> list[str] | tuple[str, str]:
        """The fields of a line; else the field that is wrong, and how."""
        if len(raw) > LINE_BYTES_MAX:
            return "", f"longer than {LINE_BYTES_MAX} bytes"
        if not raw.endswith(b"\n") and kind != "T":
            return "record", "cut short: no end of line"
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not line.isascii():
            return "", "holds other bytes than ASCII"
        text = line.decode("ascii")
        if text[:1] != kind:
            return "record", f"is not {kind}"
        fields = _RECORDS[kind]
        if self.name.form == "csv":
            values = text.split(";")
            if len(values) != len(fields):
                return "", f"has {len(values)} fields, not {len(fields)}"
        else:
            if len(text) != FIXED_COLUMNS:
                return "", f"has {len(text)} columns, not {FIXED_COLUMNS}"
            values = _columns(fields, text)
            if text[sum(field.width for field in fields) :].strip(" "):
                return "filler", "is not blank"
        for field, value in zip(fields, values, strict=True):
            if not (field.pattern.fullmatch(value) or (field.optional and not value)):
                return field.name, "is not valid"
            if field.name == "business_date" and not _is_date(value):
                return field.name, "is no such day"
        return values

    def _note(self, line: int, field: str, reason: str) -> None:
        self._count += 1
        if len(self._mistakes) < MISTAKES_MAX:
            self._mistakes.append(Mistake(line, field, reason))


@lru_cache(maxsize=16)
def _is_date(value: str) -> bool:
    try:
        datetime.date(int(value[:4]), int(value[4:6]), int(value[6:]))
    except ValueError:
        return False
    return True


def _columns(fields: tuple[_Field, ...], text: str) -> list[str]:
    values, start = [], 0
    for field in fields:
        value = text[start : start + field.width]
        values.append(value if field.number else value.rstrip(" "))
        start += field.width
    return values


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of a file, bounded: of one that is too long the rest is passed over."""
    while line := stream.readline(LINE_BYTES_MAX + 1):
        yield line
        while len(line) > LINE_BYTES_MAX and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES_MAX + 1)
