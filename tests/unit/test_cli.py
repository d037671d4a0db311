"""The command line without sockets: options, output, errors, and the commands on stopped data."""

import csv
import json
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import trio
import trio.testing
from click.testing import CliRunner, Result

from core_ext._mac import totp
from protocols.messages import Answer, CashOut, Delivered, Deposit
from switch.cli import cards, demo_cashiers, provision, questions, root, send, setup
from switch.cli.base import Call, CliError, cell, told_as
from switch.cli.demo import _problems
from switch.cli.demo_cashiers import Tally
from switch.config import Config, load
from switch.flows import operations as ops
from switch.journal import backup as backups
from switch.journal import store, verify
from switch.node import Node
from switch.ops.keys import from_base32

SMALL = {
    "journal_segment_bytes": 1 << 20,
    "journal_group_bytes_max": 1 << 16,
    "journal_reserve_bytes": 1 << 16,
    "journal_digest_every_groups": 4,
}
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "otp.json").read_text())

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test in a directory of its own, without a configuration of ours around it."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRONCAL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def cli() -> Cli:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(root, [str(a) for a in arguments], prog_name="troncal")

    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    setup.make(directory, **SMALL)
    return directory


@pytest.fixture
def config(template: Path, tmp_path: Path) -> Config:
    """A node's directory as `init` leaves it, in the present directory."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return load(tmp_path / "troncal.toml")


def answer_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    return json.loads(line)


# ---- options, errors, output


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "troncal.toml", "--json", "network", "list"),
        ("network", "-c", "troncal.toml", "--json", "list"),
        ("network", "list", "-c", "troncal.toml", "--json"),
    ],
)
def test_common_options_may_stand_anywhere(
    cli: Cli, config: Config, arguments: tuple[str, ...]
) -> None:
    assert answer_of(cli(*arguments)) == []


def test_the_last_config_named_counts(cli: Cli, config: Config) -> None:
    assert answer_of(cli("-c", "no.toml", "network", "list", "-c", config.path, "--json")) == []


def test_config_by_environment(
    cli: Cli, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("check-config").exit_code == 1
    monkeypatch.setenv("TRONCAL_CONFIG", str(config.path))
    assert cli("check-config").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("network",),
        ("network", "add"),
        ("serve", "--listen", "nobody=127.0.0.1:1"),
        ("serve", "--listen", "http"),
        ("serve", "--listen", "http=127.0.0.1:70000"),
        ("serve", "--roles", "red,bank"),
        ("card", "code", "--seed", "ABCD", "--mode", "ocra"),
        ("card", "code", "--seed", "ABCD", "--at", "noon"),
        ("card", "add", "--document", "1234567", "--expires", "soon"),
        ("send", "delivered"),
        ("send", "delivered", "--original", "5"),
        ("operations", "--since", "yesterday"),
        ("operation", "12"),
        ("init", "-c", "x.toml"),
        ("demo", "-c", "x.toml"),
        ("sim", "terminal", "--document", "1234567", "--fault", "smoke=1"),
        ("sim", "terminal", "--document", "1234567", "--fault", "drop=2"),
    ],
)
def test_wrong_usage_is_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert "Usage" in result.stderr


def test_every_command_has_help(cli: Cli) -> None:
    def walk(command: click.Command, path: list[str]) -> None:
        result = cli(*path, "--help")
        assert result.exit_code == 0
        assert "--json" in result.output
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                assert inner.help
                walk(inner, [*path, name])

    walk(root, [])


def test_a_missing_config_says_what_to_do(cli: Cli) -> None:
    result = cli("serve")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "troncal init" in result.stderr


def test_a_refusal_has_a_reason_and_a_hint(cli: Cli, config: Config) -> None:
    cli("network", "add", "0012")
    cli("terminal", "add", "00000017", "--network", "0012", "--branch", "1")
    result = cli("terminal", "add", "00000017", "--network", "0012", "--branch", "1")
    assert result.exit_code == 1
    assert "terminal 00000017 exists" in result.stderr
    assert "terminal rotate 00000017" in result.stderr


def test_errors_of_tasks_are_told_like_others() -> None:
    nested = ExceptionGroup("a", [ExceptionGroup("b", [OSError(98, "Address already in use")])])
    told = told_as(nested)
    assert told is not None
    assert told.message == "Address already in use"
    with pytest.raises(CliError, match="inside"):
        told_as(ExceptionGroup("a", [CliError("inside")]))


def test_our_own_mistakes_are_not_told_as_the_users() -> None:
    assert told_as(AssertionError("ours")) is None
    assert told_as(ExceptionGroup("a", [OSError(1, "x"), KeyError("y")])) is None
    assert told_as(BrokenPipeError()) is None


@pytest.mark.parametrize(
    ("value", "name", "shown"),
    [
        (1234567, "amount", "1.234.567"),
        (123456, "trace", "123456"),
        (True, "", "yes"),
        ("", "", "–"),
        (0, "delivered_ns", "–"),
        ({"a": 1000, "b": 2}, "", "a 1.000, b 2"),
        (["x", "y"], "", "x, y"),
    ],
)
def test_values_for_people(value: Any, name: str, shown: str) -> None:
    assert cell(value, name) == shown


# ---- init and check-config


def test_init_makes_a_directory(cli: Cli, tmp_path: Path) -> None:
    answer = answer_of(cli("init", "node", "--json"))
    assert answer == {
        "config": "node/troncal.toml",
        "data": "node/data",
        "next": "troncal serve -c node/troncal.toml",
    }
    modes = {
        name: stat.S_IMODE((tmp_path / "node" / name).stat().st_mode)
        for name in ("master.key", "data", "data/journal")
    }
    assert modes == {"master.key": 0o600, "data": 0o700, "data/journal": 0o700}
    hosts = answer_of(cli("host", "list", "-c", "node/troncal.toml", "--json"))
    assert [(host["name"], host["dialect"]) for host in hosts] == [("sicoop", "ceibo")]


def test_init_tells_the_next_command(cli: Cli, config: Config, tmp_path: Path) -> None:
    result = cli("init", "other")
    assert "troncal serve -c other/troncal.toml" in result.stdout
    again = cli("init", "other")
    assert again.exit_code == 1
    assert "other/troncal.toml exists" in again.stderr


def test_init_leaves_nothing_behind_when_it_fails(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "master.key").write_text("somebody else's")
    result = cli("init")
    assert result.exit_code == 1
    assert "master.key exists" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["master.key"]


def test_init_keeps_away_from_data(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "something").touch()
    assert cli("init").exit_code == 1
    assert not (tmp_path / "troncal.toml").exists()


def test_init_with_a_key_from_the_environment(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRONCAL_MASTER_KEY", "11" * 32)
    assert cli("init").exit_code == 0
    assert not (tmp_path / "master.key").exists()
    assert cli("check-config").exit_code == 0


def test_check_config_tells_every_mistake_with_its_line(cli: Cli, config: Config) -> None:
    text = config.path.read_text()
    line = text[: text.index("heartbeat_s")].count("\n") + 1
    text = text.replace("heartbeat_s = 30", "heartbeat_s = 0").replace("digits = 6", "digits = 9")
    config.path.write_text(text)
    result = cli("check-config")
    assert result.exit_code == 1
    assert f"troncal.toml:{line}: session.heartbeat_s" in result.stderr
    assert "tokens.digits" in result.stderr
    found = json.loads(cli("check-config", "--json").stdout)
    assert found["ok"] is False
    assert [m["where"] for m in found["mistakes"]] == ["session.heartbeat_s", "tokens.digits"]


def test_check_config_looks_at_the_master_key(cli: Cli, config: Config) -> None:
    assert cli("check-config").exit_code == 0
    (config.path.parent / "master.key").chmod(0o644)
    result = cli("check-config")
    assert result.exit_code == 1
    assert "chmod 600" in result.stderr


# ---- provisioning


def test_what_provisioning_prints(cli: Cli, config: Config) -> None:
    """The exact keys of the JSON, which scripts rely on."""
    network = answer_of(cli("network", "add", "0012", "--net-debit-cap", 1000, "--json"))
    assert list(network) == ["peer", "key"]
    assert len(bytes.fromhex(network["key"])) == 32
    terminal = answer_of(
        cli("terminal", "add", "00000017", "--network", "0012", "--branch", "17", "--json")
    )
    assert list(terminal) == ["peer", "key", "mac"]
    assert (terminal["peer"], terminal["mac"]) == ("00000017", "hmac-sha256")
    card = answer_of(cli("card", "add", "--document", "4567890", "--balance", "5000", "--json"))
    assert list(card) == ["card", "seed", "otpauth"]
    assert card["otpauth"].startswith("otpauth://totp/")
    host = answer_of(cli("host", "add", "bank", "--dialect", "ceibo", "--json"))
    assert list(host) == ["host", "mac_key", "data_key", "zone_key"]
    assert list(answer_of(cli("host", "rotate", "bank", "--json"))) == list(host)
    cashier = answer_of(
        cli("cashier", "add", "45", "--network", "0012", "--branch", "17", "--json")
    )
    assert list(cashier) == ["cashier", "seed", "otpauth"]
    rotated = answer_of(cli("terminal", "rotate", "00000017", "--json"))
    assert rotated["key"] != terminal["key"]
    assert rotated["version"] == 2


def test_terminal_options(cli: Cli, config: Config) -> None:
    cli("network", "add", "0012")
    made = answer_of(
        cli(
            "terminal", "add", "00000018", "--network", "0012", "--branch", "1", "--mac",
            "aes-cmac", "--no-ticket", "--json",
        )
    )  # fmt: skip
    assert made["mac"] == "aes-cmac"
    (listed,) = answer_of(cli("terminal", "list", "--json"))
    assert listed["ticket"] is False
    assert "keys" not in listed


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("network", ("0012",)),
        ("branch", ("1", "--network", "0012")),
        ("terminal", ("00000017",)),
        ("cashier", ("45", "--network", "0012")),
    ],
)
def test_enable_and_disable(
    cli: Cli, config: Config, kind: str, arguments: tuple[str, ...]
) -> None:
    cli("network", "add", "0012")
    cli("terminal", "add", "00000017", "--network", "0012", "--branch", "1")
    cli("cashier", "add", "45", "--network", "0012", "--branch", "1")
    assert answer_of(cli(kind, "disable", *arguments, "--json"))["disabled"] is True
    (listed,) = answer_of(cli(kind, "list", "--json"))
    assert listed["disabled"] is True
    assert answer_of(cli(kind, "enable", *arguments, "--json"))["disabled"] is False


def test_the_life_of_a_card(cli: Cli, config: Config) -> None:
    card = answer_of(cli("card", "add", "--document", "4567890", "--json"))["card"]
    assert answer_of(cli("card", "fund", card, "7000", "--json"))["available"] == 7000
    assert answer_of(cli("card", "disable", card, "--json"))["state"] == "blocked"
    assert answer_of(cli("card", "enable", card, "--json"))["state"] == "active"
    assert answer_of(cli("card", "unlock", card, "--json")) == {"card": card}
    assert answer_of(cli("card", "enrol", card, "--json"))["card"] == card
    assert answer_of(cli("card", "close", card, "--json"))["state"] == "closed"
    shown = cli("card", "show", card)
    assert "7.000" in shown.stdout
    assert cli("card", "show", "card-999999").exit_code == 1
    assert cli("card", "fund", card, "0").exit_code == 2


def test_vouchers(cli: Cli, config: Config) -> None:
    card = answer_of(cli("card", "add", "--document", "4567890", "--token-mode", "vale", "--json"))[
        "card"
    ]
    voucher = answer_of(cli("card", "voucher", card, "--amount", "5000", "--json"))
    assert len(voucher["code"]) == 8
    other = answer_of(cli("card", "add", "--document", "4567890", "--json"))["card"]
    assert cli("card", "voucher", other, "--amount", "5000").exit_code == 1


def test_keys_are_not_in_lists_and_not_in_errors(cli: Cli, config: Config) -> None:
    key = answer_of(cli("network", "add", "0012", "--json"))["key"]
    listed = cli("network", "list").output + cli("network", "list", "--json").output
    assert key not in listed
    assert "sealed" not in listed


def test_a_directory_in_use_is_told(
    cli: Cli, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "LOCK_WAIT_S", 0.1)

    async def hold() -> Result:
        async with provision.opened(config):
            return await trio.to_thread.run_sync(cli, "network", "list")

    result = trio.run(hold)
    assert result.exit_code == 1
    assert "another process" in result.stderr


def test_commands_wait_for_each_other(cli: Cli, config: Config) -> None:
    async def hold() -> Result:
        async with trio.open_nursery() as nursery, provision.opened(config):
            found: list[Result] = []

            async def ask() -> None:
                found.append(await trio.to_thread.run_sync(cli, "network", "list", "--json"))

            nursery.start_soon(ask)
            await trio.sleep(0.2)
        return found[0]

    assert answer_of(trio.run(hold)) == []


def test_no_data_directory(cli: Cli, config: Config) -> None:
    shutil.rmtree(config.data)
    for command in (("network", "list"), ("verify",), ("operations",), ("snapshot",)):
        result = cli(*command)
        assert result.exit_code == 1
        assert "troncal init" in result.stderr


# ---- card import and codes


def write_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_card_import(cli: Cli, config: Config, tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "cards.csv",
        "document_type,document,name,phone,balance,token_mode,tier,default",
        "CI,1234567,Ana Ruiz,0981123456,5000,totp,basic,yes",
        "RUC,80000000-0,Empresa,,0,ocra,,",
        "CI,12,too short,,0,,,",
    )
    result = cli("card", "import", file, "--output", "seeds.csv", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["imported"] + len(answer["failed"]) == 3
    assert {"line": 4, "error": "document is not valid"} in answer["failed"]
    with open("seeds.csv", newline="") as seeds:
        rows = list(csv.DictReader(seeds))
    assert len(rows) == answer["imported"]
    assert stat.S_IMODE(os.stat("seeds.csv").st_mode) == 0o600
    assert answer_of(cli("card", "show", rows[0]["card"], "--json"))["balance"] == 5000
    again = cli("card", "import", file, "--output", "seeds.csv")
    assert again.exit_code == 1
    assert "seeds.csv exists" in again.stderr


def test_card_import_is_bulk(cli: Cli, config: Config, tmp_path: Path) -> None:
    rows = [f"{1_000_000 + n},1000" for n in range(1200)]
    file = write_csv(tmp_path / "cards.csv", "document,balance", *rows)
    assert answer_of(cli("card", "import", file, "--json")) == {"imported": 1200, "failed": []}
    report = verify.verify(config, config.data)
    assert report.problems == []
    assert report.accounts == 1201  # and the one that funds them


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["name", "Ana"], "no column 'document'"),
        (["document,colour", "1234567,red"], "unknown column 'colour'"),
        (["document,balance", "1234567,-1"], ":2: balance"),
        (["document,balance", "1234567,1.5"], ":2: balance"),
        (["document,default", "1234567,perhaps"], ":2: default"),
        (["document,balance", "1234567"], ":2: not as many"),
        (["document", "1234567,5"], ":2: not as many"),
        (['document,name\n1234567,"x'], "not a CSV file"),
    ],
)
def test_a_bad_card_file_changes_nothing(
    cli: Cli, config: Config, tmp_path: Path, rows: list[str], told: str
) -> None:
    result = cli("card", "import", write_csv(tmp_path / "cards.csv", *rows))
    assert result.exit_code == 1
    assert told in result.stderr
    assert answer_of(cli("card", "list", "--json")) == []


def test_card_code_of_now(cli: Cli) -> None:
    seed = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    code = cli("card", "code", "--seed", seed, "--at", "1700000000").stdout.strip()
    assert code == totp(from_base32(seed), 1_700_000_000)
    later = answer_of(cli("card", "code", "--seed", seed, "--at", "2023-11-14T22:13:20Z", "--json"))
    assert later == {"code": code, "seconds_left": 40}
    assert len(cli("card", "code", "--seed", seed).stdout.strip()) == 6


def test_card_code_of_the_vectors() -> None:
    keys = {name: bytes.fromhex(key["hex"]) for name, key in VECTORS["keys"].items()}
    tokens = cards.Tokens()
    checked = 0
    for case in VECTORS["project"]["ocra"]:
        kind, amount = case["question"][0], int(case["question"][1:])
        seed = cards_seed(keys[case["key"]])
        code = cards.code_of(
            seed, tokens, mode="ocra", kind="cash_out" if kind == "1" else "deposit",
            amount=amount, now_s=case["timestep"] * 60,
        )  # fmt: skip
        assert code == case["code"]
        checked += 1
    assert checked


def cards_seed(key: bytes) -> str:
    from switch.ops.keys import base32

    return base32(key)


def test_a_bad_seed_is_told_without_it(cli: Cli) -> None:
    result = cli("card", "code", "--seed", "0189!")
    assert result.exit_code == 1
    assert "0189!" not in result.output


# ---- send


def test_credentials_come_from_what_terminal_add_printed(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"peer": "00000017", "key": "ab" * 32, "mac": "aes-cmac"}))
    found = send.read_credentials(file, None, None, "hmac-sha256", 1)
    assert (found.peer, found.mac, found.version) == ("00000017", "aes-cmac", 1)
    assert "ab" not in repr(found)
    file.write_text("{}")
    with pytest.raises(CliError, match="not a terminal's key"):
        send.read_credentials(file, None, None, "hmac-sha256", 1)
    with pytest.raises(click.UsageError):
        send.read_credentials(file, "00000017", None, "hmac-sha256", 1)


def test_a_bad_key_is_told_without_it(cli: Cli) -> None:
    result = cli(
        "send", "delivered", "--original", 5, "--peer", "00000017", "--key", "c0ffee",
        "--address", "127.0.0.1:1",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "c0ffee" not in result.output


KEY = ("--peer", "00000017", "--key", "00" * 32, "--address", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cash_out", "--cashier", 1, "--token", "123456", "--amount", 5), "--document"),
        (
            ("cash_out", "--cashier", 1, "--token", "12", "--amount", 5, "--document", "1234567"),
            "token is not valid",
        ),
        (("cash_out", "--cashier", 1, "--token", "123456", "--amount", 0), "amount"),
        (
            (
                "deposit",
                "--cashier",
                1,
                "--amount",
                5,
                "--document",
                "1234567",
                "--declaration",
                "x",
            ),
            "NAME=TEXT",
        ),
        (("holder", "--document", "1234567", "--phone", "0981123456"), "--document"),
    ],
)
def test_requests_are_checked_before_they_are_sent(
    cli: Cli, arguments: tuple[object, ...], told: str
) -> None:
    result = cli("send", *arguments, *KEY)
    assert result.exit_code == 2
    assert told in result.stderr


def test_no_connection_is_told(cli: Cli) -> None:
    result = cli("send", "delivered", "--original", 5, *KEY)
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr


def test_the_instruction_is_what_one_sees(capsys: pytest.CaptureFixture[str]) -> None:
    send.print_answer(
        Answer(
            "00", "APROBADA", "Entregue el efectivo.", trace=1234, instruction="NO_ENTREGUE",
            amount=150000, ticket=["T I C K E T"],
        )
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "NO ENTREGUE" in shown
    assert "150.000" in shown
    assert "1234" in shown
    assert "T I C K E T" in shown


# ---- verify, backup, replay, export


class Till:
    """A node in this process and one terminal of it; what it does is committed at the end."""

    def __init__(self, node: Node) -> None:
        self.node = node
        from switch.provisioning import Provisioning

        self.desk = Provisioning(node)
        step = node.begin()
        self.desk.call(step, "network_add", {"number": "0012", "net_debit_cap": 10**9})
        self.desk.call(
            step, "terminal_add", {"number": "00000017", "network": "0012", "branch": "17"}
        )
        made = self.desk.call(step, "card_add", {"document": "4567890", "balance": 10**6})
        node.end(step)
        self.seed = from_base32(made["seed"])
        self.card: str = made["card"]
        self.trace = 0

    def ask(self, message: Any) -> Answer:
        terminal = self.node.registry.terminal("00000017")
        assert terminal is not None
        step = self.node.begin()
        answer = self.node.red.ask(step, terminal, message)
        self.node.end(step)
        self.node.store.commit()
        assert isinstance(answer, Answer)
        return answer

    def cash_out(self, amount: int, code: str = "") -> Answer:
        self.trace += 1
        token = code or totp(self.seed, self.node.clock.wall_ns() // 1_000_000_000)
        return self.ask(
            CashOut(
                trace=self.trace, cashier="45", document="4567890", token=token, amount=amount,
                currency="PYG",
            )
        )  # fmt: skip

    def deposit(self, amount: int) -> Answer:
        self.trace += 1
        return self.ask(
            Deposit(
                trace=self.trace, cashier="45", document="4567890", amount=amount, currency="PYG"
            )
        )


def with_till(config: Config, work: Callable[[Till], None]) -> None:
    async def run() -> None:
        async with provision.opened(config) as node:
            work(Till(node))

    trio.run(run)


def trade(till: Till) -> None:
    """An approval of each kind, one delivered, and a decline."""
    assert till.cash_out(150_000).code == "00"
    assert till.ask(Delivered(original=till.trace)).code == "00"
    assert till.cash_out(10_000, "000000").code == "55"
    assert till.deposit(80_000).code == "00"


def test_verify_of_a_sound_directory(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    report = answer_of(cli("verify", "--json"))
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["operations"] == {"ENTREGADA": 1, "RECHAZO_REGISTRADO": 1, "REGISTRADA": 1}
    assert report["registered_amount"] == {"cash_out": 150_000, "deposit": 80_000}
    assert report["money_check"] == {"posted": 0, "pending": 0}
    assert report["records"] == report["last_seq"]
    assert report["records_per_s"] > 0
    text = cli("verify")
    assert text.exit_code == 0
    assert "sound" in text.stdout


def test_verify_changes_nothing(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    before = {p: p.read_bytes() for p in config.data.rglob("*") if p.is_file()}
    cli("verify")
    assert {p: p.read_bytes() for p in config.data.rglob("*") if p.is_file()} == before


def test_verify_finds_a_flipped_bit(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    segment = config.data / "journal" / "journal-000000000001.seg"
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    result = cli("verify", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert "segment 1, offset 0" in report["problems"][0]
    served = cli("serve", "--listen", "ops=127.0.0.1:0")
    assert served.exit_code == 1
    assert "segment 1, offset 0" in served.stderr
    assert "Traceback" not in served.stderr


def test_verify_finds_a_hole_that_looks_like_the_end(config: Config) -> None:
    with_till(config, trade)
    segment = config.data / "journal" / "journal-000000000001.seg"
    data = bytearray(segment.read_bytes())
    data[4096:8192] = bytes(4096)
    segment.write_bytes(data)
    report = verify.verify(config, config.data)
    assert not report.ok
    assert "journal" in report.problems[0]


def test_verify_compares_snapshots(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    made = answer_of(cli("snapshot", "--json"))
    assert Path(made["snapshot"]).stat().st_size == made["bytes"]
    cli("network", "add", "0034")
    report = verify.verify(config, config.data)
    assert (report.ok, report.snapshots) == (True, 1)
    data = bytearray(Path(made["snapshot"]).read_bytes())
    data[100] ^= 1
    Path(made["snapshot"]).write_bytes(data)
    report = verify.verify(config, config.data)
    assert not report.ok
    assert "hash does not match" in report.problems[0]


def test_verify_of_a_pruned_journal_begins_at_a_snapshot(cli: Cli, config: Config) -> None:
    def much(till: Till) -> None:
        for _ in range(500):
            till.deposit(1000)
            till.node.store.commit()

    with_till(config, much)
    assert len(list((config.data / "journal").iterdir())) > 2
    cli("snapshot")
    (config.data / "journal" / "journal-000000000001.seg").unlink()
    report = verify.verify(config, config.data)
    assert report.problems == []
    assert report.first_seq > 1
    assert report.operations == {"REGISTRADA": 500}
    for path in config.data.glob("snapshot-*"):
        path.unlink()
    assert "no snapshot leads there" in verify.verify(config, config.data).problems[0]


def change(till: Till, space: int, key: bytes, decode: Any, **values: Any) -> None:
    """Change a record behind the flows' back, as a mistake of theirs would."""
    found = till.node.store.records.get(space, key)
    assert found is not None
    record = decode(found)
    for name, value in values.items():
        setattr(record, name, value)
    till.node.store.records.put(space, key, ops.encode(record))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("ERROR", "red ERROR, sicoop CAPTURADA"),
        ("RECHAZO_REGISTRADO", "red RECHAZO_REGISTRADO, ceibo CAPTURADA"),
        ("ANULADA", "red ANULADA, sicoop CAPTURADA"),
    ],
)
def test_verify_holds_the_register_against_the_others(
    config: Config, state: str, told: str
) -> None:
    def work(till: Till) -> None:
        answer = till.cash_out(150_000)
        assert answer.code == "00"
        ((key, _),) = till.node.store.records.items(ops.RED_OPERATIONS)
        change(till, ops.RED_OPERATIONS, key, ops.decode_red, state=state)

    with_till(config, work)
    report = verify.verify(config, config.data)
    assert any(told in problem for problem in report.problems), report.problems


