"""A cashier's terminal: the client side of the framed session, over any stream.

It does what the terminal of a network must do: sign on, send requests without waiting for each
other, tie answers to them by their trace, keep the connection alive, and say plainly when the
outcome of a request is not known. What to do then is the business of its user: ask with
`last_operation`, or send the same request again.
"""

import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
import trio
from msgspec import UNSET

from protocols.messages import Answer, Echo, Error, HolderAnswer, Notice, SignOff, TerminalRequest
from protocols.session import TERMINAL, BadRequest, Encoding, Initiator, PeerKey

Connect = Callable[[], Awaitable[trio.abc.Stream]]

SIGN_ON_S: Final = 10.0
TIMEOUT_S: Final = 30.0
IN_FLIGHT_MAX: Final = 64
NOTICES_MAX: Final = 100
TRACE_MAX: Final = 999_999
_READ_BYTES_MAX = 65536


class SignOnFailed(Exception):
    """The session was not opened; nothing was sent in it.

    Attributes:
        code: the response code, "" where there was none. A 63 is unproved: anybody can forge it.
    """

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class OutcomeUnknown(Exception):
    """No answer: the request may have been carried out or not. Cash must not move on this."""


def _new_nonce() -> bytes:
    return secrets.token_bytes(16)


class _Pending:
    __slots__ = ("answer", "failure", "settled")

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.answer: Answer | HolderAnswer | None = None
        self.failure = ""


def tcp(host: str, port: int) -> Connect:
    """Connect over plain TCP."""
    return partial(trio.open_tcp_stream, host, port)


