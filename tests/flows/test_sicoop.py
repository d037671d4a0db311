"""sicoop beyond the acceptance cases: repeats, contradictions, debts, caps and limits by scope."""

from pathlib import Path

import pytest
from msgspec import UNSET

from protocols.messages import (
    AnnulRegistered,
    Confirm,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerRelease,
    NetworkHolder,
    Reverse,
    Status,
)
from switch.journal.store import Store
from tests.flows.conftest import Build
from tests.house import NETWORK, OTHER_TERMINAL, TERMINAL, House

A = 150_000
DAY_S = 86_400


@pytest.fixture
def held(house: House) -> str:
    """Reference of an operation that sicoop has answered, and nobody has confirmed."""
    reference = house.reference(1)
    assert house.network(house.hold(reference, A)).answer.code == "00"
    return reference


def code(house: House, message: object) -> str:
    return str(house.network(message).answer.code)


def state(house: House, reference: str) -> str:
    return str(house.network(Status(99, reference)).answer.state)


def test_status_of_each_state(house: House, held: str) -> None:
    assert state(house, house.reference(9)) == "DESCONOCIDA"
    answer = house.network(Status(7, held)).answer
    assert (answer.id, answer.state, answer.code) == (7, "RESPONDIDA", "00")
    house.network(Confirm(2, held, ""))
    assert state(house, held) == "CAPTURADA"
    house.network(AnnulRegistered(3, held, A, "900"))
    assert state(house, held) == "REVERSADA"


def test_confirm(house: House, held: str) -> None:
    assert code(house, Confirm(2, house.reference(9), "")) == "25"
    first, again = (house.network(Confirm(i, held, "")).answer for i in (2, 3))
    assert (first.code, first.duplicate) == ("00", False)
    assert (again.code, again.duplicate, again.id) == ("00", True, 3)


def test_reverse(house: House, held: str) -> None:
    assert code(house, Reverse(2, held, A + 1, "timeout")) == "94"
    assert "reversal_amount_differs" in house.alarms()
    assert code(house, Reverse(3, held, A, "timeout")) == "00"
    assert code(house, Reverse(4, held, A, "timeout")) == "21"
    assert house.available() == 1_000_000


def test_repeated_hold_after_its_reversal_is_never_approved(house: House) -> None:
    hold = house.hold(house.reference(1), A)
    house.network(hold)
    house.network(Reverse(2, hold.reference, A, "timeout"))
    assert code(house, hold) == "21"
    assert house.available() == 1_000_000


def test_original_after_its_reversal_finds_a_tombstone(house: House) -> None:
    hold = house.hold(house.reference(1), A)
    assert code(house, Reverse(2, hold.reference, A, "timeout")) == "25"
    assert code(house, hold) == "21"
    assert state(house, hold.reference) == "TUMBA"
    assert house.at_ceibo("") is None


@pytest.mark.parametrize("first", ["confirm", "reverse"])
def test_contradictions_move_nothing(house: House, held: str, first: str) -> None:
    confirm, reverse = Confirm(2, held, ""), Reverse(3, held, A, "timeout")
    one, other = (confirm, reverse) if first == "confirm" else (reverse, confirm)
    assert code(house, one) == "00"
    before = house.available(), house.position()
    assert code(house, other) == "A3"
    assert (house.available(), house.position()) == before
    assert state(house, held) == "CONFLICTO"
    assert "conflict" in house.alarms()
    for again in (confirm, reverse, AnnulRegistered(4, held, A, "900")):
        assert code(house, again) == "A3"
    assert code(house, house.hold(held, A)) in ("94", "A3")


def test_another_network_may_not_touch_it(house: House, held: str) -> None:
    house.do("network_add", number="0099")
    for message in (
        Confirm(2, held, ""),
        Reverse(3, held, A, "timeout"),
        AnnulRegistered(4, held, A, "900"),
        Status(5, held),
        house.hold(held, A),
    ):
        assert house.network(message, "0099").answer.code == "63"
    assert len(house.security_events()) == 5
    assert state(house, held) == "RESPONDIDA"


