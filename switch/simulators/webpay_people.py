"""Cardholders without a browser: they follow the pages of shop and Webpay as a browser would."""

import html
import re
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Protocol, Self

import httpx
import trio

from switch.web.webpay_shop import PaymentForm

HIDDEN: Final = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', re.DOTALL)
POLL_S: Final = 0.5
ANSWER_S: Final = 120.0
WAITING: Final = "/webpay/espera/"


class HolderError(Exception):
    """A page is not what a holder expects there."""


class Merchant(Protocol):
    """A shop that seals its orders."""

    async def payment(self, number: str, **other: str) -> PaymentForm: ...


class Holder:
    """One cardholder with one payment under way; holds its cookie.

    Args:
        url: of the acquirer.
        timeout_s: a page that takes longer is none.

    Attributes:
        pages_s: how long each page took.
    """

    def __init__(self, url: str, merchant: Merchant, timeout_s: float = ANSWER_S) -> None:
        self._url = url
        self._merchant = merchant
        # Without roots, which take longer to read than a payment: holders come by plain HTTP.
        plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.AsyncClient(timeout=timeout_s, verify=plain)
        self._cookies: dict[str, str] = {}
        self.pages_s: list[float] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def pay(self, order: str, fields: Mapping[str, str]) -> str:
        """Bring an order to Webpay, pay it, and wait; returns the final page.

        Raises:
            HolderError: a page did not come as it must.
        """
        return await self.end(await self.submit(await self.arrive(order), fields))

    async def arrive(self, order: str) -> httpx.Response:
        """Bring an order to Webpay; returns the payment form. Raises: HolderError."""
        form = await self._merchant.payment(order)
        entry = await self._request("POST", "/filtroUnificado/bp_revision.cgi", dict(form.fields))
        return await self._follow(entry)

    async def submit(self, page: httpx.Response, fields: Mapping[str, str]) -> httpx.Response:
        """Fill in the form of a page; returns the page it leads to. Raises: HolderError."""
        nonce = hidden(page.text).get("nonce", "")
        answer = await self._request("POST", page.url.path, {"nonce": nonce, **fields})
        return await self._follow(answer)

    async def end(self, page: httpx.Response) -> str:
        """Wait until it is decided; returns the final page. Raises: HolderError."""
        while page.url.path.startswith(WAITING):
            await trio.sleep(POLL_S)
            page = await self._follow(await self._request("GET", page.url.path))
        return page.text

    async def _follow(self, answer: httpx.Response) -> httpx.Response:
        while answer.status_code == 303:
            answer = await self._request("GET", answer.headers["location"])
        if answer.status_code != 200:
            raise HolderError(f"{answer.url.path.split('/')[2]} answers {answer.status_code}")
        return answer

    async def _request(
        self, method: str, path: str, data: dict[str, str] | None = None
    ) -> httpx.Response:
        began = time.perf_counter()
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        try:
            answer = await self._client.request(
                method, self._url + path, data=data, headers={"cookie": cookies}
            )
        except httpx.HTTPError as error:
            raise HolderError(f"no page: {type(error).__name__}") from None
        self.pages_s.append(time.perf_counter() - began)
        for cookie in answer.headers.get_list("set-cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        return answer


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of a page."""
    return {name: html.unescape(value) for name, value in HIDDEN.findall(page)}


def credit_card(pan: str, cvv: str, cuotas: str = "VN-0") -> dict[str, str]:
    """Return what a holder of a credit card types."""
    return {
        "tipo": "C", "numero": pan, "vencimiento": "12/30", "codigo": cvv, "cuotas": cuotas,
    }  # fmt: skip
