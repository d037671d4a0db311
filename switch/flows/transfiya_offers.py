"""Transfers offered to our customers, accepted or rejected, and transfers our customers begin."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from protocols.transfiya import encode
from protocols.transfiya.errors import DUPLICATE
from protocols.transfiya.times import instant_ns
from switch.flows.step import Step
from switch.flows.transfiya_jobs import OK, Job, Outcome, Shared, entities, label, segment
from switch.flows.transfiya_records import ACCEPT, RECEIVED, TRANSFER, Item, SignerRecord
from switch.sections.transfiya import Bank as Settings

ENDPOINTS: Final = ("debit", "credit", "action", "status")
ROUTER_AUTH: Final = {
    "none": "NONE",
    "api_key": "API_KEY",
    "oauth2": "OAUTH2.0",
    "oauth2+api_key": "OAUTH2.0+API_KEY",
}
CLOCK_SLACK_NS: Final = 120 * 1_000_000_000  # between the network's clock and ours, for searches


class Moves(Protocol):
    """The part of the machine that offers use."""

    def move(self, step: Step, item: Item, event: str) -> None: ...


Heard = Callable[[Step, Item, Outcome], None]


def signer_body(
    settings: Settings, signer: SignerRecord, public: bytes, router: Mapping[str, str]
) -> dict[str, Any]:
    """What the network is told of a customer's signer.

    Args:
        router: what the network needs to authenticate itself to the bank, by its own names.
    """
    labels: dict[str, Any] = {"bankId": settings.id, "status": signer.status.upper()}
    if settings.public_url:
        base = settings.public_url.rstrip("/") + settings.mount
        labels |= {f"router{word.title()}Url": f"{base}/{word}" for word in ENDPOINTS}
        labels["routerAuthType"] = ROUTER_AUTH[settings.inbound_auth]
    if router:
        labels["routerAuthParams"] = dict(router)
    keeper = [{"scheme": "eddsa-ed25519", "public": public.hex()}]
    return {"handle": signer.handle, "labels": labels, "keeper": keeper}


class Offers:
    """Items without a proof of their own: ACCEPT and TRANSFER."""

    def __init__(self, shared: Shared, machine: Moves) -> None:
        self._shared = shared
        self._machine = machine

    def begin(self, step: Step, item: Item) -> Job | None:
        """The call an item in RECEIVED stands before."""
        if item.kind == TRANSFER:
            return self._transfer(item)
        assert item.kind == ACCEPT, "signatures are answered as they come"
        path = f"/transfer/{segment(item.tx_ref)}"
        if item.reason:
            error = self._shared.banks[item.bank].error(item.reason)
            body = encode({"error": error})
            return Job(item.bank, item.id, "reject", "POST", f"{path}/reject", (), body)
        signer = self._shared.directory.signer(item.bank, item.user)
        if signer is not None and not signer.known:
            side = self._shared.banks[item.bank]
            key = self._shared.directory.key(signer.key)
            public = key.public if key is not None else b""
            body = encode(signer_body(side.settings, signer, public, side.router))
            return Job(item.bank, item.id, "signer", "POST", "/signer", (), body)
        body = encode({"signer": {"handle": item.user}})
        return Job(item.bank, item.id, "accept", "POST", f"{path}/accept", (), body)

    def _transfer(self, item: Item) -> Job:
        if self._shared.work_of(item).probe:
            query = (("source", item.source), ("target", item.target))
            return Job(item.bank, item.id, "search", "GET", "/transfer", query)
        return Job(item.bank, item.id, "transfer", "POST", "/transfer", (), item.created)

    def heard(self, call: str) -> Heard:
        """Who takes the end of a call."""
        found: dict[str, Heard] = {
            "accept": self._on_told,
            "reject": self._on_told,
            "signer": self._on_signer,
            "transfer": self._on_transfer,
            "search": self._on_search,
        }
        return found[call]

    def without_answer(self, step: Step, item: Item, call: str) -> None:
        """A transfer that may have been begun is looked for, never begun again by itself."""
        if call == "transfer":
            self._shared.work_of(item).probe = True

    def _on_told(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RECEIVED:
            return
        if outcome.status != OK:
            item.flagged = True
            self._shared.count("offer_refused", item.bank)
        self._machine.move(step, item, "done")

    def _on_signer(self, step: Step, item: Item, outcome: Outcome) -> None:
        signer = self._shared.directory.signer(item.bank, item.user)
        if outcome.status == OK or outcome.code == DUPLICATE:
            if signer is not None:
                signer.known = True
                self._shared.directory.put_signer(signer)
        else:
            item.reason = "signer-refused"

    def _on_transfer(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RECEIVED:
            return
        if outcome.status != OK:
            item.reason, item.code = "transfer-refused", outcome.code or 0
            self._machine.move(step, item, "failed")
            return
        self._begun(step, item, outcome.value)

    def _begun(self, step: Step, item: Item, value: Any) -> None:
        tx_ref = value.get("tx_ref") if isinstance(value, dict) else None
        item.action_id = tx_ref if isinstance(tx_ref, str) else label(value, "tx_ref")
        item.answer = encode(value)
        self._machine.move(step, item, "done")

    def _on_search(self, step: Step, item: Item, outcome: Outcome) -> None:
        if item.state != RECEIVED:
            return
        found = [one for one in entities(outcome.value) if self._is_ours(item, one)]
        if outcome.status == OK and len(found) == 1:
            self._begun(step, item, found[0])
            return
        item.reason = "transfer-unknown"
        self._machine.move(step, item, "parked")
        step.alarm("transfiya_parked", item.tx_ref, "a transfer was begun, or not")

    @staticmethod
    def _is_ours(item: Item, one: dict[str, Any]) -> bool:
        if (one.get("source"), one.get("target"), one.get("amount")) != (
            item.source, item.target, item.amount,
        ):  # fmt: skip
            return False
        if label(one, "reference") not in ("", item.tx_ref):
            return False
        try:
            created_ns = instant_ns(label(one, "created"))
        except ValueError:
            return True
        return created_ns >= item.arrived_ns - CLOCK_SLACK_NS
