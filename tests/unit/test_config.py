"""The configuration: defaults, every mistake with its line, cross checks, environment."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch import config
from switch.config import Address, Config, ConfigError, Mistake
from switch.toml_reader import item_struct, line_index, plain

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
            fields = msgspec.structs.fields(kind)
            named = [
                f.encode_name
                for f in fields
                if f.default is not None
                and item_struct(config._inner(f)) is None
                and get_origin(config._inner(f)) is not dict  # free names have no default
            ]
            assert sorted(data[name]) == sorted(named)

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


LINKS = """\
[node]
plaintext = false
[links.ceibo]                       # 3
connect = [
    "127.0.0.1:1",
    { address = "127.0.0.1:2", priority = 1, weight = 3, connections = 4 },
]
connections = 2
match = ["class", "7", "37"]
tls = { server_name = "x" }
[links.bank1]                       # 11
[platform]
connect = ["127.0.0.1:7002"]
"""


class TestLinks:
    def test_addresses_in_both_forms(self, write: Writer) -> None:
        loaded = config.load(write(LINKS), environ={})
        link = loaded.link("ceibo")
        assert config.link_addresses(link, "10.0.0.1:9") == (
            config.LinkAddress("127.0.0.1:1", connections=2),
            config.LinkAddress("127.0.0.1:2", priority=1, weight=3, connections=4),
        )
        assert link.tls == config.LinkTls(server_name="x")
        assert loaded.platform.connect == ("127.0.0.1:7002",)

    def test_the_address_of_the_host_where_the_section_has_none(self, write: Writer) -> None:
        loaded = config.load(write(LINKS), environ={})
        assert loaded.link("bank1") == loaded.link("unheard-of") == config.LinkSettings()
        (one,) = config.link_addresses(loaded.link("bank1"), "10.0.0.1:9")
        assert one == config.LinkAddress("10.0.0.1:9", connections=1)
        assert config.link_addresses(loaded.link("bank1"), "") == ()

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ('[links.a]\nconnect = "127.0.0.1:1"', "links.a.connect"),
            ('[links.a]\nconnect = ["127.0.0.1"]', "links.a.connect[0].address"),
            ('[links.a]\nconnect = ["127.0.0.1:0"]', "links.a.connect[0]"),
            ('[links.a]\nconnect = ["127.0.0.1:65536"]', "links.a.connect[0]"),
            ('[links.a]\nconnect = ["127.0.0.1:1", "127.0.0.1:1"]', "links.a.connect[1]"),
            ('[links.a]\nconnect = ["127.0.0.1:1", "10.0.0.1:1"]', "links.a.connect[1]"),
            ('[links.a]\nconnect = [{ address = "b.example:1" }]', "links.a.connect[0]"),
            ("[links.a]\nconnect = [{ priority = 1 }]", "links.a.connect[0].address"),
            (f"[links.a]\nconnect = {['127.0.0.1:1'] * 17}", "links.a.connect"),
            ("[links.a]\nmax_in_flight = 0", "links.a.max_in_flight"),
            ("[links.a]\nbackoff_min_s = nan", "links.a.backoff_min_s"),
            ("[links.a]\nbackoff_max_s = 0.1", "links.a.backoff_min_s"),
            ('[links.a]\nmatch = ["class", "41"]', "links.a.match"),
            ('[links.a]\nmatch = ["11", "11"]', "links.a.match"),
            ('[links.a]\nmatch = ["12"]', "links.a.match"),
            ('[links.a]\ntls = { ca = "no.pem" }', "links.a.tls.ca"),
            ('[links.a]\ntls = { cert = "troncal.toml" }', "links.a.tls.cert"),
            ('[links.a]\ntls = { sni = "x" }', "links.a.tls.sni"),
            ('[links.a]\ninstitution = "x"', "links.a.institution"),
            ('[links."a b"]', "links.a b"),
            ('[platform]\nconnect = ["10.0.0.1:7002"]', "platform.connect"),
            ('[platform.tls]\ncert = "troncal.toml"', "platform.tls.cert"),
            ('[issuer]\nlink = ""', "issuer.link"),
        ],
    )
    def test_one_mistake(self, write: Writer, text: str, where: str) -> None:
        assert [m.where for m in mistakes(write(text))] == [where]

    def test_outside_loopback_with_leave_or_tls(self, write: Writer) -> None:
        link = '[links.a]\nconnect = ["10.0.0.1:1"]\n'
        assert config.load(write(link + "tls = {}"), environ={})
        assert config.load(write(link + "[node]\nplaintext = true"), environ={})

    def test_what_only_the_registry_knows(self, write: Writer) -> None:
        text = LINKS + (
            '[[routes]]\nto = "bank1"\noperations = ["purchase"]\n'
            '[[routes]]\nto = ["ceibo", "bank2"]\n'
        )
        loaded = config.load(write(text), environ={"TRONCAL_NODE_ROLES": "sicoop"})
        hosts = {"ceibo": "127.0.0.1:1", "bank1": "", "bank2": ""}
        config.check_hosts(loaded, hosts)

        with pytest.raises(ConfigError) as caught:
            config.check_hosts(loaded, {"other": "10.0.0.1:1", "bank1": "10.0.0.2:2"})
        assert [(m.line, m.where) for m in caught.value.mistakes] == [
            (0, "host other"),  # the address it was added with is outside loopback
            (0, "issuer.link"),
            (3, "links.ceibo"),
            (11, "links.bank1"),
            (18, "routes[1].to"),
            (18, "routes[1].to"),
        ]


class TestRoutes:
    def test_one_target_or_several(self, write: Writer) -> None:
        text = '[[routes]]\nto = "a"\nbins = ["4"]\n[[routes]]\nto = ["a", "b"]\n'
        assert [r.to for r in config.load(write(text), environ={}).routes] == [("a",), ("a", "b")]

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ('to = ""', "to"),
            ("to = []", "to"),
            ('to = ["a", "a"]', "to"),
            ('operations = ["buy"]', "operations"),
            ("operations = []", "operations"),
            ('networks = ["12"]', "networks"),
            ('bins = ["45-5"]', "bins"),
            ('bins = ["46-45"]', "bins"),
            ('bins = ["123456789"]', "bins"),
            ("amount_min = 5\namount_max = 4", "amount_min"),
            ('from = "24:00"', "from"),
            ('from = "08:00"\nuntil = "08:00"', "until"),
            ('from = "00:00"\nuntil = "00:00"', "until"),
            ('days = ["lun"]', "days"),
            ('currencies = ["600"]', "currencies"),
            ("form = 1", "form"),
        ],
    )
    def test_one_mistake(self, write: Writer, text: str, where: str) -> None:
        target = "" if text.startswith("to") else 'to = "a"\n'
        assert [m.where for m in mistakes(write(f"[[routes]]\n{target}{text}"))] == [
            f"routes[0].{where}"
        ]

    def test_a_rule_that_never_matches_is_told_with_both_lines(self, write: Writer) -> None:
        text = """\
