"""TransfiYa's HTTP side and its start: credentials, limits, bodies, keys, what is never told."""

import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock

from protocols.transfiya import SigningKey, check_iou, handle_of, sign_iou
from switch import config as configuration
from switch.admin_socket import ProvisioningError
from switch.config import ConfigError
from switch.flows.transfiya_records import Directory
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.ops.metrics import Metrics
from switch.ops.rotation import rotate
from switch.products.transfiya import build
from switch.products.transfiya_enrolment import add_key
from switch.simulators.transfiya import Fault
from tests.transfiya_house import ANA, LUIS, MASTER, House, _Standing

OAUTH = """
inbound_client_id = "file:id"
inbound_client_secret = "file:secret"
inbound_api_key = "file:secret"
inbound_username = "file:id"
inbound_password = "file:secret"
"""

# A call that is cut leaves its body unread; the client says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


# Named by every test itself: only so the runner takes it as the clock.
@pytest.fixture
def clock() -> Clock:
    return Clock()


def guarded(tmp_path: Path, mode: str, more: str = "") -> House:
    """A house whose banks demand credentials, which the network has."""
    house = House(tmp_path, more=OAUTH.replace("\n", "\n", 1) + more)
    for bank in house.banks:
        text = bank.text.replace('inbound_auth = "none"', f'inbound_auth = "{mode}"')
        (bank.directory / "troncal.toml").write_text(text)
        bank.config = configuration.load(bank.directory / "troncal.toml", environ={})
        entry = house.network.banks[bank.bank]
        entry.auth = mode
        entry.own_client_id, entry.own_client_secret = f"{bank.bank}-id", f"{bank.bank}-secret"
    return house


async def ask(house: House, path: str, body: bytes, **headers: str) -> httpx.Response:
    wire = house._transports["verde"]
    async with httpx.AsyncClient(transport=wire, base_url="http://127.0.0.1") as client:
        found: httpx.Response = await house.during(
            client.post(f"/transfiya/verde/{path}", content=body, headers=headers)
        )
        return found


@pytest.mark.parametrize("mode", ["none", "api_key", "oauth2", "oauth2+api_key"])
async def test_ty_48_right_credentials(tmp_path: Path, clock: Clock, mode: str) -> None:
    async with guarded(tmp_path, mode).running(clock) as house:
        assert (await house.pay()).status == "COMPLETED"
        house.check_even()


@pytest.mark.parametrize("status", [401, 403])
async def test_ty_48_wrong_credentials(tmp_path: Path, clock: Clock, status: int) -> None:
    more = f"expired_token_status = {status}\n"
    async with guarded(tmp_path, "oauth2+api_key", more).running(clock) as house:
        form = b"grant_type=client_credentials&client_id=verde-id&client_secret=verde-secret"
        token = (await ask(house, "oauth/token", form)).json()["access_token"]
        person = form.replace(b"client_credentials", b"password")
        password = person + b"&username=verde-id&password=verde-secret"
        assert (await ask(house, "oauth/token", password)).status_code == 200
        assert (await ask(house, "oauth/token", person)).status_code == 401
        assert (await ask(house, "oauth/token", form + b"x")).status_code == 401
        key = {"x-api-key": "verde-secret"}
        bearer = {"authorization": f"Bearer {token}"}
        other = token[:-1] + ("1" if token[-1] == "0" else "0")
        wrong = [
            {}, key, bearer, {**bearer, "x-api-key": "wrong"},
            {**key, "authorization": f"Bearer {other}"},
            {**key, "authorization": "Bearer rojo.99999999999.00.00"},
            {**key, "authorization": f"Basic {token}"},
        ]  # fmt: skip
        for headers in wrong:
            response = await ask(house, "credit", b"not even JSON", **headers)
            assert response.status_code == status
            assert response.json()["error"]["code"] == 314
        assert (await ask(house, "credit", b"{}", **key, **bearer)).status_code == 400
        await house.pause(3601.0)
        assert (await ask(house, "credit", b"{}", **key, **bearer)).status_code == status
        assert not list(house.verde.flow.items.stored())


