"""Group S: security and privacy, as the flows see it. Lines and processes stand in
`tests/faults/test_cases_s_lines.py`; ends as in section 5 of the acceptance specification."""

import csv
import shutil
from pathlib import Path

import pytest
from msgspec import UNSET

from protocols.messages import Holder
from switch.admin_socket import ProvisioningError
from switch.journal.backup import backup, restore
from switch.node import Node
from switch.ops.keys import MasterKey, base32
from tests.flows.conftest import Build
from tests.house import MASTER, OTHER_TERMINAL, TERMINAL, House
from tests.layouts import all_of, nodes_of, stopped
from tests.offices import Office, next_morning

A = 150_000
CASHIER = "000345"


@pytest.fixture
def listed(build: Build) -> House:
    return build(toml='[node]\ncashiers = "listed"\n')


# ---- S03: cashiers


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_S03_cashier_without_permission_or_shift(listed: House, kind: str) -> None:
    """Unknown, without a shift, with an expired one, or disabled: refused, and nothing exists."""
    move = listed.cash_out if kind == "cash_out" else listed.deposit
    end = "E0" if kind == "cash_out" else "F0"
    refusals = [move(A, trace=1)]
    seed = listed.staff(CASHIER)
    refusals.append(move(A, trace=1))
    assert listed.open_shift(CASHIER, seed).code == "00"
    listed.clock.advance(12 * 3600)
    refusals.append(move(A, trace=1))
    assert listed.open_shift(CASHIER, seed).code == "00"
    listed.do("cashier_enable", number=CASHIER, network="0012", enable=False)
    refusals.append(move(A, trace=1))
    refused = "NO_ENTREGUE" if kind == "cash_out" else "NO_RECIBA"
    assert [answer.code for answer in refusals] == ["58"] * 4
    assert {answer.instruction for answer in refusals} == {refused}
    assert listed.security_events()[:2] == [(kind, "58")] * 2
    listed.expect_end(1, end, A)


# ---- S05: names


TEMPLATES = Path(__file__).parents[2] / "switch" / "web" / "templates"
HOSTILE = {
    "formula": '=HYPERLINK("http://x","y")',
    "command": "+1+cmd|' /C calc'!A0",
    "line": "ANA\r\nROJAS",
    "markup": "<script>x</script>",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_S05_names_are_harmless_where_they_are_shown(house: House, what: str) -> None:
    """Refused where they come in; what is taken all the same starts no formula, ends no line, and
    is no markup."""
    name = HOSTILE[what]
    try:
        made = house.do("card_add", document="5555555", name=name, balance=0)
    except ProvisioningError:
        made = None
    assert (made is None) == (what == "line"), "control characters, and nothing else"
    declared = {"name": name, "origin": name}
    answer = house.deposit(A, document="5555555" if made else house.holder.document,
                           declaration=declared)  # fmt: skip
    if what == "line":  # refused where it came in
        assert (answer.code, answer.field) == ("30", "declaration")
        assert house.query(1, "deposit").code == "25"
        return
    assert answer.code == "00"
    for line in answer.ticket:
        assert line.isprintable()
        assert len(line) <= 40
    next_morning(house)
    office = Office(nodes_of(house)["red"])
    with office.make().open(newline="") as file:
        rows = list(csv.reader(file, delimiter=";", quoting=csv.QUOTE_NONE))
    assert [row[0] for row in rows] == ["H", "D", "T"]
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in row)
        assert not any(name in cell for cell in row)


