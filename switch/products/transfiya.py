"""TransfiYa put together: the flow with its banks and keys, the calls, and the HTTP side."""

import base64
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import trio

from core_ext._journal import JournalFull
from protocols.transfiya import (
    KeyFault,
    ShapeError,
    SigningKey,
    action_of,
    decode,
    encode,
    error_body,
    handle_of,
    make_token,
    request_hash,
    self_test,
)
from switch.config import Config, ConfigError, Mistake
from switch.flows.step import Step
from switch.flows.transfiya import Answer, TransfiyaFlow, Wait
from switch.flows.transfiya_bank import BankClients, BankCore, ItemWork
from switch.flows.transfiya_core import Core, LedgerCore
from switch.flows.transfiya_jobs import GO, ROLE, BankSide, Job, Outcome, Passed
from switch.flows.transfiya_records import POSTED, Directory, Items, key_owner
from switch.net.calls import Calls
from switch.node import Node
from switch.ops.keys import MasterKey, UnsealError
from switch.ops.logs import logger
from switch.ops.metrics import Metrics
from switch.products import Product
from switch.remotes import Remotes
from switch.sections.transfiya import Bank
from switch.web.mounts import Mount
from switch.web.transfiya import Credentials, Tokens, TransfiyaSite
from switch.web.transfiya_calls import Access, NetworkCalls

log = logger("transfiya")

KEYS_CACHED_MAX: Final = 50_000
NO_TOKEN: Final = "no token"
TOKEN_LIFE_S: Final = 60
TOKEN_LABEL: Final = b"transfiya/inbound-tokens"
ANSWER_SLACK_S: Final = 2.0  # from the end of a bank's budget to that of the mount


Bearer = Callable[[Job, str], str]


class KeyRing:
    """Keys of banks and customers, opened when they are asked for."""

    def __init__(self, directory: Directory, master: MasterKey, banks: Mapping[str, Bank]) -> None:
        self._directory = directory
        self._master = master
        self._banks = banks
        self._cache: dict[tuple[str, str], SigningKey] = {}

    def key(self, bank: str, handle: str) -> SigningKey | None:
        """The key behind a handle, None where the bank has none for it."""
        found = self._cache.get((bank, handle))
        if found is not None:
            return found
        settings = self._banks[bank]
        if handle == settings.bank_signer:  # empty in v2, whose keys have no handles
            name = settings.bank_signer_key.partition(":")[2]
        else:
            signer = self._directory.signer(bank, handle)
            if signer is None:
                return None
            name = signer.key
        found = self.named(name, allow_short=settings.allow_short_secret)
        if found is None or (handle and handle_of(found.public) != handle):
            return None
        if len(self._cache) >= KEYS_CACHED_MAX:
            self._cache.clear()
        self._cache[bank, handle] = found
        return found

    def named(self, name: str, *, allow_short: bool) -> SigningKey | None:
        """A key by its name, None where there is none.

        Raises:
            KeyFault: too short. UnsealError: sealed under another master key.
        """
        record = self._directory.key(name)
        if record is None:
            return None
        secret = self._master.open(record.sealed, purpose="peer-keys", owner=key_owner(name))
        return SigningKey(secret, allow_short=allow_short)


