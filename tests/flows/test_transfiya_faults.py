"""TransfiYa under faults: refusals, silence, time, tokens, reversals, and what comes too late."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock as Clock

from core_ext import Batch
from core_ext._ledger import FROZEN_CREDIT, FROZEN_DEBIT
from protocols.transfiya import check_iou
from protocols.transfiya.times import instant_ns
from switch.flows import transfiya_steps
from switch.flows.registry import account_id
from switch.products.transfiya_enrolment import set_status
from switch.simulators.transfiya import Fault
from tests.transfiya_house import ANA, LUIS, OPENING, House

CALLS = ("create", "tag", "prove", "continue")
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


def as_before(house: House) -> None:
    """Nothing has moved in the end, and all books agree."""
    assert house.rojo.balance("ana") == OPENING
    assert house.verde.balance("luis") == OPENING
    house.check_even(breaches=False)


def paid(house: House, amount_minor: int = HUNDRED) -> None:
    assert house.rojo.balance("ana") == OPENING - amount_minor
    assert house.verde.balance("luis") == OPENING + amount_minor
    house.check_even(breaches=False)


# ---- proofs that are not taken


@pytest.mark.parametrize("wrong", ["signature", "handle", "hash"])
async def test_ty_26_a_wrong_proof(
    house: House, wrong: str, monkeypatch: Any, clock: Clock
) -> None:
    right = transfiya_steps.sign_iou

    def spoiled(data: Any, key: Any) -> Any:
        iou = right(data, key)
        if data["target"] != house.verde.signer("settlement"):
            return iou
        if wrong == "hash":
            iou["hash"]["value"] = "00" * 32
        elif wrong == "signature":
            iou["meta"]["signatures"][0]["string"] = "00" * 64
        else:
            other = house.rojo.keys["ana"]
            iou = right(data, other)
        return iou

    monkeypatch.setattr(transfiya_steps, "sign_iou", spoiled)
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    [download] = [
        one for one in house.network.actions.values()
        if one["labels"]["type"] == "DOWNLOAD" and one["source"] == house.luis
    ]  # fmt: skip
    assert download["labels"]["status"] == "REJECTED"
    assert download["labels"]["hash"] == "none"
    [told] = [v for name, _, v in house.network.log if name == "continue" and "error" in v]
    assert told["error"]["message"].startswith("proof-rejected")
    as_before(house)


@pytest.mark.parametrize("times", [1, 2])
async def test_ty_27_expired_on_arrival_is_refused(house: House, times: int, clock: Clock) -> None:
    house.network.expired_iou = "refuse"
    house.network.faults.append(Fault("prove", "expired", skip=2, count=times))
    transfer = await house.pay()
    assert transfer.status == ("COMPLETED" if times == 1 else "REJECTED")
    if times == 1:
        paid(house)
        item = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
        assert item is not None
        assert item.fresh
    else:
        as_before(house)


async def test_ty_27_expired_on_arrival_is_rejected(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("prove", "expired", skip=2))
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    as_before(house)


async def test_ty_28_the_proofs_answer_is_lost(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("prove", "lose", count=3))
    transfer = await house.pay()
    assert transfer.status == "COMPLETED"
    assert house.network.calls["get"] >= 3
    for name, value in house.network.ious.items():  # a hash of the network's own: never compared
        assert house.network.actions[name]["labels"]["hash"] not in ("PENDING", "none", value)
    paid(house)


@pytest.mark.parametrize("call", CALLS)
async def test_ty_29_the_network_is_ill_for_a_while(house: House, call: str, clock: Clock) -> None:
    ills = [("status", 503, 3), ("status", 429, 2), ("drop", None, 3), ("garbage", None, 3)]
    for number, (kind, value, count) in enumerate(ills, 1):
        house.network.faults.append(Fault(call, kind, count=count, value=value))
        transfer = await house.pay()
        assert transfer.status == "COMPLETED", kind
        paid(house, number * HUNDRED)


async def test_ty_29_the_wish_of_a_busy_network_is_heeded(house: House, clock: Clock) -> None:
    """It asks for a second; of itself the first repeat would come after a quarter of one."""
    house.network.faults.append(Fault("tag", "status", value=429))
    transfer = await house.pay()
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    at_ns = dict(item.history)
    assert 10**9 <= at_ns["TAGGED"] - at_ns["RESERVED"] < 2 * 10**9
    paid(house)


# ---- tokens


async def test_ty_30_the_token_is_worth_nothing_more(house: House, clock: Clock) -> None:
    for number, call in enumerate((*CALLS, "accept"), 1):
        await house.pay("1.00")
        fetched = house.network.calls["token"]
        house.network.faults.append(Fault(call, "forbidden"))
        transfer = await house.pay("2.00")
        assert transfer.status == "COMPLETED"
        assert house.network.calls["token"] <= fetched + 2  # one of each bank at most
        paid(house, number * 300)


async def test_ty_30_many_calls_wait_for_one_token(house: House, clock: Clock) -> None:
    house.network.faults += [Fault("token", "delay", count=2, value=1.0)]
    for _ in range(20):
        house.network.begin(ANA, LUIS, "1.00")
    await house.settle()
    assert house.network.calls["token"] == 2
    paid(house, 2000)


async def test_ty_30_a_lasting_403_makes_no_storm(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("*", "forbidden", count=10_000))
    transfer = house.network.begin(ANA, LUIS, "1.00")
    await house.pause(60.0)
    assert house.network.calls["token"] < 60
    assert transfer.status == "REJECTED"
    house.network.faults.clear()
    await house.settle()
    as_before(house)


async def test_ty_30_no_token_is_an_alarm_once(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("token", "status", count=40, value=503))
    transfer = house.network.begin(ANA, LUIS, "1.00")
    await house.pause(60.0)
    assert house.rojo.node.alarms["transfiya_token_failed"] == 1
    house.network.faults.clear()
    await house.settle()
    assert (await house.pay("2.00")).status == "COMPLETED"
    assert transfer.status == "REJECTED"
    house.check_even(breaches=False)


# ---- the synchronous part


async def test_ty_31_create_refused(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "refuse", value=106))
    transfer = await house.pay()
    assert (transfer.status, transfer.error["code"]) == ("REJECTED", 314)
    assert not [1 for name, _, _ in house.network.log if name == "continue"]
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    assert (item.state, item.unmade, item.core) == ("FAILED", True, "")
    as_before(house)


async def test_ty_31_create_out_of_time(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "drop", count=1000))
    main = dict(house.network.begin(ANA, LUIS, "100.00").main)
    await house.pause(0.2)
    http, body = await house.during(house.network.call_bank("rojo", "debit", main))
    assert (http, body["error"]["code"]) == (503, 314)
    assert body["error"]["message"].startswith("out-of-time")
    await house.settle()
    assert not [1 for name, _, _ in house.network.log if name == "continue"]
    as_before(house)


@pytest.mark.parametrize("code", [115, 116])
@pytest.mark.parametrize("ours", [True, False])
async def test_ty_32_tag_refused(house: House, code: int, ours: bool, clock: Clock) -> None:
    house.network.faults.append(Fault("tag", "deny" if ours else "refuse", value=code))
    transfer = await house.pay()
    assert transfer.status == ("COMPLETED" if ours else "REJECTED")
    (paid if ours else as_before)(house)


# ---- the core says no


def freeze(house: House, bank: Any, name: str) -> None:
    batch = Batch()
    batch.freeze(
        account_id(f"transfiya:{bank.bank}:account:{name}"), FROZEN_CREDIT | FROZEN_DEBIT
    )  # fmt: skip
    assert bank.node.store.ledger.apply(batch, bank.clock.wall_ns()) == [0]


async def test_ty_33_inactive_after_the_answer(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "delay", skip=1, value=1.0))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: house.network.calls["create"] == 2)
    freeze(house, house.verde, "luis")
    await house.settle()
    assert transfer.status == "REJECTED"
    assert transfer.error["code"] == 307
    item = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
    assert item is not None
    assert (item.state, item.reason, item.iou) == ("FAILED", "account-inactive", b"")
    assert b"307" not in item.created
    assert b"307" not in item.answer
    as_before(house)


async def test_ty_34_no_funds(house: House, clock: Clock) -> None:
    transfer = await house.pay("100000.01")
    assert transfer.status == "REJECTED"
    assert not [one for one in house.network.actions.values()
                if one["labels"]["type"] == "DOWNLOAD"]  # fmt: skip
    as_before(house)


async def test_ty_34_no_funds_any_more_after_the_answer(house: House, clock: Clock) -> None:
    """Two transfers of more than half each: both are taken in, one is paid."""
    for _ in range(2):
        house.network.faults.append(Fault("create", "delay", value=1.0))
    one = house.network.begin(ANA, LUIS, "60000.00")
    two = house.network.begin(ANA, LUIS, "60000.00")
    await house.settle()
    assert {one.status, two.status} == {"COMPLETED", "REJECTED"}
    paid(house, 6_000_000)


# ---- reversals


async def test_ty_37_stopped_after_the_debit(house: House, clock: Clock) -> None:
    house.network.wallets[LUIS].link = "BLOCK"
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    as_before(house)
    kinds = sorted(i.kind for i in house.rojo.flow.items.stored())
    assert kinds == ["DOWNLOAD", "UPLOAD"]


@pytest.mark.parametrize("form", ["main", "reject"])
async def test_ty_38_error_before_the_credit_is_proven(
    house: House, form: str, clock: Clock
) -> None:
    house.network.reversal_form = form
    house.network.faults.append(Fault("tag", "refuse", skip=1, value=123))
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    [reject] = [o for o in house.network.actions.values() if o["labels"]["type"] == "REJECT"]
    assert reject["labels"]["status"] == "COMPLETED"
    [iou] = [v for name, path, v in house.network.log
             if name == "prove" and reject["action_id"] in path]  # fmt: skip
    assert [one["signer"] for one in iou["meta"]["signatures"]] == [house.luis]
    as_before(house)


async def test_ty_39_reject_after_the_credit(house: House, clock: Clock) -> None:
    transfer = await house.pay()
    action = house.network._reject_action(transfer)
    http, body = await house.during(house.network.call_bank("verde", "action", action))
    assert http == 400
    assert body["error"]["message"].startswith("credit-already-final")
    assert house.verde.node.alarms["transfiya_credit_final"] == 1
    action["labels"]["status"] = "ERROR"
    paid(house)


async def test_ty_39_the_network_gives_up_after_the_credit(house: House, clock: Clock) -> None:
    """The credit is done and its /continue does not get through: people decide."""
    house.network.faults.append(Fault("continue", "drop", skip=1, count=18))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.settle()
    assert transfer.status == "ERROR"
    assert house.verde.node.alarms["transfiya_transfer_error"] == 1
    credit = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
    assert credit is not None
    assert credit.state == "DONE"
    paid(house)


@pytest.mark.parametrize("case", ["unknown", "amount", "failed"])
async def test_ty_40_refund_without_a_debit(house: House, case: str, clock: Clock) -> None:
    if case == "failed":
        house.network.faults.append(Fault("tag", "refuse", value=123))
    transfer = await house.pay()
    main = {**transfer.main, "labels": {**transfer.main["labels"], "status": "REJECTED"}}
    if case == "unknown":
        main["labels"]["tx_ref"] = "never-seen"
    if case == "amount":
        main["amount"] = "99.00"
    http, body = await house.during(house.network.call_bank("rojo", "credit", main))
    assert http == 400
    assert body["error"]["message"].startswith("no-matching-debit")
    house.check_even(breaches=False)


async def test_ty_63_an_error_in_a_reversal_is_an_alarm(house: House, clock: Clock) -> None:
    """The refund is refused by the network: the transfer stays as it is, and people are told."""
    house.network.wallets[LUIS].link = "BLOCK"
    house.network.faults.append(Fault("create", "refuse", skip=1, value=123))
    transfer = await house.pay()
    assert transfer.status == "ERROR"
    assert house.rojo.node.alarms["transfiya_transfer_error"] == 1
    await house.during(house.network.call_bank("rojo", "status", house.network.record(transfer)))
    assert house.rojo.node.alarms["transfiya_transfer_error"] == 1
    house.check_even(breaches=False)


@pytest.mark.parametrize("form", ["main", "reject"])
@pytest.mark.parametrize(
    ("endpoint", "kind", "value", "ends"),
    [
        ("debit", "stop", None, "REJECTED"),
        ("debit", "undo", None, "REJECTED"),
        ("status", "stop", None, "REJECTED"),
        ("action", "stop", None, "REJECTED"),
        ("action", "undo", None, "REJECTED"),
        ("credit", "stop", None, "REJECTED"),
        ("credit", "undo", None, "REJECTED"),
        ("credit", "mark", "ERROR", "REJECTED"),
        ("credit", "mark", "completed", "REJECTED"),
        ("status", "swap", None, "COMPLETED"),
        ("prove", "restart", 20.0, "COMPLETED"),
        ("create", "restart", 3.0, "COMPLETED"),
    ],
)
async def test_ty_45_reversals_at_any_step(
    house: House, endpoint: str, kind: str, value: Any, ends: str, form: str, clock: Clock
) -> None:
    """The network gives up before or after any of its calls, tells nonsense, or is away."""
    house.network.reversal_form = form
    house.network.faults.append(Fault(endpoint, kind, value=value))
    transfer = await house.pay()
    assert transfer.status == ends
    assert house.network.struck[f"{endpoint}:{kind}"] == 1
    (paid if ends == "COMPLETED" else as_before)(house)


@pytest.mark.parametrize("taken", [True, False])
async def test_ty_41_refund_while_the_debit_is_uncertain(
    house: House, taken: bool, clock: Clock
) -> None:
    """The refund comes while nobody knows whether the debit's proof was taken."""
    house.network.continue_s = 4.0
    kind = "lose" if taken else "drop"
    house.network.faults += [
        Fault("prove", kind, count=1), Fault("get", "drop", count=6),
    ]  # fmt: skip
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.settle()
    assert transfer.status == "REJECTED"
    refund = house.rojo.item("DOWNLOAD", transfer.tx_ref, house.ana)
    assert (refund is not None) is taken
    as_before(house)


