"""The composition root: builds the graph once, owns the nurseries and the order of shutdown.

    outer nursery   gate and timers, connections, ops HTTP: end last
    inner nursery   listeners: end first, when `stop` is set

Shutdown: stop accepting, let work in flight be answered (at most `drain_s`), close connections,
make everything durable, exit.
"""

import gc
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from protocols.session import NETWORK, TERMINAL, PeerKey, SignOnGuard
from switch.admin import AdminServer
from switch.admin_socket import ProvisioningError
from switch.clock import Clock, SystemClock
from switch.config import Address, Config, ConfigError, parse_address
from switch.flows.registry import Entity, Host, Network, PeerKeyRecord, Terminal
from switch.flows.step import Step
from switch.net import certificates
from switch.net.driver import Driver
from switch.net.hosts import HostListener
from switch.net.peer import Peer
from switch.net.pump import Pump
from switch.node import Node
from switch.ops import logs
from switch.ops.health import Health, ops_app
from switch.ops.keys import MasterKey
from switch.ops.logs import logger
from switch.ops.metrics import LoopClock, Metrics
from switch.ops.pinning import pinned
from switch.ops.wiring import add_link_metrics, add_mount_metrics, add_node_metrics
from switch.products import Product, build
from switch.reload import Change, check
from switch.remotes import Remotes
from switch.web.edge import HttpCounts, HttpLimits, serve_http
from switch.web.mounts import Mounts

log = logger("app")

TIMER_PAUSE_S = 1.0  # the longest sleep of the timer task: new timers are noticed within it
BACKLOG = 4096
# Requests make no cycles, so collections find nothing: rarely is enough.
GC_THRESHOLDS = (50_000, 20, 50)
SNAPSHOT_CHECK_S = 10.0
OTHER_FILES = 200  # beside the connections: journal, listeners, pipes, HTTP
# A nice process ends its slice of some 3 ms before the thread that writes the journal gets a core;
# an idle one makes way at once, but on a machine without idle time it never comes to its end.
WAYS = {"idle": ("chrt", "--idle", "0"), "nice": ("nice", "-n", "19"), "equal": ()}
FOLLOWER = (sys.executable, "-m", "switch.follower")
FOLLOWER_PAUSE_S = 5.0
FOLLOWER_PAUSE_S_MAX = 300.0
NOBODY = "nobody"  # whose key is unsealed where a sign-on names no peer

Ready = dict[str, list[Any]]