class TransfiyaService:
    """Carries out jobs, and keeps callers until their answer is durable."""

    def __init__(
        self, node: Node, flow: TransfiyaFlow, config: Config, calls: Mapping[str, NetworkCalls]
    ) -> None:
        section = config.transfiya
        self._node = node
        self._flow = flow
        self._networks = calls
        self._waiters: dict[str, _Waiter] = {}
        self._resuming = trio.CapacityLimiter(section.resume_parallel)
        self._behind = trio.Lock()
        acts = {GO: self._go, "resume": self._resume, NO_TOKEN: self._no_token}
        self.calls = Calls(acts, concurrent_max=section.calls_max + section.resume_parallel)

    # ---- Service

    def ready(self, message: Any) -> None:
        self.calls.ready(message)

    def flush(self) -> None:
        self.calls.flush()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await self.calls.run(task_status=task_status)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                for network in self._networks.values():
                    await network.aclose()

    def stop(self) -> None:
        self._flow.serving = False
        self.calls.stop()

    # ---- jobs

    async def _resume(self, item_id: str) -> None:
        async with self._resuming:
            await self._go(item_id)

    async def _go(self, item_id: str) -> None:
        """Work on an item until it waits for something else than us."""
        flow = self._flow
        job, passed = await self._node.perform(
            lambda step: (flow.advance(step, item_id), flow.shared.drain())
        )
        self._tell(item_id)
        self._log("go", passed)
        if job is not None:
            await self._carry(job)

    async def _carry(self, job: Job) -> None:
        """Make a call, and all that follow from it."""
        flow = self._flow
        due: Job | None = job
        while due is not None:
            made = due
            await self._give_way(made.item)
            outcome = await self._networks[made.bank].run(made)
            await self._give_way(made.item)
            attempt = flow.tries(made.item) + 1
            due, passed = await self._node.perform(
                partial(self._on_outcome, job=made, outcome=outcome)
            )
            self._tell(made.item)  # first: somebody waits for it
            self._log(made.call, passed, _Made(made, outcome, attempt))

    async def _give_way(self, item_id: str) -> None:
        """Where nobody waits for an item's answer, let those go first for whom somebody does.

        One such turn of work a pass of the scheduler: what answers takes some passes, and would
        otherwise stand behind all that is under way in each of them.
        """
        if item_id not in self._waiters:
            async with self._behind:
                await trio.lowlevel.checkpoint()

    def _on_outcome(
        self, step: Step, job: Job, outcome: Outcome
    ) -> tuple[Job | None, list[Passed]]:
        return self._flow.on_outcome(step, job, outcome), self._flow.shared.drain()

    async def _no_token(self, bank: str) -> None:
        await self._node.perform(lambda step: self._flow.on_token(step, bank))

    def no_token(self, bank: str) -> None:
        """A bank gets no token from its network."""
        self.calls.ready(_Order(NO_TOKEN, bank))
        self.calls.flush()

    def _tell(self, item_id: str) -> None:
        """All that the flow knows of it now is durable."""
        waiter = self._waiters.get(item_id)
        if waiter is not None and waiter.answer is None:
            waiter.answer = self._flow.answer(item_id)
            if waiter.answer is not None:
                waiter.answered.set()

    def _log(self, name: str, passed: list[Passed], made: "_Made | None" = None) -> None:
        """One line for each piece of work that a step has changed, with what led to it."""
        last: dict[str, Passed] = {}
        states: dict[str, str] = {}
        for one in passed:
            before = states.get(one.work)
            states[one.work] = one.state if before is None else f"{before},{one.state}"
            last[one.work] = one
        told: dict[str, Any] = {}
        if made is not None:
            own = last.pop(made.job.item, None) or self._flow.standing(made.job.item)
            outcome = made.outcome
            told = {
                "outcome": outcome.status, "http": outcome.http, "code": outcome.code,
                "attempt": made.attempt, "ms": outcome.took_ns // 1_000_000,
            }  # fmt: skip
            if own is not None:
                _line(name, own, states.get(own.work, ""), told)
        for one in last.values():
            _line(name if made is None else "go", one, states[one.work], {})

    # ---- Desk

    async def take(self, bank: str, endpoint: str, raw: bytes, value: Any) -> tuple[Answer, str]:
        """Decide about one call of the network and wait for what it is to be answered."""
        node, flow = self._node, self._flow
        arrived_ns = node.clock.wall_ns()
        try:
            if flow.shared.banks[bank].settings.profile == "v1":
                action_of(value)  # an exception inside a step would stop the node
        except ShapeError:
            return self.refusal(bank, "body-invalid"), ""
        try:
            taken, passed = await node.perform(
                lambda step: (
                    flow.take(step, bank, endpoint, raw, value, arrived_ns), flow.shared.drain(),
                )
            )  # fmt: skip
            if isinstance(taken, Wait) and taken.job is not None:
                self._begin(taken.item, taken.job)
            self._log(endpoint, passed)
            if isinstance(taken, Wait):
                return await self._answer(bank, taken), taken.item if taken.first else ""
        except JournalFull:
            return self.refusal(bank, "out-of-service"), ""
        if endpoint == "action" and taken.status == 200:
            return taken, f"{bank}|SIGN/{value['labels']['tx_ref']}/{value['action_id']}"
        return taken, ""

    async def _answer(self, bank: str, wait: Wait) -> Answer:
        node, flow = self._node, self._flow
        waiter = self._waiters.setdefault(wait.item, _Waiter())
        waiter.callers += 1
        try:
            with trio.move_on_after(flow.shared.banks[bank].settings.sync_budget_s):
                if flow.answer(wait.item) is None:
                    await waiter.answered.wait()
            if waiter.answer is not None:
                return waiter.answer
            # What it is may have been decided by a step that is not durable yet.
            return await node.perform(lambda step: flow.give_up(step, wait.item))
        finally:
            waiter.callers -= 1
            if not waiter.callers:
                del self._waiters[wait.item]

    def _begin(self, item_id: str, job: Job) -> None:
        """Make the first call of an item, unless somebody works on it already."""
        if not self.calls.begin(GO, item_id, partial(self._carry, job)):
            self.calls.ready(_Order(GO, item_id))
            self.calls.flush()

    def sent(self, name: str) -> None:
        """An answer is out: what follows from it may begin."""
        self._flow.release(name)
        self.calls.ready(_Order(GO, name))
        self.calls.flush()

    def refusal(self, bank: str, reason: str) -> Answer:
        side = self._flow.shared.banks.get(bank)
        if side is None:
            return Answer(400, encode(error_body(314, reason)))
        return Answer(*side.refusal(reason))


