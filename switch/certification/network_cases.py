"""The pack against a network: we are its tills, and the platform that it connects to.

Each case sends as a till, decides as a platform, loses or delays what it must, and looks at three
things: what the cashier is told, what the platform is told, and what both are told later. What
happens behind the platform (X113 to X115) is seen here as what the platform then says.
"""

from itertools import pairwise
from typing import Any, Final

import msgspec
import trio

from protocols.messages import AMOUNT_MAX, Annul, Answer, CashOut, Delivered, Holder, HolderAnswer
from switch.certification.files import Day
from switch.certification.platform import (
    DROP,
    STOP_AFTER,
    STOP_BEFORE,
    SWALLOW,
    Entry,
    busy,
    delay,
)
from switch.certification.stand import Case, Operation, Pack
from switch.simulators.rules import Fault

LATE_S: Final = 1.0
SOON_S: Final = 0.5


# ---- X: cash_out, normal and declined


async def x001(c: Case) -> None:
    op = c.cash_out(token="004512")
    answer = await c.send(op)
    c.paid(op, answer)
    entry = await c.comes(op, "confirm")
    _asked_for(c, op, entry)
    c.expect("business date", c.platform.today, answer.business_date)
    mark = await c.ask(op.till, Delivered(op.request.trace, op.till.next_question()))
    c.told(mark, "00", "APROBADA", "ENTREGADA", "NO_ENTREGUE")
    await c.stays(op, "ENTREGADA", "NO_ENTREGUE")
    c.never(op, "reverse", "annul")


def _asked_for(c: Case, op: Operation, entry: Entry) -> None:
    """The hold says what the till said."""
    hold, request = entry.hold, op.request
    assert hold is not None, "an entry that was decided has its hold"
    c.expect("hold: kind", op.kind, hold.kind)
    c.expect("hold: amount", request.amount, hold.amount)
    c.expect("hold: currency", "PYG", hold.currency)
    c.expect("hold: cashier", c.stand.cashier, hold.cashier.zfill(6))
    c.holds("hold: the document that was typed", hold.document == request.document)
    if isinstance(request, CashOut):
        c.holds("hold: the code as typed, every digit of it", hold.token == request.token)
    c.expect("reference: terminal", op.till.peer, entry.reference[4:12])
    c.expect("reference: trace", request.trace, int(entry.reference[20:]))


async def _decline(c: Case, op: Operation, code: str, key: str) -> None:
    """Declined by the platform: registered, told in general words, and nothing to undo."""
    c.declined(op, await c.send(op, code=code, key=key), code, key)
    await c.stays(op, "RECHAZO_REGISTRADO", op.refused_later)
    c.never(op, "confirm", "reverse", "annul")


async def x002(c: Case) -> None:
    await _decline(c, c.cash_out(), "51", "FONDOS")


async def x003(c: Case) -> None:
    await _decline(c, c.cash_out(), "55", "CODIGO")


async def x004(c: Case) -> None:
    op = c.cash_out()
    c.paid(op, await c.send(op))
    await _decline(c, c.cash_out(), "55", "CODIGO")
    await _decline(c, c.cash_out(), "55", "CODIGO_AMBIGUO")


async def x005(c: Case) -> None:
    await _decline(c, c.cash_out(), "05", "NO_APROBADA")
    await _decline(c, c.cash_out(), "57", "TARJETA_NO_HABILITADA")


async def x006(c: Case) -> None:
    await _decline(c, c.cash_out(), "55", "CODIGO")


async def x007(c: Case) -> None:
    for amount in (0, -1, 1.5, "50000", AMOUNT_MAX + 1):
        op = c.cash_out()
        op.request = msgspec.structs.replace(op.request, amount=amount)
        c.script(op)
        answer = await c.again(op)
        c.holds(f"amount {amount!r}: code 30 or 13", answer.code in ("30", "13"), answer.code)
        c.expect(f"amount {amount!r}: instruction", "NO_ENTREGUE", answer.instruction)
        c.unseen(op)


async def x008(c: Case) -> None:
    await _decline(c, c.cash_out(), "13", "MONTO_NO_VALIDO")


async def x009(c: Case) -> None:
    await _decline(c, c.cash_out(), "61", "LIMITE_MONTO")
    await _decline(c, c.cash_out(), "65", "LIMITE_CANTIDAD")


