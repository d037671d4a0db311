"""The pack against a platform in the simulator profile: we are one of its networks.

Amounts and documents choose what its issuer does (see `kit`). What concerns a till alone is played
as the network's back-end has to play it: X125 and D08 lose the answer on our side of the session.
"""

import time
from contextlib import suppress
from typing import Any, Final

import msgspec
import trio

from protocols.messages import AMOUNT_MAX, Hold, HolderAnswer, NetworkAnswer, NetworkHolder
from switch.certification import kit
from switch.certification.line import NoAnswer
from switch.certification.platform_day import PlatformDay
from switch.certification.platform_stand import POSTED, UNDONE, PlatformCase
from switch.certification.stand import NotPlayed, Pack
from switch.simulators.magic import Magic

A: Final = 50_000
LATER_S: Final = 1.0


# ---- X


async def x001(c: PlatformCase) -> None:
    hold = c.hold()
    answer = await c.carried_out(hold)
    c.expect("business date", c.side.calendar.business(time.time_ns()).iso, answer.business_date)
    again = await c.confirm(hold)
    c.expect("`confirm` again: code", "00", again.code)


def _declines(*codes: tuple[str, str], kind: str = "cash_out") -> Any:
    """A case that is declined with each of these codes, chosen by its amount."""

    async def play(c: PlatformCase) -> None:
        for code, key in codes:
            await c.refused(c.hold(kind, amount=A + int(code)), code, key)

    return play


def _of_person(name: Magic, code: str, key: str, kind: str = "cash_out") -> Any:
    """A case that is declined with this code, chosen by its document."""

    async def play(c: PlatformCase) -> None:
        await c.refused(c.hold(kind, document=kit.document(name)), code, key)

    return play


async def x004(c: PlatformCase) -> None:
    hold = c.hold(document=kit.document(Magic.TWO_CARDS_DIFFERENT_CODES))
    c.approved(hold, await c.ask(hold))
    await c.reversed(hold)
    same = kit.document(Magic.TWO_CARDS_SAME_CODE)
    await c.refused(c.hold(document=same), "55", "CODIGO_AMBIGUO")
    await c.refused(c.hold(amount=A + 55), "55", "CODIGO")


async def x007(c: PlatformCase) -> None:
    for amount in (0, -1, 1.5, "50000", AMOUNT_MAX + 1):
        hold = msgspec.structs.replace(c.hold(document="5000001"), amount=amount)
        answer = await c.line.ask(hold, c.times.platform + c.times.slack)
        code = getattr(answer, "code", "")
        c.holds(f"amount {amount!r}: code 30 or 13", code in ("30", "13"), code)
        state = await c.state(hold.reference)
        c.holds(f"amount {amount!r}: nothing held", state in ("DESCONOCIDA", "RECHAZADA"), state)


async def x106(c: PlatformCase) -> None:
    """The request was lost: its reversal leaves a tombstone, and the late original fails."""
    hold = c.hold()
    await c.reversed(hold)
    c.expect("state", "TUMBA", await c.state(hold.reference))
    late: NetworkAnswer = await c.ask(hold)
    c.holds("the original is refused", late.code != "00", late.code)
    c.expect("state", "TUMBA", await c.state(hold.reference))


def _unavailable(name: Magic, kind: str = "cash_out") -> Any:
    async def play(c: PlatformCase) -> None:
        await c.unavailable(c.hold(kind, document=kit.document(name)))

    return play


async def x114(c: PlatformCase) -> None:
    hold = c.hold(document=kit.document(Magic.APPROVES_LATE))
    await c.unavailable(hold)
    await trio.sleep(LATER_S)
    c.expect("answers to the hold", 1, len(c.line.answers(hold.id)))


async def x118(c: PlatformCase) -> None:
    """Neither confirmed nor reversed: the platform asks, and captures what we registered."""
    hold = c.hold()
    c.approved(hold, await c.ask(hold))
    c.expect("state", "RESPONDIDA", await c.state(hold.reference))
    c.side.register[hold.reference] = "REGISTRADA"
    await c.becomes(hold.reference, POSTED, c.times.confirm + c.times.undone)
    undone = c.hold()
    c.approved(undone, await c.ask(undone))
    c.side.register[undone.reference] = "ERROR"
    await c.becomes(undone.reference, UNDONE, c.times.confirm + c.times.undone)


async def x119(c: PlatformCase) -> None:
    """The approval did not reach us: reversed, and the same request is refused from then on."""
    hold = c.hold()
    c.approved(hold, await c.ask(hold))
    await c.reversed(hold)
    await c.becomes(hold.reference, ("REVERSADA",))
    late: NetworkAnswer = await c.ask(c.repeated(hold))
    c.holds("the request again: not approved", late.code != "00", late.code)
    c.expect("state", "REVERSADA", await c.state(hold.reference))


