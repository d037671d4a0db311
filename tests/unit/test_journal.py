"""The journal: format, durability, torn tails, corruption, a full disk, failures, kill -9."""

import contextlib
import os
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ext._journal import (
    BEGINNING,
    Corruption,
    Journal,
    JournalFailed,
    JournalFull,
    Position,
    Reader,
    checksum,
    prune,
    segment_numbers,
    segment_path,
)
from core_ext._records import Records
from tests.models.journal import BLOCK, crc32c, parse_segment

KIB = 1024
SMALL = {"segment_bytes": 64 * KIB, "reserve_bytes": 0}
FUZZ = bool(os.environ.get("TRONCAL_FUZZ"))

# Two file systems where there are two: one with real direct writes, one in memory.
PLACES = [tempfile.gettempdir()] + (["/dev/shm"] if Path("/dev/shm").is_dir() else [])


@pytest.fixture(params=PLACES)
def directory(request):
    path = tempfile.mkdtemp(prefix="troncal-journal-", dir=request.param)
    yield path
    shutil.rmtree(path)


def wait_durable(journal: Journal, seq: int) -> None:
    """Wait on the eventfd, as the switch does."""
    poll = select.poll()
    poll.register(journal.fileno(), select.POLLIN)
    while journal.durable_seq < seq and journal.failure is None:
        assert poll.poll(10_000), "no progress for ten seconds"
        journal.clear_event()


def start(directory: str, **options) -> Journal:
    """A journal that continues whatever the directory holds."""
    reader = Reader(directory)
    reader.replay([])
    journal = Journal(directory, **{**SMALL, **options})
    journal.start(reader.position)
    reader.close()
    return journal


def write(directory: str, groups: list[list[bytes]], **options) -> None:
    journal = start(directory, **options)
    for group in groups:
        for payload in group:
            journal.append(200, payload)
        wait_durable(journal, journal.seal())
    assert journal.failure is None
    journal.close()


def read(directory: str, **options) -> list[list[bytes]]:
    reader = Reader(directory, **options)
    found = []
    while (group := reader.next()) is not None:
        found.append([payload for _, payload in group.records()])
    reader.close()
    return found


def payloads(count: int, size: int = 100, first: int = 0) -> list[bytes]:
    return [b"%08d" % i + bytes([i % 251]) * (size - 8) for i in range(first, first + count)]


# ---------------------------------------------------------------- format and round trip


@pytest.mark.parametrize("direct", [True, False])
def test_round_trip_and_format(directory, direct):
    journal = Journal(directory, direct=direct, partition=7, epoch=3, **SMALL)
    journal.start()
    if not direct:
        assert not journal.direct
    groups = [payloads(3), payloads(1, 5000), [b""], payloads(40, 200)]
    seq = 0
    for i, group in enumerate(groups):
        for payload in group:
            seq += 1
            assert journal.append(200 + i, payload) == seq
        assert journal.open_count == len(group)
        assert journal.seal(now_ns=1_000 + i) == seq
        assert (journal.open_count, journal.open_bytes) == (0, 0)
        wait_durable(journal, seq)
    assert journal.durable_seq == seq == journal.next_seq - 1
    assert journal.groups == 4
    journal.close()

    plain = parse_segment(Path(segment_path(directory, 1)).read_bytes())
    chain, first = bytes(32), 1
    for i, (found, group) in enumerate(zip(plain, groups, strict=True)):
        assert found.records == [(200 + i, payload) for payload in group]
        assert (found.partition, found.epoch, found.time_ns) == (7, 3, 1_000 + i)
        assert (found.first_seq, found.chain) == (first, chain)
        chain, first = found.digest, first + len(group)

    reader = Reader(directory)
    for i, found in enumerate(plain):
        group = reader.next()
        assert group.records() == found.records
        assert (group.first_seq, group.count) == (found.first_seq, len(found.records))
        assert group.last_seq == found.first_seq + len(found.records) - 1
        assert (group.partition, group.epoch, group.time_ns) == (7, 3, 1_000 + i)
        assert (group.segment, group.offset, group.chain) == (1, found.offset, found.digest)
    assert reader.next() is None
    assert reader.torn is None
    assert reader.position == Position(
        seq, chain, 1, -(-plain[-1].used // BLOCK) * BLOCK + plain[-1].offset
    )


def test_checksum():
    for data, value in [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)]:
        assert checksum(data) == checksum(data, portable=True) == value == crc32c(data)