async def x010(c: Case) -> None:
    await _decline(c, c.cash_out(), "58", "NO_HABILITADO")


async def x011(c: Case) -> None:
    await _decline(c, c.cash_out(), "62", "LIMITE_RED")


# ---- X: one failure on the way


async def _undone(c: Case, op: Operation, state: str, **script: Any) -> None:
    """No answer of the platform in time: no cash, and a reversal that is acknowledged once."""
    c.failed(op, await c.send(op, **script))
    await c.reaches(op, state)
    await c.stays(op, "ERROR", op.refused_later)
    await c.no_more(op, "hold", "reverse", "confirm")
    c.never(op, "confirm")


async def x106(c: Case) -> None:
    await _undone(c, c.cash_out(), "TUMBA", hold=(DROP,))


async def _unavailable(c: Case, op: Operation, **script: Any) -> None:
    """The platform gave up waiting for its issuer: a decline like any other."""
    wait = delay(min(c.times.issuer, c.times.platform - 1))
    answer = await c.send(op, code="91", hold=(wait,), **script)
    c.declined(op, answer, "91", "EMISOR_NO_DISPONIBLE")
    await c.no_more(op, "hold", "confirm")
    await c.stays(op, "RECHAZO_REGISTRADO", op.refused_later)
    c.never(op, "confirm")


async def x113(c: Case) -> None:
    await _unavailable(c, c.cash_out())


async def x114(c: Case) -> None:
    """Behind the answer of the platform comes an approval: it is dropped."""
    await _unavailable(c, c.cash_out(), again="00")


async def x115(c: Case) -> None:
    await _unavailable(c, c.cash_out(), again="51")


async def x116(c: Case) -> None:
    await _undone(c, c.cash_out(), "TUMBA", hold=(STOP_BEFORE,))


async def x117(c: Case) -> None:
    await _undone(c, c.cash_out(), "REVERSADA", hold=(STOP_AFTER,))


async def x118(c: Case) -> None:
    """The approval arrived, its confirmation is lost: the network says what it registered."""
    op = c.cash_out()
    c.paid(op, await c.send(op, confirm=(DROP,)))
    entry = await c.comes(op, "confirm")
    c.holds("the network is connected", c.platform.ask(entry.reference))
    await c.platform.until(lambda: bool(entry.told), c.times.answer)
    c.expect("its answer to `status`", ["REGISTRADA"], entry.told)
    await c.comes(op, "confirm", 2)
    await c.reaches(op, "CAPTURADA")
    await c.stays(op, "REGISTRADA", "ENTREGUE")
    c.never(op, "reverse")


async def x119(c: Case) -> None:
    await _undone(c, c.cash_out(), "REVERSADA", hold=(SWALLOW,))


async def x120(c: Case) -> None:
    op = c.cash_out()
    c.failed(op, await c.send(op, hold=(delay(c.times.platform + LATE_S),)))
    await c.reaches(op, "REVERSADA")
    await c.no_more(op, "confirm", quiet_s=LATE_S + 1)
    await c.stays(op, "ERROR", op.refused_later)
    c.never(op, "confirm")


async def _answer_lost(c: Case, op: Operation) -> None:
    """The till is cut off before it hears: one QUERY tells what to do."""
    c.script(op, hold=(delay(SOON_S),))
    await op.till.send(op.request)
    await c.comes(op, "hold")
    await op.till.close()
    await c.comes(op, "confirm")
    await c.open()
    answer = await c.stays(op, "REGISTRADA", op.moved)
    c.expect("original", op.request.trace, answer.original)
    c.expect("amount", op.request.amount, answer.amount)


async def x125(c: Case) -> None:
    await _answer_lost(c, c.cash_out())


# ---- V: annulments


async def _registered(c: Case, **script: Any) -> Operation:
    op = c.cash_out()
    c.paid(op, await c.send(op, **script))
    await c.comes(op, "confirm")
    return op


async def v01(c: Case) -> None:
    op = await _registered(c)
    c.told(await c.annul(op), "00", "APROBADA", "ANULADA", "NO_ENTREGUE")
    c.expect("annulled at the platform", "REVERSADA", c.entry(op).state)
    await c.stays(op, "ANULADA", "NO_ENTREGUE")
    paid = await _registered(c)
    await c.ask(paid.till, Delivered(paid.request.trace, paid.till.next_question()))
    c.told(await c.annul(paid), "00", "APROBADA", "ANULADA", "RECIBA")


