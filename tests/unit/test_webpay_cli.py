"""`troncal webpay`: outputs and exit codes as the old kit's programs had them (WP-54)."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from switch.cli import root
from switch.cli import setup as made
from switch.products.webpay_shop import ORDERS
from switch.web.webpay_orders import Orders
from tests.webpay_shops import private_pem, public, public_pem, vectors

CHECK_MAC = vectors()["check_mac"]
PARSED = vectors()["bitacora_parse"]
ROUND_TRIPS = vectors()["kit_round_trip"]


def run(*arguments: object, given: str = "") -> Result:
    """One command; what it printed and its exit code. `given`: its standard input."""
    words = [str(a) for a in arguments]
    return CliRunner().invoke(root, words, input=given, catch_exceptions=False)


def pem(directory: Path, name: str) -> Path:
    path = directory / f"{name}.pem"
    path.write_bytes(public_pem(name))
    return path


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The configuration of an empty node."""
    return made.make(tmp_path / "node").path


# ---- check-mac


@pytest.mark.parametrize("case", CHECK_MAC, ids=lambda case: f"WP-54-{case['id']}")
def test_check_mac_says_and_exits_as_the_kits_program(tmp_path: Path, case: Any) -> None:
    file = tmp_path / "received"
    file.write_bytes(case["file"].encode("latin-1"))
    done = run("webpay", "check-mac", file, "--key", pem(tmp_path, case["key"]))
    assert (done.stdout, done.exit_code) == (case["expect"]["stdout"], case["expect"]["exit"])
    assert bool(done.stderr) == (case["expect"]["exit"] != 0)


def test_wp_54_a_missing_file_is_invalid_and_a_wrong_key_is_wrong_usage(tmp_path: Path) -> None:
    done = run("webpay", "check-mac", tmp_path / "none", "--key", pem(tmp_path, "webpay_cert_101"))
    assert (done.stdout, done.exit_code) == ("INVALIDO\n", 255)
    (tmp_path / "text.pem").write_text("no key")
    for arguments in ((), ("a", "b"), (tmp_path, "--key", tmp_path / "text.pem")):
        done = run("webpay", "check-mac", *arguments)
        assert (done.stdout, done.exit_code) == ("", 2)


@given(content=st.binary(max_size=300))
def test_wp_54_check_mac_never_crashes(content: bytes) -> None:
    with TemporaryDirectory() as directory:
        file = Path(directory, "f")
        file.write_bytes(content)
        key = pem(Path(directory), "webpay_cert_101")
        done = run("webpay", "check-mac", file, "--key", key)
    assert (done.stdout, done.exit_code) == ("INVALIDO\n", 255)


# ---- bitacora