async def test_ty_48_tokens_without_the_journal(tmp_path: Path, clock: Clock) -> None:
    """A token is given and known though no step can be made durable."""
    async with guarded(tmp_path, "oauth2").running(clock) as house:

        async def stopped(do: Any) -> Any:
            raise AssertionError("the journal is not asked")

        house.verde.node.perform = stopped  # type: ignore[method-assign]
        form = b"grant_type=client_credentials&client_id=verde-id&client_secret=verde-secret"
        response = await ask(house, "oauth/token", form)
        assert response.status_code == 200
        assert response.json()["token_type"] == "Bearer"


async def test_ty_60_bad_requests(tmp_path: Path, clock: Clock) -> None:
    async with House(tmp_path).running(clock) as house:
        deep = b'{"a":' * 1000 + b"1" + b"}" * 1000
        transfer = await house.pay()
        main = {**transfer.main, "labels": {**transfer.main["labels"], "tx_ref": 17}}
        bodies = [
            b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"a": NaN}', deep,
            b'{"labels": {"tx_ref": "\\ud800"}}', b'{"labels": []}', b'{"labels": {"status": 1}}',
            b'{"snapshot": "x"}', b'{"snapshot": {"source": {"signer": {"handle": 7}}}}',
            json.dumps(main).encode(),
        ]  # fmt: skip
        before = len(list(house.verde.flow.items.stored()))
        for body in bodies:
            for endpoint in ("debit", "credit", "action", "status"):
                response = await ask(house, endpoint, body)
                assert response.status_code == 400, body[:40]
                assert 300 <= response.json()["error"]["code"] <= 399
        large = await ask(house, "credit", b'{"a": "' + b"x" * (1 << 20) + b'"}')
        assert large.status_code == 413
        wire = house._transports["verde"]
        async with httpx.AsyncClient(transport=wire, base_url="http://127.0.0.1") as client:
            response = await house.during(client.get("/transfiya/verde/credit"))
            assert response.status_code == 405
            response = await house.during(client.post("/transfiya/verde/elsewhere"))
            assert response.status_code == 404
        assert len(list(house.verde.flow.items.stored())) == before
        assert (await house.pay()).status == "COMPLETED"
        house.check_even()


@pytest.mark.parametrize("code", [299, 400])
def test_ty_46_codes_of_a_bank(tmp_path: Path, code: int) -> None:
    path = tmp_path / "troncal.toml"
    path.write_text(
        '[[transfiya.bank]]\nid = "rojo"\ninbound_auth = "none"\n'
        'bank_signer = "wfsGTaiZ7MpUZ45hcv8A9Wz2wQJP6RVkxk"\n'
        f"error_codes = {{ default = {code} }}\n"
    )
    with pytest.raises(ConfigError, match=r"error_codes\.default"):
        configuration.load(path, environ={})


async def test_ty_46_only_bank_codes_on_the_wire(tmp_path: Path, clock: Clock) -> None:
    async with House(tmp_path).running(clock) as house:
        for fault in (Fault("tag", "refuse", skip=1, value=123), Fault("tag", "refuse", value=99)):
            house.network.faults.append(fault)
            await house.pay()
        await house.pay("100000000.00")
        codes = [v["error"]["code"] for _, _, v in house.network.log if "error" in v]
        assert codes
        assert all(300 <= code <= 399 for code in codes)
        assert not [text for text in house.network.breaches if "code" in text]


def refuses_to_start(house: House) -> str:
    node = Node(house.rojo.config, MASTER, _Standing(), house.rojo.config.data)
    try:
        with pytest.raises(ConfigError) as caught:
            node.open(lambda: build(node, None) and None)
        return str(caught.value)
    finally:
        node.close()


def test_ty_53_the_settlement_key_is_another_one(tmp_path: Path) -> None:
    house = House(tmp_path)
    text = house.rojo.text.replace(
        house.rojo.signer("settlement"), "wfsGTaiZ7MpUZ45hcv8A9Wz2wQJP6RVkxk"
    )
    path = house.rojo.directory / "troncal.toml"
    path.write_text(text)
    house.rojo.config = configuration.load(path, environ={})
    assert "key settlement" in refuses_to_start(house)


