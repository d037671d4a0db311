"""Is a data directory sound? Everything is computed anew, nothing is written.

1. The journal: every group's checksum, chain and sequence, from the first segment there is.
2. Replay: state digests that the live node wrote, and every snapshot, must come out the same.
3. The ledger: every invariant, recomputed from scratch.
4. The register: what red registered is captured at sicoop and ceibo, what it refused never is, and
   every open hold belongs to an operation that is open.

Works beside a running node: it takes what is durable when it gets there.
"""

import time
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from core_ext import Ledger, Reader, Records
from core_ext._journal import Corruption, Position, segment_first_seq, segment_numbers
from switch.config import Config
from switch.flows import operations as ops
from switch.flows.operations import CeiboHold, RedOperation, SicoopOperation
from switch.flows.registry import account_id
from switch.flows.states import (
    ACTIVA,
    ANULADA,
    CAPTURADA,
    CONCILIADA,
    CONFIRMADA,
    CONFLICTO,
    ENTREGADA,
    ENVIADA,
    INICIADA,
    LIBERADA,
    RECHAZADA,
    REGISTRADA,
    RESERVADA,
    RESPONDIDA,
    REVERSADA,
    REVERSANDO,
    TUMBA,
    VENCIDA,
)
from switch.journal import queries, snapshot
from switch.journal.store import SEQ_MAX, State, StateError, check_end

PROBLEMS_MAX = 100
"""More are counted, not told: they would only hide the first ones."""

END_TRIES = 5

ABSENT = ""
_POSTED = (CONFIRMADA, CAPTURADA, CONCILIADA)
_UNPOSTED = (ABSENT, RECHAZADA, VENCIDA, REVERSADA, TUMBA)

# State of red's operation -> states that sicoop and ceibo may be in once nothing is owed any more.
_AT_SICOOP: dict[str, tuple[str, ...]] = {
    REGISTRADA: (*_POSTED, CONFLICTO),
    ENTREGADA: (*_POSTED, CONFLICTO),
    ANULADA: (REVERSADA,),
}
_AT_CEIBO: dict[str, tuple[str, ...]] = {
    REGISTRADA: (CAPTURADA,),
    ENTREGADA: (CAPTURADA,),
    ANULADA: (LIBERADA, CAPTURADA),
}

# State of a role's operation -> what its hold in the ledger may be; "" stands for no hold.
_OWN_HOLD: dict[str, tuple[str, ...]] = {
    ENVIADA: ("open",),
    RESERVADA: ("open",),
    RESPONDIDA: ("open",),
    CONFIRMADA: ("captured",),
    CAPTURADA: ("captured",),
    CONCILIADA: ("captured",),
    RECHAZADA: ("released",),
    VENCIDA: ("released",),
    REVERSANDO: ("released",),
    REVERSADA: ("released", "annulled"),
}
_CEIBO_HOLD: dict[str, tuple[str, ...]] = {
    ACTIVA: ("open",),
    CAPTURADA: ("captured",),
    LIBERADA: ("released",),
    RECHAZADA: (ABSENT,),
    TUMBA: ("tombstone",),
}


class Report(msgspec.Struct):
    """What was looked at, and what is wrong with it.

    Fields:
        problems: what is wrong, at most PROBLEMS_MAX of them; `problem_count` says how many.
        records, seconds, records_per_s: of reading, replaying and digesting the journal.
        last_seq: the durable end that was reached. `first_seq`: where the journal begins.
        digests_checked: digests of the live node that replay came to as well.
        torn: what stands behind the end of the journal, if it is not nothing.
        operations: red's register by state. `registered_amount`: their sum of REGISTRADA and
            ENTREGADA, cash_out and deposit apart.
        money_check: debits less credits over all ledgers, posted and pending; both 0.
    """

    ok: bool = False
    problems: list[str] = msgspec.field(default_factory=list)
    problem_count: int = 0
    first_seq: int = 0
    last_seq: int = 0
    segments: int = 0
    snapshots: int = 0
    records: int = 0
    seconds: float = 0.0
    records_per_s: int = 0
    digests_checked: int = 0
    torn: str = ""
    accounts: int = 0
    holds_open: int = 0
    operations: dict[str, int] = msgspec.field(default_factory=dict)
    registered_amount: dict[str, int] = msgspec.field(default_factory=dict)
    money_check: dict[str, int] = msgspec.field(default_factory=dict)
    ledger_digest: str = ""
    records_digest: str = ""

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


