"""One POST to a server of twenty years ago: delivered once at most, its answer timed to the byte.

An HTTP library would follow redirects, pool connections, decode, and refuse half of what these
servers say. Here a request goes to one address, the answer is read as it comes
(`protocols.webpay.answer`), and what is told is when its last byte was there.

    connect     at most three times, a second apart, only while no byte was written
    send        once
    read        until the answer has ended, the peer has closed, or the time is over
    watch       afterwards, if somebody wants to know whether it came late
"""

import ssl
from typing import Final, Literal

import trio

from protocols.webpay.answer import ANSWER_BYTES_MAX, Answer

CONNECTS_MAX: Final = 3
CONNECT_PAUSE_S: Final = 1.0
OVERTIME_S: Final = 0.001
"""A reader is stopped this much after the limit, so that what comes exactly then is still read."""

_READ_BYTES: Final = 16 << 10

Phase = Literal["connect", "send", "wait", "read", "done"]


class Delivery:
    """One request on its way, and its answer.

    Attributes:
        answer: as far as it came.
        ended_s: when its last byte was there, by trio's clock; None: it has not ended.
        phase: how far it got: connect, send, wait (for a first byte), read, done.
        error: type of what went wrong, for the log; empty: nothing did.
        connects: how often it was tried.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self._address = address
        self._port = port
        self._tls = tls
        self._server_name = server_name or address
        self._stream: trio.abc.Stream | None = None
        self.answer = Answer(bytes_max)
        self.ended_s: float | None = None
        self.phase: Phase = "connect"
        self.error = ""
        self.connects = 0

    @property
    def is_none(self) -> bool:
        """True where not one byte of an answer came."""
        return not self.answer.raw

    @property
    def is_open(self) -> bool:
        """True while more of an answer may come."""
        return self._stream is not None and self.ended_s is None

    async def run(self, request: bytes, *, until_s: float) -> None:
        """Deliver and read, at most until `until_s` of trio's clock. Never raises for a peer.

        When this returns, either `ended_s` is set, or there will be no answer, or `watch` may
        still see it.
        """
        with trio.CancelScope(deadline=until_s + OVERTIME_S):
            if await self._connect():
                await self._send(request)
                await self._read()

    async def watch(self, seconds: float) -> bool:
        """Go on reading after the limit; True: the answer has ended within `seconds`."""
        if self._stream is None or self.ended_s is not None:
            return False
        with trio.move_on_after(seconds):
            await self._read()
        return self.ended_s is not None

    async def aclose(self) -> None:
        """Close without a word: nothing is owed to this peer."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    async def _connect(self) -> bool:
        while self.connects < CONNECTS_MAX:
            if self.connects:
                await trio.sleep(CONNECT_PAUSE_S)
            self.connects += 1
            try:
                self._stream = await self._dial()
            except (OSError, trio.BrokenResourceError) as error:
                self.error = type(error).__name__
                continue
            self.error = ""
            return True
        return False

    async def _dial(self) -> trio.abc.Stream:
        plain = await trio.open_tcp_stream(self._address, self._port)
        if self._tls is None:
            return plain
        # https_compatible: many servers just close, without TLS's own goodbye.
        stream = trio.SSLStream(
            plain, self._tls, server_hostname=self._server_name, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(plain)
            raise
        return stream

    async def _send(self, request: bytes) -> None:
        assert self._stream is not None, "there is a connection"
        self.phase = "send"
        try:
            await self._stream.send_all(request)
        except (OSError, trio.BrokenResourceError) as error:
            # What was answered before the peer lost interest may be there still.
            self.error = type(error).__name__
        self.phase = "wait"

    async def _read(self) -> None:
        assert self._stream is not None, "there is a connection"
        while self.ended_s is None:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except (OSError, trio.BrokenResourceError) as error:
                self.error = type(error).__name__
                await self._lost()
                return
            now_s = trio.current_time()
            if not data:
                self.answer.close()
                self._ended(now_s)
                return
            self.phase = "read"
            if self.answer.feed(bytes(data)):
                self._ended(now_s)

    async def _lost(self) -> None:
        """Reset: what came without an announced length may be cut, so nothing of it is whole."""
        if self.answer.raw:
            self.answer.ended, self.answer.whole = True, False
            self._ended(trio.current_time())
        await self.aclose()

    def _ended(self, now_s: float) -> None:
        self.ended_s = now_s
        if self.answer.raw:
            self.phase = "done"
