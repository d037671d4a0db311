"""Statements of a settlement window: one per network, for the amount that its window came to.

S;format version;network;window;currency;opened UTC;closed UTC;debits;credits;position
"""

import os
import time
from pathlib import Path
from typing import Any

from switch.reports.daily_file import sync_directory

FORMAT_VERSION = 1


def write_statements(directory: Path, window: dict[str, Any]) -> list[Path]:
    """Write the statement of every network; each is there whole or not at all.

    Args:
        window: as the settlement desk tells it.
    """
    paths = []
    for position in window["positions"]:
        kind, _, number = position["name"].partition(":")
        if kind != "net":
            continue
        path = directory / f"LIQ_{number}_{window['currency']}_{window['window']}.csv"
        partial = path.with_name(f".{path.name}.part")
        cells = (
            "S", FORMAT_VERSION, number, window["window"], window["currency"],
            _instant(window["opened_ns"]), _instant(window["closed_ns"]), position["debits"],
            position["credits"], position["position"],
        )  # fmt: skip
        with open(partial, "w", encoding="ascii", newline="\n") as stream:
            stream.write(";".join(map(str, cells)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        paths.append(path)
    sync_directory(directory)
    return paths


def _instant(ns: int) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(ns // 1_000_000_000))
