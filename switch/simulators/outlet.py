"""What a simulator writes to one connection, with the faults of its answers."""

import contextlib
import random
from collections.abc import Callable
from typing import Final

import trio

from switch.simulators.rules import Fault

OUT_OF_ORDER_S: Final = 1.0
"""An answer kept back comes by itself after so long, where no other one overtakes it."""

OUTBOX_BYTES_MAX: Final = 1 << 24
HEAD_BYTES: Final = 2
"""Of a frame, spared by garbling: a wrong length would be a fault of its own."""

Seal = Callable[[], bytes]
"""Makes the frame when it leaves: counters and MACs follow the order of sending."""


class Outlet:
    """The writing side of one connection; `run` is its task.

    Attributes:
        closing: the connection is to end once what is written is out.
    """

    def __init__(
        self, stream: trio.abc.Stream, nursery: trio.Nursery, chance: random.Random
    ) -> None:
        self._stream = stream
        self._nursery = nursery
        self._chance = chance
        self._out = bytearray()
        self._wake = trio.Event()
        self._kept: list[Seal] = []
        self.closing = False

    async def run(self) -> None:
        """Write what is there, in one piece; return when the connection is over."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._out:
                    data = bytes(self._out)
                    self._out.clear()
                    await self._stream.send_all(data)
                if self.closing:
                    break
        await trio.aclose_forcefully(self._stream)

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        if data and not self.closing:
            self._out += data
            if len(self._out) > OUTBOX_BYTES_MAX:
                self.close()
        self._wake.set()

    def close(self) -> None:
        """End the connection behind what was written."""
        self.closing = True
        self._wake.set()

    def deliver(self, seal: Seal, fault: Fault | None = None) -> None:
        """An answer, in the way its fault wants."""
        match fault.name if fault is not None else "":
            case "delay" | "late":
                assert fault is not None
                self._nursery.start_soon(self._later, fault.seconds, seal)
                return
            case "out_of_order":
                self._kept.append(seal)
                self._nursery.start_soon(self._keep)
                return
            case "duplicate":
                self.write(seal() + seal())
            case "garble":
                self.write(self._garbled(seal()))
            case "garbage":
                frame = seal()
                self.write(frame[:HEAD_BYTES] + self._chance.randbytes(len(frame) - HEAD_BYTES))
            case "wrong_mac":
                frame = seal()
                self.write(frame[:-1] + bytes([frame[-1] ^ 1]))
            case "half_frame":
                frame = seal()
                self.write(frame[: len(frame) // 2])
                self.close()
            case "close" | "stop_after":
                self.close()
            case "swallow":
                pass
            case _:
                self.write(seal())
        self._release()

    def _garbled(self, frame: bytes) -> bytes:
        at = self._chance.randrange(min(HEAD_BYTES, len(frame) - 1), len(frame))
        return frame[:at] + bytes([frame[at] ^ 1 << self._chance.randrange(8)]) + frame[at + 1 :]

    def _release(self) -> None:
        kept, self._kept = self._kept, []
        for seal in kept:
            self.write(seal())

    async def _later(self, seconds: float, seal: Seal) -> None:
        await trio.sleep(seconds)
        if not self.closing:
            self.write(seal())

    async def _keep(self) -> None:
        await trio.sleep(OUT_OF_ORDER_S)
        if not self.closing:
            self._release()
