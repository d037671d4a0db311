"""The daily conciliation file: the example of the specification, both forms, every mistake told."""

import hashlib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.reports.daily_file import (
    DailyFile,
    Detail,
    FileRefused,
    Form,
    Header,
    LineEnd,
    document_hash,
    file_name,
    network_key,
    parse_name,
    write,
)

KEY = b"12345678901234567890123456789012"
HEADER = Header("0012", "20260101", 1, "20260102031500")
EXAMPLE = Detail(
    "00120000123420260101000123", "C", "260010000123", document_hash(KEY, "CI", "4123456"),
    150_000, "E", "A7K2Q9", "20260101", "090512", "000017", "000045", 0, 0,
)  # fmt: skip
TEXT = """\
H;1;0012;20260101;1;20260102031500
D;00120000123420260101000123;C;260010000123;b2534e5e58cd3ca2;150000;E;A7K2Q9;20260101;090512;000017;000045;0;0
T;1;150000;0;0;0b433269566315c06ef5d2800a074c57b097b3ebc83982fc2ab4008725b72a10
"""
CSV, FIXED = "CONC_0012_20260101_1.csv", "CONC_0012_20260101_1.txt"


def test_example_of_the_specification(tmp_path: Path) -> None:
    write(tmp_path / CSV, HEADER, [EXAMPLE], "csv")
    assert (tmp_path / CSV).read_text() == TEXT
    assert [path.name for path in tmp_path.iterdir()] == [CSV]


def test_fixed_width_has_128_columns(tmp_path: Path) -> None:
    write(tmp_path / FIXED, HEADER, [EXAMPLE], "fixed")
    lines = (tmp_path / FIXED).read_text().splitlines()
    assert [len(line) for line in lines] == [128] * 3
    assert lines[1] == (
        "D00120000123420260101000123C260010000123b2534e5e58cd3ca2000000150000EA7K2Q9"
        "2026010109051200001700004500000000000000000000       "
    )
    before = "".join(line + "\n" for line in lines[:2]).encode()
    assert lines[2][53:117] == hashlib.sha256(before).hexdigest()


def test_names() -> None:
    assert file_name("0012", "20260101", 12, "fixed") == "CONC_0012_20260101_12.txt"
    assert parse_name("CONC_0012_20260101_12.txt") == ("0012", "20260101", 12, "fixed")
    for name in ("CONC_12_20260101_1.csv", "CONC_0012_20261301_1.csv", "CONC_0012_20260101_0.csv",
                 "CONC_0012_20260101_1.csv.OK", "conc_0012_20260101_1.csv"):  # fmt: skip
        assert parse_name(name) is None


def test_keys_of_networks_differ() -> None:
    assert network_key(KEY, "0012") != network_key(KEY, "0013")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> object:
        yield EXAMPLE
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write(tmp_path / CSV, HEADER, rows(), "csv")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# ---- what is refused


def refused(directory: Path, data: bytes, name: str = CSV) -> list[tuple[int, str]]:
    path = directory / name
    path.write_bytes(data)
    with pytest.raises(FileRefused) as caught:
        list(DailyFile(path).details())
    return [(m.line, m.field) for m in caught.value.mistakes]


H, D, T = TEXT.splitlines()


NOT_AS_NAMED = "network, business_date or file_version"


def balanced(*details: str) -> bytes:
    """A CSV file of these lines with a trailer whose hash is right."""
    before = "".join(line + "\n" for line in (H, *details)).encode()
    sha256 = hashlib.sha256(before).hexdigest()
    return before + f"T;{len(details)};{150_000 * len(details)};0;0;{sha256}\n".encode()


CELLS = {
    "reference": (1, ("", "12", "0012000012342026010100012x", "001200001234202601010001233")),
    "kind": (2, ("", "X", "CD", "c")),
    "operation": (3, ("26001000012", "26001000012a")),
    "document_hash": (4, ("", "B2534E5E58CD3CA2", "b2534e5e58cd3ca")),
    "amount": (5, ("", "-1", "1.5", "1000000000000", "1e3", "+1", " 1")),
    "state": (6, ("", "Z", "r")),
    "authorization": (7, ("A7K2Q9X", "A7K Q9", "=1+1")),
    "business_date": (8, ("", "20261301", "20260230", "2026-01-01", "19990101")),
    "hhmmss": (9, ("", "240000", "096012", "0905")),
    "branch": (10, ("", "17", "0000017")),
    "cashier": (11, ("", "45")),
    "fee": (12, ("", "12345678901")),
    "commission": (13, ("", "x")),
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, (_, values) in CELLS.items() for v in values]
)
def test_every_field_of_a_detail(tmp_path: Path, field: str, value: str) -> None:
    cells = D.split(";")
    cells[CELLS[field][0]] = value
    assert refused(tmp_path, balanced(D, ";".join(cells))) == [(3, field)]