def verify(config: Config, directory: Path) -> Report:
    """Check a data directory, of a stopped node or of a running one. Never raises for damage."""
    report = Report()
    state = State(config, directory)
    try:
        _replay(state, report)
    except (Corruption, snapshot.SnapshotError, StateError, ValueError) as error:
        notes = getattr(error, "__notes__", [])
        report.problem("journal: " + " ".join([str(error), *notes]))
    report.records_per_s = int(report.records / report.seconds) if report.seconds else 0
    report.digests_checked = state.digests_checked
    _check_ledger(state.ledger, report)
    if not report.problems:
        # A register that was not read to its end would only add what is not true.
        Register(state.ledger, state.records, config.node.roles, report).check()
    report.ledger_digest = f"{state.ledger.digest():016x}"
    report.records_digest = f"{state.records.digest():016x}"
    report.ok = not report.problem_count
    return report


# ---- journal and snapshots


def _replay(state: State, report: Report) -> None:
    journal = str(state.directory / "journal")
    numbers = segment_numbers(journal)
    seen_seq = queries.seen_seq(state.directory)  # before the journal, which may grow meanwhile
    if not numbers:
        report.problem(f"journal: there is none in {journal}")
        check_end(state.directory, 0, seen_seq)
        return
    report.segments = len(numbers)
    headers = [(path, snapshot.inspect(path)) for path in snapshot.files(state.directory)[::-1]]
    report.snapshots = len(headers)
    report.first_seq = segment_first_seq(journal, numbers[0]) or 1
    start = _start(state, headers, report.first_seq)
    reader = Reader(journal, position=start)
    try:
        for path, header in headers:
            if start is None or header.seq > start.seq:
                _follow(state, reader, header.seq, report)
                _compare(state, path, header, report)
        _follow(state, reader, SEQ_MAX, report)
        _reach_end(state, reader, report)
        check_end(state.directory, reader.position.seq, seen_seq)
        report.torn = reader.torn or ""
    finally:
        report.last_seq = reader.position.seq
        reader.close()


def _start(
    state: State, headers: list[tuple[Path, snapshot.Header]], first_seq: int
) -> Position | None:
    """Where replay begins: at the first record, or at the oldest snapshot if that one is gone."""
    if first_seq == 1:
        return None
    for path, header in headers:
        if header.seq >= first_seq - 1:
            snapshot.load(path, state.ledger, state.records)
            return Position(header.seq, header.chain, header.segment, header.offset)
    raise StateError(f"the journal begins at record {first_seq}, and no snapshot leads there")


def _compare(state: State, path: Path, header: snapshot.Header, report: Report) -> None:
    """Hold a snapshot against the state replayed to its place."""
    if (state.position.seq, state.position.chain) != (header.seq, header.chain):
        report.problem(f"{path.name}: the journal has no group that ends with record {header.seq}")
    elif (state.ledger.digest(), state.records.digest()) != (
        header.ledger_digest,
        header.records_digest,
    ):
        report.problem(f"{path.name}: its state differs from replay at record {header.seq}")


def _follow(state: State, reader: Reader, upto_seq: int, report: Report) -> int:
    began = time.perf_counter()
    count = state.follow(reader, upto_seq)
    report.seconds = round(report.seconds + time.perf_counter() - began, 6)
    report.records += count
    return count


def _reach_end(state: State, reader: Reader, report: Report) -> None:
    """Make sure that nothing good lies beyond the end, unless a node has just written it."""
    for _ in range(END_TRIES):
        try:
            reader.verify_end()
        except Corruption:
            if not _follow(state, reader, SEQ_MAX, report):
                raise
        else:
            return