@pytest.mark.parametrize("allowed", [True, False])
def test_ty_53_a_short_secret(tmp_path: Path, allowed: bool) -> None:
    """A secret of 31 bytes signs as the vectors say, or keeps the bank from starting."""
    file = Path(__file__).parents[1] / "vectors" / "transfiya.json"
    vectors = json.loads(file.read_text())["v1"]
    case = next(one for one in vectors["ious"] if one["name"] == "eddsa-short-secret")
    found = next(one for one in vectors["keys"] if one["id"] == case["key"])
    secret = bytes.fromhex(found["secret_hex"])
    house = House(tmp_path)
    text = house.rojo.text.replace(house.rojo.signer("settlement"), found["handle"])
    text = text.replace("keystore:settlement", "keystore:short")
    text += f"\nallow_short_secret = {str(allowed).lower()}\n"
    path = house.rojo.directory / "troncal.toml"
    path.write_text(text)
    house.rojo.config = configuration.load(path, environ={})

    def add(node: Node, directory: Directory) -> None:
        step = node.begin()
        with pytest.raises(ProvisioningError, match="key-secret-length"):
            add_key(node, step, directory, "short", secret, allow_short=False)
        add_key(node, step, directory, "short", secret, allow_short=True)
        node.end(step)

    house.rojo.offline(add)
    if not allowed:
        assert "key short: key-secret-length" in refuses_to_start(house)
        return
    node = Node(house.rojo.config, MASTER, _Standing(), house.rojo.config.data)
    node.open(lambda: build(node, None) and None)
    node.close()
    signed = sign_iou(case["iou"]["data"], SigningKey(secret, allow_short=True))
    theirs = case["iou"]["meta"]["signatures"][0]["string"].lower()
    assert signed["meta"]["signatures"][0]["string"] == theirs
    assert check_iou(signed) == "ok"
    assert handle_of(SigningKey(secret, allow_short=True).public) == found["handle"]


def test_keys_outlive_a_rotation_of_the_master_key(tmp_path: Path) -> None:
    house = House(tmp_path)
    config = house.rojo.config
    file = config.file(config.node.master_key_file)
    file.write_text(bytes(range(32)).hex() + "\n")
    file.chmod(0o600)
    rotate(config)
    node = Node(config, MasterKey.load(file, {}), _Standing(), config.data)
    node.open(lambda: build(node, None) and None)
    node.close()


async def test_ty_57_no_room_for_new_work(tmp_path: Path, clock: Clock) -> None:
    async with House(tmp_path).running(clock) as house:
        transfer = await house.pay()
        store = house.verde.node.store
        kept = type(store).admitting
        log = len(house.network.log)
        try:
            type(store).admitting = property(lambda self: False)  # type: ignore[method-assign]
            main = {**transfer.main, "labels": {**transfer.main["labels"], "tx_ref": "new-1"}}
            for endpoint in ("debit", "credit", "action", "status"):
                http, body = await house.during(house.network.call_bank("verde", endpoint, main))
                assert http == 503
                assert body["error"]["code"] == 314
                assert body["error"]["message"].startswith("out-of-service")
        finally:
            type(store).admitting = kept  # type: ignore[method-assign]
        assert len(house.network.log) == log
        assert house.verde.item("DOWNLOAD", "new-1", house.luis) is None
        assert (await house.pay()).status == "COMPLETED"
        house.check_even()


async def test_maintenance_refuses_new_work_only(tmp_path: Path, clock: Clock) -> None:
    async with House(tmp_path).running(clock) as house:
        house.network.faults.append(Fault("tag", "delay", skip=1, value=2.0))
        begun = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls["tag"] == 2)
        house.verde.node.issuers.closed = True
        main = {**begun.main, "labels": {**begun.main["labels"], "tx_ref": "new-1"}}
        http, body = await house.during(house.network.call_bank("verde", "credit", main))
        assert (http, body["error"]["message"][:14]) == (503, "out-of-service")
        await house.settle()
        assert begun.status == "COMPLETED"
        house.verde.node.issuers.closed = False
        assert (await house.pay()).status == "COMPLETED"
        house.check_even()


async def test_ty_58_work_goes_on_after_a_stop(tmp_path: Path, clock: Clock) -> None:
    """While it stops no new work is taken; what is left is taken up at the next start."""
    async with House(tmp_path).running(clock) as house:
        house.network.faults.append(Fault("tag", "delay", count=2, value=2.0))
        transfer = house.network.begin(ANA, LUIS, "100.00")
        await house.until(lambda: house.network.calls["tag"] == 1)
        house.rojo.product.service.stop()
        http, body = await house.during(house.network.call_bank("rojo", "debit", transfer.main))
        assert (http, body["error"]["message"][:14]) == (503, "out-of-service")
        await house.pause(4.0)
        house.rojo.crash()
        await house.restart(house.rojo)
        await house.settle()
        assert transfer.status == "COMPLETED"
        house.check_even()


