"""Recovery comes to the very state that was lost, and how fast.

`TRONCAL_RECORDS=1000000` builds and replays that many records; the goal is 1 M records/s of CPU.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest

from core_ext import Ledger, Reader, Records
from protocols.messages import CashOut, Delivered, Deposit
from switch.journal import snapshot
from switch.journal.store import LEDGER_KINDS, RECORDS_KINDS, State, make_snapshot
from tests.faults.process import Site, provision
from tests.house import Told

RECORDS = int(os.environ.get("TRONCAL_RECORDS", "20000"))
LONG = RECORDS >= 1_000_000
RATE_MIN = 1_000_000
TERMINALS = 20
CARDS = 400
GROUPS = """
[journal]
segment_bytes = 4194304
group_bytes_max = 1048576
digest_every_groups = 256
"""

pytestmark = pytest.mark.disk


def busy_day(site: Site, records: int) -> tuple[int, int]:
    """Cash_outs, deposits and marks until the journal has so many records; digests of the end."""
    node = site.open()
    terminals = [node.registry.terminal(entry.number) for entry in site.terminals]
    told = Told()
    trace = 0
    while node.store.journal.next_seq <= records:
        step = node.begin()
        trace += 1
        for index, terminal in enumerate(terminals):
            assert terminal is not None
            card = site.cards[(trace * TERMINALS + index) % CARDS]
            fields: dict[str, Any] = {
                "trace": trace, "cashier": "345", "document": card.document, "amount": 1000,
                "currency": "PYG",
            }  # fmt: skip
            code = card.next_code(time.time())
            message = Deposit(**fields) if code is None else CashOut(**fields, token=code)
            node.terminal_request(step, terminal, message, told)
            if trace % 2:
                node.terminal_request(step, terminal, Delivered(original=trace), told)
        node.end(step)
        node.store.commit()
        node.on_durable()
        assert {answer.code for answer in told.messages} == {"00"}
        told.messages.clear()
    digests = node.store.ledger.digest(), node.store.records.digest()
    node.close()
    return digests


def replayed(site: Site, *replicas: tuple[int, int, Any]) -> float:
    """CPU seconds to replay the journal into these."""
    reader = Reader(str(site.config.data / "journal"))
    began = time.process_time()
    reader.replay(list(replicas))
    reader.close()
    return time.process_time() - began


@pytest.mark.timeout(120 + RECORDS // 2000)
def test_replay_gives_the_very_state(tmp_path: Path) -> None:
    site = provision(tmp_path, terminals=TERMINALS, cards=CARDS, toml=GROUPS)
    digests = busy_day(site, RECORDS)
    state = State(site.config, site.config.data)
    began = time.process_time()
    state.recover()
    spent = time.process_time() - began
    recovery = state.recovery
    assert (state.ledger.digest(), state.records.digest()) == digests
    assert state.digests_checked >= state.recovery.records // 100_000
    assert state.ledger.check() == []
    assert recovery.records >= RECORDS
    ledger = (*LEDGER_KINDS, Ledger())
    records = (*RECORDS_KINDS, Records(None))
    parts = {"reading": replayed(site), "ledger": replayed(site, ledger)}
    parts["records"] = replayed(site, records)
    told = ", ".join(f"{name} {recovery.records / s:,.0f}" for name, s in parts.items())
    print(
        f"{recovery.records} records, {recovery.journal_bytes >> 20} MiB: "
        f"{recovery.records / spent:,.0f} records per CPU second "
        f"({recovery.rate_per_s:,.0f} by the clock); each part alone: {told}"
    )
    if LONG:
        assert recovery.records / spent >= RATE_MIN


def test_a_snapshot_shortens_the_way(tmp_path: Path) -> None:
    site = provision(tmp_path, terminals=TERMINALS, cards=CARDS, toml=GROUPS)
    digests = busy_day(site, 5000)
    whole = State(site.config, site.config.data)
    whole.recover()
    make_snapshot(site.config, site.config.data)
    rest = State(site.config, site.config.data)
    rest.recover()
    assert (rest.ledger.digest(), rest.records.digest()) == digests
    assert whole.recovery.journal_bytes > 100_000
    assert (rest.recovery.records, rest.recovery.journal_bytes) == (0, 0)
    assert rest.recovery.snapshot_seq == whole.position.seq


def test_what_killed_makers_leave_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = provision(tmp_path, terminals=1, cards=1, toml=GROUPS)
    data = site.config.data
    left, at_work = data / "snapshot-7.part", data / "snapshot-8.part"
    left.write_bytes(b"half")
    with open(at_work, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = make_snapshot(site.config, data)
        assert not left.exists()
        assert at_work.exists()
    assert snapshot.files(data) == [made]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "_write_all", full)
    with pytest.raises(OSError, match="No space"):
        make_snapshot(site.config, data)
    assert list(data.glob("*.part")) == [], "a full disk is not made fuller"
    assert snapshot.files(data) == [made]
