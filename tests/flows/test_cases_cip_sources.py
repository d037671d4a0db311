"""Cases G01 to G12 before each source, and what is the bank's own: inquiries and reversals.

The local ledger decides in the step that asks it, so it cannot be silent (G06).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from switch.flows import cip_records as rec
from tests.cip_house import APP, CipHouse
from tests.cip_sources import AMOUNT, PLACES, AtBank, AtLedger, Place

PAYMENTS = "/cip/v1/gateway/payments"
Make = Callable[..., Place]


@pytest.fixture(params=PLACES)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    found = PLACES[request.param](tmp_path)
    yield found
    assert found.house.node.money_check() == {"posted": 0, "pending": 0}
    found.house.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Place] = []

    def open_(kind: type[Place], **values: Any) -> Place:
        made.append(kind(tmp_path, **values))
        return made[-1]

    yield open_
    for found in made:
        found.house.close()


async def post(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post(PAYMENTS, json=body)


async def pay_unheard(place: Place, client: httpx.AsyncClient) -> httpx.Response:
    """Pay while the source decides and does not tell; what the site gets when the budget is up."""
    with place.silent():
        answer: httpx.Response = await place.house.while_pending(lambda: post(client, place.mute()))
    return answer


def only(house: CipHouse) -> Any:
    (payment,) = house.payments()
    return payment


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        pytest.param({"password": "not the right one"}, 401, id="g01"),
        pytest.param({"application_id": "OTHER"}, 401, id="g02"),
        pytest.param({"modes": ["partial"]}, 403, id="g03"),
        pytest.param({"transaction": {}}, 422, id="g04"),
    ],
)
async def test_what_is_refused_is_never_asked_for(place: Place, wrong: dict, status: int) -> None:
    house = place.house
    house.command("cip_app_add", id="OTHER", name="Other")
    if "modes" in wrong:
        house.command("cip_app_set", id=APP, values=wrong)
        wrong = {}
    async with house.running() as client:
        answer = await post(client, place.body() | wrong)
        assert answer.status_code == status
        assert house.payments() == []
        assert place.charges() == 0


async def test_g05_a_decline_takes_nothing_and_is_kept(place: Place) -> None:
    async with place.house.running() as client:
        answer = await post(client, place.poor())
        assert (answer.status_code, answer.json()["reason"]) == (402, "funds")
        payment = only(place.house)
        assert (payment.status, payment.confirmations) == ("DECLINED", [])
        assert place.charges() == 0


@pytest.mark.parametrize("name", ["simulator", "dimo", "bank"])
async def test_g06_a_silent_source(make: Make, name: str) -> None:
    place = make(PLACES[name])
    house = place.house
    async with house.running() as client:
        answer = await pay_unheard(place, client)
        # sicoop acknowledges a reversal at once: that outcome is known already.
        told = (402, "VOIDED") if name == "dimo" else (202, "PENDING")
        assert (answer.status_code, answer.json()["status"]) == told
        house.advance(3)
        shown = await client.get(f"{PAYMENTS}/{only(house).id}", headers=house.basic())
        assert shown.json()["status"] == place.ends
        assert place.charges() == (place.ends == "CONFIRMED")
        again = await post(client, place.mute() | {"client_ref": "INV-1"})
        assert again.headers["cip-replayed"] == "true"
        house.advance(600)
        assert only(house).status == place.ends
        assert place.charges() == (place.ends == "CONFIRMED")


@pytest.mark.parametrize("name", ["simulator", "dimo", "bank"])
async def test_g07_a_crash_before_the_answer_is_heard(make: Make, name: str) -> None:
    place = make(PLACES[name])
    house = place.house
    async with house.running() as client:
        with place.silent():
            await house.until_submitted(lambda: post(client, place.mute()))
    assert only(house).status == "SUBMITTED"
    house.restart()
    house.advance(1)
    assert only(house).status == place.ends
    assert {c.kind for c in only(house).confirmations} == (
        {"CIP", "SOURCE"} if place.ends == "CONFIRMED" else set()
    )
    assert place.charges() == (place.ends == "CONFIRMED")


@pytest.mark.parametrize("is_held", [True, False], ids=["held", "never-held"])
async def test_g07_ledger_hold_and_codes_are_one_step(make: Make, is_held: bool) -> None:
    """SUBMITTED alone cannot become durable there; were it so, its hold would decide."""
    place = make(AtLedger)
    assert isinstance(place, AtLedger)
    house = place.house
    with house.step() as step:
        application = house.flow.book.application(APP)
        source = house.flow.sources["ledger"]
        lost = rec.Payment("pay_01M7Z0R800LOSTLOSTLOSTLOST", APP, "gateway", "INV-1", "SUBMITTED")
        lost.amount, lost.currency, lost.source = AMOUNT, "PYG", "ledger"
        lost.created_ns, lost.source_ref = step.now_ns, lost.id
        house.flow.event(step, lost, "submitted", "portal")
        if is_held:
            instrument = place.body()["transaction"]["instrument"]
            read = house.service.read(application, place.body()["transaction"]).instrument
            assert instrument["account"] == read.account
            source.authorise(step, lost, application, read)
        house.flow.put(step, lost)
    house.commit()
    house.restart()
    house.advance(1)
    assert only(house).status == ("CONFIRMED" if is_held else "VOIDED")
    assert place.charges() == is_held
    assert list(house.node.store.ledger.open_holds()) == []


async def test_g08_a_crash_before_the_site_is_told(place: Place) -> None:
    house = place.house
    async with house.running() as client:
        told = (await post(client, place.body())).json()
        assert told["status"] == "CONFIRMED"
    house.restart()
    async with house.running() as client:
        found = await client.get(PAYMENTS, params={"client_ref": "INV-1"}, headers=house.basic())
        assert found.json()["confirmations"] == told["confirmations"]
        assert place.charges() == 1


async def test_g09_and_g10_the_same_reference_again(place: Place) -> None:
    house = place.house
    async with house.running() as client:
        first = await post(client, place.body())
        assert first.status_code == 201, first.text
        second = await post(client, place.body())
        assert (second.content, second.headers["cip-replayed"]) == (first.content, "true")
        other = await post(client, place.body(amount=AMOUNT + 1))
        assert (other.status_code, other.json()["error"]["code"]) == (409, "client_ref_conflict")
        assert only(house).amount == AMOUNT
        assert place.charges() == 1


async def test_g11_equal_calls_in_parallel(place: Place) -> None:
    answers: list[httpx.Response] = []
    body = place.body()
    async with place.house.running() as client:

        async def ask() -> None:
            answers.append(await post(client, body))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert [answer.status_code for answer in answers] == [201] * 5
        assert len({answer.content for answer in answers}) == 1
        assert place.charges() == len(place.house.payments()) == 1


async def test_g12_found_by_reference_and_in_the_report(place: Place) -> None:
    house = place.house
    async with house.running() as client:
        told = (await post(client, place.body())).json()
        found = await client.get(PAYMENTS, params={"client_ref": "INV-1"}, headers=house.basic())
        assert found.json()["status"] == "CONFIRMED"
        house.clock.advance(1)
        run = house.flow.reports.run(house.command("cip_report_run", application=APP)["run"])
        content, _ = await house.service.report_file(run)
        assert told["payment_id"] in content.decode()


# ---- the bank's own: what is asked, and what is owed


async def test_g06_bank_a_purchase_that_never_arrived_is_reversed(make: Make) -> None:
    """25: the bank does not know it; the reversal keeps it from coming later."""
    place = make(AtBank)
    assert isinstance(place, AtBank)
    house, bank = place.house, place.bank
    async with house.running() as client:
        bank.is_deaf = True
        answer = await house.while_pending(lambda: post(client, place.body()))
        assert answer.status_code == 202
        bank.is_deaf = False
        house.advance(3)
        assert only(house).status == "VOIDED"
        (reversal,) = bank.sent("0420")
        assert reversal["37"] == bank.sent("0200")[0]["37"] == only(house).source_ref
        assert [e.state for e in bank.book.entries.values()] == ["TUMBA"]
        assert len(bank.sent("0200")) == 1


async def test_g06_bank_reversals_are_owed_until_acknowledged(make: Make) -> None:
    """Across a restart too; until then the payment is PENDING and says so."""
    place = make(AtBank, bank_inquiry=False)
    assert isinstance(place, AtBank)
    house, bank = place.house, place.bank
    async with house.running() as client:
        with place.silent():
            answer = await house.while_pending(lambda: post(client, place.body()))
            assert answer.status_code == 202
            house.advance(20)
            assert (len(bank.sent("0420")), bank.sent("0600")) == (1, [])
    assert only(house).status == "PENDING"
    repeats = len(bank.sent("0421"))
    house.restart()
    house.advance(2)
    assert only(house).status == "VOIDED"
    assert len(bank.sent("0420")) == 1
    assert len(bank.sent("0421")) > repeats
    assert place.charges() == 0


async def test_g06_bank_a_late_answer_decides_nothing(make: Make) -> None:
    """Only an inquiry's answer approves late."""
    place = make(AtBank)
    assert isinstance(place, AtBank)
    house, bank = place.house, place.bank
    async with house.running() as client:
        with place.silent():
            await house.while_pending(lambda: post(client, place.body()))
        bank.answer(*bank.lost[0])
        assert only(house).status == "PENDING"
        house.advance(3)
        assert only(house).status == "CONFIRMED"
        assert len(bank.sent("0200")) == place.charges() == 1