async def v02(c: Case) -> None:
    op = await _registered(c, annul_code="A1")
    c.told(await c.annul(op), "A1", "FUERA_DE_PLAZO", "REGISTRADA", "ENTREGUE")
    await c.stays(op, "REGISTRADA", "ENTREGUE")


async def v03(c: Case) -> None:
    op = await _registered(c)
    request = c.annulment(op)
    c.told(await c.ask(op.till, request), "00", "APROBADA", "ANULADA", "NO_ENTREGUE")
    again = await c.ask(op.till, request)
    c.told(again, "00", "APROBADA", "ANULADA", "NO_ENTREGUE")
    c.expect("duplicate", True, again.duplicate)
    other = await c.annul(op)
    c.told(other, "00", "APROBADA", "ANULADA", "NO_ENTREGUE")
    c.expect("`annul` messages", 1, c.entry(op).count("annul"))


async def v04(c: Case) -> None:
    op = await _registered(c, annul=(SWALLOW,))
    answer = await c.annul(op)
    c.holds("code is 00 or 09", answer.code in ("00", "09"), answer.code)
    c.expect("instruction", "NO_ENTREGUE", answer.instruction)
    await c.comes(op, "annul", 2)
    await trio.sleep(SOON_S)
    await c.stays(op, "ANULADA", "NO_ENTREGUE")
    await c.no_more(op, "annul")


async def v05(c: Case) -> None:
    unknown = Annul(
        trace=c.till.next_trace(), cashier=c.stand.cashier, original=899_998,
        supervisor=c.stand.supervisor, business_date=c.platform.today,
    )  # fmt: skip
    answer = await c.ask(c.till, unknown)
    c.expect("an unknown trace: code", "25", answer.code)
    op = await _registered(c)
    trace = op.request.trace
    foreign = Annul(
        trace=c.other.next_trace(), cashier=c.stand.cashier, original=trace,
        supervisor=c.stand.supervisor, business_date=c.platform.today,
    )  # fmt: skip
    if c.platform.entry(c.other.peer, trace) is not None:
        foreign = msgspec.structs.replace(foreign, original=899_997)
    answer = await c.ask(c.other, foreign)
    c.expect("another terminal's operation: code", "25", answer.code)
    await c.stays(op, "REGISTRADA", "ENTREGUE")
    c.never(op, "annul", "reverse")


# ---- R: reversals


async def _cancelled(c: Case, **script: Any) -> Operation:
    """Cancelled at the counter while the platform has the hold: a reversal is owed at once."""
    op = c.cash_out()
    hold = script.pop("hold", (SWALLOW,))
    c.script(op, hold=hold, **script)
    number = op.request.trace
    await op.till.send(op.request)
    await c.comes(op, "hold")
    cancel = Annul(trace=op.till.next_trace(), cashier=c.stand.cashier, original=number)
    answer = await c.ask(op.till, cancel)
    c.expect("cancel: instruction", "NO_ENTREGUE", answer.instruction)
    told = await op.till.answer(number, 0, c.times.answer)
    assert isinstance(told, Answer)
    c.expect("the request itself: instruction", "NO_ENTREGUE", told.instruction)
    return op


async def r01(c: Case) -> None:
    op = await _cancelled(c, reverse=(DROP,))
    await c.comes(op, "reverse", 2)
    await c.reaches(op, "REVERSADA")
    await c.no_more(op, "reverse")


async def r02(c: Case) -> None:
    """The acknowledgement is lost; the next one says 21, which is as good."""
    op = await _cancelled(c, reverse=(SWALLOW,))
    entry = await c.comes(op, "reverse", 2)
    c.expect("state at the platform", "REVERSADA", entry.state)
    await c.no_more(op, "reverse")
    await c.stays(op, "ERROR", "NO_ENTREGUE")


async def r03(c: Case) -> None:
    """Once the platform has acknowledged, the reversal is the platform's business."""
    op = await _cancelled(c)
    await c.reaches(op, "REVERSADA")
    await c.no_more(op, "reverse", quiet_s=3)
    await c.stays(op, "ERROR", "NO_ENTREGUE")


