"""What operators change and ask of TransfiYa: keys, signers, unfinished work.

The libraries of the protocol are an extra of the installation, so they are imported when a command
needs them.
"""

import secrets
from typing import Any, Final

from switch.admin_socket import ProvisioningError
from switch.flows.step import Step
from switch.node import Node

COMMANDS: Final = (
    "transfiya_key_new", "transfiya_key_add", "transfiya_key_list", "transfiya_signer_add",
    "transfiya_signer_set", "transfiya_signer_list", "transfiya_signer_told",
    "transfiya_transfer_start", "transfiya_transfer_state", "transfiya_offers",
    "transfiya_answer", "transfiya_conciliated",
)  # fmt: skip
OFFERS_MAX: Final = 1000

Answer = dict[str, Any]


class TransfiyaCommands:
    """Commands of `troncal transfiya`, on a running node or a stopped one."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _directory(self) -> Any:
        from switch.flows.transfiya_records import Directory

        for product in self._node.products:
            if product.role == "transfiya":
                return product.directory  # type: ignore[attr-defined]
        return Directory(self._node.store.records)

    def _add(self, step: Step, name: str, secret: bytes, *, allow_short: bool) -> Answer:
        from switch.products import transfiya_enrolment as enrolment

        directory = self._directory()
        key = enrolment.add_key(
            self._node, step, directory, name, secret, allow_short=allow_short
        )  # fmt: skip
        step.audit("operator", "transfiya.key.add", name, "00")
        return {"key": name, "public": key.public.hex(), "handle": key.handle}

    def transfiya_key_new(self, step: Step, name: str) -> Answer:
        return self._add(step, name, secrets.token_bytes(32), allow_short=False)

    def transfiya_key_add(
        self, step: Step, name: str, secret: str, allow_short: bool = False
    ) -> Answer:
        try:
            data = bytes.fromhex(secret)
        except ValueError:
            raise ProvisioningError("a secret is hex digits") from None
        return self._add(step, name, data, allow_short=allow_short)

    def transfiya_key_list(self, step: Step) -> list[Answer]:
        return [
            {"key": key.name, "public": key.public.hex(), "handle": key.handle}
            for key in sorted(self._directory().signing_keys(), key=lambda key: str(key.name))
        ]

    def transfiya_signer_add(
        self, step: Step, bank: str, account: str, key: str, currency: str = "COP",
        alias: str = "", balance: int = 0, known: bool = False,
    ) -> Answer:  # fmt: skip
        from switch.products import transfiya_enrolment as enrolment

        signer = enrolment.add_signer(
            self._node, step, self._directory(), bank=bank, account=account, key=key,
            currency=currency, alias=alias, balance_minor=balance, known=known,
        )  # fmt: skip
        step.audit("operator", "transfiya.signer.add", signer.handle, "00")
        return enrolment.signer_row(signer)

    def transfiya_signer_set(self, step: Step, bank: str, handle: str, status: str) -> Answer:
        from switch.products import transfiya_enrolment as enrolment

        signer = enrolment.set_status(self._directory(), bank, handle, status)
        step.audit("operator", "transfiya.signer.set", handle, "00", status)
        return enrolment.signer_row(signer)

    def transfiya_signer_told(
        self, step: Step, bank: str, handle: str, known: bool = False
    ) -> Answer:
        """A signer with its public key; `known`: the network has it from now on."""
        from switch.products import transfiya_enrolment as enrolment

        directory = self._directory()
        signer = directory.signer(bank, handle)
        if signer is None:
            raise ProvisioningError(f"{bank} has no signer {handle}")
        if known and not signer.known:
            signer.known = True
            directory.put_signer(signer)
            step.audit("operator", "transfiya.signer.register", handle, "00", bank)
        key = directory.key(signer.key)
        return {
            **enrolment.signer_row(signer), "public": key.public.hex() if key is not None else "",
        }  # fmt: skip

    def transfiya_signer_list(self, step: Step, bank: str = "") -> list[Answer]:
        from switch.products import transfiya_enrolment as enrolment

        return [enrolment.signer_row(signer) for signer in self._directory().signers(bank)]

    # ---- for the customers' channel: of a running node only

    def _flow(self) -> Any:
        """The product's flow. Raises: ValueError where it is not played."""
        for product in self._node.products:
            if product.role == "transfiya":
                return product
        raise ValueError("no node that plays transfiya runs here")

    def _customer(self, bank: str, name: str) -> Any:
        """A signer by its handle, account or alias. Raises: ValueError."""
        for signer in self._directory().signers(bank):
            if name in (signer.handle, signer.account, signer.alias) and name:
                return signer
        raise ValueError(f"{bank} has no customer of that name")

    def transfiya_transfer_start(
        self, step: Step, bank: str, reference: str, source: str, target: str, amount: str,
        symbol: str = "$tin", kind: str = "SEND", description: str = "",
    ) -> Answer:  # fmt: skip
        """Begin a customer's transfer; the same reference again begins nothing new."""
        flow = self._flow()
        if bank not in flow.shared.banks:
            raise ValueError(f"no bank {bank!r} is configured")
        signer = self._customer(bank, source)
        labels = {"description": description[:140]} if description else None
        item_id = flow.start_transfer(
            step, bank, reference, source=signer.alias or signer.handle, target=target,
            symbol=symbol, amount=amount, kind=kind, labels=labels,
        )  # fmt: skip
        if item_id is None:
            raise ValueError("reference, symbol, amount or kind is none, or no new work is taken")
        step.audit("operator", "transfiya.transfer.start", reference, "00", bank)
        return self._state_of(flow, item_id)

    def transfiya_transfer_state(
        self, step: Step, bank: str, reference: str, source: str
    ) -> Answer:
        flow = self._flow()
        signer = self._customer(bank, source)
        party = signer.alias or signer.handle
        return self._state_of(flow, f"{bank}|TRANSFER/{reference}/{party}")

    @staticmethod
    def _state_of(flow: Any, item_id: str) -> Answer:
        item = flow.items.named(item_id)
        if item is None:
            raise ValueError("there is no such transfer")
        return {
            "reference": item.tx_ref, "state": item.state, "tx_ref": item.action_id,
            "amount": item.amount, "reason": item.reason, "code": item.code,
        }  # fmt: skip

    def transfiya_offers(self, step: Step, bank: str = "") -> list[Answer]:
        """Requests for money that wait for a customer's word, the oldest first; names masked."""
        flow = self._flow()
        found = [one for one in flow.items.live() if one.state == "OFFERED"]
        found = [one for one in found if bank in ("", one.bank)]
        found.sort(key=lambda one: one.arrived_ns)
        return [
            {
                "bank": one.bank, "tx_ref": one.tx_ref, "amount": one.amount,
                "symbol": one.symbol, "user": f"{one.user[:6]}…{one.user[-4:]}",
                "arrived_ns": one.arrived_ns,
            }
            for one in found[:OFFERS_MAX]
        ]  # fmt: skip

    def transfiya_answer(self, step: Step, bank: str, tx_ref: str, accept: bool) -> Answer:
        """The customer's word on a request for money."""
        if not self._flow().answer_request(step, bank, tx_ref, accept=accept):
            raise ValueError(f"{bank} has no open request {tx_ref}")
        word = "accepted" if accept else "declined"
        step.audit("operator", "transfiya.request.answer", tx_ref, "00", word)
        return {"bank": bank, "tx_ref": tx_ref, "answer": word}

    # ---- the morning after

    def transfiya_conciliated(
        self, step: Step, bank: str, date: str, lines: int, differences: int
    ) -> Answer:
        """Keep what a comparison with the network came to; a difference is an alarm."""
        outcome = "00" if not differences else "differs"
        step.audit("operator", "transfiya.conciliation", f"{bank} {date}", outcome, f"{lines}")
        if differences:
            step.alarm("transfiya_conciliation", f"{bank} {date}", f"{differences} differences")
        for product in self._node.products:
            if product.role == "transfiya":
                product.differences[bank] = differences  # type: ignore[attr-defined]
        return {"bank": bank, "date": date, "lines": lines, "differences": differences}
