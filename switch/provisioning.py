"""What operators change: networks, branches, terminals, cashiers, persons, cards, hosts.

Each command is one method: plain values in, plain values out. The same methods serve a stopped data
directory and, through the admin socket, a running node. Keys and seeds are returned once, at
creation or rotation, and stored sealed only.
"""

import inspect
import secrets
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import msgspec

from core_ext import Batch, Result
from core_ext._ledger import AUTO_AFTER
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.ceibo import (
    ACCOUNT_CARD,
    ACCOUNT_CLEARING,
    ACCOUNT_FUNDING,
    card_account_flags,
)
from switch.flows.ceibo import BOOK as CEIBO_BOOK
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
from switch.ops.keys import base32, from_base32, generate_peer_key, generate_seed, otpauth_uri

KEY_OVERLAP_NS = 7 * 86_400 * 1_000_000_000  # an old key stays valid this long after a rotation
ISSUER = "Troncal"
MACS = ("hmac-sha256", "aes-cmac")
HOST_MACS = ("aes-cmac", "retail", "hmac-sha256", "none")
QUESTIONS = frozenset(("show", "status", "card_show"))  # change nothing
Answer = dict[str, Any]
T = TypeVar("T")


class ProvisioningError(Exception):
    """A command that cannot be carried out; nothing was changed. `hint` says what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Provisioning:
    """Commands on one node, each within a step that the caller begins and ends."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = node.registry

    def call(self, step: Step, command: str, values: dict[str, Any]) -> Any:
        """Run a command by its name, such as `terminal_add`.

        Raises:
            ProvisioningError: unknown command, bad value, or not possible as things are.
        """
        method: Callable[..., Any] | None = getattr(self, command, None)
        if command.startswith("_") or command == "call" or not callable(method):
            raise ProvisioningError(f"unknown command {command!r}")
        try:
            answer = method(step, **_converted(method, values))
        except FieldError as bad:
            raise ProvisioningError(
                f"{bad.field} is not valid", "see `troncal COMMAND --help` for its form"
            ) from None
        except (TypeError, ValueError) as error:
            raise ProvisioningError(f"{command.replace('_', ' ')}: {error}") from None
        if command not in QUESTIONS:
            step.audit("operator", command.replace("_", "."), _subject(values), "00")
        return answer

    # ---- networks, branches, terminals, cashiers

    def network_add(
        self, step: Step, number: str, name: str = "", net_debit_cap: int = 0, payable_cap: int = 0,
        currency: str = "PYG",
    ) -> Answer:  # fmt: skip
        number = norms.network(number)
        if self._registry.network(number) is not None:
            raise ProvisioningError(f"network {number} exists")
        network = Network(number, name, False, [], net_debit_cap, payable_cap, currency)
        key, record = self._new_key(step, f"network:{number}", 1, "hmac-sha256")
        network.keys.append(record)
        self._registry.put(network)
        self._node.sicoop.set_caps(network, currency, step.now_ns)
        return {"peer": number, "key": key.hex()}

    def network_caps(
        self, step: Step, number: str, net_debit_cap: int, payable_cap: int | None = None
    ) -> Answer:
        network = self._network(number)
        network.net_debit_cap = net_debit_cap
        if payable_cap is not None:
            network.payable_cap = payable_cap
        self._registry.put(network)
        self._node.sicoop.set_caps(network, network.currency, step.now_ns)
        return {"peer": network.number, "net_debit_cap": net_debit_cap}

    def terminal_add(
        self, step: Step, number: str, network: str, branch: str, mac: str = "hmac-sha256",
        ticket: bool = True,
    ) -> Answer:  # fmt: skip
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
            self._registry.put(Branch(owner.number, branch))
        key, record = self._new_key(step, f"terminal:{number}", 1, mac)
        self._registry.put(Terminal(number, owner.number, branch, False, [record], ticket))
        return {"peer": number, "key": key.hex(), "mac": mac}

    def network_rotate(self, step: Step, number: str) -> Answer:
        return self._rotate(step, self._network(number), "network")

    def terminal_rotate(self, step: Step, number: str) -> Answer:
        return self._rotate(step, self._terminal(number), "terminal")

    def cashier_add(
        self, step: Step, number: str, network: str, branch: str, name: str = "",
        supervisor: bool = False,
    ) -> Answer:  # fmt: skip
        number = norms.cashier(number)
        owner = self._network(network)
        branch = norms.branch(branch)
        if self._registry.cashier(owner.number, number) is not None:
            raise ProvisioningError(f"cashier {number} exists in network {owner.number}")
        if self._registry.branch(owner.number, branch) is None:
            self._registry.put(Branch(owner.number, branch))
        seed = generate_seed(self._node.config.tokens.algorithm)
        cashier = Cashier(owner.number, number, branch, name, supervisor)
        cashier.seed = self._node.vault.seal(seed, staff_aad(cashier))
        self._registry.put(cashier)
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

    # ---- persons and cards

    def card_add(
        self, step: Step, document: str, document_type: str = "CI", phone: str = "", name: str = "",
        balance: int = 0, token_mode: str = "", currency: str = "PYG", tier: str = "",
        default: bool = False, seed: str = "", expires: str = "", label: str = "",
        kinds: list[str] | None = None, max_balance: int = 0,
    ) -> Answer:  # fmt: skip
        """`max_balance` 0: none; deposits that would pass it are declined."""
        kind, number = norms.document(document_type, document)
        tokens = self._node.config.tokens
        mode = token_mode or tokens.mode
        if mode not in ("totp", "ocra", "vale"):
            raise ProvisioningError("token mode is one of totp, ocra, vale")
        if balance < 0 or max_balance < 0:
            raise ProvisioningError("balance and max_balance are 0 or more")
        if tier and tier not in self._node.config.business.tiers:
            raise ProvisioningError(f"tier {tier} is not in business.tiers")
        norms.currency(currency)
        phones = [norms.phone(phone)] if phone else []
        person = self._person(kind, number, name, phones)
        if len(person.cards) >= tokens.max_cards:
            raise ProvisioningError(
                f"a person has at most {tokens.max_cards} cards", "see tokens.max_cards"
            )
        secret = from_base32(seed) if seed else generate_seed(tokens.algorithm)
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
        self._registry.put(card)
        person.cards.append(card_id)
        if default:
            person.default_card = card_id
        self._registry.put(person)
        return {
            "card": card_id,
            "seed": base32(secret),
            "otpauth": self._otpauth(secret, card_id, "ocra" if mode == "ocra" else "totp"),
        }

    def card_enable(self, step: Step, card: str, enable: bool) -> Answer:
        found = self._card(card)
        found.state = "active" if enable else "blocked"
        self._registry.put(found)
        return {"card": found.id, "state": found.state}

    def card_close(self, step: Step, card: str) -> Answer:
        found = self._card(card)
        found.state = "closed"
        self._registry.put(found)
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
        self._registry.put(found)
        mode = "ocra" if found.mode == "ocra" else "totp"
        return {
            "card": found.id,
            "seed": base32(secret),
            "otpauth": self._otpauth(secret, found.id, mode),
        }

    def card_fund(self, step: Step, card: str, amount: int) -> Answer:
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
        self, step: Step, card: str, amount: int, seconds: int = 600, maximum: bool = False,
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
        connect: str = "",
    ) -> Answer:  # fmt: skip
        if not name or len(name) > 32 or not name.replace("-", "").replace("_", "").isalnum():
            raise ProvisioningError("a host's name has 1 to 32 letters, digits, - and _")
        if mac not in HOST_MACS:
            raise ProvisioningError(f"mac is one of {', '.join(HOST_MACS)}")
        if listen and connect:
            raise ProvisioningError("a host either listens or connects, not both")
        if self._registry.host(name) is not None:
            raise ProvisioningError(f"host {name} exists", f"troncal host rotate {name}")
        return self._host_keys(step, Host(name, dialect, mac, listen, connect))

    def host_rotate(self, step: Step, name: str) -> Answer:
        host = self._registry.host(name)
        return self._host_keys(step, _existing(host, f"host {name}"))

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
            for e in self._registry.all(kinds[kind])
        ]

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
        expect_done(self._node.store.ledger.apply(batch, step.now_ns), "funding")

    def _new_key(
        self, step: Step, owner: str, version: int, algorithm: str
    ) -> tuple[bytes, PeerKeyRecord]:
        key = generate_peer_key()
        return key, self._sealed(step, key, owner, version, algorithm)

    def _sealed(
        self, step: Step, key: bytes, owner: str, version: int, algorithm: str
    ) -> PeerKeyRecord:
        sealed = self._node.master.seal(key, purpose="peer-keys", owner=f"{owner}:{version}")
        return PeerKeyRecord(version, sealed, algorithm, step.now_ns)

    def _rotate(self, step: Step, peer: Network | Terminal, role: str) -> Answer:
        """A second valid key; the first ends when the overlap is over, the one before at once."""
        newest = peer.keys[-1]
        version = newest.version % 255 + 1
        owner = f"{role}:{peer.number}"
        key, record = self._new_key(step, owner, version, newest.algorithm)
        newest.until_ns = step.now_ns + KEY_OVERLAP_NS
        peer.keys = [newest, record]
        self._registry.put(peer)
        answer = {"peer": peer.number, "key": key.hex(), "version": version}
        return answer | ({"mac": newest.algorithm} if role == "terminal" else {})

    def _host_keys(self, step: Step, host: Host) -> Answer:
        answer: Answer = {"host": host.name}
        for purpose, keys, size in (
            ("mac", host.mac_keys, 32 if host.mac == "hmac-sha256" else 16),
            ("data", host.data_keys, 32),
            ("zone", host.zone_keys, 32),
        ):
            version = keys[-1].version % 255 + 1 if keys else 1
            key = generate_peer_key()[:size]
            if keys:
                keys[-1].until_ns = step.now_ns + KEY_OVERLAP_NS
                del keys[:-1]
            keys.append(self._sealed(step, key, f"host:{host.name}:{purpose}", version, host.mac))
            answer[f"{purpose}_key"] = key.hex()
        self._registry.put(host)
        return answer

    def _enable(self, entity: Network | Branch | Terminal | Cashier, enable: bool) -> Answer:
        entity.disabled = not enable
        self._registry.put(entity)
        return {"number": entity.number, "disabled": entity.disabled}

    def _otpauth(self, seed: bytes, account: str, mode: str) -> str:
        tokens = self._node.config.tokens
        return otpauth_uri(
            seed, account=account, issuer=ISSUER, mode=mode,  # type: ignore[arg-type]
            algorithm=tokens.algorithm, digits=tokens.digits, period_s=tokens.step_s,
            suite=OCRA_SUITE,
        )  # fmt: skip


def _converted(method: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values of a command as its signature declares them, before anything is changed.

    Raises:
        TypeError, ValueError: one is missing, unknown or of another type.
    """
    types = get_type_hints(method)
    inspect.signature(method).bind(None, **values)
    return {name: msgspec.convert(value, types[name]) for name, value in values.items()}


def _existing(found: T | None, what: str) -> T:
    if found is None:
        raise ProvisioningError(f"{what} does not exist")
    return found


def _subject(values: dict[str, Any]) -> str:
    for name in ("number", "card", "name", "network"):
        if values.get(name):
            return f"{name}:{values[name]}"
    return ""
