"""What a node shows to its monitoring, by name."""

from collections.abc import Mapping, Sequence

from core_ext import Journal
from core_ext._relay import Relay
from core_ext._straight import Straight
from switch.flows import operations as ops
from switch.flows.registry import Network
from switch.journal import snapshot
from switch.net.driver import Driver
from switch.net.hosts import HostListener
from switch.node import Node
from switch.ops.metrics import Metrics
from switch.products import Product
from switch.remotes import Remotes
from switch.web.edge import HttpCounts


def add_node_metrics(metrics: Metrics, node: Node, drivers: Mapping[str, Driver]) -> None:
    """Add everything about a node's traffic, journal, ledger and networks."""
    ledger, records = node.store.ledger, node.store.records
    metrics.add_counters("node", node.counters, "Events of the node.")
    metrics.add_counter(
        "answers", "Answers by response code.",
        lambda: {(code,): count for code, count in node.codes.items()}, ("code",),
    )  # fmt: skip
    metrics.add_counter(
        "alarms", "Alarms raised since the start.",
        lambda: {(name,): count for name, count in node.alarms.items()}, ("name",),
    )  # fmt: skip
    metrics.add_counter(
        "holder_questions_refused", "Who a holder is, asked by tills locked for asking in vain.",
        lambda: node.red.probing.refused,
    )  # fmt: skip
    metrics.add_gauge(
        "connections", "Open connections by listener.",
        lambda: {(name,): len(driver.peers) for name, driver in drivers.items()}, ("listener",),
    )  # fmt: skip
    metrics.add_counter(
        "connections_accepted", "Connections accepted by listener.",
        lambda: {(name,): driver.accepted for name, driver in drivers.items()}, ("listener",),
    )  # fmt: skip
    metrics.add_counter(
        "sign_ons_refused", "Refused sign-ons by listener.",
        lambda: {(name,): driver.sign_ons_refused for name, driver in drivers.items()},
        ("listener",),
    )  # fmt: skip
    metrics.add_gauge(
        "answers_held", "Answers that wait for durability.",
        lambda: len(node.gate) + node.lanes.held,
    )  # fmt: skip
    _add_straight_metrics(metrics, node.straight.core, node.relay)
    metrics.add_histogram(
        "answer", "From the request read to its answer let out, durable.", node.latency
    )
    _add_journal_metrics(metrics, node.store.journal)
    metrics.add_gauge(
        "recovery_seconds", "Length of the last recovery.", lambda: node.store.recovery.seconds
    )
    metrics.add_gauge(
        "ledger_entries", "Entries of the ledger by kind.",
        lambda: {(name,): count for name, count in ledger.counts().items()}, ("kind",),
    )  # fmt: skip
    metrics.add_gauge(
        "operations_open", "Operations without outcome, by role.", lambda: _open(node), ("role",)
    )
    metrics.add_gauge(
        "table_used_ratio", "Tables against their maximum.", lambda: _used(node), ("table",)
    )
    metrics.add_gauge(
        "snapshot_age_seconds", "Age of the newest snapshot; 0: none yet.",
        lambda: snapshot.age_s(node.store.directory, node.clock.wall_ns()),
    )  # fmt: skip
    metrics.add_gauge("records_bytes", "Memory of the record store.", lambda: records.bytes_used)
    metrics.add_gauge(
        "ledger_imbalance", "Sum of debits less credits; 0 at all times.",
        lambda: {(name,): value for name, value in node.money_check().items()}, ("ledger",),
    )  # fmt: skip
    metrics.add_gauge(
        "position_ratio", "Use of the net debit cap by network, 1.0 is full.",
        lambda: position_ratios(node), ("network",),
    )  # fmt: skip


def _add_straight_metrics(metrics: Metrics, core: Straight, relay: Relay) -> None:
    metrics.add_counter(
        "forwarded", "Operations passed on natively, and left to the flows for what reason.",
        lambda: {
            (kind, why): count
            for kind, counts in relay.counts.items()
            for why, count in counts.items()
        },
        ("kind", "way"),
    )  # fmt: skip
    metrics.add_gauge("forwarding", "Operations on their way natively.", lambda: relay.count)
    metrics.add_counter(
        "cash_outs", "cash_outs decided natively, and left to the flows for what reason.",
        lambda: {(why,): count for why, count in core.counts.items()}, ("way",),
    )  # fmt: skip
    metrics.add_counter(
        "deposits", "deposits decided natively, and left to the flows for what reason.",
        lambda: {(why,): count for why, count in core.deposit_counts.items()}, ("way",),
    )  # fmt: skip


def _add_journal_metrics(metrics: Metrics, journal: Journal) -> None:
    metrics.add_counter("journal_records", "Durable records.", lambda: journal.durable_seq)
    metrics.add_counter("journal_groups", "Durable groups.", lambda: journal.groups)
    metrics.add_counter("journal_bytes", "Bytes written.", lambda: journal.written_bytes)
    metrics.add_gauge("journal_room_bytes", "Room for new work.", lambda: journal.room_bytes)
    metrics.add_gauge("journal_failed", "1 once it failed.", lambda: int(bool(journal.failure)))
    metrics.add_gauge("journal_direct", "1 with O_DIRECT.", lambda: int(journal.direct))


