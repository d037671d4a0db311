"""Group I: duplicates, retries, concurrency (acceptance specification, section 6)."""

import time

import pytest
from msgspec import UNSET

from protocols.messages import CashOut, Confirm, Deposit, IssuerHold, LastOperation
from protocols.session import TERMINAL as TERMINAL_VOCABULARY
from protocols.session import Acceptor, Initiator, PeerKey
from switch.clock import iso_ms
from switch.flows.sicoop import Sicoop
from tests.flows.conftest import Build
from tests.house import NETWORK, OTHER_TERMINAL, TERMINAL, House, Told
from tests.layouts import nodes_of

A = 150_000
DAY_S = 86_400


def test_I01_same_request_while_the_first_runs_at_red(house: House) -> None:
    port = house.defer_platform()
    request = house.request(house.trace(), A)
    first, second = house.send([(TERMINAL, request), (TERMINAL, request)])
    assert (first.messages, second.messages, len(port.sent)) == ([], [], 1)
    port.deliver()
    assert (first.answer.code, second.answer.code) == ("00", "00")
    assert (first.answer.duplicate, second.answer.duplicate) == (False, True)
    assert first.answer.operation == second.answer.operation
    assert first.answer.ticket[-1].endswith("ORIGINAL")
    assert second.answer.ticket[-1].endswith("DUPLICADO")
    house.expect_end(1, "E1", A)


def test_I01_same_request_while_the_first_runs_at_sicoop(house: House) -> None:
    port = house.defer_issuer(IssuerHold)
    hold = house.hold(house.reference(1), A, id=7)
    first = house.network(hold)
    second = house.network(house.hold(house.reference(1), A, id=8, token=hold.token))
    assert (first.messages, second.messages, len(port.sent)) == ([], [], 1)
    port.deliver()
    assert (first.answer.id, first.answer.code, first.answer.duplicate) == (7, "00", False)
    assert (second.answer.id, second.answer.code, second.answer.duplicate) == (8, "00", True)
    assert house.node.store.ledger.balance(house.account()).debits_pending == A


def test_I01_all_wait_for_the_same_decline(house: House) -> None:
    port = house.defer_platform()
    request = house.request(house.trace(), 1_001_000)
    waiting = house.send([(TERMINAL, request)] * 3)
    port.deliver()
    assert [told.answer.code for told in waiting] == ["51"] * 3
    house.expect_end(1, "E2", 1_001_000)


def test_I02_same_request_after_completion(house: House) -> None:
    request = house.request(house.trace(), A)
    first, again = house.ask(request), house.ask(request)
    assert (again.code, again.duplicate, again.instruction) == ("00", True, "ENTREGUE")
    assert (again.operation, again.authorization) == (first.operation, first.authorization)
    house.delivered(1)
    again = house.ask(request)
    assert (again.code, again.duplicate, again.instruction) == ("00", True, "NO_ENTREGUE")
    assert again.text == "Ya entregada."
    house.annul(1)
    assert house.ask(request).instruction == "RECIBA"
    house.expect_end(1, "E4", A)


def test_I02_repeated_decline_is_no_new_attempt(house: House) -> None:
    request = house.request(house.trace(), A, token="000000")
    assert [house.ask(request).code for _ in range(6)] == ["55"] * 6
    assert house.cash_out(A).code == "00"


def test_I02_repeat_after_a_restart(house: House) -> None:
    request = house.request(house.trace(), A)
    first = house.ask(request)
    house.reopen()
    again = house.ask(request)
    assert (again.operation, again.duplicate) == (first.operation, True)
    house.expect_end(1, "E1", A)


@pytest.mark.parametrize(
    ("before_s", "after_s", "same"),
    [(5, 5, True), (590, 590, True), (700, 100, False), (5, 700, False)],
)
def test_I02_across_midnight(house: House, before_s: int, after_s: int, same: bool) -> None:
    """Rule R7: the key holds red's date, so the last minutes of the day before are searched too."""
    house.clock.advance(12 * 3600 - before_s)
    request = house.request(house.trace(), A)
    first = house.ask(request)
    house.clock.advance(before_s + after_s)
    again = house.ask(request)
    if same:
        assert (again.operation, again.duplicate, again.instruction) == (
            first.operation, True, "ENTREGUE",
        )  # fmt: skip
    else:  # run as new, so its code is an old one
        assert (again.code, again.key, again.duplicate) == ("55", "CODIGO_VENCIDO", False)
    assert house.position() == -A