async def test_ty_42_both_forms_of_a_reversal(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("tag", "refuse", skip=1, value=123))
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    [reject] = [o for o in house.network.actions.values() if o["labels"]["type"] == "REJECT"]
    for main in (reject, transfer.main, reject):
        http, body = await house.during(house.network.call_bank("rojo", "credit", main))
        assert http == 200
        assert body["labels"]["type"] == "DOWNLOAD"
    as_before(house)


async def test_ty_43_the_continue_is_late(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("continue", "drop", count=18))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.settle()
    assert transfer.status == "REJECTED"
    assert house.rojo.flow.shared.counts["late", "rojo"] == 1
    as_before(house)


async def test_ty_44_time_is_over_before_the_core(tmp_path: Path, clock: Clock) -> None:
    async with House(tmp_path, more="continue_limit_s = 40\n").running(clock) as house:
        house.network.faults += [Fault("tag", "drop", count=100)]
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.settle()
        assert transfer.status == "REJECTED"
        assert not [1 for name, _, _ in house.network.log if name == "prove"]
        assert [1 for name, _, v in house.network.log if name == "continue" and "error" in v]
        as_before(house)


@pytest.mark.parametrize("before", ["phase 1", "proof"])
async def test_ty_44_time_is_over_while_the_bank_is_down(
    tmp_path: Path, before: str, clock: Clock
) -> None:
    """It dies with the answer, or with the signed IOU, durable; and comes back too late."""
    async with House(tmp_path, more="continue_limit_s = 40\n").running(clock) as house:
        call = "create" if before == "phase 1" else "tag"
        house.network.faults.append(Fault(call, "delay", value=1.0))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls[call] == 1)
        house.rojo.crash_at = (house.rojo.steps + 1, "after")
        await house.until(lambda: not house.rojo.up)
        house.rojo.crash_at = None
        await house.rojo.stopped()
        await house.pause(12.0)
        await house.restart(house.rojo)
        await house.settle()
        item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
        assert item is not None
        # What was signed may have left, for all it knows: until nobody can take it any more.
        reason = "deadline-passed" if before == "phase 1" else "proof-not-taken"
        assert (item.state, item.reason) == ("FAILED", reason)
        assert [state for state, _ in item.history] == (
            ["RECEIVED", "CREATED", "ANSWERED", "FAILING", "FAILED"]
            if before == "phase 1"
            else ["RECEIVED", "CREATED", "ANSWERED", "RESERVED", "TAGGED", "SIGNED", "FAILING",
                  "FAILED"]
        )  # fmt: skip
        assert not [1 for name, _, _ in house.network.log if name == "prove"]
        assert [1 for name, _, v in house.network.log if name == "continue" and "error" in v]
        assert transfer.status == "REJECTED"
        as_before(house)