class Terminal:
    """One terminal, with at most one session at a time. For the tasks of one trio loop.

    Args:
        number: eight digits.
        key: its secret key and MAC algorithm.
        connect: opens the transport; called at each sign-on.
        key_version: which of its keys, 1..255.
        timeout_s: how long a request waits for its answer.
        in_flight_max: unanswered requests; more of them wait for their turn.
        nonce: 16 new random bytes at each call.

    Attributes:
        server_time: time of the peer at the last sign-on, ISO 8601.
        notices: the newest unasked texts of the peer.
        errors: the newest `error` codes that belong to no request.
        late: answers that came when nobody waited any more.
        sessions: sign-ons that succeeded.
        ended: why the last session ended, "" while it lasts.
    """

    def __init__(
        self,
        number: str,
        key: PeerKey,
        connect: Connect,
        *,
        key_version: int = 1,
        encoding: Encoding = "json",
        frame_bytes_max: int = 8192,
        timeout_s: float = TIMEOUT_S,
        in_flight_max: int = IN_FLIGHT_MAX,
        nonce: Callable[[], bytes] = _new_nonce,
    ) -> None:
        self.number = number
        self._connect = connect
        self._key = key
        self._key_version = key_version
        self._encoding: Encoding = encoding
        self._frame_bytes_max = frame_bytes_max
        self._nonce = nonce
        self._timeout_s = timeout_s
        self._session: Initiator | None = None
        self._stream: trio.abc.Stream | None = None
        self._nursery: trio.Nursery | None = None
        self._pending: dict[int, _Pending] = {}
        self._room = trio.Semaphore(in_flight_max)
        self._sending = trio.Lock()
        self._heard = trio.Event()
        self._spare_trace = TRACE_MAX
        self.server_time = ""
        self.notices: deque[Notice] = deque(maxlen=NOTICES_MAX)
        self.errors: deque[str] = deque(maxlen=NOTICES_MAX)
        self.late = 0
        self.sessions = 0
        self.ended = "never signed on"

    @property
    def signed_on(self) -> bool:
        """A session is open."""
        return self._session is not None

    async def sign_on(self, nursery: trio.Nursery) -> None:
        """Connect and open a session; a task in `nursery` reads from it until it ends.

        Raises:
            SignOnFailed: refused, or no good answer within 10 s.
            OSError: no connection.
        """
        assert self._session is None, "one session at a time"
        stream = await self._connect()
        session = Initiator(
            vocabulary=TERMINAL,
            peer=self.number,
            key=self._key,
            nonce=self._nonce(),
            key_version=self._key_version,
            encoding=self._encoding,
            frame_bytes_max=self._frame_bytes_max,
        )
        try:
            with trio.fail_after(SIGN_ON_S):
                await stream.send_all(session.sign_on())
                while not session.signed_on:
                    data = await stream.receive_some(_READ_BYTES_MAX)
                    self._dispatch(session.receive(bytes(data)))
                    if session.closing is not None or not data:
                        raise SignOnFailed(session.closing or "closed by the peer", session.code)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            await trio.aclose_forcefully(stream)
            raise SignOnFailed("no answer to the sign-on") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self._session, self._stream, self._nursery = session, stream, nursery
        self.server_time = session.server_time
        self.sessions += 1
        self.ended = ""
        nursery.start_soon(self._read, session, stream)

    async def reconnect(self) -> None:
        """End the session, if there is one, and open another. Raises what `sign_on` raises."""
        assert self._nursery is not None, "sign_on comes first"
        await self.aclose()
        await self.sign_on(self._nursery)

    async def request(self, message: TerminalRequest) -> Answer | HolderAnswer:
        """Send a request and wait for its answer; requests of several tasks are pipelined.

        A request that may go without a trace is given one, to know its answer by.

        Raises:
            OutcomeUnknown: no session, it ended before the answer, the answer is unreadable, or it
                did not come in time. A later answer is only counted.
            ValueError: a request with this trace is still waiting.
        """
        async with self._room:
            trace = message.trace
            if trace is UNSET:
                trace = self._next_spare()
                message = msgspec.structs.replace(message, trace=trace)
            if trace in self._pending:
                raise ValueError(f"trace {trace} is waiting for its answer already")
            pending = self._pending[trace] = _Pending()
            try:
                with trio.move_on_after(self._timeout_s):
                    await self._send(lambda session: session.encode([message]))
                    await pending.settled.wait()
            finally:
                del self._pending[trace]
        if pending.answer is None:
            raise OutcomeUnknown(pending.failure or f"no answer within {self._timeout_s:g} s")
        return pending.answer

    async def echo(self) -> float:
        """Ask for a sign of life; seconds until the peer was heard again, whatever it said.

        Raises OutcomeUnknown where the session ends first or nothing comes in time.
        """
        started = trio.current_time()
        with trio.move_on_after(self._timeout_s):
            await self._send(self._seal_echo)
            await self._heard.wait()
            if self._session is not None:
                return trio.current_time() - started
        raise OutcomeUnknown(self.ended or "no sign of life")

    async def sign_off(self) -> None:
        """Leave in good order: tell the peer, take its answer, close."""
        await self.request(SignOff())
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; whatever is in flight stays unknown."""
        stream = self._stream
        self._end(self._session, "closed by ourselves")
        if stream is not None:
            await stream.aclose()

    def _seal_echo(self, session: Initiator) -> bytes:
        if self._heard.is_set():  # else somebody waits for it already
            self._heard = trio.Event()
        return session.encode([Echo()])

    async def _send(self, seal: Callable[[Initiator], bytes]) -> None:
        """Seal and send under one lock, or the counters and the bytes would part.

        Whatever the session owes by then goes out as well, so that nobody has to wait for the lock
        only for that.
        """
        async with self._sending:
            session, stream = self._session, self._stream
            if session is None or stream is None:
                raise OutcomeUnknown(self.ended)
            try:
                data = seal(session)
                while data:
                    await stream.send_all(data)
                    data = session.output()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._end(session, "the connection broke")
                raise OutcomeUnknown(self.ended) from error
            except BaseException:
                # Cancelled with half a frame out: the rest of the stream makes no sense any more.
                self._end(session, "cancelled while sending")
                await trio.aclose_forcefully(stream)
                raise

    async def _read(self, session: Initiator, stream: trio.abc.Stream) -> None:
        """Take what comes until the session ends. Never raises for the peer."""
        reason = "closed by the peer"
        heard = trio.current_time()
        try:
            while session.closing is None:
                data = b""
                with trio.move_on_after(session.heartbeat_s) as silent:
                    data = bytes(await stream.receive_some(_READ_BYTES_MAX))
                if silent.cancelled_caught:
                    await self._keep_alive(session, trio.current_time() - heard)
                    continue
                if not data:
                    break
                heard = trio.current_time()
                self._heard.set()
                self._dispatch(session.receive(data))
                if not self._sending.locked():  # else the holder sends what is owed
                    await self._send(Initiator.output)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OutcomeUnknown):
            reason = "the connection broke"
        finally:
            self._end(session, session.closing or reason)
            await trio.aclose_forcefully(stream)

    async def _keep_alive(self, session: Initiator, silent_s: float) -> None:
        if silent_s >= 2 * session.heartbeat_s:
            session.silence(silent_s)  # sends nothing: it ends the session
        elif not self._sending.locked():
            await self._send(lambda session: session.silence(silent_s))

    def _dispatch(self, messages: list[object]) -> None:
        for message in messages:
            if isinstance(message, Answer | HolderAnswer | BadRequest):
                trace = message.trace
                pending = self._pending.get(trace) if isinstance(trace, int) else None
                if pending is None or pending.settled.is_set():
                    self.late += 1
                    continue
                if isinstance(message, BadRequest):
                    pending.failure = f"unreadable answer (field {message.field})"
                else:
                    pending.answer = message
                pending.settled.set()
            elif isinstance(message, Notice):
                self.notices.append(message)
            elif isinstance(message, Error):
                self.errors.append(message.code)

    def _end(self, session: Initiator | None, reason: str) -> None:
        """Forget the session, if it is still ours, and tell everybody who waits for an answer."""
        if session is None or session is not self._session:
            return
        self._session = self._stream = None
        self.ended = reason
        self._heard.set()
        for pending in self._pending.values():
            pending.failure = pending.failure or reason
            pending.settled.set()

    def _next_spare(self) -> int:
        """A trace for a request that uses none up: from the top down, past those that wait."""
        for _ in range(TRACE_MAX):
            self._spare_trace = self._spare_trace - 1 or TRACE_MAX
            if self._spare_trace not in self._pending:
                return self._spare_trace
        raise AssertionError("more requests in flight than traces")
