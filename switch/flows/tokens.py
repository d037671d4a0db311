"""One-time codes (código semilla): which card does a code prove, and what happens on a miss.

Sources: RFC 6238 (TOTP), RFC 6287 (OCRA); windows, order of refusals and lock-outs are the cashier
domain's. All codes of a person's cards are compared in the native core in constant time, and a
person nobody knows takes the same path on dummy seeds, so that neither wording nor time tells who
is a customer.
"""

import hmac
from functools import lru_cache
from hashlib import blake2b

from msgspec import Struct

from core_ext import Batch, Ledger, Records, Result
from core_ext._mac import SeedVault
from switch.config import Tokens
from switch.flows import operations as ops
from switch.flows.operations import Voucher
from switch.flows.registry import Card

OCRA_SUITE = "OCRA-1:HOTP-SHA256-8:QN10-T1M"
OCRA_DIGITS = 8
OCRA_AMOUNT_MAX = 999_999_999  # the question has nine digits for the amount

MISS, IN_WINDOW, EXPIRED = 0, 1, 2


class Proof(Struct, frozen=True, gc=False):
    """What the code proved. `card` is set where exactly one card is meant.

    `refusal` is "" or the key of the response-code table; `counted` says that it is a wrong try.
    `step` is the time step to be consumed, 0 for vouchers; `voucher` the key of the voucher.
    `internal` is the exact reason of a refused voucher, which the till is not told. `stale` is the
    card whose code would have been right at another time: its owner's clock may be wrong.
    """

    card: Card | None
    refusal: str = ""
    counted: bool = False
    step: int = 0
    voucher: bytes = b""
    internal: str = ""
    stale: Card | None = None


class Missed(Struct, frozen=True, gc=False):
    """What counting a wrong code has led to.

    Fields:
        shut: nothing is left that the person could use: the answer is a lock-out already.
        locked: cards that this try has locked.
        desk: the terminal or the cashier is locked by it.
        network: the network's count has reached the alarm.
    """

    shut: bool
    locked: list[str]
    desk: bool
    network: bool


class Locks(Struct, frozen=True, gc=False):
    """The keys under which tries of one request are counted in the ledger.

    `identities` maps the key to the card it stands for, to "" for an identifier nobody has.
    """

    identities: dict[bytes, str]
    terminal: bytes
    cashier: bytes
    network: bytes


