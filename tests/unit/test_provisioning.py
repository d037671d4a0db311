"""Roles apart: keys made by the other side, networks that another node has to know, rotations."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from core_ext import Reader
from protocols.iso8583.keys import HostKeys
from switch.admin_socket import ProvisioningError
from switch.cli import root, setup
from switch.config import Config, ConfigError, load
from switch.flows.registry import Host, Network, PeerKeyRecord, Terminal
from switch.net.pump import Pump
from switch.node import Node
from switch.ops.host_keys import host_keys
from switch.ops.keys import MasterKey, UnsealError
from switch.provisioning import KEY_OVERLAP_NS, Provisioning
from switch.remotes import Remotes
from tests.house import ManualClock

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
}
MAC, DATA, ZONE = "11" * 16, "22" * 32, "33" * 32
KEYS = {"mac_key": MAC, "data_key": DATA, "zone_key": ZONE}

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    setup.make(directory, **SMALL)
    return directory


@pytest.fixture
def side(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Cli]:
    """Nodes of their own, by name: `side("red")("network", "list")`."""
    monkeypatch.delenv("TRONCAL_CONFIG", raising=False)

    def of(name: str) -> Cli:
        directory = tmp_path / name
        if not directory.exists():
            shutil.copytree(template, directory)

        def run(*arguments: object, stdin: str = "") -> Result:
            command = ["-c", str(directory / "troncal.toml"), *map(str, arguments)]
            return CliRunner().invoke(root, command, input=stdin, prog_name="troncal")

        return run

    return of


def answer_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    return json.loads(line)


# ---- keys of the other side


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_hosts_keys_come_from_the_other_side(
    side: Callable[[str], Cli], tmp_path: Path, source: str
) -> None:
    ceibo, sicoop = side("ceibo"), side("sicoop")
    made = ceibo("host", "add", "platform", "--dialect", "ceibo", "--json").stdout
    file = tmp_path / "keys.json"
    file.write_text(made)
    add = ("host", "add", "ceibo", "--dialect", "ceibo", "--connect", "127.0.0.1:7003", "--json")
    result = (
        sicoop(*add, "--keys", file)
        if source == "file"
        else sicoop(*add, "--keys", "-", stdin=made)
    )
    answer = answer_of(result)
    assert answer == {"host": "ceibo", "mac_version": 1, "data_version": 1, "zone_version": 1}
    checks = [
        [(row["key"], row["check"]) for row in answer_of(cli("host", "check", name, "--json"))]
        for cli, name in ((ceibo, "platform"), (sicoop, "ceibo"))
    ]
    assert checks[0] == checks[1]
    assert len({check for _, check in checks[0]}) == 3


@pytest.mark.parametrize(
    ("keys", "mac", "told"),
    [
        ({"mac_key": MAC, "data_key": DATA}, "aes-cmac", "no zone_key"),
        (KEYS | {"mac_key": "11" * 32}, "aes-cmac", "mac_key is not 32 hex digits"),
        (KEYS, "hmac-sha256", "mac_key is not 64 hex digits"),
        (KEYS | {"data_key": "zz" * 32}, "retail", "data_key is not 64 hex digits"),
        ({}, "aes-cmac", "no mac_key"),
    ],
)
def test_bad_keys_are_refused_without_a_word_of_them(
    side: Callable[[str], Cli], keys: dict[str, str], mac: str, told: str
) -> None:
    cli = side("sicoop")
    add = ("host", "add", "b", "--dialect", "bank", "--mac", mac, "--keys", "-")
    result = cli(*add, stdin=json.dumps(keys))
    assert result.exit_code == 1
    assert told in result.stderr
    assert not any(key in result.output for key in keys.values())
    assert "b" not in [row["name"] for row in answer_of(cli("host", "list", "--json"))]


@pytest.mark.parametrize("text", ["", "[]", "nonsense " + MAC, '{"mac_key"'])
def test_what_is_no_json_object_is_told_without_its_content(
    side: Callable[[str], Cli], text: str
) -> None:
    cli = side("sicoop")
    for command in (
        ("host", "add", "b", "--dialect", "bank", "--keys", "-"),
        ("network", "add", "0012", "--key-file", "-"),
        ("network", "import", "-"),
    ):
        result = cli(*command, stdin=text)
        assert result.exit_code == 1
        assert MAC not in result.output


def test_a_host_without_macs_needs_no_mac_key(side: Callable[[str], Cli]) -> None:
    add = ("host", "add", "b", "--dialect", "bank", "--mac", "none", "--keys", "-", "--json")
    keys = {"data_key": DATA, "zone_key": ZONE}
    assert "mac_version" not in answer_of(side("sicoop")(*add, stdin=json.dumps(keys)))


def test_a_networks_key_comes_from_sicoop(side: Callable[[str], Cli]) -> None:
    sicoop, red = side("sicoop"), side("red")
    made = sicoop("network", "add", "0012", "--json").stdout
    answer = answer_of(red("network", "add", "0012", "--key-file", "-", "--json", stdin=made))
    assert answer == {"peer": "0012", "version": 1}
    made = sicoop("network", "rotate", "0012", "--json").stdout
    answer = answer_of(red("network", "rotate", "0012", "--key-file", "-", "--json", stdin=made))
    assert answer == {"peer": "0012", "version": 2}
    again = red("network", "rotate", "0012", "--key-file", "-", stdin=made)
    assert "is here already" in again.stderr
    keys = [
        answer_of(cli("network", "export", "0012", "--secrets", "--json"))["network"]["keys"]
        for cli in (sicoop, red)
    ]
    assert keys[0] == keys[1]
    assert keys[0][0]["version"] == 2


# ---- a network at another node


def test_a_network_is_taken_to_another_node(side: Callable[[str], Cli]) -> None:
    red, sicoop = side("red"), side("sicoop")
    made = sicoop("network", "add", "0012", "--net-debit-cap", "700", "--json").stdout
    red("network", "add", "0012", "--name", "Red", "--key-file", "-", stdin=made)
    red("branch", "add", "9", "--network", "0012", "--name", "Centro")
    for number in range(3):
        red("terminal", "add", f"{number:08d}", "--network", "0012", "--branch", "17")
    red("cashier", "add", "45", "--network", "0012", "--branch", "17", "--supervisor")
    red("terminal", "disable", "00000001")
    told = red("network", "export", "0012")
    exported = json.loads(told.stdout)
    assert all(entry["keys"] == [] for entry in exported["terminals"])
    assert all(entry["seed"] == "" for entry in exported["cashiers"])

    answer = answer_of(sicoop("network", "import", "-", "--json", stdin=told.stdout))
    assert answer == {"network": "0012", "branches": 2, "terminals": 3, "cashiers": 1}
    rows = answer_of(sicoop("terminal", "list", "--json"))
    assert [(r["number"], r["branch"], r["disabled"]) for r in rows] == [
        ("00000000", "000017", False),
        ("00000001", "000017", True),
        ("00000002", "000017", False),
    ]
    (network,) = answer_of(sicoop("network", "list", "--json"))
    assert (network["name"], network["net_debit_cap"]) == ("Red", 700)
    (cashier,) = answer_of(sicoop("cashier", "list", "--json"))
    assert cashier["supervisor"] is True

    # Who is disabled here stays so, whatever is said there.
    sicoop("terminal", "disable", "00000002")
    assert answer_of(sicoop("network", "import", "-", "--json", stdin=told.stdout)) == answer
    disabled = {
        r["number"] for r in answer_of(sicoop("terminal", "list", "--json")) if r["disabled"]
    }
    assert disabled == {"00000001", "00000002"}


def test_with_secrets_everything_moves(side: Callable[[str], Cli], tmp_path: Path) -> None:
    old, new = side("old"), side("new")
    old("network", "add", "0012")
    old("terminal", "add", "00000017", "--network", "0012", "--branch", "17", "--mac", "aes-cmac")
    made = answer_of(old("cashier", "add", "45", "--network", "0012", "--branch", "17", "--json"))
    told = old("network", "export", "0012", "--secrets").stdout
    assert answer_of(new("network", "import", "-", "--json", stdin=told))["terminals"] == 1
    again = json.loads(new("network", "export", "0012", "--secrets").stdout)
    assert again == json.loads(told)
    assert again["cashiers"][0]["seed"] == made["seed"]
    config = load(tmp_path / "new" / "troncal.toml", environ={})
    trail = b"".join(_journal(config))
    for secret in (again["network"]["keys"][0]["key"], made["seed"]):
        assert secret.encode() not in trail


def test_an_import_is_whole_or_not_at_all(side: Callable[[str], Cli]) -> None:
    old, new = side("old"), side("new")
    for cli, network in ((old, "0012"), (new, "0034")):
        cli("network", "add", network)
        cli("terminal", "add", "00000017", "--network", network, "--branch", "17")
    old("terminal", "add", "00000016", "--network", "0012", "--branch", "17")
    result = new("network", "import", "-", stdin=old("network", "export", "0012").stdout)
    assert result.exit_code == 1
    assert "terminal 00000017 is of network 0034 here" in result.stderr
    assert len(answer_of(new("terminal", "list", "--json"))) == 1


def test_many_terminals_come_in_pieces(side: Callable[[str], Cli]) -> None:
    new = side("new")
    exported = {
        "format": "troncal-network-1",
        "network": {"number": "0012"},
        "terminals": [{"number": f"{n:08d}", "branch": "17"} for n in range(1050)],
    }
    answer = answer_of(new("network", "import", "-", "--json", stdin=json.dumps(exported)))
    assert answer["terminals"] == 1050
    assert len(answer_of(new("terminal", "list", "--json"))) == 1050
    assert [b["number"] for b in answer_of(new("branch", "list", "--json"))] == ["000017"]


def test_a_terminal_that_is_only_known_has_no_key(side: Callable[[str], Cli]) -> None:
    cli = side("sicoop")
    cli("network", "add", "0012")
    add = ("terminal", "add", "00000017", "--network", "0012", "--branch", "17")
    assert answer_of(cli(*add, "--no-key", "--json")) == {"peer": "00000017"}
    assert cli(*add[:2], "00000018", *add[3:], "--no-key", "--key-file", "-").exit_code == 2
    rotated = answer_of(cli("terminal", "rotate", "00000017", "--json"))
    assert (rotated["version"], len(rotated["key"])) == (1, 64)


# ---- keys of hosts in versions


@pytest.fixture
def node(tmp_path: Path, template: Path) -> Iterator[Node]:
    shutil.copytree(template, tmp_path / "n")
    config = load(tmp_path / "n" / "troncal.toml", environ={})
    master = MasterKey.load(config.file(config.node.master_key_file), {})
    node = Node(config, master, ManualClock(), config.data)
    node.open()
    yield node
    node.close()


def call(node: Node, command: str, **values: Any) -> Any:
    step = node.begin()
    provisioning = Provisioning(node)
    try:
        answer = provisioning.call(step, command, values)
    finally:
        node.end(step)
    node.changes = provisioning.changed  # type: ignore[attr-defined]
    return answer


class Sides:
    """Two hosts in one registry that stand for the two ends of a link: who makes keys, and who is
    given them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.made = call(node, "host_add", name="maker", dialect="ceibo")
        call(node, "host_add", name="taker", dialect="ceibo", keys=self.made_keys)

    @property
    def made_keys(self) -> dict[str, str]:
        return {name: self.made[name] for name in KEYS}

    def prove(self) -> None:
        """Both have signed on."""
        step = self.node.begin()
        for name in ("maker", "taker"):
            host = self.node.registry.host(name)
            assert host is not None
            host.proved = True
            self.node.registry.put(host)
        self.node.end(step)

    def keys(self, name: str) -> HostKeys:
        host = self.node.registry.host(name)
        assert host is not None
        return host_keys(self.node.master, host, self.node.clock.wall_ns())

    def check(self) -> None:
        """Each accepts what the other sends, codes included."""
        for one, other in (("maker", "taker"), ("taker", "maker")):
            a, b = self.keys(one), self.keys(other)
            mac = a.signing_key().mac(b"x")[:8]
            assert b.verify_many([b"x"], [mac]) != [0], f"{other} refuses what {one} sends"
            assert a.sealing_key in b.data_keys

    def rotate(self) -> None:
        self.made = call(self.node, "host_rotate", name="maker")

    def hand_over(self) -> None:
        call(self.node, "host_rotate", name="taker", keys=self.made_keys)


