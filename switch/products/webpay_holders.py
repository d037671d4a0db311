"""Asking holders' banks who it is that pays.

A bank's service gets one question by HTTPS, and says what it found: `{"outcome": "TSY"}`. What it
does not say in time or in form is an internal failure (U3), and never a success. Identity numbers
and passwords pass through and are kept nowhere.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx
import msgspec
import trio

from switch.config import Config
from switch.flows.webpay_records import Payment
from switch.ops.logs import logger
from switch.web.webpay import Outcome

ANSWER_BYTES_MAX: Final = 4096
CONNECTIONS_MAX: Final = 64
FAILED: Final = "U3"

log = logger("webpay")


class _Answer(msgspec.Struct):
    outcome: Outcome


class HolderBanks:
    """The services of `[webpay.authentication]`.

    Args:
        api_key: ours at them; empty: they ask for none.
    """

    def __init__(self, config: Config, api_key: str) -> None:
        section = config.webpay
        given = section.authentication
        self._urls = {bank.id: bank.auth_url or given.bank_url for bank in section.debit_banks}
        self._default = given.bank_url
        self._answer_s = given.bank_answer_ms / 1000
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._decode = msgspec.json.Decoder(_Answer).decode
        self._client: httpx.AsyncClient | None = None
        self._ca = config.file(given.bank_ca) if given.bank_ca else None

    def asks(self, bank: str) -> bool:
        """Whether there is somebody to ask about a bank's customers."""
        return bool(self._urls.get(bank, ""))

    async def ask(self, payment: Payment, rut: str, password: str) -> Outcome:
        """Ask a bank whether its customer pays this; takes as long as is configured at most."""
        url = self._urls.get(payment.bank, "") if payment.kind == "D" else self._default
        question = {
            "payment": payment.id, "bank": payment.bank, "kind": payment.kind, "rut": rut,
            "password": password, "amount": payment.amount, "currency": payment.currency,
            "merchant": payment.merchant, "order": payment.order,
        }  # fmt: skip
        reason = "no service"
        with trio.move_on_after(self._answer_s) as budget:
            try:
                if url:
                    return await self._asked(url, question)
            except (httpx.HTTPError, msgspec.MsgspecError, _Refused, OSError) as error:
                reason = type(error).__name__.lstrip("_")
        reason = "TooLate" if budget.cancelled_caught else reason
        log.warning("holder_bank_failed", payment=payment.shown, bank=payment.bank, error=reason)
        return FAILED

    async def _asked(self, url: str, question: Mapping[str, Any]) -> Outcome:
        body = msgspec.json.encode(question)
        headers = {
            "content-type": "application/json", "content-length": str(len(body)), **self._headers,
        }  # fmt: skip
        sent = _Once(body)
        del body
        async with self._open().stream("POST", url, content=sent, headers=headers) as answer:
            if answer.status_code != 200:
                raise _Refused
            text = b""
            async for piece in answer.aiter_bytes():
                text += piece
                if len(text) > ANSWER_BYTES_MAX:
                    raise _Refused
        return self._decode(text).outcome

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> httpx.AsyncClient:
        """One client for all; made at the first question, for its roots take a while to read."""
        if self._client is None:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._ca is not None:
                context.load_verify_locations(self._ca)
            # A connection that is kept keeps its last question, and with it a password.
            limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0)
            self._client = httpx.AsyncClient(
                verify=context, timeout=None, limits=limits, trust_env=False,
                follow_redirects=False,
            )  # fmt: skip
        return self._client


class _Once:
    """A body that is forgotten as soon as it is sent: its request lives on in the client."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body, self._body = self._body, None
        assert body is not None, "no question is asked twice"
        yield body
        del body


class _Refused(Exception):
    """The service does not answer the question."""
