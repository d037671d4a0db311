"""What operators add for TransfiYa: signing keys, and signers of customers with their accounts."""

import re
from typing import Any

from protocols.transfiya import KeyFault, SigningKey, handle_of
from switch.admin_socket import ProvisioningError
from switch.flows.step import Step
from switch.flows.transfiya_core import LedgerCore
from switch.flows.transfiya_records import Directory, KeyRecord, SignerRecord, key_owner
from switch.node import Node
from switch.sections.transfiya import Bank

KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
ACCOUNT = re.compile(r"[!-~](?:[ -~]{0,26}[!-~])?", re.ASCII)  # of DE102 and DE103
STATUSES = ("active", "inactive", "closed")


def bank_of(node: Node, name: str) -> Bank:
    """The settings of a bank.

    Raises:
        ProvisioningError: there is none of that name.
    """
    for bank in node.config.transfiya.bank:
        if bank.id == name:
            return bank
    raise ProvisioningError(f"no bank {name!r} is configured", "see [[transfiya.bank]]")


def add_key(
    node: Node, step: Step, directory: Directory, name: str, secret: bytes, *, allow_short: bool
) -> KeyRecord:
    """Keep a key under a name, sealed.

    Raises:
        ProvisioningError: the name is taken, or the key cannot be used.
    """
    if not KEY_NAME.fullmatch(name):
        raise ProvisioningError("a key has no such name", "1 to 64 letters, digits, '.', '_', '-'")
    if directory.key(name) is not None:
        raise ProvisioningError(f"key {name} exists", "keys are never overwritten")
    try:
        key = SigningKey(secret, allow_short=allow_short)
    except KeyFault as error:
        raise ProvisioningError(f"key {name}: {error.reason}", "a secret has 32 bytes") from None
    sealed = node.master.seal(secret, purpose="peer-keys", owner=key_owner(name))
    record = KeyRecord(name, key.public, handle_of(key.public), sealed, step.now_ns)
    directory.put_key(record)
    return record


def add_signer(
    node: Node,
    step: Step,
    directory: Directory,
    *,
    bank: str,
    account: str,
    key: str,
    currency: str = "COP",
    alias: str = "",
    balance_minor: int = 0,
    known: bool = False,
) -> SignerRecord:
    """Make a customer's signer, with an account in the ledger where that is the bank's core.

    Args:
        known: the network has it already.

    Raises:
        ProvisioningError: no such bank, key, currency or account, or the signer is there, or its
            account or alias is another's; nothing is kept.
    """
    settings = bank_of(node, bank)
    known_here = sorted({row.currency for row in settings.symbols.values()})
    if currency not in known_here:
        raise ProvisioningError(f"{bank} has no currency {currency}", ", ".join(known_here))
    if not ACCOUNT.fullmatch(account):
        raise ProvisioningError("an account has no such name", "1 to 28 printable characters")
    for other in directory.signers(bank):
        if other.status != "closed" and account == other.account:
            raise ProvisioningError(f"account {account} has a signer: {other.handle}")
        if alias and alias == other.alias:
            raise ProvisioningError(f"alias {alias} is another's: {other.handle}")
    found = directory.key(key)
    if found is None:
        raise ProvisioningError(f"there is no key {key}", "`troncal transfiya key new` makes it")
    if directory.signer(bank, found.handle) is not None:
        raise ProvisioningError(f"{found.handle} is a signer of {bank} already")
    signer = SignerRecord(bank, found.handle, account, currency, "active", key, alias, known)
    directory.put_signer(signer)
    if settings.core == "ledger":
        core = LedgerCore(bank, node.store.ledger, node.calendar)
        core.open_account(account, currency, balance_minor, step.now_ns)
    return signer


def set_status(directory: Directory, bank: str, handle: str, status: str) -> SignerRecord:
    """Let a signer's account take movements, or not.

    Raises:
        ProvisioningError: no such signer or status.
    """
    signer = directory.signer(bank, handle)
    if signer is None:
        raise ProvisioningError(f"{bank} has no signer {handle}")
    if status not in STATUSES:
        raise ProvisioningError(f"a status is one of {', '.join(STATUSES)}")
    signer.status = status
    directory.put_signer(signer)
    return signer


def signer_row(signer: SignerRecord) -> dict[str, Any]:
    """A signer for people."""
    return {
        "bank": signer.bank, "handle": signer.handle, "account": signer.account,
        "currency": signer.currency, "status": signer.status, "key": signer.key,
        "alias": signer.alias, "known": signer.known,
    }  # fmt: skip