@given(st.binary(max_size=300))
def test_checksum_both_ways(data):
    assert checksum(data) == checksum(data, portable=True) == crc32c(data)


def test_an_empty_seal_makes_no_group(directory):
    journal = start(directory)
    assert journal.seal() == 0
    journal.append(200, b"x")
    assert journal.seal() == 1 == journal.seal()
    journal.close()
    assert read(directory) == [[b"x"]]
    journal = start(directory)
    journal.close()
    assert read(directory) == [[b"x"]]


def test_close_flushes_or_drops(directory):
    journal = start(directory)
    for payload in payloads(500):
        journal.append(200, payload)
    journal.close()
    journal.close()
    assert [len(g) for g in read(directory)] == [500]
    journal = start(directory)
    journal.append(200, b"never sealed")
    journal.close(flush=False)
    assert [len(g) for g in read(directory)] == [500]
    with pytest.raises(JournalFailed):
        journal.append(200, b"")
    with pytest.raises(JournalFailed):
        journal.start(BEGINNING)
    assert (journal.fileno(), journal.clear_event(), journal.room_bytes) == (-1, 0, 0)


def test_a_group_larger_than_the_rest_goes_to_the_next_segment(directory):
    write(directory, [payloads(1, 40 * KIB), payloads(1, 30 * KIB), payloads(1, 20 * KIB)])
    assert segment_numbers(directory)[:2] == [1, 2]
    first = parse_segment(Path(segment_path(directory, 1)).read_bytes())
    second = parse_segment(Path(segment_path(directory, 2)).read_bytes())
    assert (len(first), len(second)) == (1, 2)
    assert [len(g[0]) for g in read(directory)] == [40 * KIB, 30 * KIB, 20 * KIB]


def test_groups_that_fill_their_segment_exactly(directory):
    exact = 64 * KIB - 80 - 4
    write(directory, [[bytes(exact)], [b"1" * exact], [b"2"]])
    write(directory, [[b"3" * exact]])
    assert [len(g[0]) for g in read(directory)] == [exact, exact, 1, exact]
    write(directory, [[b"4"]])
    assert read(directory)[-1] == [b"4"]


def test_the_largest_group(directory):
    journal = start(directory, group_bytes_max=8 * KIB)
    journal.append(200, bytes(8 * KIB - 80 - 4 - 5))
    with pytest.raises(JournalFull):
        journal.append(200, b"xx")
    assert (journal.open_count, journal.next_seq) == (1, 2)
    journal.append(200, b"x")
    assert journal.open_bytes == 8 * KIB
    with pytest.raises(JournalFull):
        journal.append(200, b"")
    journal.seal()
    journal.append(200, b"next")
    journal.close()
    assert [len(g) for g in read(directory)] == [2, 1]


def test_one_atomic_group_however_busy_the_flusher(directory):
    """With all buffers under way `seal` does nothing, and the open group grows."""
    journal = start(directory, segment_bytes=4 << 20)
    sizes = []
    for i in range(300):
        before = journal.open_count
        for payload in payloads(20, 400, i):
            journal.append(200, payload)
        assert journal.open_count == before + 20
        journal.seal()
        if journal.open_count == 0:
            sizes.append(before + 20)
    journal.close()
    found = [len(g) for g in read(directory)]
    assert sum(found) == 6000
    assert found[: len(sizes)] == sizes


def test_the_flusher_needs_no_gil(directory):
    """A caller that never lets go of the interpreter still sees its groups become durable."""
    journal = start(directory, segment_bytes=1 << 20)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for _ in range(50):
            for payload in payloads(50):
                journal.append(200, payload)
            seq = journal.seal()
            while journal.durable_seq < seq:
                pass
    finally:
        sys.setswitchinterval(interval)
    journal.close()
    assert sum(len(group) for group in read(directory)) == 2500


def test_arguments(directory):
    for bad in ({"segment_bytes": 5000}, {"segment_bytes": 1 << 14}, {"group_bytes_max": 100}):
        with pytest.raises(ValueError):
            Journal(directory, **bad)
    journal = Journal(directory, **SMALL)
    with pytest.raises(JournalFailed):
        journal.append(200, b"")
    journal.start()
    for kind in (199, 256, -1):
        with pytest.raises(ValueError):
            journal.append(kind, b"")
    with pytest.raises(TypeError):
        journal.append(200, "text")
    with pytest.raises(TypeError):
        pickle.dumps(journal)
    journal.close()


