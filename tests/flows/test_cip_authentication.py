"""Authentication: equal work for whatever is wrong, bounded rates and queues, no secrets left."""

import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio
from argon2 import PasswordHasher

from switch.ops.metrics import Metrics
from tests.cip_house import APP, CARD, HASHER, PASSWORD, Browser, CipHouse

PAYMENTS = "/cip/v1/gateway/payments"
LOCKED = "lena"
DISABLED = "dario"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path)
    for name in (LOCKED, DISABLED):
        found.command(
            "cip_user_add", application=APP, user=name, kind="machine", hash=HASHER.hash(PASSWORD)
        )
    found.command("cip_user_state", application=APP, user=DISABLED, what="disable")
    yield found
    found.close()


WRONG = {
    "application": {"application_id": "NOBODY"},
    "user": {"user_id": "nobody"},
    "password": {"password": "not the right one"},
    "empty password": {"password": ""},
    "locked": {"user_id": LOCKED},
    "disabled": {"user_id": DISABLED},
    "kind": {"user_id": "ana"},
}


async def test_g01_whatever_is_wrong_costs_the_same_work(house: CipHouse) -> None:
    """One hash, one durable step, one answer byte for byte: there is nothing to measure."""
    passwords = house.service.auth.passwords
    seen = set()
    async with house.running() as client:
        for _ in range(10):
            await house.pay(client, user_id=LOCKED, password="not the right one")
        for name, change in WRONG.items():
            hashes, seq = passwords.hash_ns.count, house.node.store.journal.next_seq
            answer = await house.pay(client, **change)
            body = {k: v for k, v in answer.json().items() if k != "request_id"}
            headers = tuple(sorted(answer.headers.items()))
            seen.add((answer.status_code, str(body), len(answer.content), headers))
            assert passwords.hash_ns.count == hashes + 1, name
            assert house.node.store.journal.next_seq > seq, name
    assert len(seen) == 1
    assert house.payments() == []


async def test_f01_pages_answer_every_wrong_credential_alike(house: CipHouse) -> None:
    seen = set()
    async with house.running() as client:
        for wrong in ({"app": "NOBODY"}, {"user": "nobody"}, {"password": "not the right one"},
                      {"user": "portal"}):  # fmt: skip
            hashes = house.service.auth.passwords.hash_ns.count
            answer = await Browser(client).log_in_full(**wrong)
            text = re.sub(r'value="[^"]*"', "", answer.text)
            seen.add((answer.status_code, text))
            assert house.service.auth.passwords.hash_ns.count == hashes + 1
    assert len(seen) == 1


async def test_tries_of_one_address_at_one_application_are_limited(tmp_path: Path) -> None:
    house = CipHouse(tmp_path, toml="rate_per_minute = 5\ncache_s = 0")
    async with house.running() as client, house.client("203.0.113.8") as elsewhere:
        for number in range(5):
            assert (await house.pay(client, f"INV-{number}")).status_code == 201
        limited = await house.pay(client, "INV-6")
        assert (limited.status_code, limited.json()["error"]["code"]) == (429, "rate_limited")
        assert int(limited.headers["retry-after"]) >= 1
        page = await Browser(client).log_in_full()
        assert page.status_code == 429
        assert "Demasiados intentos" in page.text
        assert (await house.pay(elsewhere, "INV-7")).status_code == 201
        assert len(house.payments()) == 6
    house.close()


async def test_a_full_queue_of_passwords_is_shed_and_nothing_stored(tmp_path: Path) -> None:
    house = CipHouse(tmp_path, toml="threads = 1\nqueue_max = 2")
    passwords = house.service.auth.passwords
    answers: list[httpx.Response] = []
    async with house.running() as client:
        for _ in range(passwords.section.threads):
            passwords._limiter.acquire_on_behalf_of_nowait(object())  # the workers are busy

        async def ask(number: int) -> None:
            # Other passwords: equal ones in flight are checked once.
            answers.append(await house.pay(client, f"INV-{number}", password=f"wrong {number:09}"))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(ask, number)
            with trio.fail_after(120):
                while len(answers) < 3:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            assert [answer.status_code for answer in answers] == [503] * 3
            assert {a.json()["error"]["code"] for a in answers} == {"overloaded"}
            assert passwords.waiting == 3
            # A payment page asks for no password: it does not wait for those that do.
            assert (await client.get("/cip/v1/status")).status_code == 200
            nursery.cancel_scope.cancel()
        assert house.payments() == []
    house.close()


