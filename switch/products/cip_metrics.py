"""What the payment application shows to its monitoring."""

from collections.abc import Callable

from switch.ops.metrics import Metrics
from switch.products.cip_service import CipService


def measure(service: CipService) -> Callable[[Metrics], None]:
    """Return what adds the metrics of a service."""
    counts = service.flow.counts

    def add(metrics: Metrics) -> None:
        by_mode = ("application", "mode")
        metrics.add_counter(
            "cip_payments", "Payments by the status they came to.",
            lambda: counts.payments, (*by_mode, "status"),
        )  # fmt: skip
        metrics.add_histograms(
            "cip_step", "Time of each step of the text, people left out.",
            lambda: counts.steps.rows, *by_mode, "step",
        )  # fmt: skip
        metrics.add_histograms(
            "cip_total", "Time of all steps, people left out.",
            lambda: counts.totals.rows, *by_mode,
        )  # fmt: skip
        metrics.add_counter(
            "cip_budget_misses", "Payments above their time budget.",
            lambda: counts.misses, by_mode,
        )  # fmt: skip
        metrics.add_histograms(
            "cip_source", "Time until the source answered.",
            lambda: counts.sources.rows, "source", "outcome",
        )  # fmt: skip
        metrics.add_counter(
            "cip_inquiries", "Inquiries at sources.",
            lambda: counts.inquiries, ("source", "result"),
        )  # fmt: skip
        _add_work(metrics, service)
        _add_auth(metrics, service)

    return add


def _add_work(metrics: Metrics, service: CipService) -> None:
    """What is open, refused and sent."""
    flow, counts = service.flow, service.flow.counts
    metrics.add_counter("cip_replays", "Repeated requests.", lambda: counts.replays)
    metrics.add_counter("cip_conflicts", "References with other data.", lambda: counts.conflicts)
    metrics.add_gauge("cip_pending", "Payments of unknown outcome.", lambda: len(counts.pending))
    metrics.add_gauge(
        "cip_pending_oldest_seconds", "Age of the oldest of them.",
        lambda: _oldest_s(service),
    )  # fmt: skip
    metrics.add_gauge(
        "cip_sessions", "Open sessions.",
        lambda: {(kind,): n for kind, n in flow.sessions.open_by_kind.items()}, ("mode",),
    )  # fmt: skip
    metrics.add_counter(
        "cip_context_refused", "Contexts, signatures and addresses that were not taken.",
        lambda: {(reason,): n for reason, n in counts.refused.items()}, ("reason",),
    )  # fmt: skip
    metrics.add_counter(
        "cip_webhooks", "Attempts to tell a site, by how they ended.",
        lambda: {(result,): n for result, n in counts.webhooks.items()}, ("result",),
    )  # fmt: skip
    metrics.add_counter(
        "cip_report_runs", "Reports, by the states they came to.",
        lambda: {(state,): n for state, n in flow.reports.states.items()}, ("state",),
    )  # fmt: skip
    metrics.add_gauge(
        "cip_outbox", "What is owed to sites and sources, and reports to be handed over.",
        lambda: _owed(service), ("kind",),
    )  # fmt: skip


def _add_auth(metrics: Metrics, service: CipService) -> None:
    """Password checks."""
    auth = service.auth
    metrics.add_histograms(
        "cip_auth", "Time of a password check: in the queue, and hashing.",
        lambda: {"queue": auth.passwords.queue_ns, "hash": auth.passwords.hash_ns}, "stage",
    )  # fmt: skip
    metrics.add_counter(
        "cip_auth", "Password checks, by result.",
        lambda: {(result,): n for result, n in auth.results.items()}, ("result",),
    )  # fmt: skip
    metrics.add_gauge(
        "cip_auth_queue", "Passwords that wait or are being checked.",
        lambda: auth.passwords.waiting,
    )  # fmt: skip
    metrics.add_counter("cip_lockouts", "Users locked.", lambda: auth.lockouts)


def _owed(service: CipService) -> dict[tuple[str, ...], int]:
    flow = service.flow
    by_kind = {**flow.counts.owed, "report": sum(1 for _ in flow.reports.unfinished())}
    return {(kind,): number for kind, number in by_kind.items()}


def _oldest_s(service: CipService) -> float:
    pending = service.flow.counts.pending
    return max(service.now_ns() - min(pending.values()), 0) / 1e9 if pending else 0.0
