"""Holders and shops for measurements of Webpay that cost next to nothing themselves.

A holder is a connection that posts what was sealed before the clock started, and reads of a page
only where it leads and its nonce. A shop says ACEPTADO at once: sealed before, too, because an ACK
is not bound to its payment and each is used once. What is left is the switch.
"""

import html
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlencode, urlsplit

import trio
from msgspec import Struct

from bench.load.server import BenchError
from switch.simulators.raw_answers import RawAnswer, RawRequest, converse
from switch.simulators.webpay_merchant import KIT_PATH
from switch.web.webpay_shop import MerchantKit

ENTRY: Final = "/filtroUnificado/bp_revision.cgi"
WAITING: Final = "/webpay/espera/"
POLL_S: Final = 0.1
PAYMENT_S: Final = 120.0
READ_BYTES: Final = 1 << 16
_NONCE: Final = re.compile(rb'name="nonce" value="([^"]*)"')
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
_LOCATION: Final = re.compile(rb"(?i)\r\nlocation: *([^\r]*)")
_COOKIE: Final = re.compile(rb"(?i)\r\nset-cookie: *([^;\r]*)")


class Bought(Struct):
    """One payment as its holder saw it. Times in seconds."""

    success: bool = False
    pages_s: list[float] = []
    whole_s: float = 0.0


class _Page(Struct):
    status: int
    location: str
    body: bytes


class QuickHolder:
    """One connection, on which holders pay one after the other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._stream: trio.SocketStream | None = None
        self._cookie = ""
        self._bought = Bought()

    async def aclose(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    async def pay(self, sealed: Sequence[tuple[str, str]], card: Mapping[str, str]) -> Bought:
        """Pay one order. Raises: BenchError: a page is not what it must be."""
        self._bought, self._cookie = Bought(), ""
        began = time.perf_counter()
        with trio.fail_after(PAYMENT_S):
            place = await self._led("POST", ENTRY, dict(sealed))
            page = await self._page("GET", place, {})
            nonce = _NONCE.search(page.body)
            if page.status != 200 or nonce is None:
                raise BenchError(f"no payment form: {page.status}")
            fields = {"nonce": html.unescape(nonce[1].decode()), **card}
            place = await self._led("POST", place, fields)
            while True:
                page = await self._page("GET", place, {})
                if page.status != 303 and not place.startswith(WAITING):
                    break
                if page.status == 303:
                    place = page.location
                else:
                    await trio.sleep(POLL_S)
        self._bought.whole_s = time.perf_counter() - began
        self._bought.success = b"Pago aprobado" in page.body
        return self._bought

    async def _led(self, method: str, path: str, fields: Mapping[str, str]) -> str:
        page = await self._page(method, path, fields)
        if page.status != 303:
            raise BenchError(f"{path.split('/')[2]} answers {page.status}")
        return page.location

    async def _page(self, method: str, path: str, fields: Mapping[str, str]) -> _Page:
        """One request and its answer; timed."""
        body = urlencode(fields).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: webpay\r\ncookie: {self._cookie}\r\n"
        if method == "POST":
            head += "content-type: application/x-www-form-urlencoded\r\n"
            head += f"content-length: {len(body)}\r\n"
        began = time.perf_counter()
        if self._stream is None:
            self._stream = await trio.open_tcp_stream(*self._address)
        await self._stream.send_all(f"{head}\r\n".encode() + body)
        page = await self._answer(self._stream)
        self._bought.pages_s.append(time.perf_counter() - began)
        return page

    async def _answer(self, stream: trio.SocketStream) -> _Page:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._more(stream)
        head, _, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        while length is not None and len(body) < int(length[1]):
            body += await self._more(stream)
        cookie, location = _COOKIE.search(head), _LOCATION.search(head)
        if cookie is not None:
            self._cookie = cookie[1].decode()
        return _Page(int(head.split(b" ")[1]), location[1].decode() if location else "", body)

    async def _more(self, stream: trio.SocketStream) -> bytes:
        piece = bytes(await stream.receive_some(READ_BYTES))
        if not piece:
            raise BenchError("the switch has closed a holder's connection")
        return piece


class QuickShop:
    """Where a shop is notified: it accepts everything.

    Args:
        acks: sealed, as many as there will be payments; none for a closing page.
    """

    def __init__(self, acks: Sequence[str]) -> None:
        self._acks: Iterator[str] = iter(acks)

    async def serve(self, port: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen until cancelled. Raises: OSError: the port is taken."""
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1024)
        task_status.started()
        await trio.serve_listeners(self._one, listeners)

    async def _one(self, stream: trio.SocketStream) -> None:
        await converse(stream, self._answer)

    async def _answer(self, request: RawRequest) -> RawAnswer:
        word = next(self._acks) if request.path == KIT_PATH else "ACEPTADO"
        return RawAnswer((word.encode(),))


def sealed_acks(kit: MerchantKit, count: int) -> list[str]:
    """Return replies of a kit; a millisecond each."""
    return [kit.seal_message(b"ACK") for _ in range(count)]