def test_both_sides_of_a_rotation_never_lose_a_message(node: Node) -> None:
    """Whichever side has the new keys first, each accepts what the other sends (P13)."""
    sides = Sides(node)
    sides.check()
    sides.prove()
    sides.rotate()
    sides.check()
    sides.rotate()  # once more before the first was handed over: that one is forgotten
    sides.check()
    sides.hand_over()
    sides.check()
    assert sides.keys("taker").signing_key() is not None
    node.clock.step(KEY_OVERLAP_NS / 1e9 + 1)  # type: ignore[attr-defined]
    assert len(sides.keys("maker").versions("mac")) == 1
    assert len(sides.keys("taker").versions("mac")) == 1
    sides.check()


def test_keys_that_nobody_was_given_are_replaced_at_once(node: Node) -> None:
    """`init` makes the host sicoop, and its first keys are shown to nobody."""
    made = call(node, "host_rotate", name="sicoop")
    host = node.registry.host("sicoop")
    assert host is not None
    keys = host_keys(node.master, host, node.clock.wall_ns())
    assert keys.sealing_key == bytes.fromhex(made["data_key"])


async def test_keys_in_use_follow_the_registry(node: Node) -> None:
    """A running link takes in new keys, begins to use them in time, and forgets the old."""
    call(node, "host_rotate", name="sicoop", keys=KEYS)
    remotes = Remotes(node, Pump(node))
    remotes.prepare()
    used = remotes._keys["sicoop"]

    def told() -> Host:
        host = node.registry.host("sicoop")
        assert host is not None
        remotes.changed(host)
        return host

    host = told()
    assert used.sealing_key == bytes.fromhex(DATA)
    host.proved = True
    step = node.begin()
    node.registry.put(host)
    node.end(step)
    made = call(node, "host_rotate", name="sicoop")
    told()
    assert used.sealing_key == bytes.fromhex(DATA)
    assert bytes.fromhex(made["data_key"]) in used.data_keys
    node.clock.step(KEY_OVERLAP_NS / 1e9 + 1)  # type: ignore[attr-defined]
    told()
    assert used.data_keys == [bytes.fromhex(made["data_key"])]
    assert len(used.versions("mac")) == 1


