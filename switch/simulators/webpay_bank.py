"""The bank that knows the holders of the Webpay demonstration: RUT 11.111.111-1, password 123.

POST /autenticar   {"rut": …, "password": …, …} to {"outcome": "TSY"} or {"outcome": "TSN"}
"""

import hmac
from functools import partial
from typing import Any, Final

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from switch.web import edge

PATH: Final = "/autenticar"
RUT: Final = "11111111-1"
PASSWORD: Final = "123"


class Question(msgspec.Struct, frozen=True):
    """What a bank is asked; the rest of it does not matter here."""

    rut: str
    password: str
    bank: str = ""
    kind: str = ""

    def __repr__(self) -> str:
        return f"Question({self.bank})"


class HolderBank:
    """The bank. What it does wrong is set from outside.

    Attributes:
        asked: (bank, kind) of every question, in order.
        outcome: said in place of what it found. delay_s: before it answers. status: of HTTP.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.outcome = ""
        self.delay_s = 0.0
        self.status = 200

    def app(self) -> Any:
        """The ASGI application."""
        return Starlette(routes=[Route(PATH, self._answer, methods=["POST"])])

    async def run(self, port: int, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on loopback until cancelled. Raises: OSError: the port is taken."""
        listener = (await trio.open_tcp_listeners(port, host="127.0.0.1"))[0]
        serve = partial(edge.serve_http, self.app(), listener, stop=trio.Event())
        await serve(task_status=task_status)

    async def _answer(self, request: Request) -> Response:
        try:
            question = msgspec.json.decode(await request.body(), type=Question)
        except msgspec.MsgspecError:
            return JSONResponse({}, 400)
        self.asked.append((question.bank, question.kind))
        if self.delay_s:
            await trio.sleep(self.delay_s)
        digits = question.rut.replace(".", "").replace(" ", "").upper()
        good = hmac.compare_digest(digits.encode(), RUT.encode())
        good &= hmac.compare_digest(question.password.encode(), PASSWORD.encode())
        return JSONResponse({"outcome": self.outcome or ("TSY" if good else "TSN")}, self.status)
