"""A bank's host that dials us: its connections carry our requests as those that we make do."""

from pathlib import Path

import httpx
import trio

from switch.cli.apart import free_port
from switch.cli.cip_world import prepare, running
from switch.cli.provision import provision
from tests.e2e.test_cases_cip_bank import BANK, CARD, LINK, agree, link_is_up, settled
from tests.e2e.test_sim import keys_file, sim


async def test_payments_over_a_link_that_the_bank_makes(tmp_path: Path) -> None:
    port = free_port()
    settings = {"cip.budget_auth_s": 20.0, "cip.budget_source_s": 4.0}
    prepared = await trio.to_thread.run_sync(
        lambda: prepare(tmp_path / "node", settings, source="bank", bank=BANK)
    )
    with prepared.config.path.open("a", encoding="utf-8") as toml:
        toml.write(LINK)
    keys = await trio.to_thread.run_sync(
        lambda: provision(
            prepared.config, "host_add", name=BANK, dialect="bank", listen=f"127.0.0.1:{port}"
        )
    )
    where = ("--connect", f"127.0.0.1:{port}", "--keys", keys_file(tmp_path, keys))
    async with running(prepared) as world, sim("bank", *where) as bank:
        await link_is_up(world)
        answers = {}
        for reference, amount in (("approved", 150_000), ("declined", 150_051)):
            answers[reference] = await world.site._post(
                "/cip/v1/gateway/payments",
                {
                    "client_ref": reference,
                    "transaction": {
                        "amount": amount, "currency": "PYG", "instrument": {"type": "card", **CARD},
                    },
                },
            )  # fmt: skip
            await settled(world, reference)
        book = await bank.end()
        # Nobody is there to be asked any more, and nothing was sent: refused at once.
        with trio.fail_after(120):
            async with httpx.AsyncClient(timeout=120) as client:
                while True:
                    told = (await client.get(f"{world.url}/cip/v1/status")).json()
                    if told["sources"] == {"bank": "down"}:
                        break
                    await trio.sleep(0.05)
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "approved": 201, "declined": 402,
    }  # fmt: skip
    assert agree(prepared, book) == {"approved": "CONFIRMED", "declined": "DECLINED"}