def test_one_writer_at_a_time(directory):
    journal = start(directory)
    other = Journal(directory, **SMALL)
    with pytest.raises(BlockingIOError):
        other.start(BEGINNING)
    journal.close()
    start(directory).close()


def test_dropping_a_running_journal_ends_its_threads(directory):
    journal = start(directory)
    journal.append(200, b"never sealed")
    threads = len(os.listdir("/proc/self/task"))
    del journal
    assert len(os.listdir("/proc/self/task")) == threads - 2
    assert read(directory) == []


@pytest.mark.parametrize("direct", [True, False])
def test_segments_change_size_between_runs(directory, direct):
    for i, size in enumerate([64, 128, 64, 256, 64]):
        write(directory, [payloads(60, 200, 60 * i)] * 3, segment_bytes=size * KIB, direct=direct)
    assert [len(g) for g in read(directory)] == [60] * 15


# ---------------------------------------------------------------- starting points


def test_reading_from_a_snapshot(directory):
    groups = [payloads(5, 6000, 5 * i) for i in range(8)]
    write(directory, groups)
    reader = Reader(directory)
    places = [reader.position]
    while reader.next() is not None:
        places.append(reader.position)
    for i, place in enumerate(places):
        assert read(directory, after_seq=place.seq, chain=place.chain) == groups[i:]
        assert read(directory, after_seq=place.seq) == groups[i:]
        assert read(directory, position=place) == groups[i:]
        if i:
            with pytest.raises(Corruption, match=r"chain is broken|another history"):
                read(directory, after_seq=place.seq, chain=bytes(32))
    with pytest.raises(ValueError, match="not the last of its group"):
        Reader(directory, after_seq=7)
    with pytest.raises(Corruption, match="ends before record 41"):
        Reader(directory, after_seq=41)


def test_pruning_keeps_what_a_snapshot_needs(directory):
    groups = [payloads(5, 6000, 5 * i) for i in range(12)]
    write(directory, groups)
    reader = Reader(directory)
    places = []
    while reader.next() is not None:
        places.append(reader.position)
    before = segment_numbers(directory)
    for i, place in enumerate(places):
        prune(directory, place.seq + 1)
        assert read(directory, after_seq=place.seq, chain=place.chain) == groups[i + 1 :]
        assert prune(directory, place.seq + 1) == 0
    assert len(segment_numbers(directory)) < len(before)
    with pytest.raises(Corruption, match="does not reach back"):
        Reader(directory, after_seq=places[0].seq)
    with pytest.raises(Corruption, match="record 1 should follow"):
        read(directory)
    last = places[-1]
    reader = Reader(directory, after_seq=last.seq, chain=last.chain)
    journal = Journal(directory, **SMALL)
    journal.start(reader.position)
    journal.append(200, b"after")
    journal.close()
    assert read(directory, after_seq=last.seq, chain=last.chain) == [[b"after"]]


def test_a_lost_directory_is_not_a_fresh_one(directory):
    with pytest.raises(Corruption, match="does not reach back"):
        Reader(directory, after_seq=5, chain=bytes(32))
    assert read(directory) == []
    assert read(directory + "/nowhere") == []


def test_start_refuses_to_cut_good_groups(directory):
    write(directory, [[b"a"], [b"b"]])
    reader = Reader(directory)
    reader.next()
    journal = Journal(directory, **SMALL)
    with pytest.raises(Corruption, match="a good group begins here"):
        journal.start(reader.position)
    journal = Journal(directory, **SMALL)
    with pytest.raises(ValueError, match="the journal exists"):
        journal.start()
    assert read(directory) == [[b"a"], [b"b"]]


def test_chains_of_recent_groups(directory):
    journal = start(directory)
    assert journal.chain_at(0) == bytes(32)
    for i in range(1200):
        journal.append(200, b"%d" % i)
        if i % 100 == 0:
            wait_durable(journal, journal.seal())
    wait_durable(journal, journal.seal())
    while journal.busy:
        pass
    position = journal.position
    assert position.seq == 1200
    assert journal.chain_at(1200) == position.chain
    assert journal.chain_at(1150) is None
    reader = Reader(directory)
    while (group := reader.next()) is not None:
        assert journal.chain_at(group.last_seq) == group.chain
    assert reader.position == position
    journal.close()
    journal = start(directory)
    assert journal.position == position
    assert journal.chain_at(1200) == position.chain
    journal.close()


