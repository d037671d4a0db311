"""What operators change and ask of TransfiYa: keys, signers, unfinished work.

The libraries of the protocol are an extra of the installation, so they are imported when a command
needs them.
"""

import secrets
from typing import Any, Final

from switch.flows.step import Step
from switch.node import Node

COMMANDS: Final = (
    "transfiya_key_new", "transfiya_key_add", "transfiya_key_list", "transfiya_signer_add",
    "transfiya_signer_set", "transfiya_signer_list", "transfiya_items",
)  # fmt: skip
ITEMS_MAX: Final = 1000

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
            raise ValueError("a secret is hex digits") from None
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

    def transfiya_signer_list(self, step: Step, bank: str = "") -> list[Answer]:
        from switch.products import transfiya_enrolment as enrolment

        return [enrolment.signer_row(signer) for signer in self._directory().signers(bank)]

    def transfiya_items(self, step: Step, state: str = "") -> list[Answer]:
        """Pieces of work, the newest first; parties are masked."""
        from switch.flows.transfiya_records import Items

        found = [
            item
            for item in Items(self._node.store.records).stored()
            if state.upper() in ("", item.state)
        ]
        found.sort(key=lambda item: -item.arrived_ns)
        return [
            {
                "bank": item.bank, "kind": item.kind, "tx_ref": item.tx_ref,
                "user": f"{item.user[:6]}…{item.user[-4:]}", "purpose": item.purpose,
                "amount": item.amount, "state": item.state, "reason": item.reason,
                "arrived_ns": item.arrived_ns,
            }
            for item in found[:ITEMS_MAX]
        ]  # fmt: skip
