"""The configuration: defaults, every mistake with its line, cross checks, environment."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch import config
from switch.config import Address, Config, ConfigError, Mistake
from switch.toml_reader import line_index, plain

Writer = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def write(text: str) -> Path:
        path = tmp_path / "troncal.toml"
        path.write_text(text)
        return path

    return write


def mistakes(path: Path, **environ: str) -> list[Mistake]:
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ=environ)
    assert len(caught.value.lines()) == len(caught.value.mistakes)
    return caught.value.mistakes


def found(path: Path, **environ: str) -> list[tuple[int, str]]:
    return [(mistake.line, mistake.where) for mistake in mistakes(path, **environ)]


class TestDefaults:
    def test_empty_file_is_all_defaults(self, write: Writer) -> None:
        path = write("")
        assert config.load(path, environ={}) == Config(path=path)

    def test_default_file_says_the_defaults_and_the_limits(self, write: Writer) -> None:
        path = write(config.default_toml())
        loaded = config.load(path, environ={})
        bare = Config(
            path=path,
            units=loaded.units,
            limits=loaded.limits,
            declarations=loaded.declarations,
        )
        assert loaded == bare
        assert sorted(loaded.limits) == ["card_month", "operation"]
        assert sorted(loaded.declarations) == ["cash"]
        assert sorted(loaded.units) == ["py_daily_wage", "py_monthly_wage", "usd"]

    def test_default_file_names_every_key(self) -> None:
        data = tomllib.loads(config.default_toml())
        for name, kind in config.SECTIONS.items():
            assert list(data[name]) == [f.encode_name for f in msgspec.structs.fields(kind)]

    def test_default_file_with_other_values(self, write: Writer) -> None:
        path = write(config.default_toml(node_simulator=True, node_name="n1"))
        loaded = config.load(path, environ={})
        assert (loaded.node.simulator, loaded.node.name) == (True, "n1")

    def test_every_key_has_a_meaning_and_every_number_a_range(self) -> None:
        for section, kind in config.SECTIONS.items():
            for field in msgspec.structs.fields(kind):
                said = plain(field.type)
                assert said.description, f"{section}.{field.name}"
                if said.base is int:
                    assert said.low is not None, f"{section}.{field.name}"
                    assert said.high is not None, f"{section}.{field.name}"
                    assert said.low <= field.default <= said.high

    def test_paths_start_at_the_file(self, write: Writer) -> None:
        path = write('[node]\ndata = "d"\nmaster_key_file = "/k"')
        loaded = config.load(path, environ={})
        assert loaded.data == path.parent / "d"
        assert loaded.file(loaded.node.master_key_file) == Path("/k")


class TestMistakes:
    def test_all_of_them_with_their_lines(self, write: Writer) -> None:
        path = write(
            """\