def test_I02_other_body_after_midnight_is_a_new_operation(house: House) -> None:
    house.clock.advance(12 * 3600 - 5)
    house.deposit(A, trace=1)
    house.clock.advance(10)
    assert house.deposit(2 * A, trace=1).duplicate is False
    assert house.position() == 3 * A


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 160_000},
        {"document": "1234567"},
        {"token": "000000"},
        {"cashier": "000346"},
        {"branch": "000099"},
    ],
)
def test_I03_same_key_with_another_body(house: House, change: dict[str, object]) -> None:
    request = house.request(house.trace(), A)
    house.ask(request)
    answer = house.ask(house.request(1, **({"amount": A} | change)))
    assert (answer.code, answer.key) == ("94", "DUPLICADO_DISTINTO")
    assert answer.instruction == "NO_ENTREGUE"
    assert house.ask(request).code == "00"
    house.expect_end(1, "E1", A)


def test_I03_same_key_for_a_deposit(house: House) -> None:
    house.cash_out(A)
    answer = house.deposit(A, trace=1)
    assert (answer.code, answer.instruction) == ("94", "NO_RECIBA")
    house.expect_end(1, "E1", A)


def test_I03_local_time_is_no_part_of_the_body(house: House) -> None:
    token = house.code()
    house.ask(house.request(house.trace(), A, token=token, local_time="2026-11-22T12:00:00"))
    again = house.ask(house.request(1, A, token=token, local_time="2026-11-22T12:00:09"))
    assert (again.code, again.duplicate) == ("00", True)


def test_I03_at_sicoop(house: House) -> None:
    reference = house.reference(1)
    assert house.network(house.hold(reference, A)).answer.code == "00"
    assert house.network(house.hold(reference, A, token="000000")).answer.code == "94"
    assert house.network(house.hold(reference, A + 1_000)).answer.code == "94"
    assert house.at_sicoop(reference).state == "RESPONDIDA"


def test_I04_double_click(house: House) -> None:
    request = house.request(house.trace(), A)
    answers = house.ask_all([request, request])
    assert [(a.code, a.duplicate) for a in answers] == [("00", False), ("00", True)]
    house.expect_end(1, "E1", A)


def test_I05_typed_again_needs_a_new_code(house: House) -> None:
    code = house.code()
    house.cash_out(A, token=code)
    answer = house.cash_out(A, token=code)
    assert (answer.code, answer.key) == ("55", "CODIGO_USADO")
    house.expect_ends([(1, "E1", A), (2, "E2", A)])


def test_I05_two_holds_only_with_two_codes(house: House) -> None:
    """Typed again while the first is open: the cashier is warned, two codes are two operations."""
    port = house.defer_platform()
    now_s = house.clock.now_ns // 10**9
    codes = [house.code(at_s=now_s - 60), house.code()]
    told = house.send([
        (TERMINAL, house.request(house.trace(), A, token=code)) for code in codes
    ])  # fmt: skip
    assert [notice.text for notice in house.notices] == ["Operación similar pendiente."]
    port.deliver(0)
    port.deliver(1)
    assert [t.answer.code for t in told] == ["00", "00"]
    house.expect_ends([(1, "E1", A), (2, "E1", A)])


def test_I05_warning_while_the_first_is_open(house: House) -> None:
    port = house.defer_platform()
    code = house.code()
    traces = [house.trace(), house.trace(), house.trace()]
    told = house.send([(TERMINAL, house.request(t, A, token=code)) for t in traces[:2]])
    assert [notice.text for notice in house.notices] == ["Operación similar pendiente."]
    house.send([(TERMINAL, house.request(traces[2], 2 * A, token=code))])
    assert len(house.notices) == 1
    port.deliver(0)
    port.deliver(1)
    port.deliver(2)
    assert [t.answer.key for t in told] == ["APROBADA", "CODIGO_USADO"]
    house.expect_ends([(1, "E1", A), (2, "E2", A), (3, "E2", 2 * A)])


def test_I06_two_terminals_with_one_code(house: House) -> None:
    code = house.code()
    answers = house.turn(
        [
            (TERMINAL, house.request(1, A, token=code)),
            (OTHER_TERMINAL, house.request(1, A, token=code)),
        ]
    )
    assert [told[0].key for told in answers] == ["APROBADA", "CODIGO_USADO"]
    house.expect_end(1, "E1", A)
    house.expect_end(1, "E2", A, terminal=OTHER_TERMINAL)


def test_I07_two_good_codes_and_balance_for_one(build: Build) -> None:
    house = build(balance=200_000)
    now_s = house.clock.now_ns // 10**9
    codes = [house.code(at_s=now_s - 60), house.code()]
    answers = house.turn(
        [
            (TERMINAL, house.request(1, A, token=codes[0])),
            (OTHER_TERMINAL, house.request(1, A, token=codes[1])),
        ]
    )
    assert [told[0].code for told in answers] == ["00", "51"]
    house.expect_end(1, "E1", A)
    house.expect_end(1, "E2", A, terminal=OTHER_TERMINAL)


