"""Transfers offered to our customers, accepted or rejected, and transfers our customers begin."""

from collections.abc import Callable
from typing import Any, Final, Protocol

from protocols.transfiya import encode
from protocols.transfiya.errors import DUPLICATE
from protocols.transfiya.times import instant_ns
from switch.flows.step import Step
from switch.flows.transfiya_jobs import OK, Job, Outcome, Shared, entities, label, segment
from switch.flows.transfiya_records import ACCEPT, RECEIVED, TRANSFER, Item

CLOCK_SLACK_NS: Final = 120 * 1_000_000_000  # between the network's clock and ours, for searches


class Moves(Protocol):
    """The part of the machine that offers use."""

    def move(self, step: Step, item: Item, event: str) -> None: ...


Heard = Callable[[Step, Item, Outcome], None]


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
            body = encode(self.signer_body(item.bank, item.user))
            return Job(item.bank, item.id, "signer", "POST", "/signer", (), body)
        body = encode({"signer": {"handle": item.user}})
        return Job(item.bank, item.id, "accept", "POST", f"{path}/accept", (), body)

    def signer_body(self, bank: str, handle: str) -> dict[str, Any]:
        """What the network is told of a customer's signer."""
        signer = self._shared.directory.signer(bank, handle)
        key = self._shared.ring.key(bank, handle)
        public = [] if key is None else [{"scheme": "eddsa-ed25519", "public": key.public.hex()}]
        settings = self._shared.banks[bank].settings
        return {
            "handle": handle,
            "labels": {
                "bankId": bank,
                "routerCreditUrl": f"{settings.mount}/credit",
                "status": signer.status.upper() if signer is not None else "ACTIVE",
            },
            "keeper": public,
        }

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
        step.alarm("transfiya_parked", item.key, "a transfer was begun, or not")

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
