"""TransfiYa's flows against the simulated network: each case of the acceptance list by its name."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock as Clock

from protocols.transfiya import check_iou, handle_of, iou_hash
from protocols.transfiya.times import instant_ns
from switch.simulators.transfiya import Fault, Transfer, _Refused
from tests.transfiya_house import ANA, LUIS, OPENING, START_NS, House

HUNDRED = 10_000

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


# Named by every test itself: only so the runner takes it as the clock.
@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def house(tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    async with House(tmp_path).running(clock) as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[..., Any]:
    def made(**more: Any) -> Any:
        return House(tmp_path, **more).running(clock)

    return made


def sent(house: House, name: str) -> list[tuple[str, Any]]:
    """What the banks sent to one endpoint: path and body, in order."""
    return [(path, value) for call, path, value in house.network.log if call == name]


def action(house: House, transfer: Transfer, kind: str) -> dict[str, Any]:
    [found] = [
        one
        for one in house.network.actions.values()
        if one["labels"]["tx_ref"] == transfer.tx_ref and one["labels"]["type"] == kind
    ]
    return found


def moved(house: House, amount_minor: int) -> None:
    """Ana has that much less, Luis that much more, and all books agree."""
    assert house.rojo.balance("ana") == OPENING - amount_minor
    assert house.verde.balance("luis") == OPENING + amount_minor
    assert house.network.balances[house.rojo.signer("settlement")] == -amount_minor
    assert house.network.balances[house.verde.signer("settlement")] == amount_minor
    house.check_even()


# ---- the seed's tables


@pytest.fixture
async def credit(house: House) -> tuple[House, Transfer, Any]:
    """A whole transfer, its DOWNLOAD's create taking a while."""
    house.network.faults.append(Fault("create", "delay", skip=1, value=1.5))
    await house.pause(1.7)
    transfer = await house.pay("100.50")
    assert transfer.status == "COMPLETED"
    [created] = [v for _, v in sent(house, "create") if v["labels"]["type"] == "DOWNLOAD"]
    return house, transfer, created


async def test_ty_01a_source_is_the_target_user(credit: Any, clock: Clock) -> None:
    house, transfer, created = credit
    assert (
        created["source"] == transfer.main["snapshot"]["target"]["signer"]["handle"] == house.luis
    )


async def test_ty_01b_target_is_the_bank_signer(credit: Any, clock: Clock) -> None:
    house, _, created = credit
    assert created["target"] == house.verde.signer("settlement")


async def test_ty_01c_symbol(credit: Any, clock: Clock) -> None:
    assert credit[2]["symbol"] == credit[1].main["symbol"] == "$tin"


async def test_ty_01d_amount_verbatim(credit: Any, clock: Clock) -> None:
    assert credit[2]["amount"] == credit[1].main["amount"] == "100.50"


async def test_ty_01e_type(credit: Any, clock: Clock) -> None:
    assert credit[2]["labels"]["type"] == "DOWNLOAD"


async def test_ty_01f_tx_ref(credit: Any, clock: Clock) -> None:
    assert credit[2]["labels"]["tx_ref"] == credit[1].tx_ref


async def test_ty_01g_received_is_when_the_request_arrived(credit: Any, clock: Clock) -> None:
    house, transfer, created = credit
    item = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
    assert created["labels"]["received"].endswith("-05:00")
    assert instant_ns(created["labels"]["received"]) == item.arrived_ns // 10**6 * 10**6
    assert item.arrived_ns > START_NS


async def test_ty_01h_dispatched_is_when_it_was_sent(credit: Any, clock: Clock) -> None:
    created = credit[2]["labels"]
    assert instant_ns(created["dispatched"]) >= instant_ns(created["received"])
    assert instant_ns(created["dispatched"]) - instant_ns(created["received"]) < 10**8


async def test_ty_01h_a_repeat_has_a_time_of_its_own(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "drop", skip=1, count=1))
    assert (await house.pay()).status == "COMPLETED"
    [second] = [v["labels"] for _, v in sent(house, "create") if v["labels"]["type"] == "DOWNLOAD"]
    assert instant_ns(second["dispatched"]) >= instant_ns(second["received"]) + 2 * 10**8


async def test_ty_02a_tag_names_the_created_action(credit: Any, clock: Clock) -> None:
    house, transfer, _ = credit
    download = action(house, transfer, "DOWNLOAD")
    assert f"/action/{download['action_id']}" in [path for path, _ in sent(house, "tag")]


