"""A payment application and the host of its bank, and sites that pay through them in any weather.

The application is a node of its own, its bank a host that speaks the `bank` dialect
(`tests.faults.bank_host`). Sites remember every word they were told. A request without an answer
leaves open what became of it; a final answer is final; and at the end the application's register,
the bank's book and what sites were told must be one, payment by payment.
"""

import base64
import contextlib
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio
from argon2 import PasswordHasher

from switch.cli import setup
from switch.cli.apart import free_port
from switch.cli.provision import opened
from switch.config import LISTENERS, Config, load
from switch.flows import cip_records as rec
from switch.journal.store import State
from switch.provisioning import Provisioning
from tests.faults.bank_host import read_book
from tests.faults.cashiers import Broken

APP = "TAXPAY"
BANK = "banco1"
INSTITUTION = "0011"
USER, PASSWORD = "portal", "correct horse battery"
PAN = "4111111111111111"
CARD = {"type": "card", "pan": PAN, "expiry": "12/30", "cvv": "123"}
GATEWAY = "/cip/v1/gateway/payments"
FINAL = frozenset(("CONFIRMED", "DECLINED", "VOIDED"))
TOLD = frozenset((200, 201, 202, 402))
AWAY = frozenset((408, 425, 429, 500, 502, 503, 504))  # nothing is said about the payment
FUNDS = 51  # an amount that ends so is declined by the bank
CALL_S = 10.0
PACE_S = 0.3
ASK_AGAIN_S = 0.2
# The application asks the bank 2, 4, 8, 15, 30 and 60 s after it had no answer.
DECIDED_S = 60.0

SHORT: dict[str, Any] = {
    "node_name": "cip",
    "cip_private_webhooks": True,
    "cip.auth_memory_kib": 8,
    "cip.auth_time_cost": 1,
    "cip.auth_rate_per_minute": 100_000,
    "cip.budget_auth_s": 20.0,
    "cip.budget_source_s": 2.0,
    "journal_segment_bytes": 1 << 22,
    "journal_group_bytes_max": 1 << 19,
    "journal_reserve_bytes": 1 << 19,
}
LINK = f"""
[links.{BANK}]
institution = "{INSTITUTION}"
echo_interval_s = 0.5
answer_s = 1
sign_on_s = 1
backoff_min_s = 0.05
backoff_max_s = 0.3
"""


@dataclass
class Bill:
    """One payment, as its site knows it. `told`: the final word, once there was one."""

    reference: str
    amount: int
    told: dict[str, Any] = field(default_factory=dict)

    def take(self, told: Mapping[str, Any]) -> None:
        """Raises Broken: it was told otherwise before, or is of another amount."""
        if told["amount"] != self.amount:
            raise Broken(f"{self.reference}: {told['amount']}, asked for {self.amount}")
        if told["status"] not in FINAL:
            if self.told:
                raise Broken(f"{self.reference}: {told['status']} after {self.told['status']}")
            return
        facts = {name: told.get(name) for name in ("status", "payment_id", "confirmations")}
        if self.told and self.told != facts:
            raise Broken(f"{self.reference}: told {self.told}, then {facts}")
        self.told = facts


