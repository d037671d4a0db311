"""A network that misbehaves on demand, reproducibly: faults of a stream drawn from a seed."""

import random
from dataclasses import dataclass, fields

import trio


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often each fault strikes one piece of data, as shares of 1; at most one strikes it.

    One piece is one `send_all` or one `receive_some`; a terminal sends one frame at a time.

    Attributes:
        drop: the piece vanishes and the connection goes on. Later frames then fail their MAC.
        delay: the piece waits `delay_s` first.
        duplicate: the piece comes twice.
        garble: one bit of it is flipped.
        half: only the first half gets through, then the connection is closed.
        close: nothing of it gets through, and the connection is closed.
        delay_s: seconds.
    """

    drop: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    garble: float = 0.0
    half: float = 0.0
    close: float = 0.0
    delay_s: float = 1.0

    def __post_init__(self) -> None:
        shares = [getattr(self, name) for name in SHARES]
        if min(shares) < 0 or sum(shares) > 1.000001 or self.delay_s < 0:
            raise ValueError("shares of faults are at least 0 and together at most 1")

    def draw(self, chance: random.Random) -> str:
        """The fault that strikes now, or "" for none."""
        point = chance.random()
        for name in SHARES:
            point -= getattr(self, name)
            if point < 0:
                return name
        return ""


SHARES = tuple(field.name for field in fields(Faults) if field.name != "delay_s")

_NONE = Faults()


class FaultyStream(trio.abc.Stream):
    """A stream with faults in what is sent and in what is received.

    Args:
        stream: the sound one; owned from here on.
        seed: equal seeds and equal use give equal faults.

    Attributes:
        struck: faults so far, by name; for received data with the prefix `received_`.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        seed: int,
        sending: Faults = _NONE,
        receiving: Faults = _NONE,
    ) -> None:
        self._stream = stream
        self._sending = sending
        self._receiving = receiving
        # One source for each direction: how they interleave must not change what strikes.
        self._send_chance = random.Random(f"{seed} send")
        self._receive_chance = random.Random(f"{seed} receive")
        self._repeated = b""
        self.struck: dict[str, int] = {}

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        fault = self._sending.draw(self._send_chance)
        self._count(fault)
        kept = await self._apply(fault, bytes(data), self._sending, self._send_chance)
        if fault == "duplicate":
            kept += kept
        if kept:
            await self._stream.send_all(kept)
        if fault in ("half", "close"):
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError(f"fault: {fault}")
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            if self._repeated:
                data, self._repeated = self._repeated, b""
                await trio.lowlevel.checkpoint()
                return data
            data = bytes(await self._stream.receive_some(max_bytes))
            if not data:
                return data
            fault = self._receiving.draw(self._receive_chance)
            self._count(fault and f"received_{fault}")
            data = await self._apply(fault, data, self._receiving, self._receive_chance)
            if fault == "duplicate":
                self._repeated = data
            elif fault in ("half", "close"):
                await trio.aclose_forcefully(self._stream)
                if not data:
                    raise trio.BrokenResourceError(f"fault: {fault}")
            if data:
                return data

    async def _apply(self, fault: str, data: bytes, faults: Faults, chance: random.Random) -> bytes:
        """What is left of a piece of data."""
        if fault == "delay":
            await trio.sleep(faults.delay_s)
        elif fault in ("drop", "close"):
            return b""
        elif fault == "half":
            return data[: len(data) // 2]
        elif fault == "garble" and data:
            at = chance.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        return data

    def _count(self, fault: str) -> None:
        if fault:
            self.struck[fault] = self.struck.get(fault, 0) + 1

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
