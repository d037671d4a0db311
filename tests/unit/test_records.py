"""The store of records against a plain dict, live, replayed and loaded."""

import pickle
import shutil
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core_ext._journal import Journal, JournalFailed, JournalFull, Reader
from core_ext._records import Records, RecordsFull
from core_ext._sink import MemorySink

SPACES = st.sampled_from([0, 1, 255])
KEYS = st.one_of(
    st.sampled_from([b"", b"a", b"b", b"op-1", b"op-2", bytes(32)]), st.binary(max_size=32)
)
VALUES = st.binary(max_size=40)


class Oracle:
    """Records as a dict, in the order of the last put."""

    def __init__(self):
        self.found = {}

    def put(self, space, key, value, is_open, stamp):
        self.found.pop((space, key), None)
        self.found[space, key] = (value, is_open, stamp)

    def items(self, space, open_only=False):
        return [
            (key, value)
            for (where, key), (value, is_open, _) in self.found.items()
            if where == space and (is_open or not open_only)
        ]

    def forget(self, space, before, most):
        gone = []
        for (where, key), (_, is_open, stamp) in self.found.items():
            if where != space or is_open:
                continue
            if stamp >= before or len(gone) == most:
                break
            gone.append((where, key))
        for each in gone:
            del self.found[each]
        return len(gone)


class RecordsMachine(RuleBasedStateMachine):
    """Every operation on the store, and on a dict; the journal records rebuild it at any time."""

    def __init__(self):
        super().__init__()
        self.sink = MemorySink()
        self.records = Records(self.sink)
        self.oracle = Oracle()

    @rule(space=SPACES, key=KEYS, value=VALUES, is_open=st.booleans(), stamp=st.integers(0, 20))
    def put(self, space, key, value, is_open, stamp):
        self.records.put(space, key, value, open=is_open, stamp=stamp)
        self.oracle.put(space, key, value, is_open, stamp)
        assert self.records.meta(space, key) == (is_open, stamp)

    @rule(space=SPACES, first=st.integers(0, 2**32), count=st.integers(1, 200))
    def put_many(self, space, first, count):
        for i in range(first, first + count):
            self.records.put(space, i.to_bytes(8, "little"), b"v%d" % i, stamp=i % 21)
            self.oracle.put(space, i.to_bytes(8, "little"), b"v%d" % i, False, i % 21)

    @precondition(lambda self: self.oracle.found)
    @rule(data=st.data(), is_open=st.booleans())
    def put_again(self, data, is_open):
        space, key = data.draw(st.sampled_from(sorted(self.oracle.found)))
        self.put(space, key, b"again", is_open, 5)

    @rule(space=SPACES, key=KEYS)
    def delete(self, space, key):
        assert self.records.delete(space, key) == ((space, key) in self.oracle.found)
        self.oracle.found.pop((space, key), None)

    @precondition(lambda self: self.oracle.found)
    @rule(data=st.data())
    def delete_one(self, data):
        space, key = data.draw(st.sampled_from(sorted(self.oracle.found)))
        assert self.records.delete(space, key)
        del self.oracle.found[space, key]

    @rule(space=SPACES, before=st.integers(0, 22), most=st.integers(0, 30))
    def forget(self, space, before, most):
        expected = self.oracle.forget(space, before, most)
        assert self.records.forget(space, before, most) == expected

    @rule(space=SPACES, key=KEYS)
    def get(self, space, key):
        value, is_open, stamp = self.oracle.found.get((space, key), (None, None, None))
        assert self.records.get(space, key) == value
        assert self.records.meta(space, key) == (None if value is None else (is_open, stamp))

    @rule()
    def replay(self):
        again = Records()
        for kind, data in self.sink.records:
            again.replay_record(kind, data)
        self.same(again)

    @rule()
    def load(self):
        again = Records()
        again.load(self.records.dump())
        self.same(again)

    def same(self, again):
        assert again.digest() == self.records.digest()
        assert again.bytes_used <= max(self.records.bytes_used, again.bytes_used)
        for space in (0, 1, 255):
            assert list(again.items(space)) == self.oracle.items(space)
            assert again.open_items(space) == self.oracle.items(space, open_only=True)
        for (space, key), (value, is_open, stamp) in self.oracle.found.items():
            assert again.get(space, key) == value
            assert again.meta(space, key) == (is_open, stamp)

    @invariant()
    def as_the_dict(self):
        assert len(self.records) == len(self.oracle.found)
        for space in (0, 1, 255):
            items = self.oracle.items(space)
            assert list(self.records.items(space)) == items
            assert self.records.count(space) == len(items)
            opened = self.oracle.items(space, open_only=True)
            assert self.records.open_items(space) == opened
            assert self.records.open_count(space) == len(opened)