def add_link_metrics(metrics: Metrics, remotes: Remotes, hosts: Mapping[str, HostListener]) -> None:
    """Add what goes on between this node and hosts, and roles in other processes."""
    metrics.add_gauge(
        "link_up", "1 while requests can be sent over a link.",
        lambda: {(name,): int(link.up) for name, link in remotes.ways()}, ("link",),
    )  # fmt: skip
    metrics.add_gauge(
        "link_in_flight", "Requests of ours that wait for their answers.",
        lambda: {(name,): link.in_flight for name, link in remotes.ways()}, ("link",),
    )  # fmt: skip
    metrics.add_gauge(
        "link_queue", "Requests of ours that wait for room.",
        lambda: {(name,): link.queued for name, link in remotes.ways()}, ("link",),
    )  # fmt: skip
    metrics.add_counter(
        "link_events",
        "Events of a link.",
        lambda: {
            (name, what): count
            for name, link in remotes.ways()
            for what, count in link.counters.as_dict().items()
        },
        ("link", "what"),
    )
    metrics.add_histograms(
        "link_answer", "From a request of ours sent to its answer.",
        lambda: {name: link.latency for name, link in remotes.ways()}, "link",
    )  # fmt: skip
    metrics.add_gauge(
        "link_owed", "Operations that something is owed for, to be sent until it is answered.",
        lambda: {(name,): debts.depth for name, debts in remotes.debts.items()}, ("link",),
    )  # fmt: skip
    metrics.add_gauge(
        "link_owed_stuck", "Of these, those whose quick attempts are used up.",
        lambda: {(name,): debts.stuck for name, debts in remotes.debts.items()}, ("link",),
    )  # fmt: skip
    metrics.add_gauge(
        "link_owed_oldest_seconds", "Age of the oldest of them.",
        lambda: {(name,): age_s for name, age_s in remotes.owed_ages()}, ("link",),
    )  # fmt: skip
    metrics.add_gauge(
        "link_certificate_expires_seconds",
        "Until the first certificate of a link expires; no series without TLS.",
        lambda: {
            (name,): left_s
            for name, link in remotes.ways()
            if (left_s := link.certificate_expires_s()) is not None
        },
        ("link",),
    )
    metrics.add_counter(
        "host_connections_refused", "Connections of hosts that no key knew, or one too many.",
        lambda: {(name,): listener.refused for name, listener in hosts.items()}, ("listener",),
    )  # fmt: skip


def _open(node: Node) -> dict[tuple[str, ...], float]:
    count = node.store.records.open_count
    spaces = {
        "red": ops.RED_OPERATIONS, "sicoop": ops.SICOOP_OPERATIONS, "ceibo": ops.CEIBO_HOLDS,
    }  # fmt: skip
    return {(role,): count(space) for role, space in spaces.items()}


def _used(node: Node) -> dict[tuple[str, ...], float]:
    counts, sizes = node.store.ledger.counts(), node.config.ledger
    return {
        ("accounts",): counts["accounts"] / sizes.accounts_max,
        ("holds",): counts["holds"] / sizes.holds_max,
        ("keys",): counts["keys"] / sizes.keys_max,
        ("records",): node.store.records.bytes_used / sizes.records_bytes_max,
    }


def position_ratios(node: Node) -> dict[tuple[str, ...], float]:
    """How much of its net debit cap each network uses."""
    ratios: dict[tuple[str, ...], float] = {}
    for network in node.registry.all(Network):
        assert isinstance(network, Network)
        balance = node.sicoop.position(network)
        if balance is not None and network.net_debit_cap:
            used = balance.debits_posted - balance.credits_posted + balance.debits_pending
            ratios[(network.number,)] = used / network.net_debit_cap
    return ratios


def add_mount_metrics(metrics: Metrics, counts: HttpCounts, products: Sequence[Product]) -> None:
    """Add the public HTTP listener, and each product's part of it."""
    mounts = [mount for product in products for mount in product.mounts]
    if not mounts:
        return
    metrics.add_gauge("http_connections", "Open HTTP connections.", lambda: counts.connections)
    metrics.add_counter(
        "http_events", "What the HTTP listener has seen.",
        lambda: {
            (what,): getattr(counts, what)
            for what in ("accepted", "refused", "requests", "too_large", "timeouts", "failures")
        },
        ("event",),
    )  # fmt: skip
    metrics.add_counter(
        "http_mount_events", "What each product's part of it has seen.",
        lambda: {
            (mount.name, what): getattr(mount.counts, what)
            for mount in mounts
            for what in ("requests", "refused", "too_large", "timeouts")
        },
        ("mount", "event"),
    )  # fmt: skip
