"""The configuration read again under traffic, with a real node: nothing fails, no one is cut (P13).

The traffic comes from terminals of `wire_client`, which know nothing of reloads: whatever one of
them is answered or loses counts.
"""

import contextlib
import json
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from switch.cli import root
from tests.e2e.wire_client import Ended, Node, Peer, totp

TERMINALS = ("00000001", "00000002", "00000003", "00000004")
NETWORK = "0012"
WAIT_S = 120.0


def run(*words: object, config: Path | None = None) -> Result:
    """The program in this process, which is quicker; the node is always another one."""
    where = [] if config is None else ["-c", str(config)]
    return CliRunner().invoke(root, [*where, *map(str, words)], prog_name="troncal")


def told(*words: object, config: Path | None = None) -> Any:
    done = run(*words, "--json", config=config)
    assert done.exit_code == 0, (words, done.output)
    return json.loads(done.stdout)


class Place:
    """A directory with a network, terminals and persons, and its file to edit."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "troncal.toml"
        told("init", directory)
        self.keys = {}
        self.add("network", "add", NETWORK, "--net-debit-cap", 10**12)
        for number in TERMINALS:
            made = self.add("terminal", "add", number, "--network", NETWORK, "--branch", "17")
            self.keys[number] = made["key"]
        self.seeds = [
            self.add("card", "add", "--document", 4_000_000 + n, "--balance", 10**9)["seed"]
            for n in range(3)
        ]
        self.add("card", "add", "--document", 5_000_000)

    def add(self, *words: object) -> Any:
        return told(*words, config=self.config)

    def edit(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text, old
        self.config.write_text(text.replace(old, new, 1))

    def reload(self) -> list[str]:
        """Keys that `troncal reload` says have changed."""
        return [change["key"] for change in told("reload", config=self.config)["changes"]]

    def refused(self) -> str:
        done = run("reload", config=self.config)
        assert done.exit_code == 1, done.stdout
        return done.stderr


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reload")
    (directory / "place.json").write_text(
        json.dumps({"keys": (place := Place(directory / "node")).keys, "seeds": place.seeds})
    )
    return directory


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Place:
    shutil.copytree(template, tmp_path / "made")
    known = json.loads((tmp_path / "made" / "place.json").read_text())
    place = Place.__new__(Place)
    place.config = tmp_path / "made" / "node" / "troncal.toml"
    place.keys, place.seeds = known["keys"], known["seeds"]
    return place


@pytest.fixture
def node(place: Place) -> Iterator[Node]:
    node = Node(place.config)
    try:
        yield node
    finally:
        node.stop()


class Traffic:
    """One terminal that pays in without a pause, on one connection, until told to stop."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.codes: dict[str, int] = {}
        self.companies: set[str] = set()
        self.failure = ""
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        trace = 0
        try:
            while not self.stop.is_set():
                trace += 1
                answer = self.peer.ask(
                    {
                        "op": "deposit", "trace": trace, "sent_at": _now(), "amount": 1000,
                        "currency": "PYG", "document_type": "CI", "document": "5000000",
                        "cashier": "45",
                    }
                )  # fmt: skip
                self.codes[answer["code"]] = self.codes.get(answer["code"], 0) + 1
                self.companies.add(answer["ticket"][0].strip())
        except (Ended, OSError, KeyError) as error:
            self.failure = repr(error)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(WAIT_S)
        self.peer.close()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def cash_out(peer: Peer, place: Place, person: int, trace: int) -> dict[str, Any]:
    return peer.ask(
        {
            "op": "cash_out", "trace": trace, "sent_at": _now(), "amount": 10_000,
            "currency": "PYG", "document_type": "CI", "document": str(4_000_000 + person),
            "token": totp(place.seeds[person]), "cashier": "45",
        }
    )  # fmt: skip


