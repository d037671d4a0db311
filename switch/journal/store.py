"""The durable state of a node: ledger and record store, rebuilt from snapshot and journal.

Recovery is the only way to start: a first start replays nothing. Every change of state writes its
record into the journal's open group; `seal` hands that group to the flusher, and what it reveals
may leave once `durable_seq` has reached it.
"""

import fcntl
import os
import select
import time
from pathlib import Path

import msgspec

from core_ext import Journal, Ledger, Reader, Records
from core_ext._breaks import Breaks
from core_ext._journal import Position, prune, segment_first_seq, segment_numbers
from switch.config import Config
from switch.flows.step import DIGEST_RECORD
from switch.journal import queries, snapshot
from switch.journal.removal import clear_gone, remove_gently

LEDGER_KINDS = (1, 63)
RECORDS_KINDS = (64, 95)
SEQ_MAX = 2**63 - 1
# What one request writes at most, all roles together: a deposit with the longest declaration, which
# stands in two records. A usual one writes 2.5 KB.
REQUEST_BYTES_MAX = 20 * 1024


class StateError(Exception):
    """The data directory does not give the state that was acknowledged; says where. `hint` says
    what to do, where that is another thing than to restore a backup."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Recovery(msgspec.Struct, frozen=True):
    """What recovery did: the snapshot it began at, what it replayed, and how long it took."""

    snapshot_seq: int
    records: int
    journal_bytes: int
    seconds: float
    torn: str

    @property
    def rate_per_s(self) -> float:
        return self.records / self.seconds if self.seconds else 0.0


class Digest(msgspec.Struct, array_like=True):
    """State digests as the live node saw them; replay must come to the same."""

    ledger: int
    records: int


class State:
    """Ledger and record store rebuilt from a data directory, without writing anything to it."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.directory = directory
        self.journal = Journal(
            str(directory / "journal"),
            segment_bytes=config.journal.segment_bytes,
            group_bytes_max=config.journal.group_bytes_max,
            direct=config.journal.direct,
            reserve_bytes=config.journal.reserve_bytes,
        )
        self.ledger = Ledger(
            accounts_max=config.ledger.accounts_max,
            holds_max=config.ledger.holds_max,
            keys_max=config.ledger.keys_max,
            sink=self.journal,
        )
        self.records = Records(self.journal, bytes_max=config.ledger.records_bytes_max)
        self.digests_checked = 0
        self.position: Position
        self.recovery: Recovery

    def recover(self, *, live: bool = False) -> None:
        """Load the newest snapshot and replay what follows it.

        Args:
            live: a node may be writing this journal: take what is durable now as its end.

        Raises:
            Corruption, SnapshotError, StateError: the directory is damaged; nothing was changed.
        """
        began = time.perf_counter()
        header = snapshot.load_newest(self.directory, self.ledger, self.records, gently=live)
        start = None
        if header is not None:
            start = Position(header.seq, header.chain, header.segment, header.offset)
        reader = Reader(str(self.directory / "journal"), position=start, gently=live)
        count = self.follow(reader, upto_seq=SEQ_MAX if live else None)
        self.recovery = Recovery(
            0 if header is None else header.seq, count,
            self._address(self.position) - (0 if start is None else self._address(start)),
            time.perf_counter() - began, reader.torn or "",
        )  # fmt: skip
        reader.close()

    def follow(self, reader: Reader, upto_seq: int | None = None) -> int:
        """Replay what `reader` still has, up to a record; `position` is then where it stands.

        Args:
            upto_seq: None: to the end, which must be the end (not for a live journal).
        """
        replicas = [(*LEDGER_KINDS, self.ledger), (*RECORDS_KINDS, self.records)]
        count = reader.replay(replicas, self._on_record, upto_seq)
        self.position = reader.position
        return count

    def _address(self, position: Position) -> int:
        """A place in the journal as the bytes before it."""
        return (position.segment - 1) * self.journal.segment_bytes + position.offset

    def _on_record(self, seq: int, kind: int, payload: bytes) -> None:
        if kind != DIGEST_RECORD:
            return
        expected = msgspec.msgpack.decode(payload, type=Digest)
        if (self.ledger.digest(), self.records.digest()) != (expected.ledger, expected.records):
            raise StateError(f"replay differs from the live state at record {seq}")
        self.digests_checked += 1