def test_I08_reference_older_than_the_retention(house: House) -> None:
    reference = house.reference(1)
    hold = house.hold(reference, A)
    assert house.network(hold).answer.code == "00"
    house.network(Confirm(2, reference, iso_ms(house.clock.now_ns)))
    for _ in range(6):
        house.pass_time(DAY_S)
    assert house.at_sicoop(reference) is None  # forgotten
    stale = house.network(hold).answer
    assert (stale.code, stale.time) == ("A5", iso_ms(house.clock.now_ns))
    fresh = house.network(house.hold(reference, A)).answer
    assert (fresh.code, fresh.operation) == ("94", UNSET)
    assert house.at_sicoop(reference) is None
    assert house.available() == 1_000_000 - A
    assert ("hold", "94") in house.security_events()


def test_I08_reference_of_yesterday_is_taken_and_of_tomorrows_morrow_is_not(house: House) -> None:
    yesterday = house.reference(1, date="20261121")
    assert house.network(house.hold(yesterday, A)).answer.code == "00"
    answer = house.network(house.hold(house.reference(1, date="20261124"), A)).answer
    assert (answer.code, answer.field) == ("30", "reference")


def test_I09_trace_used_again_the_next_day(house: House) -> None:
    house.cash_out(A, trace=999_999)
    house.clock.advance(60)
    answer = house.cash_out(A, trace=1)  # it wraps: the newest is not the highest
    assert (answer.code, answer.duplicate) == ("00", False)
    assert house.ask(LastOperation()).original == 1
    house.expect_ends([(999_999, "E1", A), (1, "E1", A)])
    house.clock.advance(DAY_S)
    answer = house.cash_out(A, trace=999_999)
    assert (answer.code, answer.duplicate) == ("00", False)
    house.expect_end(999_999, "E1", A)


def test_I09_trace_used_again_on_one_day(house: House) -> None:
    house.cash_out(A, trace=1)
    house.clock.advance(60)
    assert house.cash_out(A, trace=1).code == "94"
    house.expect_end(1, "E1", A)


def test_I09_reinstalled_terminal_asks_where_it_was(house: House) -> None:
    house.cash_out(A, trace=41)
    house.annul(41, trace=42)
    newest = house.ask(LastOperation())
    assert (newest.original, newest.state) == (42, "ANULADA")  # an annulment takes a number, too
    assert house.query(41).state == "ANULADA"
    house.clock.advance(60)
    assert house.cash_out(A, trace=newest.original + 1).code == "00"
    empty = house.ask(LastOperation(kind="deposit"), OTHER_TERMINAL)
    assert (empty.code, empty.instruction, empty.state) == ("25", "DEVUELVA", "DESCONOCIDA")
    house.clock.advance(60)
    house.cash_out(A, trace=77)
    newest = house.ask(LastOperation())
    assert (newest.original, newest.state, newest.instruction) == (77, "REGISTRADA", "ENTREGUE")
    house.clock.advance(60)
    assert house.cash_out(A, trace=newest.original + 1).code == "00"  # and goes on after it
    house.expect_ends([(41, "E4", A), (43, "E1", A), (77, "E1", A), (78, "E1", A)])


def test_I10_two_sicoop_instances(house: House) -> None:
    node = nodes_of(house)["sicoop"].node
    second = Sicoop(
        config=node.config, registry=node.registry, records=node.store.records,
        ledger=node.store.ledger, calendar=node.calendar, limits=node.limits,
        fingerprint=node.sicoop._fingerprint, issuer=node.issuers,
    )  # fmt: skip
    hold = house.hold(house.reference(1), A)
    first = house.network(hold).answer
    with nodes_of(house)["sicoop"].step() as step:
        again = second.ask(step, NETWORK, hold, Told())
        second.flush()
    assert (first.code, again.code) == ("00", "00")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.operation == again.operation
    assert house.node.store.ledger.balance(house.account()).debits_pending == A
    assert house.network(Confirm(9, hold.reference, "")).answer.code == "00"
    assert house.states(1)[1:] == ("CAPTURADA", "CAPTURADA")
    assert (house.available(), house.position()) == (house.holder.balance - A, -A)


