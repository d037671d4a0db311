"""What must hold once everything has settled (acceptance specification, section 7).

The three roles are held against one another by the same comparison that operators have; the cash,
the cards and what each cashier was told are counted here a second time, from the outside.
"""

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any

from protocols.messages import Answer
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, RedOperation
from switch.journal.agreement import Agreement, compare
from switch.journal.projector import Projector
from switch.journal.verify import verify
from tests.house import MASTER
from tests.sim.cashiers import REFUSED, Operation
from tests.sim.faults import NS
from tests.sim.network import Finding
from tests.sim.world import BALANCE, TERMINALS, World

REPLAY_S = 400
GIVEN_BACK = {"cash_out": "RECIBA", "deposit": "DEVUELVA"}
APP = {
    "CAPTURADA": "approved", "LIBERADA": "released", "RECHAZADA": "declined", "TUMBA": "declined",
}  # fmt: skip
ENDED = ("REGISTRADA", "ENTREGADA", "ANULADA", *REFUSED)


def agreed(world: World) -> Agreement:
    """What the roles say together, as they stand in memory."""
    red, sicoop, *issuers = (
        world.places[role].node.store for role in ("red", "sicoop", *world.issuers)
    )
    return compare(red, sicoop, *issuers)


def is_settled(world: World) -> bool:
    """Nobody owes anything, nothing is undecided, and every disk is at rest."""
    if not all(place.alive for place in world.nodes):
        return False
    if any(place.node.gate for place in world.nodes):
        return False
    open_ = sum(
        place.node.store.records.open_count(space)
        for place in world.nodes
        for space in (ops.RED_OPERATIONS, ops.SICOOP_OPERATIONS, ops.CEIBO_HOLDS)
    )
    return open_ == 0 or (bool(world.plan.meddling) and open_ == _in_conflict(world))


def _in_conflict(world: World) -> int:
    """Operations that people have to decide about, of which nothing is owed to anybody."""
    records = world.places["sicoop"].node.store.records
    found = [ops.decode_sicoop(value) for _, value in records.items(ops.SICOOP_OPERATIONS)]
    return sum(operation.state == "CONFLICTO" and not operation.owed for operation in found)


def judge(world: World, operations: list[Operation], *, thorough: bool) -> None:
    """Raises Finding.

    Where a network has meddled, the roles may differ, and people have to see to it; everything
    that each of them answers for by itself must hold all the same.
    """
    found = agreed(world)
    if found.problems and not world.plan.meddling:
        raise Finding("; ".join(found.problems[:3]))
    for place in world.nodes:
        if any(place.node.money_check().values()):
            raise Finding(f"{place.name}: the books are off by {place.node.money_check()}")
        store = place.node.store
        if broken := store.ledger.check():
            raise Finding(f"{place.name}: {broken[0]}")
        if holds := list(store.ledger.open_holds()):
            raise Finding(f"{place.name}: orphan hold {holds[0]}")
    for operation in operations:
        _judge_operation(world, operation)
    if world.plan.meddling:
        _judge_codes(world)
        return
    _judge_cards(world, operations)
    _judge_codes(world)
    if thorough:
        _judge_replay(world, operations)
        _judge_disks(world, operations)


def register(world: World, operation: Operation) -> RedOperation | None:
    records = world.places["red"].node.store.records
    found = records.get(ops.RED_OPERATIONS, operation.reference.encode())
    return None if found is None else ops.decode_red(found)


def ask(world: World, operation: Operation) -> Answer:
    """What red's cashiers are told about an operation now."""
    place = world.places["red"]
    terminal = place.node.registry.terminal(TERMINALS[operation.errand.terminal])
    assert terminal is not None
    step = place.node.begin()
    answer = place.node.red.ask(step, terminal, operation.query())
    place.node.end(step)
    assert isinstance(answer, Answer)
    return answer


def _judge_operation(world: World, operation: Operation) -> None:
    name, red = operation.name, register(world, operation)
    answer = ask(world, operation)
    operation.judge(answer)
    if red is None:
        if any(state != "DESCONOCIDA" for _, state in operation.told):
            raise Finding(f"{name}: red told {operation.told} and knows nothing of it")
        if operation.moved:
            raise Finding(f"{name}: cash moved, and red knows nothing of it")
        return
    if red.state not in ENDED:
        raise Finding(f"{name}: {red.state} is no end")
    passed = Counter(state for state, _ in red.history)
    if passed["REGISTRADA"] > 1 or passed["INICIADA"] > 1:
        raise Finding(f"{name}: registered twice: {red.history}")
    paid = red.state in ("REGISTRADA", "ENTREGADA")
    if operation.was_told_to_pay and not paid and red.state != "ANULADA":
        raise Finding(f"{name}: the cashier was told {operation.pays}, and it is {red.state}")
    if answer.instruction == "ESPERE":
        raise Finding(f"{name}: no definite instruction")
    if operation.moved and not paid and answer.instruction != GIVEN_BACK[operation.kind]:
        raise Finding(f"{name}: cash moved for what is {red.state}, {answer.instruction}")