def _check_ledger(ledger: Ledger, report: Report) -> None:
    for problem in ledger.check():
        report.problem(f"ledger: {problem}")
    posted = pending = 0
    for debits_pending, debits_posted, credits_pending, credits_posted in ledger.totals().values():
        posted += debits_posted - credits_posted
        pending += debits_pending - credits_pending
    report.money_check = {"posted": posted, "pending": pending}
    if posted or pending:
        report.problem(f"ledger: debits less credits are {posted} posted, {pending} pending")
    counts = ledger.counts()
    report.accounts, report.holds_open = counts["accounts"], counts["holds_open"]


# ---- the register against the ledger


class Register:
    """Holds the operations of the three roles against each other and against the ledger.

    Records of closed work are forgotten after the retention, role by role; what is older than the
    ledger's horizon is therefore not missed.
    """

    def __init__(
        self, ledger: Ledger, records: Records, roles: tuple[str, ...], report: Report
    ) -> None:
        self._ledger = ledger
        self._records = records
        self._roles = roles
        self._report = report
        self._open: set[bytes] = set()

    def check(self) -> None:
        states: Counter[str] = Counter()
        amounts = {"cash_out": 0, "deposit": 0}
        for red in self._all_red():
            if red.kind == "annul":
                continue
            states[red.state] += 1
            if red.state in (REGISTRADA, ENTREGADA):
                amounts[red.kind] += red.amount
            self._check_red(red)
        for sicoop in self._all_sicoop():
            self._check_sicoop(sicoop)
        for ceibo in self._all_ceibo():
            self._check_ceibo(ceibo)
        self._check_open_holds()
        self._report.operations = dict(sorted(states.items()))
        self._report.registered_amount = amounts

    def _all_red(self) -> Iterator[RedOperation]:
        return (ops.decode_red(v) for _, v in self._records.items(ops.RED_OPERATIONS))

    def _all_sicoop(self) -> Iterator[SicoopOperation]:
        return (ops.decode_sicoop(v) for _, v in self._records.items(ops.SICOOP_OPERATIONS))

    def _all_ceibo(self) -> Iterator[CeiboHold]:
        return (ops.decode_ceibo(v) for _, v in self._records.items(ops.CEIBO_HOLDS))

    def _check_red(self, red: RedOperation) -> None:
        """What red tells its cashiers must be what the others have done."""
        if red.owed or red.state == INICIADA or not {"red", "sicoop"} <= set(self._roles):
            return  # what is owed is settled at the next start; elsewhere is elsewhere
        if self._has_case(red.reference):
            return  # people have it, or have decided about it
        found = self._records.get(ops.SICOOP_OPERATIONS, red.reference.encode())
        sicoop = None if found is None else ops.decode_sicoop(found)
        at_sicoop = ABSENT if sicoop is None else sicoop.state
        allowed = _AT_SICOOP.get(red.state, _UNPOSTED)
        if at_sicoop not in allowed and not self._forgotten(red.received_ns, at_sicoop):
            self._wrong(red.reference, "red", red.state, "sicoop", at_sicoop)
        if sicoop is None or not sicoop.operation or "ceibo" not in self._roles:
            return
        if sicoop.issuer:
            return  # it went to another issuer, whose holds are not here
        found = self._records.get(ops.CEIBO_HOLDS, _issuer_hold(sicoop.network, sicoop.operation))
        ceibo = None if found is None else ops.decode_ceibo(found)
        at_ceibo = ABSENT if ceibo is None else ceibo.state
        allowed = _AT_CEIBO.get(red.state, (ABSENT, RECHAZADA, LIBERADA, TUMBA))
        if sicoop.state == CONFIRMADA:
            allowed = (*allowed, ACTIVA)  # its capture is owed
        if at_ceibo not in allowed and not self._forgotten(red.received_ns, at_ceibo):
            self._wrong(red.reference, "red", red.state, "ceibo", at_ceibo)
        elif ceibo is not None and ceibo.compensated != (
            red.state == ANULADA and at_ceibo == CAPTURADA
        ):
            self._wrong(red.reference, "red", red.state, "ceibo", "compensated")

    def _check_sicoop(self, operation: SicoopOperation) -> None:
        if not operation.held or operation.state in (CONFLICTO, TUMBA):
            return
        allowed = _OWN_HOLD.get(operation.state, (ABSENT,))
        if operation.state in (CAPTURADA, CONCILIADA) and self._has_case(operation.reference):
            allowed = (*allowed, "released")  # captured anew
        self._check_hold(
            _platform_hold(operation.operation), operation.reference, "sicoop", operation.state,
            allowed, operation.amount, operation.received_ns,
        )  # fmt: skip

    def _has_case(self, reference: str) -> bool:
        return self._records.get(ops.CASES, reference.encode()) is not None

    def _check_ceibo(self, hold: CeiboHold) -> None:
        allowed = ("annulled",) if hold.compensated else _CEIBO_HOLD[hold.state]
        if hold.forced:
            allowed = (*allowed, "released", "expired", "tombstone", ABSENT)
        if hold.internal in (ops.IN_SUSPENSE, ops.FROM_SUSPENSE, ops.ADJUSTED):
            allowed = (*allowed, "released")  # posted beside the hold
        key = _issuer_hold(hold.network, hold.operation, hold.link)
        self._check_hold(
            key, f"{hold.network} {hold.operation}", "ceibo", hold.state, allowed, hold.amount,
            hold.created_ns,
        )  # fmt: skip
        if hold.state != ACTIVA:
            return
        if hold.fee:
            self._open.add(_issuer_fee(key))
        if "sicoop" in self._roles and not hold.link:
            self._check_owner(hold)

    def _check_owner(self, hold: CeiboHold) -> None:
        """An open hold of ceibo is somebody's: of an operation that is not closed."""
        reference = self._records.get(ops.SICOOP_BY_OPERATION, hold.operation.encode())
        found = None if reference is None else self._records.get(ops.SICOOP_OPERATIONS, reference)
        state = ABSENT if found is None else ops.decode_sicoop(found).state
        if state not in (ENVIADA, RESERVADA, RESPONDIDA, CONFIRMADA, REVERSANDO, CONFLICTO):
            self._wrong(f"{hold.network} {hold.operation}", "ceibo", hold.state, "sicoop", state)

    def _check_hold(
        self, key: bytes, name: str, role: str, state: str, allowed: tuple[str, ...], amount: int,
        since_ns: int,
    ) -> None:  # fmt: skip
        view = self._ledger.hold(key)
        found = ABSENT if view is None else view.state
        if found == "open":
            self._open.add(key)
        if found not in allowed:
            if not self._forgotten(since_ns, found):
                self._wrong(name, role, state, "ledger", found)
        elif view is not None and found == "captured" and view.captured != amount:
            self._report.problem(
                f"{name}: {role} has {amount}, the ledger captured {view.captured}"
            )

    def _check_open_holds(self) -> None:
        for key, view in self._ledger.open_holds():
            if key not in self._open:
                self._report.problem(f"open hold {_readable(key)} of {view.amount} is nobody's")

    def _forgotten(self, since_ns: int, found: str) -> bool:
        return found == ABSENT and since_ns <= self._ledger.horizon_ns

    def _wrong(self, name: str, role: str, state: str, other: str, found: str) -> None:
        self._report.problem(f"{name}: {role} {state}, {other} {found or 'has none'}")


# How holds are named in the ledger, written down a second time: a check that asked the roles for it
# would share their mistakes.


def _issuer_hold(network: str, operation: str, link: str = "") -> bytes:
    key = (network + operation).encode()
    if link in ("", "sicoop"):
        return key
    return blake2b(link.encode() + b"|" + key, digest_size=16).digest()


def _issuer_fee(hold: bytes) -> bytes:
    return account_id("fee:" + (hold.decode() if hold.isdigit() else hold.hex()))


def _platform_hold(operation: str) -> bytes:
    return operation.encode() + b"SICO"


def _readable(key: bytes) -> str:
    return key.decode() if key.isascii() and key.isalnum() else key.hex()