TestRecordsMachine = RecordsMachine.TestCase


def test_the_journal_rebuilds_it():
    directory = tempfile.mkdtemp(prefix="troncal-records-")
    try:
        journal = Journal(directory, segment_bytes=1 << 20)
        journal.start()
        records = Records(journal)
        for i in range(5000):
            records.put(i % 3, b"%d" % (i % 700), bytes(i % 300), open=i % 5 == 0, stamp=i)
            if i % 50 == 0:
                records.delete(0, b"%d" % (i % 130))
            if i % 400 == 0:
                records.forget(1, max(0, i - 200))
            if i % 64 == 0:
                journal.seal()
        journal.close()
        again = Records()
        Reader(directory).replay([(64, 95, again)])
        assert again.digest() == records.digest()
        for space in range(3):
            assert list(again.items(space)) == list(records.items(space))
    finally:
        shutil.rmtree(directory)


# ---------------------------------------------------------------- limits


def fill(records, first=0, **options):
    """Put until it is full; return how many went in."""
    count = 0
    while True:
        try:
            records.put(1, b"%d" % (first + count), bytes(1000), **options)
        except RecordsFull:
            return count
        count += 1


def test_full_is_refused_before_anything_changes():
    sink = MemorySink()
    records = Records(sink, bytes_max=1 << 20)
    count = fill(records)
    assert 900 < count < 1050
    assert records.bytes_used <= records.bytes_max
    digest, used, told = records.digest(), records.bytes_used, len(sink.records)
    with pytest.raises(RecordsFull, match="of 1048576 bytes"):
        records.put(2, b"new", bytes(1000))
    with pytest.raises(RecordsFull):
        records.put(1, b"5", bytes(3000))
    assert (records.digest(), records.bytes_used, len(sink.records)) == (digest, used, told)
    records.put(1, b"5", bytes(1000))
    records.put(1, b"6", bytes(10))
    assert records.forget(1, 1, 10) == 10
    assert fill(records, 10_000) >= 10


def test_work_already_accepted_can_be_concluded_on_a_full_store():
    records = Records(bytes_max=1 << 20)
    records.put(2, b"operation", b"small", open=True)
    fill(records)
    records.put(2, b"operation", bytes(2000), open=True)
    records.put(2, b"operation", bytes(3000))
    with pytest.raises(RecordsFull):
        records.put(2, b"operation", bytes(5000))
    assert records.get(2, b"operation") == bytes(3000)


def test_even_that_is_bounded():
    records = Records(bytes_max=1 << 20)
    for i in range(10):
        records.put(2, b"operation %d" % i, b"", open=True)
    fill(records)
    refused = 0
    for i in range(10):
        try:
            records.put(2, b"operation %d" % i, bytes(20_000), open=True)
        except RecordsFull:
            refused += 1
    assert 0 < refused < 10
    assert records.bytes_max < records.bytes_used <= records.bytes_max * 17 // 16


def test_replay_and_load_are_not_refused():
    sink = MemorySink()
    records = Records(sink)
    for i in range(2000):
        records.put(1, b"%d" % i, bytes(1000))
    small = Records(bytes_max=1 << 20)
    small.load(records.dump())
    assert len(small) == 2000
    small = Records(bytes_max=1 << 20)
    for kind, data in sink.records:
        small.replay_record(kind, data)
    assert small.digest() == records.digest()


def test_a_sink_that_refuses_changes_nothing():
    directory = tempfile.mkdtemp(prefix="troncal-records-")
    try:
        journal = Journal(directory, segment_bytes=1 << 16, group_bytes_max=8192)
        journal.start()
        records = Records(journal)
        records.put(1, b"kept", b"value", open=False, stamp=1)
        with pytest.raises(JournalFull):
            records.put(1, b"new", bytes(9000))
        with pytest.raises(JournalFull):
            records.put(1, b"kept", bytes(9000))
        digest = records.digest()
        journal.close()
        for change in (
            lambda: records.put(1, b"new", b""),
            lambda: records.delete(1, b"kept"),
            lambda: records.forget(1, 5),
        ):
            with pytest.raises(JournalFailed):
                change()
        assert records.delete(1, b"unknown") is False
        assert records.forget(1, 0) == 0
        assert list(records.items(1)) == [(b"kept", b"value")]
        assert records.digest() == digest
    finally:
        shutil.rmtree(directory)


