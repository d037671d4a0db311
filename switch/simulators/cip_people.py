"""Customers of the payment application: they walk its pages as a browser without scripts does."""

import re
import ssl
import time
from functools import cache
from html import unescape
from typing import Any, Final

import httpx
import trio

CARD: Final = {
    "instrument.type": "card", "instrument.card.pan": "4111 1111 1111 1111",
    "instrument.card.expiry": "12/30", "instrument.card.cvv": "123",
}  # fmt: skip
CALL_S: Final = 30.0
TRIES: Final = 20
LANGUAGE: Final = {"accept-language": "es"}
AGAIN_S: Final = 0.5
MODEL_S: Final = 60.0
_CODE: Final = re.compile(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}")


@cache
def _tls() -> ssl.SSLContext:
    """One for all customers: making it takes tens of milliseconds."""
    return httpx.create_ssl_context()


class Astray(Exception):
    """A page was not the expected one; says which."""


class Customer:
    """One person with a browser of his own.

    Attributes:
        machine_s: time spent waiting for pages, so without the person's own; with the pauses
            before trying again, where the service was occupied.
        busy: how often it was.
    """

    def __init__(self, cip_url: str, user: str, password: str) -> None:
        self._base = cip_url
        self._user = user
        self._password = password
        self.client = httpx.AsyncClient(
            base_url=cip_url, timeout=CALL_S, trust_env=False, verify=_tls(), headers=LANGUAGE
        )
        self.page: httpx.Response
        self.machine_s = 0.0
        self.busy = 0

    async def __aenter__(self) -> "Customer":
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.client.__aexit__(*error)

    async def full(self, application: str, amount: int) -> str:
        """Full mode, first page to confirmation; returns the confirmation number."""
        await self._get("/cip/")
        await self._log_in("/cip/login", application_id=application)
        return await self._pay(amount)

    async def partial(self, url: str, amount: int) -> str:
        """Partial mode, from the address that the site gave."""
        await self._get(url)
        await self._log_in("/cip/s/login")
        return await self._pay(amount)

    async def leave(self) -> str:
        """Exit; returns the address the browser is sent to, outside of CIP."""
        answer = await self._post("/cip/s/exit", self._hidden("/cip/s/exit"))
        return str(answer.headers.get("location", ""))

    async def _pay(self, amount: int) -> str:
        fields = {"amount": str(amount), "payer.name": self._user, **CARD}
        await self._send("/cip/s/payment", fields)
        await self._send("/cip/s/pay", {})
        while "No vuelva a pagar" in self.page.text:
            await trio.sleep(1)
            await self._get("/cip/s/result")
        found = _CODE.search(self.page.text)
        return found[0] if found else ""

    async def _log_in(self, action: str, **more: str) -> None:
        values = {**more, "user_id": self._user, "password": self._password}
        for _ in range(TRIES):
            await self._send(action, values)
            if self.page.status_code != 503:
                break
            self.busy += 1
            self.machine_s += AGAIN_S
            await trio.sleep(AGAIN_S)
        if self.page.status_code != 200:
            raise Astray(f"login: {self.page.status_code}")

    async def _send(self, action: str, values: dict[str, str]) -> None:
        await self._follow(await self._post(action, {**self._hidden(action), **values}))

    async def _get(self, url: str) -> None:
        began = time.monotonic()
        answer = await self.client.get(url)
        self.machine_s += time.monotonic() - began
        await self._follow(answer)

    async def _post(self, action: str, values: dict[str, str]) -> httpx.Response:
        began = time.monotonic()
        answer = await self.client.post(action, data=values)
        self.machine_s += time.monotonic() - began
        return answer

    async def _follow(self, answer: httpx.Response) -> None:
        while answer.status_code == 303 and answer.headers["location"].startswith("/"):
            began = time.monotonic()
            answer = await self.client.get(answer.headers["location"])
            self.machine_s += time.monotonic() - began
        self.page = answer

    def _hidden(self, action: str) -> dict[str, str]:
        form = re.search(
            rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', self.page.text, re.DOTALL
        )
        if form is None:
            raise Astray(f"no form to {action}: {self.page.status_code}")
        found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form[1])
        return {name: unescape(value) for name, value in found}


_ROW: Final = re.compile(r'data-payment="(pay_[0-9A-Z]{26})".*?class="status-CONFIRMED"', re.DOTALL)


class DeskUser:
    """Somebody at the service desk who looks again and again.

    Attributes:
        view, listed: when each payment was first seen CONFIRMED in the web view and in the CSV,
            Unix time in nanoseconds.
    """

    def __init__(self, cip_url: str, application: str, user: str, password: str) -> None:
        self._credentials = {"application_id": application, "user_id": user, "password": password}
        self._client = httpx.AsyncClient(
            base_url=cip_url, timeout=CALL_S, trust_env=False, verify=_tls(), headers=LANGUAGE
        )
        self.view: dict[str, int] = {}
        self.listed: dict[str, int] = {}

    async def __aenter__(self) -> "DeskUser":
        await self._client.__aenter__()
        page = await self._client.get("/cip/desk/")
        token = re.findall(r'name="csrf" value="(\w+)"', page.text)
        for _ in range(TRIES):
            answer = await self._client.post(
                "/cip/desk/login", data={**self._credentials, "csrf": token[0]}
            )
            if answer.status_code == 303:
                break
            await trio.sleep(AGAIN_S)
        with trio.move_on_after(MODEL_S):  # a new node's read model may still be in the making
            while (await self._client.get("/cip/desk/")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(AGAIN_S)
            return self
        raise Astray(f"desk: {answer.status_code}, or no read model")

    async def __aexit__(self, *error: Any) -> None:
        await self._client.__aexit__(*error)

    async def look(self) -> None:
        """The first page of the view, and the CSV of what is confirmed."""
        page = await self._client.get("/cip/desk/", params={"status": "CONFIRMED"})
        now_ns = time.time_ns()
        for row in page.text.split("<tr ")[1:]:
            found = _ROW.match(row)
            if found is not None:
                self.view.setdefault(found[1], now_ns)
        listed = await self._client.get("/cip/desk/payments.csv", params={"status": "CONFIRMED"})
        now_ns = time.time_ns()
        for line in listed.text.splitlines():
            if line.startswith("pay_"):
                self.listed.setdefault(line[:30], now_ns)

    async def watch(self, every_s: float) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await trio.sleep(every_s)