def _answer_lost(kind: str) -> Any:
    async def play(c: PlatformCase) -> None:
        hold = c.hold(kind)
        await c.line.send(hold)
        await c.line.close()
        await c.open()
        again = c.repeated(hold)
        answer: NetworkAnswer = await c.ask(again)
        c.expect("code", "00", answer.code)
        await c.captured(hold)

    return play


# ---- V


async def v01(c: PlatformCase) -> None:
    hold = c.hold()
    await c.carried_out(hold)
    await _annulled(c, hold)


async def _annulled(c: PlatformCase, hold: Hold) -> None:
    answer = await c.annul_at(hold.reference, hold.amount)
    c.expect("`annul`: code", "00", answer.code)
    await c.becomes(hold.reference, ("REVERSADA",))


async def v02(c: PlatformCase) -> None:
    found = c.side.yesterday.get("annulled late")
    if found is None:
        raise NotPlayed("it needs an operation of a day before")
    answer = await c.annul_at(*found)
    c.expect("`annul`: code", "A1", answer.code)
    c.holds("state", await c.state(found[0]) in POSTED)


async def v03(c: PlatformCase) -> None:
    hold = c.hold()
    await c.carried_out(hold)
    await _annulled(c, hold)
    await _annulled(c, hold)


async def v04(c: PlatformCase) -> None:
    """Our session ends before the acknowledgement: sent again, it has one effect."""
    hold = c.hold()
    await c.carried_out(hold)
    with trio.move_on_after(0.01):
        await c.annul_at(hold.reference, hold.amount)
    await c.line.close()
    await c.open()
    await _annulled(c, hold)


async def v05(c: PlatformCase) -> None:
    unknown = await c.annul_at(c.side.new_reference(), A)
    c.holds("unknown: refused", unknown.code != "00", unknown.code)
    other = "9999" + c.side.new_reference()[4:]
    foreign: NetworkAnswer = await c.annul_at(other, A)
    c.expect("another network's: code", "63", foreign.code)


# ---- R


async def r01(c: PlatformCase) -> None:
    """Sent more than once: one effect, and each is a success."""
    hold = c.hold()
    c.approved(hold, await c.ask(hold))
    for _ in range(3):
        await c.reversed(hold)
    await c.becomes(hold.reference, ("REVERSADA",))


async def r03(c: PlatformCase) -> None:
    """Acknowledged at once, though the issuer does not take the release yet."""
    hold = c.hold(document=kit.document(Magic.RELEASES_FAIL))
    c.approved(hold, await c.ask(hold))
    began_s = trio.current_time()
    await c.reversed(hold)
    took_s = trio.current_time() - began_s
    c.holds("acknowledged without waiting", took_s < c.times.slack, f"{took_s:.1f} s")
    await c.becomes(hold.reference, ("REVERSANDO", "REVERSADA"))


async def r04(c: PlatformCase) -> None:
    hold = c.hold()
    await c.reversed(hold)
    await c.reversed(hold)
    c.expect("state", "TUMBA", await c.state(hold.reference))


async def r05(c: PlatformCase) -> None:
    """The issuer keeps refusing the release: it is not given up, and never captured."""
    hold = c.hold("deposit", document=kit.document(Magic.RELEASES_FAIL))
    c.approved(hold, await c.ask(hold))
    await c.reversed(hold)
    await trio.sleep(LATER_S)
    await c.becomes(hold.reference, ("REVERSANDO", "REVERSADA"))
    answer = await c.confirm(hold)
    c.holds("a confirmation does not capture it", answer.code != "00", answer.code)


async def r06(c: PlatformCase) -> None:
    """Reversed while its hold is in flight: the approval is kept from us."""
    hold = c.hold(document=kit.document(Magic.SLOW))
    await c.line.send(hold)
    await c.reversed(hold, reason="cancelled")
    with suppress(NoAnswer):
        await c.line.answer(hold.id, 0, c.times.issuer + 1)
    codes = [getattr(answer, "code", "") for answer in c.line.answers(hold.id)]
    c.holds("the hold is not approved", "00" not in codes, codes)
    await c.becomes(hold.reference, UNDONE)


# ---- I


async def _both(c: PlatformCase, one: Hold, two: Hold) -> tuple[NetworkAnswer, NetworkAnswer]:
    """Two holds in one write, and their answers."""
    await c.line.send(one, two)
    wait_s = c.times.platform + c.times.slack
    first, second = await c.line.answer(one.id, 0, wait_s), await c.line.answer(two.id, 0, wait_s)
    c.holds("two answers", isinstance(first, NetworkAnswer) and isinstance(second, NetworkAnswer))
    assert isinstance(first, NetworkAnswer)
    assert isinstance(second, NetworkAnswer)
    return first, second


