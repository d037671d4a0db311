"""The simulated site as a process of its own: a shopper at its pages, in front of a real node."""

import json
from pathlib import Path

import httpx
import pytest
import trio

from switch.cli.apart import free_port
from switch.cli.cip_world import APP, prepare, running
from switch.cli.provision import provision
from tests.e2e.test_sim import sim

pytestmark = pytest.mark.timeout(240)
CARD = {"pan": "4111111111111111", "expiry": "12/30", "cvv": "123"}


@pytest.mark.parametrize("fault", ["lose_answer"])
async def test_a_site_pays_at_the_node(tmp_path: Path, fault: str) -> None:
    settings = {"cip.budget_auth_s": 20.0}
    prepared = await trio.to_thread.run_sync(lambda: prepare(tmp_path / "node", settings))
    account = prepared.account
    names = ("application", "user", "password", "key_id", "key")
    file = tmp_path / "account.json"
    file.write_text(json.dumps({name: getattr(account, name) for name in names}))
    async with running(prepared) as world:
        where = ("--cip", world.url, "--account", str(file), "--fault", fault)
        async with sim("cip-sof", *where) as site:
            host, port = site.ready["cip-sof"]
            back = f"http://{host}:{port}/back"
            values = {"return_urls": [back], "default_return_url": back}
            await trio.to_thread.run_sync(
                lambda: provision(prepared.config, "cip_app_set", id=APP, values=values)
            )
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=60) as shopper:
                assert "Oficina de impuestos" in (await shopper.get("/")).text
                page = await shopper.post("/gateway", data={"amount": "150000", **CARD})
                assert "Gracias por su pago" in page.text
                sent = await shopper.post("/partial", data={"amount": "150000"})
                assert sent.headers["location"].startswith(f"{world.url}/pay/s/")
            told = await site.end()
    assert told["orders"] == {"CONFIRMED": 1, "open": 1}
    (code,) = told["confirmations"].values()
    assert code in page.text


async def test_a_site_whose_cip_is_away_says_so(tmp_path: Path) -> None:
    names = ("application", "user", "password", "key_id")
    file = tmp_path / "account.json"
    file.write_text(json.dumps(dict.fromkeys(names, "x") | {"key": "00" * 32}))
    nobody = f"http://127.0.0.1:{free_port()}"
    async with (
        sim("cip-sof", "--cip", nobody, "--account", str(file)) as site,
        httpx.AsyncClient(timeout=60) as shopper,
    ):
        host, port = site.ready["cip-sof"]
        for path, data in (("gateway", CARD), ("partial", {})):
            page = await shopper.post(f"http://{host}:{port}/{path}", data={"amount": "1", **data})
            assert page.status_code == 502
            assert "no vuelva a pagar" in page.text
        assert (await site.end())["confirmations"] == {}