def test_line_of_another_network(tmp_path: Path) -> None:
    line = D.replace(";0012", ";0013", 1)
    assert refused(tmp_path, balanced(line)) == [(2, "reference")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (1, "record")),
        (b"\xef\xbb\xbf" + TEXT.encode(), (1, "record")),
        (TEXT.replace("H;1", "H;2").encode(), (1, "format_version")),
        (TEXT.replace("H;1;0012", "H;1;0013").encode(), (1, NOT_AS_NAMED)),
        (TEXT.replace("\nT", "\n\nT").encode(), (3, "record")),
        (TEXT.replace("A7K2Q9", "A7K2Qé").encode(), (2, "")),
        (TEXT.replace("A7K2Q9", "A7K2Qé").encode("latin-1"), (2, "")),
        (TEXT.replace(";0;0\n", ";0;0;0\n").encode(), (2, "")),
        (TEXT.replace("A7K2Q9", "A" * 600).encode(), (2, "")),
        ((TEXT + D + "\n").encode(), (4, "record")),
        ((TEXT + "\n").encode(), (4, "record")),
        (TEXT[: TEXT.index("T;")].encode(), (0, "trailer")),
        (TEXT[:90].encode(), (2, "record")),
        (TEXT.replace("T;1;", "T;2;").encode(), (0, "trailer.count")),
        (TEXT.replace("T;1;150000", "T;1;150001").encode(), (0, "trailer.cash_out")),
        (TEXT.replace("T;1;150000;0;0", "T;1;150000;0;1").encode(), (0, "trailer.commission")),
        (TEXT.replace("0b43", "0b44").encode(), (0, "trailer.sha256")),
        (TEXT.replace("0b43", "zz43").encode(), (3, "sha256")),
    ],
)  # fmt: skip
def test_every_other_mistake(tmp_path: Path, data: bytes, expected: tuple[int, str]) -> None:
    assert refused(tmp_path, data)[0] == expected


def test_all_mistakes_are_told_up_to_a_bound(tmp_path: Path) -> None:
    bad = D.replace(";E;", ";Z;")
    path = tmp_path / CSV
    path.write_bytes(balanced(*[bad] * 300))
    with pytest.raises(FileRefused) as caught:
        list(DailyFile(path).details())
    assert (len(caught.value.mistakes), caught.value.count) == (100, 300)
    assert "Z" not in str(caught.value)  # never the value


def test_fixed_width_mistakes(tmp_path: Path) -> None:
    write(tmp_path / FIXED, HEADER, [EXAMPLE], "fixed")
    good = (tmp_path / FIXED).read_bytes()
    lines = good.splitlines(keepends=True)
    assert refused(tmp_path, lines[0] + lines[1][:100] + b"\n" + lines[2], FIXED)[0] == (2, "")
    filler = lines[1][:125] + b"x" + lines[1][126:]
    assert refused(tmp_path, lines[0] + filler + lines[2], FIXED)[0] == (2, "filler")


def test_line_ends_may_be_either_and_the_last_may_lack(tmp_path: Path) -> None:
    for line_end in get_args(LineEnd):
        write(tmp_path / CSV, HEADER, [EXAMPLE], "csv", line_end)
        path = tmp_path / CSV
        path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
        assert [d for _, d in DailyFile(path).details()] == [EXAMPLE]


# ---- written, read, the same

digits = st.text("0123456789", min_size=6, max_size=6)
details = st.builds(
    Detail,
    reference=st.integers(0, 10**22 - 1).map(lambda n: f"0012{n:022d}"),
    kind=st.sampled_from("CD"),
    operation=st.one_of(st.just(""), st.integers(1, 10**12 - 1).map(lambda n: f"{n:012d}")),
    document_hash=st.text("0123456789abcdef", min_size=16, max_size=16),
    amount=st.integers(0, 10**12 - 1),
    state=st.sampled_from("REANX"),
    authorization=st.text("ABCXYZ0189", max_size=6),
    business_date=st.sampled_from(("20260101", "20251231")),
    hhmmss=st.sampled_from(("000000", "235959", "090512")),
    branch=digits,
    cashier=digits,
    fee=st.integers(0, 10**10 - 1),
    commission=st.integers(0, 10**10 - 1),
)


@given(st.lists(details, max_size=20), st.sampled_from(("csv", "fixed")), st.booleans())
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Detail], form: Form, crlf: bool
) -> None:
    path = tmp_path_factory.mktemp("f") / file_name("0012", "20260101", 1, form)
    trailer = write(path, HEADER, rows, form, "crlf" if crlf else "lf")
    file = DailyFile(path)
    assert [detail for _, detail in file.details()] == rows
    assert (file.header, file.trailer) == (HEADER, trailer)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    paid = [d for d in rows if d.state in "RE"]
    assert trailer.cash_out == sum(d.amount for d in paid if d.kind == "C")
    assert trailer.deposit == sum(d.amount for d in paid if d.kind == "D")


@given(st.lists(details, min_size=1, max_size=3), st.data())
def test_no_byte_may_change(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Detail], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("f") / CSV
    write(path, HEADER, rows, "csv")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 2))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(FileRefused):
        list(DailyFile(path).details())
