"""A bank's host that outlives its process: `python -m tests.faults.bank_host PORT KEYS BOOK`.

The simulated host of the `bank` dialect, and each of its decisions in a file before the answer
leaves. What is in the file survives SIGKILL; the file is the bank's ledger, and the judge.
"""

import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import trio

from protocols.iso8583.dialect import Dialect, Framing, Message
from protocols.iso8583.keys import HostKeys
from switch.simulators.book import Entry
from switch.simulators.host import IsoHost, Request
from switch.simulators.rules import Fault, Rules
from switch.simulators.server import Server


class Line(msgspec.Struct):
    """One decision: how a purchase stands from here on."""

    key: str
    entry: Entry


def read_book(path: Path) -> dict[str, Entry]:
    """Every purchase as it stands, by network and number; a torn last line was never answered."""
    found: dict[str, Entry] = {}
    if path.exists():
        for text in path.read_bytes().split(b"\n")[:-1]:
            line = msgspec.json.decode(text, type=Line)
            found[line.key] = line.entry
    return found


class KeptHost(IsoHost):
    """Decides as its base does; nothing is answered that is not in the file."""

    def __init__(self, keys: HostKeys, book: Path) -> None:
        dialect = Dialect.load("bank")
        super().__init__("bank", dialect, dialect.framing or Framing(), keys, Rules([]))
        self.book.entries = read_book(book)
        whole = book.read_bytes().rpartition(b"\n") if book.exists() else (b"", b"", b"")
        self._file = os.open(book, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self._file, len(whole[0] + whole[1]))
        os.lseek(self._file, 0, os.SEEK_END)

    def decide(self, message: Message, request: Request, fault: Fault | None) -> dict[str, object]:
        before = self._line(request)
        elements = super().decide(message, request, fault)
        after = self._line(request)
        if after != before:
            os.write(self._file, after)
        return elements

    def _line(self, request: Request) -> bytes:
        entry = self.book.get(request.key)
        if entry is None:
            return b""
        return msgspec.json.encode(Line(request.key, entry)) + b"\n"


def host_of(keys: Path, book: Path) -> KeptHost:
    """With the keys that `host add` printed."""
    made = json.loads(keys.read_text())
    given = [
        [(1, bytes.fromhex(made[name]))] if made.get(name) else []
        for name in ("mac_key", "data_key", "zone_key")
    ]
    return KeptHost(HostKeys.of("aes-cmac", *given), book)


async def main(port: int, host: KeptHost) -> None:
    server = Server(host.converse)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.listen, "127.0.0.1", port)
            print("ready {}", flush=True)
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), host_of(Path(sys.argv[2]), Path(sys.argv[3])))