# ---------------------------------------------------------------- replay


def test_replay_goes_to_whom_it_concerns(directory):
    journal = start(directory)
    records = Records(journal)
    for i in range(300):
        records.put(1, b"k%d" % (i % 50), b"v%d" % i, open=i % 3 == 0, stamp=i)
        if i % 7 == 0:
            journal.append(222, b"event %d" % i)
        if i % 20 == 19:
            wait_durable(journal, journal.seal())
    journal.close()
    fresh, seen = Records(), []
    reader = Reader(directory)
    count = reader.replay([(64, 95, fresh)], lambda *event: seen.append(event))
    assert count == reader.position.seq == 300 + 43
    assert fresh.digest() == records.digest()
    assert list(fresh.items(1)) == list(records.items(1))
    assert [(kind, data) for _, kind, data in seen] == [
        (222, b"event %d" % i) for i in range(0, 300, 7)
    ]
    assert [seq for seq, _, _ in seen][:3] == [2, 10, 18]

    reader = Reader(directory)
    assert reader.replay([], upto_seq=50) == reader.position.seq <= 50
    rest = reader.replay([])
    assert reader.position.seq == 343
    assert rest > 0


def test_a_replica_that_refuses_is_named_by_place(directory):
    write(directory, [[b"x"]])
    with pytest.raises(ValueError, match="no kind") as caught:
        Reader(directory).replay([(200, 200, Records())])
    assert "record 1 of kind 200, segment 1, group at offset 0" in caught.value.__notes__[0]
    for bad in ([(1, 2, object())], [(5, 4, Records())], [(0, 256, Records())]):
        with pytest.raises(ValueError):
            Reader(directory).replay(bad)


def test_a_reader_is_not_entered_twice(directory):
    write(directory, [[b"x"]])
    reader = Reader(directory)
    with pytest.raises(RuntimeError):
        reader.replay([], lambda *_: reader.next())


@pytest.mark.parametrize("direct", [True, False])
def test_following_a_live_journal(directory, direct):
    reader = Reader(directory)
    assert reader.next() is None
    journal = start(directory, direct=direct)
    expected, found = [], []
    for i in range(200):
        group = payloads(1 + i % 13, 50 + 70 * (i % 11), i)
        for payload in group:
            journal.append(200, payload)
        expected += group
        seq = journal.seal()
        if i % 5 == 0:
            wait_durable(journal, seq)
        durable = journal.durable_seq
        while (next_group := reader.next()) is not None:
            found += [payload for _, payload in next_group.records()]
        assert len(found) >= durable
        assert found == expected[: len(found)]
    journal.close()
    while (next_group := reader.next()) is not None:
        found += [payload for _, payload in next_group.records()]
    assert found == expected
    assert len(segment_numbers(directory)) > 2


# ---------------------------------------------------------------- torn tails


def tear(directory: str, at: int, garbage: bytes = b"") -> None:
    """Zero the file from `at` on, as if only that much had reached the disk."""
    with open(segment_path(directory, 1), "r+b") as file:
        end = file.seek(0, 2)
        file.seek(at)
        file.write((garbage + bytes(end))[: end - at])


def test_a_torn_tail_is_cut_wherever_it_tears(directory):
    write(directory, [payloads(3), payloads(2, 30), payloads(12, 100, 7)])
    whole = Path(segment_path(directory, 1)).read_bytes()
    last = parse_segment(whole)[-1]
    # A byte that is zero anyway is no tear.
    ends = [i for i in range(last.offset, last.offset + last.used) if whole[i]]
    step = 1 if FUZZ else 37
    cuts = sorted({*ends[::step], *ends[:96], ends[-1]})
    for cut in cuts:
        Path(segment_path(directory, 1)).write_bytes(whole)
        tear(directory, cut)
        reader = Reader(directory)
        assert reader.replay([]) == 5
        assert (reader.position.seq, reader.position.offset) == (5, last.offset)
        assert (reader.torn is None) == (cut == last.offset)


