"""What the report measures: every part with the command that gives the same figures by itself.

A part is a name, its commands and a function that runs them all in this process. Parts do not share
anything, so one that fails leaves the others; what it said stands in the report in its place.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench.micro.history_scale as past_scale
import bench.micro.iso8583 as codec
import bench.micro.ledger_scale as scale
from bench.load import cash_out, forward, history, idle, link, open_loop, snapshots
from bench.load.server import Say
from bench.peers import codecs, group_commit, switch_job
from protocols.iso8583 import Dialect


@dataclass(frozen=True, slots=True)
class Profile:
    """How much is measured. Times are seconds."""

    seconds: float
    connections: tuple[int, ...]
    rates: tuple[int, ...]
    accounts_max: int
    past: tuple[int, ...]
    recovery_records: int
    snapshot_s: float
    snapshot_cards: int
    codec_rounds: int
    groups: int
    peer_rounds: int
    past_alone: tuple[int, ...] = (0, 50_000)
    idle: int = 10_000


# Cards are what takes the time of a run: each cash_out needs one, and some 70 us to make it.
QUICK = Profile(
    seconds=1.5, connections=(16, 64, 1000), rates=(1000, 5000, 20_000), accounts_max=100_000,
    past=(0, 50_000), recovery_records=0, snapshot_s=4.0, snapshot_cards=50_000, codec_rounds=3,
    groups=300, peer_rounds=1,
)  # fmt: skip
FULL = Profile(
    seconds=10.0, connections=(1, 4, 16, 64, 256, 1000, 4000), rates=(1000, 2000, 5000, 10_000,
    20_000, 40_000), accounts_max=5_000_000, past=(0, 100_000, 1_000_000),
    recovery_records=10_000_000, snapshot_s=30.0, snapshot_cards=500_000, codec_rounds=15,
    groups=4000, peer_rounds=3, past_alone=(0, 100_000, 1_000_000, 10_000_000),
)  # fmt: skip


DEEP = (16, 16)  # connections and depth
LINK_IN_FLIGHT = 100
HOP_CONNECTIONS = 64
OPEN_CONNECTIONS = 64
OPEN_S_MAX = 10.0
IN_FLIGHT_RATE = 150_000  # operations a second for which cards are made where many are in flight
RATE = 60_000  # and in lock step


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the report.

    Attributes:
        name: in the results.
        commands: give the same figures by themselves.
        run: measures; what it gives goes into the results as it is.
    """

    name: str
    commands: tuple[str, ...]
    run: Callable[[], Any]


def parts(profile: Profile, directory: Path | None, say: Say) -> list[Part]:
    """All parts of a profile, in their order."""
    quiet: dict[str, Any] = {"directory": directory, "say": lambda text: say(f"  {text}")}
    return [*_loads(profile, quiet), *_costs(profile, quiet), *_peers(profile, quiet)]


def _loads(profile: Profile, quiet: dict[str, Any]) -> list[Part]:
    """How much, and how fast."""
    s = profile.seconds
    cards = int((s + 1) * RATE)
    deep_cards = int((s + 1) * IN_FLIGHT_RATE)

    def sweep() -> list[dict[str, Any]]:
        return [cash_out.run(n, s, cards=cards, **quiet) for n in profile.connections]

    def rates() -> list[dict[str, Any]]:
        return [
            open_loop.run(float(r), OPEN_CONNECTIONS, min(s, OPEN_S_MAX), busy=busy, **quiet)
            for r in profile.rates
            for busy in (False, True)
        ]

    return [
        Part("cash_out", tuple(
            f"troncal bench cash-out --connections {n} --seconds {s:g} --cards {cards}"
            for n in profile.connections
        ), sweep),
        Part("deep", (
            f"troncal bench cash-out --connections {DEEP[0]} --depth {DEEP[1]} --seconds {s:g}"
            f" --cards {deep_cards}",
        ), lambda: cash_out.run(DEEP[0], s, depth=DEEP[1], cards=deep_cards, **quiet)),
        Part("link", (
            f"troncal bench link --in-flight {LINK_IN_FLIGHT} --seconds {s:g} --holds {deep_cards}",
        ), lambda: link.run(LINK_IN_FLIGHT, s, holds=deep_cards, **quiet)),
        Part("forward", (
            f"troncal bench forward --connections {HOP_CONNECTIONS} --seconds {s:g}",
        ), lambda: forward.run(HOP_CONNECTIONS, s, **quiet)),
        Part("open_loop", tuple(
            f"troncal bench open-loop --rate {r} --connections {OPEN_CONNECTIONS}"
            f" --seconds {min(s, OPEN_S_MAX):g}{busy}"
            for r in profile.rates
            for busy in ("", " --busy")
        ), rates),
    ]  # fmt: skip