async def r04(c: Case) -> None:
    """The platform knows nothing of it (25): that ends the reversal too."""
    op = await _cancelled(c, hold=(DROP,))
    await c.reaches(op, "TUMBA")
    await c.no_more(op, "reverse", quiet_s=3)


async def r05(c: Case) -> None:
    op = await _cancelled(c, reverse=(busy(), busy()))
    entry = await c.comes(op, "reverse", 3)
    times = entry.came["reverse"]
    gaps = [b - a for a, b in pairwise(times)]
    shown = " ".join(f"{gap:.1f}" for gap in gaps)
    c.holds("pauses in seconds, each longer than the one before",
            all(a < b for a, b in pairwise(gaps)), shown)  # fmt: skip
    c.expect("state at the platform", "REVERSADA", entry.state)
    await c.no_more(op, "reverse")


async def r06(c: Case) -> None:
    """Reversed while the hold is in flight; the approval that comes then counts for nothing."""
    op = await _cancelled(c, hold=(delay(2),))
    entry = await c.reaches(op, "REVERSADA")
    c.expect("reason", ["cancelled"], entry.reasons)
    await c.no_more(op, "confirm", quiet_s=2.5)
    await c.stays(op, "ERROR", "NO_ENTREGUE")
    c.never(op, "confirm")


async def r07(c: Case) -> None:
    """The original once more, after its reversal: its stored answer, and no new hold."""
    op = await _cancelled(c)
    await c.reaches(op, "REVERSADA")
    answer = await c.again(op)
    c.expect("state", "ERROR", answer.state)
    c.expect("instruction", "NO_ENTREGUE", answer.instruction)
    c.expect("duplicate", True, answer.duplicate)
    c.expect("`hold` messages", 1, c.entry(op).count("hold"))


# ---- I: repeats and races


async def _twice(c: Case, *, pause_s: float) -> None:
    op = c.cash_out()
    c.script(op, hold=(delay(LATE_S),))
    number = op.request.trace
    if pause_s:
        await op.till.send(op.request)
        await trio.sleep(pause_s)
        await op.till.send(op.request)
    else:
        await op.till.send(op.request, op.request)
    first = await op.till.answer(number, 0, c.times.answer)
    second = await op.till.answer(number, 1, c.times.answer)
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    c.paid(op, first)
    c.paid(op, second, duplicate=True)
    c.expect("`hold` messages", 1, c.entry(op).count("hold"))


async def i01(c: Case) -> None:
    await _twice(c, pause_s=SOON_S)


async def i02(c: Case) -> None:
    op = await _registered(c)
    c.paid(op, await c.again(op), duplicate=True)
    await c.ask(op.till, Delivered(op.request.trace, op.till.next_question()))
    answer = await c.again(op)
    c.expect("after the mark: state", "ENTREGADA", answer.state)
    c.expect("after the mark: instruction", "NO_ENTREGUE", answer.instruction)
    c.expect("`hold` messages", 1, c.entry(op).count("hold"))


async def i03(c: Case) -> None:
    op = await _registered(c)
    for field, value in (("amount", 60_000), ("document", "4567891"), ("token", "004513")):
        other = msgspec.structs.replace(op.request, **{field: value})
        answer = await c.ask(op.till, other)
        c.expect(f"other {field}: code", "94", answer.code)
        c.expect(f"other {field}: instruction", "NO_ENTREGUE", answer.instruction)
    await c.stays(op, "REGISTRADA", "ENTREGUE")
    c.expect("`hold` messages", 1, c.entry(op).count("hold"))


async def i04(c: Case) -> None:
    await _twice(c, pause_s=0)


async def i05(c: Case) -> None:
    """Typed again with a new trace while the first is open: a hold of its own, its own answer."""
    op = c.cash_out()
    again = c.cash_out()
    c.script(op, hold=(delay(LATE_S),))
    await op.till.send(op.request)
    await c.comes(op, "hold")
    c.declined(again, await c.send(again, code="55", key="CODIGO_USADO"), "55", "CODIGO_USADO")
    first = await op.till.answer(op.request.trace, 0, c.times.answer)
    assert isinstance(first, Answer)
    c.paid(op, first)
    c.never(again, "confirm", "reverse")


