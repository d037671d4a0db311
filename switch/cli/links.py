"""Links of a running node, the rules of the way, and the configuration read again."""

import time
from datetime import datetime
from typing import Any

import click

from switch import routing
from switch.calendar import minutes_of
from switch.cli.base import Call, Command, Group, local_time, print_table
from switch.cli.provision import ask_node, node_answers
from switch.config import Config, check_hosts
from switch.flows.registry import Host, Registry
from switch.journal.store import State
from switch.routing import BIN_DIGITS, OPERATIONS, RouteKey, Router, week_minute

# ---- links


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def links(ctx: click.Context) -> None:
    """Show the links of a running node: state, load, latency, what went wrong."""
    if ctx.invoked_subcommand is not None:
        return
    call: Call = ctx.obj
    found = ask_node(call.config(), "links")
    call.answer(found, lambda: _print_links(found))


@links.command("explain")
@click.argument("name", required=False)
@click.pass_obj
def explain(call: Call, name: str | None) -> None:
    """Show the last answers of a link, or of all, that nobody waited for, the newest first.

    Each with what became of its request, or with the nearest request in flight and the elements in
    which they differ.
    """
    config = call.config()
    names = [link["link"] for link in ask_node(config, "links")] if name is None else [name]
    found = [
        {"link": link} | stray
        for link in names
        for stray in ask_node(config, "links_explain", name=link)
    ]
    call.answer(found, lambda: _print_strays(found))


def _print_links(found: list[dict[str, Any]]) -> None:
    print_table([_link_row(link) for link in found], empty="this node has no links")
    lines = [{"link": link["link"]} | line for link in found for line in link["connections"]]
    if lines:
        print_table(lines, "Connections")


def _link_row(link: dict[str, Any]) -> dict[str, Any]:
    """One line about a host's link, or about the sessions of a network with the platform."""
    counters, owed = link["counters"], link.get("saf", {})
    return {
        "link": link["link"],
        "state": link["state"],
        "in flight": link["in_flight"],
        "queue": link["queue"],
        "p50 ms": f"{link['latency_ms']['p50']:.1f}",
        "p99 ms": f"{link['latency_ms']['p99']:.1f}",
        "answers": counters["answers"],
        "time-outs": counters["timeouts"],
        "lost": counters["lost"],
        "late": counters["late"],
        "unmatched": counters["unmatched"],
        "bad MAC": counters.get("mac_failures", 0),
        "refused": counters["refused_down"] + counters["refused_full"],
        "owed": owed.get("depth", 0),
        "oldest s": f"{owed.get('oldest_s', 0.0):.0f}",
        "stuck": owed.get("stuck", 0),
    }


def _print_strays(found: list[dict[str, Any]]) -> None:
    rows = [
        {
            "link": stray["link"],
            "at": local_time(stray["at_ns"]) if "at_ns" in stray else stray["at"],
            "kind": stray.get("kind", stray.get("what")),
            "answer": stray["answer"],
            "code": stray.get("code"),
            "request": stray.get("request") or stray.get("nearest") or stray.get("reference"),
            "differs": stray.get("differs"),
            "after s": _seconds(stray.get("after_s", stray.get("nearest_after_s"))),
        }
        for stray in found
    ]
    print_table(rows, empty="every answer had its request")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# ---- routes


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def routes(ctx: click.Context) -> None:
    """Show the rules by which operations find their host, in their order."""
    if ctx.invoked_subcommand is not None:
        return
    call: Call = ctx.obj
    config = call.config()
    rows = [
        {"rule": number, "to": list(route.to), "when": routing.described(route)}
        for number, route in enumerate(config.routes, 1)
    ]
    rows.append({"rule": len(rows) + 1, "to": [config.issuer.link], "when": "no rule ([issuer])"})
    call.answer(rows, lambda: print_table(rows))


def _bin(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    if value and not (value.isascii() and value.isdigit() and len(value) == BIN_DIGITS):
        raise click.BadParameter(f"the first {BIN_DIGITS} digits of a card number")
    return value


def _at(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no local time, as 2026-11-20T22:15") from None


@routes.command("test")
@click.option("--operation", type=click.Choice(OPERATIONS), required=True)
@click.option("--network", default="", metavar="NNNN")
@click.option("--bin", "digits", default="", callback=_bin, metavar="DIGITS", help="Eight digits.")
@click.option("--bank", default="", metavar="CODE")
@click.option("--amount", type=click.IntRange(min=0), default=0, help="Minor units.")
@click.option("--currency", default="PYG", show_default=True)
@click.option("--at", callback=_at, metavar="TIME", help="Local time, ISO 8601; default: now.")
@click.pass_obj
def test(
    call: Call, operation: str, network: str, digits: str, bank: str, amount: int, currency: str,
    at: datetime | None,
) -> None:  # fmt: skip
    """Say which rule an operation meets, and why not those before it."""
    config = call.config()
    if at is None:
        calendar = config.calendar()
        now_ns = time.time_ns()
        text = calendar.local_time(now_ns)
        minute = week_minute(calendar.local(now_ns).number, minutes_of(f"{text[:2]}:{text[2:4]}"))
    else:
        minute = at.weekday() * routing.DAY_MINUTES + at.hour * 60 + at.minute
    key = RouteKey(operation, network, digits, bank, amount, currency, minute)
    router = Router(config.routes, default=(config.issuer.link,))
    rows = [
        {"rule": number + 1, "to": list(config.routes[number].to), "not met": list(unmet)}
        for number, unmet in router.explain(key)
    ]
    chosen = list(router.choose(key))
    matched = router.match(key) + 1
    answer = {"to": chosen, "rule": matched or None, "tried": rows}

    def text_form() -> None:
        if rows:
            print_table(rows)
        why = f"rule {matched}" if matched else "no rule; [issuer]"
        click.echo(f"{operation} goes to {', '.join(chosen)} ({why})")

    call.answer(answer, text_form)


# ---- reload


@click.command(cls=Command)
@click.pass_obj
def reload(call: Call) -> None:
    """Have a running node read its configuration again: all of it is applied, or nothing.

    SIGHUP does the same. A change that needs a restart is refused with its line.
    """
    answer = ask_node(call.config(), "reload")
    changes = answer["changes"]
    call.answer(answer, lambda: print_table(changes, empty="nothing has changed"))


def check_with_registry(config: Config) -> None:
    """Check what needs the registry of a data directory, which is only read.

    Raises:
        ConfigError: with every mistake found.
        Corruption, SnapshotError, StateError: the directory is damaged.
    """
    if node_answers(config):
        rows = ask_node(config, "show", kind="host")
        check_hosts(config, {host["name"]: host["connect"] for host in rows})
        return
    state = State(config, config.data)
    state.recover(live=True)
    hosts = [host for host in Registry(state.records).all(Host) if isinstance(host, Host)]
    check_hosts(config, {host.name: host.connect for host in hosts})
