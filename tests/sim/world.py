"""Nodes, their disks and clocks, and the timeline that drives them.

A node does something only when an event of the timeline makes it: a message arrives, a timer is
due, its disk has finished a group. What a node has decided waits in its open group until then; a
crash loses that group, tears it, or leaves it durable with nobody told.
"""

import heapq
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec

from core_ext._mac import totp
from switch.config import Config
from switch.flows import operations as ops
from switch.flows.step import Step
from switch.node import Node
from tests.house import BRANCH, MASTER, NETWORK, NOON_NS, Holder, House, ManualClock, configuration
from tests.sim.faults import BANK, BANK_FROM, HOLDERS, NS, ROLES, Errand, Plan, Weather
from tests.sim.network import Finding, IssuerLink, Link, SessionLink

BALANCE = 1_000_000
TERMINALS = ("00001234", "00001235", "00001236")
EVENTS_MAX = 20_000
SPACES = (
    ops.RED_OPERATIONS, ops.RED_NEWEST, ops.SICOOP_OPERATIONS, ops.SICOOP_BY_OPERATION,
    ops.CEIBO_HOLDS, ops.CASES,
)  # fmt: skip
SECTOR = 512


class Timeline:
    """Virtual time and what is going to happen in it. `now_ns` begins at 0."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, at_ns: int, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (max(at_ns, self.now_ns), self._number, act))

    def after(self, delay_ns: int, act: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, act)

    def run(self, until_ns: int, done: Callable[[], bool] | None = None) -> None:
        """Let happen what falls due until then, or until `done` between two seconds."""
        looked_ns = self.now_ns
        count = 0
        while self._events and self._events[0][0] <= until_ns:
            at_ns, _, act = heapq.heappop(self._events)
            if done is not None and at_ns - looked_ns > NS:
                if done():
                    return
                looked_ns = at_ns
            self.now_ns = at_ns
            act()
            count += 1
            if count > EVENTS_MAX:
                raise Finding("events without end")
        self.now_ns = until_ns


class NodeClock:
    """The clocks of one machine: the wall clock may be off, the other begins anywhere."""

    def __init__(self, time: Timeline) -> None:
        self._time = time
        self.off_ns = 0
        self.base_ns = NS

    def wall_ns(self) -> int:
        return NOON_NS + self._time.now_ns + self.off_ns

    def mono_ns(self) -> int:
        return self.base_ns + self._time.now_ns


class Place:
    """One node with its data directory: lives, dies, and is started again."""

    def __init__(self, world: "World", roles: tuple[str, ...], data: Path, config: Config) -> None:
        self._world = world
        self.roles = roles
        self.name = "+".join(roles)
        self.data = data
        self.config = config
        self.clock = NodeClock(world.time)
        self.node: Node
        self.alive = False
        self.life = 0
        self.stalled_until_ns = 0
        self._flushing = False
        self._timer_ns: int | None = None

    # ---- lives

    def start(self) -> None:
        if self.alive:
            return
        self.life += 1
        chance = self._world.weather.chance(f"start {self.name}")
        self.clock.base_ns = NS + chance.randrange(1000 * NS)
        self.node = Node(self.config, MASTER, self.clock, self.data)
        self.alive = True
        self._flushing, self._timer_ns = False, None
        self.node.open(lambda: self._world.attach(self))
        self._world.note(f"{self.name} starts")
        self.after_turn()

    def crash(self, how: str) -> None:
        """Stop at once. `how`: what becomes of the open group: lost, torn or written."""
        if not self.alive:
            return
        self._world.note(f"{self.name} crashes, its open group is {how}")
        journal = self.node.store.journal
        before = self._segments() if how == "torn" else {}
        if how != "lost":
            self.node.store.commit()
        journal.close(flush=False)
        self.node.store.close()
        if how == "torn":
            self._tear(before)
        self.alive = False
        self._world.gone(self)

    def close(self) -> None:
        if self.alive:
            self.node.store.journal.close(flush=False)
            self.node.store.close()
            self.alive = False

    def _segments(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted((self.data / "journal").iterdir())}

    def _tear(self, before: dict[Path, bytes]) -> None:
        """Of the sectors that the last group changed, only some have reached the disk."""
        chance = self._world.weather.chance(f"tear {self.name}")
        keep = chance.random()
        scattered = chance.random() < 0.3
        for path, after in self._segments().items():
            old = before.get(path, b"").ljust(len(after), b"\0")[: len(after)]
            changed = [
                at
                for at in range(0, len(after), SECTOR)
                if old[at : at + SECTOR] != after[at : at + SECTOR]
            ]
            if not changed:
                continue
            torn = bytearray(after)
            whole = int(len(changed) * keep)
            for number, at in enumerate(changed):
                reached = chance.random() < keep if scattered else number < whole
                if reached:
                    continue
                first = at + (chance.randrange(SECTOR) if number == whole else 0)
                torn[first : at + SECTOR] = old[first : at + SECTOR]
            path.write_bytes(bytes(torn))

    # ---- turns

    def turn(self, act: Callable[[Step], None]) -> None:
        """One step of the node; what it decides waits for the disk."""
        step = self.node.begin()
        act(step)
        self.node.end(step)
        self.after_turn()

    def after_turn(self) -> None:
        """Let out what is durable already, hand the rest to the disk, keep the timers."""
        node = self.node
        journal = node.store.journal
        node.gate.release(journal.durable_seq, self.clock.mono_ns(), node.latency)
        if not self._flushing and (journal.open_count or node.gate):
            self._flushing = True
            life = self.life
            delay_ns = self._world.weather.flush_ns(f"disk {self.name}")
            at_ns = max(self._world.time.now_ns + delay_ns, self.stalled_until_ns)
            self._world.time.at(at_ns, lambda: self._flush(life))
        self._keep_time()

    def _flush(self, life: int) -> None:
        if not self.alive or life != self.life:
            return
        self._flushing = False
        self.node.store.commit()
        self.after_turn()

    def _keep_time(self) -> None:
        next_ns = self.node.next_deadline_ns()
        if next_ns is None:
            self._timer_ns = None
            return
        at_ns = max(next_ns - self.clock.base_ns, self._world.time.now_ns)
        if self._timer_ns is not None and self._world.time.now_ns < self._timer_ns <= at_ns:
            return
        self._timer_ns = at_ns
        life = self.life
        self._world.time.at(at_ns, lambda: self._ring(life, at_ns))

    def _ring(self, life: int, at_ns: int) -> None:
        if not self.alive or life != self.life or self._timer_ns != at_ns:
            return
        self._timer_ns = None
        self.node.run_timers()
        self.after_turn()


class World:
    """All of it, for one schedule. `directory` must not exist; it is removed at the end."""

    def __init__(self, plan: Plan, template: "Template", directory: Path) -> None:
        self.plan = plan
        self.time = Timeline()
        self.weather = Weather(plan)
        self.trace: list[str] = []
        self.directory = directory
        self.session = SessionLink(self, "session", "red", "sicoop")
        self.issuer = IssuerLink(self, "issuer", "sicoop", "ceibo")
        self.links: dict[str, Link] = {"session": self.session, "issuer": self.issuer}
        self.places: dict[str, Place] = {}
        template.copy(plan, directory)
        self.holders = template.holders[plan.layout]
        for roles, config in template.configs[plan.layout]:
            if roles != (BANK,) or plan.bank:
                place = Place(self, roles, directory / roles[0] / "data", config)
                self.places |= dict.fromkeys(roles, place)
        if plan.bank:
            self.links[BANK] = IssuerLink(self, BANK, "sicoop", BANK)

    @property
    def nodes(self) -> list[Place]:
        return list(dict.fromkeys(self.places.values()))

    @property
    def issuers(self) -> list[str]:
        """Who has cards."""
        return ["ceibo", BANK] if self.plan.bank else ["ceibo"]

    def issuer_of(self, amount: int) -> str:
        return BANK if self.plan.bank and amount >= BANK_FROM else "ceibo"

    def holder(self, errand: Errand) -> Holder:
        """Whose card an errand is about."""
        return self.holders[self.issuer_of(errand.amount)][errand.holder]

    def note(self, text: str) -> None:
        """One line of what happened."""
        self.trace.append(f"{self.time.now_ns / NS:10.3f} s  {text}")

    def code(self, holder: Holder) -> str:
        """What the holder's phone shows."""
        return totp(holder.seed, (NOON_NS + self.time.now_ns) // NS)

    def apart(self, near: str, far: str) -> bool:
        return self.places[near] is not self.places[far]

    def attach(self, place: Place) -> None:
        for link in self.links.values():
            link.attach(place)

    def gone(self, place: Place) -> None:
        for link in self.links.values():
            link.gone(place)

    def start(self) -> None:
        for place in self.nodes:
            place.start()
        for link in self.links.values():
            link.connect()

    def state(self) -> str:
        """Digest of what all living nodes have, keys and seeds aside."""
        found = sha256()
        for place in self.nodes:
            if place.alive:
                store = place.node.store
                found.update(b"%d" % store.ledger.digest())
                for space in SPACES:
                    for key, value in store.records.items(space):
                        found.update(b"%d %b %b\n" % (space, key, value))
        return found.hexdigest()

    def close(self) -> None:
        for place in self.nodes:
            place.close()
        shutil.rmtree(self.directory)


class Template:
    """Provisioned data directories of every layout, made once, copied for each schedule."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.configs: dict[tuple[str, ...], list[tuple[tuple[str, ...], Config]]] = {}
        self.holders: dict[tuple[str, ...], dict[str, list[Holder]]] = {}
        self._config: Config | None = None

    def copy(self, plan: Plan, directory: Path) -> None:
        """The directories of a schedule's nodes."""
        if plan.layout not in self.configs:
            self._make(plan.layout)
        top = self._directory / ("-".join(plan.layout) or "apart")
        ignored = shutil.ignore_patterns() if plan.bank else shutil.ignore_patterns(BANK)
        shutil.copytree(top, directory, ignore=ignored)

    def _make(self, layout: tuple[str, ...]) -> None:
        top = self._directory / ("-".join(layout) or "apart")
        groups = dict.fromkeys(layout if role in layout else (role,) for role in (*ROLES, BANK))
        self.configs[layout], self.holders[layout] = [], {}
        for roles in groups:
            place = top / roles[0]
            place.mkdir(parents=True)
            house = _House(place, self._role_config(roles, place))
            house.do("terminal_add", number=TERMINALS[2], network=NETWORK, branch=BRANCH)
            holders = [
                house.add_card(balance=BALANCE, seed=f"{'A' * 31}{letter}")
                for letter in "ABCDEFGH"[:HOLDERS]
            ]
            house.close()
            for role in ("ceibo", BANK):
                if role in roles:
                    self.holders[layout][role] = holders
            self.configs[layout].append((roles, house.config))

    def _role_config(self, roles: tuple[str, ...], place: Path) -> Config:
        if self._config is None:
            self._config = configuration(place)
        config = self._config
        journal = msgspec.structs.replace(
            config.journal, segment_bytes=1 << 18, group_bytes_max=1 << 17,
            reserve_bytes=1 << 16, direct=False, digest_every_groups=5,
        )  # fmt: skip
        # A bank is an issuer like ceibo, somewhere else.
        node = msgspec.structs.replace(config.node, roles=("ceibo",) if roles == (BANK,) else roles)
        return msgspec.structs.replace(config, journal=journal, node=node)


class _House(House):
    """Only provisions: with a configuration of our own."""

    def __init__(self, directory: Path, config: Config) -> None:
        self._given = config
        super().__init__(directory, balance=BALANCE, clock=ManualClock())

    def open(self) -> None:
        self.config = self._given
        self.node = Node(self.config, MASTER, self.clock, self.directory / "data")
        self.node.open(conclude=False)
