"""What commands ask of TransfiYa's network by themselves, and signers told to it."""

import time
from typing import Any, Final

import trio

from protocols.transfiya import encode
from protocols.transfiya.errors import DUPLICATE
from switch.cli.base import CliError
from switch.cli.provision import provision
from switch.config import Config
from switch.flows.transfiya_jobs import OK, UNAVAILABLE, Job, Outcome
from switch.flows.transfiya_offers import signer_body
from switch.flows.transfiya_records import SignerRecord
from switch.products.transfiya import access_of, router_of
from switch.sections.transfiya import Bank
from switch.web.transfiya_calls import NetworkCalls

TRIES: Final = 3
PAUSE_S: Final = 0.5


def bank_of(config: Config, name: str) -> Bank:
    """The settings of a bank of profile v1. Raises: CliError."""
    found = next((one for one in config.transfiya.bank if one.id == name), None)
    if found is None or found.profile != "v1":
        raise CliError(f"there is no bank {name} of profile v1 in {config.path}")
    return found


def asked(config: Config, settings: Bank, job: Job) -> Outcome:
    """One call, tried a few times where it has no answer."""

    async def ask() -> Outcome:
        network = NetworkCalls(access_of(config, settings), time.time_ns)
        try:
            for attempt in range(TRIES):
                await trio.sleep(PAUSE_S * attempt)
                outcome = await network.run(job)
                if outcome.status != UNAVAILABLE:
                    break
        finally:
            await network.aclose()
        return outcome

    return trio.run(ask)


def word_of(outcome: Outcome) -> str:
    """What came instead of a good answer, for people."""
    if not outcome.http:
        return "no answer, or no token to ask with"
    code = f", code {outcome.code}" if outcome.code is not None else ""
    return f"HTTP {outcome.http}{code}"


def register(config: Config, bank: str, handle: str) -> Any:
    """Tell the network of a signer now; returns its row.

    Raises:
        CliError: there is no such bank or signer, or the network does not take it.
    """
    settings = bank_of(config, bank)
    row = provision(config, "transfiya_signer_told", bank=bank, handle=handle)
    public = bytes.fromhex(row.pop("public"))
    signer = SignerRecord(**row)
    body = signer_body(settings, signer, public, router_of(config, settings))
    outcome = asked(config, settings, Job(bank, "", "signer", "POST", "/signer", (), encode(body)))
    if outcome.status != OK and outcome.code != DUPLICATE:
        raise CliError(
            f"{handle} is kept here, but the network does not take it: {word_of(outcome)}",
            f"again: troncal transfiya signer register {bank} {handle}",
        )
    row = provision(config, "transfiya_signer_told", bank=bank, handle=handle, known=True)
    del row["public"]
    return row