def test_verify_misses_what_a_registered_operation_needs(config: Config) -> None:
    def work(till: Till) -> None:
        till.cash_out(150_000)
        records = till.node.store.records
        ((key, _),) = records.items(ops.SICOOP_OPERATIONS)
        records.delete(ops.SICOOP_OPERATIONS, key)
        ((key, _),) = records.items(ops.CEIBO_HOLDS)
        change(till, ops.CEIBO_HOLDS, key, ops.decode_ceibo, state="LIBERADA")

    with_till(config, work)
    problems = "\n".join(verify.verify(config, config.data).problems)
    assert "red REGISTRADA, sicoop has none" in problems
    assert "ceibo LIBERADA, ledger captured" in problems


def test_verify_finds_holds_of_nobody(config: Config) -> None:
    def work(till: Till) -> None:
        from core_ext import Batch
        from switch.flows.registry import account_id

        batch = Batch()
        clearing = till.node.limits.account("ceibo:PYG:clearing:sicoop", "PYG", 1, 2, 1)
        batch.hold(
            b"0012999999999999", account_id(f"card:{till.card}"), clearing, 5000, day=20_000,
            policy=1,
        )  # fmt: skip
        assert till.node.store.ledger.apply(batch, till.node.clock.wall_ns()) == [0]

    with_till(config, work)
    report = verify.verify(config, config.data)
    assert report.problems == ["open hold 0012999999999999 of 5000 is nobody's"]
    assert report.holds_open == 1