def test_S05_pages_escape_what_they_show() -> None:
    """Every template is rendered with escapes on, and none switches them off."""
    pages = list(TEMPLATES.rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", ""), page
        assert "autoescape false" not in text, page


# ---- S07: probing


def test_S07_documents_cannot_be_probed_by_cash_outs(house: House) -> None:
    """The same answer whoever is meant; then the till is locked, and that is told."""
    wrong = house.wrong_code()
    shown = set()
    for number in range(20):
        document = house.holder.document if number % 10 == 0 else str(9_000_000 + number)
        answer = house.cash_out(A, document=document, token=wrong)
        shown.add((answer.code, answer.key, answer.text, answer.instruction, answer.state))
    assert shown == {
        ("55", "CODIGO", "Documento o código no válido.", "NO_ENTREGUE", "RECHAZO_REGISTRADO")
    }
    assert "code_tries_terminal" in house.alarms()
    for document in (house.holder.document, "9000100"):
        assert house.cash_out(A, document=document, token=wrong).code == "75"
    house.expect_ends([(trace, "E2", A) for trace in range(1, 23)])


def test_S07_documents_cannot_be_probed_by_deposits(house: House) -> None:
    """Declines look alike; after twenty nobodies the till learns nothing more for a while."""
    blocked = house.add_card()
    house.do("card_enable", card=blocked.card, enable=False)
    shown = set()
    for number in range(20):
        answers = [house.deposit(A, document=str(9_000_000 + number))]
        if number < 2:
            answers.append(house.deposit(A, holder=blocked))
        shown |= {(a.code, a.key, a.text, a.instruction, a.state) for a in answers}
    assert shown == {
        ("05", "NO_APROBADA", "Operación no aprobada.", "NO_RECIBA", "RECHAZO_REGISTRADO")
    }
    assert "document_probing" in house.alarms()
    assert house.deposit(A).code == "05"  # even the known
    assert house.cash_out(A).code == "00"  # which has its own counters, and needs a code
    assert house.deposit(A, terminal=OTHER_TERMINAL, cashier="000700").code == "00"
    house.clock.advance(901)
    assert house.deposit(A).code == "00"
    assert house.position() == A


def test_S07_a_holder_is_shown_masked(house: House) -> None:
    shown = house.ask(Holder(document=house.holder.document))
    assert (shown.code, shown.name) == ("00", "A*** MA*** RO***")
    unknown = house.ask(Holder(document="9999999"))
    assert (unknown.code, unknown.name, unknown.cards) == ("05", UNSET, UNSET)


def test_S07_documents_cannot_be_probed_by_holder_questions(house: House) -> None:
    """After twenty nobodies the till is told the same of everybody; others go on."""
    known = house.holder.document

    def asked(document: str, **where: str) -> str:
        return house.ask(Holder(document=document), **where).code

    for number in range(20):
        assert asked(known) == "00"
        assert asked(str(9_000_000 + number)) == "05"
    assert "document_probing" in house.alarms()
    assert (asked(known), asked("9999999")) == ("05", "05")
    red = nodes_of(house)["red"].node.red
    assert red.probing.refused == 2
    assert asked(known, terminal=OTHER_TERMINAL) == "00"
    assert house.deposit(A).code == "00"  # which moves money, and has its own counters
    house.crash()
    assert asked(known) == "05"
    house.clock.advance(901)
    assert asked(known) == "00"


def test_S07_a_network_that_probes_from_many_tills_is_told_of(house: House) -> None:
    """Each till stays below its limit; nobody is locked, but somebody is told."""
    tills = [TERMINAL, OTHER_TERMINAL]
    for number in range(12):
        tills.append(f"0000{8000 + number}")
        house.do("terminal_add", number=tills[-1], network="0012", branch="17")
    for index in range(200):
        asked = house.ask(
            Holder(document=str(9_000_000 + index)), terminal=tills[index % len(tills)]
        )
        assert asked.code == "05"
    assert "document_probing_network" in house.alarms()
    assert "document_probing" not in house.alarms()
    assert house.ask(Holder(document=house.holder.document)).code == "00"


# ---- S08: unmasked data


def test_S08_unmasked_data_needs_a_reason_and_leaves_a_trace(house: House) -> None:
    assert house.deposit(A, depositor="CI7777777").code == "00"
    reference = house.reference(1)
    red = nodes_of(house)["red"]
    for values in ({"author": "ana", "reason": " "}, {"author": "", "reason": "claim 17"}):
        with pytest.raises(ProvisioningError, match=r"reason|named"):
            red.do("operation_unmask", reference=reference, **values)
    assert "data.unmask" not in {event.what for event in house.audit()}
    shown = red.do("operation_unmask", reference=reference, author="ana", reason="claim 17")
    assert (shown["document"], shown["depositor"]) == (house.holder.document, "CI7777777")
    (event,) = [event for event in house.audit() if event.what == "data.unmask"]
    assert (event.who, event.subject, event.reason) == ("operator:ana", reference, "claim 17")
    assert (event.outcome, event.security) == ("00", True)
    assert house.holder.document not in str(event)
    house.expect_end(1, "F1", A)


def test_S08_who_asks_for_nothing_is_noted_as_well(house: House) -> None:
    red = nodes_of(house)["red"]
    red.do("operation_unmask", reference=house.reference(9), author="ana", reason="curious")
    assert ("data.unmask", "25") in house.security_events()


# ---- S09: at rest


def test_S09_secrets_at_rest_and_in_backups(house: House, tmp_path: Path) -> None:
    """Seeds and keys are sealed in everything that is written; a backup that is restored works,
    with its master key and with no other."""
    key = bytes.fromhex(
        house.do("terminal_add", number="00007777", network="0012", branch="17")["key"]
    )
    assert house.cash_out(A).code == "00"
    house.settle()
    secrets = [house.holder.seed, key]
    for number, node in enumerate(all_of(house)):
        copy = tmp_path / f"backup {number}"
        backup(node.directory / "data", copy, now_ns=house.clock.now_ns)
        for path in [*node.directory.rglob("*"), *copy.rglob("*")]:
            if path.is_file():
                data = path.read_bytes()
                for secret in secrets:
                    for form in (secret, secret.hex().encode(), base32(secret).encode()):
                        assert form not in data, path.name
        again = tmp_path / f"restored {number}"
        restore(copy, again)
        other = Node(node.config, MasterKey(bytes(32)), house.clock, again)
        with pytest.raises(Exception, match="master key"):
            other.open()
        restored = Node(node.config, MASTER, house.clock, again)
        restored.open(conclude=False)
        assert restored.store.ledger.digest() == node.node.store.ledger.digest()
        assert restored.store.records.digest() == node.node.store.records.digest()
        restored.store.commit()
        restored.close()
    house.expect_end(1, "E1", A)


def test_S09_a_restored_issuer_knows_its_codes(house: House, tmp_path: Path) -> None:
    """What is sealed opens again after a loss of everything."""
    assert house.cash_out(A).code == "00"
    house.settle()
    copies = []
    for number, node in enumerate(all_of(house)):
        copies.append(tmp_path / f"copy {number}")
        backup(node.directory / "data", copies[-1], now_ns=house.clock.now_ns)
    house.clock.advance(60)
    with stopped(house):
        for node, copy in zip(all_of(house), copies, strict=True):
            shutil.rmtree(node.directory / "data")
            restore(copy, node.directory / "data")
    assert house.cash_out(A).code == "00"
    house.expect_ends([(1, "E1", A), (2, "E1", A)])