def test_memory_of_a_record():
    records = Records()
    empty = records.bytes_used
    for i in range(1 << 14):
        records.put(1, i.to_bytes(16, "little"), bytes(200))
    # 28 bytes of entry, 10 of head, 216 of key and value, all to 16; and a slot at 5/16 to 5/8.
    assert 256 <= (records.bytes_used - empty) / len(records) <= 256 + 8 * 16 / 5
    for i in range(1 << 14):
        records.delete(1, i.to_bytes(16, "little"))
    assert len(records) == 0
    assert records.digest() == 0


# ---------------------------------------------------------------- arguments and bad data


def test_arguments():
    records = Records()
    for bad in (
        lambda: records.put(256, b"", b""),
        lambda: records.put(-1, b"", b""),
        lambda: records.put(0, bytes(33), b""),
        lambda: records.put(0, b"", bytes(65536)),
        lambda: records.get(0, bytes(33)),
        lambda: records.delete(0, bytes(33)),
        lambda: records.get(256, b""),
        lambda: records.items(256),
        lambda: records.open_items(-1),
        lambda: records.count(256),
        lambda: records.forget(256, 0),
        lambda: Records(bytes_max=100),
    ):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(OverflowError):
        records.put(0, b"", b"", stamp=-1)
    with pytest.raises(TypeError):
        records.put(0, "text", b"")
    with pytest.raises(TypeError):
        pickle.dumps(records)
    records.put(255, bytes(32), bytes(65535), stamp=2**64 - 1)
    assert records.get(255, bytes(32)) == bytes(65535)
    assert records.meta(255, bytes(32)) == (False, 2**64 - 1)
    assert b"".join(records.dump()).count(bytes(60000)) == 1


def test_iterators_notice_changes():
    records = Records()
    for i in range(3):
        records.put(1, b"%d" % i, b"")
    for iterator in (records.items(1), records.items(2)):
        list(iterator)
    items = records.items(1)
    next(items)
    records.put(2, b"", b"")
    with pytest.raises(RuntimeError):
        next(items)
    for i in range(40):
        records.put(3, b"%d" % i, bytes(60000))
    dump = records.dump()
    assert len(next(dump)) <= 1 << 20
    records.delete(2, b"")
    with pytest.raises(RuntimeError):
        next(dump)


BAD_RECORDS = [
    (64, b""),
    (64, bytes(9)),
    (64, b"\x01\x21" + bytes(8 + 33)),
    (64, b"\x01\x05" + bytes(8 + 4)),
    (64, bytes(10 + 65536)),
    (64, bytes(10 + 32 + 65536)),
    (65, b""),
    (65, b"\x01\x01"),
    (65, b"\x01\x21" + bytes(33)),
    (65, b"\x01\x01x"),
    (66, bytes(4)),
    (66, b"\x01\x02\x00\x00\x00"),
    (66, b"\x01\xff\xff\xff\xff"),
    (67, b""),
    (1, b""),
]


@pytest.mark.parametrize(("kind", "data"), BAD_RECORDS)
def test_records_that_cannot_be_ours(kind, data):
    records = Records()
    records.put(1, b"only", b"")
    digest = records.digest()
    with pytest.raises(ValueError):
        records.replay_record(kind, data)
    assert records.digest() == digest


@given(st.sampled_from([64, 65, 66]), st.binary(max_size=80))
def test_no_record_confuses_it(kind, data):
    records = Records()
    for i in range(20):
        records.put(i % 3, b"%d" % i, b"value")
    try:
        records.replay_record(kind, data)
    except ValueError:
        assert len(records) == 20
    again = Records()
    again.load(records.dump())
    assert again.digest() == records.digest()


@given(st.integers(0), st.binary(min_size=1, max_size=8))
def test_a_damaged_dump_is_refused(place, bytes_there):
    records = Records()
    for i in range(30):
        records.put(i % 3, b"%d" % i, b"value %d" % i, open=i % 2 == 0)
    data = b"".join(records.dump())
    place %= len(data)
    damaged = data[:place] + bytes_there + data[place + len(bytes_there) :]
    for bad in (damaged, data[:place], data + bytes_there):
        if bad != data:
            with pytest.raises(ValueError):
                Records().load([bad])


def test_loading_wants_an_empty_store_and_a_dump():
    records = Records()
    records.put(1, b"", b"")
    with pytest.raises(ValueError, match="not empty"):
        records.load(records.dump())
    for bad in ([], [b""], [b"something else entirely, but long"]):
        with pytest.raises(ValueError, match="not a dump"):
            Records().load(bad)
