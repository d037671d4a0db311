"""Group P with the roles apart: partial connectivity, and the operation of the servers.

Real processes, real sockets, lines that go silent and issuers that misbehave; time budgets are
short. Acceptance specification, section 6; ends as in its section 5.
"""

import datetime
import ipaddress
import signal
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.messages import Answer
from switch import admin
from switch.journal.verify import verify
from switch.simulators.rules import Rule
from tests.faults.apart import LINK, Issuer, Relay, Three, Till, three, through, till
from tests.faults.process import BALANCE, SMALL, available, position, provision
from tests.faults.wire import Wire

pytestmark = pytest.mark.layouts("apart")
NO = ("91", "NO_ENTREGUE")
T_RED, T_HOLD = 4, 2  # seconds, as the three are configured here
TIMED_OUT = ("RECHAZO_REGISTRADO", "VENCIDA")  # sicoop waited for ceibo, and no longer than T_HOLD
REFUSED = ("RECHAZO_REGISTRADO", "RECHAZADA")  # sicoop did not even ask
# red waits long after T_HOLD, so that sicoop's time-out decides however slow the machine is.
PATIENT = {"budgets_terminal_s": 30, "budgets_red_s": 25}
STEADY = PATIENT | {"budgets_sicoop_s": 20, "session_heartbeat_s": 30}  # nothing ends by time
CALM = LINK.replace("echo_interval_s = 0.5", "echo_interval_s = 5")  # of a link that stays up


@asynccontextmanager
async def lasts(least_s: float) -> AsyncIterator[None]:
    """The block takes no less. How much more is the machine's affair; what ended it is recorded."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took >= least_s, f"took {took:.2f} s, not {least_s}"


class Place:
    """Three roles, a till, and what stands between them."""

    def __init__(self, found: Three, one: Till) -> None:
        self.three, self.till = found, one
        self.to_sicoop: Relay
        self.to_ceibo: Relay
        self.issuer: Issuer

    def end(self, trace: int) -> tuple[str, str]:
        """States at red and at sicoop; '' where there is nothing."""
        red = self.three.at_red().get(trace)
        sicoop = self.three.at_sicoop().get(trace)
        return ("" if red is None else red.state, "" if sicoop is None else sicoop.state)

    def waited_s(self, trace: int) -> float:
        """How long red waited before it decided, by its own record."""
        history = self.three.at_red()[trace].history
        return (history[-1][1] - history[0][1]) / 1e9

    async def more(self, answers: list[Answer], count: int = 5) -> None:
        """Wait until so many more answers have come."""
        wanted = len(answers) + count
        await self.until(lambda: len(answers) >= wanted)

    async def until(self, done: Callable[[], Any], within_s: float = 120.0) -> None:
        with trio.fail_after(within_s):
            while True:
                result = done()
                if isinstance(result, Awaitable):
                    result = await result
                if result:
                    return
                await trio.sleep(0.05)


@asynccontextmanager
async def place(
    directory: Path,
    *,
    relays: bool = False,
    rules: tuple[Rule, ...] | None = None,
    link: str = LINK,
    late_s: float = 4.0,
    **options: Any,
) -> AsyncIterator[Place]:
    """Everything up: with `relays` on the lines, and a simulated issuer where there are `rules`."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        to_sicoop, to_ceibo = Relay(), Relay()
        if relays:
            options |= {"sicoop_at": [to_sicoop.address], "ceibo_at": to_ceibo.address}
        found = await stack.enter_async_context(
            three(directory, start=(), toml={"sicoop": link}, **options)
        )
        to_sicoop.target = found.apart.addresses["sicoop"]
        to_ceibo.target = found.apart.addresses["ceibo"]
        if relays:
            await nursery.start(to_sicoop.run)
            await nursery.start(to_ceibo.run)
        issuer = None
        if rules is None:
            await found.start("ceibo")
        else:
            issuer = Issuer(found.apart, *rules, late_s=late_s)
            await issuer.listen(nursery)
        await found.start("sicoop", "red")
        made = Place(found, await till(found, nursery))
        made.to_sicoop, made.to_ceibo = to_sicoop, to_ceibo
        if issuer is not None:
            made.issuer = issuer
        await through(made.till)
        try:
            yield made
        finally:
            await made.till.terminal.aclose()
            nursery.cancel_scope.cancel()