def test_commands_tell_what_they_changed(node: Node) -> None:
    call(node, "network_add", number="0012")
    call(node, "terminal_add", number="00000017", network="0012", branch="17")
    call(node, "terminal_enable", number="00000017", enable=False)
    (terminal,) = node.changes  # type: ignore[attr-defined]
    assert isinstance(terminal, Terminal)
    assert terminal.disabled
    call(node, "show", kind="terminal")
    assert node.changes == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "a b"}, "1 to 32 letters"),
        ({"name": "a", "mac": "md5"}, "mac is one of"),
        ({"name": "a", "listen": "127.0.0.1:1", "connect": "127.0.0.1:1"}, "not both"),
        ({"name": "a", "connect": "127.0.0.1"}, "not HOST:PORT"),
        ({"name": "sicoop"}, "exists"),
    ],
)
def test_hosts_that_cannot_be(node: Node, values: dict[str, str], told: str) -> None:
    with pytest.raises(ProvisioningError, match=told):
        call(node, "host_add", **{"dialect": "ceibo", **values})


def test_a_bank_dials_or_is_dialled(node: Node) -> None:
    call(node, "host_add", name="b", dialect="bank", listen="127.0.0.1:1")
    call(node, "host_add", name="c", dialect="bank", connect="127.0.0.1:1")
    call(node, "host_change", name="c", connect="", listen="127.0.0.1:2")
    remotes = Remotes(node, Pump(node))
    remotes.prepare()
    remotes.bank("b")
    remotes.check_listeners()
    assert remotes.addresses() == ["127.0.0.1:1"]  # nobody asks c, so it has nothing to dial


