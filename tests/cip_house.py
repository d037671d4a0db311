"""The payment application in one process for tests: real state, flow and pages; a clock of ours.

`CipHouse` opens a node with the product, provisions applications and users the way operators do,
and talks to pages and API without sockets. Time passes by `advance`.
"""

import base64
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import trio
from argon2 import PasswordHasher

from protocols.cip import KIND_SESSION, header_parameters, sign
from switch import config as configuration
from switch.flows import cip_records as rec
from switch.flows.cip import CipFlow
from switch.journal.projector import Projector
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.products.cip import build
from switch.products.cip_service import CipService
from switch.provisioning import Provisioning
from switch.remotes import Remotes
from tests.house import ManualClock

MASTER = MasterKey(bytes(range(32)))
PASSWORD = "correct horse battery"
CARD = {"type": "card", "pan": "4111111111111111", "expiry": "12/30", "cvv": "123"}
BACK = "https://sof.example/back"
APP = "TAXPAY"
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
KIND = {"portal": "machine", "ana": "customer", "clara": "clerk", "aldo": "approver",
        "alma": "approver", "aura": "auditor"}  # fmt: skip


class CipHouse:
    """One node with the payment application, an application and its users."""

    def __init__(
        self, directory: Path, *, toml: str = "", ways: Callable[[Node], Any] | None = None,
        **values: Any,
    ) -> None:  # fmt: skip
        """`ways`: the remote side of a node, where it is not the real one."""
        self.directory = directory
        self.ways = ways
        self.clock = ManualClock()
        self.values = values
        path = directory / "troncal.toml"
        listeners = "\n".join(f'{name} = "127.0.0.1:0"' for name in configuration.LISTENERS)
        path.write_text(f"""
[listen]
{listeners}
[journal]
segment_bytes = 8_388_608
group_bytes_max = 1_048_576
reserve_bytes = 1_048_576
[ledger]
accounts_max = 10000
holds_max = 10000
keys_max = 10000
records_bytes_max = 67_108_864
[cip.auth]
memory_kib = 8
time_cost = 1
{toml}
""")
        self.config = configuration.load(path, environ={})
        self.key = ""
        self.key_id = ""
        self.node: Node
        self.flow: CipFlow
        self.service: CipService
        self.open()
        if self.flow.book.application(APP) is None:
            self._provision(values)

    def open(self) -> None:
        self.node = Node(self.config, MASTER, self.clock, self.directory / "data")
        self.node.open(self._prepare)
        self.commit()

    def _prepare(self) -> None:
        ways = self.ways or (lambda node: Remotes(node, None))  # type: ignore[arg-type]
        self.product = build(self.node, ways(self.node))
        self.node.attach(self.product.flow, self.product.service)
        assert isinstance(self.product.flow, CipFlow)
        assert isinstance(self.product.service, CipService)
        self.flow, self.service = self.product.flow, self.product.service

    def close(self) -> None:
        self.node.store.commit()
        self.node.close()

    def restart(self) -> None:
        """The process ends without any farewell, and comes back on what is durable."""
        self.node.close()
        self.open()

    def _provision(self, values: dict[str, Any]) -> None:
        self.command(
            "cip_app_add", id=APP, name="Impuestos", source=values.pop("source", "simulator"),
            values={"return_urls": [BACK], "default_return_url": BACK, **values},
        )  # fmt: skip
        for name, kind in KIND.items():
            self.command(
                "cip_user_add", application=APP, user=name, kind=kind, hash=HASHER.hash(PASSWORD)
            )
        made = self.command("cip_key_add", application=APP)
        self.key_id, self.key = made["key_id"], made["key"]

    def command(self, command: str, **values: Any) -> Any:
        """As the command line does it."""
        step = self.node.begin()
        try:
            return Provisioning(self.node).call(step, command, values)
        finally:
            self.node.end(step)
            self.commit()

    @contextmanager
    def step(self) -> Iterator[Any]:
        step = self.node.begin()
        yield step
        self.node.end(step)

    def commit(self) -> None:
        self.node.store.commit()
        self.node.settle()

    def advance(self, seconds: float) -> None:
        """Time passes, a little at a time, and what is due happens."""
        left = seconds
        while left > 0:
            self.clock.advance(min(left, 0.5))
            left -= 0.5
            self.node.run_timers()
            if self.node.store.journal.open_count or self.node.gate:
                self.commit()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx.AsyncClient]:
        """What lets the node make progress, and a client of its pages."""

        async def gate() -> None:
            while True:
                await trio.lowlevel.wait_readable(self.node.store.journal.fileno())
                self.node.on_durable()

        async def settle() -> None:
            while True:
                await self.node.turned.wait()
                self.node.turned = trio.Event()
                self.node.settle()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate)
            nursery.start_soon(settle)
            await nursery.start(lambda task_status: self.service.run(task_status=task_status))
            async with self.client() as client:
                yield client
            nursery.cancel_scope.cancel()

    def client(self, address: str = "203.0.113.7") -> httpx.AsyncClient:
        """A browser or a site, by its address; it keeps cookies and follows nothing."""
        transport = httpx.ASGITransport(app=self.product.mounts[0], client=(address, 4711))
        return httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8080", timeout=30,
            headers={"accept-language": "es-PY,es;q=0.9,en;q=0.5"},
        )  # fmt: skip

    # ---- what they ask for

    def body(self, client_ref: str = "INV-1", amount: int = 150_000, **more: Any) -> dict[str, Any]:
        transaction = {"amount": amount, "currency": "PYG", "instrument": dict(CARD)}
        return {
            "application_id": APP, "user_id": "portal", "password": PASSWORD,
            "client_ref": client_ref, "transaction": transaction, **more,
        }  # fmt: skip

    def basic(self, user: str = "portal", password: str = PASSWORD, app: str = APP) -> dict:
        text = base64.b64encode(f"{app}:{user}:{password}".encode()).decode()
        return {"authorization": f"CIP {text}"}

    def context(self, client_ref: str = "INV-1", **more: Any) -> dict[str, Any]:
        """A signed session request."""
        values = {
            "application_id": APP, "client_ref": client_ref, "amount": 150_000, "currency": "PYG",
            "fields": {}, "return_url": BACK, "ts": self.clock.now_ns // 10**9,
            "nonce": f"nonce-{self.flow.book.secret().hex()}", "key_id": self.key_id, **more,
        }  # fmt: skip
        return {**values, "sig": sign(bytes.fromhex(self.key), KIND_SESSION, values)}

    def headers(self, kind: str, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        """Signature headers of one call."""
        ts, nonce = self.clock.now_ns // 10**9, self.flow.book.secret().hex()
        parameters = header_parameters(method, path, body, key_id=self.key_id, ts=ts, nonce=nonce)
        return {
            "cip-key": self.key_id, "cip-timestamp": str(ts), "cip-nonce": nonce,
            "cip-signature": sign(bytes.fromhex(self.key), kind, parameters),
        }  # fmt: skip

    async def pay(self, client: httpx.AsyncClient, *arguments: Any, **more: Any) -> httpx.Response:
        return await client.post("/cip/v1/gateway/payments", json=self.body(*arguments, **more))

    async def while_pending(self, do: Any, seconds: float = 6.5) -> Any:
        """Let a request run while the source stays silent for longer than its budget."""
        found = []

        async def ask() -> None:
            found.append(await do())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not any(p.status == "SUBMITTED" for p in self.payments()):  # noqa: ASYNC110
                await trio.sleep(0.005)
            self.advance(seconds)
        return found[0]

    async def until_submitted(self, do: Any) -> None:
        """Begin a request and leave it once its payment is durable as SUBMITTED."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(do)
            while not any(p.status == "SUBMITTED" for p in self.payments()):  # noqa: ASYNC110
                await trio.sleep(0.005)
            self.commit()
            nursery.cancel_scope.cancel()

    # ---- what there is

    def payments(self) -> list[Any]:
        records = self.node.store.records
        return [rec.decode_payment(value) for _, value in records.items(rec.PAYMENTS)]

    def charges(self) -> int:
        """How many requests the simulated source took money for."""
        found = self.node.store.records.items(rec.SIMULATED)
        return sum(rec.decode_simulated(value).state == "approved" for _, value in found)

    def project(self) -> Path:
        """The read model, brought up to now."""
        self.commit()
        projector = Projector(self.config, self.config.data, MASTER)
        projector.catch_up()
        projector.close()
        return self.config.data / "read.sqlite"


class Browser:
    """Walks the customers' pages as a browser without scripts would."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.page: httpx.Response

    async def get(self, url: str) -> httpx.Response:
        self.page = await self._follow(await self.client.get(url))
        return self.page

    async def send(self, action: str, values: dict[str, str] | None = None) -> httpx.Response:
        """Send the form of the present page that leads to `action`."""
        form = {**self.hidden(action), **(values or {})}
        self.page = await self._follow(await self.client.post(action, data=form))
        return self.page

    async def _follow(self, answer: httpx.Response) -> httpx.Response:
        while answer.status_code == 303 and answer.headers["location"].startswith("/"):
            answer = await self.client.get(answer.headers["location"])
        return answer

    def hidden(self, action: str) -> dict[str, str]:
        """Hidden fields of one form of the page."""
        form = re.search(
            rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', self.page.text, re.DOTALL
        )
        assert form is not None, f"no form to {action} in {self.page.text}"
        found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form[1])
        return {name: unescape(value) for name, value in found}

    @property
    def title(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.page.text, re.DOTALL)
        return unescape(found[1]).strip() if found else ""

    async def log_in(self, user: str = "ana", password: str = PASSWORD) -> httpx.Response:
        return await self.send("/cip/s/login", {"user_id": user, "password": password})

    async def log_in_full(
        self, app: str = APP, user: str = "ana", password: str = PASSWORD
    ) -> httpx.Response:
        await self.get("/cip/")
        values = {"application_id": app, "user_id": user, "password": password}
        return await self.send("/cip/login", values)

    async def fill(self, **more: str) -> httpx.Response:
        values = {
            "amount": "150.000", "payer.name": "Ana Núñez", "instrument.type": "card",
            "instrument.card.pan": "4111 1111 1111 1111", "instrument.card.expiry": "12/30",
            "instrument.card.cvv": "123", **{k.replace("__", "."): v for k, v in more.items()},
        }  # fmt: skip
        return await self.send("/cip/s/payment", values)

    async def pay(self) -> httpx.Response:
        return await self.send("/cip/s/pay")

    @property
    def cookie(self) -> str:
        return self.client.cookies.get("cip") or ""