async def test_g06_bank_a_late_approval_may_be_voided(make: Make) -> None:
    place = make(AtBank, late_approval="void")
    house = place.house
    async with house.running() as client:
        await pay_unheard(place, client)
        house.advance(3)
        assert only(house).status == "VOIDED"
        assert place.charges() == 0


@pytest.mark.parametrize(("code", "end"), [("12", "VOIDED"), ("91", "PENDING"), ("96", "PENDING")])
async def test_g06_bank_what_an_inquiry_may_be_answered(make: Make, code: str, end: str) -> None:
    """12: it cannot be asked, so it is undone; 91 and 96 say nothing, so it is asked again."""
    place = make(AtBank)
    assert isinstance(place, AtBank)
    house, bank = place.house, place.bank
    async with house.running() as client:
        bank.status = code
        await pay_unheard(place, client)
        house.advance(3)
        assert only(house).status == end
        bank.status = ""
        house.advance(5)
        assert only(house).status == ("VOIDED" if code == "12" else "CONFIRMED")
        assert place.charges() == (code != "12")


async def test_g06_bank_nothing_known_for_minutes_is_an_alarm(make: Make) -> None:
    place = make(AtBank)
    assert isinstance(place, AtBank)
    house, bank = place.house, place.bank
    async with house.running() as client:
        with place.silent():
            await house.while_pending(lambda: post(client, place.body()))
            house.advance(290)
            assert house.node.alarms.get("cip_pending", 0) == 0
            assert len(bank.sent("0600")) == 6
            house.advance(100)
            assert house.node.alarms["cip_pending"] == 1
            assert only(house).status == "PENDING"
        house.advance(300)
        assert only(house).status == "CONFIRMED"