@given(
    content=st.binary(max_size=300) | st.sampled_from([c["text"] for c in PARSED]).map(
        lambda text: text.encode("latin-1")[: len(text) * 2 // 3]
    ),
    events=st.binary(max_size=300),
    form=st.sampled_from(["table", "json", "csv"]),
)  # fmt: skip
def test_wp_54_bitacora_never_crashes(content: bytes, events: bytes, form: str) -> None:
    with TemporaryDirectory() as directory:
        Path(directory, "b").write_bytes(content)
        Path(directory, "e").write_bytes(events)
        done = run(
            "webpay", "bitacora", Path(directory, "b"), "--events", Path(directory, "e"),
            "--format", form, "--key", pem(Path(directory), "webpay_cert_101"),
        )  # fmt: skip
    assert done.exit_code in (0, 1)
    if form == "json":
        assert isinstance(json.loads(done.stdout), list)


@pytest.mark.parametrize("case", PARSED, ids=lambda case: f"WP-54-{case['id']}")
def test_bitacora_prints_every_record_in_all_formats(tmp_path: Path, case: Any) -> None:
    file = tmp_path / "tbk_bitacora.log"
    file.write_bytes(case["text"].encode("latin-1"))
    key = ("--key", pem(tmp_path, case["key"])) if case["key"] else ()
    expected = case["expect"]["records"]
    bad = any(r["outcome"] == "UNREADABLE" or r.get("mac") == "bad" for r in expected)
    done = run("webpay", "bitacora", file, *key, "--format", "json")
    rows = json.loads(done.stdout)
    assert (done.exit_code, len(rows)) == (int(bad), len(expected))
    for row, record in zip(rows, expected, strict=True):
        for name, value in record.items():
            if name != "n_pairs":
                assert row[name] == value, (name, row["line"])
    done = run("webpay", "bitacora", file, *key, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.exit_code == int(bad)
    assert [list(row) for row in table] == [list(row) for row in rows]
    assert [row["order"] for row in table] == [row["order"] or "" for row in rows]
    done = run("webpay", "bitacora", file, *key)
    assert done.exit_code == int(bad)
    assert all(record["outcome"] in done.stdout for record in expected)


def test_wp_54_the_seeds_records_read_as_its_matrix_says(tmp_path: Path) -> None:
    case = next(c for c in PARSED if c["source"].startswith("seed"))
    file = tmp_path / "seed.log"
    file.write_bytes(case["text"].encode("latin-1"))
    rows = json.loads(run("webpay", "bitacora", file, "--json").stdout)
    assert [(r["outcome"], r["charged"], r["reversed"]) for r in rows] == [
        ("CONFIRMED", True, False),
        ("DECLINED", False, False),
        ("REVERSED", False, True),
    ]


@pytest.mark.parametrize("case", ROUND_TRIPS, ids=lambda case: f"WP-54-{case['id']}")
def test_the_kits_event_log_tells_why_an_acknowledgement_is_missing(
    tmp_path: Path, case: Any
) -> None:
    (tmp_path / "b.log").write_bytes(case["bitacora_line"].encode("latin-1"))
    (tmp_path / "e.log").write_bytes(case["event_log"].encode("latin-1"))
    done = run(
        "webpay", "bitacora", tmp_path / "b.log", "--events", tmp_path / "e.log", "--json",
        "--key", pem(tmp_path, case["verify_with"]),
    )  # fmt: skip
    (row,) = json.loads(done.stdout)
    rejected = case["kit_reply_message"] == "ERR"
    assert row["cause"] == ("46" if rejected else None)
    assert (row["outcome"], row["mac"]) == ("REVERSED" if rejected else "CONFIRMED", "ok")


def test_wp_54_a_file_that_cannot_be_read_exits_2(tmp_path: Path) -> None:
    done = run("webpay", "bitacora", tmp_path / "none.log")
    assert (done.stdout, done.exit_code) == ("", 2)


# ---- keys


def test_keys_are_stored_listed_and_used_by_name(tmp_path: Path, node: Path) -> None:
    public_file = pem(tmp_path, "webpay_cert_101")
    (tmp_path / "own.pem").write_bytes(private_pem("merchant_test_2048"))
    done = run("webpay", "key", "add", "webpay-101", public_file, "-c", node, "--json")
    assert json.loads(done.stdout)["sha256"] == vectors()["keys"]["webpay_cert_101"]["spki_sha256"]
    run("webpay", "key", "add", "merchant-1", tmp_path / "own.pem", "-c", node)
    rows = json.loads(run("webpay", "key", "list", "-c", node, "--json").stdout)
    assert [(r["name"], r["bits"], r["private"]) for r in rows] == [
        ("merchant-1", 2048, True),
        ("webpay-101", 4096, False),
    ]
    stored = (node.parent / "data" / "keys" / "merchant-1.key").read_bytes()
    assert b"PRIVATE" not in stored
    assert private_pem("merchant_test_2048")[40:80] not in stored
    file = tmp_path / "received"
    file.write_bytes(CHECK_MAC[0]["file"].encode("latin-1"))
    assert run("webpay", "check-mac", file, "-c", node).stdout == "CORRECTO\n"
    shown = run("webpay", "key", "show", "merchant-1", "-c", node).stdout
    assert shown.encode() == public_pem("merchant_test_2048")


def test_another_key_never_takes_a_name(tmp_path: Path, node: Path) -> None:
    run("webpay", "key", "add", "a", pem(tmp_path, "webpay_cert_101"), "-c", node)
    done = run("webpay", "key", "add", "a", pem(tmp_path, "webpay_prod_101"), "-c", node)
    assert done.exit_code == 1
    assert "another key" in done.stderr
    assert (
        run("webpay", "key", "add", "../a", pem(tmp_path, "webpay_cert_101"), "-c", node).exit_code
        == 1
    )


def test_a_new_key_has_4096_bits(node: Path) -> None:
    row = json.loads(run("webpay", "key", "new", "webpay-101", "-c", node, "--json").stdout)
    assert (row["bits"], row["private"]) == (4096, True)


def test_a_key_is_rotated_with_an_overlap(tmp_path: Path, node: Path) -> None:
    (tmp_path / "own.pem").write_bytes(private_pem("merchant_test_2048"))
    (tmp_path / "next.pem").write_bytes(private_pem("sim_webpay_4096"))
    run("webpay", "key", "add", "shop", tmp_path / "own.pem", "-c", node)
    rotate = ("webpay", "key", "rotate", "shop")
    when = ("--from", "2030-01-01", "--overlap-days", 10, "-c", node)
    for file in (pem(tmp_path, "webpay_cert_101"), tmp_path / "none.pem"):
        assert run(*rotate, file, *when).exit_code == 1
    done = run(*rotate, tmp_path / "next.pem", *when, "--json")
    assert json.loads(done.stdout)["from"] == "2030-01-01T00:00:00Z"
    rows = json.loads(run("webpay", "key", "list", "-c", node, "--json").stdout)
    assert [(r["name"], r["from"], r["until"]) for r in rows] == [
        ("shop", "", "2030-01-11T00:00:00Z"), ("shop.2", "2030-01-01T00:00:00Z", ""),
    ]  # fmt: skip
    run("webpay", "key", "end", "shop", "--at", "2030-01-02T03:00-03:00", "-c", node)
    assert run("webpay", "key", "end", "shop.2", "-c", node).exit_code == 1
    rows = json.loads(run("webpay", "key", "list", "-c", node, "--json").stdout)
    assert rows[0]["until"] == "2030-01-02T06:00:00Z"
    assert run("webpay", "key", "rotate", "nobody", "-c", node).exit_code == 1
    assert run("webpay", "key", "rotate", "shop.2", "-c", node).exit_code == 1
    assert run("webpay", "key", "end", "shop", "--at", "soon", "-c", node).exit_code == 2


def test_a_rotated_key_verifies_old_files_and_new_ones(tmp_path: Path, node: Path) -> None:
    case = ROUND_TRIPS[0]
    run("webpay", "key", "add", "webpay-101", pem(tmp_path, case["verify_with"]), "-c", node)
    new = pem(tmp_path, "webpay_cert_101")
    run("webpay", "key", "rotate", "webpay-101", new, "--overlap-days", 0, "-c", node)
    (tmp_path / "b.log").write_bytes(case["bitacora_line"].encode("latin-1"))
    done = run(
        "webpay", "bitacora", tmp_path / "b.log", "--key", "webpay-101", "--json", "-c", node
    )
    assert json.loads(done.stdout)[0]["mac"] == "ok"
    file = tmp_path / "received"
    file.write_bytes(CHECK_MAC[0]["file"].encode("latin-1"))
    assert run("webpay", "check-mac", file, "-c", node).stdout == "CORRECTO\n"


def test_the_private_part_of_an_ended_key_is_deleted(tmp_path: Path, node: Path) -> None:
    (tmp_path / "own.pem").write_bytes(private_pem("merchant_test_2048"))
    (tmp_path / "next.pem").write_bytes(private_pem("sim_webpay_4096"))
    at = ("-c", node)
    run("webpay", "key", "add", "shop", tmp_path / "own.pem", *at)
    run("webpay", "key", "add", "theirs", pem(tmp_path, "webpay_cert_101"), *at)
    forget = ("webpay", "key", "forget")
    assert [run(*forget, name, "--yes", *at).exit_code for name in ("shop", "theirs", "x")] == [
        1
    ] * 3
    run("webpay", "key", "rotate", "shop", tmp_path / "next.pem", "--overlap-days", 1, *at)
    early = run(*forget, "shop", "--yes", *at)
    assert (early.exit_code, "has not ended" in early.stderr) == (1, True)
    run("webpay", "key", "end", "shop", *at)
    assert run(*forget, "shop", *at, given="n\n").exit_code == 1
    file = node.parent / "data" / "keys" / "shop.key"
    assert file.exists()
    done = run(*forget, "shop", *at, "--json", given="y\n")
    assert (json.loads(done.stdout)["private"], file.exists()) == (False, False)
    assert run(*forget, "shop", "--yes", *at).exit_code == 1  # it is gone
    assert run(*forget, "shop.2", "--yes", *at).exit_code == 1  # it is used
    text = (
        f'{node.read_text()}\n[webpay_shop."597026007976"]\nkey = "shop"\nwebpay_key = "theirs"\n'
    )
    node.write_text(text)
    rows = json.loads(run("webpay", "doctor", *at, "--json").stdout)
    (row,) = (r for r in rows if r["subject"] == "shop")
    assert (row["state"], "private part deleted" in row["detail"]) == ("note", True)
    shown = run("webpay", "key", "show", "shop", *at).stdout
    assert shown.encode() == public_pem("merchant_test_2048")  # for old files


# ---- cards of our own ledger


@pytest.mark.parametrize("number", ["4051885600446623\n", " 4051 8856 0044 6623"])
def test_a_card_of_our_own_ledger(node: Path, number: str) -> None:
    add = ("webpay", "card", "add", "--balance", 5000, "-c", node)
    done = run(*add, "--json", given=number)
    assert json.loads(done.stdout) == {
        "card": "405188******6623", "currency": "CLP", "balance": 5000,
    }  # fmt: skip
    data = [path.read_bytes() for path in node.parent.rglob("*") if path.is_file()]
    assert not any(b"4051885600446623" in content for content in data)


@pytest.mark.parametrize("number", ["", "4051885600446624", "405188560044662x", "1" * 70])
def test_what_is_no_card_gets_no_account(node: Path, number: str) -> None:
    done = run("webpay", "card", "add", "-c", node, given=number)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "card number" in done.stderr


# ---- archives and old kits


@pytest.mark.parametrize("case", vectors()["kcc51"], ids=lambda case: f"WP-38-{case['id']}")
def test_kcc51_is_off_and_then_decodes(
    tmp_path: Path, node: Path, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wire").write_bytes(case["wire"].encode("latin-1"))
    (tmp_path / "k.pem").write_bytes(private_pem(case["key"]))
    arguments = (
        "webpay", "kcc51", tmp_path / "wire", "--key", tmp_path / "k.pem", "--direction",
        case["direction"], "-c", node,
    )  # fmt: skip
    off = run(*arguments)
    assert (off.exit_code, off.stdout) == (1, "")
    monkeypatch.setenv("TRONCAL_WEBPAY_ALLOW_KCC51", "true")
    assert run(*arguments).stdout == case["message"] + "\n"
    said = {run(*arguments, "--merchant", code).stderr for code in ("597026016975", "1234567890")}
    right = {"its checksum is right\n"} if case.get("payment_mac_ok") else set()
    assert said == {"its checksum is wrong\n"} | right


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_old_kits_configuration_becomes_ours(tmp_path: Path, node: Path, end: str) -> None:
    lines = [
        "IDCOMERCIO = 597026007976", "TBK_KEY_ID = 101",
        "URLCGICOM = http://127.0.0.1/cgi-bin/tbk_bp_resultado.cgi", "SERVERCOM = 127.0.0.1",
        "PORTCOM = 80", "HTML_TR_NORMAL = http://127.0.0.1/xt_compra.php", "TIMEOUT = 30",
    ]  # fmt: skip
    (tmp_path / "datos").mkdir()
    (tmp_path / "datos" / "tbk_config.dat").write_bytes((end.join(lines) + end).encode())
    toml = run("webpay", "import-kit", tmp_path).stdout
    assert 'closing = "http://127.0.0.1/xt_compra.php"' in toml
    node.write_text(node.read_text() + "\n" + toml)
    assert run("check-config", "-c", node).exit_code == 0


def test_doctor_finds_what_is_missing(tmp_path: Path, node: Path) -> None:
    assert run("webpay", "doctor", "-c", node).exit_code == 0
    node.write_text(
        node.read_text() + '\n[webpay_shop."597026007976"]\nkey = "merchant-597026007976"\n'
    )
    done = run("webpay", "doctor", "-c", node, "--json")
    rows = {(r["what"], r["subject"]): r["state"] for r in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert rows["key", "merchant-597026007976"] == "wrong"
    (tmp_path / "m.pem").write_bytes(private_pem("merchant_test_2048"))
    run("webpay", "key", "add", "merchant-597026007976", tmp_path / "m.pem", "-c", node)
    run("webpay", "key", "add", "webpay-101", pem(tmp_path, "sim_webpay_4096"), "-c", node)
    assert run("webpay", "doctor", "-c", node).exit_code == 0
    assert public("sim_webpay_4096").key_size == 4096


def test_wp_52_reconciliation_finds_paid_orders_of_reversed_sales(
    tmp_path: Path, node: Path
) -> None:
    case = next(c for c in ROUND_TRIPS if c["kit_reply_message"] == "ERR")
    code, order = case["merchant"], "OC123"
    node.write_text(node.read_text() + f'\n[webpay_shop."{code}"]\nkey = "m"\n')
    run("webpay", "key", "add", "webpay-101", pem(tmp_path, case["verify_with"]), "-c", node)
    orders = Orders(node.parent / "data" / ORDERS)
    orders.create(code, order, "10000")
    result = dict(pair.split("=", 1) for pair in case["message"].split("#"))
    verdict = orders.decide(code, result, case["tbk_mac"], mac_good=True, clock=lambda: 0.0)
    assert verdict.accepted
    line = case["bitacora_line"].encode("latin-1")
    (tmp_path / "forged.log").write_bytes(line.replace(b"OC123", b"OC124"))
    assert run("webpay", "reconcile", code, tmp_path / "forged.log", "-c", node).exit_code == 0
    (tmp_path / "b.log").write_bytes(line)
    done = run("webpay", "reconcile", code, tmp_path / "b.log", "-c", node, "--json")
    assert (json.loads(done.stdout), done.exit_code) == ([{"order": order}], 1)
    stored = orders.order(code, order)
    assert stored is not None
    assert stored.state == "DISPUTED"
    assert run("webpay", "reconcile", code, tmp_path / "none", "-c", node).exit_code == 2
    assert run("webpay", "reconcile", "1", tmp_path / "b.log", "-c", node).exit_code == 1