def test_problems_are_bounded() -> None:
    report = verify.Report()
    for number in range(1000):
        report.problem(str(number))
    assert (len(report.problems), report.problem_count) == (verify.PROBLEMS_MAX, 1000)


def test_a_first_start_that_was_killed_is_no_obstacle(cli: Cli, config: Config) -> None:
    shutil.rmtree(config.data)
    (config.data / "journal").mkdir(parents=True)
    (config.data / "journal" / "journal-000000000001.seg").write_bytes(bytes(1 << 20))
    assert answer_of(cli("network", "list", "--json")) == []


def test_backup_and_restore(cli: Cli, config: Config, tmp_path: Path) -> None:
    with_till(config, trade)
    cli("snapshot")
    cli("network", "add", "0034")
    answer_of(cli("webpay", "key", "new", "webpay-101", "--json"))
    made = answer_of(cli("backup", "copy", "--json"))
    state = answer_of(cli("verify", "--json"))
    assert made["last_seq"] == state["last_seq"]
    other = tmp_path / "other"
    other.mkdir()
    for name in ("troncal.toml", "master.key"):
        shutil.copy(config.path.parent / name, other / name)
    restored = answer_of(cli("restore", "copy", "-c", other / "troncal.toml", "--json"))
    assert (restored["last_seq"], restored["chain"]) == (made["last_seq"], made["chain"])
    for kind in ("key", "pub"):  # the private part sealed, as it lies here
        name = f"keys/webpay-101.{kind}"
        assert (other / "data" / name).read_bytes() == (config.data / name).read_bytes()
    again = answer_of(cli("verify", "-c", other / "troncal.toml", "--json"))
    assert again["ledger_digest"] == state["ledger_digest"]
    assert again["records_digest"] == state["records_digest"]
    # It is a data directory like any other: work goes on in it.
    assert cli("network", "add", "0056", "-c", other / "troncal.toml").exit_code == 0
    assert verify.verify(load(other / "troncal.toml"), other / "data").ok
    refused = cli("restore", "copy", "-c", other / "troncal.toml")
    assert refused.exit_code == 1
    assert "not empty" in refused.stderr
    assert cli("backup", "copy").exit_code == 1


