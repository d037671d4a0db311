"""What ties this node to roles in other processes: ports of the flows, links, host listeners.

Which there are follows from the roles played here and from the registry:

    sicoop without ceibo      a link to each issuer; sicoop's port on it
    red without sicoop        sessions with the platform, for each network; red's port on them
    ceibo                     a listener for hosts; a desk and a link for each of them

`prepare` makes the ports before what a stop left open is finished, so that debts are found again;
`run` keeps the links up. Nothing here ever waits for a link before the node serves.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from core_ext._desk import HostLane
from protocols.iso8583.connection import Connection, Event, KeyChanged, SignedOn
from protocols.iso8583.dialect import Dialect, Framing
from protocols.iso8583.keys import HostKeys
from protocols.session import PeerKey
from switch.config import (
    Config,
    ConfigError,
    LinkSettings,
    Mistake,
    check_hosts,
    link_addresses,
    parse_address,
)
from switch.flows.bank_port import BankPort
from switch.flows.ceibo import SICOOP
from switch.flows.issuer_desk import IssuerDesk
from switch.flows.issuer_port import IssuerPort
from switch.flows.nonces import NonceBook
from switch.flows.platform_port import PlatformPort
from switch.flows.registry import OWN_DIALECT, Entity, Host, Network, PeerKeyRecord
from switch.flows.step import Step
from switch.net.hosts import HostListener
from switch.net.line import Line
from switch.net.link import Link
from switch.net.platform import PlatformLink
from switch.net.pump import Pump
from switch.net.saf import StoreAndForward
from switch.node import Node
from switch.ops.host_keys import host_keys, is_over, key_sets, open_key
from switch.ops.logs import logger
from switch.provisioning import KEY_OVERLAP_NS
from switch.reload import Plan
from switch.routing import Router
from switch.simulators.issuer import MagicDesk

log = logger("remotes")

CASHIER_OPERATIONS = frozenset(("cash_out", "deposit", "holder"))
KEYS_MAX = 8  # versions of one kind that are kept for a host
KEYS_CHECK_S = 60.0  # keys run out, and new ones come into use, within this of their time


class Remotes:
    """The remote side of one node. `run` is its task, once `prepare` has been called."""

    def __init__(self, node: Node, pump: Pump) -> None:
        self._node = node
        self._pump = pump
        self.links: dict[str, Link] = {}
        self.platforms: dict[str, PlatformLink] = {}
        self.debts: dict[str, StoreAndForward] = {}
        self._keys: dict[str, HostKeys] = {}
        self._desks: dict[str, IssuerDesk] = {}
        self._issuer_ports: dict[str, IssuerPort] = {}
        self._banks: dict[str, BankPort] = {}
        self._running: dict[str, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = False

    # ---- making

    def prepare(self) -> None:
        """Make ports and links from the registry; called with the state recovered.

        Raises:
            ConfigError: a host that is configured and not in the registry, with its line.
            OSError, ValueError: certificates, keys or dialects that cannot be read.
        """
        config, registry = self._node.config, self._node.registry
        hosts = {h.name: h for h in registry.all(Host) if isinstance(h, Host)}
        check_hosts(config, {name: host.connect for name, host in hosts.items()})
        roles = config.node.roles
        if "sicoop" in roles:
            self._make_router(config)
            # What went to an issuer is concluded there, whatever the routes say now.
            begun = [o.issuer for o in self._node.sicoop.unfinished() if o.issuer in hosts]
            for name in dict.fromkeys((*self._issuers(config), *begun)):
                self._make_issuer(hosts[name])
        if self._has_platform:
            for network in registry.all(Network):
                assert isinstance(network, Network)
                self._make_platform(network)
        if "ceibo" in roles:
            for host in hosts.values():
                if self._is_client(host):
                    self._make_desk(host)

    @property
    def _has_platform(self) -> bool:
        """red's platform is in another process, and its address is known."""
        config = self._node.config
        roles = config.node.roles
        return "red" in roles and "sicoop" not in roles and bool(config.platform.connect)

    def _issuers(self, config: Config) -> list[str]:
        """Links that operations of cashiers may go to, or have gone to."""
        found = []
        if "ceibo" not in config.node.roles:
            known = {name: self._node.registry.host(name) for name in config.links}
            found = [config.issuer.link, *(n for n, host in known.items() if _is_own(host))]
        for route in config.routes:
            if not route.operations or CASHIER_OPERATIONS & set(route.operations):
                found += route.to
        return list(dict.fromkeys(found))

    def _is_client(self, host: Host) -> bool:
        """True for a host that ceibo serves: it dials us, or we dial it to be asked."""
        config = self._node.config
        issuers = self._issuers(config) if "sicoop" in config.node.roles else ()
        return _is_own(host) and not host.disabled and host.name not in issuers

    def _make_router(self, config: Config) -> None:
        default = () if "ceibo" in config.node.roles else (config.issuer.link,)
        self._node.issuers.router = Router(config.routes, default) if config.routes else None

    def _make_issuer(self, host: Host) -> None:
        node = self._node
        name, settings = host.name, self._settings(host)
        debts = self.debts[name] = StoreAndForward(window=settings.max_in_flight)
        keys = self._host_keys(host)
        port = IssuerPort(
            name=name,
            node=node,
            sicoop=node.sicoop,
            debts=debts,
            nonces=NonceBook(name, node.store.records, keys),
            calendar=node.calendar,
            budgets=node.config.budgets,
            answer_s=settings.answer_s,
            events=self._on_event,
        )
        self._issuer_ports[name] = port
        if not host.disabled:
            port.attach(self._make_link(host, settings, keys, port))
        node.issuers.ports[name] = port

    def _make_desk(self, host: Host) -> None:
        node = self._node
        settings = self._settings(host)
        keys = self._host_keys(host)
        # With `simulator = true` ceibo mistreats what documents say, whoever asks.
        simulator = node.config.node.simulator
        desk = (partial(MagicDesk, node.later) if simulator else IssuerDesk)(
            link=host.name,
            node=node,
            ceibo=node.ceibo,
            fingerprint=node.fingerprint,
            keys=keys,
            settings=settings,
            events=self._on_event,
        )
        desk.work_s = node.config.budgets.ceibo_s
        desk.attach(self._make_link(host, settings, keys, desk))
        node.desks[host.name] = self._desks[host.name] = desk

    def bank(self, name: str) -> BankPort:
        """The way to a bank of the registry, made at its first use, by products.

        Raises:
            LookupError: there is no such host, or its link is something else already.
        """
        port = self._banks.get(name)
        if port is not None:
            return port
        node, host = self._node, self._node.registry.host(name)
        if host is None or host.is_own or name in self._keys:
            raise LookupError(name)
        settings = self._settings(host)
        debts = self.debts[name] = StoreAndForward(window=settings.max_in_flight)
        port = self._banks[name] = BankPort(
            name=name, node=node, debts=debts, settings=settings, events=self._on_event
        )
        keys = self._host_keys(host)
        if not host.disabled:
            link = self._make_link(host, settings, keys, port)
            port.attach(link)
            self._start(partial(self._run_link, link))  # before `run`, that starts all of them
        node.banks[name] = port
        return port

    def _make_link(self, host: Host, settings: LinkSettings, keys: HostKeys, handler: Any) -> Link:
        dialect, framing = _layout(self._node.config.dialect(host.dialect), settings)
        link: Link

        def connection(initiator: bool) -> Connection:
            return Connection(
                dialect,
                framing,
                keys,
                initiator=initiator,
                wall_ns=self._node.clock.wall_ns,
                next_stan=lambda: link.next_stan(),
                frame_bytes_max=self._node.config.session.frame_bytes_max,
            )

        link = Link(
            host.name, settings, connection, self._node, handler, pump=self._pump,
            make_lane=partial(self._lane, host, settings, keys, dialect, framing),
        )  # fmt: skip
        self.links[host.name] = link
        return link

    def _lane(
        self, host: Host, settings: LinkSettings, keys: HostKeys, dialect: Dialect,
        framing: Framing, line: Line,
    ) -> HostLane | None:  # fmt: skip
        """The native short way of sicoop's connections to the issuer of this process."""
        node = self._node
        common = host.name == SICOOP and host.name in self._desks and host.dialect == OWN_DIALECT
        native = node.config.node.straight_through and not node.config.node.simulator
        if not common or not native or framing != Framing():
            return None
        if not keys.signs or not keys.data_keys:
            return None
        return node.straight.host_lane(
            line, line.fd, layout=dialect, key=keys.signing_key(), data_key=keys.data_keys[0],
            link=host.name, clock_tolerance_s=settings.clock_tolerance_s,
        )  # fmt: skip

    def _make_platform(self, network: Network) -> None:
        node = self._node
        number = network.number
        debts = self.debts[f"platform-{number}"] = StoreAndForward(
            window=node.config.session.max_in_flight
        )
        port = PlatformPort(
            number, node=node, red=node.red, debts=debts, budgets=node.config.budgets
        )
        link = PlatformLink(
            number,
            node.config.platform,
            node,
            port,
            keys=lambda: self._network_keys(number),
            pump=self._pump,
            relay=node.relay,
        )
        port.attach(link)
        node.platforms.ports[number] = port
        self.platforms[number] = link

    def _settings(self, host: Host) -> LinkSettings:
        settings = self._node.config.link(host.name)
        connect = link_addresses(settings, host.connect)
        return msgspec.structs.replace(settings, connect=connect)

    # ---- keys

    def _host_keys(self, host: Host) -> HostKeys:
        """The host's keys, as one object for as long as the node runs."""
        keys = host_keys(self._node.master, host, self._node.clock.wall_ns())
        self._keys[host.name] = keys
        return keys

    def _network_keys(self, number: str) -> Sequence[tuple[int, PeerKey]]:
        network = self._node.registry.network(number)
        if network is None or network.disabled:
            return ()
        now_ns = self._node.clock.wall_ns()
        return [
            (
                r.version,
                PeerKey(
                    self._node.master.open(
                        r.sealed, purpose="peer-keys", owner=f"network:{number}:{r.version}"
                    ),
                    r.algorithm,
                ),
            )
            for r in reversed(network.keys)
            if not is_over(r, now_ns)
        ]

    def _on_event(self, step: Step, name: str, event: Event) -> None:
        """A key that came over its link is stored before the host is told that we have it."""
        if isinstance(event, SignedOn):
            self._note_proved(name)
            return
        if isinstance(event, KeyChanged) and not event.ours:
            self._store_key(step, name, event)
        what = type(event).__name__
        step.audit(f"host:{name}", "network_management", name, what, security=True)
        log.info("network_management", link=name, what=what)

    def _store_key(self, step: Step, name: str, event: KeyChanged) -> None:
        """Keep a key of an exchange; one that is here already was sent again for its answer."""
        host = self._node.registry.host(name)
        assert host is not None, "a link has its host"
        records = dict(key_sets(host))[event.kind]
        master = self._node.master
        if any(open_key(master, name, event.kind, r) == event.key for r in records):
            return
        version = records[-1].version + 1
        owner = f"host:{name}:{event.kind}:{version}"
        sealed = master.seal(event.key, purpose="peer-keys", owner=owner)
        for old in records:
            old.until_ns = old.until_ns or step.now_ns + KEY_OVERLAP_NS
        good = [record for record in records if not is_over(record, step.now_ns)]
        new = PeerKeyRecord(version, sealed, host.mac, step.now_ns)
        records[:] = [*good[1 - KEYS_MAX :], new]
        self._node.registry.put(host)

    def _note_proved(self, name: str) -> None:
        """Note, once, that a host has our keys: from now on a new one is used after an overlap."""
        host = self._node.registry.host(name)
        if host is not None and not host.proved:
            host.proved = True
            self._node.registry.put(host)

    # ---- running

    def addresses(self) -> list[str]:
        """Listeners beside `ceibo` that hosts have for themselves, as HOST:PORT."""
        return sorted({host.listen for host in self._inbound() if host.listen})

    def check_listeners(self) -> None:
        """Check the listeners of hosts that dial us; called once all links are made.

        A listener reads with one dialect, since whose connection it is turns out by what is read;
        and outside loopback it needs TLS, as every listener.

        Raises:
            ConfigError: with every mistake found.
        """
        config, found = self._node.config, []
        for address in sorted({host.listen for host in self._inbound()}):
            hosts = self._inbound(address)
            layouts = {(h.dialect, str(self._settings(h).framing)) for h in hosts}
            for host in hosts:
                if host.is_own or (address and len(layouts) == 1):
                    continue
                found.append(
                    Mistake(
                        0, f"host {host.name}", "dials us, and its dialect needs a listener apart",
                        f"troncal host change {host.name} --listen HOST:PORT, or --connect",
                    )
                )  # fmt: skip
            secure = "ceibo" in config.tls or config.node.plaintext
            if address and not secure and not parse_address(address).loopback:
                hint = "add [tls.ceibo], or node.plaintext = true where the network is trusted"
                what = "listens outside loopback, and there is no TLS"
                found += [Mistake(0, f"host {host.name}", what, hint) for host in hosts]
        if found:
            raise ConfigError(config.path, found)
        for entity in self._node.registry.all(Host):
            assert isinstance(entity, Host)
            if entity.listen and not entity.disabled and entity.name not in self.links:
                log.warning("host_without_use", host=entity.name, listen=entity.listen)

    def listener(self, address: str = "") -> HostListener:
        """The listener of the hosts that dial `address`; "" is the `ceibo` listener's own."""
        config = self._node.config

        def hosts() -> list[tuple[HostKeys, Link]]:
            return [(self._keys[h.name], self.links[h.name]) for h in self._inbound(address)]

        def connection(candidates: list[HostKeys]) -> Connection:
            first = self._inbound(address)[0]
            dialect, framing = _layout(config.dialect(first.dialect), self._settings(first))
            return Connection(
                dialect,
                framing,
                candidates,
                initiator=False,
                wall_ns=self._node.clock.wall_ns,
                next_stan=self.links[first.name].next_stan,
                frame_bytes_max=config.session.frame_bytes_max,
            )

        return HostListener(
            address or "ceibo",
            connection,
            hosts,
            self._stranger,
            sign_on_s=config.session.sign_on_s,
            connections_max=config.session.connections_max,
        )

    def _stranger(self, address: str, reason: str) -> None:
        """Somebody dialled whose messages no key verifies."""
        step = self._node.begin()
        step.alarm("unknown_host", address, reason)
        self._node.end(step)

    def _inbound(self, address: str | None = None) -> list[Host]:
        """Hosts that dial us, all or those of one listener, the same at every call."""
        hosts = [self._node.registry.host(name) for name in sorted(self.links)]
        return [
            host
            for host in hosts
            if host is not None
            and not self.links[host.name].settings.connect
            and (address is None or host.listen == address)
        ]

    @property
    def ways_down(self) -> list[str]:
        """Roles that cannot be reached at all, so that new operations are refused."""
        down = []
        roles, ports = self._node.config.node.roles, self._node.issuers.ports
        apart = "red" in roles and "sicoop" not in roles
        if apart and not any(p.up for p in self.platforms.values()):
            down.append("sicoop")
        if "sicoop" in roles and "ceibo" not in roles and not any(p.up for p in ports.values()):
            down.append("ceibo")
        return down

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep links up and keys in force until cancelled, or all has ended after `stop`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for link in self.links.values():
                nursery.start_soon(self._run_link, link)
            for platform in self.platforms.values():
                nursery.start_soon(platform.run)
            task_status.started()
            while not self._stopping:
                await trio.sleep(KEYS_CHECK_S)
                for name in self._keys:
                    host = self._node.registry.host(name)
                    if host is not None:
                        self._refresh_keys(host)
                for link in self.links.values():
                    link.rekey_lanes()

    async def stop(self, drain_s: float) -> None:
        """Take no more requests, let those in flight end, sign off; at most `drain_s`."""
        self._stopping = True
        node = self._node
        for issuer in node.issuers.ports.values():
            issuer.stopping = True
        for platform in node.platforms.ports.values():
            platform.stopping = True
        for desk in self._desks.values():
            desk.stopping = True
        with trio.move_on_after(drain_s):
            async with trio.open_nursery() as nursery:
                for way in self.platforms.values():
                    nursery.start_soon(way.close)
                for link in self.links.values():
                    nursery.start_soon(self._end, link)

    async def _end(self, link: Link) -> None:
        link.stop()
        if link.name in self._running:
            await self._running[link.name].wait()

    async def _run_link(self, link: Link) -> None:
        ended = self._running[link.name] = trio.Event()
        try:
            await link.run()
        finally:
            ended.set()

    def changed(self, entity: Entity) -> None:
        """An operator has changed something in the registry; durable already."""
        roles = self._node.config.node.roles
        if isinstance(entity, Host):
            if entity.name in self._keys:
                self._refresh_keys(entity)
                if entity.name in self._desks and entity.disabled:
                    self._drop(entity.name)
                elif entity.name in self._issuer_ports or entity.name in self._banks:
                    self._switch_issuer(entity)
            elif "ceibo" in roles and self._is_client(entity):
                self._make_desk(entity)
                self._start(partial(self._run_link, self.links[entity.name]))
        elif (
            isinstance(entity, Network)
            and self._has_platform
            and (entity.number not in self.platforms)
        ):
            self._make_platform(entity)
            self._start(self.platforms[entity.number].run)

    def reconfigure(self, plan: Plan) -> None:
        """Take over what a reload has changed; the node has the new configuration already."""
        config = self._node.config
        if "sicoop" in config.node.roles:
            self._make_router(config)
            for name in self._issuers(config):
                host = self._node.registry.host(name)
                if name not in self._issuer_ports and host is not None:
                    self._make_issuer(host)
                    if name in self.links:
                        self._start(partial(self._run_link, self.links[name]))
            for name in list(self._issuer_ports):
                if name not in self._issuers(config):
                    self._retire(name)
        for name, port in self._node.issuers.ports.items():
            port.reconfigure(config.budgets, config.link(name).answer_s)
        for platform in self._node.platforms.ports.values():
            platform.reconfigure(config.budgets)
        for name in plan.links_changed:
            if name in self.links:
                self.links[name].reconfigure(config.link(name))
            if name in self._desks:
                self._desks[name].reconfigure(config.link(name))
            if name in self._banks:
                self._banks[name].settings = config.link(name)

    def _retire(self, name: str) -> None:
        """End an issuer's link that no operation goes to any more, unless it is still owed."""
        if any(operation.issuer == name for operation in self._node.sicoop.unfinished()):
            log.info("link_kept", link=name, owed=self.debts[name].depth)
            return
        del self._node.issuers.ports[name], self._issuer_ports[name]
        del self.debts[name], self._keys[name]
        if name in self.links:
            self.links.pop(name).stop()

    def _switch_issuer(self, host: Host) -> None:
        """End the link of an issuer that is disabled, or make a new one; what is owed stays."""
        name = host.name
        if host.disabled and name in self.links:
            self.links.pop(name).stop()
        elif not host.disabled and name not in self.links:
            port: IssuerPort | BankPort = self._banks.get(name) or self._issuer_ports[name]
            link = self._make_link(host, self._settings(host), self._keys[name], port)
            port.attach(link)
            self._start(partial(self._run_link, link))

    def _start(self, run: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None and not self._stopping:
            self._nursery.start_soon(run)

    def _drop(self, name: str) -> None:
        """A host that is disabled: its connections end, its holds stay."""
        del self._keys[name], self._desks[name], self._node.desks[name]
        self.links.pop(name).stop()

    def _refresh_keys(self, host: Host) -> None:
        """Bring keys in use to what the registry says: new ones, those whose time has come, and
        those that are over."""
        keys, now_ns = self._keys[host.name], self._node.clock.wall_ns()
        for purpose, records in key_sets(host):
            if purpose == "zone" or not keys.versions(purpose):
                continue  # a zone key is changed with a restart
            valid = [record for record in records if not is_over(record, now_ns)]
            for record in valid:
                pending = record.used_from_ns > now_ns
                if record.version not in keys.versions(purpose):
                    key = open_key(self._node.master, host.name, purpose, record)
                    keys.add(purpose, key, pending=pending, version=record.version)
                elif not pending:
                    keys.promote(purpose, record.version)
            # Only now: what ends is what the promoted one has taken the place of.
            for record in records:
                if valid and record not in valid and record.version in keys.versions(purpose):
                    keys.retire(purpose, record.version)

    # ---- for people

    def snapshot(self) -> list[dict[str, Any]]:
        """State, load, counts and debts of every link, for `troncal links` and the metrics."""
        now_ns = self._node.clock.mono_ns()
        found = []
        for name, link in self.links.items():
            found.append(link.snapshot() | self._owed(name, now_ns))
        for number, platform in self.platforms.items():
            name = f"platform-{number}"
            found.append({"link": name} | platform.snapshot() | self._owed(name, now_ns))
        return found

    def _owed(self, name: str, now_ns: int) -> dict[str, Any]:
        debts = self.debts.get(name)
        return {} if debts is None else {"saf": debts.snapshot(now_ns)}

    def ways(self) -> list[tuple[str, Link | PlatformLink]]:
        """Every link by its name."""
        platforms = [(f"platform-{number}", link) for number, link in self.platforms.items()]
        return [*self.links.items(), *platforms]

    def owed_ages(self) -> list[tuple[str, float]]:
        """For how long, in seconds, the oldest debt of each link has been owed."""
        now_ns = self._node.clock.mono_ns()
        return [
            (name, 0.0 if debts.oldest_ns is None else max(now_ns - debts.oldest_ns, 0) / 1e9)
            for name, debts in self.debts.items()
        ]

    def explain(self, name: str) -> list[dict[str, Any]] | None:
        """The last answers of a link that nobody waited for; None: there is no such link."""
        if name in self.links:
            return self.links[name].explain()
        platform = self.platforms.get(name.removeprefix("platform-"))
        return None if platform is None else list(reversed(platform.strays))


def _is_own(host: Host | None) -> bool:
    return host is not None and host.is_own


def _layout(source: str | Path, settings: LinkSettings) -> tuple[Dialect, Framing]:
    """How messages of a host are laid out and cut out of the stream."""
    dialect = Dialect.load(source)
    if settings.framing:
        return dialect, Framing.from_dict(settings.framing)
    return dialect, dialect.framing or Framing.from_dict({})