async def test_ty_45_an_error_continue_after_the_reversal_began(house: House, clock: Clock) -> None:
    """The bank's word does not get through until the network has given up by itself."""
    house.network.continue_s = 3.0
    house.network.faults += [
        Fault("tag", "refuse", value=123), Fault("continue", "drop", count=5),
    ]  # fmt: skip
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: transfer.reversing)
    before = len(house.network.log)
    await house.settle()
    late = [v for name, _, v in list(house.network.log)[before:] if name == "continue"]
    assert [v["error"]["message"].partition(":")[0] for v in late] == ["tag-refused"]
    assert transfer.status == "REJECTED"
    assert transfer.error["code"] != 314 or "tag" not in transfer.error["message"]
    as_before(house)


@pytest.mark.parametrize("call", CALLS)
async def test_ty_47_codes(house: House, call: str, clock: Clock) -> None:
    """Every code, known or not, has the class of its call; 99 is no answer at all."""
    paid_minor = 0
    for code in (99, 100, 102, 112, 121, 122, 123, 136, 307, 177):
        house.network.faults.append(Fault(call, "refuse", value=code))
        transfer = await house.pay()
        assert house.rojo.flow.shared.counts["network_errors", "rojo", str(code)] >= 1
        again = code == 99 or (call == "create" and code == 122) or call in ("prove", "continue")
        assert transfer.status == ("COMPLETED" if again else "REJECTED"), code
        paid_minor += HUNDRED if again else 0
        paid(house, paid_minor)