async def i01(c: PlatformCase) -> None:
    hold = c.hold()
    first, second = await _both(c, hold, c.repeated(hold))
    c.approved(hold, first)
    c.approved(hold, second, duplicate=True)
    c.expect("one operation", first.operation, second.operation)
    await c.captured(hold)


async def i02(c: PlatformCase) -> None:
    hold = c.hold()
    first = await c.carried_out(hold)
    second: NetworkAnswer = await c.ask(c.repeated(hold))
    c.approved(hold, second, duplicate=True)
    c.expect("one operation", first.operation, second.operation)


async def i03(c: PlatformCase) -> None:
    hold = c.hold()
    await c.carried_out(hold)
    for field, value in (("amount", A + 100), ("document", "5900009"), ("token", "000000")):
        answer: NetworkAnswer = await c.ask(c.repeated(hold, **{field: value}))
        c.expect(f"other {field}: code", "94", answer.code)
    c.holds("the original is as it was", await c.state(hold.reference) in POSTED)


async def i05(c: PlatformCase) -> None:
    """A new reference needs a new code."""
    hold = c.hold()
    c.approved(hold, await c.ask(hold))
    token = hold.token
    assert isinstance(token, str)
    document = hold.document
    assert isinstance(document, str)
    await c.refused(c.hold(document=document, token=token), "55", "CODIGO_USADO")
    await c.captured(hold)


async def _race(c: PlatformCase, one: Hold, two: Hold, code: str, key: str) -> None:
    """Of two, one is approved, the other declined."""
    answers = await _both(c, one, two)
    by_code = dict(zip((a.code for a in answers), (one, two), strict=True))
    c.expect("codes", sorted(("00", code)), sorted(by_code))
    c.expect("key of the other", key, next(a.key for a in answers if a.code == code))
    await c.captured(by_code["00"])
    c.expect("state of the other", "RECHAZADA", await c.state(by_code[code].reference))


async def i06(c: PlatformCase) -> None:
    one = c.hold()
    two = c.hold(document=str(one.document), token=str(one.token), terminal=1)
    await _race(c, one, two, "55", "CODIGO_USADO")


async def i07(c: PlatformCase) -> None:
    now, amount = time.time(), kit.BALANCE * 6 // 10
    one = c.hold(amount=amount, token=kit.code(now))
    two = c.hold(amount=amount, document=str(one.document), token=kit.code(now, 1), terminal=1)
    await _race(c, one, two, "51", "FONDOS")


# ---- T


async def t02(c: PlatformCase) -> None:
    hold = c.hold(token=kit.code(time.time(), -1))
    c.approved(hold, await c.ask(hold))
    await c.reversed(hold)


async def t03(c: PlatformCase) -> None:
    await c.refused(c.hold(token=kit.code(time.time(), -6)), "55", "CODIGO_VENCIDO")


async def t05(c: PlatformCase) -> None:
    now = time.time()
    hold = c.hold(token=kit.code(now))
    c.approved(hold, await c.ask(hold))
    older = c.hold(document=str(hold.document), token=kit.code(now, -1))
    await c.refused(older, "55", "CODIGO_USADO")
    await c.reversed(hold)


async def t06(c: PlatformCase) -> None:
    await c.refused(c.hold(token=kit.wrong(time.time())), "55", "CODIGO")


async def t07(c: PlatformCase) -> None:
    document = c.side.new_document()
    wrong = kit.wrong(time.time())
    for _ in range(2):
        await c.refused(c.hold(document=document, token=wrong), "55", "CODIGO")
    await c.refused(c.hold(document=document, token=wrong), "75", "CODIGO_BLOQUEADO")
    await c.refused(c.hold(document=document), "75", "CODIGO_BLOQUEADO")


async def t17(c: PlatformCase) -> None:
    token = kit.bound_code(time.time(), A)
    other = c.hold(amount=A + 100, document=kit.OCRA_DOCUMENT, token=token)
    await c.refused(other, "55", "CODIGO")


# ---- D


async def d01(c: PlatformCase) -> None:
    hold = c.hold("deposit")
    answer = c.approved(hold, await c.ask(hold))
    name = str(answer.name)
    c.holds("the holder's name is masked", "*" in name)
    await c.captured(hold)


async def d04(c: PlatformCase) -> None:
    document = kit.document(Magic.TWO_CARDS_DIFFERENT_CODES)
    told = await c.ask(NetworkHolder(c.line.new_id(), document=document))
    c.holds("the answer is a `holder_answer`", isinstance(told, HolderAnswer))
    cards = told.cards if isinstance(told.cards, list) else []
    c.holds("cards to choose from", len(cards) >= 2, len(cards))
    await c.carried_out(c.hold("deposit", document=document, card=cards[1].card))


