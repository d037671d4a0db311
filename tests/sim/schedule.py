"""One schedule from its seed to its verdict; and the shortest one that still fails."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from protocols.messages import AnnulRegistered, Confirm, Reverse
from tests.house import NETWORK
from tests.sim.cashiers import Operation, start_errands
from tests.sim.faults import NS, STORM_S, Disturbance, Errand, Meddling, Plan
from tests.sim.judge import agreed, is_settled, judge
from tests.sim.network import Finding
from tests.sim.world import Template, World

CALM_S = 1400  # after the storm: inquiries of ceibo come after 600 s, twice
THOROUGH_EVERY = 8  # schedules of which the disks are verified and all messages sent again
SHORTER_MAX = 100  # tries, or a few more, to make a failing schedule shorter


@dataclass
class Verdict:
    """How one schedule ended; `finding` is empty where nothing is wrong.

    Attributes:
        state: digest of all operations, holds and cases that are left, and of the ledgers.
    """

    plan: Plan
    finding: str
    trace: list[str]
    state: str = ""

    @property
    def hash(self) -> str:
        """Of all that happened and was left."""
        return sha256("\n".join([*self.trace, self.state]).encode()).hexdigest()


class Simulator:
    """Runs schedules in a directory of its own, in memory where the system has such a place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._template = Template(directory / "template")
        self._number = 0

    def run(self, schedule: Plan, *, thorough: bool | None = None) -> Verdict:
        """`thorough`: verify the disks as well and send all messages again; None: now and then."""
        self._number += 1
        if thorough is None:
            thorough = schedule.seed % THOROUGH_EVERY == 0
        world = World(schedule, self._template, self._directory / f"{self._number}")
        try:
            finding = _run(world, thorough)
            state = world.state()
        finally:
            world.close()
        return Verdict(schedule, finding, world.trace, state)

    def shorter(self, verdict: Verdict) -> Verdict:
        """The same with as little as possible going on; any finding counts."""
        best, tries = verdict, 0
        while tries < SHORTER_MAX:
            before = best
            for smaller in _smaller(best.plan):
                tries += 1
                tried = self.run(smaller(best.plan))
                if tried.finding:
                    best = tried
            if best is before:
                break
        return best


def _smaller(schedule: Plan) -> Iterator[Callable[[Plan], Plan]]:
    for disturbance in schedule.disturbances:
        yield partial(_without_disturbance, disturbance)
    for meddling in schedule.meddling:
        yield partial(_without_meddling, meddling)
    for errand in schedule.errands:
        yield partial(_without_errand, errand)
    for rate in schedule.rates:
        yield partial(_without_rate, rate)


def _without_disturbance(disturbance: Disturbance, schedule: Plan) -> Plan:
    kept = tuple(d for d in schedule.disturbances if d != disturbance)
    return replace(schedule, disturbances=kept)


def _without_meddling(meddling: Meddling, schedule: Plan) -> Plan:
    return replace(schedule, meddling=tuple(m for m in schedule.meddling if m != meddling))


def _without_errand(errand: Errand, schedule: Plan) -> Plan:
    return replace(schedule, errands=tuple(e for e in schedule.errands if e != errand))


def _without_rate(rate: str, schedule: Plan) -> Plan:
    return replace(schedule, rates={**schedule.rates, rate: 0.0})


@contextmanager
def simulator() -> Iterator[Simulator]:
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="troncal-sim-", dir=memory if memory.is_dir() else None))
    try:
        yield Simulator(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(world: World, thorough: bool) -> str:
    """The storm, the calm after it, and the judge."""
    try:
        world.start()
        operations = start_errands(world)
        for disturbance in world.plan.disturbances:
            world.time.at(int(disturbance.at_s * NS), partial(_strike, world, disturbance))
        for meddling in world.plan.meddling:
            act = partial(_meddle, world, meddling, operations)
            world.time.at(int(meddling.at_s * NS), act)
        world.time.run(STORM_S * NS)
        _calm(world, operations)
        judge(world, operations, thorough=thorough)
    except Finding as finding:
        return str(finding)
    except Exception as error:  # a node that stops is the worst of findings
        return f"a node stopped: {type(error).__name__}: {error}"
    return ""


def _strike(world: World, d: Disturbance) -> None:
    match d.what:
        case "crash":
            place = world.places[d.target]
            if place.alive:
                place.crash(d.how)
                world.time.after(int(d.for_s * NS), place.start)
        case "clock":
            world.places[d.target].clock.off_ns += int(d.amount * NS)
            world.note(f"the clock of {d.target} steps by {d.amount} s")
        case "stall":
            world.places[d.target].stalled_until_ns = world.time.now_ns + int(d.for_s * NS)
            world.note(f"the disk of {d.target} stalls for {d.for_s} s")
        case "cut":
            world.links[d.target].cut("cut")
        case "partition":
            world.links[d.target].swallow({"there", "back"}, d.for_s)
        case "mute":
            for link in world.links.values():
                link.mute(d.target, d.how, d.for_s)
        case "half_open":
            world.links[d.target].swallow({d.how}, d.for_s)


def _meddle(world: World, meddling: Meddling, operations: list[Operation]) -> None:
    """A network says what it must not say; its answer interests nobody."""
    place = world.places["sicoop"]
    about = next((o for o in operations if o.errand.trace == meddling.trace), None)
    if not place.alive or about is None:
        return
    reference, amount = about.reference, about.errand.amount + 1000 * meddling.wrong_amount
    message: Confirm | Reverse | AnnulRegistered
    match meddling.what:
        case "confirm":
            message = Confirm(1, reference, "")
        case "reverse":
            message = Reverse(1, reference, amount, "cancelled")
        case _:
            message = AnnulRegistered(1, reference, amount, "000900")
    world.note(f"the network meddles: {meddling.what} of {about.name}")
    node = place.node
    place.turn(lambda step: node.network_request(step, NETWORK, message, Nobody()))


class Nobody:
    """Takes answers that nobody waits for."""

    def ready(self, message: Any) -> None:
        pass

    def flush(self) -> None:
        pass


def _calm(world: World, operations: list[Operation]) -> None:
    """All faults end; everything must settle by itself."""
    world.note("the storm is over")
    world.weather.over = True
    for place in world.nodes:
        place.stalled_until_ns = 0
        place.start()
    for link in world.links.values():
        link.cut("new connection")
        link.muted.clear()
        link.heal()
    for operation in operations:
        if not operation.settled:
            operation.ask()
    world.time.run(
        world.time.now_ns + CALM_S * NS,
        lambda: is_settled(world) and all(operation.settled for operation in operations),
    )
    if not is_settled(world):
        raise Finding(f"unfinished: {'; '.join(agreed(world).problems[:3])}")
    for operation in operations:
        if not operation.settled:
            raise Finding(f"{operation.name}: the cashier never got an instruction")