async def test_ty_49_no_nonce_twice(house: House, clock: Clock) -> None:
    house.network.faults += [Fault(call, "drop", count=2) for call in CALLS]
    house.network.faults.append(Fault("prove", "forbidden"))
    transfer = await house.pay()
    assert transfer.status == "COMPLETED"
    assert house.network.breaches == []
    assert len(house.network.nonces) > 10
    paid(house)


async def test_ty_51_an_amount_written_otherwise(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "amount", value="100.0"))
    transfer = await house.pay("100.00")
    assert transfer.status == "COMPLETED"
    [first, *_] = [v for name, _, v in house.network.log if name == "prove"]
    assert first["data"]["amount"] == "100.0"
    paid(house)


async def test_ty_51_another_amount(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "amount", value="101.00"))
    transfer = await house.pay("100.00")
    assert transfer.status == "REJECTED"
    assert house.rojo.item("UPLOAD", transfer.tx_ref, house.ana).reason == "create-mismatch"
    as_before(house)


# ---- offers and states


async def test_ty_54_a_good_offer(house: House, clock: Clock) -> None:
    await house.pay()
    [value] = [v for name, _, v in house.network.log if name == "accept"]
    assert value == {"signer": {"handle": house.luis}}


async def test_ty_54_an_inactive_account(house: House, clock: Clock) -> None:
    set_status(house.verde.flow.directory, "verde", house.luis, "inactive")
    transfer = await house.pay()
    assert transfer.status == "REJECTED"
    [value] = [v for name, _, v in house.network.log if name == "reject"]
    assert value["error"]["code"] == 307
    as_before(house)


