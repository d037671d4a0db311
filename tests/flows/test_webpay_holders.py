"""Holders' banks: what they are asked, and what becomes of a payment by what they say."""

from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.webpay.pairs import parse_pairs
from switch.cli.apart import free_port
from switch.config import ConfigError, load
from switch.products.webpay_keys import secret_at
from switch.simulators.webpay_bank import HolderBank
from tests.webpay_house import Page, acquiring, card, toml

RUT, PASSWORD = "11111111-1", "123"
ALL = 'holder_auth = "all"'


class Banks(HolderBank):
    """The simulated bank at a place of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()


@pytest.fixture
async def banks(nursery: trio.Nursery) -> Banks:
    found = Banks()
    await nursery.start(found.run, found.port)
    return found


def kind_of(number: int) -> dict[str, str]:
    ways = [("kcc60", "ledger"), ("direct", "bank")]
    return dict(zip(("mode", "authoriser"), ways[number], strict=True))


async def identify(page: Page, rut: str = RUT, password: str = PASSWORD) -> None:
    await page.acquirer.service.identify(page.page_id, page.view.nonce, rut, password)


async def ended(page: Page) -> tuple[str, int, str]:
    payment = await page.ended()
    return payment.state, payment.respuesta, dict(parse_pairs(payment.message))["TBK_VCI"]


@pytest.mark.parametrize("number", [0, 1])
async def test_WP_23_the_bank_of_a_debit_card_knows_its_holder(
    tmp_path: Path, banks: Banks, number: int
) -> None:
    kind = kind_of(number)
    async with acquiring(tmp_path, bank_port=banks.port, **kind) as acquirer:
        page = await acquirer.paid(with_card=card(kind="D", bank="bci"))
        assert page.view.authenticating
        assert not acquirer.bank.asked
        await identify(page)
        assert await ended(page) == ("CONFIRMED", 0, "TSY")
        assert banks.asked == [("bci", "D")]


@pytest.mark.parametrize("number", [0, 1])
async def test_WP_22_a_wrong_password_ends_it(tmp_path: Path, banks: Banks, number: int) -> None:
    async with acquiring(tmp_path, bank_port=banks.port, **kind_of(number)) as acquirer:
        page = await acquirer.paid(with_card=card(kind="D"))
        await identify(page, password="124")
        assert await ended(page) == ("DECLINED", -1, "TSN")
        assert (acquirer.bank.asked, acquirer.charged()) == ([], 0)
        assert acquirer.lines() == [("ACK", "-1")]


@pytest.mark.parametrize(
    ("kind", "outcome", "expected"),
    [
        ("C", "NP", ("CONFIRMED", 0, "NP")), ("C", "A", ("CONFIRMED", 0, "A")),
        ("C", "TO", ("DECLINED", -1, "TO")), ("D", "NP", ("DECLINED", -1, "NP")),
        ("D", "A", ("DECLINED", -1, "A")), ("D", "ABO", ("DECLINED", -1, "ABO")),
        ("D", "YES", ("DECLINED", -1, "U3")), ("C", "tsy", ("DECLINED", -1, "U3")),
    ],
)  # fmt: skip
async def test_WP_22_what_a_bank_may_say(
    tmp_path: Path, banks: Banks, kind: Any, outcome: str, expected: tuple[str, int, str]
) -> None:
    """A debit card must have succeeded; a credit card goes on where its bank takes no part."""
    banks.outcome = outcome
    async with acquiring(tmp_path, section=ALL, bank_port=banks.port) as acquirer:
        page = await acquirer.paid(with_card=card(kind=kind))
        await identify(page)
        assert await ended(page) == expected


@pytest.mark.parametrize("trouble", ["late", "status", "nobody"])
async def test_WP_22_a_bank_that_does_not_answer_is_an_internal_failure(
    tmp_path: Path, banks: Banks, trouble: str, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    banks.delay_s = 30 if trouble == "late" else 0
    banks.status = 500 if trouble == "status" else 200
    port = free_port() if trouble == "nobody" else banks.port
    section = f'authentication = {{ bank_url = "http://127.0.0.1:{port}/autenticar", '
    section += f"bank_answer_ms = {200 if trouble == 'late' else 10_000} }}"
    async with acquiring(tmp_path, section=section, bank_port=None) as acquirer:
        page = await acquirer.paid(with_card=card(kind="D"))
        await identify(page, password="clave-secreta")
        assert await ended(page) == ("DECLINED", -1, "U3")
        assert acquirer.charged() == 0
    seen = capfd.readouterr()
    assert "holder_bank_failed" in caplog.text + seen.out + seen.err
    assert "clave-secreta" not in caplog.text + seen.out + seen.err


async def test_two_windows_ask_the_bank_once(tmp_path: Path, banks: Banks) -> None:
    banks.delay_s = 1.0
    async with acquiring(tmp_path, bank_port=banks.port) as acquirer:
        page = await acquirer.paid(with_card=card(kind="D"))
        nonce = page.view.nonce
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(acquirer.service.identify, page.page_id, nonce, RUT, PASSWORD)
            await trio.testing.wait_all_tasks_blocked()
            assert not page.view.authenticating  # so both windows wait
        assert await ended(page) == ("CONFIRMED", 0, "TSY")
        assert len(banks.asked) == 1


async def test_WP_22_the_holder_leaves_its_bank(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        page = await acquirer.paid(with_card=card(kind="D"))
        await acquirer.service.leave_bank(page.page_id, "another nonce")
        assert page.view.authenticating
        await acquirer.service.leave_bank(page.page_id, page.view.nonce)
        assert await ended(page) == ("DECLINED", -1, "ABO")


async def test_without_anybody_to_ask_no_debit_is_offered(tmp_path: Path) -> None:
    banks = 'debit_banks = [{ id = "bci", name = "BCI" }, { id = "itau", name = "I", auth_url = '
    banks += '"https://auth.itau.example/" }]'
    async with acquiring(tmp_path, bank_port=None) as acquirer:
        page = await acquirer.form()
        assert (page.view.kinds, page.view.banks) == (("C",), ())
        await page.pay(card(kind="D"))
        assert (page.state, page.payment.tries) == ("FORM", 1)
    async with acquiring(tmp_path, bank_port=None, section=banks) as acquirer:
        page = await acquirer.form("OC2")
        assert (page.view.kinds, page.view.banks) == (("C", "D"), (("itau", "I"),))


@pytest.mark.parametrize(
    "section",
    [
        ALL,
        'authentication = { bank_url = "bank" }',
        'authentication = { bank_url = "https://b.example/", bank_key = "la-clave" }',
        'debit_banks = [{ id = "a", name = "A", auth_url = "ftp://x" }]',
    ],
)
def test_a_service_that_cannot_be_meant_stops_the_start(tmp_path: Path, section: str) -> None:
    path = tmp_path / "troncal.toml"
    path.write_text(toml(bank_port=None, section=section))
    with pytest.raises(ConfigError):
        load(path, environ={})


def test_a_key_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "troncal.toml"
    path.write_text(toml())
    config = load(path, environ={})
    with pytest.raises(ConfigError, match="bank_key"):
        secret_at(config, "webpay.authentication.bank_key", "env:NOT_THERE", {})
    assert secret_at(config, "x", "env:THERE", {"THERE": "k\n"}) == "k"


async def test_our_key_at_the_bank(
    tmp_path: Path, banks: Banks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANK_KEY", "la-llave\n")
    seen: list[str] = []

    async def answer(self: HolderBank, request: Any) -> Any:
        seen.append(request.headers["authorization"])
        return await real(self, request)

    real = HolderBank._answer
    monkeypatch.setattr(HolderBank, "_answer", answer)
    other = Banks()
    section = f'authentication = {{ bank_url = "http://127.0.0.1:{other.port}/autenticar", '
    section += 'bank_key = "env:BANK_KEY" }'
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run, other.port)
        async with acquiring(tmp_path, bank_port=None, section=section) as acquirer:
            page = await acquirer.paid(with_card=card(kind="D"))
            await identify(page)
            assert await ended(page) == ("CONFIRMED", 0, "TSY")
        nursery.cancel_scope.cancel()
    assert seen == ["Bearer la-llave"]