class _Waiter:
    """Those who wait for the answer of one item; it is durable when it stands here."""

    __slots__ = ("answer", "answered", "callers")

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.answered = trio.Event()
        self.callers = 0


class _Made(NamedTuple):
    """A call, its end, and which attempt it was."""

    job: Job
    outcome: Outcome
    attempt: int


def _line(name: str, work: Passed, states: str, told: dict[str, Any]) -> None:
    log.info(
        "step", bank=work.bank, tx_ref=work.tx_ref, action_id=work.action_id, kind=work.kind,
        purpose=work.purpose, step=name, state=states, reason=work.reason, **told,
    )  # fmt: skip


class _Order:
    """A call that no step orders, because nothing changes before it."""

    __slots__ = ("key", "kind")

    def __init__(self, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key


def secret_of(config: Config, text: str, where: str) -> str:
    """What `env:NAME` or `file:PATH` names, empty for an empty text.

    Raises:
        ConfigError: the variable is not set, or the file cannot be read; names neither's content.
    """
    kind, _, name = text.partition(":")
    if not kind:
        return ""
    if kind == "env":
        found = os.environ.get(name)
        if found is None:
            raise _mistake(config, where, f"the variable {name} is not set")
        return found
    try:
        return Path(config.file(name)).read_text().strip()
    except OSError as error:
        raise _mistake(config, where, f"{name}: {error.strerror}") from None


def _mistake(config: Config, where: str, what: str, hint: str = "") -> ConfigError:
    return ConfigError(config.path, [Mistake(0, where, what, hint)])


def _check_settlement_key(config: Config, bank: Bank, ring: KeyRing) -> None:
    """A bank whose own key is missing, too short or another one does not start."""
    name = bank.bank_signer_key.partition(":")[2]
    where = f"transfiya.bank.{bank.id}.bank_signer_key"
    try:
        key = ring.named(name, allow_short=bank.allow_short_secret)
    except KeyFault as error:
        raise _mistake(config, where, f"key {name}: {error.reason}") from None
    except UnsealError:
        raise _mistake(config, where, f"key {name} is sealed under another master key") from None
    if key is None:
        raise _mistake(config, where, f"there is no key {name}", "`troncal transfiya key new`")
    if bank.profile == "v1" and handle_of(key.public) != bank.bank_signer:
        raise _mistake(config, where, f"bank_signer is not the handle of key {name}")


def access_of(config: Config, bank: Bank, bearer: Bearer | None = None) -> Access:
    """How a bank shows itself to the network."""
    where = f"transfiya.bank.{bank.id}"
    return Access(
        network_url=bank.network_url, token_url=bank.token_url, token_style=bank.token_style,
        client_id=secret_of(config, bank.client_id, f"{where}.client_id"),
        client_secret=secret_of(config, bank.client_secret, f"{where}.client_secret"),
        api_key=secret_of(config, bank.api_key, f"{where}.api_key"),
        call_timeout_s=bank.call_timeout_s, connections_max=config.transfiya.connections_max,
        ledger=bank.ledger, bearer=bearer,
    )  # fmt: skip


def router_of(config: Config, bank: Bank) -> dict[str, str]:
    """What the network is told with signers, secrets put in.

    Raises:
        ConfigError: a secret cannot be read.
    """
    where = f"transfiya.bank.{bank.id}.router_auth_params"
    return {
        name: secret_of(config, text, f"{where}.{name}")
        if text.startswith(("env:", "file:"))
        else text
        for name, text in bank.router_auth_params.items()
    }


def _bearer(bank: Bank, ring: KeyRing, wall_ns: Callable[[], int]) -> Bearer | None:
    """Tokens of the v2 profile: signed by the bank's own key, each for one call."""
    if bank.profile != "v2" or bank.token_url:
        return None

    def token(job: Job, address: str) -> str:
        key = ring.key(bank.id, bank.bank_signer)
        assert key is not None, "checked at the start"
        now_s = wall_ns() // 1_000_000_000
        public = base64.b64encode(key.public).decode()
        headers = {"x-ledger": bank.ledger} if bank.ledger else None
        body = decode(job.body) if job.body else None
        claims = {
            "iss": bank.id, "sub": f"signer:{bank.id}", "aud": bank.ledger or "ledger",
            "iat": now_s, "exp": now_s + TOKEN_LIFE_S,
            "hsh": request_hash(job.method, address, body, headers),
        }  # fmt: skip
        return make_token(claims, public, key)

    return token


def _credentials(config: Config, bank: Bank) -> Credentials:
    def secret(name: str) -> str:
        where = f"transfiya.bank.{bank.id}.inbound_{name}"
        return secret_of(config, getattr(bank, f"inbound_{name}"), where)

    return Credentials(
        mode=bank.inbound_auth, api_key=secret("api_key"), client_id=secret("client_id"),
        client_secret=secret("client_secret"), username=secret("username"),
        password=secret("password"), token_s=bank.inbound_token_s,
        expired_status=bank.expired_token_status,
    )  # fmt: skip


def _core(node: Node, remotes: Remotes | None, bank: Bank, clients: BankClients) -> Core:
    if bank.core == "ledger":
        return LedgerCore(bank.id, node.store.ledger, node.calendar)
    try:
        assert remotes is not None, "a core behind a link needs links"
        port = remotes.bank(bank.link)
    except LookupError:
        where = f"transfiya.bank.{bank.id}.link"
        hint = "`troncal host add` makes it"
        raise _mistake(node.config, where, f"there is no bank {bank.link}", hint) from None
    port.add(clients)
    return BankCore(
        bank.id, port, clients, node.store.records, bank.core_budget_s, hold=bank.hold,
        profile=bank.profile,
    )  # fmt: skip


def build(
    node: Node,
    remotes: Remotes | None,
    *,
    draw: Callable[[int], bytes] = secrets.token_bytes,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Product:
    """Make the product; see `switch.products`.

    Args:
        draw: random bytes. transport: another way to the networks than TCP.

    Raises:
        ConfigError: a key or a secret is missing.
    """
    self_test()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every address it asks
    config, section = node.config, node.config.transfiya
    records = node.store.records
    directory = Directory(records)
    ring = KeyRing(directory, node.master, {bank.id: bank for bank in section.bank})
    for bank in section.bank:
        _check_settlement_key(config, bank, ring)
    items = Items(records)
    clients = BankClients()
    sides = [
        BankSide(bank, _core(node, remotes, bank, clients), router_of(config, bank))
        for bank in section.bank
    ]
    flow = TransfiyaFlow(records, sides, directory, ring, draw, items)
    flow.closed = lambda: node.issuers.closed
    clients.works = {"v1": ItemWork(flow.machine, directory), "v2": flow.entries}
    wall_ns = node.clock.wall_ns
    calls: dict[str, NetworkCalls] = {}
    service = TransfiyaService(node, flow, config, calls)
    for bank in section.bank:
        calls[bank.id] = NetworkCalls(
            access_of(config, bank, _bearer(bank, ring, wall_ns)), wall_ns, transport=transport,
            no_token=partial(service.no_token, bank.id),
        )  # fmt: skip
    tokens = Tokens(hmac.digest(node.master.subkey("fingerprint"), TOKEN_LABEL, "sha256"))
    sites = {
        bank.id: TransfiyaSite(
            bank.id,
            bank.mount,
            service,
            _credentials(config, bank),
            tokens,
            wall_ns,
            bank.profile,
        )
        for bank in section.bank
    }
    mounts = [
        Mount(
            f"{ROLE}-{bank.id}", [bank.mount], sites[bank.id], body_bytes_max=section.max_body,
            requests_max=section.requests_max, request_s=bank.sync_budget_s + ANSWER_SLACK_S,
        )
        for bank in section.bank
    ]  # fmt: skip
    measure = _measures(flow, calls, sites, wall_ns)
    return Product(flow=flow, service=service, mounts=mounts, measure=measure)


_COUNTED: Final = {
    "calls": ("calls", "calls to the network", ("bank", "call", "outcome")),
    "ended": ("items_ended", "pieces of work that ended", ("bank", "kind", "purpose", "end")),
    "duplicates": ("duplicates", "calls that came again", ("bank", "endpoint")),
    "refusals": ("refusals", "calls refused", ("bank", "endpoint", "reason")),
    "late": ("continue_late", "continues sent after the limit", ("bank",)),
    "resumed": ("resumed", "items taken up after a start", ("bank", "state")),
    "core_undo": ("core_undo", "first phases undone in the core", ("bank", "core")),
    "network_errors": ("network_errors", "codes the network told", ("bank", "code")),
    "iou_check": ("iou_check", "own IOUs (v1) and records of the ledger (v2) checked", ("result",)),
    "booked": ("booked_minor", "booked, in minor units", ("bank", "purpose", "currency")),
}


def _by_two(timed: Mapping[str, TransfiyaSite | NetworkCalls]) -> dict[tuple[str, ...], Any]:
    """Histograms by bank and by what was timed."""
    return {(bank, what): h for bank, one in timed.items() for what, h in one.seconds.items()}


ONLY_POSTED: Final = {POSTED: " whose /continue is not taken", "": ""}


def _oldest_s(
    flow: TransfiyaFlow, wall_ns: Callable[[], int], state: str
) -> dict[tuple[str, ...], float]:
    """By bank: age of the oldest unfinished work, of one state or of any."""
    found: dict[tuple[str, ...], float] = {(bank,): 0.0 for bank in flow.shared.banks}
    now_ns = wall_ns()
    for item in flow.items.live():
        if state in ("", item.state):
            age_s = (now_ns - item.arrived_ns) / 1e9
            found[item.bank,] = max(found[item.bank,], age_s)
    return found


def _measures(
    flow: TransfiyaFlow,
    calls: Mapping[str, NetworkCalls],
    sites: Mapping[str, TransfiyaSite],
    wall_ns: Callable[[], int],
) -> Callable[[Metrics], None]:
    def counted(kind: str) -> dict[tuple[str, ...], int]:
        return {fact[1:]: n for fact, n in flow.shared.counts.items() if fact[0] == kind}

    def open_items() -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        for item in flow.items.live():
            fact = (item.bank, item.kind.lower(), item.state.lower())
            found[fact] = found.get(fact, 0) + 1
        return found

    def requests() -> Iterator[tuple[tuple[str, ...], int]]:
        for bank, site in sites.items():
            for (endpoint, outcome), count in site.requests.items():
                yield (bank, endpoint, outcome), count

    def tokens() -> dict[tuple[str, ...], int]:
        return {
            (bank, outcome): count
            for bank, network in calls.items()
            for outcome, count in network.token.counters.as_dict().items()
        }

    def measure(metrics: Metrics) -> None:
        for kind, (name, text, labels) in _COUNTED.items():
            metrics.add_counter(f"{ROLE}_{name}", text, partial(counted, kind), labels)
        metrics.add_gauge(
            f"{ROLE}_conciliation_differences", "in the newest comparison with the network",
            lambda: {(bank,): count for bank, count in flow.differences.items()}, ("bank",),
        )  # fmt: skip
        metrics.add_gauge(f"{ROLE}_items", "unfinished work", open_items, ("bank", "kind", "state"))
        metrics.add_counter(
            f"{ROLE}_requests", "calls of the network", lambda: dict(requests()),
            ("bank", "endpoint", "outcome"),
        )  # fmt: skip
        metrics.add_counter(
            f"{ROLE}_token_fetch", "bearer tokens asked for", tokens, ("bank", "outcome")
        )
        metrics.add_histograms(
            f"{ROLE}_sync", "until the synchronous answer",
            partial(_by_two, sites), "bank", "endpoint",
        )  # fmt: skip
        metrics.add_histograms(
            f"{ROLE}_call", "of one call to the network",
            partial(_by_two, calls), "bank", "call",
        )  # fmt: skip
        ages = {"continue_age_seconds": POSTED, "unresolved_oldest_seconds": ""}
        for name, state in ages.items():
            metrics.add_gauge(
                f"{ROLE}_{name}", "age of the oldest unfinished work" + ONLY_POSTED[state],
                partial(_oldest_s, flow, wall_ns, state), ("bank",),
            )  # fmt: skip
        metrics.add_gauge(
            f"{ROLE}_parked", "work parked since the start", lambda: counted("parked"), ("bank",)
        )

    return measure