async def test_ty_54_somebody_elses_customer(house: House, clock: Clock) -> None:
    transfer = await house.pay()
    log = len(house.network.log)
    record = {**house.network.record(transfer)}
    record["labels"] = {**record["labels"], "status": "PENDING", "tx_ref": "other-1"}
    http, body = await house.during(house.network.call_bank("rojo", "status", record))
    assert http == 200
    assert body == record
    await house.pause(3.0)
    assert len(house.network.log) == log


async def test_ty_54_a_signer_the_network_does_not_know(tmp_path: Path, clock: Clock) -> None:
    more = 'public_url = "https://bank.example/"\n'
    more += 'router_auth_params = { scope = "tin", secret = "file:secret" }\n'
    house = House(tmp_path, more=more)
    handle = house.verde.add("nuevo", "$573009999999", known=False)
    house.network.wallets["$573009999999"] = type(house.network.wallets[LUIS])(
        "$573009999999", handle, "verde"
    )
    async with house.running(clock):
        transfer = house.network.begin(ANA, LUIS, "1.00")
        record = {**house.network.record(transfer), "target": "$573009999999"}
        record["snapshot"] = {
            **record["snapshot"],
            "target": {"wallet": {"handle": "$573009999999", "default": handle}},
        }
        await house.settle()
        house.network.log.clear()
        record["labels"] = {**record["labels"], "status": "PENDING"}
        assert (await house.during(house.network.call_bank("verde", "status", record)))[0] == 200
        await house.pause(3.0)
        assert [name for name, _, _ in house.network.log] == ["signer", "accept"]
        assert handle in house.network.signers
        told = house.network.log[0][2]
        assert told["keeper"] == [
            {"scheme": "eddsa-ed25519", "public": house.verde.keys["nuevo"].public.hex()}
        ]
        labels = told["labels"]
        assert labels["routerCreditUrl"] == "https://bank.example/transfiya/verde/credit"
        assert labels["routerAuthType"] == "NONE"
        # An object, not text of one.
        assert labels["routerAuthParams"] == {"scope": "tin", "secret": "verde-secret"}


