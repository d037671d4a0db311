"""One ISO 8583 connection after its bytes have come: frames, MACs, sign-on and network management.

Sans-I/O: `receive` takes what a read brought, `output` gives what is to be written. One read is
handled whole: all its frames are decoded by one native call and their MACs verified by another, and
what is sent within a turn is MACed by a third.

    0800, DE70 = 001 sign-on   002 sign-off   301 echo   201 cutover   101 key exchange

These are answered here, and the owner sees each as an event. Everything else is the owner's, as
`Received`, once the peer has signed on. A wrong MAC is answered 63 where an answer is due, a
malformed request 30 where its MTI and STAN are sound, a request before sign-on 12; none of them is
delivered, and an answer is never answered.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from core_ext._mac import MacKey
from protocols.iso8583.dialect import Dialect, FormatError, Framing, Message
from protocols.iso8583.keys import EXCHANGED, HostKeys, KeyRefused
from protocols.iso8583.times import day_number, transmission_time

SIGN_ON: Final = "001"
SIGN_OFF: Final = "002"
KEY_EXCHANGE: Final = "101"
CUTOVER: Final = "201"
ECHO: Final = "301"

ASKED_MAX: Final = 32
"""Network management requests of ours that may wait for their answers; the oldest is forgotten."""

CANDIDATES_MAX: Final = 64
"""Hosts that one listener tells apart by their MAC keys."""

_MAC_BYTES = 8
_REQUESTS = "0246"  # third digit of the MTI: request, advice, notification, instruction
_ANSWERED = "02"  # of these, what an answer is due to
_MANAGEMENT = "8"  # second digit


class Received(Struct, frozen=True, gc=False):
    """A message with a good MAC, for the owner.

    Fields:
        message: decoded.
        is_request: the other side began it; else it is an answer to be matched.
        key_version: of the MAC key it verified under; 0 on a link without MACs.
        header: of the frame it came in; its answer goes back under it.
    """

    message: Message
    is_request: bool
    key_version: int = 0
    header: bytes = b""


class SignedOn(Struct, frozen=True, gc=False):
    """Traffic may flow from now on."""


class SignOnRefused(Struct, frozen=True, gc=False):
    """The host answered our sign-on with another code than 00; the connection is closing."""

    code: str


class SignedOff(Struct, frozen=True, gc=False):
    """The peer has signed off, or confirmed that we did: no traffic until the next sign-on."""


class EchoAnswered(Struct, frozen=True, gc=False):
    """An echo of ours was answered."""


class Cutover(Struct, frozen=True, gc=False):
    """The peer has begun a new business date: `day` counts from 1970-01-01; None: not said."""

    day: int | None


class KeyChanged(Struct, frozen=True, gc=False):
    """A key exchange is done: both sides have the key, and it is used from now on.

    Where the peer began it (`ours` is False) the answer is in the output already: the key must be
    durably stored before that leaves.
    """

    kind: str
    version: int
    key: bytes
    ours: bool

    def __repr__(self) -> str:
        return f"KeyChanged({self.kind!r}, {self.version}, ***, ours={self.ours})"


class ExchangeRefused(Struct, frozen=True, gc=False):
    """A key exchange has failed, at the peer (`ours`) or here; the keys are as they were.

    `kind` is "" where the peer named one that is not exchanged.
    """

    kind: str
    code: str
    ours: bool


class Refused(Struct, frozen=True, gc=False):
    """A message that was not delivered. What it was owed is in the output.

    Fields:
        code: 63 wrong MAC, 30 malformed, 12 before sign-on or unknown network management.
        mti, stan: of the message, where they are sound, else "".
        element: the data element at fault of a malformed one, else "".
        reason: for logs; quotes nothing of the peer.
    """

    code: str
    mti: str
    stan: str
    element: str
    reason: str


Event = (
    Received
    | SignedOn
    | SignOnRefused
    | SignedOff
    | EchoAnswered
    | Cutover
    | KeyChanged
    | ExchangeRefused
    | Refused
)


class _Asked(Struct, frozen=True, gc=False):
    """A network management request of ours that waits for its answer."""

    function: str
    kind: str = ""
    version: int = 0
    key: bytes = b""


def answer_mti(mti: str) -> str:
    """MTI of the answer to a request, or to its repeat: 0100 → 0110, 0421 → 0430."""
    return f"{mti[:2]}{int(mti[2]) + 1}0"


class Connection:
    """One connection to, or from, a host. Not thread-safe; owned by the task of its socket.

    The peer's mistakes never raise. Whoever drives this writes `output()` after every `receive`,
    and closes the socket after that when `closing` is set.

    Args:
        dialect: compiled.
        framing: how messages are cut out of the stream.
        keys: of the host, one object for all its connections; or those of several hosts, of which
            the first message tells which one it is (`keys`).
        initiator: we connected: sign-on, echo and sign-off are ours to begin.
        wall_ns: for DE7 of network management messages, and for dates without a year.
        next_stan: a STAN of six digits that is free on this link.
        frame_bytes_max: longest message accepted and sent, in bytes.

    Raises:
        ValueError: too many hosts to tell apart, or a dialect in which what is said here cannot
            be said (DE7, 11, 39, 70 and a MAC beside them).

    Attributes:
        closing: why the connection must be closed, or None. For logs.
        signed_on: traffic may flow.
        keys: the host's; None until the first good message, where there were several.
        proved: a message with a good MAC has come (any message, on a link without MACs).
        mac_failures, format_errors: messages refused so far.
        early: messages other than network management that came before sign-on.
        unmatched: answers to network management that nobody had asked.
        echoes_missed: echoes in a row that had no answer when the next one was sent.
    """

    __slots__ = (
        "_asked",
        "_bodies",
        "_candidates",
        "_dialect",
        "_echo_heard",
        "_echoes_open",
        "_framer",
        "_framing",
        "_has_header",
        "_headers",
        "_initiator",
        "_keep_alives",
        "_next_stan",
        "_signers",
        "_signs",
        "_wall_ns",
        "closing",
        "early",
        "echoes_missed",
        "format_errors",
        "frame_bytes_max",
        "keys",
        "mac_failures",
        "proved",
        "signed_on",
        "unmatched",
    )

    def __init__(
        self,
        dialect: Dialect,
        framing: Framing,
        keys: HostKeys | Sequence[HostKeys],
        *,
        initiator: bool,
        wall_ns: Callable[[], int],
        next_stan: Callable[[], str],
        frame_bytes_max: int = 8192,
    ) -> None:
        candidates = [keys] if isinstance(keys, HostKeys) else list(keys)
        if not 1 <= len(candidates) <= CANDIDATES_MAX:
            raise ValueError(f"a listener tells 1 to {CANDIDATES_MAX} hosts apart")
        if len(candidates) > 1 and not all(known.signs for known in candidates):
            raise ValueError("hosts without MACs cannot be told apart")
        _check(dialect, candidates[0].signs)
        self._dialect = dialect
        self._framing = framing
        self._framer = framing.framer(frame_bytes_max, dialect)
        self._has_header = framing.header_bytes > 0
        self._keep_alives = b""
        self._initiator = initiator
        self._wall_ns = wall_ns
        self._next_stan = next_stan
        self._candidates = candidates
        self.keys: HostKeys | None = candidates[0] if len(candidates) == 1 else None
        self._signs = candidates[0].signs
        self._asked: dict[str, _Asked] = {}
        self._echo_heard = False
        self._echoes_open = 0
        self._bodies: list[bytes] = []
        self._headers: list[bytes] = []
        self._signers: list[MacKey] = []
        self.frame_bytes_max = min(frame_bytes_max, framing.frame_bytes_max)
        self.closing: str | None = None
        self.proved = False
        self.signed_on = False
        self.mac_failures = 0
        self.format_errors = 0
        self.early = 0
        self.unmatched = 0
        self.echoes_missed = 0

    # ---- in

    def receive(self, data: bytes) -> list[Event]:
        """Take what one read brought; return what the owner must know, in order of arrival."""
        if self.closing is not None:
            return []
        frames = self._framer.feed(data)
        events: list[Event] = []
        if frames:
            if b"" in frames:
                frames = self._without_keep_alives(frames)
            headers: list[bytes] = []
            if self._has_header:
                headers, frames = self._split(frames)
            messages = self._dialect.decode_many(frames)
            if self.keys is None:
                self._identify(messages)
            self._take(messages, headers, self._versions(messages), events)
        if self._framer.broken is not None and self.closing is None:
            self.closing = f"framing: {self._framer.broken}"
        return events

    def _without_keep_alives(self, frames: list[bytes]) -> list[bytes]:
        kept = [frame for frame in frames if frame]
        self._keep_alives += self._framing.keep_alive_answer() * (len(frames) - len(kept))
        return kept

    def _split(self, frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        pairs = [self._framing.split(frame) for frame in frames]
        return [header for header, _ in pairs], [message for _, message in pairs]

    def _take(
        self,
        messages: Sequence[Message | FormatError],
        headers: Sequence[bytes],
        versions: Sequence[int],
        events: list[Event],
    ) -> None:
        signs = self._signs
        for i, message in enumerate(messages):
            header = headers[i] if headers else b""
            version = versions[i]
            if isinstance(message, FormatError):
                self._malformed(message, header, events)
                continue
            mti = message.mti
            if not version and signs:
                self._wrong_mac(message, header, events)
                if self.closing is not None:
                    return
                continue
            self.proved = True
            if mti[1] == _MANAGEMENT:
                self._management(message, version, header, events)
            elif self.signed_on and (mti[2] not in _ANSWERED or "11" in message):
                events.append(Received(message, mti[2] in _REQUESTS, version, header))
            else:
                self._not_delivered(message, version, header, events)
            if self.closing is not None:
                return

    def _versions(self, messages: Sequence[Message | FormatError]) -> Sequence[int]:
        """The key version of each message; 0 for a wrong MAC, and where there are none."""
        if not self._signs or self.keys is None:
            return [0] * len(messages)
        inputs, macs = [], []
        for message in messages:
            if isinstance(message, FormatError):
                inputs.append(b"")
                macs.append(b"")
            else:
                inputs.append(message.mac_input)
                macs.append(message.mac or b"")
        return self.keys.verify_many(inputs, macs)

    def _identify(self, messages: Iterable[Message | FormatError]) -> None:
        """Find the host whose key verifies the first message that can be read."""
        for message in messages:
            if isinstance(message, FormatError):
                continue
            given = [message.mac_input], [message.mac or b""]
            for keys in self._candidates:
                if keys.verify_many(*given)[0] > 0:
                    self.keys = keys
                    return
            self.closing = "no host's key verifies this message"
            return

    @property
    def pending_bytes(self) -> int:
        """Bytes of a message that is not whole yet."""
        return self._framer.pending_bytes

    def heard_echo(self) -> bool:
        """Whether the peer has sent an echo, with a good MAC, since the last call."""
        heard, self._echo_heard = self._echo_heard, False
        return heard

    # ---- what is refused

    def _malformed(self, error: FormatError, header: bytes, events: list[Event]) -> None:
        self.format_errors += 1
        partial = error.partial
        mti, stan = partial.get("mti", ""), partial.get("11", "")
        events.append(Refused("30", mti, stan, error.element, error.reason))
        if stan and mti and mti[2] in _ANSWERED:
            answer: dict[str, object] = {"mti": answer_mti(mti), "39": "30"}
            answer |= {name: partial[name] for name in ("7", "11", "37", "41") if name in partial}
            self._send(answer, header)

    def _wrong_mac(self, message: Message, header: bytes, events: list[Event]) -> None:
        self.mac_failures += 1
        reason = "wrong MAC" if message.mac else "no MAC"
        self._refuse(message, "63", reason, 0, header, events)

    def _not_delivered(
        self, message: Message, version: int, header: bytes, events: list[Event]
    ) -> None:
        if self.signed_on:
            self.format_errors += 1
            self._refuse(message, "30", "no STAN", version, header, events, "11")
            return
        self.early += 1
        self._refuse(message, "12", "before sign-on", version, header, events)

    def _refuse(
        self,
        message: Message,
        code: str,
        reason: str,
        version: int,
        header: bytes,
        events: list[Event],
        element: str = "",
    ) -> None:
        """Answer with `code` where an answer is due and can be told apart by its STAN."""
        mti, stan = message.mti, message.get("11", "")
        events.append(Refused(code, mti, stan, element, reason))
        if stan and mti[2] in _ANSWERED:
            self._reply(message, {"39": code}, version, header)

    # ---- network management

    def _management(
        self, message: Message, version: int, header: bytes, events: list[Event]
    ) -> None:
        function = message.get("70", "")
        if message.mti[2] not in _ANSWERED:
            self._management_answer(message, events)
        elif not function or "11" not in message:
            self.format_errors += 1
            element = "11" if function else "70"
            self._refuse(message, "30", "missing", version, header, events, element)
        elif function == KEY_EXCHANGE:
            self._take_key(message, version, header, events)
        elif function == CUTOVER:
            self._take_cutover(message, version, header, events)
        elif function == ECHO:
            self._echo_heard = True
            self._reply(message, {"39": "00"}, version, header)
        elif function == SIGN_ON and not self._initiator:
            self._reply(message, {"39": "00"}, version, header)
            self.signed_on = True
            events.append(SignedOn())
        elif function == SIGN_OFF:
            self._reply(message, {"39": "00"}, version, header)
            self.signed_on = False
            events.append(SignedOff())
        else:
            reason = "unknown network management function"
            self._refuse(message, "12", reason, version, header, events, "70")

    def _take_cutover(
        self, message: Message, version: int, header: bytes, events: list[Event]
    ) -> None:
        text, day = message.get("15", ""), None
        if text:
            try:
                day = day_number(text, self._wall_ns())
            except ValueError:
                self.format_errors += 1
                self._refuse(message, "30", "no such day", version, header, events, "15")
                return
        self._reply(message, {"39": "00"}, version, header)
        events.append(Cutover(day))

    def _take_key(self, message: Message, version: int, header: bytes, events: list[Event]) -> None:
        assert self.keys is not None
        kind, wrapped, check = (str(message.get("48." + tag, "")) for tag in ("30", "31", "32"))
        try:
            new, key = self.keys.accept(kind, wrapped, check)
        except KeyRefused as refused:
            self._reply(message, {"39": refused.code}, version, header)
            told = kind if kind in EXCHANGED else ""
            events.append(ExchangeRefused(told, refused.code, ours=False))
            return
        # The answer still goes out under the key that the request verified under.
        self._reply(message, {"39": "00"}, version, header)
        events.append(KeyChanged(kind, new, key, ours=False))

    def _management_answer(self, message: Message, events: list[Event]) -> None:
        asked = self._asked.pop(message.get("11", ""), None)
        code = message.get("39", "")
        if asked is None or message.get("70", asked.function) != asked.function:
            self.unmatched += 1
            return
        match asked.function:
            case "001" if code == "00":
                self.signed_on = True
                events.append(SignedOn())
            case "001":
                self.closing = "the host refused our sign-on"
                events.append(SignOnRefused(code))
            case "002":
                events.append(SignedOff())
            case "301":
                self._echoes_open = self.echoes_missed = 0
                events.append(EchoAnswered())
            case "101":
                self._key_answered(asked, code, events)

    def _key_answered(self, asked: _Asked, code: str, events: list[Event]) -> None:
        assert self.keys is not None
        if code == "00":
            self.keys.promote(asked.kind, asked.version)
            events.append(KeyChanged(asked.kind, asked.version, asked.key, ours=True))
            return
        self.keys.forget(asked.kind, asked.version)
        events.append(ExchangeRefused(asked.kind, code, ours=True))

    # ---- out

    def sign_on(self) -> None:
        """Ask for traffic; by the side that connected, as often as it likes."""
        assert self._initiator, "sign-on is for the side that connected"
        self._ask(_Asked(SIGN_ON))

    def sign_off(self) -> None:
        """Say that no more requests will come; by the side that connected."""
        assert self._initiator, "sign-off is for the side that connected"
        self.signed_on = False
        self._ask(_Asked(SIGN_OFF))

    def echo(self) -> None:
        """Ask whether the host is there; one that is still unanswered counts as missed now."""
        assert self._initiator, "echoes are for the side that connected"
        self.echoes_missed = self._echoes_open
        self._echoes_open += 1
        self._ask(_Asked(ECHO))

    def cutover(self, month_day: str) -> None:
        """Tell the peer that a new business date has begun: MMDD."""
        self._ask(_Asked(CUTOVER), {"15": month_day})

    def exchange_key(self, kind: str, key: bytes) -> None:
        """Send a new MAC or data key, wrapped under the zone key.

        Store the key before: from now on what comes under it is accepted, and it is used from the
        peer's answer on (`KeyChanged`). Without an answer, send the same key again.

        Raises:
            LookupError: the link has no zone key.
            ValueError: unknown kind, or a key of the wrong size.
        """
        assert self.keys is not None, "no host yet"
        tags = self.keys.offer(kind, key)
        version = self.keys.add(kind, key, pending=True)
        self._ask(_Asked(KEY_EXCHANGE, kind, version, key), {"48": tags})

    def request(self, mti: str, elements: Mapping[str, object]) -> None:
        """Put a request into the output, under the newest MAC key.

        Args:
            elements: all of the message but MTI and MAC, with "7" and "11".

        Raises:
            ValueError: an element does not fit the dialect, or the message is too long: our fault.
        """
        assert self.signed_on, "no traffic before sign-on"
        self._send({"mti": mti, **elements}, b"")

    def answer(self, received: Received, elements: Mapping[str, object]) -> None:
        """Answer a request: what the dialect echoes, and `elements`.

        Raises:
            ValueError: as `request`.
        """
        self._reply(received.message, elements, received.key_version, received.header)

    def output(self) -> bytes:
        """What is to be written now, in the order in which it was asked for; once."""
        before, self._keep_alives = self._keep_alives, b""
        bodies = self._bodies
        if not bodies:
            return before
        signers, headers = self._signers, self._headers
        self._bodies, self._signers, self._headers = [], [], []
        if signers:
            bodies = self._dialect.sealed(bodies, _macs(bodies, signers))
        return before + self._framing.wrapped(headers, bodies)

    def _ask(self, asked: _Asked, elements: Mapping[str, object] | None = None) -> None:
        stan = self._next_stan()
        if len(self._asked) >= ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        self._asked[stan] = asked
        sent = transmission_time(self._wall_ns())
        message = {"mti": "0800", "7": sent, "11": stan, "70": asked.function}
        self._send({**message, **(elements or {})}, b"")

    def _send(self, message: Mapping[str, object], header: bytes) -> None:
        """Encode and queue, to be MACed with the newest key."""
        if not self._signs:
            self._queue(self._dialect.encode(message), None, header)
        elif self.keys is not None:  # nobody is told anything under a key we do not share
            body = self._dialect.encode_for_mac(message)
            self._queue(body, self.keys.signing_key(), header)

    def _reply(
        self, message: Message, elements: Mapping[str, object], version: int, header: bytes
    ) -> None:
        """Answer by splice and queue, to be MACed with the key of this version; 0: the newest."""
        if not self._signs:
            self._queue(message.answer(elements), None, header)
        elif self.keys is not None:
            self._queue(message.answer(elements, mac=True), self.keys.signing_key(version), header)

    def _queue(self, body: bytes, signer: MacKey | None, header: bytes) -> None:
        if len(header) + len(body) + _MAC_BYTES > self.frame_bytes_max:
            raise ValueError("the message is longer than a frame may be")
        self._bodies.append(body)
        if signer is not None:
            self._signers.append(signer)
        if self._has_header:
            self._headers.append(header)


def _check(dialect: Dialect, signs: bool) -> None:
    """Refuse a dialect without the elements of network management before traffic finds out."""
    encode = dialect.encode_for_mac if signs else dialect.encode
    for answered in ({}, {"39": "00"}):
        encode({"mti": "0800", "7": "0101000000", "11": "000000", "70": SIGN_ON, **answered})


def _macs(bodies: list[bytes], signers: list[MacKey]) -> list[bytes]:
    """The MAC of each body; one native call where all go out under one key."""
    first = signers[0]
    if all(signer is first for signer in signers):
        return first.mac_many(bodies, _MAC_BYTES)
    return [signer.mac(body)[:_MAC_BYTES] for signer, body in zip(signers, bodies, strict=True)]
