"""What operators change: networks, branches, terminals, cashiers, persons, cards, hosts.

Each command is one method: plain values in, plain values out. The same methods serve a stopped data
directory and, through the admin socket, a running node. Keys and seeds are returned once, at
creation or rotation, and stored sealed only.
"""

import inspect
import secrets
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, TypeVar, get_type_hints
from unicodedata import category

import msgspec
from msgspec import Meta

from core_ext import Batch, Result
from core_ext._ledger import AUTO_AFTER
from protocols.iso8583 import Dialect
from protocols.iso8583.keys import check_value
from switch.admin_socket import ProvisioningError
from switch.config import parse_address
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.ceibo import (
    ACCOUNT_CARD,
    ACCOUNT_CLEARING,
    ACCOUNT_FUNDING,
    card_account_flags,
)
from switch.flows.ceibo import BOOK as CEIBO_BOOK
from switch.flows.issuers import MAINTENANCE
from switch.flows.limit_book import ledger_number
from switch.flows.norms import FieldError
from switch.flows.operations import Voucher
from switch.flows.registry import (
    Branch,
    Card,
    Cashier,
    Entity,
    Host,
    Network,
    PeerKeyRecord,
    Person,
    Terminal,
    account_id,
)
from switch.flows.shifts import staff_aad
from switch.flows.step import Step
from switch.flows.tokens import OCRA_SUITE, lock_key
from switch.node import Node, expect_done
from switch.ops.host_keys import is_over, key_sets, open_key
from switch.ops.keys import base32, from_base32, generate_peer_key, generate_seed, otpauth_uri
from switch.provisioning_cip import COMMANDS as CIP_COMMANDS
from switch.provisioning_cip import CipCommands
from switch.provisioning_transfiya import COMMANDS as TRANSFIYA_COMMANDS
from switch.provisioning_transfiya import TransfiyaCommands
from switch.provisioning_webpay import COMMANDS as WEBPAY_COMMANDS
from switch.provisioning_webpay import WebpayCommands
from switch.routing import HostName

KEY_OVERLAP_NS = 7 * 86_400 * 1_000_000_000  # an old key stays valid this long after a rotation
ISSUER = "Troncal"
MACS = ("hmac-sha256", "aes-cmac")
HOST_MACS = ("aes-cmac", "retail", "retail-2", "hmac-sha256", "none")
QUESTIONS = frozenset(
    ("show", "status", "card_show", "host_check", "network_export", "conciliation_known",
     "window_show", "operation_unmask", "transfiya_key_list", "transfiya_signer_list",
     "transfiya_transfer_state", "transfiya_offers")
)  # fmt: skip
"""Commands that change nothing, or write their own audit events."""

EXPORT_FORMAT: Final = "troncal-network-1"
IMPORT_ENTRIES_MAX: Final = 200
"""Of one `network_import`: what fits into a line of the admin socket and a group of the journal."""

CAP_MAX: Final = 10**15
"""Of a network's position: sums with any amount stay far inside the ledger's 64 bits."""

NAME_CHARS_MAX: Final = 100
CONTROLS: Final = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Kinds of characters that act on a terminal, or end a line, instead of being shown."""

Answer = dict[str, Any]
T = TypeVar("T")
Amount = Annotated[int, Meta(ge=0, le=norms.AMOUNT_MAX)]
Cap = Annotated[int, Meta(ge=0, le=CAP_MAX)]
KeyVersion = Annotated[int, Meta(ge=0, le=255)]
Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
"""For people: a network's, a branch's, a person's."""


class ExportedKey(msgspec.Struct, frozen=True):
    """A peer's key in clear, as hex digits."""

    version: Annotated[int, Meta(ge=1, le=255)]
    key: str
    mac: str = "hmac-sha256"


class ExportedNetwork(msgspec.Struct, frozen=True):
    """A network as another node is told of it. Caps are each side's own and not part of it."""

    number: str
    name: Name = ""
    currency: str = "PYG"
    disabled: bool = False
    keys: list[ExportedKey] = []


class ExportedBranch(msgspec.Struct, frozen=True):
    number: str
    name: Name = ""
    disabled: bool = False


class ExportedTerminal(msgspec.Struct, frozen=True):
    number: str
    branch: str
    disabled: bool = False
    ticket: bool = True
    keys: list[ExportedKey] = []


class ExportedCashier(msgspec.Struct, frozen=True):
    number: str
    branch: str
    name: Name = ""
    supervisor: bool = False
    disabled: bool = False
    seed: str = ""


