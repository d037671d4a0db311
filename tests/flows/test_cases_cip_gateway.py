"""Cases G01 to G12: Gateway mode, with the simulated source. One test per case, named by its id."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from protocols.cip import KIND_GATEWAY, is_code, normalise_code
from tests.cip_house import APP, PASSWORD, CipHouse

PAYMENTS = "/cip/v1/gateway/payments"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CipHouse]:
    found = CipHouse(tmp_path)
    yield found
    found.close()


async def test_g00_a_payment_is_confirmed(house: CipHouse) -> None:
    async with house.running() as client:
        answer = await house.pay(client)
        assert answer.status_code == 201
        told = answer.json()
        assert told["status"] == "CONFIRMED"
        assert is_code(normalise_code(told["confirmations"]["cip"]))
        assert told["instrument"] == "411111******1111"
        assert "4111111111111111" not in answer.text
        (payment,) = house.payments()
        assert sorted(payment.steps) == [4, 5, 6, 7, 8, 9]
        assert house.charges() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"application_id": "NOBODY"},
        {"user_id": "nobody"},
        {"password": "not the right one"},
        {"password": ""},
        {"user_id": 7},
        {"application_id": None},
        {"user_id": "ana"},  # a customer is no machine
    ],
    ids=str,
)
async def test_g01_wrong_credentials_are_told_alike(house: CipHouse, wrong: dict) -> None:
    async with house.running() as client:
        answer = await client.post(PAYMENTS, json=house.body(**wrong))
        assert answer.status_code == 401
        assert answer.json()["error"] == {
            "code": "authentication_failed", "message": "authentication failed", "fields": [],
        }  # fmt: skip
        assert house.payments() == []


async def test_g01_ten_failures_lock_and_time_or_an_operator_unlocks(house: CipHouse) -> None:
    async with house.running() as client:
        for _ in range(10):
            answer = await house.pay(client, password="not the right one")
            assert answer.status_code == 401
        locked = await house.pay(client)
        assert locked.status_code == 401
        assert locked.json()["error"] == answer.json()["error"]
        assert house.payments() == []
        async with house.client("203.0.113.8") as elsewhere:
            # A stranger must not stop an agency: its machine calls from another address.
            assert (await house.pay(elsewhere, "INV-2")).status_code == 201
        house.advance(1801)
        assert (await house.pay(client, "INV-3")).status_code == 201
        for _ in range(10):
            await house.pay(client, password="not the right one")
        house.command("cip_user_state", application=APP, user="portal", what="unlock")
        assert (await house.pay(client, "INV-4")).status_code == 201


async def test_g02_a_user_of_another_application(house: CipHouse) -> None:
    house.command("cip_app_add", id="OTHER", name="Other")
    async with house.running() as client:
        answer = await house.pay(client, application_id="OTHER")
        assert answer.status_code == 401
        assert house.payments() == []


async def test_g03_a_mode_that_is_not_allowed(house: CipHouse) -> None:
    house.command("cip_app_set", id=APP, values={"modes": ["partial"]})
    async with house.running() as client:
        answer = await house.pay(client)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "not_allowed"
        assert house.payments() == []


async def test_g04_invalid_data_name_every_field(house: CipHouse) -> None:
    async with house.running() as client:
        body = house.body()
        body["transaction"] |= {"amount": 0, "currency": "USD"}
        answer = await client.post(PAYMENTS, json=body)
        assert answer.status_code == 422
        names = {field["name"] for field in answer.json()["error"]["fields"]}
        assert {"amount", "currency"} <= names
        answer = await client.post(PAYMENTS, json=house.body("bad ref"))
        assert answer.json()["error"]["fields"] == [{"name": "client_ref", "reason": "invalid"}]
        assert house.payments() == []
        assert house.charges() == 0


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (51, "funds"), (14, "instrument"), (61, "limit"), (55, "authentication"),
        (57, "not_allowed"), (96, "technical"),
    ],
)  # fmt: skip
async def test_g05_the_source_declines(house: CipHouse, ending: int, reason: str) -> None:
    async with house.running() as client:
        answer = await house.pay(client, "INV-1", 150_000 + ending)
        assert answer.status_code == 402
        told = answer.json()
        assert (told["status"], told["reason"]) == ("DECLINED", reason)
        assert "confirmations" not in told
        again = await house.pay(client, "INV-1", 150_000 + ending)
        assert (again.status_code, again.json()) == (402, told)
        (payment,) = house.payments()
        assert payment.confirmations == []
        assert house.charges() == 0


@pytest.mark.parametrize(
    ("ending", "end", "charges"), [(73, "CONFIRMED", 1), (74, "DECLINED", 0), (75, "VOIDED", 0)]
)
async def test_g06_the_source_is_silent(
    house: CipHouse, ending: int, end: str, charges: int
) -> None:
    async with house.running() as client:
        answer = await house.while_pending(lambda: house.pay(client, "INV-1", 150_000 + ending))
        assert answer.status_code == 202
        assert answer.json()["status"] == "PENDING"
        where = answer.headers["location"]
        shown = await client.get(where, headers=house.basic())
        assert shown.json()["status"] == "PENDING"
        house.advance(3)
        shown = await client.get(where, headers=house.basic())
        assert shown.json()["status"] == end
        assert house.charges() == charges
        house.advance(600)
        assert house.payments()[0].status == end


async def test_g06_late_approval_is_confirmed_or_voided_as_configured(house: CipHouse) -> None:
    async with house.running() as client:
        await house.while_pending(lambda: house.pay(client, "INV-1", 150_072))
        house.advance(3)
        assert house.payments()[0].status == "CONFIRMED"
        house.command("cip_app_set", id=APP, values={"late_approval": "void"})
        await house.while_pending(lambda: house.pay(client, "INV-2", 150_072))
        house.advance(3)
        assert {p.client_ref: p.status for p in house.payments()} == {
            "INV-1": "CONFIRMED", "INV-2": "VOIDED",
        }  # fmt: skip
        assert house.charges() == 1


async def test_g07_a_crash_between_approval_and_update(house: CipHouse) -> None:
    """The source has approved, nobody heard it: the restart asks, and writes the codes."""
    async with house.running() as client:
        await house.until_submitted(lambda: house.pay(client, "INV-1", 150_073))
    assert house.payments()[0].status == "SUBMITTED"
    house.restart()
    house.advance(1)
    (payment,) = house.payments()
    assert payment.status == "CONFIRMED"
    assert {c.kind for c in payment.confirmations} == {"CIP", "SOURCE"}
    assert house.charges() == 1


async def test_g08_a_crash_before_the_answer(house: CipHouse) -> None:
    async with house.running() as client:
        told = (await house.pay(client)).json()
    house.restart()
    async with house.running() as client:
        found = await client.get(PAYMENTS, params={"client_ref": "INV-1"}, headers=house.basic())
        assert found.status_code == 200
        assert found.json()["confirmations"] == told["confirmations"]
        never = await client.get(PAYMENTS, params={"client_ref": "INV-9"}, headers=house.basic())
        assert never.status_code == 404


async def test_g09_the_answer_was_lost(house: CipHouse) -> None:
    async with house.running() as client:
        first = await house.pay(client)
        second = await house.pay(client, sent_at="2026-01-01T12:00:00.000Z")
        assert second.status_code == 201
        assert second.content == first.content
        assert second.headers["cip-replayed"] == "true"
        assert "cip-replayed" not in first.headers
        assert house.charges() == len(house.payments()) == 1


async def test_g10_the_same_reference_with_another_amount(house: CipHouse) -> None:
    async with house.running() as client:
        first = (await house.pay(client)).json()
        other = await house.pay(client, "INV-1", 150_001)
        assert other.status_code == 409
        assert other.json()["error"]["code"] == "client_ref_conflict"
        shown = await client.get(f"{PAYMENTS}/{first['payment_id']}", headers=house.basic())
        assert shown.json()["amount"] == 150_000
        assert house.charges() == len(house.payments()) == 1


async def test_g11_two_equal_calls_in_parallel(house: CipHouse) -> None:
    answers = []

    async with house.running() as client:

        async def ask() -> None:
            answers.append(await house.pay(client, "INV-1", 150_071))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            while not house.payments():  # noqa: ASYNC110
                await trio.sleep(0.005)
            await trio.sleep(0.1)
            house.advance(2.5)
    assert [answer.status_code for answer in answers] == [201] * 5
    assert len({answer.content for answer in answers}) == 1
    assert house.charges() == len(house.payments()) == 1


async def test_g12_the_site_stops_before_it_tells_its_customer(house: CipHouse) -> None:
    async with house.running() as client:
        told = (await house.pay(client)).json()
        found = await client.get(PAYMENTS, params={"client_ref": "INV-1"}, headers=house.basic())
        assert found.json()["status"] == "CONFIRMED"
        house.advance(1)
        run = house.flow.reports.run(house.command("cip_report_run", application=APP)["run"])
        content, _ = await house.service.report_file(run)
        assert told["payment_id"] in content.decode()


# ---- what the API takes and refuses besides


async def test_the_form_twin_pays_the_same(house: CipHouse) -> None:
    form = {
        "application_id": APP, "user_id": "portal", "password": PASSWORD, "client_ref": "INV-1",
        "transaction.amount": "150000", "transaction.currency": "PYG",
        "transaction.instrument.type": "card", "transaction.instrument.pan": "4111111111111111",
        "transaction.instrument.expiry": "12/30", "transaction.instrument.cvv": "123",
    }  # fmt: skip
    async with house.running() as client:
        first = await client.post(PAYMENTS, data=form)
        assert first.status_code == 201
        assert (await house.pay(client)).content == first.content


async def test_credentials_may_travel_in_the_header_and_never_in_the_url(house: CipHouse) -> None:
    async with house.running() as client:
        bare = {k: v for k, v in house.body().items() if k in ("client_ref", "transaction")}
        answer = await client.post(PAYMENTS, json=bare, headers=house.basic())
        assert answer.status_code == 201
        url = f"{PAYMENTS}?client_ref=INV-1&application_id={APP}&user_id=portal&password={PASSWORD}"
        assert (await client.get(url)).status_code == 401


async def test_a_signed_call_needs_no_password_and_works_once(house: CipHouse) -> None:
    bare = {k: v for k, v in house.body().items() if k != "password"}
    raw = json.dumps(bare).encode()
    headers = house.headers(KIND_GATEWAY, "POST", PAYMENTS, raw)
    headers["content-type"] = "application/json"
    async with house.running() as client:
        answer = await client.post(PAYMENTS, content=raw, headers=headers)
        assert answer.status_code == 201
        replayed = await client.post(PAYMENTS, content=raw, headers=headers)
        assert replayed.status_code == 401
        tampered = raw.replace(b"150000", b"150001")
        headers |= house.headers(KIND_GATEWAY, "POST", PAYMENTS, raw)
        assert (await client.post(PAYMENTS, content=tampered, headers=headers)).status_code == 401
        headers |= house.headers(KIND_GATEWAY, "POST", PAYMENTS, raw)
        house.clock.advance(301)
        assert (await client.post(PAYMENTS, content=raw, headers=headers)).status_code == 401
        assert house.charges() == 1


async def test_an_application_may_take_signed_calls_only(house: CipHouse) -> None:
    house.command("cip_app_set", id=APP, values={"machine_passwords": False})
    raw = json.dumps({k: v for k, v in house.body().items() if k != "password"}).encode()
    async with house.running() as client:
        refused = await house.pay(client)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "authentication_failed"
        assert house.payments() == []
        headers = house.headers(KIND_GATEWAY, "POST", PAYMENTS, raw)
        headers["content-type"] = "application/json"
        assert (await client.post(PAYMENTS, content=raw, headers=headers)).status_code == 201


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed"),
        (b"[]", "application/json", 400, "malformed"),
        (b"\xff", "application/json", 400, "malformed"),
        (b"a=1&a=2", "application/x-www-form-urlencoded", 400, "malformed"),
        (b"{}", "text/plain", 415, "media_type"),
    ],
)
async def test_bodies_that_are_none(
    house: CipHouse, content: bytes, media_type: str, status: int, code: str
) -> None:
    async with house.running() as client:
        answer = await client.post(PAYMENTS, content=content, headers={"content-type": media_type})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.json()["request_id"].startswith("req_")


async def test_void_and_refund_by_the_site(house: CipHouse) -> None:
    async with house.running() as client:
        first = (await house.pay(client, "INV-1")).json()["payment_id"]
        second = (await house.pay(client, "INV-2")).json()["payment_id"]
        auth = house.basic()
        voided = await client.post(
            f"{PAYMENTS}/{first}/void", json={"client_ref": "V-1"}, headers=auth
        )
        assert (voided.status_code, voided.json()["status"]) == (201, "DONE")
        assert house.flow.payment(first).status == "VOIDED"
        refund = f"{PAYMENTS}/{second}/refund"
        part = {"client_ref": "R-1", "amount": 50_000}
        done = await client.post(refund, json=part, headers=auth)
        again = await client.post(refund, json=part, headers=auth)
        assert done.status_code == again.status_code == 201
        assert again.headers["cip-replayed"] == "true"
        assert house.flow.payment(second).refunded == 50_000
        assert (
            await client.post(f"{PAYMENTS}/{second}/void", json={"client_ref": "V-2"}, headers=auth)
        ).status_code == 409
        over = {"client_ref": "R-2", "amount": 100_001}
        assert (await client.post(refund, json=over, headers=auth)).status_code == 422
        rest = {"client_ref": "R-3", "amount": 100_000}
        assert (await client.post(refund, json=rest, headers=auth)).status_code == 201
        assert house.flow.payment(second).status == "REFUNDED"
        other = {"client_ref": "R-1", "amount": 1}
        assert (await client.post(refund, json=other, headers=auth)).status_code == 409


async def test_g09_a_repeat_is_as_first_given_whatever_was_given_back_since(
    house: CipHouse,
) -> None:
    async with house.running() as client:
        first = await house.pay(client)
        name, auth = first.json()["payment_id"], house.basic()
        part = {"client_ref": "R-1", "amount": 150_000}
        await client.post(f"{PAYMENTS}/{name}/refund", json=part, headers=auth)
        again = await house.pay(client)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["cip-replayed"] == "true"
        shown = (await client.get(f"{PAYMENTS}/{name}", headers=auth)).json()
        assert (shown["status"], shown["refunded"]) == ("REFUNDED", 150_000)


async def test_a_void_is_for_the_same_day(house: CipHouse) -> None:
    async with house.running() as client:
        name = (await house.pay(client)).json()["payment_id"]
        house.clock.advance(86_400)
        late = await client.post(
            f"{PAYMENTS}/{name}/void", json={"client_ref": "V-1"}, headers=house.basic()
        )
        assert late.status_code == 409


async def test_an_application_may_call_from_its_networks_only(house: CipHouse) -> None:
    house.command("cip_app_set", id=APP, values={"addresses": ["198.51.100.0/24"]})
    async with house.running() as client:
        assert (await house.pay(client)).status_code == 401
        async with house.client("198.51.100.9") as inside:
            assert (await house.pay(inside)).status_code == 201


async def test_right_credentials_are_hashed_once_for_many_calls(house: CipHouse) -> None:
    async with house.running() as client:
        for number in range(20):
            assert (await house.pay(client, f"INV-{number}")).status_code == 201
        assert house.service.auth.passwords.hash_ns.count == 1
        house.command("cip_user_state", application=APP, user="portal", what="disable")
        assert (await house.pay(client, "INV-20")).status_code == 401


@pytest.mark.parametrize(
    "name", ["x" * 33, "pay_" + "Ñ" * 200, "%ED%A0%80", "..", "pay_" + "0" * 26, "%00"]
)
async def test_made_up_names_are_not_found_and_stop_nothing(house: CipHouse, name: str) -> None:
    async with house.running() as client:
        auth = house.basic()
        assert (await client.get(f"{PAYMENTS}/{name}", headers=auth)).status_code == 404
        for kind, body in (("void", {}), ("refund", {"amount": 1})):
            url = f"{PAYMENTS}/{name}/{kind}"
            body = {"client_ref": "A-1", **body}
            assert (await client.post(url, json=body, headers=auth)).status_code == 404
        unsigned = await client.get(f"/cip/v1/partial/sessions/{name}")
        assert unsigned.status_code in (401, 404)
        assert (await client.get(f"/pay/s/{name}")).status_code == 404
        assert (await house.pay(client)).status_code == 201


async def test_what_is_too_large_or_too_deep_is_refused(house: CipHouse) -> None:
    deep: object = 1
    for _ in range(50):
        deep = {"a": deep}
    async with house.running() as client:
        sessions = "/cip/v1/partial/sessions"
        assert (await client.post(sessions, json=house.context() | {"x": deep})).status_code == 400
        many = {"x" * 5000: "y"}
        assert (await client.post(sessions, json=house.context(fields=many))).status_code == 422
        long = house.body()
        long["transaction"]["items"] = [
            {"code": "c" * 32, "amount": 1500, "account": "ñ" * 64} for _ in range(100)
        ]
        assert (await client.post(PAYMENTS, json=long)).status_code == 422
        large = await client.post(PAYMENTS, content=b"x" * 65_537)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        larger = await client.post(PAYMENTS, content=b"x" * 200_000)
        assert (larger.status_code, larger.json()["error"]["code"]) == (413, "too_large")
        house.product.mounts[0]._requests_max = 0
        shed = await house.pay(client)
        assert (shed.status_code, shed.json()["error"]["code"]) == (503, "overloaded")
        assert shed.headers["retry-after"] == "1"
        assert (await client.get("/cip/")).status_code == 503
        house.product.mounts[0]._requests_max = 512
        assert (await house.pay(client)).status_code == 201