@pytest.mark.layouts("together")
def test_P13_reloads_under_traffic_cost_nobody_anything(place: Place, node: Node) -> None:
    traffic = [
        Traffic(node.peer("terminals", number, place.keys[number]).sign_on())
        for number in TERMINALS[1:]
    ]
    till = node.peer("terminals", TERMINALS[0], place.keys[TERMINALS[0]]).sign_on()
    try:
        assert cash_out(till, place, 0, 1)["fee"] == 0
        place.edit("cash_out = 0\n", "cash_out = 250\n")
        place.edit('company = "RED DEMO S.A."', 'company = "RED OTRA S.A."')
        assert place.reload() == ["red.company", "fees.cash_out"]
        assert cash_out(till, place, 1, 2)["fee"] == 250
        place.edit('max = "5000000 PYG"', 'max = "9000 PYG"')
        assert place.reload() == ["limits.operation"]
        assert cash_out(till, place, 2, 3)["code"] == "13"
        for number in range(6):
            place.edit("red_s = 2", f"red_s = {24 - number % 2}  # 2")
            assert place.reload() == ["budgets.red_s"]
            place.config.write_text(
                "\n".join(
                    "red_s = 25" if line.startswith("red_s") else line
                    for line in place.config.read_text().splitlines()
                )
            )
            node.process.send_signal(signal.SIGHUP)
            _until(lambda n=number: node.log.read_text().count('"budgets.red_s"') == 2 * n + 2)
        _until(lambda: all(one.failure or sum(one.codes.values()) > 20 for one in traffic))
    finally:
        for one in traffic:
            one.end()
        till.close()
    assert [one.failure for one in traffic] == ["", "", ""]
    assert {code for one in traffic for code in one.codes} == {"00"}
    assert all(sum(one.codes.values()) > 20 for one in traffic)
    assert any(one.companies == {"RED DEMO S.A.", "RED OTRA S.A."} for one in traffic)
    _in_the_audit_trail(place, 2 + 6 + 6)


def _in_the_audit_trail(place: Place, count: int) -> None:
    told("operations", "--limit", 1, config=place.config)  # brings the read model up to date
    path = place.config.parent / "data" / "read.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT who, reason FROM audit WHERE what = 'reload'").fetchall()
    assert len(rows) == count
    assert rows[0] == ("operator", "red.company fees.cash_out")


def _until(condition: Any) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_all_or_nothing(place: Place, node: Node) -> None:
    with node.peer("terminals", TERMINALS[0], place.keys[TERMINALS[0]]).sign_on() as till:
        good = place.config.read_text()
        place.edit("cash_out = 0\n", "cash_out = 250\n")
        place.edit("keys_max = 2_000_000", "keys_max = 3_000_000")
        line = 1 + place.config.read_text()[: place.config.read_text().index("keys_max")].count(
            "\n"
        )
        told_why = place.refused()
        assert f"troncal.toml:{line}: ledger.keys_max: cannot change" in told_why
        assert cash_out(till, place, 0, 1)["fee"] == 0
        node.process.send_signal(signal.SIGHUP)
        _until(lambda: "reload_refused" in node.log.read_text())
        place.config.write_text(good.replace("cash_out = 0\n", "cash_out = -1\n"))
        assert "fees.cash_out: is -1" in place.refused()
        assert cash_out(till, place, 1, 2)["fee"] == 0
        place.config.write_text(good)
        assert place.reload() == []


def test_without_a_node(place: Place) -> None:
    assert "no node runs" in place.refused()
    assert run("links", config=place.config).exit_code == 1


