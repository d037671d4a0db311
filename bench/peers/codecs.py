"""ISO 8583 beside codecs of other languages, in one run: `python -m bench.peers.codecs`.

The message and the cases are those of `bench.micro.iso8583`, where the codecs of Python are; here
come jPOS (Java) and moov-io/iso8583 (Go), each fetched and built by its own tool into a cache of
the user, and run as a process on one thread, in rounds between ours. Their rounds are checked:
every element must come out as it was put in, and encoding must give our bytes.

Ours is called from Python, one message at a time or 64 in a batch; theirs from their own language.
A tool that is not installed, or a library that cannot be fetched, is said so and left out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.micro import iso8583
from protocols.iso8583 import Dialect

HERE = Path(__file__).resolve().parent
BUILD_S = 600
RUN_S = 300
CASES = {"decode": "index", "all": "all", "encode": "encode", "turn": "turn"}
"""A case of theirs, and ours that does as much."""


class Missing(Exception):
    """A peer cannot be measured here; says why."""


def jpos(cache: Path) -> list[str]:
    """Build the Java peer; the command that runs it. Raises Missing."""
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            raise Missing(f"no {tool} (apt install default-jdk-headless maven)")
    place = _copied("jpos", cache)
    _built(["mvn", "-q", "-B", "package"], place)
    classes = f"{place}/target/classes:{(place / 'target/classpath').read_text().strip()}"
    return ["java", "-XX:+UseSerialGC", "-cp", classes, "Codec"]


def moov(cache: Path) -> list[str]:
    """Build the Go peer; the command that runs it. Raises Missing."""
    if shutil.which("go") is None:
        raise Missing("no go (apt install golang-go)")
    place = _copied("moov", cache)
    _built(["go", "build", "-o", "codec", "."], place)
    return [str(place / "codec")]


def _copied(name: str, cache: Path) -> Path:
    place = cache / name
    if not (HERE / name).is_dir():
        raise Missing("its sources are only in a checkout, not in the installed package")
    shutil.copytree(HERE / name, place, dirs_exist_ok=True)
    return place


def _built(command: list[str], place: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} took longer than {BUILD_S} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{command[0]} failed: {said[0][:200] if said else done.returncode}")


PEERS: dict[str, Callable[[Path], list[str]]] = {"jPOS (Java)": jpos, "moov-io (Go)": moov}


def cache_directory() -> Path:
    """Where peers are built, so that it happens once."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "troncal-bench"


def theirs(command: list[str], rounds: int, round_s: float) -> list[dict[str, float]]:
    """Rates of a built peer by case, a row for each round. Raises Missing where it fails."""
    frame = Dialect.load("iso87-ascii").encode({"mti": "0200", **iso8583.ELEMENTS})
    elements = [f"{number}={value}" for number, value in iso8583.ELEMENTS.items()]
    done = subprocess.run(
        [*command, frame.hex(), str(rounds), str(round_s), *elements],
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Missing(f"it failed: {said[0][:200] if said else done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run(rounds: int = 3, round_s: float = 0.5, *, cache: Path | None = None) -> dict[str, Any]:
    """Medians of each peer and of ours, case by case, and how many times as fast ours is."""
    place = cache or cache_directory()
    place.mkdir(parents=True, exist_ok=True)
    commands, missing = {}, {}
    for name, build in PEERS.items():
        try:
            commands[name] = build(place)
        except Missing as error:
            missing[name] = str(error)
    mine = {"troncal": iso8583.ours(Dialect.load("iso87-ascii"))}
    found: dict[str, list[dict[str, float]]] = {"troncal": []}
    for _ in range(rounds):
        rows = iso8583.measure(mine, 3, round_s / 3)
        found["troncal"].append({row["case"]: float(row["median_per_s"]) for row in rows})
        for name, command in list(commands.items()):
            try:
                found.setdefault(name, []).extend(theirs(command, 1, round_s))
            except Missing as error:
                missing[name] = str(error)
                del commands[name], found[name]
    return {"rows": _told(found), "missing": missing, "rounds": rounds}


def _told(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for case, our_case in CASES.items():
        ours = statistics.median(row[our_case] for row in found["troncal"])
        for name, measured in found.items():
            key = our_case if name == "troncal" else case
            rate = statistics.median(row[key] for row in measured)
            rows.append(
                {
                    "case": case, "name": name, "median_per_s": round(rate),
                    "troncal_times_as_fast": round(ours / rate, 2),
                }
            )  # fmt: skip
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-s", type=float, default=0.5, help="seconds a case and round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.rounds, options.round_s)
    if options.json:
        print(json.dumps(result))
        return 0
    for row in result["rows"]:
        times = f"troncal is {row['troncal_times_as_fast']:.2f} times as fast"
        print(f"{row['case']:8}{row['name']:16}{row['median_per_s']:>12,} /s   {times}")
    for name, reason in result["missing"].items():
        print(f"{name}: not measured: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