[[routes]]                          # 1
to = "a"
amount_max = 100
[[routes]]                          # 4
to = "b"
amount_min = 50
[[routes]]                          # 7
to = "c"
networks = ["0012"]
[[routes]]                          # 10
to = "b"
amount_max = 100
"""
        told = mistakes(write(text))
        assert [(m.line, m.where) for m in told] == [(7, "routes[2]"), (10, "routes[3]")]
        assert "lines 1, 4 take all of it together" in told[0].what
        assert told[1].what.startswith("contradicts the rule at line 1")


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

    def test_the_way_to_the_platform(self, write: Writer) -> None:
        environ = {
            "TRONCAL_PLATFORM_CONNECT": "sicoop.example:7002, 127.0.0.1:1",
            "TRONCAL_PLATFORM_TLS_CA": "troncal.toml",
            "TRONCAL_ISSUER_LINK": "processor",
        }
        loaded = config.load(write(""), environ=environ)
        assert loaded.platform.connect == ("sicoop.example:7002", "127.0.0.1:1")
        assert loaded.platform.tls == config.LinkTls(ca="troncal.toml")
        assert loaded.issuer.link == "processor"

    def test_its_mistakes_carry_its_name(self, write: Writer) -> None:
        wrong = {
            "TRONCAL_SESSION_HEARTBEATS": "7",
            "TRONCAL_SESSION_DRAIN_S": "soon",
            "TRONCAL_BUDGETS_RED_S": "99",
            "TRONCAL_LIMITS_CARD": "x",
            "TRONCAL_LINKS_CEIBO_ANSWER_S": "1",
            "TRONCAL_PLATFORM_TLS": "x",
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
  { b = { c = [2, 3] } },
]
m = [[1, 2], [3]]   # 11
[x.'y.z'.w]         # 12
k = "\\"" # [
m = 3
[[t]]               # 15
k = "a=b"
"q\\"=" = 1           # 17
[[t]]               # 18
[t.u]
k = 1
[[t.v]]             # 21
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
            ("x", "l", "[1]"): 8,
            ("x", "l", "[2]"): 8,
            ("x", "l", "[3]"): 9,
            ("x", "m"): 11,
            ("x", "m", "[0]"): 11,
            ("x", "m", "[1]"): 11,
            ("x", "y.z"): 12,
            ("x", "y.z", "w"): 12,
            ("x", "y.z", "w", "k"): 13,
            ("x", "y.z", "w", "m"): 14,
            ("t",): 15,
            ("t", "[0]"): 15,
            ("t", "[0]", "k"): 16,
            ("t", "[0]", 'q"='): 17,
            ("t", "[1]"): 18,
            ("t", "[1]", "u"): 19,
            ("t", "[1]", "u", "k"): 20,
            ("t", "[1]", "v"): 21,
            ("t", "[1]", "v", "[0]"): 21,
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
