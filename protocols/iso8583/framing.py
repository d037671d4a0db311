"""Framings of payment hosts as data: how messages are cut out of a stream, and put into one.

    before | length | after | header | message | trailer

A `Framing` is what a link or a listener is configured with; `framer` makes the part that keeps the
state of one connection, and `wrap` is its opposite.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

from msgspec import Struct

from core_ext._frames import LengthPrefixed
from core_ext._iso8583 import Layout, SelfDelimited

LENGTHS = ("bin", "bcd", "ascii", "hex", "none")
HEADERS = ("none", "tpdu", "echo", "fixed")
KEEP_ALIVES = ("none", "silent", "answered")
FRAME_BYTES_MAX = 8192
HEADER_BYTES_MAX = 64
_LENGTH_BYTES = {"none": 0, "ascii": 4, "hex": 4}
_LENGTH_MAX = {"bin": 256, "bcd": 100, "ascii": 10, "hex": 16}
_KEYS = (
    "length", "bytes", "order", "counts_self", "counts_trailer", "before", "after", "header",
    "header_kind", "header_bytes", "trailer", "keep_alive", "frame_bytes_max",
)  # fmt: skip


class FramingError(ValueError):
    """A framing that cannot be.

    Attributes:
        key: the key at fault.
        what: what is wrong with it.
    """

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key}: {what}")
        self.key = key
        self.what = what


class Framing(Struct, frozen=True, kw_only=True, dict=True):
    """How a host frames its messages. The default: two bytes big-endian that count the message.

    Fields:
        length: bin, bcd (two digits a byte), ascii (decimal digits), hex (ASCII hex digits), none
            (the trailer ends a message, or without one the dialect's layout does).
        length_bytes: size of the length on the wire.
        order: of a binary length: big or little.
        counts_self, counts_trailer: the length counts itself; the trailer.
        before, after: fixed bytes around the length, not counted.
        header_kind: none; tpdu: 5 bytes whose two addresses change places in the answer; echo:
            opaque, the answer carries the request's; fixed: opaque, ours is always the same.
        header: what our own requests carry, counted by the length.
        header_bytes: size of the header.
        trailer: bytes after a message.
        keep_alive: of a frame of length zero: none (an error), silent (passed over), answered (by
            the same).
        frame_bytes_max: longest header and message taken.
    """

    length: str = "bin"
    length_bytes: int = 2
    order: str = "big"
    counts_self: bool = False
    counts_trailer: bool = False
    before: bytes = b""
    after: bytes = b""
    header_kind: str = "none"
    header: bytes = b""
    header_bytes: int = 0
    trailer: bytes = b""
    keep_alive: str = "silent"
    frame_bytes_max: int = FRAME_BYTES_MAX

    @classmethod
    def from_dict(cls, keys: Mapping[str, Any]) -> Self:
        """From keys as in TOML, bytes as hexadecimal digits. `header` alone means `header_kind`
        tpdu where it has 5 bytes and begins with 60, else echo.

        Raises:
            FramingError: with the key at fault.
        """
        for key in keys:
            if key not in _KEYS:
                raise FramingError(str(key), f"there is no such key; there are {', '.join(_KEYS)}")
        length = _choice(keys, "length", LENGTHS, "bin")
        header = _hex(keys, "header", HEADER_BYTES_MAX)
        natural = "none"
        if header:
            natural = "tpdu" if len(header) == 5 and header[0] == 0x60 else "echo"
        kind = _choice(keys, "header_kind", HEADERS, natural)
        size = 5 if kind == "tpdu" else len(header)
        self = cls(
            length=length,
            length_bytes=_number(
                keys, "bytes", 0, 8, {"none": 0, "ascii": 4, "hex": 4}.get(length, 2)
            ),
            order=_choice(keys, "order", ("big", "little"), "big"),
            counts_self=_flag(keys, "counts_self"),
            counts_trailer=_flag(keys, "counts_trailer"),
            before=_hex(keys, "before", 16),
            after=_hex(keys, "after", 16),
            header_kind=kind,
            header=header,
            header_bytes=_number(keys, "header_bytes", 0, HEADER_BYTES_MAX, size),
            trailer=_hex(keys, "trailer", 16),
            keep_alive=_choice(keys, "keep_alive", KEEP_ALIVES, "silent"),
            frame_bytes_max=_number(keys, "frame_bytes_max", 1, 1 << 20, FRAME_BYTES_MAX),
        )
        self._check()
        return self

    def _check(self) -> None:
        if self.header_kind == "none" and (self.header or self.header_bytes):
            raise FramingError("header", "there is no header of kind none")
        if self.header_kind == "tpdu" and self.header_bytes != 5:
            raise FramingError("header_bytes", "a TPDU has 5 bytes")
        if self.header_kind in ("echo", "fixed") and not self.header_bytes:
            raise FramingError("header_bytes", "expected the size of the header")
        if self.header and len(self.header) != self.header_bytes:
            raise FramingError("header_bytes", "not the size of the header")
        if self.header_kind == "fixed" and not self.header:
            raise FramingError("header", "a fixed header is missing")
        if self.length == "none":
            for key in ("length_bytes", "before", "after", "counts_self", "counts_trailer"):
                if getattr(self, key):
                    raise FramingError(key.removeprefix("length_"), "not without a length")
        if self.order == "little" and self.length != "bin":
            raise FramingError("order", "only a binary length is little-endian")
        try:
            self._framer(self._bytes_max(self.frame_bytes_max))
        except ValueError as error:
            raise FramingError("bytes", str(error)) from None

    def _bytes_max(self, limit: int) -> int:
        """Longest header and message that the limit, and the length's size, leave room for."""
        if self.length == "none":
            return limit
        reach: int = _LENGTH_MAX[self.length] ** self.length_bytes - 1
        reach -= self.length_bytes if self.counts_self else 0
        reach -= len(self.trailer) if self.counts_trailer else 0
        return min(limit, max(reach, 1))

    def _framer(self, frame_bytes_max: int) -> LengthPrefixed:
        return LengthPrefixed(
            frame_bytes_max,
            1 if self.keep_alive == "none" or self.length == "none" else 0,
            self.length_bytes,
            length=self.length,
            little_endian=self.order == "little",
            counts_self=self.counts_self,
            counts_trailer=self.counts_trailer,
            before=self.before,
            after=self.after,
            header_bytes=self.header_bytes,
            trailer=self.trailer or (b"\x03" if self.length == "none" else b""),
        )

    def framer(
        self, frame_bytes_max: int | None = None, layout: Layout | None = None
    ) -> LengthPrefixed | SelfDelimited:
        """A framer for one connection: `feed` gives frames of header and message, `b""` being a
        keep-alive; `broken` says why the stream is lost.

        Args:
            frame_bytes_max: a limit below the framing's own.
            layout: the dialect; needed where the layout itself ends a message.

        Raises:
            ValueError: there is neither length nor trailer, and no layout is given.
        """
        limit = self.frame_bytes_max
        if frame_bytes_max is not None:
            limit = min(limit, frame_bytes_max)
        if self.ended_by_layout:
            if layout is None:
                raise ValueError("the layout ends a message of this framing: a dialect is needed")
            return SelfDelimited(layout, limit, self.header_bytes)
        return self._framer(self._bytes_max(limit))

    @property
    def ended_by_layout(self) -> bool:
        """True where there is neither a length nor a trailer."""
        return self.length == "none" and not self.trailer

    def split(self, frame: bytes) -> tuple[bytes, bytes]:
        """Header and message of a frame."""
        return frame[: self.header_bytes], frame[self.header_bytes :]

    def answer_header(self, header: bytes) -> bytes:
        """The header of the answer to a request that came with `header`; of a request: `b""`."""
        if not header or self.header_kind == "fixed":
            return self.header or bytes(self.header_bytes)
        if self.header_kind == "tpdu":  # protocol, destination (2 bytes), origin (2 bytes)
            return header[:1] + header[3:5] + header[1:3]
        return header

    def wrap(self, message: bytes, header: bytes = b"") -> bytes:
        """A frame of a message: a request, or the answer to what came with `header`.

        Raises:
            ValueError: the message is too long, or holds the trailer that would end it.
        """
        return self.wrapped([header], [message])

    def wrapped(self, headers: Sequence[bytes], messages: Sequence[bytes]) -> bytes:
        """The frames of many messages in one buffer; no headers at all: they are all requests.

        Raises:
            ValueError: as `wrap`.
        """
        if self.header_bytes:
            given = headers or [b""] * len(messages)
            messages = [
                self.answer_header(header) + message
                for header, message in zip(given, messages, strict=True)
            ]
        if self.ended_by_layout:
            return b"".join(messages)
        wrap = self._wrapper.wrap
        return b"".join([wrap(message) for message in messages])

    def keep_alive_answer(self) -> bytes:
        """What is sent when a frame of length zero has come; may be nothing."""
        if self.keep_alive != "answered":
            return b""
        return self._wrapper.wrap(b"")

    @functools.cached_property
    def _wrapper(self) -> LengthPrefixed:
        return self._framer(self._bytes_max(self.frame_bytes_max))


def _choice(keys: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = keys.get(key, default)
    if value not in choices:
        raise FramingError(key, f"expected one of {', '.join(choices)}")
    return str(value)


def _number(keys: Mapping[str, Any], key: str, least: int, most: int, default: int) -> int:
    value = keys.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FramingError(key, f"expected a number from {least} to {most}")
    return value


def _flag(keys: Mapping[str, Any], key: str) -> bool:
    value = keys.get(key, False)
    if not isinstance(value, bool):
        raise FramingError(key, "expected true or false")
    return value


def _hex(keys: Mapping[str, Any], key: str, bytes_max: int) -> bytes:
    value = keys.get(key, "")
    try:
        data = bytes.fromhex(value)
    except (TypeError, ValueError):
        raise FramingError(key, "expected hexadecimal digits") from None
    if len(data) > bytes_max:
        raise FramingError(key, f"at most {bytes_max} bytes")
    return data