# ---- P01: TCP up but silent ----------------------------------------------------------------------


async def test_P01_silent_between_sicoop_and_ceibo(tmp_path: Path) -> None:
    # The first echo is missed after 4 s and the third after 8: what is in flight ends before.
    link = LINK.replace("echo_interval_s = 0.5", "echo_interval_s = 2")
    async with place(tmp_path, relays=True, link=link, values=PATIENT) as here:
        here.to_ceibo.mode = "silent"
        # In flight: the time-out path, at T_HOLD.
        async with lasts(T_HOLD - 0.8):
            answer = await here.till.cash_out()
        assert (answer.code, answer.instruction) == NO
        first = here.till.trace
        # Echoes fail meanwhile: the link is DOWN, and new work is refused fast.
        await here.until(partial(_link_down, here.three, "sicoop", "ceibo"))
        answer = await here.till.cash_out()
        assert (answer.code, answer.instruction) == NO
        here.to_ceibo.mode = "pass"
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        await here.three.agreed()
        assert here.end(first) == TIMED_OUT  # E2
        assert here.end(first + 1) == REFUSED


async def test_P01_silent_between_red_and_sicoop(tmp_path: Path) -> None:
    # The budget ends before the session is given up for dead, as in service.
    values = {"session_heartbeat_s": 5}
    async with place(tmp_path, relays=True, values=values) as here:
        here.to_sicoop.mode = "silent"
        async with lasts(T_RED - 0.8):
            answer = await here.till.cash_out()
        assert (answer.code, answer.instruction, answer.state) == (*NO, "ERROR")
        first = here.till.trace
        await here.until(partial(_link_down, here.three, "red", "platform-0012"))
        answer = await here.till.cash_out()
        assert (answer.code, answer.instruction) == NO
        here.to_sicoop.mode = "pass"
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        await here.three.agreed()
        red, sicoop = here.end(first)
        assert red == "ERROR"  # E3
        assert here.waited_s(first) >= T_RED - 0.1
        assert here.waited_s(first + 1) == 0, "refused at once"
        assert sicoop in ("TUMBA", "REVERSADA")