def test_a_backup_holds_nothing_secret(cli: Cli, config: Config, tmp_path: Path) -> None:
    answer_of(cli("backup", "copy", "--json"))
    names = {path.name for path in (tmp_path / "copy").rglob("*")}
    assert names == {"journal", "journal-000000000001.seg", "manifest.json"}
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    assert modes == {0o600}


@pytest.mark.parametrize("harm", ["change", "shorten", "remove", "manifest", "form", "path"])
def test_a_harmed_backup_is_refused(cli: Cli, config: Config, tmp_path: Path, harm: str) -> None:
    answer_of(cli("backup", "copy", "--json"))
    segment = tmp_path / "copy" / "journal" / "journal-000000000001.seg"
    manifest = tmp_path / "copy" / "manifest.json"
    match harm:
        case "change":
            segment.write_bytes(segment.read_bytes()[:-1] + b"x")
        case "shorten":
            segment.write_bytes(segment.read_bytes()[:-1])
        case "remove":
            segment.unlink()
        case "manifest":
            manifest.unlink()
        case "form":
            manifest.write_text(manifest.read_text().replace('"form": 1', '"form": 2'))
        case "path":
            manifest.write_text(manifest.read_text().replace("journal/journal", "../journal"))
    shutil.rmtree(config.data)
    result = cli("restore", "copy")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert not config.data.exists()