async def test_ty_02b_tx_id_is_the_ledgers_hold(credit: Any, clock: Clock) -> None:
    house, transfer, _ = credit
    tx_id = action(house, transfer, "DOWNLOAD")["labels"]["tx_id"]
    hold = house.verde.node.store.ledger.hold(bytes.fromhex(tx_id))
    assert hold is not None
    assert (hold.state, hold.captured) == ("captured", 10_050)


@pytest.fixture
async def proof(credit: Any) -> tuple[House, dict[str, Any], str, Any]:
    house, transfer, _ = credit
    download = action(house, transfer, "DOWNLOAD")
    [(path, iou)] = [
        (path, iou) for path, iou in sent(house, "prove") if download["action_id"] in path
    ]
    return house, download, path, iou


async def test_ty_03a_sendit_of_that_action(proof: Any, clock: Clock) -> None:
    assert proof[2] == f"/action/{proof[1]['action_id']}/sendit"


async def test_ty_03b_source(proof: Any, clock: Clock) -> None:
    assert proof[3]["data"]["source"] == proof[1]["snapshot"]["source"]["signer"]["handle"]


async def test_ty_03c_target(proof: Any, clock: Clock) -> None:
    assert proof[3]["data"]["target"] == proof[1]["snapshot"]["target"]["signer"]["handle"]


async def test_ty_03d_symbol_signer(proof: Any, clock: Clock) -> None:
    assert proof[3]["data"]["symbol"] == proof[0].network.symbol_signer


async def test_ty_03e_amount(proof: Any, clock: Clock) -> None:
    assert proof[3]["data"]["amount"] == "100.50"


async def test_ty_03f_domain(proof: Any, clock: Clock) -> None:
    assert proof[3]["data"]["domain"] == proof[1]["labels"]["domain"] == "tin"


async def test_ty_03g_expiry_is_a_minute_ahead(proof: Any, clock: Clock) -> None:
    house, download, _, iou = proof
    item = house.verde.item("DOWNLOAD", download["labels"]["tx_ref"], house.luis)
    signed_ns = dict(item.history)["SIGNED"]
    assert iou["data"]["expiry"].endswith("Z")
    assert instant_ns(iou["data"]["expiry"]) == (signed_ns + 60 * 10**9) // 10**6 * 10**6


async def test_ty_03h_hash(proof: Any, clock: Clock) -> None:
    iou = proof[3]
    assert iou["hash"] == {
        "types": "sha256:sha256", "steps": "stringify:data", "value": iou_hash(iou["data"]),
    }  # fmt: skip
    assert set(iou["data"]) == {
        "domain", "source", "target", "amount", "symbol", "expiry", "random",
    }  # fmt: skip


async def test_ty_03i_signature_by_the_source(proof: Any, clock: Clock) -> None:
    house, download, _, iou = proof
    [signature] = iou["meta"]["signatures"]
    assert signature["scheme"] == "eddsa-ed25519"
    assert signature["signer"] == house.luis == handle_of(bytes.fromhex(signature["public"]))
    assert signature["public"] == house.verde.keys["luis"].public.hex()
    assert check_iou(iou, download) == "ok"
    assert download["labels"]["status"] == "COMPLETED"


def continues(house: House, transfer: Transfer) -> list[Any]:
    path = f"/transfer/{transfer.tx_ref}/continue"
    return [value for where, value in sent(house, "continue") if where == path]


async def test_ty_04a_continue_names_the_transfer(credit: Any, clock: Clock) -> None:
    house, transfer, _ = credit
    assert len(continues(house, transfer)) == 2


async def test_ty_04b_received_is_when_the_proof_was_answered(house: House, clock: Clock) -> None:
    """Also after a retry: it stays, and only `dispatched` is new."""
    house.network.faults += [
        Fault("prove", "delay", skip=2, value=0.5), Fault("continue", "lose", skip=1, count=2),
    ]  # fmt: skip
    transfer = await house.pay()
    item = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
    assert item is not None
    _, *told = continues(house, transfer)
    assert len(told) == 3
    assert {instant_ns(one["received"]) for one in told} == {item.accepted_ns // 10**6 * 10**6}
    house.check_even()


async def test_ty_04c_dispatched_is_when_it_was_sent(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("continue", "drop", skip=1, count=1))
    transfer = await house.pay()
    first, second = continues(house, transfer)
    assert instant_ns(second["dispatched"]) >= instant_ns(second["received"]) + 10**8
    assert instant_ns(first["dispatched"]) >= instant_ns(first["received"])


async def test_ty_04_the_network_takes_continues_of_the_older_kind(
    house: House, clock: Clock
) -> None:
    """The whole signed action under the main action's id; an action that is not signed is none."""
    house.network.faults.append(Fault("continue", "drop", count=1000))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: house.network.calls["continue"] == 1)
    upload = action(house, transfer, "UPLOAD")
    rojo, path = house.network.banks["rojo"], ["transfer", transfer.main["action_id"], "continue"]
    pending = {**transfer.main, "labels": {**transfer.main["labels"]}}
    with pytest.raises(_Refused):
        house.network._continue(rojo, path, {}, pending, [])
    assert not transfer.heard.is_set()
    house.network.breaches.clear()
    house.network._continue(rojo, path, {}, upload, [])
    assert transfer.heard.is_set()
    house.network.faults.clear()
    await house.settle()
    assert transfer.status == "COMPLETED"
    moved(house, HUNDRED)