[node]
naem = "x"                      # 2
zone = "America/Asuncio"
roles = [
    "red",
    "redd",
]
[session]
heartbeat_s = 0                 # 9
frame_bytes_max = "8192"
connections_max = true
[budgets]
red_s = 40                      # 13
[sesion]
[units]
usd = [                         # 16
    { from = "2026-13-01", pyg = 7000 },
    # { a comment = 1 },
    { from = 2026-01-01, pyg = -1 },
]
[limits]
a = { scope = "card", window = "operation", max = "10 usdd" }
b = { scope = "till", window = "day", max = 10 }
"""
        )
        assert found(path) == [
            (2, "node.naem"),
            (3, "node.zone"),
            (4, "node.roles"),
            (9, "session.heartbeat_s"),
            (10, "session.frame_bytes_max"),
            (11, "session.connections_max"),
            (13, "budgets.red_s"),
            (14, "sesion"),
            (17, "units.usd[0].from"),
            (19, "units.usd[1].pyg"),
            (22, "limits.a.max"),
            (23, "limits.b.scope"),
            (23, "limits.b.max"),
        ]

    def test_words(self, write: Writer) -> None:
        path = write("[session]\nheartbeat_s = 0\nhartbeat_s = 3\n[node]\nheartbeat_s = 3\n")
        with pytest.raises(ConfigError) as caught:
            config.load(path, environ={})
        assert str(caught.value).splitlines() == [
            f"{path}:2: session.heartbeat_s: is 0; expected a whole number from 1 to 3_600 "
            "(seconds)",
            f'{path}:3: session.hartbeat_s: unknown key (did you mean "heartbeat_s"?)',
            f"{path}:5: node.heartbeat_s: unknown key (it belongs into [session])",
        ]

    @pytest.mark.parametrize(
        ("text", "line"),
        [("[node\n", 1), ("[node]\nname = \n", 2), ("[node]\n[node]\n", 2), ("a = '''\nx", 2)],
    )
    def test_not_toml(self, write: Writer, text: str, line: int) -> None:
        (mistake,) = mistakes(write(text))
        assert mistake.line == line
        assert mistake.what.startswith("not TOML: ")

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "t.toml"
        path.write_bytes(b"[red]\ncompany = '\xff'\n")
        assert mistakes(path) == [Mistake(2, "", "not UTF-8")]

    def test_no_file(self, tmp_path: Path) -> None:
        (mistake,) = mistakes(tmp_path / "none.toml")
        assert "No such file" in mistake.what
        assert "troncal init" in mistake.hint

    @pytest.mark.parametrize("text", ["node = 3", "limits = []", "units.usd = 3", "[[session]]"])
    def test_wrong_shape(self, write: Writer, text: str) -> None:
        assert mistakes(write(text))[0].line == 1

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("[budgets]\nterminal_s = 25", "budgets.red_s"),
            ("[budgets]\nsicoop_s = 25", "budgets.sicoop_s"),
            ("[budgets]\nceibo_s = 15", "budgets.ceibo_s"),
            ("[journal]\nsegment_bytes = 16_777_217", "journal.segment_bytes"),
            ("[journal]\nsegment_bytes = 8_388_608", "journal.group_bytes_max"),
            ("[tokens]\nprobe = 1", "tokens.probe"),
            ("[tokens]\nattempts_card = 6", "tokens.row_max"),
            ('[listen]\nterminals = "0.0.0.0:7001"', "listen.terminals"),
            ('[listen]\nops = "example.org:9090"', "listen.ops"),
            ('[listen]\nhttp = "127.0.0.1:7001"', "listen.http"),
            ('[listen]\nhttp = "127.0.0.1:65536"', "listen.http"),
            ('[listen]\nhttp = "[1.2.3.4]:80"', "listen.http"),
            ('[listen]\nhttp = "127.0.0.1"', "listen.http"),
            ('[listen]\nhttp = """127.0.0.1:80\n"""', "listen.http"),
            ('[tls.terminals]\ncert = "a"\nkey = "troncal.toml"', "tls.terminals.cert"),
            ('[tls.terminals]\ncert = "troncal.toml"', "tls.terminals.key"),
            ('[tls.terminal]\ncert = "a"\nkey = "b"', "tls.terminal"),
            ("[node]\nroles = []", "node.roles"),
            ('[node]\nroles = ["red", "red"]', "node.roles"),
            ('[node]\nzone = "Mars/Base"', "node.zone"),
            ('[business]\ncut_off = "11:00"', "business.cut_off"),
            ('[business]\ncut_off = "20:00"\nannul_until = "21:00"', "business.annul_until"),
            ('[business]\nnight_from = "24:30"', "business.night_from"),
            ("[business]\ntiers = []", "business.tiers"),
            (f"[business]\ntiers = {[f't{i}' for i in range(33)]}", "business.tiers"),
            ('[business]\ntiers = ["a", "a"]', "business.tiers"),
            ("[fees]\ncash_out = -1", "fees.cash_out"),
        ],
    )
    def test_one_mistake(self, write: Writer, text: str, where: str) -> None:
        assert [m.where for m in mistakes(write(text))] == [where]

    def test_a_bad_value_is_not_also_blamed_for_what_follows_from_it(self, write: Writer) -> None:
        assert found(write("[budgets]\nterminal_s = 12\nred_s = 0\n")) == [(3, "budgets.red_s")]


class TestListeners:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
    def test_loopback_needs_nothing(self, write: Writer, host: str) -> None:
        config.load(write(f'[listen]\nterminals = "{host}:1"'), environ={})

    def test_outside_loopback_with_leave_or_tls(self, write: Writer) -> None:
        listen = '[listen]\nterminals = "0.0.0.0:7001"\n'
        config.load(write(listen + "[node]\nplaintext = true"), environ={})
        tls = '[tls.terminals]\ncert = "troncal.toml"\nkey = "troncal.toml"'
        assert config.load(write(listen + tls), environ={}).tls["terminals"].client_ca == ""

    def test_port_zero_may_be_shared(self, write: Writer) -> None:
        text = '[listen]\nhttp = "127.0.0.1:0"\nops = "127.0.0.1:0"'
        assert config.load(write(text), environ={}).address("ops") == Address("127.0.0.1", 0)

    def test_ipv6(self) -> None:
        assert config.parse_address("[::1]:80") == Address("::1", 80)
        assert config.parse_address("[::1]:80").loopback

    @pytest.mark.parametrize("text", ["", ":1", "a:", "a", "::1:80", "a:-1", "a:٣", "[x]:1"])
    def test_no_address(self, text: str) -> None:
        with pytest.raises(ValueError):
            config.parse_address(text)


class TestEnvironment:
    def test_it_goes_before_the_file_and_options_before_it(self, write: Writer) -> None:
        path = write("[session]\nheartbeat_s = 5\ndrain_s = 5\n")
        loaded = config.load(
            path,
            environ={
                "TRONCAL_SESSION_HEARTBEAT_S": "7",
                "TRONCAL_SESSION_DRAIN_S": "7",
                "TRONCAL_JOURNAL_DIRECT": "False",
                "TRONCAL_LEDGER_KEYS_MAX": "3_000_000",
                "TRONCAL_NODE_ROLES": "red, sicoop",
                "TRONCAL_ONLY": "not ours",
                "TRONCAL_MASTER_KEY": "00",
                "HOME": "/",
            },
            options={"session.drain_s": "9", "listen.ops": "127.0.0.1:0"},
        )
        assert (loaded.session.heartbeat_s, loaded.session.drain_s) == (7, 9)
        assert loaded.journal.direct is False
        assert loaded.ledger.keys_max == 3_000_000
        assert loaded.node.roles == ("red", "sicoop")
        assert loaded.address("ops").port == 0

    def test_it_mends_what_the_file_has_wrong(self, write: Writer) -> None:
        environ = {"TRONCAL_SESSION_HEARTBEAT_S": "7"}
        assert config.load(write("[session]\nheartbeat_s = 0"), environ=environ)

    def test_tls(self, write: Writer) -> None:
        environ = {
            "TRONCAL_TLS_OPS_CERT": "troncal.toml",
            "TRONCAL_TLS_OPS_KEY": "troncal.toml",
            "TRONCAL_TLS_OPS_CLIENT_CA": "",
        }
        assert list(config.load(write(""), environ=environ).tls) == ["ops"]

    def test_its_mistakes_carry_its_name(self, write: Writer) -> None:
        wrong = {
            "TRONCAL_SESSION_HEARTBEATS": "7",
            "TRONCAL_SESSION_DRAIN_S": "soon",
            "TRONCAL_BUDGETS_RED_S": "99",
            "TRONCAL_LIMITS_CARD": "x",
            "TRONCAL_TLS_OP_CERT": "x",
        }
        got = mistakes(write(""), **wrong)
        assert sorted(m.where for m in got) == sorted(wrong)
        assert {m.line for m in got} == {0}
        assert got[0].hint

    def test_it_names_the_file(self, write: Writer) -> None:
        path = write("[session]\nheartbeat_s = 5")
        loaded = config.load(environ={"TRONCAL_CONFIG": str(path)})
        assert loaded.session.heartbeat_s == 5
        assert loaded.path == path


class TestDocumentation:
    ROOT = Path(__file__).parents[2]

    def test_the_table_of_all_keys_is_the_code(self) -> None:
        """`make reference` renews it."""
        text = (self.ROOT / "docs/configuration.md").read_text()
        assert text.endswith("## All keys\n\n" + config.reference())

    def test_the_keys_in_the_readme_are_true(self) -> None:
        rows = re.findall(r"^\| `(\w+\.\w+)` \| (`.*`) \| (.*) \|$", self._readme(), re.MULTILINE)
        assert len(rows) > 5
        known = {}
        for line in config.reference().splitlines()[2:]:
            key, default, _, meaning = (cell.strip() for cell in line.strip("| ").split(" | "))
            known[key.strip("`")] = (default, meaning)
        assert {key: (default, meaning) for key, default, meaning in rows}.items() <= known.items()

    def _readme(self) -> str:
        return (self.ROOT / "README.md").read_text()


class TestLines:
    def test_index(self) -> None:
        text = '''\
top = 1
"a b".c = 2         # 2
[x]                 # 3
k = """
[not] = a table
"""
l = [ { a = 1 },    # 7
  "]", '}', # ]
  { b = { c = 2 } },
]
[x.'y.z'.w]         # 11
k = "\\"" # [
m = 3
[[t]]               # 14
k = "a=b"
"q\\"=" = 1           # 16
'''
        tomllib.loads(text)
        assert line_index(text) == {
            ("top",): 1,
            ("a b",): 2,
            ("a b", "c"): 2,
            ("x",): 3,
            ("x", "k"): 4,
            ("x", "l"): 7,
            ("x", "l", "[0]"): 7,
            ("x", "l", "[1]"): 9,
            ("x", "y.z", "w"): 11,
            ("x", "y.z", "w", "k"): 12,
            ("x", "y.z", "w", "m"): 13,
            ("t",): 14,
            ("t", "k"): 15,
            ("t", 'q"='): 16,
        }

    @given(st.text(alphabet="ab=[]{}\"'#\\,\n .1", max_size=60))
    def test_any_valid_text_can_be_indexed(self, text: str) -> None:
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return
        assert {(key,) for key in data} <= set(line_index(text))


DEFAULT_LINES = config.default_toml().splitlines()
VALUES = [
    *("0", "-1", "1", "99999999999999999999", "1.5", "nan", "true", "2026-01-01"),
    *('""', '"x"', '"24:00"', '"127.0.0.1:1"', '"1 PYG"', '["red"]', "[1]", "[]", "{}"),
    *("{ a = 1 }", "[{ from = 1 }]", '[{ from = "2026-01-01", pyg = 1 }]'),
]


@given(
    st.lists(st.tuples(st.integers(0, len(DEFAULT_LINES) - 1), st.sampled_from(VALUES)), max_size=4)
)
def test_any_values_give_a_config_or_mistakes_at_their_lines(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str]]
) -> None:
    """Whatever stands at a key, the operator gets a line and never a traceback."""
    lines = list(DEFAULT_LINES)
    for number, value in changes:
        key, equals, _ = lines[number].partition(" = ")
        if equals and not key.startswith("#"):
            lines[number] = f"{key} = {value}"
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join(lines))
    try:
        config.load(path, environ={})
    except ConfigError as error:
        assert {m.line for m in error.mistakes} <= set(range(1, len(lines) + 1))  # noqa: PT017