def test_a_backup_of_damage_is_refused(cli: Cli, config: Config, tmp_path: Path) -> None:
    with_till(config, trade)
    segment = config.data / "journal" / "journal-000000000001.seg"
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    assert cli("backup", "copy").exit_code == 1
    assert not (tmp_path / "copy").exists()


def test_manifest_counts_its_bytes() -> None:
    files = [backups.File("a", 3, ""), backups.File("b", 4, "")]
    assert backups.Manifest(1, 0, 1, 2, "", files).bytes == 7


def test_replay(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    whole = answer_of(cli("replay", "--json"))
    assert whole["records"] == whole["last_seq"]
    report = answer_of(cli("verify", "--json"))
    assert whole["ledger_digest"] == report["ledger_digest"]
    part = answer_of(cli("replay", "--upto", whole["last_seq"] - 1, "--json"))
    assert 0 < part["last_seq"] < whole["last_seq"]
    assert part["records_digest"] != whole["records_digest"]
    assert answer_of(cli("replay", "--upto", 0, "--json"))["records"] == 0


def test_export(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    rows = [json.loads(line) for line in cli("export", "--format", "jsonl").stdout.splitlines()]
    assert {row["state"] for row in rows} == {"ENTREGADA", "RECHAZO_REGISTRADO", "REGISTRADA"}
    assert all("4567890" not in json.dumps(row) for row in rows)
    accounts = list(csv.DictReader(cli("export", "--what", "accounts").stdout.splitlines()))
    assert sum(int(a["debits_posted"]) - int(a["credits_posted"]) for a in accounts) == 0
    assert cli("export", "--what", "holds", "--output", "holds.csv").stdout == ""
    told = answer_of(cli("export", "--what", "accounts", "--output", "accounts.jsonl", "--json"))
    assert told == {"file": "accounts.jsonl", "rows": len(accounts)}
    assert len(Path("accounts.jsonl").read_text().splitlines()) == len(accounts)
    assert Path("holds.csv").read_text() == ""


# ---- the read model


def test_operations_and_one_operation(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    rows = answer_of(cli("operations", "--json"))
    assert [row["kind"] for row in rows] == ["deposit", "cash_out", "cash_out"]
    delivered = answer_of(cli("operations", "--state", "entregada", "--json"))
    assert [row["amount"] for row in delivered] == [150_000]
    assert answer_of(cli("operations", "--terminal", "00000018", "--json")) == []
    assert len(answer_of(cli("operations", "--since", "1h", "--limit", "2", "--json"))) == 2
    assert answer_of(cli("operations", "--since", "2999-01-01", "--json")) == []
    assert "4567890" not in cli("operations").output
    found = answer_of(cli("operation", delivered[0]["reference"], "--json"))
    assert [e["state"] for e in found["timeline"] if e["role"] == "red"] == [
        "INICIADA", "REGISTRADA", "ENTREGADA",
    ]  # fmt: skip
    by_number = answer_of(cli("operation", delivered[0]["operation"], "--json"))
    assert by_number["reference"] == found["reference"]
    text = cli("operation", found["reference"])
    assert "Time line" in text.stdout
    assert cli("operation", "9" * 26).exit_code == 1


def test_project_catches_up(cli: Cli, config: Config) -> None:
    with_till(config, trade)
    assert answer_of(cli("project", "--json"))["records"] > 0
    assert answer_of(cli("project", "--json"))["records"] == 0
    assert questions._progress(config.data / "read.sqlite") == store_end(config)


def store_end(config: Config) -> int:
    state = store.State(config, config.data)
    state.recover()
    return state.position.seq


# ---- demo


def sound_tally() -> tuple[Tally, dict[str, Any], verify.Report]:
    tally = Tally(requests=3, operations=2, delivered=1)
    tally.approved["cash_out"] = 1
    tally.amounts["cash_out"] = 5000
    report = verify.Report(
        ok=True, operations={"ENTREGADA": 1}, registered_amount={"cash_out": 5000, "deposit": 0}
    )
    return tally, {"money_check": {"posted": 0, "pending": 0}}, report


def test_a_sound_demo_has_no_problems() -> None:
    assert _problems(*sound_tally()) == []


@pytest.mark.parametrize(
    "harm",
    ["approved", "amounts", "delivered", "unknown", "unexpected", "money", "verify", "none"],
)
def test_whatever_is_wrong_in_a_demo_is_told(harm: str) -> None:
    tally, status, report = sound_tally()
    match harm:
        case "approved":
            tally.approved["deposit"] += 1
        case "amounts":
            tally.amounts["cash_out"] += 1
        case "delivered":
            tally.delivered += 1
        case "unknown":
            tally.unknown += 1
        case "unexpected":
            tally.unexpected["CashOut 96"] += 1
        case "money":
            status["money_check"]["posted"] = 1
        case "verify":
            report.problem("broken")
        case "none":
            tally.operations = 0
    assert _problems(tally, status, report)


async def test_a_demo_locks_no_terminal(
    config: Config, autojump_clock: trio.testing.MockClock
) -> None:
    """However long it lasts, a terminal sends fewer wrong codes than would lock it."""
    cards_ = [demo_cashiers.DemoCard(str(n), bytes(20)) for n in range(2000)]
    tally = Tally()

    class Approves:
        async def request(self, message: Any) -> Answer:
            return Answer("00", "APROBADA", "")

    world = demo_cashiers.World(config, [], deque(cards_), deque(cards_), ["1"])
    cashier = demo_cashiers.Cashier(1, Approves(), world, tally)  # type: ignore[arg-type]
    await cashier.work(trio.current_time() + 40, 0.04)
    wrong = sum(count for what, count in tally.unexpected.items() if what.endswith("not 55"))
    assert wrong == demo_cashiers.WRONG_PER_TERMINAL < config.tokens.attempts_terminal


def test_one_run_of_the_program_is_one_call() -> None:
    call = Call()
    assert (call.config_path, call.json) == (None, False)
    assert msgspec.json.encode(verify.Report()).startswith(b"{")


def test_check_config_tells_of_a_master_key_that_others_can_read(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", tmp_path / "node").exit_code == 0
    config = tmp_path / "node" / "troncal.toml"
    assert cli("check-config", "-c", config).exit_code == 0
    (tmp_path / "node" / "master.key").chmod(0o640)
    result = cli("check-config", "-c", config, "--json")
    assert result.exit_code == 1
    [mistake] = json.loads(result.stdout)["mistakes"]
    assert mistake["where"] == "node.master_key_file"
    assert "chmod 600" in mistake["hint"]