def test_after_the_cut_old_bytes_are_gone(directory):
    """A torn group twice as long as what follows it leaves nothing behind."""
    write(directory, [payloads(3), payloads(30, 300)])
    whole = Path(segment_path(directory, 1)).read_bytes()
    last = parse_segment(whole)[-1]
    tear(directory, last.offset + 100, os.urandom(12000))
    write(directory, [[b"short"]])
    after = parse_segment(Path(segment_path(directory, 1)).read_bytes())
    assert [g.records[0][1][:8] for g in after] == [b"00000000", b"short"]
    assert read(directory)[1:] == [[b"short"]]


def test_a_torn_group_at_the_head_of_a_segment(directory):
    write(directory, [payloads(1, 59 * KIB), payloads(1, 30 * KIB)])
    with open(segment_path(directory, 2), "r+b") as file:
        file.seek(9000)
        file.write(b"torn")
    reader = Reader(directory)
    assert reader.replay([]) == 1
    assert (reader.position.segment, reader.position.offset) == (1, 61440)
    assert reader.torn == "segment 2, offset 0: the checksum does not match"
    write(directory, [[b"again"], payloads(1, 30 * KIB)])
    assert [len(g[0]) for g in read(directory)] == [59 * KIB, 5, 30 * KIB]


def test_a_bad_group_at_the_head_of_a_segment_before_a_good_one(directory):
    write(directory, [payloads(1, 59 * KIB), payloads(1, 30 * KIB), [b"good"]])
    flip(directory, 2, 9000)
    for attempt in (read, lambda where: Reader(where).replay([])):
        with pytest.raises(Corruption, match="good group follows at segment 2") as caught:
            attempt(directory)
        assert (caught.value.segment, caught.value.offset) == (2, 0)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 5000, 12288, 20480])
def test_a_segment_cut_short(directory, size):
    """The zeroer was not done when the power went; or the file system lost the end."""
    write(directory, [[b"a" * 5000], [b"b" * 5000]])
    os.truncate(segment_path(directory, 1), size)
    left = read(directory)
    assert len(left) == (size >= 8192) + (size >= 16384)
    write(directory, [[b"c"]])
    assert read(directory) == [*left, [b"c"]]


# ---------------------------------------------------------------- corruption