async def d05(c: PlatformCase) -> None:
    """Not registered: the pending credit is undone."""
    hold = c.hold("deposit")
    c.approved(hold, await c.ask(hold))
    await c.reversed(hold, reason="registration_failed")
    await c.becomes(hold.reference, ("REVERSADA",))


async def d07(c: PlatformCase) -> None:
    await c.unavailable(c.hold("deposit", document=kit.document(Magic.ANSWER_SWALLOWED)))
    lost = c.hold("deposit")
    await c.reversed(lost)
    c.expect("state", "TUMBA", await c.state(lost.reference))


async def d12(c: PlatformCase) -> None:
    """Our session ends before the acknowledgement: confirmed again, credited once."""
    hold = c.hold("deposit")
    c.approved(hold, await c.ask(hold))
    c.side.register[hold.reference] = "REGISTRADA"
    with trio.move_on_after(0.01):
        await c.confirm(hold)
    await c.line.close()
    await c.open()
    await c.captured(hold)
    again = await c.confirm(hold)
    c.expect("`confirm` again: code", "00", again.code)


# ---- C


def _file(name: str) -> Any:
    """A case of the daily file, by the name of the method that plays it."""

    async def play(c: PlatformCase) -> None:
        await getattr(PlatformDay(c), name)()

    return play


_PLAYS: Final = {
    "X001": x001, "X002": _declines(("51", "FONDOS")),
    "X003": _of_person(Magic.UNKNOWN_PERSON, "55", "CODIGO"), "X004": x004,
    "X005": _of_person(Magic.BLOCKED_CARD, "05", "NO_APROBADA"),
    "X006": _declines(("55", "CODIGO")), "X007": x007,
    "X008": _declines(("13", "MONTO_NO_VALIDO")),
    "X009": _declines(("61", "LIMITE_MONTO"), ("65", "LIMITE_CANTIDAD")),
    "X010": _declines(("58", "NO_HABILITADO")), "X011": _declines(("62", "LIMITE_RED")),
    "X106": x106, "X113": _unavailable(Magic.ANSWER_SWALLOWED), "X114": x114,
    "X115": _unavailable(Magic.DECLINES_LATE), "X116": _unavailable(Magic.STOPS_BEFORE),
    "X117": _unavailable(Magic.STOPS_AFTER), "X118": x118, "X119": x119,
    "X120": x119, "X125": _answer_lost("cash_out"),
    "V01": v01, "V02": v02, "V03": v03, "V04": v04, "V05": v05,
    "R01": r01, "R02": r01, "R03": r03, "R04": r04, "R05": r05, "R06": r06, "R07": x106,
    "I01": i01, "I02": i02, "I03": i03, "I04": i01, "I05": i05, "I06": i06, "I07": i07,
    "T01": x001, "T02": t02, "T03": t03, "T04": i05, "T05": t05, "T06": t06, "T07": t07,
    "T17": t17,
    "D01": d01, "D02": _of_person(Magic.BLOCKED_CARD, "05", "NO_APROBADA", "deposit"),
    "D03": _of_person(Magic.UNKNOWN_PERSON, "05", "NO_APROBADA", "deposit"), "D04": d04,
    "D05": d05, "D06": _declines(("62", "LIMITE_RED"), kind="deposit"), "D07": d07,
    "D08": _answer_lost("deposit"), "D12": d12,
} | {f"C{n:02}": _file(f"c{n:02}") for n in range(1, 9)}  # fmt: skip
_ALONE: Final = frozenset(("X116", "X117"))
_ONE_PERSON: Final = {"D02": "blocked", "X005": "blocked", "X003": "unknown", "D03": "unknown"}


_TITLES: Final = {
    "C01": "The three agree",
    "C02": "Told as paid, but reversed",
    "C03": "Captured, and the file has no line of it",
    "C04": "Another amount",
    "C05": "A line twice",
    "C06": "Nothing ends by itself before the file is there",
    "C07": "A file that is not balanced",
    "C08": "The same file again, and a higher version",
}


def pack(titles: dict[str, str]) -> tuple[Pack, ...]:
    """The pack; `titles` are those of a network's, where ours are the same."""
    return tuple(
        Pack(
            id_, _TITLES.get(id_) or titles[id_], play, alone=id_ in _ALONE,
            group="file" if id_.startswith("C") else _ONE_PERSON.get(id_, ""),
        )
        for id_, play in _PLAYS.items()
    )  # fmt: skip