class House:
    """The application's directory, its bank's book, and how each of the two is run."""

    def __init__(self, directory: Path, config: Config, keys: Mapping[str, str]) -> None:
        self.config = config
        self.keys = keys
        self.book = directory / "book.jsonl"
        self.addresses = {
            "cip": ("127.0.0.1", free_port()), "host": ("127.0.0.1", free_port())
        }  # fmt: skip
        self._keys_file = directory / "keys.json"
        self._keys_file.write_text(json.dumps(dict(keys)))
        self._directory = directory

    def command(self, role: str, program: Sequence[str] = ("-m", "switch")) -> list[str]:
        """`program`: of the application, where it is another than ours."""
        host, port = self.addresses[role]
        if role == "host":
            where = [str(port), str(self._keys_file), str(self.book)]
            return [sys.executable, "-m", "tests.faults.bank_host", *where]
        command = [sys.executable, *program, "serve", "-c", str(self.config.path)]
        for name in LISTENERS:
            address = f"{host}:{port}" if name == "http" else "127.0.0.1:0"
            command += ["--listen", f"{name}={address}"]
        return command

    def log(self, role: str) -> Path:
        return self._directory / f"{role}.log"

    def payments(self) -> dict[str, rec.Payment]:
        """Every payment by the site's reference, from what is durable."""
        state = State(self.config, self.config.data)
        state.recover(live=True)
        found = [rec.decode_payment(value) for _, value in state.records.items(rec.PAYMENTS)]
        by_reference = {payment.client_ref: payment for payment in found}
        if len(by_reference) != len(found):
            raise Broken("a reference has two payments")
        return by_reference


async def prepared(directory: Path, bank_at: tuple[str, int], *, inquiry: bool) -> House:
    """Make the application's directory. `inquiry`: its bank may be asked what became of one."""
    listeners = {f"listen_{name}": "127.0.0.1:0" for name in LISTENERS}
    config = await trio.to_thread.run_sync(
        lambda: setup.make(directory / "cip", **SHORT, **listeners)
    )
    with config.path.open("a", encoding="utf-8") as toml:
        toml.write(LINK)
    config = load(config.path)
    auth = config.cip.auth
    hasher = PasswordHasher(time_cost=auth.time_cost, memory_cost=auth.memory_kib, parallelism=1)
    back = "http://127.0.0.1:9/back"
    async with opened(config) as node:
        desk, step = Provisioning(node), node.begin()
        connect = f"{bank_at[0]}:{bank_at[1]}"
        keys = desk.call(step, "host_add", {"name": BANK, "dialect": "bank", "connect": connect})
        desk.call(step, "cip_app_add", {
            "id": APP, "name": "Oficina de impuestos", "source": "bank",
            "values": {"return_urls": [back], "default_return_url": back, "bank": BANK,
                       "bank_inquiry": inquiry},
        })  # fmt: skip
        desk.call(step, "cip_user_add", {
            "application": APP, "user": USER, "kind": "machine", "hash": hasher.hash(PASSWORD),
        })  # fmt: skip
        node.end(step)
    names = ("mac_key", "data_key", "zone_key")
    return House(directory, config, {name: keys[name] for name in names})