def sessions(house: House) -> tuple[Acceptor, Initiator]:
    """A terminal's session, signed on."""
    key = PeerKey(bytes(range(32)), "hmac-sha256")
    acceptor = Acceptor(
        vocabulary=TERMINAL_VOCABULARY, authenticate=lambda peer, version: key,
        nonce=b"\xbb" * 16, now_iso=lambda: iso_ms(house.clock.now_ns),
    )  # fmt: skip
    initiator = Initiator(
        vocabulary=TERMINAL_VOCABULARY, peer=TERMINAL, key=key, nonce=b"\xaa" * 16
    )
    assert acceptor.receive(initiator.sign_on()) == []
    assert initiator.receive(acceptor.output()) == []
    assert initiator.signed_on
    return acceptor, initiator


def test_I11_replayed_frame_is_refused_in_its_session(house: House) -> None:
    acceptor, initiator = sessions(house)
    frame = initiator.encode([house.request(house.trace(), A)])
    [message] = acceptor.receive(frame)
    assert house.ask(message).code == "00"
    assert acceptor.receive(frame) == []  # the counter of the MAC has gone on
    assert acceptor.closing
    house.expect_end(1, "E1", A)


def test_I11_replayed_frame_is_refused_in_another_session(house: House) -> None:
    acceptor, initiator = sessions(house)
    frame = initiator.encode([house.request(house.trace(), A)])
    [message] = acceptor.receive(frame)
    house.ask(message)
    key = PeerKey(bytes(range(32)), "hmac-sha256")
    other = Acceptor(
        vocabulary=TERMINAL_VOCABULARY, authenticate=lambda peer, version: key,
        nonce=b"\xcc" * 16, now_iso=lambda: iso_ms(house.clock.now_ns),
    )  # fmt: skip
    thief = Initiator(vocabulary=TERMINAL_VOCABULARY, peer=TERMINAL, key=key, nonce=b"\xaa" * 16)
    assert other.receive(thief.sign_on() + frame) == []
    assert other.closing
    house.expect_end(1, "E1", A)


def test_I11_valid_message_sent_again_changes_nothing(house: House) -> None:
    """Whoever has the keys and repeats a message gets what the store has."""
    reference = house.reference(1)
    hold, confirm = house.hold(reference, A), Confirm(2, reference, iso_ms(house.clock.now_ns))
    for message in (hold, confirm):
        house.network(message)
    before = house.node.store.ledger.digest(), house.node.store.records.digest()
    assert [house.network(m).answer.code for m in (hold, confirm, hold, confirm)] == ["00"] * 4
    after = house.node.store.ledger.digest(), house.node.store.records.digest()
    assert before == after


@pytest.mark.parametrize("kind", ["cash_out", "deposit"])
def test_I12_phone_of_two_persons(house: House, kind: str) -> None:
    for document in ("6000001", "6000002"):
        holder = house.add_card(document=document, phone="0981222333")
    values = {"cashier": "345", "phone": "+595981222333", "amount": A, "currency": "PYG"}
    if kind == "cash_out":
        answer = house.ask(CashOut(trace=1, token=house.code(holder), **values))
    else:
        answer = house.ask(Deposit(trace=1, **values))
    assert (answer.code, answer.key, answer.text) == ("55", "USE_DOCUMENTO", "Use el documento.")
    house.expect_end(1, "E2" if kind == "cash_out" else "F2", A)
    if kind == "cash_out":  # the code was not consumed
        assert house.cash_out(A, holder=holder, trace=2).code == "00"


@pytest.mark.timed
def test_I13_a_thousand_cash_outs_on_one_card(house: House) -> None:
    """Vouchers, because a card makes only one cash_out a step with codes; 300 are covered."""
    holder = house.add_card(balance=300 * 10_000, token_mode="vale")
    issued = house.do_all([("card_voucher", {"card": holder.card, "amount": 10_000})] * 1000)
    requests = [
        (
            (TERMINAL, OTHER_TERMINAL)[i % 2],
            house.request(i + 1, 10_000, document=holder.document, token=voucher["code"]),
        )
        for i, voucher in enumerate(issued)
    ]
    codes: list[str] = []
    waited: list[float] = []  # they all arrive now
    slowest, began = 0.0, time.perf_counter()
    for start in range(0, 1000, 64):
        taken = time.perf_counter()
        for told in house.turn(requests[start : start + 64]):
            codes += [answer.code for answer in told]
        slowest = max(slowest, time.perf_counter() - taken)
        waited += [time.perf_counter() - began] * (len(codes) - len(waited))
    assert (codes.count("00"), codes.count("51")) == (300, 700)
    assert slowest < house.config.budgets.ceibo_s
    assert sorted(waited)[989] < house.config.budgets.red_s
    assert house.available(holder) == 0
    assert house.position() == -300 * 10_000