async def test_bank_voids_by_reversal_and_refunds_nothing(make: Make) -> None:
    place = make(AtBank)
    house = place.house
    async with house.running() as client:
        name = (await post(client, place.body())).json()["payment_id"]
        auth = house.basic()
        refund = {"client_ref": "R-1", "amount": 1}
        refused = await client.post(f"{PAYMENTS}/{name}/refund", json=refund, headers=auth)
        assert refused.status_code == 409
        asked = {"client_ref": "V-1"}
        voided = await client.post(f"{PAYMENTS}/{name}/void", json=asked, headers=auth)
        assert voided.status_code in (201, 202)
        house.advance(1)
        again = await client.post(f"{PAYMENTS}/{name}/void", json=asked, headers=auth)
        assert (again.status_code, again.json()["status"]) == (201, "DONE")
        assert only(house).status == "VOIDED"
        assert place.charges() == 0


async def test_bank_without_institution_or_link_is_down(make: Make) -> None:
    place = make(AtBank)
    assert isinstance(place, AtBank)
    house, bank = place.house, place.bank
    async with house.running() as client:
        bank.up = False
        answer = await post(client, place.body())
        assert (answer.status_code, answer.json()["reason"]) == (402, "technical")
        assert (await client.get("/cip/v1/status")).json()["sources"] == {"bank": "down"}
        bank.up = True
        assert (await post(client, place.body("INV-2"))).status_code == 201
        assert len(bank.sent("0200")) == 1