class Sites:
    """Sites that pay, repeat and ask; what they were told, over everything that happens.

    Attributes:
        bills: all that was ever asked for, by reference. answers, unanswered: of requests.
    """

    def __init__(self, house: House, address: tuple[str, int], seed: int) -> None:
        self._house = house
        self._url = f"http://{address[0]}:{address[1]}{GATEWAY}"
        self._chance = random.Random(f"{seed} sites")
        self.bills: dict[str, Bill] = {}
        self.answers = self.unanswered = self.repeats = 0

    @contextlib.asynccontextmanager
    async def _client(self) -> Any:
        proof = base64.b64encode(f"{APP}:{USER}:{PASSWORD}".encode()).decode()
        headers = {"authorization": f"CIP {proof}"}
        async with httpx.AsyncClient(timeout=CALL_S, trust_env=False, headers=headers) as client:
            yield client

    async def work(self, goes_on: Any) -> None:
        """One site after the other, until `goes_on()` is false."""
        chance = random.Random(self._chance.random())
        async with self._client() as client:
            while goes_on():
                await trio.sleep(chance.uniform(0, PACE_S))
                known = list(self.bills.values())[-8:]
                if known and chance.random() < 0.3:
                    bill = chance.choice(known)
                    self.repeats += 1
                else:
                    bill = self._bill(chance)
                if chance.random() < 0.2:
                    await self._look(client, bill)
                else:
                    await self._pay(client, bill)

    def _bill(self, chance: random.Random) -> Bill:
        poor = FUNDS if chance.random() < 0.15 else 0
        bill = Bill(f"INV-{len(self.bills) + 1}", 100 * chance.randrange(10, 5000) + poor)
        self.bills[bill.reference] = bill
        return bill

    async def _pay(self, client: httpx.AsyncClient, bill: Bill) -> int:
        transaction = {"amount": bill.amount, "currency": "PYG", "instrument": dict(CARD)}
        body = {"client_ref": bill.reference, "transaction": transaction}
        return await self._asked(client.post(self._url, json=body), bill)

    async def _look(self, client: httpx.AsyncClient, bill: Bill) -> int:
        ask = client.get(self._url, params={"client_ref": bill.reference})
        return await self._asked(ask, bill)

    async def _asked(self, ask: Any, bill: Bill) -> int:
        """The answer's status; 0: there was none, which says nothing about the payment."""
        try:
            answer = await ask
        except httpx.HTTPError:
            self.unanswered += 1
            return 0
        self.answers += 1
        if answer.status_code in TOLD:
            bill.take(answer.json())
        elif answer.status_code == 404:
            if bill.told:
                raise Broken(f"{bill.reference}: not known after {bill.told}")
        elif answer.status_code not in AWAY:
            raise Broken(f"{bill.reference}: {answer.status_code} {answer.text}")
        return int(answer.status_code)

    async def settle(self, *, everything: bool) -> None:
        """In good weather: new payments are taken again, and each has its end and keeps it."""
        async with self._client() as client:
            with trio.fail_after(DECIDED_S):
                while (bill := self._bill(random.Random(len(self.bills)))).amount % 100:
                    await self._ended(client, bill)
                while True:
                    await self._ended(client, bill)
                    if bill.told["status"] == "CONFIRMED":
                        break
                    bill = Bill(f"INV-{len(self.bills) + 1}", bill.amount)
                    self.bills[bill.reference] = bill
            for bill in self.bills.values():
                if everything or not bill.told:
                    with trio.fail_after(DECIDED_S):
                        await self._ended(client, bill)

    async def _ended(self, client: httpx.AsyncClient, bill: Bill) -> None:
        """Ask until it has its end; what never came is asked for again."""
        asked = False
        while not (asked and bill.told):
            if asked:
                await trio.sleep(ASK_AGAIN_S)
            status = await self._look(client, bill)
            if status == 404:
                status = await self._pay(client, bill)
            asked = status in TOLD

    def compare(self) -> None:
        """Raises Broken, where sites, the application and its bank do not say the same."""
        payments = self._house.payments()
        book = read_book(self._house.book)
        taken = {key: entry for key, entry in book.items() if entry.state == "CAPTURADA"}
        confirmed = 0
        for bill in self.bills.values():
            payment = payments.pop(bill.reference, None)
            if payment is None or payment.status != bill.told.get("status"):
                found = None if payment is None else payment.status
                raise Broken(f"{bill.reference}: the register has {found}, told {bill.told}")
            entry = taken.pop(INSTITUTION + payment.source_ref, None)
            if (entry is not None) != (payment.status == "CONFIRMED"):
                raise Broken(f"{bill.reference}: {payment.status}, at the bank {entry}")
            if entry is not None and entry.amount != bill.amount:
                raise Broken(f"{bill.reference}: {entry.amount} at the bank, {bill.amount} told")
            confirmed += bill.amount * (entry is not None)
        if payments or taken:
            raise Broken(f"nobody asked for {sorted(payments)}, {sorted(taken)}")
        if any(entry.state == "ACTIVA" for entry in book.values()):
            raise Broken("the bank holds what nobody has")

    @property
    def ends(self) -> dict[str, int]:
        """How many payments came to which end."""
        found = dict.fromkeys(sorted(FINAL), 0)
        for bill in self.bills.values():
            if bill.told:
                found[bill.told["status"]] += 1
        return found