def _judge_cards(world: World, operations: list[Operation]) -> None:
    """Each card has what red's register says has been taken out and paid in, to the guaraní."""
    moved = {name: [0] * len(world.holders[name]) for name in world.issuers}
    for operation in operations:
        red = register(world, operation)
        if red is not None and red.state in ("REGISTRADA", "ENTREGADA"):
            sign = -1 if operation.kind == "cash_out" else 1
            name = world.issuer_of(operation.errand.amount)
            moved[name][operation.errand.holder] += sign * operation.errand.amount
    for name, changes in moved.items():
        node = world.places[name].node
        for holder, change in zip(world.holders[name], changes, strict=True):
            card = node.registry.card(holder.card)
            balance = None if card is None else node.store.ledger.balance(card.account)
            assert balance is not None
            if balance.available != BALANCE + change:
                text = f"{balance.available} instead of {BALANCE + change}"
                raise Finding(f"a card of {name} has {text}")


def _judge_codes(world: World) -> None:
    """One code is good for one operation, and one hold is captured once."""
    used: Counter[tuple[str, str, int]] = Counter()
    for name, hold in _holds(world):
        if hold.token_step:
            used[name, hold.card, hold.token_step] += 1
        if Counter(state for state, _ in hold.history)["CAPTURADA"] > 1:
            raise Finding(f"captured twice: {hold.history}")
    if any(count > 1 for count in used.values()):
        raise Finding("a code was accepted twice")


def _holds(world: World) -> Iterator[tuple[str, CeiboHold]]:
    """Every hold with the name of its issuer."""
    for name in world.issuers:
        for _, value in world.places[name].node.store.records.items(ops.CEIBO_HOLDS):
            yield name, ops.decode_ceibo(value)


def _judge_replay(world: World, operations: list[Operation]) -> None:
    """Whatever was sent once, sent once more, changes nothing."""
    before = picture(world, operations)
    chance = random.Random(world.plan.seed)
    for link in world.links.values():
        if link.up:
            for flight in chance.sample(link.sent, len(link.sent)):
                link.again(flight)
    # What was refused for its time may be good now; as nobody waits for it, it is undone again.
    world.time.run(world.time.now_ns + REPLAY_S * NS, lambda: is_settled(world))
    after = picture(world, operations)
    if before != after:
        raise Finding(f"messages sent again have changed {before} to {after}")


def picture(world: World, operations: list[Operation]) -> Any:
    """States and money, as far as they must not change any more."""
    found = agreed(world)
    records = [register(world, operation) for operation in operations]
    states = [None if r is None else r.state for r in records]
    return states, found.amounts, found.position, found.holds_open, found.unfinished


def _judge_disks(world: World, operations: list[Operation]) -> None:
    """Every journal is whole and gives this very state."""
    for place in world.nodes:
        place.node.store.commit()
        report = verify(place.config, place.data)
        if not report.ok:
            raise Finding(f"{place.name}: {report.problems[0]}")
        store = place.node.store
        live = (f"{store.ledger.digest():016x}", f"{store.records.digest():016x}")
        if (report.ledger_digest, report.records_digest) != live:
            raise Finding(f"{place.name}: replay gives another state")
    _judge_secrets(world, operations)
    _judge_notices(world)


def _judge_secrets(world: World, operations: list[Operation]) -> None:
    """No code stands in anything that was written."""
    written = b"".join(
        path.read_bytes() for place in world.nodes for path in (place.data / "journal").iterdir()
    )
    for operation in operations:
        code = getattr(operation.request, "token", "")
        if code and b"\xa6" + code.encode() in written:
            raise Finding(f"{operation.name}: its code is in a journal")


def _judge_notices(world: World) -> None:
    """Every holder's app was told how each operation with his card ended (rule R12)."""
    told = set()
    for name in world.issuers:
        place = world.places[name]
        projector = Projector(place.config, place.data, MASTER)
        projector.catch_up()
        projector.close()
        db = sqlite3.connect(projector.path)
        told |= {(name, row[0]) for row in db.execute("SELECT id FROM notices")}
        db.close()
    for name, hold in _holds(world):
        what = "annulled" if hold.compensated else APP[hold.state]
        if hold.card and (name, f"{hold.network}{hold.operation}:{what}") not in told:
            raise Finding(f"the app was not told that {hold.operation} was {what}: {told}")
