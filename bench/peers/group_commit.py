"""Group commit of PostgreSQL beside SQLite and the journal: `python -m bench.peers.group_commit`.

The rows and rules are those of `bench.micro.journal` (groups of 256 records of 200 bytes, each
durable before the next begins), all on the same disk in the same run. PostgreSQL is a cluster of
its own in a temporary directory, over a Unix socket, with `fsync` and `synchronous_commit` on and
its defaults for all else; a group is one transaction, its records sent by one COPY, the quickest
way there is, or by one `insert` of arrays.
"""

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.micro import journal

SERVER_USER = "postgres"
START_S = 60


class Missing(Exception):
    """PostgreSQL cannot be measured here; says why."""


def run(groups: int = 1000, directory: Path | None = None) -> dict[str, Any]:
    """All rows of the journal's own bench, and those of PostgreSQL, with the journal's ratio."""
    parent = directory or Path(__file__).resolve().parent
    result = journal.run(str(parent), groups)
    missing = {}
    try:
        with cluster(parent) as where:
            result["rows"] += _postgres(where, groups)
    except Missing as error:
        missing["PostgreSQL"] = str(error)
    ours = next(row for row in result["rows"] if row["name"] == "journal")
    for row in result["rows"]:
        row["journal_times_as_fast"] = round(ours["records_per_s"] / row["records_per_s"], 2)
    return result | {"missing": missing}


def binaries() -> Path:
    """Where Debian has PostgreSQL's programs, the newest. Raises Missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    if path is None:
        raise Missing("no initdb (apt install postgresql)")
    return Path(path).resolve().parent


@contextmanager
def cluster(parent: Path) -> Iterator[Path]:
    """A cluster while the block lasts; the directory of its socket. Raises Missing."""
    programs = binaries()
    if importlib.util.find_spec("psycopg") is None:
        raise Missing("no psycopg (pip install 'troncal[postgres]')")
    # The server does not run as root: then it is Debian's own user for it.
    prefix = ["runuser", "-u", SERVER_USER, "--"] if os.geteuid() == 0 else []
    base = Path(tempfile.mkdtemp(prefix="bench-postgres-", dir=parent))
    sockets = Path(tempfile.mkdtemp(prefix="bench-pg-"))
    try:
        if prefix:
            for place in (base, sockets):
                shutil.chown(place, SERVER_USER)
                place.chmod(0o700 if place == base else 0o755)
            _reachable(base, prefix)
        data = base / "data"
        options = f"-c listen_addresses= -c unix_socket_directories={sockets}"
        _done([*prefix, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "bench"])
        control = [*prefix, str(programs / "pg_ctl"), "-D", str(data), "-w", "-t", str(START_S)]
        _done([*control, "-l", str(base / "log"), "-o", options, "start"])
        try:
            yield sockets
        finally:
            _done([*control, "-m", "fast", "stop"])
    except LookupError:
        raise Missing(f"there is no user {SERVER_USER} to run the server as") from None
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def _reachable(place: Path, prefix: list[str]) -> None:
    """Raises Missing where the server's user cannot get to its directory."""
    done = subprocess.run([*prefix, "test", "-w", str(place)], cwd="/", check=False)
    if done.returncode:
        raise Missing(f"{SERVER_USER} cannot write below {place.parent}; give another --directory")


def _done(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd="/", capture_output=True, text=True, timeout=START_S * 2, check=False
    )
    if done.returncode:
        raise Missing(f"{Path(command[-1]).name}: {(done.stderr or done.stdout).strip()[:300]}")


def _postgres(sockets: Path, groups: int) -> list[dict[str, Any]]:
    psycopg = importlib.import_module("psycopg")
    rows = []
    with psycopg.connect(
        host=str(sockets), user="bench", dbname="postgres", autocommit=True
    ) as base:
        base.execute("create table record (seq bigserial primary key, payload bytea not null)")
        version = base.info.server_version // 10_000
        payloads = [journal.PAYLOAD] * journal.RECORDS

        def copy() -> None:
            with (
                base.transaction(),
                base.cursor() as cursor,
                cursor.copy("copy record (payload) from stdin (format binary)") as into,
            ):
                into.set_types(["bytea"])
                for payload in payloads:
                    into.write_row((payload,))

        def insert() -> None:
            base.execute("insert into record (payload) select unnest(%b::bytea[])", (payloads,))

        for name, commit in (("copy", copy), ("insert", insert)):
            total_s, times = journal.timed(groups, commit)
            rows.append(journal.row(f"PostgreSQL {version}, {name}", groups, total_s, times))
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=1000, help="timed groups a row")
    parser.add_argument("--directory", type=Path, help="where to write; its disk is measured")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.groups, options.directory)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{result['machine']}, {result['cpus']} CPUs\n")
    print(f"{'':<28}{'records/s':>12}{'p50 ms':>9}{'p99 ms':>9}   the journal is")
    for row in result["rows"]:
        times = "".join(f"{row.get(key, ''):>9}" for key in ("p50_ms", "p99_ms"))
        ratio = f"{row['journal_times_as_fast']:>8.2f} x"
        print(f"{row['name']:<28}{row['records_per_s']:>12,}{times}{ratio}")
    for name, reason in result["missing"].items():
        print(f"{name}: not measured: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