def test_no_room_for_new_work(house: House, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    monkeypatch.setattr(Store, "admitting", property(lambda store: False))
    reference = house.reference(2)
    assert code(house, house.hold(reference, A)) == "96"
    assert house.at_sicoop(reference) is None
    assert code(house, Reverse(3, held, A, "timeout")) == "00"


def test_holder(house: House) -> None:
    answer = house.network(NetworkHolder(5, document=house.holder.document)).answer
    assert (answer.id, answer.code, len(answer.cards)) == (5, "00", 1)
    assert house.network(NetworkHolder(6, document="9999999")).answer.code == "05"


# ---- an issuer in another process


def test_no_answer_in_time(house: House) -> None:
    port = house.defer_issuer(IssuerHold, IssuerRelease)
    reference = house.reference(1)
    told = house.network(house.hold(reference, A))
    house.pass_time(14)
    assert told.messages == []
    house.pass_time(1)
    assert (told.answer.code, state(house, reference)) == ("91", "VENCIDA")
    again = house.network(house.hold(reference, A, token=port.sent[0].message.token)).answer
    assert (again.code, again.duplicate) == ("91", True)
    # The release is sent until it is acknowledged; the hold came late and meets its tombstone.
    house.pass_time(1)
    house.pass_time(2)
    assert port.deliver(1).code == "25"
    assert port.process(0).code == "21"
    port.tell(0)
    assert "late_answer" in house.alarms()
    house.pass_time(600)
    assert [type(sent.message) for sent in port.sent] == [IssuerHold] + [IssuerRelease] * 3
    assert house.available() == 1_000_000


def test_reversal_while_the_hold_is_in_flight(house: House) -> None:
    port = house.defer_issuer(IssuerHold)
    reference = house.reference(1)
    told = house.network(house.hold(reference, A))
    port.process()  # approved
    assert code(house, Reverse(2, reference, A, "timeout")) == "00"
    port.tell()
    house.pass_time(60)
    assert told.messages == []  # the original's answer is suppressed
    assert (state(house, reference), house.available()) == ("REVERSADA", 1_000_000)


def test_reversal_is_acknowledged_before_the_issuer_is_reached(house: House) -> None:
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    port = house.defer_issuer(IssuerRelease)
    assert code(house, Reverse(2, reference, A, "timeout")) == "00"
    assert state(house, reference) == "REVERSANDO"
    assert code(house, Reverse(3, reference, A, "timeout")) == "21"
    house.crash()  # the debt is durable
    assert state(house, reference) == "REVERSADA"
    assert len(port.sent) == 1
    assert house.available() == 1_000_000


@pytest.mark.parametrize("kind", [IssuerCapture, IssuerRelease])
def test_issuer_that_keeps_failing(house: House, kind: type) -> None:
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    port = house.defer_issuer(kind)
    follows = (
        Confirm(2, reference, "") if kind is IssuerCapture else Reverse(2, reference, A, "timeout")
    )
    assert code(house, follows) == "00"
    for seconds in (1, 2, 4, 8, 16, 32):
        port.sent[-1].answer = IssuerAnswer("96", "ERROR")
        port.tell()
        house.pass_time(seconds * 2)
    assert "owed_stuck" in house.alarms()
    port.deliver()
    assert state(house, reference) == ("CAPTURADA" if kind is IssuerCapture else "REVERSADA")


def test_capture_survives_a_restart(house: House) -> None:
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    house.defer_issuer(IssuerCapture)
    house.network(Confirm(2, reference, ""))
    assert state(house, reference) == "CONFIRMADA"
    house.crash()
    assert state(house, reference) == "CAPTURADA"
    assert (house.available(), house.position()) == (1_000_000 - A, -A)


def test_hold_in_flight_is_released_after_a_restart(house: House) -> None:
    port = house.defer_issuer(IssuerHold)
    reference = house.reference(1)
    house.network(house.hold(reference, A))
    port.process()
    house.crash()
    assert state(house, reference) == "VENCIDA"
    assert (house.available(), house.position()) == (1_000_000, 0)


def test_red_of_this_process_hears_what_comes_later(house: House) -> None:
    port = house.defer_issuer(IssuerHold)
    told = house.send([(TERMINAL, house.request(house.trace(), A))])[0]
    port.deliver()
    assert (told.answer.code, told.answer.instruction) == ("00", "ENTREGUE")
    house.expect_end(1, "E1", A)


def test_answer_to_what_is_not_owed_any_more(house: House) -> None:
    port = house.defer_issuer(IssuerCapture)
    house.cash_out(A)
    house.pass_time(1)
    port.deliver(0)
    port.deliver(1)
    house.expect_end(1, "E1", A)


# ---- caps


def test_cap_alarms_once_per_threshold(build: Build) -> None:
    house = build(net_debit_cap=1_000_000)
    for amount in (700_000, 100_000, 1_000, 99_000, 100_000, 1_000):
        house.deposit(amount)
    assert house.node.alarms["position"] == 3
    house.cash_out(500_000)
    house.deposit(1_000)
    house.deposit(400_000)
    assert house.node.alarms["position"] > 3


def test_caps_can_be_changed_while_the_network_works(build: Build) -> None:
    house = build(net_debit_cap=100_000)
    assert house.deposit(200_000).code == "62"
    house.do("network_caps", number=NETWORK, net_debit_cap=300_000)
    assert house.deposit(200_000).code == "00"
    house.do("network_caps", number=NETWORK, net_debit_cap=100_000, payable_cap=50_000)
    assert house.deposit(1_000).code == "62"
    assert house.cash_out(251_000).code == "62"
    house.clock.advance(60)
    assert house.cash_out(250_000).code == "00"
    house.reopen()
    assert house.deposit(351_000).code == "62"


# ---- limits by scope


def limit(
    scope: str, kind: str = "cash_out", window: str = "day", rule: str = "max_count = 2"
) -> str:
    return f'[limits.{scope}]\nscope = "{scope}"\nkind = "{kind}"\nwindow = "{window}"\n{rule}\n'


@pytest.mark.parametrize("scope", ["person", "terminal", "cashier", "branch", "network"])
@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_count_by_scope(build: Build, scope: str, kind: str) -> None:
    house = build(limits=limit(scope, kind))
    cards = [house.add_card(document="7000001") for _ in range(3)]
    act = house.cash_out if kind == "cash_out" else house.deposit
    fields = [{} if kind == "cash_out" else {"card": card.card} for card in cards]
    codes = [act(A, holder=card, **more).code for card, more in zip(cards, fields, strict=True)]
    assert codes == ["00", "00", "65"]
    other = house.deposit if kind == "cash_out" else house.cash_out
    assert other(A).code == "00"  # each kind has a count of its own
    house.clock.advance(DAY_S)
    assert act(A, holder=cards[2], **fields[2]).code == "00"


def test_amount_by_scope_and_release(build: Build) -> None:
    house = build(limits=limit("network", rule='max = "200000 PYG"'))
    house.cash_out(A)
    house.clock.advance(60)
    assert house.cash_out(A).code == "61"
    house.annul(1)
    house.clock.advance(60)
    assert house.cash_out(A).code == "00"


def test_scopes_are_apart(build: Build) -> None:
    house = build(limits=limit("terminal", rule="max_count = 1"))
    assert house.cash_out(A).code == "00"
    house.clock.advance(60)
    assert house.cash_out(A).code == "65"
    house.clock.advance(60)
    assert house.cash_out(A, terminal=OTHER_TERMINAL).code == "00"


def test_all_scopes_at_once(build: Build) -> None:
    """A hold takes four meters at most; the network is counted on its own account."""
    scopes = ("terminal", "cashier", "branch", "network", "depositor", "person", "card")
    house = build(limits="".join(limit(s, "any", rule="max_count = 3") for s in scopes))
    assert [house.deposit(A).code for _ in range(4)] == ["00", "00", "00", "65"]
    for _ in range(3):
        assert house.cash_out(A).code == "00"
        house.clock.advance(60)
    assert house.cash_out(A).code == "65"


def test_calendar_week_begins_on_monday(build: Build) -> None:
    house = build(limits=limit("card", window="calendar_week", rule="max_count = 1"))
    assert house.cash_out(A).code == "00"  # Sunday
    house.clock.advance(DAY_S)
    assert house.cash_out(A).code == "00"  # Monday
    house.clock.advance(6 * DAY_S)
    assert house.cash_out(A).code == "65"  # Sunday of the same week


def test_night_is_counted_apart(build: Build) -> None:
    house = build(limits=limit("card", window="night", rule="max_count = 1"))
    for _ in range(2):
        assert house.cash_out(A).code == "00"
        house.clock.advance(60)
    house.clock.advance(10 * 3600)  # two past ten in the evening
    assert house.cash_out(A).code == "00"
    house.clock.advance(60)
    assert house.cash_out(A).code == "65"


TIERS = """
[business]
tiers = {tiers}
"""


def tiered(tier: str, count: int) -> str:
    return (
        f'[limits.{tier}]\nscope = "card"\nkind = "cash_out"\nwindow = "day"\n'
        f'max_count = {count}\ntier = "{tier}"\n'
    )


def test_tiers_carry_their_own_caps(build: Build) -> None:
    house = build(
        toml=TIERS.format(tiers='["basic", "gold"]'), limits=tiered("basic", 1) + tiered("gold", 2)
    )
    gold = house.add_card(tier="gold")
    codes = []
    for holder in (house.holder, house.holder, gold, gold, gold):
        codes.append(house.cash_out(A, holder=holder).code)
        house.clock.advance(60)
    assert codes == ["00", "65", "00", "00", "65"]


def test_tiers_keep_their_limits_when_others_are_added(build: Build) -> None:
    """Accounts name their profile by number: a new tier must not move the numbers."""
    house = build(
        toml=TIERS.format(tiers='["basic", "gold"]'), limits=tiered("basic", 1) + tiered("gold", 3)
    )
    gold = house.add_card(tier="gold")
    house.reopen(
        toml=TIERS.format(tiers='["alpha", "basic", "gold"]'),
        limits=tiered("alpha", 9) + tiered("basic", 1) + tiered("gold", 2),
    )
    codes = []
    for holder in (house.holder, house.holder, gold, gold, gold):
        codes.append(house.cash_out(A, holder=holder).code)
        house.clock.advance(60)
    assert codes == ["00", "65", "00", "00", "65"]


def test_operation_bounds_of_a_tier(build: Build) -> None:
    rows = '[limits.op]\nscope = "card"\nwindow = "operation"\nmax = "{} PYG"\ntier = "basic"\n'
    house = build(limits=rows.format(100_000))
    assert house.cash_out(101_000).code == "13"
    assert house.deposit(101_000).code == "13"
    house.clock.advance(60)
    assert house.cash_out(100_000).code == "00"


def test_no_room_for_one_more_counter(build: Build) -> None:
    """Whoever makes up depositors fills the table, and then gets 91; the node goes on."""
    house = build(
        toml="[ledger]\naccounts_max = 1000\n", limits=limit("depositor", "deposit"),
    )  # fmt: skip
    requests = [
        (TERMINAL, house.request(i, 1_000, kind="deposit", depositor=f"CI{1_000_000 + i}"))
        for i in range(1, 1001)
    ]
    codes = []
    for start in range(0, 1000, 100):
        codes += [told[0].code for told in house.turn(requests[start : start + 100])]
    assert set(codes) == {"00", "91"}
    assert codes == sorted(codes)
    assert house.cash_out(A, trace=2000).code == "00"


def test_fields_of_another_process_are_brought_to_their_normal_form(house: House) -> None:
    hold = house.hold(house.reference(1), A, cashier="345", branch="17")
    assert house.network(hold).answer.code == "00"
    same = house.hold(house.reference(1), A, cashier="000345", branch="000017", token=hold.token)
    assert house.network(same).answer.duplicate is True
    bad = house.network(house.hold(house.reference(2), A, document="12")).answer
    assert (bad.code, bad.field) == ("30", "document")
    assert bad.operation is UNSET


def test_more_open_operations_than_one_group_holds_are_recovered(tmp_path: Path) -> None:
    """A stop with many holds that wait for their network must not keep the node from starting."""
    small = "\n[journal]\nsegment_bytes = 4194304\ngroup_bytes_max = 65536\nreserve_bytes = 65536\n"
    house = House(tmp_path, toml=small)
    day = house.node.calendar.local(house.clock.now_ns).compact
    references = [f"{NETWORK}{TERMINAL}{day}{trace:06d}" for trace in range(1, 401)]
    for reference in references:
        assert house.network(house.hold(reference, 1000, kind="deposit")).answer.code == "00"
    house.crash()
    statuses = [house.network(Status(1, reference)).answer.state for reference in references]
    assert set(statuses) == {"RESPONDIDA"}
    house.sound()
    house.close()