def flip(directory: str, segment: int, at: int, bit: int = 0) -> None:
    with open(segment_path(directory, segment), "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_flipped_bit_anywhere_but_in_the_last_group_is_corruption(directory):
    write(directory, [payloads(20), payloads(2, 50), payloads(10)])
    groups = parse_segment(Path(segment_path(directory, 1)).read_bytes())
    middle = groups[1]
    places = range(middle.offset, middle.offset + BLOCK, 1 if FUZZ else 29)
    for at in [*range(middle.offset, middle.offset + 84), *places]:
        bit = at % 8
        flip(directory, 1, at, bit)
        with pytest.raises(Corruption) as caught:
            Reader(directory).replay([])
        assert (caught.value.segment, caught.value.offset) == (1, middle.offset)
        assert str(caught.value).startswith(f"segment 1, offset {middle.offset}: ")
        assert f"a good group follows at segment 1, offset {groups[2].offset}" in str(caught.value)
        with pytest.raises(Corruption):
            read(directory)
        flip(directory, 1, at, bit)
    assert len(read(directory)) == 3


def test_a_bad_group_before_a_good_one_in_the_next_segment(directory):
    write(directory, [payloads(1, 60 * KIB), payloads(1, 30 * KIB)])
    flip(directory, 1, 5000)
    with pytest.raises(Corruption, match=r"checksum does not match.*segment 2, offset 0") as caught:
        Reader(directory).replay([])
    assert (caught.value.segment, caught.value.offset) == (1, 0)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_group_is_noticed(directory, lost):
    """Zeros where a group was, and good groups beyond: a write the device forgot."""
    write(directory, [payloads(2, 5000, 2 * i) for i in range(9)])
    groups = parse_segment(Path(segment_path(directory, 1)).read_bytes())
    with open(segment_path(directory, 1), "r+b") as file:
        at = groups[-lost].offset
        file.seek(at)
        file.write(bytes(-(-groups[-lost].used // BLOCK) * BLOCK))
    with pytest.raises(Corruption) as caught:
        Reader(directory).replay([])
    assert (caught.value.segment, caught.value.offset) == (1, at)


def test_a_lost_segment_is_noticed(directory):
    write(directory, [payloads(2, 5000, 2 * i) for i in range(20)])
    assert len(segment_numbers(directory)) >= 4
    os.unlink(segment_path(directory, 2))
    with pytest.raises(Corruption) as caught:
        Reader(directory).replay([])
    assert caught.value.segment == 1


def test_a_group_of_another_history_breaks_the_chain(directory):
    other = directory + "-other"
    try:
        write(directory, [payloads(2), payloads(2), payloads(2)])
        write(other, [payloads(2, 99), payloads(2), payloads(2)])
        ours = Path(segment_path(directory, 1))
        data = bytearray(ours.read_bytes())
        at = parse_segment(bytes(data))[2].offset
        theirs = Path(segment_path(other, 1)).read_bytes()
        data[at : at + BLOCK] = theirs[at : at + BLOCK]
        ours.write_bytes(data)
        with pytest.raises(Corruption, match="chain is broken") as caught:
            read(directory)
        assert (caught.value.segment, caught.value.offset) == (1, at)
    finally:
        shutil.rmtree(other)


def reseal(directory: str, group: int, change) -> None:
    """Change a group's bytes and make its checksum right again."""
    path = Path(segment_path(directory, 1))
    data = bytearray(path.read_bytes())
    found = parse_segment(bytes(data))[group]
    body = data[found.offset : found.offset + found.used]
    change(body)
    body[12:16] = crc32c(bytes(body[:12] + body[16:])).to_bytes(4, "little")
    data[found.offset : found.offset + found.used] = body
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (slice(8, 12), 9, "another partition"),
        (slice(16, 24), 1, "the epoch falls"),
        (slice(24, 32), 9, "record 5 should follow, the group has 9"),
        (slice(48, 80), 9, "chain is broken"),
    ],
)
def test_a_group_that_does_not_follow(directory, field, value, reason):
    write(directory, [payloads(2), payloads(2)], epoch=5)
    write(directory, [payloads(2)], epoch=6)

    def change(body):
        body[field] = value.to_bytes(field.stop - field.start, "little")

    reseal(directory, 2, change)
    with pytest.raises(Corruption, match=reason):
        read(directory)


def test_records_that_do_not_fill_their_group(directory):
    write(directory, [payloads(2), payloads(2)])

    def one_more(body):
        body[40] += 1

    reseal(directory, 0, one_more)
    with pytest.raises(Corruption, match="records do not fill the group"):
        read(directory)


@given(st.binary(max_size=2 * BLOCK), st.integers(0, 3 * BLOCK))
def test_no_bytes_confuse_the_reader(noise, at):
    """Whatever is there: groups in front of it are read, or it is named as corruption."""
    with tempfile.TemporaryDirectory(dir=PLACES[-1]) as directory:
        write(directory, [payloads(2), payloads(2, 3000), payloads(2)])
        with open(segment_path(directory, 1), "r+b") as file:
            file.seek(at)
            file.write(noise)
        with contextlib.suppress(Corruption):
            groups = read(directory)
            assert groups == [payloads(2), payloads(2, 3000), payloads(2)][: len(groups)]


def test_a_record_that_looks_like_a_group_is_not_taken_for_one(directory):
    """A journaled copy of a group, torn with the group around it, is still only a torn tail."""
    write(directory, [payloads(2), payloads(3)])
    copied = Path(segment_path(directory, 1)).read_bytes()[BLOCK : 2 * BLOCK]
    write(directory, [[bytes(2 * BLOCK - 80 - 4 - 4 - BLOCK), copied, b"tail"]])
    flip(directory, 1, 2 * BLOCK + 90)
    reader = Reader(directory)
    assert reader.replay([]) == 5
    assert reader.torn is not None


# ---------------------------------------------------------------- disk full, failure


def test_a_full_disk_is_told_before_work_is_accepted(directory):
    journal = start(
        directory, segment_bytes=256 * KIB, reserve_bytes=64 * KIB, fail_after_bytes=200 * KIB
    )
    assert journal.room_bytes <= 136 * KIB
    accepted = 0
    while journal.room_bytes > 0:
        journal.append(200, bytes(1000))
        wait_durable(journal, journal.seal())
        accepted += 1
    # The reserve is real: what concludes accepted work still goes in.
    reserve = 0
    while True:
        try:
            journal.append(200, bytes(1000))
        except JournalFull:
            break
        wait_durable(journal, journal.seal())
        reserve += 1
    assert (accepted, reserve) == (34, 16)
    assert journal.failure is None
    with pytest.raises(JournalFull):
        journal.append(200, b"")
    assert journal.seal() == 50
    journal.close()
    assert [len(g) for g in read(directory)] == [1] * 50
    # Space comes back: the journal goes on where it was.
    write(directory, [[b"later"]], segment_bytes=256 * KIB)
    assert len(read(directory)) == 51


def test_a_write_or_sync_error_is_final(directory):
    journal = start(directory, fail_sync_at=3)
    for i in range(2):
        journal.append(200, b"%d" % i)
        wait_durable(journal, journal.seal())
    journal.append(200, b"lost")
    journal.seal()
    while journal.failure is None:
        assert select.select([journal.fileno()], [], [], 10)[0]
        journal.clear_event()
    assert journal.durable_seq == 2
    assert journal.failure == (
        "making a group durable (segment 1, offset 8192): Input/output error"
    )
    with pytest.raises(JournalFailed, match="Input/output error"):
        journal.append(200, b"more")
    assert journal.seal() == 3
    assert journal.room_bytes == 0
    journal.close()
    assert journal.durable_seq == 2
    assert journal.failure is not None


def test_a_failed_device_is_a_failure(directory):
    """The segment is taken away: the next one cannot be opened, and that is final."""
    journal = start(directory, segment_bytes=64 * KIB)
    while journal.zeroed_bytes < 128 * KIB:
        time.sleep(0.001)
    os.unlink(segment_path(directory, 2))
    journal.append(200, bytes(40 * KIB))
    wait_durable(journal, journal.seal())
    journal.append(200, bytes(40 * KIB))
    journal.seal()
    while journal.failure is None:
        assert select.select([journal.fileno()], [], [], 10)[0]
        journal.clear_event()
    assert journal.failure.startswith("opening a segment (segment 2, offset 0)")
    assert journal.durable_seq == 1
    journal.close()


def test_closing_on_a_full_disk_does_not_hang(directory):
    journal = start(directory, segment_bytes=64 * KIB, fail_after_bytes=16 * KIB)
    journal.append(200, bytes(8 * KIB))
    journal.seal()
    journal.close()
    assert journal.failure is None
    assert len(read(directory)) == 1


# ---------------------------------------------------------------- kill -9

WRITER = """
import os, random, select, sys
sys.path[:0] = eval(sys.argv[4])
from core_ext._journal import Journal, Reader
directory, seed, direct = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
reader = Reader(directory)
reader.replay([])
journal = Journal(directory, segment_bytes=1 << 20, reserve_bytes=0, direct=direct)
journal.start(reader.position)
chance = random.Random(seed)
poll = select.poll()
poll.register(journal.fileno(), select.POLLIN)
while True:
    for _ in range(chance.randint(1, 60)):
        n = journal.next_seq
        journal.append(200, n.to_bytes(8, "little") + bytes([n % 256]) * chance.randint(0, 400))
    seq = journal.seal()
    if chance.random() < 0.5:
        while journal.durable_seq < seq:
            poll.poll(1000)
            journal.clear_event()
    assert journal.failure is None
    os.write(1, journal.durable_seq.to_bytes(8, "little"))
"""


@pytest.mark.parametrize("direct", [True, False])
def test_kill_nine(directory, direct):
    """Whenever it dies: everything acknowledged is there, and nothing that was never written."""
    chance = random.Random(1)
    for seed in range(25 if FUZZ else 5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory, str(seed), "01"[direct], repr(sys.path)],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        acknowledged = 0
        while acknowledged == 0:
            acknowledged = int.from_bytes(writer.stdout.read(8), "little")
        time.sleep(chance.random() * 0.15)
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read()
        writer.stdout.close()
        writer.wait()
        whole = len(told) // 8 * 8
        if whole:
            acknowledged = int.from_bytes(told[whole - 8 : whole], "little")
        found = [payload for group in read(directory) for payload in group]
        assert len(found) >= acknowledged
        for seq, payload in enumerate(found, 1):
            assert payload == seq.to_bytes(8, "little") + bytes([seq % 256]) * (len(payload) - 8)
