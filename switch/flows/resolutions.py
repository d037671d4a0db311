"""What two persons decide about an operation that nobody else can: the only way out of a doubt.

    outcome    of what                                        effect
    capture    open at sicoop or ceibo                        captured
               in conflict or in a case, posted               stands as it is
               in conflict or in a case, undone               captured anew, by force if need be
    release    open                                           released
    annul      in conflict or in a case, posted               compensated, if the issuer can
    charge     in conflict or in a case, undone or unknown    stays undone: the network bears it
               in suspense at ceibo                           dealt with by an adjustment

A decision is a case that is closed, with both names, reason and evidence, whether a file had opened
one or not. Nothing is deleted; every correction is a new balanced entry.
"""

from typing import Any

from core_ext import Records
from switch.flows import norms
from switch.flows.ceibo import NEAR, Ceibo
from switch.flows.conciliation import Conciliation, Refusal
from switch.flows.operations import Case, SicoopOperation
from switch.flows.persons import Signed, signed
from switch.flows.sicoop import Sicoop
from switch.flows.states import (
    CAPTURADA,
    CONCILIADA,
    CONFIRMADA,
    CONFLICTO,
    RESPONDIDA,
    REVERSADA,
    REVERSANDO,
)
from switch.flows.step import Step

OUTCOMES = ("capture", "release", "annul", "charge")
_ADJUST = "use `troncal conciliation adjust` for what is left"


class Resolutions:
    """Decisions of two persons about single operations."""

    def __init__(
        self, *, records: Records, sicoop: Sicoop, ceibo: Ceibo, conciliation: Conciliation,
        roles: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._records = records
        self._sicoop = sicoop
        self._ceibo = ceibo
        self._conciliation = conciliation
        self._roles = roles

    def resolve(
        self, step: Step, reference: str, outcome: str, signature: Signed, network: str = "",
        link: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Decide about one operation.

        Args:
            reference: 26 digits; 12 (the operation's number, with `network`) for a hold of which
                only ceibo knows.
            link: host that the hold came from, where that is not sicoop.
        """
        signature = signed(signature)
        if outcome not in OUTCOMES:
            raise Refusal(f"an outcome is one of {', '.join(OUTCOMES)}")
        if len(reference) == 12:
            known = None if link else self._sicoop.reference_of(reference)
            if network and self._conciliation.case(network + reference) is not None:
                known = None  # a case of ceibo's own
            if known is None or "sicoop" not in self._roles:
                return self._resolve_hold(step, reference, outcome, signature, network, link)
            reference = known
        norms.parse_reference(reference)
        operation = self._sicoop.find(reference)
        case = self._conciliation.case(reference)
        if operation is None:
            if case is None or case.state != "open":
                raise Refusal("there is no such operation here, and no case of it")
            if outcome != "charge":
                raise Refusal(f"sicoop has no record of it any more; {_ADJUST}")
            state = ""
        else:
            state = self._decide(step, operation, case, outcome)
        self._conclude(step, reference, outcome, signature, case, operation, state)
        return {"reference": reference, "outcome": outcome, "state": state}

    def _decide(
        self, step: Step, operation: SicoopOperation, case: Case | None, outcome: str
    ) -> str:  # fmt: skip
        """Carry it out at sicoop. Raises: Refusal: that outcome is not open to this operation."""
        reference, state = operation.reference, operation.state
        disputed = state == CONFLICTO or (case is not None and case.state == "open")
        if state == RESPONDIDA and not operation.owed and outcome in ("capture", "release"):
            return self._sicoop.decide(step, reference, outcome)
        if state == CONFIRMADA and outcome == "capture":
            return self._sicoop.resend(step, reference, "capture")
        if not disputed or operation.owed:
            raise Refusal(f"nothing is in doubt about it: {operation.owed or state}")
        posted = state in (CAPTURADA, CONCILIADA)
        if state == CONFLICTO:
            found = self._sicoop.is_posted(operation)
            posted = _was_posted(operation) if found is None else found
        if posted and outcome == "capture":
            if state == CONFLICTO:
                return self._sicoop.resolve(step, reference, "uphold")
            return state
        if posted and outcome == "annul":
            if not self._sicoop.is_posted(operation):
                raise Refusal(f"its posting is older than the retention; {_ADJUST}")
            return self._sicoop.resolve(step, reference, "annul")
        if not posted and outcome == "capture":
            return self._capture_anew(step, operation)
        if not posted and outcome == "charge":
            if state == CONFLICTO:
                return self._sicoop.resolve(step, reference, "leave")
            return state
        raise Refusal(f"{outcome} is not open to an operation that is {state}")

    def _capture_anew(self, step: Step, operation: SicoopOperation) -> str:
        approved = any(state == RESPONDIDA for state, _ in operation.history)
        undone = operation.state in (REVERSADA, REVERSANDO, CONFLICTO)
        if not (approved and undone) or self._sicoop.is_posted(operation) is not False:
            raise Refusal(f"there is no hold of it that could be captured; {_ADJUST}")
        if "ceibo" in self._roles and not operation.issuer:
            refusal = self._ceibo.resolve(
                step, NEAR, operation.network, operation.operation, "capture"
            )
            if refusal:
                raise Refusal(f"ceibo: {refusal}; {_ADJUST}")
        return self._sicoop.resolve(step, operation.reference, "capture")

    def _resolve_hold(
        self, step: Step, operation: str, outcome: str, signature: Signed, network: str, link: str
    ) -> dict[str, Any]:
        """Decide about a hold at ceibo whose sicoop is silent, or elsewhere."""
        if "ceibo" not in self._roles:
            raise Refusal("there is no such operation here")
        number = norms.network(network)
        norms.operation(operation)
        refusal = self._ceibo.resolve(step, link, number, operation, outcome)
        if refusal:
            raise Refusal(refusal)
        state = self._ceibo.state(number, operation, link)
        case = self._conciliation.case(number + operation)
        if case is not None and case.state == "open":
            self._conclude(step, number + operation, outcome, signature, case, None, state)
        else:
            self._audit(step, number + operation, outcome, signature)
        return {"operation": operation, "outcome": outcome, "state": state}

    def _conclude(
        self, step: Step, reference: str, outcome: str, signature: Signed, case: Case | None,
        operation: SicoopOperation | None, state: str,
    ) -> None:  # fmt: skip
        if case is None or case.state != "open":
            case = Case(reference, reference[:4], "", "decided by two persons")
            case.opened_ns = step.now_ns
            if operation is not None:
                case.business_date = operation.business_date.replace("-", "")
                case.sicoop_amount = operation.amount
        case.state, case.outcome, case.closed_ns = "closed", outcome, step.now_ns
        case.sicoop_state = state
        case.author, case.second, case.reason = (
            signature.author, signature.second, signature.reason,
        )  # fmt: skip
        case.evidence, case.evidence_sha256 = signature.evidence, signature.evidence_sha256
        self._conciliation.put_case(case)
        self._audit(step, reference, outcome, signature)

    def _audit(self, step: Step, subject: str, outcome: str, signature: Signed) -> None:
        step.audit(
            f"operator:{signature.author}", f"resolve.{outcome}", subject, "00", signature.reason,
            second=f"operator:{signature.second}",
        )  # fmt: skip


def _was_posted(operation: SicoopOperation) -> bool:
    """By its history, where the ledger has forgotten the hold."""
    before = [state for state, _ in operation.history if state != CONFLICTO]
    return bool(before) and before[-1] in (CONFIRMADA, CAPTURADA, CONCILIADA)