class Slow:
    """A hasher that takes as long as the test wants."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def hash(self, password: str) -> str:
        self.began.set()
        assert self.may_end.wait(60)
        return HASHER.hash(password)


async def test_hashing_holds_nobody_else_up(house: CipHouse) -> None:
    """While a hash is being made, whoever needs none is answered, and can pay."""
    passwords = house.service.auth.passwords
    made: list[str] = []
    async with house.running() as client, trio.open_nursery() as nursery:
        assert (await house.pay(client)).status_code == 201
        slow = passwords.hasher = Slow()  # type: ignore[assignment]

        async def hash_one() -> None:
            made.append(await passwords.hash(PASSWORD))

        nursery.start_soon(hash_one)
        await trio.to_thread.run_sync(slow.began.wait)
        for number in range(5):
            assert (await client.get("/cip/v1/status")).status_code == 200
            passwords.hasher = HASHER
            assert (await house.pay(client, f"INV-{number + 2}")).status_code == 201
        assert made == []
        slow.may_end.set()
    assert len(made) == 1


async def test_a_rehash_follows_changed_parameters(house: CipHouse) -> None:
    passwords = house.service.auth.passwords
    passwords.hasher = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    async with house.running() as client:
        before = house.flow.book.user(APP, "portal").hashes
        assert (await house.pay(client)).status_code == 201
        after = house.flow.book.user(APP, "portal").hashes
        assert after[0] != before[0]
        assert "m=16,t=2" in after[0]
        assert after[1:] == before[1:]
        assert (await house.pay(client, "INV-2")).status_code == 201


async def test_card_data_and_credentials_leave_no_trace(
    house: CipHouse, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the journal, the read model, the CSV, the report, an answer or the log."""
    secrets = [CARD["pan"], "987", "tok-en-551", PASSWORD, "not the right one", house.key]
    async with house.running() as client:
        body = house.body()
        body["transaction"]["instrument"]["cvv"] = "987"
        texts = [(await client.post(PAYMENTS, json=body)).text]
        dimo = house.body("INV-2")
        dimo["transaction"]["instrument"] = {
            "type": "dimo", "document": "4567890", "token": "tok-en-551",
        }  # fmt: skip
        texts.append((await client.post(PAYMENTS, json=dimo)).text)
        texts.append((await house.pay(client, "INV-3", password="not the right one")).text)
        browser = Browser(client)
        await browser.log_in_full()
        await browser.fill(instrument__card__cvv="987")
        texts.append(browser.page.text)
        await browser.pay()
        texts.append(browser.page.text)
        house.clock.advance(1)
        run = house.flow.reports.run(house.command("cip_report_run", application=APP)["run"])
        texts.append((await house.service.report_file(run))[0].decode())
        house.project()
        desk = Browser(client)
        await desk.get("/cip/desk/")
        values = {"application_id": APP, "user_id": "clara", "password": PASSWORD}
        texts.append((await desk.send("/cip/desk/login", values)).text)
        texts.append((await client.get("/cip/desk/payments.csv")).text)
    dump = "\n".join(sqlite3.connect(house.config.data / "read.sqlite").iterdump())
    logged = capsys.readouterr()
    raw = [path.read_bytes() for path in house.config.data.rglob("*") if path.is_file()]
    for secret in secrets:
        if secret != "987":  # three digits are in any number
            for text in (*texts, dump, logged.out, logged.err):
                assert secret not in text
            assert not any(secret.encode() in data for data in raw)
    for payment in house.payments():
        assert "987" not in (payment.instrument, payment.instrument_type, *payment.custom.values())
        assert payment.instrument in ("411111******1111", "***7890", "*******", "****890") or (
            CARD["pan"] not in payment.instrument
        )


METRICS = (
    "troncal_cip_payments_total{application,mode,status}",
    "troncal_cip_step_seconds{application,mode,step}",
    "troncal_cip_total_seconds{application,mode}",
    "troncal_cip_budget_misses_total{application,mode}",
    "troncal_cip_auth_seconds{stage}",
    "troncal_cip_auth_total{result}",
    "troncal_cip_auth_queue",
    "troncal_cip_lockouts_total",
    "troncal_cip_source_seconds{source,outcome}",
    "troncal_cip_pending",
    "troncal_cip_pending_oldest_seconds",
    "troncal_cip_inquiries_total{source,result}",
    "troncal_cip_replays_total",
    "troncal_cip_conflicts_total",
    "troncal_cip_sessions{mode}",
    "troncal_cip_context_refused_total{reason}",
    "troncal_cip_webhooks_total{result}",
    "troncal_cip_report_runs_total{state}",
    "troncal_cip_outbox{kind}",
)


async def test_every_metric_has_its_name_and_labels(tmp_path: Path) -> None:
    house = CipHouse(tmp_path, webhook_url="https://sof.example/hook")
    house.flow.section = type(house.flow.section)(
        budget=type(house.flow.section.budget)(total_s=1.0)
    )
    async with house.running() as client:
        await house.pay(client)
        await house.pay(client)
        await house.pay(client, "INV-1", 1)
        await house.while_pending(lambda: house.pay(client, "INV-2", 150_073))
        house.advance(3)
        await client.post("/cip/v1/partial/sessions", json={**house.context(), "amount": 1})
        with trio.fail_after(120):
            while not house.flow.counts.webhooks:  # noqa: ASYNC110
                await trio.sleep(0.01)
        metrics = Metrics()
        house.product.measure(metrics)
        text = metrics.exposition().decode()
    house.close()
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = re.match(r"(troncal_\w+)(?:\{([^}]*)\})? ", line)
        if match is not None:
            labels = re.findall(r'(\w+)="', match[2] or "")
            found.setdefault(match[1], set()).update(labels)
    for metric in METRICS:
        name, _, labels = metric.rstrip("}").partition("{")
        is_histogram = name.endswith("_seconds") and "oldest" not in name
        name = f"{name}_count" if is_histogram else name
        assert found.get(name) == set(filter(None, labels.split(","))), metric
    assert re.search(r'troncal_cip_outbox\{kind="webhook"\} [1-9]', text)
