"""Reading the configuration again under traffic: what may change, what may not, all or nothing.

A key is either read where it is used, or something was built from it at the start. Keys of the
first kind change with the next step of the flows; those of the second need a restart, and a file
that changes one of them is refused as a whole, with its line. Nothing under way is judged anew: an
operation keeps the fee, the limits and the business date of its hold.

    plan      what a new configuration changes against the present one; pure
    check     the same, and every mistake of the new file, names of hosts included
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from switch.config import Config, ConfigError, Settings, check_hosts, reread
from switch.toml_reader import KeyPath, Mistake, line_index, line_of, named

LIVE: Final = frozenset(
    (
        "node.cashiers",
        "node.shift_hours",
        "node.plaintext",
        "node.log_level",
        "node.straight_through",
        "session.max_in_flight",
        "session.outbox_bytes_max",
        "session.sign_on_s",
        "session.drain_s",
        "session.clock_tolerance_s",
        "journal.snapshot_every_bytes",
        "journal.segments_kept",
        "journal.retention_h",
        "business.annul_until",
        "business.tiers",
        "issuer.link",
    )
)
"""Keys that may change under traffic, beside the sections and the keys of links below."""

LIVE_SECTIONS: Final = frozenset(
    (
        "budgets",
        "red",
        "fees",
        "commissions",
        "conciliation",
        "watch",
        "units",
        "limits",
        "declarations",
        "routes",
    )
)
LIVE_OF_LINK: Final = frozenset(
    (
        "max_in_flight",
        "queue_max",
        "echo_interval_s",
        "answer_s",
        "sign_on_s",
        "backoff_min_s",
        "backoff_max_s",
        "hold_policy",
        "hold_ask_after_s",
        "clock_tolerance_s",
    )
)
"""Of a link that runs. The others shape its connections or the table of what is in flight."""


class Change(msgspec.Struct, frozen=True):
    """One key with another value; `old` or `new` is None where it is not there."""

    key: str
    old: Any
    new: Any


class Plan(msgspec.Struct, frozen=True):
    """What a reload would do.

    Fields:
        changes: keys with other values, in the order of the reference.
        restart: those that need a restart, as paths; not empty: nothing may be applied.
        links_added, links_removed: sections of links that came or went.
        links_changed: links that stay, with other settings.
    """

    changes: list[Change]
    restart: list[KeyPath]
    links_added: list[str]
    links_removed: list[str]
    links_changed: list[str]


def plan(old: Config, new: Config, running: Collection[str]) -> Plan:
    """Compare two configurations, key by key.

    Args:
        running: names of the links that run. One without a section has all defaults, so a section
            that comes or goes changes it like any other edit.
    """
    found = list(_differences(old, new, running))
    both = (old.links.keys() & new.links.keys()) | (set(running) & (old.links.keys() ^ new.links))
    return Plan(
        changes=[Change(named(path), before, after) for path, before, after in found],
        restart=[path for path, _, _ in found if not _is_live(path, running)],
        links_added=sorted(new.links.keys() - old.links.keys()),
        links_removed=sorted(old.links.keys() - new.links.keys()),
        links_changed=sorted(name for name in both if old.link(name) != new.link(name)),
    )


def check(
    present: Config, hosts: Mapping[str, str], running: Collection[str] = ()
) -> tuple[Config, Plan]:
    """Read the file of the present configuration again, and say what it changes.

    Args:
        hosts: as for `config.check_hosts`.
        running: as for `plan`.

    Raises:
        ConfigError: every mistake, or every change that needs a restart, with its line.
    """
    new = reread(present)
    check_hosts(new, hosts)
    planned = plan(present, new, running)
    if planned.restart:
        lines = line_index(new.path.read_text())
        raise ConfigError(
            new.path,
            [
                Mistake(
                    line_of(lines, path),
                    named(path),
                    "cannot change while the node runs",
                    "restart it, or take the change back; nothing was applied",
                )
                for path in planned.restart
            ],
        )
    return new, planned


def _is_live(path: KeyPath, running: Collection[str]) -> bool:
    section = path[0]
    if section == "links":
        return path[1] not in running or path[2] in LIVE_OF_LINK
    return section in LIVE_SECTIONS or ".".join(path[:2]) in LIVE


def _differences(
    old: Config, new: Config, running: Collection[str]
) -> Iterator[tuple[KeyPath, Any, Any]]:
    for field in msgspec.structs.fields(Settings):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(before, dict):
            for name in dict.fromkeys((*before, *after)):
                where, one, other = (field.name, name), before.get(name), after.get(name)
                if field.name == "links" and name in running:
                    yield from _of_table(where, old.link(name), new.link(name))
                elif field.name == "links" and one and other:
                    yield from _of_table(where, one, other)
                elif one != other:
                    yield where, _plain(one), _plain(other)
        elif isinstance(before, msgspec.Struct):
            yield from _of_table((field.name,), before, after)
        elif before != after:
            yield (field.name,), _plain(before), _plain(after)


def _of_table(
    where: KeyPath, before: msgspec.Struct, after: msgspec.Struct
) -> Iterator[tuple[KeyPath, Any, Any]]:
    for field in msgspec.structs.fields(before):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if one != other:
            yield (*where, field.encode_name), _plain(one), _plain(other)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, to be shown."""
    return msgspec.to_builtins(value)