async def test_ty_59_nothing_secret_is_told(
    tmp_path: Path, clock: Clock, caplog: Any, capsys: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    async with guarded(tmp_path, "oauth2+api_key").running(clock) as house:
        house.network.faults += [
            Fault("tag", "refuse", skip=1, value=123), Fault("*", "forbidden", skip=3),
            Fault("prove", "garbage"),
        ]  # fmt: skip
        await house.pay()
        await house.pay("99999999.00")
        told = ""
        for bank in house.banks:
            metrics = Metrics()
            bank.product.measure(metrics)
            told += metrics.exposition().decode()
        told += caplog.text + "".join(capsys.readouterr())
        secrets = ["rojo-secret", "verde-secret", ANA, LUIS, "573001234567", house.ana, house.luis]
        secrets += list(house.network.tokens)
        secrets += [house.network.banks[bank].token for bank in ("rojo", "verde")]
        for secret in filter(None, secrets):
            assert secret not in told
        assert not re.search(r"[0-9a-f]{128}", told)
        assert 'troncal_transfiya_items_ended_total{bank="rojo"' in told
        for access in house.network.banks.values():
            assert "secret" not in repr(access).replace("client_secret", "")


@pytest.fixture
async def house(tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    async with House(tmp_path).running(clock) as running:
        yield running


async def test_one_line_of_the_log_for_each_step(house: House, clock: Clock) -> None:
    """Each with all that finds it again: the transfer, the action, what was done, how it went."""
    house.network.faults.append(Fault("continue", "status", skip=1, value=503))
    with capture_logs() as lines:
        transfer = await house.pay("100.00")
    found = [
        one for one in lines if one["event"] == "step" and one["kind"] == "DOWNLOAD"
    ]  # fmt: skip
    download = house.verde.item("DOWNLOAD", transfer.tx_ref, house.luis)
    assert download is not None
    assert [(one["step"], one["state"]) for one in found] == [
        ("credit", "RECEIVED"), ("create", "CREATED,ANSWERED"), ("go", "RESERVED"),
        ("tag", "TAGGED,SIGNED"), ("prove", "ACCEPTED,POSTED"), ("continue", ""),
        ("continue", "DONE"),
    ]  # fmt: skip
    for one in found:
        assert (one["bank"], one["tx_ref"], one["purpose"]) == ("verde", transfer.tx_ref, "credit")
        assert one["action_id"] == ("" if one["step"] == "credit" else download.action_id)
    calls = [one for one in found if "outcome" in one]
    assert [(one["outcome"], one["http"], one["attempt"]) for one in calls] == [
        ("ok", 200, 1), ("ok", 200, 1), ("ok", 200, 1), ("unavailable", 503, 1), ("ok", 200, 2),
    ]  # fmt: skip
    assert all(isinstance(one["ms"], int) and one["ms"] >= 0 for one in calls)


async def test_what_the_network_proves_to_us_is_counted(house: House, clock: Clock) -> None:
    """All metrics that are promised are there, under their names."""
    await house.pay()
    house.rojo.flow.shared.count("iou_check", "ok")
    house.rojo.flow.shared.count("core_undo", "rojo", "ledger")
    metrics = Metrics()
    house.rojo.product.measure(metrics)
    text = metrics.exposition().decode()
    for name in (
        "requests_total", "sync_seconds_count", "calls_total", "call_seconds_count", "items",
        "items_ended_total", "duplicates_total", "refusals_total", "continue_age_seconds",
        "continue_late_total", "unresolved_oldest_seconds", "parked", "resumed_total",
        "core_undo_total", "token_fetch_total", "iou_check_total", "network_errors_total",
        "booked_minor_total", "conciliation_differences",
    ):  # fmt: skip
        family = name.removesuffix("_count")
        assert re.search(rf"^# TYPE troncal_transfiya_{family} ", text, re.MULTILINE), name