async def _race(c: Case, code: str, key: str) -> None:
    """Two tills at once; the platform takes one and declines the other."""
    one, two = c.cash_out(), c.cash_out(c.other)
    answers: dict[str, Answer] = {}

    async def send(op: Operation, **script: Any) -> None:
        answers[op.till.peer] = await c.send(op, hold=(delay(SOON_S),), **script)

    await c.beside(lambda: send(one), lambda: send(two, code=code, key=key))
    c.paid(one, answers[one.till.peer])
    c.declined(two, answers[two.till.peer], code, key)
    await c.comes(one, "confirm")
    c.never(two, "confirm", "reverse")


async def i06(c: Case) -> None:
    await _race(c, "55", "CODIGO_USADO")


async def i07(c: Case) -> None:
    await _race(c, "51", "FONDOS")


# ---- T: codes


async def _accepted(c: Case, token: str) -> None:
    op = c.cash_out(token=token)
    c.paid(op, await c.send(op))
    hold = c.entry(op).hold
    c.holds("the code arrived as typed", hold is not None and hold.token == token)


async def t01(c: Case) -> None:
    await _accepted(c, "482915")


async def t02(c: Case) -> None:
    await _accepted(c, "000071")


async def t03(c: Case) -> None:
    await _decline(c, c.cash_out(), "55", "CODIGO_VENCIDO")


async def t04(c: Case) -> None:
    op = await _registered(c)
    again = c.cash_out(token="004512")
    c.declined(again, await c.send(again, code="55", key="CODIGO_USADO"), "55", "CODIGO_USADO")
    await c.stays(op, "REGISTRADA", "ENTREGUE")


async def t05(c: Case) -> None:
    await _decline(c, c.cash_out(token="318204"), "55", "CODIGO_USADO")


async def t06(c: Case) -> None:
    await _decline(c, c.cash_out(token="999999"), "55", "CODIGO")


async def t07(c: Case) -> None:
    await _decline(c, c.cash_out(), "55", "CODIGO")
    await _decline(c, c.cash_out(), "55", "CODIGO")
    await _decline(c, c.cash_out(), "75", "CODIGO_BLOQUEADO")


async def t17(c: Case) -> None:
    """A code of eight digits that was made for another amount."""
    op = c.cash_out(token="00451234")
    await _decline(c, op, "55", "CODIGO")
    hold = c.entry(op).hold
    c.holds("eight digits arrived", hold is not None and hold.token == "00451234")


# ---- D: deposits


async def d01(c: Case) -> None:
    op = c.deposit()
    answer = await c.send(op)
    c.paid(op, answer)
    entry = await c.comes(op, "confirm")
    _asked_for(c, op, entry)
    c.holds("hold: a deposit has no code", not isinstance(entry.hold and entry.hold.token, str))
    mark = await c.ask(op.till, Delivered(op.request.trace, op.till.next_question()))
    c.told(mark, "00", "APROBADA", "ENTREGADA", "NO_RECIBA")


async def d02(c: Case) -> None:
    await _decline(c, c.deposit(), "05", "NO_APROBADA")
    await _decline(c, c.deposit(), "61", "LIMITE_MONTO")


async def d03(c: Case) -> None:
    await _decline(c, c.deposit(), "05", "NO_APROBADA")


async def d04(c: Case) -> None:
    c.platform.holder_record = c.record
    request = Holder(c.till.next_question(), document="4567890")
    answer = await c.till.ask(request, c.times.answer)
    c.holds("the answer is a `holder_answer`", isinstance(answer, HolderAnswer))
    assert isinstance(answer, HolderAnswer)
    c.expect("code", "00", answer.code)
    cards = answer.cards if isinstance(answer.cards, list) else []
    c.expect("cards to choose from", 2, len(cards))
    op = c.deposit(card=cards[1].card)
    c.paid(op, await c.send(op))
    hold = c.entry(op).hold
    c.holds("the chosen card arrived", hold is not None and hold.card == cards[1].card)


async def d05(c: Case) -> None:
    """No registration without an answer: the user keeps the cash, the credit is undone."""
    await _undone(c, c.deposit(), "REVERSADA", hold=(SWALLOW,))


async def d06(c: Case) -> None:
    await _decline(c, c.deposit(), "62", "LIMITE_RED")