async def test_ty_55_states_repeated_and_out_of_order(house: House, clock: Clock) -> None:
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: house.network.calls["accept"] == 1)
    for status in ("PENDING", "COMPLETED", "PENDING", "COMPLETED"):
        record = {**house.network.record(transfer)}
        record["labels"] = {**record["labels"], "status": status}
        http, body = await house.during(house.network.call_bank("verde", "status", record))
        assert (http, body) == (200, record)
    await house.settle()
    assert transfer.status == "COMPLETED"
    assert house.network.calls["accept"] == 1
    paid(house)


async def test_ty_55_error_before_the_proof(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("tag", "delay", skip=1, value=3.0))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: house.network.calls["tag"] == 2)
    record = {**house.network.record(transfer)}
    record["labels"] = {**record["labels"], "status": "ERROR"}
    assert (await house.during(house.network.call_bank("verde", "status", record)))[0] == 200
    await house.until(
        lambda: house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis).state == "FAILED"
    )
    assert house.verde.open_holds() == 0
    house.network.continue_s = 5.0
    transfer.word = {"code": 314, "message": "gave up"}
    transfer.heard.set()
    await house.settle()
    assert transfer.status == "REJECTED"
    as_before(house)


@pytest.mark.parametrize("case", ["early", "amount", "foreign"])
async def test_ty_56_no_signature_leaves(house: House, case: str, clock: Clock) -> None:
    if case == "early":
        house.network.faults.append(Fault("tag", "drop", count=6))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls["tag"] == 1)
        action = dict(transfer.main)
    else:
        transfer = await house.pay()
        action = {**transfer.main, "action_id": "another-action"}
        if case == "amount":
            action["amount"] = "101.00"
        else:
            action["snapshot"] = {
                **action["snapshot"], "source": action["snapshot"]["target"],
            }  # fmt: skip
    proofs = house.network.calls["prove"]
    http, body = await house.during(house.network.call_bank("rojo", "action", action))
    assert http == 400
    assert body["error"]["code"] == 314
    reason = "customer-unknown" if case == "foreign" else "main-not-signable"
    assert body["error"]["message"].startswith(reason)
    assert house.network.calls["prove"] == proofs
    await house.settle()


async def test_ty_56_no_credit_after_its_rejection_was_signed(house: House, clock: Clock) -> None:
    house.network.faults.append(Fault("credit", "delay", value=1000.0))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.settle()
    assert transfer.status == "REJECTED"
    main = {**transfer.main, "labels": {**transfer.main["labels"], "status": "COMPLETED"}}
    http, body = await house.during(house.network.call_bank("verde", "credit", main))
    assert http == 400
    assert body["error"]["message"].startswith("reject-signed")
    as_before(house)


@pytest.mark.parametrize("call", ["create", "find"])
async def test_ty_61_created_without_a_snapshot(house: House, call: str, clock: Clock) -> None:
    house.network.faults.append(Fault("create", "bare", count=2))
    if call == "find":
        house.network.faults.append(Fault("create", "lose"))
    transfer = await house.pay()
    assert transfer.status == "COMPLETED"
    paid(house)


