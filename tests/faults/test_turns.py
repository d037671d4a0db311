"""Too much at once: a group has a size, so a step has one; everybody else waits for the next."""

from pathlib import Path

import trio
import trio.testing

from switch.flows.step import ALARM_RECORD, Step
from switch.journal.records import AlarmRecord
from tests.faults.process import SMALL, provision
from tests.faults.test_journal_faults import Till, running
from tests.house import House

TINY_GROUPS = SMALL.replace("group_bytes_max = 262144", "group_bytes_max = 65536")
TILLS = 6


def test_more_at_once_than_a_group_holds(tmp_path: Path) -> None:
    site = provision(tmp_path, terminals=TILLS, cards=TILLS, toml=TINY_GROUPS)
    with running(site) as node:
        tills = [Till(site, node, index) for index in range(TILLS)]
        for _ in range(3):
            for till in tills:  # some 150 KB of journal each
                till.wire.send(*(till.deposit() for _ in range(60)))
            for till in tills:
                answers = [till.wire.receive() for _ in range(60)]
                assert {answer["code"] for answer in answers if answer} == {"00"}
        for till in tills:
            till.close()
        assert node.stop() == 0, node.tail()


def crowd(house: House) -> None:
    """Put more into the open group than a turn should find there."""
    record = AlarmRecord(0, "crowded", "", "x" * 1000)
    while not house.node.crowded:
        house.node.store.append(ALARM_RECORD, record)


async def test_everybody_who_waits_for_room_gets_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    crowd(house)
    let_in = []

    async def wait(number: int) -> None:
        await house.node.room()
        let_in.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert not let_in
        house.settle()
        with trio.fail_after(120):
            await trio.testing.wait_all_tasks_blocked()
        assert sorted(let_in) == list(range(5))
    house.close()


def test_what_is_due_at_once_is_called_step_by_step(tmp_path: Path) -> None:
    house = House(tmp_path)
    node = house.node
    called: list[str] = []

    def on_deadline(step: Step, kind: str, key: str) -> None:
        called.append(key)

    node._deadlines["red"] = on_deadline
    count = 2 * node.requests_max + 1
    step = node.begin()
    for number in range(count):
        step.arm("red", "hold", f"{number}", 5)
    step.arm("red", "hold", "later", 60)
    node.end(step)
    house.clock.advance(5.1)
    assert node.run_due()
    assert len(called) == node.requests_max
    step = node.begin()
    step.disarm("red", "hold", "later")  # and one that is due is armed anew
    step.arm("red", "hold", "0", 10)
    node.end(step)
    assert node.run_due()
    assert not node.run_due()
    assert sorted(called) == sorted(map(str, range(count)))
    house.clock.advance(10.1)
    assert not node.run_due()
    assert called[-1] == "0"
    assert len(called) == count + 1
    house.close()