async def d07(c: Case) -> None:
    """Lost, unavailable and late, side by side."""
    late = c.deposit()

    async def comes_late() -> None:
        c.failed(late, await c.send(late, hold=(delay(c.times.platform + LATE_S),)))
        await c.reaches(late, "REVERSADA")
        await c.stays(late, "ERROR", "DEVUELVA")

    async def unavailable() -> None:
        op = c.deposit()
        c.declined(op, await c.send(op, code="91"), "91", "EMISOR_NO_DISPONIBLE")

    await c.beside(comes_late, unavailable, lambda: _undone(c, c.deposit(), "TUMBA", hold=(DROP,)))


async def d08(c: Case) -> None:
    await _answer_lost(c, c.deposit())


async def d12(c: Case) -> None:
    async def lost(fault: Fault) -> None:
        op = c.deposit()
        c.paid(op, await c.send(op, confirm=(fault,)))
        await c.comes(op, "confirm", 2)
        await c.reaches(op, "CAPTURADA")
        await c.no_more(op, "confirm")
        c.never(op, "reverse")

    await c.beside(lambda: lost(DROP), lambda: lost(SWALLOW))


# ---- C: the daily file


async def _day(c: Case) -> Day:
    day = c.stand.extra
    assert isinstance(day, Day), "the stand of a network has its day"
    await day.play(c)
    return day


async def c01(c: Case) -> None:
    """Every operation agrees with what the platform has of it."""
    day = await _day(c)
    for name in ("cash_out", "deposit"):
        line = day.line(c, name)
        c.holds(f"{name}: state R or E", line.state in ("R", "E"), line.state)
        entry = day.entries[name]
        c.expect(f"{name}: operation", entry.operation, line.operation)
        c.expect(f"{name}: authorization", entry.authorization, line.authorization)
        c.expect(f"{name}: business date", day.date, line.business_date)


async def c02(c: Case) -> None:
    """What was reversed is never told as paid."""
    day = await _day(c)
    found = day.find("reversed")
    c.holds("reversed: state X, or no line", found is None or found.state == "X",
            "no line" if found is None else found.state)  # fmt: skip
    found = day.find("declined")
    c.holds("declined: state N, or no line", found is None or found.state == "N",
            "no line" if found is None else found.state)  # fmt: skip


async def c03(c: Case) -> None:
    """What was captured has its line; so has what was captured only by its confirmation sent
    again."""
    day = await _day(c)
    for name in ("cash_out", "deposit", "confirmed late"):
        c.holds(f"{name}: a line", day.find(name) is not None)


async def c04(c: Case) -> None:
    day = await _day(c)
    for name in ("cash_out", "deposit", "confirmed late"):
        entry, line = day.entries[name], day.line(c, name)
        c.expect(f"{name}: amount", entry.amount, line.amount)
        c.expect(f"{name}: kind", "D" if name == "deposit" else "C", line.kind)
        c.expect(f"{name}: fee", entry.script.fee, line.fee)
        c.expect(f"{name}: commission", entry.script.commission, line.commission)


async def c05(c: Case) -> None:
    day = await _day(c)
    references = [detail.reference for detail in day.details(c)]
    c.expect("lines", len(set(references)), len(references))


async def c06(c: Case) -> None:
    day = await _day(c)
    c.holds("the file came in its time", day.first is not None, day.missing or "it came")


async def c07(c: Case) -> None:
    """Name, header, trailer: count, sums and hash agree."""
    day = await _day(c)
    day.details(c)
    trailer = day.trailer
    c.holds("balanced", trailer is not None)
    assert trailer is not None
    paid = [d for d in day.details(c) if d.state in ("R", "E")]
    c.expect("sum of cash_out", sum(d.amount for d in paid if d.kind == "C"), trailer.cash_out)
    c.expect("sum of deposits", sum(d.amount for d in paid if d.kind == "D"), trailer.deposit)


async def c08(c: Case) -> None:
    """Made once more it has a higher version and all lines, and the first is as it was."""
    day = await _day(c)
    day.details(c)
    before = day.details(c)
    await day.again(c)
    c.expect("lines of the second version", len(before), len(day.second))
    same = [(d.reference, d.amount, d.state) for d in before] == [
        (d.reference, d.amount, d.state) for d in day.second
    ]
    c.holds("the second version has the same operations", same)