@pytest.fixture
async def failed(house: House) -> tuple[House, Transfer, Any]:
    """The target's proof is refused twice, and the word of it is said twice."""
    house.network.faults += [
        Fault("prove", "refuse", skip=2, count=2, value=123),
        Fault("continue", "lose", skip=1),
    ]  # fmt: skip
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    told = [one for one in continues(house, transfer) if "error" in one]
    assert len(told) == 2
    return house, transfer, told


async def test_ty_05a_error_continue_names_the_transfer(failed: Any, clock: Clock) -> None:
    house, transfer, _ = failed
    assert f"/transfer/{transfer.tx_ref}/continue" in [p for p, _ in sent(house, "continue")]


def given_up_ns(failed: Any) -> int:
    """When the last answer came: that the second proof was refused."""
    house, transfer, _ = failed
    item = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
    return int(dict(item.history)["FAILING"]) // 10**6 * 10**6


async def test_ty_05b_received(failed: Any, clock: Clock) -> None:
    assert {instant_ns(one["received"]) for one in failed[2]} == {given_up_ns(failed)}


async def test_ty_05c_dispatched(failed: Any, clock: Clock) -> None:
    first, second = (instant_ns(one["dispatched"]) for one in failed[2])
    assert first == given_up_ns(failed)
    assert second >= first + 2 * 10**8


async def test_ty_05d_code(failed: Any, clock: Clock) -> None:
    assert {one["error"]["code"] for one in failed[2]} == {314}


async def test_ty_05e_message(failed: Any, clock: Clock) -> None:
    for one in failed[2]:
        assert one["error"]["message"].startswith("proof-refused: ")


# ---- whole transfers


async def test_ty_06_send_between_two_banks(house: House, clock: Clock) -> None:
    transfer = await house.pay("100.00")
    assert transfer.status == "COMPLETED"
    kinds = {
        one["labels"]["type"]: one["labels"]["status"] for one in house.network.actions.values()
    }
    assert kinds == {"SEND": "COMPLETED", "UPLOAD": "COMPLETED", "DOWNLOAD": "COMPLETED"}
    moved(house, HUNDRED)


async def test_ty_07_sendmol_to_an_account(house: House, clock: Clock) -> None:
    house.network.add_customer("verde", house.luis, "svgs:1001@verde.co", "TRUST")
    transfer = await house.pay(
        "1", "SENDMOL", target="svgs:1001@verde.co", tx_mol="mol-1", numberOftransactions="1"
    )
    assert transfer.status == "COMPLETED"
    assert not sent(house, "accept")
    moved(house, 100)


@pytest.mark.parametrize("word", ["yes", "no", "nothing"])
async def test_ty_08_request(house: House, word: str, clock: Clock) -> None:
    transfer = house.network.begin(ANA, LUIS, "100.00", "REQUEST")
    await house.pause(2.0)
    assert not transfer.ended.is_set()
    assert not sent(house, "accept")
    if word != "nothing":
        flow = house.rojo.flow
        answered = await house.rojo.node.perform(
            lambda step: flow.answer_request(step, "rojo", transfer.tx_ref, accept=word == "yes")
        )
        assert answered
    await house.settle(50_000)
    assert transfer.status == ("COMPLETED" if word == "yes" else "REJECTED")
    moved(house, HUNDRED if word == "yes" else 0)
    if word == "nothing":
        assert not sent(house, "accept")
        assert not sent(house, "reject")


async def test_ty_09_target_is_credited_once(house: House, clock: Clock) -> None:
    transfer = await house.pay()
    purposes = [
        (item.kind, item.purpose, item.user) for item in house.verde.flow.items.stored()
        if item.kind == "DOWNLOAD"
    ]  # fmt: skip
    assert purposes == [("DOWNLOAD", "credit", house.luis)]
    assert transfer.status == "COMPLETED"
    moved(house, HUNDRED)