class App:
    """One process of the switch, from configuration to exit.

    Args:
        config: checked configuration. `listen` may name port 0: the address that was found is
            told by `ready`.
        followers: start the projector and make snapshots in processes of their own.
    """

    def __init__(
        self, config: Config, master: MasterKey, *, clock: Clock | None = None,
        followers: bool = True,
    ) -> None:  # fmt: skip
        self.config = config
        self.node = Node(config, master, clock or SystemClock(), config.data)
        sealed = master.seal(bytes(32), purpose="peer-keys", owner=NOBODY)
        self._nobodys_key = PeerKeyRecord(0, sealed, "hmac-sha256", 0)
        self.stop = trio.Event()
        self._ops_stop = trio.Event()
        self.draining = False
        self.listening = False
        self._followers = followers
        self._drivers: dict[str, Driver] = {}
        self._hosts: dict[str, HostListener] = {}
        self._pump = Pump(self.node)
        self.remotes = Remotes(self.node, self._pump)
        self.products: list[Product] = []
        self._http_stop = trio.Event()
        self._http_counts = HttpCounts()
        self._products_ended = trio.Event()
        self._loop_clock = LoopClock()
        self._anywhere: tuple[str, ...] = ()

    async def run(
        self, *, on_ready: Callable[[Ready], None], task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Recover, serve until `stop` is set, drain, and return once all is durable.

        Raises:
            ConfigError, Corruption, SnapshotError, StateError, OSError: with what to do about it.
        """
        _allow_files(self.config.session.connections_max + OTHER_FILES)
        self.node.open(self._prepare)
        recovery = self.node.store.recovery
        log.info(
            "recovered", records=recovery.records, seconds=round(recovery.seconds, 3),
            snapshot_seq=recovery.snapshot_seq, torn=recovery.torn,
        )  # fmt: skip
        self.node.store.reserve()
        # Everything that lives as long as the node is out of the collector's sight from here on.
        gc.collect()
        gc.freeze()
        thresholds = gc.get_threshold()
        gc.set_threshold(*GC_THRESHOLDS)
        trio.lowlevel.add_instrument(self._loop_clock)
        try:
            with pinned(self.config.node.cpu) as self._anywhere:
                await self._serve(on_ready, task_status)
        finally:
            trio.lowlevel.remove_instrument(self._loop_clock)
            self.node.close()
            gc.set_threshold(*thresholds)
            gc.unfreeze()
        log.info("stopped", durable_seq=self.node.store.journal.durable_seq)

    def _prepare(self) -> None:
        """Make what finishes open work, with the state recovered: ports first, then products."""
        self.remotes.prepare()
        self.products = build(self.node, self.remotes)
        for product in self.products:
            self.node.attach(product.flow, product.service)

    async def _serve(self, on_ready: Callable[[Ready], None], task_status: Any) -> None:
        listeners = await self._open_listeners()
        addresses = {name: _addresses(found) for name, found in listeners.items()}
        admin = AdminServer(
            self.node,
            self.config.data,
            changed=self._changed,
            handlers={
                "links": self._links, "links_explain": self._explain, "reload": self._reload,
                "addresses": lambda step, values: addresses,
            },
            questions=frozenset(("links", "links_explain", "addresses")),
        )  # fmt: skip
        async with trio.open_nursery() as lasting:
            lasting.start_soon(self._gate)
            lasting.start_soon(self._settle)
            lasting.start_soon(self._pump.run)
            lasting.start_soon(self._timers)
            own: dict[str, Path] = {
                name: self.config.file(tls.cert) for name, tls in self.config.tls.items()
            }
            lasting.start_soon(certificates.watch, self.node, own)
            if self._followers:
                lasting.start_soon(self._projector)
                lasting.start_soon(self._snapshots)
            await lasting.start(self.remotes.run)
            await lasting.start(self._run_products)
            await lasting.start(admin.serve)
            for driver in self._drivers.values():
                lasting.start_soon(driver.sweep)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for name, driver in self._drivers.items():
                        accepting.start_soon(
                            partial(
                                trio.serve_listeners, driver.serve, listeners[name],
                                handler_nursery=connections,
                            )
                        )  # fmt: skip
                    for name, hosts in self._hosts.items():
                        accepting.start_soon(
                            partial(
                                trio.serve_listeners, hosts.serve, listeners[name],
                                handler_nursery=connections,
                            )
                        )  # fmt: skip
                    await lasting.start(self._ops, listeners["ops"][0])
                    for listener in listeners.get("http", ()):
                        await lasting.start(self._http, listener)
                    self.listening = True
                    on_ready(addresses)
                    task_status.started(addresses)
                    await self.stop.wait()
                    self.draining = True
                    accepting.cancel_scope.cancel()
                await self._drain()
                connections.cancel_scope.cancel()
            self._ops_stop.set()
            lasting.cancel_scope.cancel()

    # ---- listeners

    async def _open_listeners(self) -> dict[str, list[Any]]:
        roles = self.config.node.roles
        guard = SignOnGuard(trio.current_time)
        pump = self._pump
        opened: dict[str, list[Any]] = {}
        if "red" in roles:
            self._drivers["terminals"] = Driver(
                self.node,
                name="terminals",
                vocabulary=TERMINAL,
                authenticate=self._terminal_key,
                handle=self._terminal_request,
                sessions_max=1,
                guard=guard,
                pump=pump,
                straight=True,
            )
            opened["terminals"] = await self._listen("terminals")
        if "sicoop" in roles:
            self._drivers["sicoop"] = Driver(
                self.node,
                name="sicoop",
                vocabulary=NETWORK,
                authenticate=self._network_key,
                handle=self._network_request,
                sessions_max=self.config.session.network_sessions_max,
                guard=guard,
                pump=pump,
                on_state=self.node.sicoop.on_network_state,
            )
            self.node.sicoop.attach(networks=self._drivers["sicoop"])
            opened["sicoop"] = await self._listen("sicoop")
        if "ceibo" in roles:
            self._hosts["ceibo"] = self.remotes.listener()
            opened["ceibo"] = await self._listen("ceibo")
        self.remotes.check_listeners()
        for address in self.remotes.addresses():
            name = f"hosts at {address}"
            self._hosts[name] = self.remotes.listener(address)
            opened[name] = await self._listen("ceibo", parse_address(address))
        if any(product.mounts for product in self.products):
            opened["http"] = await self._listen("http")
        opened["ops"] = await self._listen("ops")
        return opened

    async def _listen(self, name: str, address: Address | None = None) -> list[Any]:
        address = address or parse_address(getattr(self.config.listen, name))
        try:
            plain = await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG)
        except OSError as error:
            where = f"listener {name} at {address.host}:{address.port}"
            raise OSError(error.errno, f"{where}: {error.strerror}") from error
        context = None if name in ("ops", "http") else self._tls(name)
        if context is None:
            return list(plain)
        return [trio.SSLListener(listener, context) for listener in plain]

    def _tls(self, name: str) -> ssl.SSLContext | None:
        tls = self.config.tls.get(name)  # type: ignore[call-overload]
        if tls is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.config.file(tls.cert), self.config.file(tls.key))
        if tls.client_ca:
            context.load_verify_locations(self.config.file(tls.client_ca))
            optional = tls.client_cert == "optional"
            context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
        return context

    def _terminal_key(self, number: str, version: int) -> PeerKey | None:
        registry = self.node.registry
        terminal = registry.terminal(number)
        network = registry.network(number[:4] if terminal is None else terminal.network)
        served = network is not None and not network.disabled
        return self._peer_key(terminal, "terminal", number, version, served)

    def _network_key(self, number: str, version: int) -> PeerKey | None:
        network = self.node.registry.network(number)
        return self._peer_key(network, "network", number, version, True)

    def _peer_key(
        self, peer: Terminal | Network | None, role: str, number: str, version: int, served: bool
    ) -> PeerKey | None:
        """The peer's key, or None. The same steps whatever is missing, and some key is unsealed in
        any case, so that a clock does not tell which numbers and versions there are."""
        keys = [] if peer is None else [key for key in peer.keys if key.version == version]
        record = keys[0] if keys else self._nobodys_key
        lasts = record.until_ns == 0 or self.node.clock.wall_ns() < record.until_ns
        known = record is not self._nobodys_key
        good = known and lasts and served and peer is not None and not peer.disabled
        owner = f"{role}:{number}:{version}"
        if not good:
            record, owner = self._nobodys_key, NOBODY
        opened = self.node.master.open(record.sealed, purpose="peer-keys", owner=owner)
        key = PeerKey(opened, record.algorithm)
        return key if good else None

    def _terminal_request(self, step: Any, peer: Peer, message: Any) -> None:
        terminal = self.node.registry.terminal(peer.name)
        assert terminal is not None, "a signed-on terminal is registered"
        self.node.terminal_request(step, terminal, message, peer)

    def _network_request(self, step: Any, peer: Peer, message: Any) -> None:
        self.node.network_request(step, peer.name, message, peer)

    # ---- lasting tasks

    async def _gate(self) -> None:
        """Wake once for each piece of durable progress; answers leave from here."""
        journal = self.node.store.journal
        while True:
            await trio.lowlevel.wait_readable(journal.fileno())
            self.node.on_durable()

    async def _settle(self) -> None:
        """Once after the turns of each pass: a woken task runs behind all that are ready now."""
        node = self.node
        while True:
            await node.turned.wait()
            node.turned = trio.Event()
            node.settle()

    async def _timers(self) -> None:
        while True:
            due_ns = self.node.next_deadline_ns()
            pause_s = TIMER_PAUSE_S
            if due_ns is not None:
                pause_s = min(max((due_ns - self.node.clock.mono_ns()) / 1e9, 0.0), TIMER_PAUSE_S)
            await trio.sleep(pause_s)
            while self.node.run_due():
                await trio.lowlevel.checkpoint()
                await self.node.room()

    async def _ops(self, listener: Any, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        journal = self.node.store.journal
        metrics = Metrics()
        metrics.add_process()
        metrics.add_loop(self._loop_clock)
        add_node_metrics(metrics, self.node, self._drivers)
        add_link_metrics(metrics, self.remotes, self._hosts)
        add_mount_metrics(metrics, self._http_counts, self.products)
        for product in self.products:
            product.measure(metrics)
        health = Health(
            journal_failure=lambda: journal.failure,
            recovered=lambda: True,
            listeners_open=lambda: self.listening,
            journal_room_bytes=lambda: journal.room_bytes,
            room_bytes_min=self.node.store.open_bytes_max,
            draining=lambda: self.draining,
            ways_down=lambda: self.remotes.ways_down,
        )
        await serve_http(
            ops_app(metrics, health), listener, stop=self._ops_stop, task_status=task_status
        )

    async def _run_products(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for product in self.products:
                await nursery.start(product.service.run)
            task_status.started()
        self._products_ended.set()

    async def _http(self, listener: Any, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        settings = self.config.http
        limits = HttpLimits(
            connections_max=settings.connections_max, body_bytes_max=settings.body_bytes_max,
            header_bytes_max=settings.header_bytes_max, request_s=settings.request_s,
            idle_s=settings.idle_s, drain_s=float(self.config.session.drain_s),
        )  # fmt: skip
        await serve_http(
            Mounts([mount for product in self.products for mount in product.mounts]), listener,
            stop=self._http_stop, limits=limits, counts=self._http_counts, tls=self._tls("http"),
            task_status=task_status,
        )  # fmt: skip

    async def _projector(self) -> None:
        # It is told whose child it is: a node killed while it starts would leave it behind.
        way = WAYS[self.config.node.followers]
        await self._follower(way, "project", "--follow", "--parent", str(os.getpid()))

    async def _snapshots(self) -> None:
        """Make a snapshot in another process whenever the journal has grown enough."""
        journal = self.node.store.journal
        # Growth counts from the last snapshot on, not from the start of this process.
        last = journal.written_bytes - self.node.store.recovery.journal_bytes
        while True:
            await trio.sleep(SNAPSHOT_CHECK_S)
            if journal.written_bytes - last >= self.config.journal.snapshot_every_bytes:
                last = journal.written_bytes
                await self._follower(WAYS["nice"], "snapshot", "--json")

    async def _follower(self, way: tuple[str, ...], *arguments: str) -> None:
        """Run one of our own commands behind all others; its end is never the node's end."""
        command = [*self._anywhere, *way, *FOLLOWER, *arguments, "-c", str(self.config.path)]
        pause_s = FOLLOWER_PAUSE_S
        while not self.stop.is_set():
            process = await trio.run_process(
                command, check=False, stdin=b"", stdout=subprocess.DEVNULL, stderr=sys.stderr
            )
            if process.returncode == 0:
                return
            log.warning("follower_failed", command=arguments[0], returncode=process.returncode)
            # On a full disk each try would only take what the journal needs.
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, FOLLOWER_PAUSE_S_MAX)

    async def _drain(self) -> None:
        for driver in self._drivers.values():
            driver.finish()
        self._http_stop.set()
        for product in self.products:
            product.service.stop()
        until_s = trio.current_time() + self.config.session.drain_s
        with trio.move_on_at(until_s):
            async with trio.open_nursery() as nursery:
                for driver in self._drivers.values():
                    nursery.start_soon(driver.finished)
                nursery.start_soon(self._products_ended.wait)
        # What they were waiting for came over the links, so these end after them.
        await self.remotes.stop(max(until_s - trio.current_time(), 0.0))

    # ---- for operators

    def _links(self, step: Any, values: dict[str, Any]) -> list[dict[str, Any]]:
        return self.remotes.snapshot()

    def _explain(self, step: Any, values: dict[str, Any]) -> list[dict[str, Any]]:
        name = str(values.get("name", ""))
        found = self.remotes.explain(name)
        if found is None:
            raise ProvisioningError(f"there is no link {name}", "see `troncal links`")
        return found

    def _reload(self, step: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"changes": msgspec.to_builtins(self.reload(step))}

    def hang_up(self) -> None:
        """SIGHUP: reload, and tell in the log what came of it."""
        if not self.listening:
            return  # what was read at the start is hardly older
        step = self.node.begin()
        try:
            self.reload(step)
        except ConfigError as error:
            for mistake in error.lines():
                log.error("reload_refused", mistake=mistake)
        self.node.end(step)

    def reload(self, step: Step) -> list[Change]:
        """Read the configuration again; all of it is in force from the next step on.

        Raises:
            ConfigError: mistakes, or changes that need a restart; nothing was applied.
        """
        hosts = {h.name: h.connect for h in self.node.registry.all(Host) if isinstance(h, Host)}
        config, plan = check(self.config, hosts, self.remotes.links.keys())
        if config.node.log_level != self.config.node.log_level:
            logs.configure(config.node.log_level)
        self.config = config
        self.node.reconfigure(config)
        self.remotes.reconfigure(plan)
        for driver in self._drivers.values():
            driver.reconfigure(config.session)
        keys = [change.key for change in plan.changes]
        step.audit("operator", "reload", f"config:{config.path.name}", "00", " ".join(keys)[:400])
        log.info("reloaded", changes=keys)
        return plan.changes

    def _changed(self, entity: Entity) -> None:
        """An operator has changed something in the registry; durable already."""
        self.remotes.changed(entity)
        terminals, networks = self._drivers.get("terminals"), self._drivers.get("sicoop")
        match entity:
            case Terminal(disabled=True) if terminals is not None:
                terminals.bar(lambda number: number == entity.number)
            case Network(disabled=True):
                if networks is not None:
                    networks.bar(lambda number: number == entity.number)
                if terminals is not None:
                    terminals.bar(self._is_of(entity.number))

    def _is_of(self, network: str) -> Callable[[str], bool]:
        """Return whether a terminal, by its number, is of a network."""

        def is_of(number: str) -> bool:
            terminal = self.node.registry.terminal(number)
            return terminal is not None and terminal.network == network

        return is_of


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files to what the connections need, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("few_files", limit=most, wanted=wanted)


def _addresses(listeners: list[Any]) -> list[Any]:
    """Host and port of the first listener of a name."""
    first = listeners[0]
    plain: Any = first.transport_listener if isinstance(first, trio.SSLListener) else first
    name = plain.socket.getsockname()
    assert plain.socket.family in (socket.AF_INET, socket.AF_INET6)
    return [name[0], name[1]]