class TokenDesk:
    """Checks codes at the issuer. Durable state (last steps, tries) lives in the ledger."""

    def __init__(
        self,
        *,
        config: Tokens,
        ledger: Ledger,
        records: Records,
        vault: SeedVault,
        vale_key: bytes,
        fingerprint_key: bytes,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._records = records
        self._vault = vault
        self._vale_key = vale_key
        self._fingerprint_key = fingerprint_key

    def locks(
        self, cards: list[Card], identifier: str, network: str, terminal: str, cashier: str
    ) -> Locks:
        """Keys for the cards meant, or for the identifier where nobody is known by it."""
        if cards:
            identities = {lock_key("card", c.id): c.id for c in cards}
        else:
            identities = {self._blind("nobody", identifier): ""}
        return Locks(
            identities,
            lock_key("terminal", terminal),
            lock_key("cashier", network + cashier),
            lock_key("network", network),
        )

    def locked(self, locks: Locks, now_s: int) -> bool:
        """True where the terminal or the cashier may not try, or no card of the person is open."""
        until = self._ledger.locked_until
        if until(locks.terminal) > now_s or until(locks.cashier) > now_s:
            return True
        return all(until(key) > now_s for key in locks.identities)

    def prove(self, cards: list[Card], kind: str, amount: int, code: str, now_s: int) -> Proof:
        """Find the one card whose code this is. `cards` may be empty (an unknown person)."""
        open_cards = [
            c for c in cards if self._ledger.locked_until(lock_key("card", c.id)) <= now_s
        ]
        hits: list[tuple[Card, int]] = []
        used, stale = False, None
        for mode, group, pad_to in self._by_mode(open_cards, amount):
            verdicts = self._match(mode, group, kind, amount, code, now_s, pad_to)
            for card, (verdict, step) in zip(group, verdicts, strict=True):
                if verdict == IN_WINDOW:
                    last = self._ledger.last_step(lock_key("card", card.id))
                    if last is None or step > last:
                        hits.append((card, step))
                    else:
                        used = True
                elif verdict == EXPIRED:
                    stale = card
        if len(hits) == 1:
            return Proof(hits[0][0], step=hits[0][1])
        if len(hits) > 1:
            return Proof(None, "CODIGO_AMBIGUO")
        vouchers = [c for c in open_cards if c.mode == "vale"]
        if vouchers and (proof := self._voucher(vouchers, kind, amount, code, now_s)):
            return proof
        if used:
            return Proof(None, "CODIGO_USADO")
        if stale is not None:
            return Proof(None, "CODIGO_VENCIDO", stale=stale)
        return Proof(None, "CODIGO", counted=True)

    def may_ask(self, network: str, terminal: str, cashier: str, now_s: int) -> bool:
        """False for a while after a till has named too many persons that nobody knows (S07)."""
        until = self._ledger.locked_until
        return all(until(key) <= now_s for key in _probe_keys(network, terminal, cashier))

    def asked_in_vain(self, network: str, terminal: str, cashier: str, now_ns: int) -> bool:
        """Count a person that nobody knows, as wrong codes are counted; True: the till is locked
        by it. Codes have counters of their own."""
        c = self._config
        batch = Batch()
        limits = (c.attempts_terminal, c.attempts_cashier)
        for key, limit in zip(_probe_keys(network, terminal, cashier), limits, strict=True):
            batch.attempt(
                key, limit=limit, window_s=c.attempts_window_s, lock_s=c.lock_s, row_limit=0
            )
        return any(Result(r) != Result.DONE for r in self._ledger.apply(batch, now_ns))

    def accept(self, batch: Batch, proof: Proof) -> None:
        """Queue what a good code changes: its step is consumed, wrong tries are forgotten."""
        assert proof.card is not None
        key = lock_key("card", proof.card.id)
        if proof.step:
            batch.accept_step(key, proof.step)
        batch.clear_attempts(key)

    def miss(self, locks: Locks, now_ns: int) -> Missed:
        """Count a wrong code, for every card of the person that is not locked already."""
        c = self._config
        batch = Batch()
        now_s = now_ns // 1_000_000_000
        counted = [key for key in locks.identities if self._ledger.locked_until(key) <= now_s]
        for key in counted:
            batch.attempt(
                key, limit=c.attempts_card, window_s=0, lock_s=c.lock_s, row_limit=c.row_max
            )
        desk = ((locks.terminal, c.attempts_terminal), (locks.cashier, c.attempts_cashier))
        for key, limit in desk:
            batch.attempt(
                key, limit=limit, window_s=c.attempts_window_s, lock_s=c.lock_s, row_limit=0
            )
        # A network is never locked: that would stop a country for one attacker. Lock time 0.
        batch.attempt(
            locks.network,
            limit=c.attempts_network_alarm,
            window_s=c.attempts_window_s,
            lock_s=0,
            row_limit=0,
        )
        *persons, terminal, cashier, network = (
            Result(r) != Result.DONE for r in self._ledger.apply(batch, now_ns)
        )
        return Missed(
            all(persons),
            [locks.identities[key] for key, shut in zip(counted, persons, strict=True) if shut],
            terminal or cashier,
            network,
        )

    def voucher_key(self, card: str, code: str) -> bytes:
        """HMAC under which a voucher is stored; the code itself is stored nowhere."""
        return hmac.digest(self._vale_key, f"VALE1|{card}|{code}".encode(), "sha256")

    def _by_mode(self, cards: list[Card], amount: int) -> list[tuple[str, list[Card], int]]:
        """Cards by how their codes are made, and how many seeds each group is padded to.

        Together the groups try `max_cards` seeds on a miss, whoever it is: the last one is padded
        by what the others left.
        """
        above = self._config.ocra_above
        if len(cards) == 1 and not above and cards[0].mode == "totp":
            return [("totp", cards, self._config.max_cards)]  # nearly everybody
        groups: dict[str, list[Card]] = {}
        for card in cards:
            mode = "ocra" if card.mode == "totp" and 0 < above < amount else card.mode
            if mode != "vale":
                groups.setdefault(mode, []).append(card)
        if not groups:  # nobody, or vouchers only: the seeds of a usual card are tried
            bound = self._config.mode == "ocra" or 0 < above < amount
            groups["ocra" if bound else "totp"] = []
        *first, (mode, group) = groups.items()
        taken = sum(len(others) for _, others in first)
        last = (mode, group, max(self._config.max_cards - taken, len(group)))
        return [*((name, others, len(others)) for name, others in first), last]

    def _match(
        self, mode: str, cards: list[Card], kind: str, amount: int, code: str, now_s: int,
        pad_to: int,
    ) -> list[tuple[int, int]]:  # fmt: skip
        """Per card (verdict, step). A code of another length takes as long, and is a miss."""
        c = self._config
        ocra = mode == "ocra"
        digits = 8 if ocra else c.digits
        found = self._vault.match(
            [card.seed for card in cards],
            [card.id.encode() for card in cards],
            code if len(code) == digits else code[:digits].zfill(digits),
            mode="ocra" if ocra else "totp",
            now_s=now_s,
            digits=digits,
            algorithm=c.algorithm,
            step_s=c.step_s,
            question=ocra_question(kind, amount) if ocra else "",
            suite=OCRA_SUITE if ocra else "",
            back=c.back,
            forward=c.forward,
            probe=c.probe,
            pad_to=pad_to,
        )
        return found if len(code) == digits else [(MISS, 0)] * len(cards)

    def _voucher(
        self, cards: list[Card], kind: str, amount: int, code: str, now_s: int
    ) -> Proof | None:
        for card in cards:
            key = self.voucher_key(card.id, code)
            found = self._records.get(ops.VOUCHERS, key)
            if found is None:
                continue
            voucher = ops.decode_voucher(found)
            refusal, why = _voucher_refusal(voucher, kind, amount, now_s * 1_000_000_000)
            if refusal:
                return Proof(None, refusal, counted=refusal == "CODIGO", internal=why)
            return Proof(card, voucher=key)
        return None

    def _blind(self, purpose: str, text: str) -> bytes:
        return blake2b(
            text.encode(), digest_size=16, key=self._fingerprint_key, person=purpose.encode()
        ).digest()


def _voucher_refusal(voucher: Voucher, kind: str, amount: int, now_ns: int) -> tuple[str, str]:
    """Key of the refusal and the exact reason; ("", "") for a good one.

    Another amount or kind than the voucher is for counts as a wrong code: what it is for must not
    be found out by trying.
    """
    if voucher.state == "redeemed":
        return "CODIGO_USADO", "voucher_redeemed"
    if voucher.state == "cancelled":
        return "CODIGO_VENCIDO", "voucher_cancelled"
    if voucher.expires_ns <= now_ns:
        return "CODIGO_VENCIDO", "voucher_expired"
    if kind not in voucher.channels:
        return "CODIGO", "voucher_channel"
    if amount != voucher.amount if voucher.exact else amount > voucher.amount:
        return "CODIGO", "voucher_amount"
    return "", ""


@lru_cache(maxsize=65_536)
def _probe_keys(network: str, terminal: str, cashier: str) -> tuple[bytes, bytes]:
    return lock_key("asks-terminal", terminal), lock_key("asks-cashier", network + cashier)


def lock_key(purpose: str, name: str) -> bytes:
    """The 16-byte ledger key of tries and steps of one card, terminal, cashier or network.

    Readable where the name is short enough, as nearly all are; the native core makes the same ones.
    """
    key = f"{purpose[:3]}:{name}".encode()
    if len(key) <= 16:
        return key.ljust(16, b"\0")
    return blake2b(name.encode(), digest_size=16, person=purpose.encode()).digest()


def ocra_question(kind: str, amount: int) -> str:
    """The challenge that binds a code to its operation: one digit of kind, nine of amount."""
    return f"{1 if kind == 'cash_out' else 2}{amount:09d}"


def person_cards(cards: list[Card | None]) -> list[Card]:
    """The cards of a person that a request can mean: active ones, or all where none is (so that a
    right code on a blocked card is refused as blocked, and a wrong one as wrong)."""
    known = [c for c in cards if c is not None]
    return [c for c in known if c.state == "active"] or known