PACK: Final = (
    Pack("X001", "A normal cash_out, from the code to the cash and its mark", x001),
    Pack("X002", "Declined for funds", x002),
    Pack("X003", "Unknown person: declined as for a wrong code", x003),
    Pack("X004", "Several cards: one fits, none fits, two fit", x004),
    Pack("X005", "Blocked card, or without cash_out", x005),
    Pack("X006", "Wrong code", x006),
    Pack("X007", "Amounts that are none never leave the network", x007),
    Pack("X008", "Amount that the platform does not allow", x008),
    Pack("X009", "Limits of the card, by value and by count", x009),
    Pack("X010", "Network, branch, terminal or cashier disabled", x010),
    Pack("X011", "Payable cap of the network reached", x011),
    Pack("X106", "The request is lost on the way to the platform", x106),
    Pack("X113", "The issuer's approval is lost: the platform says 91", x113),
    Pack("X114", "An approval comes behind the 91", x114),
    Pack("X115", "A decline comes behind the 91", x115),
    Pack("X116", "The platform stops before it has decided", x116, alone=True),
    Pack("X117", "The platform stops after it has decided, without an answer", x117, alone=True),
    Pack("X118", "The confirmation is lost; the platform asks for the state", x118),
    Pack("X119", "The approval is lost on the way to the network", x119),
    Pack("X120", "The approval comes after the network's time", x120),
    Pack("X125", "The answer to the till is lost", x125),
    Pack("V01", "Annulment on the same day, before and after the cash", v01),
    Pack("V02", "Annulment that is too late", v02),
    Pack("V03", "The annulment repeated", v03),
    Pack("V04", "The acknowledgement of the annulment is lost", v04),
    Pack("V05", "Annulment of an unknown operation, and of another terminal's", v05),
    Pack("R01", "The reversal is lost", r01),
    Pack("R02", "The acknowledgement of the reversal is lost", r02),
    Pack("R03", "An acknowledged reversal is over", r03),
    Pack("R04", "Reversal of what the platform does not know", r04),
    Pack("R05", "The platform keeps refusing the reversal for now", r05),
    Pack("R06", "Reversal while the hold is in flight", r06),
    Pack("R07", "The original after its reversal", r07),
    Pack("I01", "The same request while the first runs", i01),
    Pack("I02", "The same request after it is done", i02),
    Pack("I03", "The same trace with another body", i03),
    Pack("I04", "A double click", i04),
    Pack("I05", "Typed again under a new trace while the first is open", i05),
    Pack("I06", "Two terminals, one code", i06),
    Pack("I07", "Two terminals, funds for one", i07),
    Pack("T01", "Code of now: arrives as typed", t01),
    Pack("T02", "Code with leading zeros, of a neighbouring step", t02),
    Pack("T03", "Code that has run out", t03),
    Pack("T04", "Code used before", t04),
    Pack("T05", "Code older than the last one used", t05),
    Pack("T06", "Wrong code, in general words", t06),
    Pack("T07", "The third wrong code locks", t07),
    Pack("T17", "Code bound to another amount", t17),
    Pack("D01", "A normal deposit", d01),
    Pack("D02", "The card cannot receive", d02),
    Pack("D03", "Deposit to an unknown person", d03),
    Pack("D04", "Several cards: chosen from the masked list", d04),
    Pack("D05", "No registration: the user keeps the cash", d05),
    Pack("D06", "Net debit cap of the network reached", d06),
    Pack("D07", "Failures on the way, as deposits", d07),
    Pack("D08", "The answer to the till is lost, of a deposit", d08),
    Pack("D12", "Confirmation and its acknowledgement are lost, of a deposit", d12),
    Pack("C01", "The daily file agrees with the platform", c01, group="file"),
    Pack("C02", "What was reversed or declined is not told as paid", c02, group="file"),
    Pack("C03", "What was captured is in the file", c03, group="file"),
    Pack("C04", "Amounts, fees and commissions agree", c04, group="file"),
    Pack("C05", "No operation has two lines", c05, group="file"),
    Pack("C06", "The file comes in its time", c06, group="file"),
    Pack("C07", "The file is balanced", c07, group="file"),
    Pack("C08", "A second version replaces the first", c08, group="file"),
)
