"""Net settlement of the platform's book, and manual adjustments.

    window      OPEN → CLOSED → PENDING_SETTLEMENT → SETTLED; closing one opens the next
    position    + the network owes, − it is owed; of a window over all networks and issuers: 0
    settlement  P > 0: Dr settlement, Cr net; P < 0: Dr net, Cr settlement
    adjustment  a new entry between a network and the issuer, or between a card and suspense

A window takes what was posted since the one before it was closed; holds still open belong to the
next. Money is settled by two persons, for the amount of the window, whatever has come since.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from core_ext import Batch, Ledger, Records, Result
from core_ext._ledger import NO_LIMIT
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.ceibo import ACCOUNT_SUSPENSE
from switch.flows.ceibo import BOOK as CEIBO_BOOK
from switch.flows.conciliation import Refusal
from switch.flows.limit_book import LimitBook
from switch.flows.operations import Adjustment, Window, WindowPosition
from switch.flows.persons import Signed, signed
from switch.flows.registry import Card, Host, Network, Registry, account_id
from switch.flows.sicoop import ACCOUNT_ISSUER, ACCOUNT_SETTLEMENT, BOOK, CEIBO, Sicoop
from switch.flows.step import Step

CLOSED: Final = "CLOSED"
PENDING_SETTLEMENT: Final = "PENDING_SETTLEMENT"
SETTLED: Final = "SETTLED"

_BANK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)
_MANUAL = 1  # reason number of an adjustment in the ledger; the words are in its record


class Settlement:
    """Windows and adjustments."""

    def __init__(
        self, *, registry: Registry, records: Records, ledger: Ledger, limits: LimitBook,
        sicoop: Sicoop,
    ) -> None:  # fmt: skip
        self._registry = registry
        self._records = records
        self._ledger = ledger
        self._limits = limits
        self._sicoop = sicoop

    # ---- windows

    def window_close(self, step: Step, currency: str = "PYG") -> dict[str, Any]:
        """Close the open window; its positions are fixed from then on."""
        norms.currency(currency)
        before = list(self._windows(currency))
        last = before[-1] if before else Window(0, currency, 0, SETTLED, [])
        settled = _settled(before)
        totals = {name: self._totals(name, currency) for name in self._names(currency)}
        positions = []
        for name, now in totals.items():
            then, paid = last.totals.get(name, (0, 0)), settled.get(name, (0, 0))
            paid_then = last.settled.get(name, (0, 0))
            debits = now[0] - then[0] - (paid[0] - paid_then[0])
            credits = now[1] - then[1] - (paid[1] - paid_then[1])
            if debits or credits:
                positions.append(WindowPosition(name, debits - credits, debits, credits))
        total = sum(p.amount for p in positions)
        if total:
            step.alarm("window_unbalanced", currency, f"positions sum to {total}")
            raise Refusal(f"positions sum to {total}: an account of the book is nobody's")
        number = self._registry.next_number(f"window:{currency}")
        window = Window(
            number, currency, step.now_ns, CLOSED, positions, last.closed_ns, totals, settled
        )
        if not any(p.amount for p in positions):
            window.state = SETTLED
        self._put(window)
        step.audit("operator", "window.close", f"window:{number}", "00", currency)
        return self.statement_of(window)

    def window_show(self, step: Step, number: int, currency: str = "PYG") -> dict[str, Any]:
        return self.statement_of(self._window(number, currency))

    def window_issue(self, step: Step, number: int, currency: str = "PYG") -> dict[str, Any]:
        """The statements are out: the window waits for the money."""
        window = self._window(number, currency)
        if window.state == CLOSED:
            window.state = PENDING_SETTLEMENT
            self._put(window)
            step.audit("operator", "window.issue", f"window:{number}", "00", currency)
        return self.statement_of(window)

    def window_settle(
        self, step: Step, number: int, name: str, bank: str, signature: Signed,
        currency: str = "PYG",
    ) -> dict[str, Any]:  # fmt: skip
        """Post that one position of a window was paid over a bank."""
        signature = signed(signature)
        if not _BANK.fullmatch(bank):
            raise Refusal("bank is a name of 1 to 32 letters and digits")
        window = self._window(number, currency)
        if window.state == CLOSED:
            raise Refusal(f"the statements of window {number} are not issued yet")
        position = next((p for p in window.positions if p.name == name), None)
        if position is None or not position.amount:
            raise Refusal(f"window {number} has nothing to settle with {name}")
        if position.settled_ns:
            raise Refusal(f"{name} has settled window {number} already")
        self._post(step, name, position.amount, bank, currency)
        position.settled_ns, position.bank = step.now_ns, bank
        position.author, position.second = signature.author, signature.second
        if all(p.settled_ns or not p.amount for p in window.positions):
            window.state = SETTLED
        self._put(window)
        step.audit(
            f"operator:{signature.author}", "window.settle", f"window:{number}:{name}", "00",
            signature.reason, second=f"operator:{signature.second}",
        )  # fmt: skip
        return self.statement_of(window)

    def statement_of(self, window: Window) -> dict[str, Any]:
        return {
            "window": window.number, "currency": window.currency, "state": window.state,
            "opened_ns": window.opened_ns, "closed_ns": window.closed_ns,
            "sum": sum(p.amount for p in window.positions),
            "positions": [
                {
                    "name": p.name, "debits": p.debits, "credits": p.credits, "position": p.amount,
                    "settled_ns": p.settled_ns, "bank": p.bank,
                }
                for p in window.positions
            ],
        }  # fmt: skip

    def _post(self, step: Step, name: str, amount: int, bank: str, currency: str) -> None:
        settlement = self._limits.account(
            f"sicoop:{currency}:settlement:{bank}", currency, BOOK, ACCOUNT_SETTLEMENT, step.now_ns
        )
        account = self._account(name, currency)
        network = self._network(name)
        debit, credit = (settlement, account) if amount > 0 else (account, settlement)
        batch = Batch()
        if network is not None:
            # What was agreed upon is posted whatever the caps say of what has come since.
            batch.set_limits(
                account, credit_limit=network.net_debit_cap + abs(amount), max_balance=NO_LIMIT,
                linked=True,
            )  # fmt: skip
        batch.transfer(debit, credit, abs(amount), linked=network is not None)
        if network is not None:
            batch.set_limits(
                account, credit_limit=network.net_debit_cap,
                max_balance=network.payable_cap or NO_LIMIT,
            )  # fmt: skip
        results = self._ledger.apply(batch, step.now_ns)
        if any(results):
            bad = next(r for r in results if r not in (Result.DONE, Result.CHAIN_FAILED))
            raise Refusal(f"the ledger refuses it: {Result(bad).key}")

    def _names(self, currency: str) -> list[str]:
        """Everybody whose account the book may have: networks, then issuers."""
        networks = sorted(n.number for n in self._registry.all(Network) if isinstance(n, Network))
        hosts = sorted(h.name for h in self._registry.all(Host) if isinstance(h, Host))
        names = [f"net:{number}" for number in networks]
        names += [f"issuer:{name}" for name in dict.fromkeys((CEIBO, *hosts))]
        return [n for n in names if self._ledger.balance(self._account(n, currency)) is not None]

    def _account(self, name: str, currency: str) -> bytes:
        return account_id(f"sicoop:{currency}:{name}")

    def _network(self, name: str) -> Network | None:
        return self._registry.network(name[4:]) if name.startswith("net:") else None

    def _totals(self, name: str, currency: str) -> tuple[int, int]:
        balance = self._ledger.balance(self._account(name, currency))
        return (0, 0) if balance is None else (balance.debits_posted, balance.credits_posted)

    def _windows(self, currency: str) -> Iterator[Window]:
        """All windows of a currency, by number."""
        found = [ops.decode_window(value) for _, value in self._records.items(ops.WINDOWS)]
        return iter(sorted((w for w in found if w.currency == currency), key=lambda w: w.number))

    def _window(self, number: int, currency: str) -> Window:
        found = self._records.get(ops.WINDOWS, _window_key(number, currency))
        if found is None:
            raise Refusal(f"there is no window {number} of {currency}")
        return ops.decode_window(found)

    def _put(self, window: Window) -> None:
        self._records.put(
            ops.WINDOWS, _window_key(window.number, window.currency), ops.encode(window),
            open=window.state != SETTLED,
        )  # fmt: skip

    # ---- adjustments

    def conciliation_adjust(
        self, step: Step, account: str, amount: int, direction: str, signature: Signed,
        reference: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """A manual correction. `direction`: `credit` is in favour of the account, `debit` against.

        `account` is `net:NNNN` (against the issuer) or `card:ID` (against suspense).
        """
        signature = signed(signature, evidence=True)
        if direction not in ("credit", "debit"):
            raise Refusal("direction is credit or debit")
        if not 1 <= amount <= norms.AMOUNT_MAX:
            raise Refusal(f"amount is 1 to {norms.AMOUNT_MAX}")
        if reference:
            norms.parse_reference(reference)
        own, other, currency = self._sides(step, account, reference)
        debit, credit = (other, own) if direction == "credit" else (own, other)
        batch = Batch()
        batch.adjust(
            debit, credit, amount, reason=_MANUAL, author=_person_id(signature.author),
            second=_person_id(signature.second),
        )  # fmt: skip
        result = self._ledger.apply(batch, step.now_ns)[0]
        if result != Result.DONE:
            raise Refusal(f"the ledger refuses it: {Result(result).key}")
        number = self._registry.next_number("adjustment")
        record = Adjustment(
            number, step.now_ns, account, amount, direction, currency, signature.author,
            signature.second, signature.reason, signature.evidence, signature.evidence_sha256,
            reference,
        )  # fmt: skip
        self._records.put(ops.ADJUSTMENTS, b"%010d" % number, ops.encode(record))
        step.audit(
            f"operator:{signature.author}", "adjust", reference or account, "00",
            f"{direction} {amount}: {signature.reason}", second=f"operator:{signature.second}",
        )  # fmt: skip
        return {"adjustment": number, "account": account, "direction": direction, "amount": amount}

    def _sides(self, step: Step, account: str, reference: str) -> tuple[bytes, bytes, str]:
        """The account, its counterpart and their currency."""
        if account.startswith("card:"):
            card = self._registry.card(account[5:])
            if card is None:
                raise Refusal(f"there is no {account}")
            return card.account, self._suspense(step, card), card.currency
        network = self._network(account)
        if network is None:
            raise Refusal("account is net:NNNN or card:ID, and known here")
        known = self._sicoop.find(reference) if reference else None
        issuer = (known.issuer if known is not None else "") or CEIBO
        currency = network.currency
        own = self._sicoop.net_account(network.number, currency, step.now_ns)
        other = self._limits.account(
            f"sicoop:{currency}:issuer:{issuer}", currency, BOOK, ACCOUNT_ISSUER, step.now_ns
        )
        return own, other, currency

    def _suspense(self, step: Step, card: Card) -> bytes:
        name = f"ceibo:{card.currency}:suspense"
        return self._limits.account(name, card.currency, CEIBO_BOOK, ACCOUNT_SUSPENSE, step.now_ns)


def _settled(windows: list[Window]) -> dict[str, tuple[int, int]]:
    """Debits and credits by which windows were settled so far, by position."""
    found: dict[str, tuple[int, int]] = {}
    for p in (p for window in windows for p in window.positions if p.settled_ns):
        debits, credits = found.get(p.name, (0, 0))
        out, in_ = (0, p.amount) if p.amount > 0 else (-p.amount, 0)
        found[p.name] = (debits + out, credits + in_)
    return found


def _window_key(number: int, currency: str) -> bytes:
    return f"{currency}{number:08d}".encode()


def _person_id(name: str) -> bytes:
    """How the ledger knows an operator."""
    return account_id(f"operator:{name}")
