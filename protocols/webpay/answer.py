"""HTTP answers as shops of that time give them, read piece by piece.

Status lines of HTTP/1.0 and 1.1, bare line feeds, bodies by chunks, by length or until the
connection ends, and what is no HTTP at all: then everything is the body. Only the first answer of a
connection counts; whatever follows a body of known length is ignored.
"""

import re
from typing import Final

ANSWER_BYTES_MAX: Final = 64 << 10

_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_STATUS: Final = re.compile(rb"HTTP/[0-9]\.[0-9] +([0-9]{3})")
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,6})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")


class Answer:
    """One answer while it comes.

    Attributes:
        raw: all bytes, head and what came behind the body included.
        status: of the status line; None: there is none (yet).
        body: without framing, as far as it is here.
        ended: nothing that comes can change it any more.
        whole: it ended as it announced; False for one that is cut short, malformed, or too long.
    """

    def __init__(self, bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._at = -1  # where the body's next piece begins; -1: the head is not complete
        self._length: int | None = None
        self._chunked = False
        self.raw = bytearray()
        self.status: int | None = None
        self.body = bytearray()
        self.ended = False
        self.whole = False

    def feed(self, data: bytes) -> bool:
        """Take what was read; True: the answer has ended."""
        if self.ended:
            return True
        self.raw += data
        if len(self.raw) > self._bytes_max:
            self.ended = True
            return True
        if self._at < 0:
            self._head()
        if self._at >= 0:
            self._take()
        return self.ended

    def close(self) -> None:
        """The connection has ended: so has an answer that told no length."""
        if self.ended:
            return
        self.ended = True
        if self._at < 0:
            if _may_be_http(self.raw):
                return  # cut within its head
            self.body[:] = self.raw
        self.whole = self._length is None and not self._chunked

    def _head(self) -> None:
        """Read heads until one is final; 1xx ones only announce it."""
        start = 0
        while _may_be_http(self.raw[start:]):
            end = _HEAD_END.search(self.raw, start)
            if end is None:
                return
            found = _STATUS.match(self.raw, start)
            if found is None:
                return
            if found[1][:1] != b"1":
                self.status = int(found[1])
                self._framing(bytes(self.raw[start : end.start()]))
                self._at = end.end()
                return
            start = end.end()

    def _framing(self, head: bytes) -> None:
        """What the headers say about the end of the body; chunks go before a length."""
        for line in head.split(b"\n")[1:]:
            name, _, value = line.partition(b":")
            name, value = name.strip().lower(), value.strip()
            if name == b"transfer-encoding":
                self._chunked = value.lower().endswith(b"chunked")
            elif name == b"content-length" and _LENGTH.fullmatch(value):
                self._length = int(value)
        if self._chunked:
            self._length = None

    def _take(self) -> None:
        if self._chunked:
            while not self.ended and self._chunk():
                pass
            return
        self.body += self.raw[self._at :]
        self._at = len(self.raw)
        if self._length is not None and len(self.body) >= self._length:
            del self.body[self._length :]
            self.ended = self.whole = True

    def _chunk(self) -> bool:
        """Take one chunk; False: it is not all here."""
        head = _CHUNK.match(self.raw, self._at)
        if head is None:
            # A size is short: with this much and no line end there will be none.
            self.ended = len(self.raw) - self._at > 1024
            return False
        size = int(head[1], 16)
        if size == 0:
            self.ended = self.whole = True
            return False
        end = head.end() + size
        tail = _LINE_END.match(self.raw, end)
        if tail is None:
            self.ended = len(self.raw) > end + 1
            return False
        self.body += self.raw[head.end() : end]
        self._at = tail.end()
        return True


def _may_be_http(data: bytes | bytearray) -> bool:
    return bytes(data[:5]) == b"HTTP/"[: len(data[:5])] and bool(data)


def parse_answer(raw: bytes) -> Answer:
    """Read an answer that came whole, its connection closed behind it."""
    answer = Answer()
    answer.feed(raw)
    answer.close()
    return answer