@pytest.mark.parametrize(
    ("name", "dialect", "listen", "told"),
    [
        ("b", "bank", "", "needs a listener apart"),
        ("b", "bank", "127.0.0.1:7", "needs a listener apart"),  # where another dialect is read
        ("b", "bank", "0.0.0.0:1", "listens outside loopback"),
    ],
)
def test_listeners_of_hosts_that_cannot_be(
    node: Node, name: str, dialect: str, listen: str, told: str
) -> None:
    call(node, "host_add", name="own", dialect="ceibo", listen="127.0.0.1:7")
    call(node, "host_add", name=name, dialect=dialect, listen=listen)
    remotes = Remotes(node, Pump(node))
    remotes.prepare()
    remotes.bank(name)
    with pytest.raises(ConfigError, match=told):
        remotes.check_listeners()


def test_a_host_moves_and_is_disabled(node: Node) -> None:
    call(node, "host_add", name="b", dialect="ceibo", connect="127.0.0.1:1")
    call(node, "host_change", name="b", connect="", listen="127.0.0.1:2")
    call(node, "host_enable", name="b", enable=False)
    host = node.registry.host("b")
    assert isinstance(host, Host)
    assert (host.connect, host.listen, host.disabled) == ("", "127.0.0.1:2", True)


def test_a_sealed_key_opens_for_its_owner_only(node: Node) -> None:
    call(node, "network_add", number="0012")
    network = node.registry.network("0012")
    assert isinstance(network, Network)
    (record,) = network.keys
    assert isinstance(record, PeerKeyRecord)
    with pytest.raises(UnsealError):
        node.master.open(record.sealed, purpose="peer-keys", owner="network:0013:1")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=PeerKeyRecord) == record