async def test_ty_10_source_is_refunded_once(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("prove", "refuse", skip=2, count=2, value=123))
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    refund = house.rojo.item("DOWNLOAD", transfer.tx_ref, house.ana)
    assert refund is not None
    assert (refund.purpose, refund.state) == ("refund", "DONE")
    assert (refund.source, refund.target) == (house.ana, house.rojo.signer("settlement"))
    moved(house, 0)


def main_of(house: House, transfer: Transfer, **labels: Any) -> dict[str, Any]:
    """A main action like that of a transfer, with other labels."""
    return {**transfer.main, "labels": {**transfer.main["labels"], **labels}}


async def test_ty_11_no_credit_in_another_state(house: House, clock: Clock) -> None:
    transfer = await house.pay()
    calls = len(house.network.log)
    for status in ("PENDING", "ERROR", None, "completed", "Rejected", "REJECT"):
        main = main_of(house, transfer, status=status, tx_ref="another-1")
        http, body = await house.during(house.network.call_bank("verde", "credit", main))
        assert http == 400
        assert body["error"]["code"] == 314
        assert body["error"]["message"].startswith("state-not-creditable")
        assert house.verde.item("DOWNLOAD", "another-1", house.luis) is None
    assert len(house.network.log) == calls


async def test_ty_12_unknown_fields_change_nothing(house: House, clock: Clock) -> None:
    house.network.noise = True
    good = await house.pay("100.00")
    assert good.status == "COMPLETED"
    house.network.faults.append(Fault("prove", "refuse", skip=2, count=2, value=123))
    bad = await house.pay("50.00")
    assert bad.status == "REJECTED"
    house.network.noise = False
    moved(house, HUNDRED)


# ---- repeats


@pytest.mark.parametrize("after_s", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("endpoint", ["debit", "credit"])
async def test_ty_13_ty_14_a_call_five_times(
    house: House, endpoint: str, after_s: float, clock: Clock
) -> None:
    for number in range(4):
        house.network.faults.append(Fault(endpoint, "duplicate", value=after_s * (number + 1)))
    house.network.faults.append(Fault("tag", "delay", count=2, value=0.8))
    transfer = await house.pay()
    await house.pause(25.0)
    assert transfer.status == "COMPLETED"
    repeats = [(http, body) for what, http, body in house.network.log if what.startswith("dup")]
    assert len(repeats) == 4
    assert {http for http, _ in repeats} == {"200"}
    assert all(body == repeats[0][1] for _, body in repeats)
    kind = "UPLOAD" if endpoint == "debit" else "DOWNLOAD"
    assert repeats[0][1]["action_id"] == action(house, transfer, kind)["action_id"]
    moved(house, HUNDRED)


async def test_ty_14_the_first_answer_is_lost(house: House, clock: Clock) -> None:
    house.network.faults += [Fault("debit", "lose"), Fault("credit", "lose")]
    transfer = await house.pay()
    assert transfer.status == "COMPLETED"
    assert action(house, transfer, "UPLOAD")
    moved(house, HUNDRED)


async def test_ty_15_a_repeat_with_another_amount(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("credit", "other", value=1.0))
    transfer = await house.pay()
    await house.pause(5.0)
    [(_, http, body)] = [one for one in house.network.log if one[0].startswith("dup")]
    assert http == "400"
    assert body["error"]["message"].startswith("duplicate-mismatch")
    assert house.verde.node.alarms["transfiya_duplicate_mismatch"] == 1
    assert transfer.status == "COMPLETED"
    moved(house, HUNDRED)


async def test_ty_16_both_customers_at_one_bank(tmp_path: Path, clock: Clock) -> None:
    """Also when the money goes back: two items of one transfer at one bank."""
    house = House(tmp_path)
    house.rojo.add("eva", "$573005550000")
    async with house.running(clock):
        good = await house.pay("10.00", target="$573005550000")
        assert good.status == "COMPLETED"
        house.check_even()
        house.network.faults.append(Fault("prove", "refuse", skip=2, count=2, value=123))
        bad = await house.pay("20.00", target="$573005550000")
        assert bad.status == "REJECTED"
        keys = [i.key for i in house.rojo.flow.items.stored() if i.tx_ref == bad.tx_ref]
        assert sum(key.startswith("DOWNLOAD/") for key in keys) == 2
        assert house.rojo.balance("ana") == OPENING - 1000
        assert house.rojo.balance("eva") == OPENING + 1000
        house.check_even()