async def _links(found: Three, role: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = await admin.call(found.apart.configs[role].data, "links", {})
    return rows


async def _link(found: Three, role: str, name: str) -> dict[str, Any]:
    (row,) = [row for row in await _links(found, role) if row["link"] == name]
    return row


async def _link_down(found: Three, role: str, name: str) -> bool:
    state = str((await _link(found, role, name))["state"])
    return state not in ("UP", "DEGRADED")


# ---- P02: red–sicoop up, sicoop–ceibo down -------------------------------------------------------


async def test_P02_no_approval_without_ceibo(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        await here.three.kill("ceibo")
        await here.until(partial(_link_down, here.three, "sicoop", "ceibo"))
        for kind in (here.till.cash_out, here.till.deposit) * 3:
            answer = await kind()
            assert (answer.code, answer.state) == ("91", "RECHAZO_REGISTRADO")
            assert answer.instruction in ("NO_ENTREGUE", "NO_RECIBA")
        refused = list(here.till.told)
        await here.three.start("ceibo")
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        agreed = await here.three.agreed()
        assert {here.end(trace) for trace in refused} == {REFUSED}  # E2, at once
        assert agreed.amounts["ceibo"] == {"cash_out": 50_000, "deposit": 0}


# ---- P03: the link flaps -------------------------------------------------------------------------


async def test_P03_one_probe_at_a_time(tmp_path: Path) -> None:
    link = LINK + "connections = 4\n"
    async with place(tmp_path, relays=True, link=link) as here:
        for _ in range(3):
            here.to_ceibo.cut()
            await trio.sleep(0.1)
        here.to_ceibo.mode = "hang"  # TCP is accepted, and nothing more
        here.to_ceibo.cut()
        await here.until(partial(_link_down, here.three, "sicoop", "ceibo"))
        # Connections that were renewed while others still counted as up end first, and so do those
        # that were about to be.
        for _ in range(2):
            await here.until(lambda: here.to_ceibo.hanging <= 1)
            await trio.sleep(1)
        before, here.to_ceibo.hanging_most = here.to_ceibo.opened, 0
        answers = []
        with trio.move_on_after(3):
            while True:
                answers.append(await here.till.cash_out())
                await trio.sleep(0.1)
        assert {(a.code, a.instruction) for a in answers} == {NO}  # E2
        refused = list(here.till.told)
        assert here.to_ceibo.hanging_most == 1, "one probe at a time"
        assert here.to_ceibo.opened - before <= 6, "with pauses"
        here.to_ceibo.mode = "pass"
        here.to_ceibo.cut()
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        await here.three.agreed()
        assert {here.end(trace) for trace in refused} == {REFUSED}, "at once"


# ---- P04 to P06: an issuer that answers late, in part, or never ----------------------------------


async def test_P04_a_slow_ceibo_declines_and_releases(tmp_path: Path) -> None:
    slow = Rule(fault="late", argument=T_HOLD + 1.0, operation="hold")
    async with place(tmp_path, rules=(slow,), values=PATIENT) as here:
        async with lasts(T_HOLD - 0.8):
            answers = await _together(here.till, 5)
        assert {(a.code, a.instruction) for a in answers} == {NO}  # E2
        await here.issuer.settled({"LIBERADA": 5})
        # The approvals came all the same, and are counted: alarms go by that counter's rate.
        await here.until(partial(_late, here.three, 5))
        assert {here.end(t) for t in here.till.told} == {TIMED_OUT}, "at sicoop's time-out"
        late = 'troncal_link_events_total{link="ceibo",what="late"}'
        assert await here.three.metric("sicoop", late) == 5


async def _late(found: Three, count: int) -> bool:
    return bool((await _link(found, "sicoop", "ceibo"))["counters"]["late"] >= count)


async def _together(one: Till, count: int) -> list[Answer]:
    """So many cash_outs at once."""
    requests = [one.request("cash_out", 50_000) for _ in range(count)]
    answers: list[Answer] = []

    async def ask(request: Any) -> None:
        answers.append(await one.known(request, await one.ask(request)))

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(ask, request)
    return answers


async def test_P05_a_dead_connection_takes_only_its_own(tmp_path: Path) -> None:
    # All nine are at the issuer, and none is answered, for as long as the cut may take to come.
    slow = Rule(fault="delay", argument=3.0, operation="hold")
    link = CALM + "connections = 3\n"
    async with place(tmp_path, relays=True, rules=(slow,), link=link, values=STEADY) as here:
        await here.until(partial(_signed_on, here.three, 3))
        answers: list[Answer] = []

        async def ask() -> None:
            answers.extend(await _together(here.till, 9))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await here.until(lambda: sum(here.issuer.states().values()) == 9)
            here.to_ceibo.cut(1)
        codes = Counter(answer.code for answer in answers)
        assert codes == {"00": 6, "91": 3}, "a third was on the dead one"
        await here.issuer.settled({"CAPTURADA": 6, "LIBERADA": 3})
        states = Counter(here.end(trace)[0] for trace in here.till.told)
        assert states == {"REGISTRADA": 6, "RECHAZO_REGISTRADO": 3}


async def _signed_on(found: Three, count: int) -> bool:
    """As many connections to ceibo take requests."""
    (address,) = (await _link(found, "sicoop", "ceibo"))["addresses"]
    return bool(address["signed_on"] == count)


async def test_P06_answers_never_come(tmp_path: Path) -> None:
    mute = Rule(fault="swallow", operation="hold", first=4)
    async with place(tmp_path, rules=(mute,), values=PATIENT) as here:
        answers = await _together(here.till, 4)
        assert {(a.code, a.instruction) for a in answers} == {NO}  # E2
        await here.issuer.settled({"LIBERADA": 4})
        assert {here.end(trace) for trace in here.till.told} == {TIMED_OUT}
        await here.until(lambda: here.three.alarms("sicoop", "orphan_hold") > 0)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        await here.issuer.settled({"LIBERADA": 4, "CAPTURADA": 1})


# ---- P07: a standby takes over -------------------------------------------------------------------


@dataclass
class Standby:
    """Three roles with an issuer of the tests, and what it takes for another sicoop to step in."""

    three: Three
    line: Relay  # between red and the first sicoop
    other: Relay
    issuer: Issuer
    till: Till
    nursery: trio.Nursery

    async def take_over(self) -> None:
        """The first is killed, and another starts on the same directory, at another address."""
        await self.three.kill("sicoop")
        self.line.refuse()
        await self.three.start("sicoop")
        self.other.target = self.three.apart.addresses["sicoop"]
        await self.nursery.start(self.other.run)

    async def has_holds(self, count: int) -> None:
        """Until so many are at the issuer."""
        with trio.fail_after(100):
            while sum(self.issuer.states().values()) < count:  # noqa: ASYNC110
                await trio.sleep(0.01)


@asynccontextmanager
async def standby(
    directory: Path, delay_s: float, *, link: str = LINK, **options: Any
) -> AsyncIterator[Standby]:
    """The directory is on storage that both nodes reach; red knows both addresses."""
    line, other = Relay(), Relay()
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        addresses = [line.address, other.address]
        found = await stack.enter_async_context(
            three(directory, start=(), sicoop_at=addresses, toml={"sicoop": link}, **options)
        )
        line.target = found.apart.addresses["sicoop"]
        await nursery.start(line.run)
        issuer = Issuer(found.apart, Rule(fault="delay", argument=delay_s, operation="hold"))
        await issuer.listen(nursery)
        await found.start("sicoop", "red")
        one = await till(found, nursery)
        await through(one)
        yield Standby(found, line, other, issuer, one, nursery)
        await one.terminal.aclose()
        nursery.cancel_scope.cancel()


async def test_P07_a_standby_takes_over_the_directory(tmp_path: Path) -> None:
    async with standby(tmp_path, 0.6) as here:
        for _ in range(3):
            await here.till.cash_out()
        answers: list[Answer] = []

        async def ask() -> None:
            answers.extend(await _together(here.till, 6))

        async with trio.open_nursery() as working:
            working.start_soon(ask)
            await here.has_holds(9)
            await here.take_over()
        ends = Counter(answer.state for answer in answers)
        assert set(ends) <= {"REGISTRADA", "ERROR"}  # E1/E3
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        paid = sum(answer.state == "REGISTRADA" for answer in here.till.told.values())
        await here.issuer.settled({"CAPTURADA": paid, "LIBERADA": 10 - paid})
        red = Counter(operation.state for operation in here.three.at_red().values())
        assert red["REGISTRADA"] == paid


async def test_P07_a_standby_knows_what_was_answered(tmp_path: Path) -> None:
    """RESPONDIDA at the stop: red has registered and paid, and its confirmations wait for whoever
    takes over."""
    async with standby(tmp_path, 2.0, link=CALM, values=STEADY) as here:
        answers: list[Answer] = []

        async def ask() -> None:
            answers.extend(await _together(here.till, 6))

        async with trio.open_nursery() as working:
            working.start_soon(ask)
            await here.has_holds(6)
            here.line.hold("there")  # from now on sicoop speaks to red, and hears nothing
        assert {answer.instruction for answer in answers} == {"ENTREGUE"}
        assert Counter(o.state for o in here.three.at_sicoop().values()) == {"RESPONDIDA": 6}
        await here.take_over()
        await here.issuer.settled({"CAPTURADA": 6})  # E1
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        await here.issuer.settled({"CAPTURADA": 7})
        assert Counter(o.state for o in here.three.at_red().values()) == {"REGISTRADA": 7}


# ---- P09: certificates ---------------------------------------------------------------------------


def _certificates(directory: Path, days: float) -> None:
    """An authority, and a certificate for 127.0.0.1 that is good for so many days more."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def certificate(name: x509.Name, public: Any, until: datetime.datetime, ca: bool) -> Any:
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(authority)
            .public_key(public).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=365)).not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )  # fmt: skip
        if ca:
            usage = dict.fromkeys(
                ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "encipher_only", "decipher_only"), False,
            )  # fmt: skip
            builder = builder.add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage),
                critical=True,
            )
        return builder.sign(authority_key, hashes.SHA256())

    root = certificate(
        authority, authority_key.public_key(), now + datetime.timedelta(days=900), True
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    leaf = certificate(subject, key.public_key(), now + datetime.timedelta(days=days), False)
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(root.public_bytes(pem))
    (directory / "cert.pem").write_bytes(leaf.public_bytes(pem))
    (directory / "cert.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _tls(directory: Path) -> dict[str, str]:
    server = f'cert = "{directory}/cert.pem"\nkey = "{directory}/cert.key"\n'
    client = f'ca = "{directory}/ca.pem"\n'
    return {
        "red": f"[platform.tls]\n{client}",
        "sicoop": f"{LINK}[links.ceibo.tls]\n{client}\n[tls.sicoop]\n{server}",
        "ceibo": f"[tls.ceibo]\n{server}",
    }


@asynccontextmanager
async def _encrypted(directory: Path, days: float) -> AsyncIterator[tuple[Three, Till]]:
    _certificates(directory, days)
    async with (
        trio.open_nursery() as nursery,
        three(directory, toml=_tls(directory), values={"session_sign_on_s": 3}) as found,
    ):
        one = await till(found, nursery)
        yield found, one
        await one.terminal.aclose()


async def test_P09_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    async with _encrypted(tmp_path, days=-1) as (found, one):
        answer = await one.cash_out()
        assert (answer.code, answer.instruction) == NO
        (told,) = found.at_red().values()
        assert told.state == "ERROR"
        assert told.history[0][1] == told.history[-1][1], "refused at once"
        assert found.at_sicoop() == {}, "nothing got there"  # E0
        # red tries before sicoop listens, too: then it was refused for another reason.
        with trio.fail_after(60):
            while "expired" not in (await _link(found, "red", "platform-0012"))["last_failure"]:  # noqa: ASYNC110
                await trio.sleep(0.05)
        row = await _link(found, "sicoop", "ceibo")
        assert row["state"] not in ("UP", "DEGRADED")


async def test_P09_a_certificate_that_expires_soon_is_told_of(tmp_path: Path) -> None:
    async with _encrypted(tmp_path, days=29) as (found, one):
        await through(one)
        assert (await one.cash_out()).instruction == "ENTREGUE"
        assert (await one.deposit()).instruction == "RECIBA"
        await found.agreed()
        with trio.fail_after(60):
            for role in ("red", "sicoop"):  # its link's, its listener's
                while not found.alarms(role, "certificate_expires"):  # noqa: ASYNC110
                    await trio.sleep(0.05)


async def test_P09_bytes_on_the_line_are_encrypted(tmp_path: Path) -> None:
    _certificates(tmp_path, 90)
    async with three(tmp_path, toml=_tls(tmp_path), start=("ceibo", "sicoop")) as found:
        for role in ("sicoop", "ceibo"):
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            stream = await trio.open_ssl_over_tcp_stream(
                *found.apart.addresses[role], ssl_context=context
            )
            await stream.do_handshake()
            await trio.aclose_forcefully(stream)


# ---- P12: SIGTERM --------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["red", "sicoop", "ceibo"])
async def test_P12_sigterm_finishes_what_is_in_flight(tmp_path: Path, role: str) -> None:
    async with place(tmp_path, relays=True) as here:
        # Requests wait in the line for a moment, so that they are in flight when the signal comes.
        here.to_sicoop.delay_s = here.to_ceibo.delay_s = 0.1
        answers: list[Answer] = []

        async def ask() -> None:
            answers.extend(await _together(here.till, 8))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.05)
            here.three.signal(role, signal.SIGTERM)
            assert await here.three.ended(role) == 0, here.three.tail(role)
            await here.three.start(role)
        here.to_sicoop.delay_s = here.to_ceibo.delay_s = 0.0
        assert {a.state for a in answers} <= {"REGISTRADA", "RECHAZO_REGISTRADO", "ERROR"}
        if role == "red":
            assert {a.instruction for a in answers} == {"ENTREGUE"}  # E1
        agreed = await here.three.agreed()
        assert agreed.amounts["ceibo"] == here.till.paid


@pytest.mark.parametrize("role", ["red", "sicoop"])
async def test_P12_all_that_was_taken_is_answered_before_the_end(tmp_path: Path, role: str) -> None:
    """The holds are at the issuer when the signal comes: whoever waits for them goes on waiting."""
    slow = Rule(fault="delay", argument=2.0, operation="hold")
    values = STEADY | {"session_drain_s": 10}
    async with place(tmp_path, rules=(slow,), link=CALM, values=values) as here:
        requests = [here.till.request("cash_out", 50_000) for _ in range(6)]
        answers: list[Any] = []

        async def ask(request: Any) -> None:
            answers.append(await here.till.terminal.request(request))

        async with trio.open_nursery() as nursery:
            for request in requests:
                nursery.start_soon(ask, request)
            await here.until(lambda: sum(here.issuer.states().values()) == 6)
            here.three.signal(role, signal.SIGTERM)
            assert await here.three.ended(role) == 0, here.three.tail(role)
            if role == "sicoop":  # red may still have to confirm
                await here.three.start("sicoop")
        assert [(a.code, a.instruction) for a in answers] == [("00", "ENTREGUE")] * 6  # E1
        await here.issuer.settled({"CAPTURADA": 6})


# ---- P13: reload and rotation under traffic ------------------------------------------------------


async def test_P13_keys_are_rotated_under_traffic(tmp_path: Path) -> None:
    """First the side that accepts takes the new key, then the side that connects uses it."""
    async with place(tmp_path, relays=True, link=CALM, values=STEADY) as here:
        data = {role: config.data for role, config in here.three.apart.configs.items()}
        answers: list[Answer] = []
        stop = False

        async def traffic() -> None:
            while not stop:
                answers.append(await here.till.deposit(1000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic)
            await here.until(lambda: len(answers) > 5)
            made = await admin.call(data["sicoop"], "network_rotate", {"number": "0012"})
            await here.more(answers)
            new = {"number": "0012", "key": made["key"], "version": made.get("version", 2)}
            await admin.call(data["red"], "network_rotate", new)
            await here.more(answers)
            made = await admin.call(data["ceibo"], "host_rotate", {"name": "sicoop"})
            keys = {name: made[name] for name in ("mac_key", "data_key", "zone_key")}
            await here.more(answers)
            await admin.call(data["sicoop"], "host_rotate", {"name": "ceibo", "keys": keys})
            await here.more(answers)
            stop = True
        assert {a.instruction for a in answers} == {"RECIBA"}, "no operation fails"  # E1
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        # The next session is opened under the new key, without the old one's help.
        row = await _link(here.three, "red", "platform-0012")
        here.to_sicoop.cut()
        here.to_ceibo.cut()
        await through(here.till)
        assert (await here.till.cash_out()).instruction == "ENTREGUE"
        after = await _link(here.three, "red", "platform-0012")
        assert after["counters"]["connects"] > row["counters"]["connects"]
        agreed = await here.three.agreed()
        assert agreed.amounts["ceibo"] == here.till.paid


async def test_P13_the_configuration_is_reloaded_under_traffic(tmp_path: Path) -> None:
    async with place(tmp_path, link=CALM, values=STEADY) as here:
        answers: list[Answer] = []
        stop = False

        async def traffic() -> None:
            while not stop:
                answers.append(await here.till.deposit(1000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic)
            await here.until(lambda: len(answers) > 5)
            for role in ("ceibo", "sicoop", "red"):
                path = here.three.apart.configs[role].path
                text = path.read_text()
                path.write_text(text.replace('max = "5000000 PYG"', 'max = "20000 PYG"'))
                here.three.signal(role, signal.SIGHUP)
                await here.until(partial(_reloaded, here.three, role))
            await here.more(answers)
            stop = True
        assert {a.instruction for a in answers} == {"RECIBA"}, "no operation fails"  # E1
        refused = await here.till.deposit(30_000)
        assert refused.code == "13", "the new limit is in force"
        assert here.till.terminal.sessions == 1, "nobody was cut off"
        agreed = await here.three.agreed()
        assert agreed.amounts["ceibo"] == here.till.paid


def _reloaded(found: Three, role: str) -> bool:
    return bool(found.events(role, "reloaded"))


# ---- the same in one process ---------------------------------------------------------------------


@pytest.mark.parametrize("days", [-1, 29, 90])
@pytest.mark.layouts("together")
def test_P09_a_certificate_of_the_terminals_listener(tmp_path: Path, days: int) -> None:
    """Terminals refuse an expired one, and one that expires within 30 days is told of."""
    _certificates(tmp_path, days)
    toml = SMALL + '[tls.terminals]\ncert = "cert.pem"\nkey = "cert.key"\n'
    site = provision(tmp_path, terminals=1, cards=1, toml=toml)
    node = site.start()
    try:
        node.ready()
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        terminal = site.terminals[0]
        deposit = {
            "op": "deposit", "trace": 1, "cashier": "345", "currency": "PYG", "amount": 1000,
            "document": site.cards[0].document,
        }  # fmt: skip

        def connect() -> Wire:
            return Wire(node.terminals, terminal.number, terminal.key.key, tls=context)

        context.check_hostname = False  # the certificate is for the address
        if days < 0:
            with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
                connect()
        else:
            with connect() as wire:
                assert wire.sign_on()["code"] == "00"  # type: ignore[index]
                assert wire.ask(deposit)["instruction"] == "RECIBA"
        assert node.stop() == 0
        alarms = [line for line in site.log_lines() if line.get("alarm") == "certificate_expires"]
        assert [line["subject"] for line in alarms] == ["listener terminals"] * (days < 30)
    finally:
        node.end()
    restarted = site.open()
    assert position(restarted) == (1000 if days > 0 else 0)  # E0
    restarted.close()


@pytest.mark.layouts("together")
def test_P07_a_standby_takes_over_from_one_process(tmp_path: Path) -> None:
    """It cannot start while the first lives; then it knows all that was told."""
    site = provision(tmp_path, terminals=1, cards=6)
    first = site.start()
    started = [first]
    told: dict[int, dict[str, Any]] = {}
    try:
        first.ready()
        terminal = site.terminals[0]
        with Wire(first.terminals, terminal.number, terminal.key.key) as wire:
            wire.sign_on()
            for trace, card in enumerate(site.cards, 1):
                code = card.next_code(time.time())
                told[trace] = wire.ask(
                    {"op": "cash_out", "trace": trace, "cashier": "345", "currency": "PYG",
                     "amount": 50_000, "document": card.document, "token": code}
                )  # fmt: skip
            assert {answer["instruction"] for answer in told.values()} == {"ENTREGUE"}
            standby = site.start()
            started.append(standby)
            assert standby.wait() == 1, "the directory is in use"
            first.kill()
        standby = site.start()
        started.append(standby)
        standby.ready()
        with Wire(standby.terminals, terminal.number, terminal.key.key) as wire:
            wire.sign_on()
            for trace, before in told.items():
                answer = wire.ask({"op": "last_operation", "original": trace, "kind": "cash_out"})
                assert (answer["state"], answer["instruction"]) == ("REGISTRADA", "ENTREGUE")
                assert answer["operation"] == before["operation"]
        assert standby.stop() == 0
    finally:
        for one in started:  # none may go on writing where the directory is removed
            one.end()
    node = site.open()
    assert position(node) == -6 * 50_000  # E1
    assert [available(node, card.card) for card in site.cards] == [BALANCE - 50_000] * 6
    assert verify(site.config, site.config.data).ok
    node.close()