def _journal(config: Config) -> Iterator[bytes]:
    reader = Reader(str(config.data / "journal"))
    while (group := reader.next()) is not None:
        yield from (payload for _, payload in group.records())
    reader.close()


# ---- values that no ledger and no ticket can hold


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("network_add", {"number": "0999", "net_debit_cap": 10**23}),
        ("network_add", {"number": "0999", "payable_cap": 2**63}),
        ("network_add", {"number": "0999", "net_debit_cap": -1}),
        ("network_add", {"number": "0999", "net_debit_cap": 10**15 + 1}),
        ("network_add", {"number": "0999", "name": "x" * 101}),
        ("network_add", {"number": "0999", "name": "a\x1b[31mb"}),
        ("network_add", {"number": "0999", "key": "00" * 32, "version": 256}),
        ("network_caps", {"number": "0012", "net_debit_cap": 2**64}),
        ("network_caps", {"number": "0012", "net_debit_cap": 0, "payable_cap": 10**30}),
        ("network_rotate", {"number": "0012", "key": "00" * 32, "version": 10**23}),
        ("terminal_rotate", {"number": "00000017", "key": "00" * 32, "version": 300}),
        ("branch_add", {"number": "18", "network": "0012", "name": "a\nb"}),
        ("cashier_add", {"number": "9", "network": "0012", "branch": "17", "name": "ñ" * 101}),
        ("card_add", {"document": "4123456", "balance": 10**23}),
        ("card_add", {"document": "4123456", "balance": 10**12}),
        ("card_add", {"document": "4123456", "max_balance": 2**63}),
        ("card_add", {"document": "4123456", "name": "\ud800"}),
        ("card_add", {"document": "4123456", "label": "x" * 41}),
        ("card_fund", {"card": "card-000001", "amount": 2**64}),
        ("card_voucher", {"card": "card-000001", "amount": 10**20}),
        ("card_voucher", {"card": "card-000001", "amount": 1, "seconds": 10**20}),
        ("conciliation_adjust", {
            "account": "net:0012", "amount": 10**23, "direction": "debit",
            "signature": {"author": "Ana", "second": "Luis", "reason": "x"},
        }),
        (
            "network_import",
            {"network": {"number": "0013", "keys": [{"version": 10**23, "key": "00" * 32}]}},
        ),
        (
            "network_import",
            {"network": {"number": "0013", "keys": [{"version": 256, "key": "00" * 32}]}},
        ),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_and_change_nothing(
    node: Node, command: str, values: dict[str, Any]
) -> None:
    call(node, "network_add", number="0012", net_debit_cap=1000)
    call(node, "terminal_add", number="00000017", network="0012", branch="17")
    call(node, "card_add", document="7654321", token_mode="vale", balance=1000)
    before = node.store.ledger.digest(), node.store.records.digest()
    with pytest.raises(ProvisioningError) as refused:
        call(node, command, **values)
    assert (node.store.ledger.digest(), node.store.records.digest()) == before
    assert str(refused.value)


def test_the_largest_values_are_taken(node: Node) -> None:
    call(node, "network_add", number="0012", net_debit_cap=10**15, payable_cap=10**15)
    made = call(node, "card_add", document="7654321", name="María Núñez", balance=10**12 - 1)
    assert call(node, "card_show", card=made["card"])["available"] == 10**12 - 1


def test_a_refusal_says_what_to_do(side: Callable[[str], Cli]) -> None:
    cli = side("node")
    cli("network", "add", "0012")
    for command, told in (
        (("network", "add", "0012"), "troncal network rotate 0012"),
        (("network", "add", "12"), "four digits"),
        (("terminal", "add", "00000017", "--network", "0099", "--branch", 1), "network list"),
        (("terminal", "add", "17", "--network", "0012", "--branch", 1), "eight digits"),
        (("card", "add", "--document", "412"), "5 to 8 digits"),
        (("card", "add", "--document", "4123456", "--balance", 10**23), "999999999999"),
        (("host", "add", "x", "--dialect", "nope"), "there are: bank, ceibo"),
    ):
        result = cli(*command)
        assert result.exit_code in (1, 2)
        assert told in result.output
        assert result.stdout == ""