async def test_ty_61_several_actions_of_ours(house: House, clock: Clock) -> None:
    """Two created actions, and no answer to either: a person must look."""
    house.network.faults.append(Fault("create", "lose"))
    transfer = house.network.begin(ANA, LUIS, "100.00")
    await house.until(lambda: len(house.network.actions) == 2)
    [made] = [o for o in house.network.actions.values() if o["labels"]["type"] == "UPLOAD"]
    house.network._keep({**made, "action_id": "twin"})
    await house.settle()
    item = house.rojo.item("UPLOAD", transfer.tx_ref, house.ana)
    assert item is not None
    assert item.state == "PARKED"
    assert house.rojo.node.alarms["transfiya_parked"] == 1
    assert house.rojo.open_holds() == 0
    assert house.rojo.balance("ana") == OPENING


async def test_ty_62_references(house: House, clock: Clock) -> None:
    names = ["abc_DEF-123", "12345678901234567", "-", "_" * 64]
    for number, tx_ref in enumerate(names, 1):
        house.network.log.clear()
        transfer = await house.pay(tx_ref=tx_ref)
        assert transfer.status == "COMPLETED"
        paths = [path for name, path, _ in house.network.log if name == "continue"]
        assert paths == [f"/transfer/{tx_ref}/continue"] * 2
        paid(house, number * HUNDRED)


async def test_ty_62_no_references(house: House, clock: Clock) -> None:
    transfer = await house.pay()
    for endpoint in ("debit", "credit", "action", "status"):
        for tx_ref in ("a/b", "a?b", "", "x" * 65, "ñ", "a b"):
            status = "PENDING" if endpoint == "debit" else "COMPLETED"
            labels = {**transfer.main["labels"], "tx_ref": tx_ref, "status": status}
            main = {**transfer.main, "labels": labels}
            http, body = await house.during(house.network.call_bank("verde", endpoint, main))
            assert http == 400
            assert body["error"]["message"].startswith("tx-ref-invalid")
    paid(house)


async def test_ty_50_the_amounts_text_is_the_same_everywhere(house: House, clock: Clock) -> None:
    for amount in ("7", "7.5", "7.50", "0.07", "99000.99"):
        house.network.log.clear()
        transfer = await house.pay(amount)
        texts = {v["amount"] for n, _, v in house.network.log if n == "create"}
        texts |= {v["data"]["amount"] for n, _, v in house.network.log if n == "prove"}
        assert texts == {amount}
        assert transfer.status == "COMPLETED"
    house.check_even()


async def test_ty_52_the_old_scheme_is_taken_or_not(house: House, clock: Clock) -> None:
    """The network takes IOUs of old keys, unless it is told not to."""
    vectors = json.loads((Path(__file__).parents[1] / "vectors/transfiya.json").read_text())["v1"]
    case = next(one for one in vectors["match"] if one["name"] == "legacy-ecdsa-ok")
    network = house.network
    network.clock_offset_s = (instant_ns(case["now"]) - network._wall_ns()) / 1e9
    for accept, status in ((True, "COMPLETED"), (False, "REJECTED")):
        network.accept_ecdsa = accept
        action = {**case["action"], "labels": dict(case["action"]["labels"])}
        network.actions = {action["action_id"]: action}
        answer = network._sendit(None, ["action", action["action_id"]], {}, case["iou"], [])
        assert answer["labels"]["status"] == status


def test_ty_52_a_hash_that_begins_with_a_zero_byte() -> None:
    """Both ways of taking it into the old scheme make an IOU that the network takes."""
    vectors = json.loads((Path(__file__).parents[1] / "vectors/transfiya.json").read_text())["v1"]
    assert vectors["leading_zero"]
    for case in vectors["leading_zero"]:
        for form in ("signature_unshifted", "signature_shifted"):
            signature = {
                "scheme": "ecdsa-ed25519", "signer": case["data"]["source"],
                "public": case["public"], "string": case[form], "linker": "sha256:ripemd160",
            }  # fmt: skip
            iou = {
                "hash": {
                    "types": "sha256:sha256", "steps": "stringify:data", "value": case["hash"],
                },
                "data": case["data"], "meta": {"signatures": [signature]},
            }  # fmt: skip
            assert check_iou(iou) == "ok"
            assert check_iou(iou, accept_ecdsa=False) == "iou-signature"