def _costs(profile: Profile, quiet: dict[str, Any]) -> list[Part]:
    """What it costs that there is much of something."""
    s = profile.seconds

    def past() -> dict[str, Any]:
        return history.run(
            profile.past, seconds=min(s, 3.0), records=profile.recovery_records, **quiet
        )

    return [
        Part("snapshots", (
            f"troncal bench snapshots --rate 5000 --seconds {profile.snapshot_s:g}"
            f" --cards {profile.snapshot_cards}",
        ), lambda: snapshots.run(
            5000.0, profile.snapshot_s, cards=profile.snapshot_cards, **quiet
        )),
        Part("idle", (
            f"troncal bench idle --idle {profile.idle} --seconds {min(s, 5.0):g}",
        ), lambda: idle.run(profile.idle, 64, min(s, 5.0), **quiet)),
        Part("history", (
            "troncal bench history " + " ".join(f"--operations {n}" for n in profile.past)
            + f" --seconds {min(s, 3.0):g} --records {profile.recovery_records}",
        ), past),
        Part("past", (
            "python -m bench.micro.history_scale "
            + " ".join(f"--past {n}" for n in profile.past_alone),
        ), lambda: past_scale.run(profile.past_alone, **quiet)),
        Part("accounts", (
            f"python -m bench.micro.ledger_scale --accounts-max {profile.accounts_max}",
        ), lambda: accounts(profile.accounts_max)),
    ]  # fmt: skip


def _peers(profile: Profile, quiet: dict[str, Any]) -> list[Part]:
    """What others do."""
    s = profile.seconds
    return [
        Part("switch_job", (
            f"python -m bench.peers.switch_job --seconds {min(s, 5.0):g}"
            f" --rounds {profile.peer_rounds}",
        ), lambda: switch_job.run(
            64, min(s, 5.0), rounds=profile.peer_rounds, **quiet
        )),
        Part("codec", (
            f"python -m bench.micro.iso8583 --rounds {profile.codec_rounds}",
        ), lambda: python_codecs(profile.codec_rounds)),
        Part("codecs", (
            f"python -m bench.peers.codecs --rounds {profile.peer_rounds}",
        ), lambda: codecs.run(profile.peer_rounds)),
        Part("group_commit", (
            f"python -m bench.peers.group_commit --groups {profile.groups}",
        ), lambda: group_commit.run(profile.groups, quiet["directory"])),
    ]  # fmt: skip


def accounts(accounts_max: int) -> list[dict[str, float]]:
    """Cost of a hold and a capture in the ledger, by the number of accounts."""
    return [scale.measure(size) for size in scale.SIZES if size <= accounts_max]


def python_codecs(rounds: int) -> dict[str, Any]:
    """Our codec beside those of Python that are installed."""
    found = {"troncal": codec.ours(Dialect.load("iso87-ascii")), **codec.installed()}
    rows = codec.measure(found, rounds, 0.05)
    return {"rows": rows, "missing": [name for name in codec.PEERS if name not in found]}


def everything(
    profile: Profile,
    directory: Path | None,
    say: Say,
    only: frozenset[str] = frozenset(),
    *,
    earlier: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Run all parts, or only some: results by name, commands, failures, and the machine.

    Args:
        earlier: results of a run that was cut short; what it has measured is not measured again.
        keep: called with the results so far, after each part.
    """
    began = time.monotonic()
    results: dict[str, Any] = {
        "machine": machine(directory), "profile": profiled(profile), "parts": {}, "commands": {},
        "failed": {}, "seconds": {}, "took_s": 0,
    }  # fmt: skip
    if earlier is not None:
        results |= {name: earlier[name] for name in ("machine", "parts", "commands", "seconds")}
    took_s = sum(results["seconds"].values())
    for part in parts(profile, directory, say):
        if (only and part.name not in only) or part.name in results["parts"]:
            continue
        say(part.name)
        results["commands"][part.name] = list(part.commands)
        at = time.monotonic()
        try:
            results["parts"][part.name] = part.run()
        except Exception as error:  # a part must not take the others with it; it is told
            results["failed"][part.name] = f"{type(error).__name__}: {error}"
            say(f"  failed: {error}")
        results["seconds"][part.name] = round(time.monotonic() - at, 1)
        results["took_s"] = round(took_s + time.monotonic() - began)
        results["machine"]["load_after"] = [round(x, 2) for x in os.getloadavg()]
        keep(results)
    return results


def profiled(profile: Profile) -> dict[str, Any]:
    """A profile as it stands in the results, and as it comes back from a file of them."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(profile)))
    return found


def machine(directory: Path | None) -> dict[str, Any]:
    """What these are figures of."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "data": str(directory or "the default temporary directory"),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "load_after": [round(x, 2) for x in os.getloadavg()],  # set again after each part
    }