def test_links_come_and_go(place: Place) -> None:
    """Hosts that nobody answers for: what counts here is which links there are."""
    for name in ("ceibo", "ceibo2"):
        place.add("host", "add", name, "--dialect", "ceibo", "--connect", "127.0.0.1:1")
    node = Node(place.config, "--roles", "red,sicoop")
    try:
        links = told("links", config=place.config)
        assert [(link["link"], link["up"]) for link in links] == [("ceibo", False)]
        text = place.config.read_text()
        route = '\n[[routes]]\nto = "ceibo2"\namount_max = 5000\n[links.ceibo2]\nqueue_max = 7\n'
        place.config.write_text(text + route)
        assert place.reload() == ["links.ceibo2", "routes"]
        assert sorted(link["link"] for link in told("links", config=place.config)) == [
            "ceibo",
            "ceibo2",
        ]
        place.config.write_text(text + route.replace("= 7", "= 8"))
        assert place.reload() == ["links.ceibo2.queue_max"]
        place.config.write_text(text + route.replace("= 7", "= 8\nmatch = ['37']"))
        assert "links.ceibo2.match: cannot change" in place.refused()
        place.config.write_text(text)
        assert "links.ceibo2.queue_max" in place.reload()
        assert [link["link"] for link in told("links", config=place.config)] == ["ceibo"]
        assert told("links", "explain", "ceibo", config=place.config) == []
        assert (
            "there is no link ceibo2"
            in run("links", "explain", "ceibo2", config=place.config).stderr
        )
        assert run("links", config=place.config).stdout.count("ceibo") == 1
        place.config.write_text(text + "\n[links.ceibo2]\n")
        assert place.reload() == ["links.ceibo2"]
        place.add("host", "disable", "ceibo")
        assert [link["link"] for link in told("links", config=place.config)] == ["ceibo2"]
        place.add("host", "enable", "ceibo")
        assert len(told("links", config=place.config)) == 2
    finally:
        assert node.stop() == 0


@pytest.mark.layouts("together")
def test_P13_keys_rotate_under_traffic(place: Place, tmp_path: Path) -> None:
    """red and sicoop here, ceibo there; keys of the hop, the network and a terminal change."""
    far = tmp_path / "ceibo" / "troncal.toml"
    told("init", far.parent)
    told("card", "add", "--document", 5_000_000, config=far)
    hop = tmp_path / "hop.json"
    hop.write_text(run("host", "rotate", "sicoop", "--json", config=far).stdout)
    issuer = Node(far, "--roles", "ceibo")
    host, port = issuer.listeners["ceibo"]
    add = ("host", "add", "ceibo", "--dialect", "ceibo", "--connect", f"{host}:{port}")
    place.add(*add, "--keys", hop)
    node = Node(place.config, "--roles", "red,sicoop")
    try:
        _until(lambda: told("links", config=place.config)[0]["up"])
        traffic = [
            Traffic(node.peer("terminals", number, place.keys[number]).sign_on())
            for number in TERMINALS[:2]
        ]
        for _ in range(2):
            made = run("host", "rotate", "sicoop", "--json", config=far).stdout
            _more(traffic)
            hop.write_text(made)
            place.add("host", "rotate", "ceibo", "--keys", hop)
            _more(traffic)
        place.add("network", "rotate", NETWORK)
        place.add("terminal", "rotate", TERMINALS[0])
        _more(traffic)
        for one in traffic:
            one.end()
        assert [one.failure for one in traffic] == ["", ""]
        assert {code for one in traffic for code in one.codes} == {"00"}
        for config in (place.config, far):
            (link,) = told("links", config=config)
            assert (link["counters"]["mac_failures"], link["counters"]["connects"] <= 1) == (
                0,
                True,
            )
    finally:
        assert node.stop() == 0
        assert issuer.stop() == 0


def _more(traffic: list[Traffic]) -> None:
    """Wait until every terminal has got ten more answers."""
    wanted = [sum(one.codes.values()) + 10 for one in traffic]
    _until(
        lambda: all(
            one.failure or sum(one.codes.values()) >= count
            for one, count in zip(traffic, wanted, strict=True)
        )
    )


def test_a_disabled_terminals_session_ends_with_its_next_request(place: Place, node: Node) -> None:
    with (
        node.peer("terminals", TERMINALS[0], place.keys[TERMINALS[0]]).sign_on() as one,
        node.peer("terminals", TERMINALS[1], place.keys[TERMINALS[1]]).sign_on() as other,
    ):
        for peer in (one, other):
            assert peer.ask({"op": "echo"})["op"] == "echo_answer"
        place.add("terminal", "disable", TERMINALS[0])
        assert one.ask({"op": "last_operation"})["op"] == "answer"
        one.expect_end()
        assert other.ask({"op": "echo"})["op"] == "echo_answer"
        place.add("network", "disable", NETWORK)
        assert other.ask({"op": "last_operation"})["op"] == "answer"
        other.expect_end()
        with node.peer("terminals", TERMINALS[1], place.keys[TERMINALS[1]]) as again:
            again.send_bytes(again.sign_on_frame(bytes(16)))
            again.read_63()