class Provisioning:
    """Commands on one node, each within a step that the caller begins and ends.

    Attributes:
        changed: entities the last command stored, for those who keep sessions and links with them.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = node.registry
        self._desks = {name: desk for desk, names in _desks(node) for name in names}
        self.changed: list[Entity] = []

    def call(self, step: Step, command: str, values: dict[str, Any]) -> Any:
        """Run a command by its name, such as `terminal_add`.

        Raises:
            ProvisioningError: unknown command, bad value, or not possible as things are.
        """
        self.changed = []
        desk = self._desks.get(command, self)
        method: Callable[..., Any] | None = getattr(desk, command, None)
        if command.startswith("_") or command == "call" or not callable(method):
            raise ProvisioningError(f"unknown command {command!r}")
        try:
            answer = method(step, **_converted(method, values, plain=desk is self))
        except FieldError as bad:
            raise ProvisioningError(
                f"{bad.field} is not valid",
                norms.FORMS.get(bad.field, "see `troncal COMMAND --help` for its form"),
            ) from None
        except (TypeError, ValueError) as error:
            raise ProvisioningError(f"{command.replace('_', ' ')}: {error}") from None
        if command not in QUESTIONS and desk is self:  # other desks write their own
            step.audit("operator", command.replace("_", "."), _subject(values, answer), "00")
        return answer

    # ---- networks, branches, terminals, cashiers

    def network_add(
        self, step: Step, number: str, name: Name = "", net_debit_cap: Cap = 0,
        payable_cap: Cap = 0, currency: str = "PYG", key: str = "", version: KeyVersion = 1,
    ) -> Answer:  # fmt: skip
        """`key` is one that the other side made, with its version; empty: a new one is made."""
        number = norms.network(number)
        if self._registry.network(number) is not None:
            raise ProvisioningError(
                f"network {number} exists", f"troncal network rotate {number} makes a new key"
            )
        network = Network(number, name, False, [], net_debit_cap, payable_cap, currency)
        answer = self._first_key(step, network, "network", key, version, "hmac-sha256")
        self._put(network)
        self._node.sicoop.set_caps(network, currency, step.now_ns)
        return answer

    def network_caps(
        self, step: Step, number: str, net_debit_cap: Cap, payable_cap: Cap | None = None
    ) -> Answer:
        network = self._network(number)
        network.net_debit_cap = net_debit_cap
        if payable_cap is not None:
            network.payable_cap = payable_cap
        self._put(network)
        self._node.sicoop.set_caps(network, network.currency, step.now_ns)
        return {"peer": network.number, "net_debit_cap": net_debit_cap}

    def branch_add(self, step: Step, number: str, network: str, name: Name = "") -> Answer:
        owner = self._network(network)
        number = norms.branch(number)
        if self._registry.branch(owner.number, number) is not None:
            raise ProvisioningError(
                f"branch {number} of network {owner.number} exists", "troncal branch list"
            )
        self._put(Branch(owner.number, number, name))
        return {"network": owner.number, "number": number}

    def terminal_add(
        self, step: Step, number: str, network: str, branch: str, mac: str = "hmac-sha256",
        ticket: bool = True, key: str = "", version: KeyVersion = 1, known_only: bool = False,
    ) -> Answer:  # fmt: skip
        """`key` as for `network_add`; with `known_only` it has none, and never signs on here."""
        number = norms.terminal(number)
        owner = self._network(network)
        branch = norms.branch(branch)
        if mac not in MACS:
            raise ProvisioningError(f"mac is one of {', '.join(MACS)}")
        if self._registry.terminal(number) is not None:
            raise ProvisioningError(
                f"terminal {number} exists", f"troncal terminal rotate {number} makes a new key"
            )
        if self._registry.branch(owner.number, branch) is None:
            self._put(Branch(owner.number, branch))
        terminal = Terminal(number, owner.number, branch, False, [], ticket)
        answer = {"peer": number}
        if not known_only:
            answer = self._first_key(step, terminal, "terminal", key, version, mac) | {"mac": mac}
        self._put(terminal)
        return answer

    def network_rotate(
        self, step: Step, number: str, key: str = "", version: KeyVersion = 0
    ) -> Answer:
        """`key` and `version` as the other side's rotation printed them; empty: made here."""
        return self._rotate(step, self._network(number), "network", key, version)

    def terminal_rotate(
        self, step: Step, number: str, key: str = "", version: KeyVersion = 0
    ) -> Answer:
        return self._rotate(step, self._terminal(number), "terminal", key, version)

    def cashier_add(
        self, step: Step, number: str, network: str, branch: str, name: Name = "",
        supervisor: bool = False,
    ) -> Answer:  # fmt: skip
        number = norms.cashier(number)
        owner = self._network(network)
        branch = norms.branch(branch)
        if self._registry.cashier(owner.number, number) is not None:
            raise ProvisioningError(
                f"cashier {number} exists in network {owner.number}", "troncal cashier list"
            )
        if self._registry.branch(owner.number, branch) is None:
            self._put(Branch(owner.number, branch))
        seed = generate_seed(self._node.config.tokens.algorithm)
        cashier = Cashier(owner.number, number, branch, name, supervisor)
        cashier.seed = self._node.vault.seal(seed, staff_aad(cashier))
        self._put(cashier)
        return {
            "cashier": number,
            "seed": base32(seed),
            "otpauth": self._otpauth(seed, f"cashier {number}", "totp"),
        }

    def network_enable(self, step: Step, number: str, enable: bool) -> Answer:
        return self._enable(self._network(number), enable)

    def branch_enable(self, step: Step, number: str, network: str, enable: bool) -> Answer:
        found = self._registry.branch(norms.network(network), norms.branch(number))
        return self._enable(_existing(found, f"branch {number} of network {network}"), enable)

    def terminal_enable(self, step: Step, number: str, enable: bool) -> Answer:
        return self._enable(self._terminal(number), enable)

    def cashier_enable(self, step: Step, number: str, network: str, enable: bool) -> Answer:
        found = self._registry.cashier(norms.network(network), norms.cashier(number))
        return self._enable(_existing(found, f"cashier {number} of network {network}"), enable)

    # ---- a network as another node has to know it

    def network_export(self, step: Step, number: str, secrets: bool = False) -> Answer:
        """The network with its branches, terminals and cashiers; keys and seeds where asked."""
        network = self._network(number)
        of = network.number
        branches = [b for b in self._all(Branch) if b.network == of]
        terminals = [t for t in self._all(Terminal) if t.network == of]
        cashiers = [c for c in self._all(Cashier) if c.network == of]
        if secrets:
            step.audit("operator", "network.export", f"number:{of}", "00", "with secrets", True)
        return {
            "format": EXPORT_FORMAT,
            "network": ExportedNetwork(
                of, network.name, network.currency, network.disabled,
                self._clear_keys(network.keys, f"network:{of}", secrets),
            ),
            "branches": [ExportedBranch(b.number, b.name, b.disabled) for b in branches],
            "terminals": [
                ExportedTerminal(
                    t.number, t.branch, t.disabled, t.ticket,
                    self._clear_keys(t.keys, f"terminal:{t.number}", secrets),
                )
                for t in terminals
            ],
            "cashiers": [
                ExportedCashier(
                    c.number, c.branch, c.name, c.supervisor, c.disabled,
                    self._clear_seed(c) if secrets else "",
                )
                for c in cashiers
            ],
        }  # fmt: skip

    def network_import(
        self, step: Step, network: ExportedNetwork, branches: list[ExportedBranch] | None = None,
        terminals: list[ExportedTerminal] | None = None,
        cashiers: list[ExportedCashier] | None = None,
    ) -> Answer:  # fmt: skip
        """Take in a network, or a piece of it; what is known already is brought up to date.

        Nobody is enabled by it who was disabled here, and keys that are here stay.
        """
        branches, terminals, cashiers = branches or [], terminals or [], cashiers or []
        if len(branches) + len(terminals) + len(cashiers) > IMPORT_ENTRIES_MAX:
            raise ProvisioningError(f"one import takes at most {IMPORT_ENTRIES_MAX} entries")
        number = norms.network(network.number)
        entities = [
            self._imported_network(step, network, number),
            *(self._imported_branch(b, number) for b in branches),
            *(self._imported_terminal(step, t, number) for t in terminals),
            *(self._imported_cashier(c, number) for c in cashiers),
        ]
        named = {(e.network, e.branch) for e in entities if isinstance(e, Terminal | Cashier)}
        made = {(e.network, e.number) for e in entities if isinstance(e, Branch)}
        for place in sorted(named - made):
            if self._registry.branch(*place) is None:
                entities.append(Branch(*place))
        # All of it is sound: only now is anything changed.
        for entity in entities:
            self._put(entity)
        if isinstance(entities[0], Network):
            self._node.sicoop.set_caps(entities[0], entities[0].currency, step.now_ns)
        return {
            "network": number, "branches": len(branches), "terminals": len(terminals),
            "cashiers": len(cashiers),
        }  # fmt: skip

    def _imported_network(self, step: Step, e: ExportedNetwork, number: str) -> Entity:
        norms.currency(e.currency)
        found = self._registry.network(number)
        if found is None:
            found = Network(number, currency=e.currency)
        elif found.currency != e.currency:
            raise ProvisioningError(f"network {number} works in {found.currency} here")
        keys = found.keys or self._sealed_keys(step, e.keys, f"network:{number}")
        return Network(
            number, e.name or found.name, found.disabled or e.disabled, keys,
            found.net_debit_cap, found.payable_cap, found.currency,
        )  # fmt: skip

    def _imported_branch(self, e: ExportedBranch, network: str) -> Entity:
        number = norms.branch(e.number)
        found = self._registry.branch(network, number) or Branch(network, number)
        return Branch(network, number, e.name or found.name, found.disabled or e.disabled)

    def _imported_terminal(self, step: Step, e: ExportedTerminal, network: str) -> Entity:
        number, branch = norms.terminal(e.number), norms.branch(e.branch)
        found = self._registry.terminal(number) or Terminal(number, network, branch)
        if found.network != network:
            raise ProvisioningError(f"terminal {number} is of network {found.network} here")
        keys = found.keys or self._sealed_keys(step, e.keys, f"terminal:{number}")
        return Terminal(number, network, branch, found.disabled or e.disabled, keys, e.ticket)

    def _imported_cashier(self, e: ExportedCashier, network: str) -> Entity:
        number, branch = norms.cashier(e.number), norms.branch(e.branch)
        found = self._registry.cashier(network, number) or Cashier(network, number, branch)
        disabled = found.disabled or e.disabled
        cashier = Cashier(network, number, branch, e.name or found.name, e.supervisor, disabled)
        cashier.seed = found.seed
        if e.seed and not found.seed:
            cashier.seed = self._node.vault.seal(from_base32(e.seed), staff_aad(cashier))
        return cashier

    # ---- persons and cards

    def card_add(
        self, step: Step, document: str, document_type: str = "CI", phone: str = "",
        name: Name = "", balance: Amount = 0, token_mode: str = "", currency: str = "PYG",
        tier: str = "", default: bool = False, seed: str = "", expires: str = "",
        label: Annotated[str, Meta(max_length=40)] = "", kinds: list[str] | None = None,
        max_balance: Amount = 0,
    ) -> Answer:  # fmt: skip
        """`max_balance` 0: none; deposits that would pass it are declined."""
        kind, number = norms.document(document_type, document)
        tokens = self._node.config.tokens
        mode = token_mode or tokens.mode
        if mode not in ("totp", "ocra", "vale"):
            raise ProvisioningError("token mode is one of totp, ocra, vale")
        if max_balance and balance > max_balance:
            raise ProvisioningError("balance is more than max_balance")
        if tier and tier not in self._node.config.business.tiers:
            raise ProvisioningError(f"tier {tier} is not in business.tiers")
        norms.currency(currency)
        phones = [norms.phone(phone)] if phone else []
        known = self._registry.person_by_document(kind, number)
        if known is not None and len(known.cards) >= tokens.max_cards:
            raise ProvisioningError(
                f"a person has at most {tokens.max_cards} cards", "see tokens.max_cards"
            )
        secret = from_base32(seed) if seed else generate_seed(tokens.algorithm)
        person = self._person(kind, number, name, phones)
        card_id = f"card-{self._registry.next_number('card'):06d}"
        card = Card(
            id=card_id,
            person=person.id,
            account=account_id(f"card:{card_id}"),
            currency=currency,
            seed=self._node.vault.seal(secret, card_id.encode()),
            mode=mode,
            tier=tier or self._node.config.business.tiers[0],
            kinds=tuple(kinds) if kinds else ("cash_out", "deposit"),
            expires=expires,
            label=label or f"Tarjeta ****{card_id[-4:]}",
            created_ns=step.now_ns,
        )
        self._open_account(step, card, balance, max_balance)
        self._put(card)
        person.cards.append(card_id)
        if default:
            person.default_card = card_id
        self._put(person)
        return {
            "card": card_id,
            "seed": base32(secret),
            "otpauth": self._otpauth(secret, card_id, "ocra" if mode == "ocra" else "totp"),
        }

    def card_enable(self, step: Step, card: str, enable: bool) -> Answer:
        found = self._card(card)
        found.state = "active" if enable else "blocked"
        self._put(found)
        return {"card": found.id, "state": found.state}

    def card_close(self, step: Step, card: str) -> Answer:
        found = self._card(card)
        found.state = "closed"
        self._put(found)
        return {"card": found.id, "state": found.state}

    def card_unlock(self, step: Step, card: str) -> Answer:
        """What the holder does in the app: all wrong tries are forgotten."""
        found = self._card(card)
        batch = Batch()
        batch.clear_attempts(lock_key("card", found.id))
        expect_done(self._node.store.ledger.apply(batch, step.now_ns), "unlock")
        step.notice(found.id, "unlocked")
        return {"card": found.id}

    def card_enrol(self, step: Step, card: str) -> Answer:
        """A new seed; the codes of the old one are dead at once."""
        found = self._card(card)
        secret = generate_seed(self._node.config.tokens.algorithm)
        found.seed = self._node.vault.seal(secret, found.id.encode())
        self._put(found)
        mode = "ocra" if found.mode == "ocra" else "totp"
        return {
            "card": found.id,
            "seed": base32(secret),
            "otpauth": self._otpauth(secret, found.id, mode),
        }

    def card_fund(self, step: Step, card: str, amount: Amount) -> Answer:
        found = self._card(card)
        if amount <= 0:
            raise ProvisioningError("amount is 1 or more")
        self._fund(step, found, amount)
        return self.card_show(step, found.id)

    def card_show(self, step: Step, card: str) -> Answer:
        found = self._card(card)
        balance = self._node.store.ledger.balance(found.account)
        assert balance is not None, "a card has an account"
        return {
            "card": found.id,
            "state": found.state,
            "token_mode": found.mode,
            "currency": found.currency,
            "balance": balance.credits_posted - balance.debits_posted,
            "available": balance.available,
            "held": balance.debits_pending,
            "pending": balance.credits_pending,
        }

    def card_voucher(
        self, step: Step, card: str, amount: Amount, seconds: int = 600, maximum: bool = False,
        channels: list[str] | None = None, hold: bool = False,
    ) -> Answer:  # fmt: skip
        """Issue a voucher: eight random digits, stored only as their HMAC.

        With `hold` its amount is held from now until it is redeemed, cancelled or expired.
        """
        found = self._card(card)
        if found.mode != "vale":
            raise ProvisioningError(f"{found.id} has no vouchers", "its token mode is not vale")
        if amount <= 0 or not 1 <= seconds <= 30 * 86_400:
            raise ProvisioningError("amount is 1 or more, seconds 1 to 2592000")
        code = f"{secrets.randbelow(10**8):08d}"
        key = self._node.desk.voucher_key(found.id, code)
        expires_ns = step.now_ns + seconds * 1_000_000_000
        voucher = Voucher(
            found.id, amount, not maximum, expires_ns, channels=tuple(channels or ("cash_out",))
        )
        if hold:
            voucher.hold = self._hold_voucher(step, found, key, amount, seconds)
        self._node.store.records.put(ops.VOUCHERS, key, ops.encode(voucher), stamp=expires_ns)
        return {"card": found.id, "code": code, "amount": amount, "seconds": seconds}

    def card_voucher_cancel(self, step: Step, card: str, code: str) -> Answer:
        key = self._node.desk.voucher_key(card, code)
        found = self._node.store.records.get(ops.VOUCHERS, key)
        if found is None:
            raise ProvisioningError("there is no such voucher")
        voucher = ops.decode_voucher(found)
        if voucher.state != "active":
            raise ProvisioningError(f"the voucher is {voucher.state}")
        voucher.state = "cancelled"
        if voucher.hold:
            batch = Batch()
            batch.release(voucher.hold)
            self._node.store.ledger.apply(batch, step.now_ns)  # it may be gone by its expiry
        self._node.store.records.put(
            ops.VOUCHERS, key, ops.encode(voucher), stamp=voucher.expires_ns
        )
        return {"card": card, "state": "cancelled"}

    # ---- hosts

    def host_add(
        self, step: Step, name: str, dialect: str, mac: str = "aes-cmac", listen: str = "",
        connect: str = "", keys: dict[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """`keys` as the other side printed them (`mac_key` …); None: new ones are made."""
        if not _fits(name, HostName):
            raise ProvisioningError("a host's name has 1 to 32 letters, digits, - and _")
        if mac not in HOST_MACS:
            raise ProvisioningError(f"mac is one of {', '.join(HOST_MACS)}")
        if listen and connect:
            raise ProvisioningError("a host either listens or connects, not both")
        for address in filter(None, (listen, connect)):
            parse_address(address)
        self._check_dialect(dialect)
        if self._registry.host(name) is not None:
            raise ProvisioningError(
                f"host {name} exists", f"troncal host rotate {name} makes new keys"
            )
        host = Host(name, dialect, mac, listen, connect)
        return self._host_keys(step, host, keys)

    def host_rotate(self, step: Step, name: str, keys: dict[str, str] | None = None) -> Answer:
        """A second set of keys; the present one stays valid for the overlap.

        Keys made here are accepted at once, and used when the overlap is over: by then the other
        side has them. Keys that it made are used at once, and so are those for a host that has
        never signed on with the present ones.
        """
        return self._host_keys(step, self._host(name), keys)

    def host_enable(self, step: Step, name: str, enable: bool) -> Answer:
        host = self._host(name)
        host.disabled = not enable
        self._put(host)
        return {"host": host.name, "disabled": host.disabled}

    def host_change(
        self, step: Step, name: str, listen: str | None = None, connect: str | None = None
    ) -> Answer:
        """Another address; an empty one takes the present one away."""
        host = self._host(name)
        listen = host.listen if listen is None else listen
        connect = host.connect if connect is None else connect
        if listen and connect:
            raise ProvisioningError("a host either listens or connects, not both")
        for address in filter(None, (listen, connect)):
            parse_address(address)
        host.listen, host.connect = listen, connect
        self._put(host)
        return {"host": host.name, "listen": listen, "connect": connect}

    def host_check(self, step: Step, name: str) -> list[Answer]:
        """The check value of every key, by which two operators compare them without telling."""
        host = self._host(name)
        return [
            {
                "key": purpose,
                "version": record.version,
                "check": check_value(
                    open_key(self._node.master, host.name, purpose, record),
                    des=purpose == "mac" and host.mac.startswith("retail"),
                ).hex(),
                "added_ns": record.added_ns,
                "until_ns": record.until_ns,
                "used_from_ns": record.used_from_ns or record.added_ns,
            }
            for purpose, records in key_sets(host)
            for record in records
        ]

    def maintenance(self, step: Step, on: bool) -> Answer:
        """Announce that the issuer is away: new operations are refused (91) until it is off."""
        self._node.registry.put_flag(MAINTENANCE, on)
        self._node.issuers.closed = on
        return {"maintenance": on}

    # ---- people's data

    def operation_unmask(self, step: Step, reference: str, author: str, reason: str) -> Answer:
        """What is masked everywhere else about an operation: the documents and the declaration, as
        this process's red or sicoop keeps them. Who asked, and why, goes into the audit trail."""
        author, reason = author.strip(), reason.strip()
        if not author:
            raise ProvisioningError("who asks for people's data must be named")
        if not reason:
            raise ProvisioningError("a reason must be given to see people's data")
        key, records = reference.encode(), self._node.store.records
        at_red = records.get(ops.RED_OPERATIONS, key)
        at_sicoop = records.get(ops.SICOOP_OPERATIONS, key)
        outcome = "25" if at_red is None and at_sicoop is None else "00"
        step.audit(f"operator:{author}", "data.unmask", reference, outcome, reason, security=True)
        found: Answer = {"reference": reference}
        if at_sicoop is not None:
            sicoop = ops.decode_sicoop(at_sicoop)
            found |= {"depositor": sicoop.depositor, "declaration": sicoop.declaration}
        if at_red is not None:
            red = ops.decode_red(at_red)
            kind, number = red.document
            found |= {"document_type": kind, "document": number}
            found |= {"depositor": red.depositor, "declaration": red.declaration}
        return found

    # ---- lists and state

    def show(self, step: Step, kind: str) -> list[Answer]:
        """All entities of a kind, without keys and seeds; documents and phones masked."""
        kinds: dict[str, type[Entity]] = {
            "network": Network, "branch": Branch, "terminal": Terminal, "cashier": Cashier,
            "card": Card, "host": Host,
        }  # fmt: skip
        if kind not in kinds:
            raise ProvisioningError(f"kind is one of {', '.join(kinds)}")
        hidden = {"keys", "seed", "account", "mac_keys", "data_keys", "zone_keys"}
        return [
            {f: getattr(e, f) for f in e.__struct_fields__ if f not in hidden}
            for e in self._all(kinds[kind])
        ]

    def _all(self, kind: type[T]) -> list[T]:
        """Every entity of a kind, by its number or name."""
        found: list[T] = self._registry.all(kind)  # type: ignore[arg-type, assignment]
        return sorted(found, key=lambda e: msgspec.structs.astuple(e)[:2])  # type: ignore[arg-type]

    def status(self, step: Step) -> Answer:
        """Position of each network and the money check."""
        ledger = self._node.store.ledger
        positions = []
        for network in self._registry.all(Network):
            assert isinstance(network, Network)
            b = self._node.sicoop.position(network)
            assert b is not None, "a network gets its position account when it is added"
            positions.append(
                {
                    "network": network.number,
                    "position": b.debits_posted - b.credits_posted,
                    "pending_deposits": b.debits_pending,
                    "pending_cash_outs": b.credits_pending,
                    "net_debit_cap": network.net_debit_cap,
                }
            )
        return {
            "positions": positions,
            "money_check": self._node.money_check(),
            "durable_seq": self._node.store.journal.durable_seq,
            "ledger": ledger.counts(),
        }

    # ---- pieces

    def _network(self, number: str) -> Network:
        number = norms.network(number)
        found = self._registry.network(number)
        return _existing(found, f"network {number}")

    def _terminal(self, number: str) -> Terminal:
        number = norms.terminal(number)
        return _existing(self._registry.terminal(number), f"terminal {number}")

    def _host(self, name: str) -> Host:
        return _existing(self._registry.host(name), f"host {name}")

    def _card(self, card: str) -> Card:
        return _existing(self._registry.card(card), f"card {card}")

    def _person(self, kind: str, number: str, name: str, phones: list[str]) -> Person:
        person = self._registry.person_by_document(kind, number)
        if person is None:
            identity = f"p{self._registry.next_number('person'):08d}"
            return Person(identity, kind, number, name, phones)
        if name:
            person.name = name
        person.phones += [p for p in phones if p not in person.phones]
        return person

    def _open_account(self, step: Step, card: Card, balance: int, max_balance: int) -> None:
        batch = Batch()
        batch.create_account(
            card.account, ledger=ledger_number(card.currency, CEIBO_BOOK), code=ACCOUNT_CARD,
            flags=card_account_flags(), profile=self._node.limits.profile("card", card.tier),
        )  # fmt: skip
        if max_balance:
            batch.set_limits(card.account, max_balance=max_balance)
        expect_done(self._node.store.ledger.apply(batch, step.now_ns), "card account")
        if balance:
            self._fund(step, card, balance)

    def _hold_voucher(self, step: Step, card: Card, key: bytes, amount: int, seconds: int) -> bytes:
        """Hold what a voucher may take out, its fee included; ends by itself at its expiry."""
        node = self._node
        held = account_id(f"voucher:{key.hex()}")
        clearing = node.limits.account(
            f"ceibo:{card.currency}:clearing:sicoop", card.currency, CEIBO_BOOK, ACCOUNT_CLEARING,
            step.now_ns,
        )  # fmt: skip
        batch = Batch()
        batch.hold(
            held, card.account, clearing, amount + node.config.fees.cash_out,
            day=node.calendar.business(step.now_ns).number, policy=AUTO_AFTER,
            expires_after_s=seconds, metered=False,
        )  # fmt: skip
        if node.store.ledger.apply(batch, step.now_ns)[0] != Result.DONE:
            raise ProvisioningError("the card's balance does not cover the voucher")
        return held

    def _fund(self, step: Step, card: Card, amount: int) -> None:
        funding = self._node.limits.account(
            f"ceibo:{card.currency}:funding", card.currency, CEIBO_BOOK, ACCOUNT_FUNDING,
            step.now_ns,
        )  # fmt: skip
        batch = Batch()
        batch.transfer(funding, card.account, amount)
        result = self._node.store.ledger.apply(batch, step.now_ns)[0]
        if result != Result.DONE:
            raise ProvisioningError(f"the card cannot be given that much: {Result(result).name}")

    def _put(self, entity: Entity) -> None:
        self._registry.put(entity)
        self.changed.append(entity)

    # ---- keys

    def _first_key(
        self, step: Step, peer: Network | Terminal, role: str, key: str, version: int, mac: str
    ) -> Answer:
        """Give a new peer its key: one made here, which is told, or one made by the other side."""
        owner = f"{role}:{peer.number}"
        if key:
            peer.keys.append(self._sealed(step, _from_hex(key, 32), owner, version, mac))
            return {"peer": peer.number, "version": version}
        made = generate_peer_key()
        peer.keys.append(self._sealed(step, made, owner, 1, mac))
        return {"peer": peer.number, "key": made.hex()}

    def _rotate(
        self, step: Step, peer: Network | Terminal, role: str, given: str, version: int
    ) -> Answer:
        """A second valid key; the first ends when the overlap is over, the one before at once."""
        newest = peer.keys[-1] if peer.keys else None
        algorithm = newest.algorithm if newest else "hmac-sha256"
        if not (given and version):
            version = newest.version % 255 + 1 if newest else 1
        if newest and version == newest.version:
            raise ProvisioningError(f"version {version} of this key is here already")
        key = _from_hex(given, 32) if given else generate_peer_key()
        record = self._sealed(step, key, f"{role}:{peer.number}", version, algorithm)
        if newest:
            newest.until_ns = step.now_ns + KEY_OVERLAP_NS
        peer.keys = [newest, record] if newest else [record]
        self._put(peer)
        answer: Answer = {"peer": peer.number} | ({} if given else {"key": key.hex()})
        answer["version"] = version
        return answer | ({"mac": algorithm} if role == "terminal" else {})

    def _host_keys(self, step: Step, host: Host, given: dict[str, str] | None) -> Answer:
        """Make or take in one more version of each of a host's keys."""
        sizes = {"mac": 32 if host.mac == "hmac-sha256" else 16, "data": 32, "zone": 32}
        keys = _given_keys(given, sizes, host.mac) if given is not None else {
            purpose: generate_peer_key()[:size] for purpose, size in sizes.items()
        }  # fmt: skip
        answer: Answer = {"host": host.name}
        for purpose, records in key_sets(host):
            key = keys.get(purpose)
            if key is None:
                continue
            version = records[-1].version + 1 if records else 1
            owner = f"host:{host.name}:{purpose}"
            record = self._sealed(step, key, owner, version, host.mac)
            # A key made before that was never used goes: the other side need not have had it.
            records[:] = [
                r for r in records if r.used_from_ns <= step.now_ns and not is_over(r, step.now_ns)
            ]
            for older in records:
                older.until_ns = older.until_ns or step.now_ns + KEY_OVERLAP_NS
            if records and given is None and host.proved:
                record.used_from_ns = records[-1].until_ns  # by then the other side has it
            records.append(record)
            if given is None:
                answer[f"{purpose}_key"] = key.hex()
            else:
                answer[f"{purpose}_version"] = version
        self._put(host)
        return answer

    def _sealed(
        self, step: Step, key: bytes, owner: str, version: int, algorithm: str
    ) -> PeerKeyRecord:
        sealed = self._node.master.seal(key, purpose="peer-keys", owner=f"{owner}:{version}")
        return PeerKeyRecord(version, sealed, algorithm, step.now_ns)

    def _open(self, record: PeerKeyRecord, owner: str) -> bytes:
        return self._node.master.open(
            record.sealed, purpose="peer-keys", owner=f"{owner}:{record.version}"
        )

    def _sealed_keys(self, step: Step, keys: list[ExportedKey], owner: str) -> list[PeerKeyRecord]:
        if any(key.mac not in MACS for key in keys):
            raise ProvisioningError(f"mac is one of {', '.join(MACS)}")
        return [
            self._sealed(step, _from_hex(key.key, 32), owner, key.version, key.mac) for key in keys
        ]

    def _clear_keys(
        self, records: list[PeerKeyRecord], owner: str, secrets: bool
    ) -> list[ExportedKey]:
        return [
            ExportedKey(record.version, self._open(record, owner).hex(), record.algorithm)
            for record in (records[-1:] if secrets else ())
        ]

    def _clear_seed(self, cashier: Cashier) -> str:
        if not cashier.seed:
            return ""
        return base32(self._node.vault.unseal(cashier.seed, staff_aad(cashier)))

    def _check_dialect(self, dialect: str) -> None:
        try:
            Dialect.load(self._node.config.dialect(dialect))
        except (ValueError, OSError) as error:
            raise ProvisioningError(f"dialect {dialect}: {error}", "see docs/dialects.md") from None

    def _enable(self, entity: Network | Branch | Terminal | Cashier, enable: bool) -> Answer:
        entity.disabled = not enable
        self._put(entity)
        return {"number": entity.number, "disabled": entity.disabled}

    def _otpauth(self, seed: bytes, account: str, mode: str) -> str:
        tokens = self._node.config.tokens
        return otpauth_uri(
            seed, account=account, issuer=ISSUER, mode=mode,  # type: ignore[arg-type]
            algorithm=tokens.algorithm, digits=tokens.digits, period_s=tokens.step_s,
            suite=OCRA_SUITE,
        )  # fmt: skip


def _desks(node: Node) -> tuple[tuple[object, tuple[str, ...]], ...]:
    """Commands that are carried out elsewhere, by the desk that does it."""
    return (
        (
            node.conciliation,
            ("conciliation_begin", "conciliation_lines", "conciliation_absent", "conciliation_end",
             "conciliation_refused", "conciliation_known", "conciliation_resend", "case_dispute"),
        ),
        (
            node.settlement,
            ("conciliation_adjust", "window_close", "window_show", "window_issue",
             "window_settle"),
        ),
        (node.resolutions, ("resolve",)),
        (CipCommands(node), CIP_COMMANDS),
        (TransfiyaCommands(node), TRANSFIYA_COMMANDS),
        (WebpayCommands(node), WEBPAY_COMMANDS),
    )  # fmt: skip


def _given_keys(given: dict[str, str], sizes: dict[str, int], mac: str) -> dict[str, bytes]:
    """Read the keys that another node printed (`mac_key`, `data_key`, `zone_key`).

    Raises:
        ProvisioningError: one is missing or has another size; without the key.
    """
    found = {}
    for purpose, size in sizes.items():
        text = given.get(f"{purpose}_key", "")
        if text:
            found[purpose] = _from_hex(text, size, f"{purpose}_key")
        elif purpose != "mac" or mac != "none":
            raise ProvisioningError(
                f"there is no {purpose}_key among the keys", "`troncal host add --json` prints them"
            )
    return found


def _from_hex(text: str, size: int, name: str = "key") -> bytes:
    """Raises: ProvisioningError, which never has the text in it."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != size:
        raise ProvisioningError(f"{name} is not {2 * size} hex digits")
    return key


def _fits(value: str, hint: Any) -> bool:
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError:
        return False
    return True


def _converted(
    method: Callable[..., Any], values: dict[str, Any], *, plain: bool
) -> dict[str, Any]:
    """The values of a command as its signature declares them, before anything is changed.

    Args:
        plain: texts must be such as a terminal and a spreadsheet show.

    Raises:
        TypeError, ValueError: one is missing, unknown, of another type or out of its range.
    """
    types = get_type_hints(method, include_extras=True)
    inspect.signature(method).bind(None, **values)
    converted = {}
    for name, value in values.items():
        said = name.replace("_", " ")
        for leaf in _leaves(value):
            if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
                raise ValueError(f"{said} is out of range")
            if plain and isinstance(leaf, str) and not CONTROLS.isdisjoint(map(category, leaf)):
                raise ValueError(f"{said} has control characters in it")
        try:
            converted[name] = msgspec.convert(value, types[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"{said}: {error}") from None
    return converted


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _existing(found: T | None, what: str) -> T:
    if found is None:
        raise ProvisioningError(f"{what} does not exist", f"troncal {what.split()[0]} list")
    return found


def _subject(values: dict[str, Any], answer: Any) -> str:
    """What a command was about, for the audit trail; never a value that may hold a key or that
    names a person: a new card is told by the number it was given."""
    made = answer.get("card", "") if isinstance(answer, dict) else ""
    names_person = "document" in values
    for name in ("number", "card", "name", "network"):
        value = values.get(name)
        if name == "card" and not value:
            value = made
        if name == "name" and names_person:
            continue
        if isinstance(value, dict):
            value = value.get("number")
        if value and isinstance(value, str):
            return f"{name}:{value}"
    return ""
