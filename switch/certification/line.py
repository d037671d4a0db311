"""A session with the candidate, held by us: as a till, or as a network.

Everything that passes is recorded, masked. Answers are kept under their number (`trace` or `id`),
so that a case can send the same request twice, or look at what came too late.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import trio

from protocols.codes import CODES
from protocols.messages import Error, Message, Notice, Status, StatusAnswer
from protocols.session import BadRequest, Initiator, PeerKey, Vocabulary
from switch.net.dial import DialError
from switch.ops.masking import masked

Connect = Callable[[], Awaitable[trio.abc.Stream]]
Record = Callable[[str, dict[str, Any]], None]

SIGN_ON_S: Final = 10.0
READ_BYTES_MAX: Final = 65_536
KEPT_MAX: Final = 10_000
"""Answers kept of one session; a candidate that sends more is cut off."""


class NoSession(Exception):
    """The candidate did not open a session; says why."""


class NoAnswer(Exception):
    """A request was not answered: in time, or at all."""


def shown(message: Any) -> dict[str, Any]:
    """A message as a report may have it."""
    plain = msgspec.to_builtins(message)
    found = masked("message", plain)
    assert isinstance(found, dict)
    if plain.get("key") in CODES:  # the name of a response code, no key
        found["key"] = plain["key"]
    return found


class Line:
    """One session at a time. For the tasks of one trio loop.

    Args:
        name: who we are in the report.
        connect: opens the transport.
        state_of: answers a platform's question about one of our references.

    Attributes:
        record: takes what passes; replaced by each case.
        notices: unasked texts so far.
        ended: why there is no session.
    """

    def __init__(
        self, name: str, vocabulary: Vocabulary, peer: str, key: PeerKey, connect: Connect, *,
        key_version: int = 1, state_of: Callable[[str], str] = lambda reference: "DESCONOCIDA",
    ) -> None:  # fmt: skip
        self.name = name
        self.peer = peer
        self._vocabulary = vocabulary
        self._key = key
        self._key_version = key_version
        self._connect = connect
        self._state_of = state_of
        self._session: Initiator | None = None
        self._stream: trio.abc.Stream | None = None
        self._answers: dict[int, list[Message | BadRequest]] = {}
        self._count = 0
        self._news = trio.Event()
        self._last_id = 0
        self._sending = trio.Lock()
        self.record: Record = lambda way, message: None
        self.notices: list[Notice] = []
        self.asked: list[str] = []
        self.ended = "never signed on"

    @property
    def is_open(self) -> bool:
        return self._session is not None

    async def open(self, nursery: trio.Nursery) -> None:
        """Sign on; a task in `nursery` reads until the session ends. Raises: NoSession."""
        if self._session is not None:
            return
        session = Initiator(
            vocabulary=self._vocabulary, peer=self.peer, key=self._key,
            nonce=secrets.token_bytes(16), key_version=self._key_version,
        )  # fmt: skip
        stream: trio.abc.Stream | None = None
        try:
            with trio.fail_after(SIGN_ON_S):
                stream = await self._connect()
                await stream.send_all(session.sign_on())
                while not session.signed_on:
                    data = bytes(await stream.receive_some(READ_BYTES_MAX))
                    self._take(session, data)
                    if session.closing is not None or not data:
                        raise NoSession(session.closing or "closed by the peer")
        except (trio.TooSlowError, OSError, DialError, trio.BrokenResourceError) as error:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise NoSession(_why(error)) from None
        except BaseException:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise
        self._session, self._stream, self.ended = session, stream, ""
        nursery.start_soon(self._read, session, stream)

    async def close(self) -> None:
        """End the connection without a word; what is in flight stays unknown."""
        stream = self._stream
        self._end(self._session, "closed by us")
        if stream is not None:
            await trio.aclose_forcefully(stream)

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def send(self, *messages: Message) -> None:
        """Send in one write. Raises: NoAnswer: there is no session any more."""
        async with self._sending:
            session, stream = self._session, self._stream
            if session is None or stream is None:
                raise NoAnswer(f"no session: {self.ended}")
            for message in messages:
                self.record(f"{self.name} → candidate", shown(message))
            try:
                await stream.send_all(session.encode(list(messages)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._end(session, "the connection broke")
                raise NoAnswer("the connection broke while sending") from None
            except BaseException:
                self._end(session, "cancelled while sending")
                await trio.aclose_forcefully(stream)
                raise

    def answers(self, number: int) -> list[Message | BadRequest]:
        """All answers under a number so far."""
        return self._answers.get(number, [])

    async def answer(self, number: int, position: int, wait_s: float) -> Message:
        """The answer under a number that comes after `position` others.

        Raises: NoAnswer: not in time, the session ended first, or it is unreadable.
        """
        with trio.move_on_after(wait_s):
            while len(self.answers(number)) <= position:
                if self._session is None:
                    raise NoAnswer(f"no answer: {self.ended}")
                await self._news.wait()
        found = self.answers(number)
        if len(found) <= position:
            raise NoAnswer(f"no answer within {wait_s:g} s")
        message = found[position]
        if isinstance(message, BadRequest):
            raise NoAnswer(f"an unreadable answer (field {message.field})")
        return message

    async def ask(self, message: Any, wait_s: float) -> Message:
        """Send a request and wait for its answer. Raises: NoAnswer."""
        number = getattr(message, self._vocabulary.correlation)
        position = len(self.answers(number))
        await self.send(message)
        return await self.answer(number, position, wait_s)

    async def _read(self, session: Initiator, stream: trio.abc.Stream) -> None:
        reason = "closed by the candidate"
        silent_s = 0.0
        try:
            while session.closing is None:
                data: bytes | None = None
                with trio.move_on_after(session.heartbeat_s):
                    data = bytes(await stream.receive_some(READ_BYTES_MAX))
                if data == b"":
                    break
                silent_s = 0.0 if data else silent_s + session.heartbeat_s
                answers = self._take(session, data) if data else []
                # Sealed under the lock, as all is: frames are counted in the order of sending.
                async with self._sending:
                    owed = b"" if data else session.silence(silent_s)
                    owed += session.encode(answers) if answers else session.output()
                    if owed:
                        await stream.send_all(owed)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            reason = "the connection broke"
        finally:
            self._end(session, session.closing or reason)
            await trio.aclose_forcefully(stream)

    def _take(self, session: Initiator, data: bytes) -> list[Message]:
        """Keep what came; returns the answers that it is owed."""
        owed: list[Message] = []
        for message in session.receive(data):
            self.record(f"candidate → {self.name}", shown(message))
            if isinstance(message, Notice):
                self.notices.append(message)
            elif isinstance(message, Status):
                self.asked.append(message.reference)
                answer = StatusAnswer(
                    message.id, self._state_of(message.reference), message.reference
                )
                self.record(f"{self.name} → candidate", shown(answer))
                owed.append(answer)
            elif not isinstance(message, Error):
                self._keep(message)
        self._tell()
        return owed

    def _keep(self, message: Message | BadRequest) -> None:
        number = getattr(message, self._vocabulary.correlation, None)
        self._count += 1
        if isinstance(number, int) and self._count <= KEPT_MAX:
            self._answers.setdefault(number, []).append(message)

    def _end(self, session: Initiator | None, reason: str) -> None:
        if session is None or session is not self._session:
            return
        self._session = self._stream = None
        self.ended = reason
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer to the sign-on within {SIGN_ON_S:g} s"
    if isinstance(error, DialError):
        return f"no connection: {error}"
    if isinstance(error, OSError):
        return f"no connection: {error.strerror or error}"
    return "the connection broke during the sign-on"