class Store(State):
    """The live state. One process owns it: the journal's directory is locked."""

    def __init__(self, config: Config, directory: Path) -> None:
        super().__init__(config, directory)
        self._lock = -1
        self._groups_per_digest = config.journal.digest_every_groups
        self._groups_to_digest = self._groups_per_digest
        self._sizes = config.ledger
        # Replacing the records of open work must always be possible.
        self._records_bytes_max = config.ledger.records_bytes_max * 15 // 16
        # A turn may add to the open group whatever one read brings: leave it three quarters.
        self.open_bytes_max = config.journal.group_bytes_max // 4
        self.step_bytes_max = max(config.journal.group_bytes_max // 8, REQUEST_BYTES_MAX)

    def open(self) -> None:
        """Recover, then go on where the journal ends.

        Raises:
            BlockingIOError: another process has the directory. It is locked before it is read:
                what the other writes meanwhile would look like damage.
            Corruption, SnapshotError, StateError: damaged, or less than was durable once.
        """
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen = queries.seen_seq(self.directory)
            self.recover()
            check_end(self.directory, self.position.seq, seen)
            # Also at record 0: a first start that was killed leaves segments without a group.
            self.journal.start(self.position)
        except BaseException:
            self._unlock()
            raise

    @property
    def admitting(self) -> bool:
        """True while there is room for new work, on disk and in memory, beyond what open work may
        still need."""
        journal, records = self.journal, self.records
        return (
            journal.room_bytes > journal.open_bytes + self.open_bytes_max
            and records.bytes_used < self._records_bytes_max
        )

    @property
    def concluding(self) -> bool:
        """True while one more step surely finds room, out of the reserve if need be.

        Below it nothing may be written any more: a step that fails halfway stops the node.
        """
        journal = self.journal
        wanted = journal.open_bytes + self.step_bytes_max
        # A group does not cross the end of a segment, so half of the reserve may be out of reach.
        return journal.room_bytes > wanted or journal.zeroed_bytes > 2 * wanted

    @property
    def flushed(self) -> bool:
        """True when all that was handed to the flusher is durable.

        `journal.busy` lasts a little longer, until the chain hash is made, and nothing signals its
        end: who waits for that may wait for the next timer.
        """
        journal = self.journal
        return journal.durable_seq >= journal.next_seq - 1 - journal.open_count

    def reserve(self) -> None:
        """Make the ledger's tables as large as they may get: none grows while somebody waits."""
        counts = self.ledger.counts()
        self.ledger.reserve(
            accounts=self._sizes.accounts_max - counts["accounts"],
            holds=self._sizes.holds_max - counts["holds"],
        )

    def append(self, kind: int, record: msgspec.Struct) -> None:
        """Write an application record into the open group."""
        self.journal.append(kind, msgspec.msgpack.encode(record))

    def seal(self) -> None:
        """Hand the open group to the flusher, now and then with a digest of the state."""
        if not self.journal.open_count:
            return
        self._groups_to_digest -= 1
        if self._groups_to_digest <= 0:
            self._groups_to_digest = self._groups_per_digest
            self.append(DIGEST_RECORD, Digest(self.ledger.digest(), self.records.digest()))
        self.journal.seal()

    def commit(self) -> None:
        """Seal and wait until everything is durable; for tools, not for the answer's path.

        Raises:
            OSError: the journal failed; nothing after the last durable group is acknowledged.
        """
        journal = self.journal
        last = journal.next_seq - 1
        while journal.durable_seq < last:
            if journal.failure:
                raise OSError(f"journal: {journal.failure}")
            self.seal()
            select.select([journal.fileno()], [], [], 1.0)
            journal.clear_event()

    def close(self) -> None:
        self.journal.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def check_end(directory: Path, last_seq: int, seen_seq: int) -> None:
    """Refuse a journal that ends before what surely was durable once.

    A torn end is cut without a word, for nothing in it was acknowledged. What the read model has
    seen groups behind of was: then segments are missing, or cut short, and a node that went on
    would deny what it has told.

    Raises:
        StateError: it does.
    """
    if last_seq < seen_seq:
        raise StateError(
            f"the journal of {directory} ends at record {last_seq}, but record {seen_seq} was "
            "durable: segments are missing or cut short",
            "put them back, or `troncal restore` a backup into another directory; to go on "
            f"without what is lost, remove {directory / queries.FILE_NAME}*",
        )


def make_snapshot(config: Config, directory: Path) -> Path:
    """Follow the journal up to its present end and write a snapshot of it.

    Works beside a live node: it only reads what is durable, and makes way for it, on its CPU as on
    its disk. Returns the new file's path.
    """
    with Breaks():
        state = State(config, directory)
        state.recover(live=True)
        return snapshot.write(directory, state.position, state.ledger, state.records)


def prune_segments(config: Config, directory: Path, needed_seq: int) -> int:
    """Delete segments that nobody needs any more; returns how many went.

    Kept are all from the older snapshot on, those with records from `needed_seq` on (what a
    follower has yet to read), and `segments_kept` more.
    """
    generations = snapshot.files(directory)
    if len(generations) < snapshot.GENERATIONS:
        return 0
    journal = str(directory / "journal")
    clear_gone(directory / "journal")
    needed = min(needed_seq, *(snapshot.sequence(path) for path in generations))
    spare = [n for n in segment_numbers(journal) if segment_first_seq(journal, n) <= needed]
    kept = spare[-config.journal.segments_kept - 1 :]
    if not kept:
        return 0
    return prune(journal, segment_first_seq(journal, kept[0]), remove=remove_gently)
