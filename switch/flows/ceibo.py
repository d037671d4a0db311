"""The issuer role: cards, codes, limits and holds (pignoraciones).

Every request names its hold by (network, operation). The decision about it is kept for ever under
that name: the same request again gets the first answer, a release that finds nothing leaves a
tombstone that refuses a later hold. Book of ceibo, in ledger terms:

    cash_out   Dr card        Cr clearing    amount   (with the fee linked: Dr card, Cr fee income)
    deposit    Dr clearing    Cr card        amount   (pending, so not spendable)
"""

from hashlib import blake2b

from core_ext import Batch, Ledger, Records, Result
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS
from protocols.messages import (
    CardChoice,
    HolderAnswer,
    IssuerAnswer,
    IssuerCapture,
    IssuerHold,
    IssuerHolder,
    IssuerRelease,
)
from switch.calendar import day_date
from switch.config import Config
from switch.flows import norms
from switch.flows import operations as ops
from switch.flows.fingerprint import Fingerprint
from switch.flows.limit_book import LimitBook
from switch.flows.operations import CeiboHold
from switch.flows.registry import Card, Person, Registry, account_id
from switch.flows.states import (
    ACTIVA,
    CAPTURADA,
    CEIBO,
    NOTHING,
    RECHAZADA,
    TUMBA,
    move,
)
from switch.flows.step import Step
from switch.flows.tokens import Locks, Proof, TokenDesk, person_cards

BOOK = 1  # of ceibo, within one currency
ACCOUNT_CARD = 1
ACCOUNT_CLEARING = 2
ACCOUNT_FEES = 3
ACCOUNT_COMMISSIONS = 4
ACCOUNT_SUSPENSE = 5
ACCOUNT_FUNDING = 6

ASK_NETWORK = 1  # expiry policy: no hold ends by time alone

# 32 letters and digits that nobody confuses, eight times over: any byte becomes one of them.
_ALPHABET = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789" * 8

_BY_RESULT: dict[Result, tuple[str, str]] = {
    Result.DONE: ("00", "APROBADA"),
    Result.FUNDS_SHORT: ("51", "FONDOS"),
    Result.CREDIT_LIMIT_REACHED: ("51", "FONDOS"),
    Result.LIMIT_AMOUNT: ("61", "LIMITE_MONTO"),
    Result.BALANCE_CAP_REACHED: ("61", "LIMITE_MONTO"),
    Result.LIMIT_COUNT: ("65", "LIMITE_CANTIDAD"),
    Result.AMOUNT_NOT_POSITIVE: ("13", "MONTO_NO_VALIDO"),
    Result.AMOUNT_OVER_RANGE: ("13", "MONTO_NO_VALIDO"),
    Result.CURRENCY_DIFFERS: ("12", "OPERACION_NO_VALIDA"),
    Result.OVERLOADED: ("91", "EMISOR_NO_DISPONIBLE"),
    Result.TOMBSTONED: ("21", "YA_REVERSADA"),
}
_NOT_APPROVED = ("05", "NO_APROBADA")
_USE_DOCUMENT = ("55", "USE_DOCUMENTO")
_BROKEN = ("96", "ERROR")
_OURS = (Result.WOULD_OVERFLOW, Result.FENCED, Result.JOURNAL_FULL, Result.IN_DOUBT)


class Ceibo:
    """The issuer's decisions. `ask` is its whole interface; it answers at once."""

    spaces = (ops.CEIBO_HOLDS, ops.VOUCHERS)

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        records: Records,
        ledger: Ledger,
        desk: TokenDesk,
        limits: LimitBook,
        fingerprint: Fingerprint,
        authorization_key: bytes,
    ) -> None:
        self._config = config
        self._registry = registry
        self._records = records
        self._ledger = ledger
        self._desk = desk
        self._limits = limits
        self._fingerprint = fingerprint
        self._authorization_key = authorization_key
        self._batch = Batch()
        self._table = ops.Table(
            records, ops.CEIBO_HOLDS, ops.decode_ceibo, lambda hold: hold.state == ACTIVA
        )
        self.flush = self._table.flush

    def ask(
        self, step: Step, message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder
    ) -> IssuerAnswer | HolderAnswer:
        match message:
            case IssuerHold():
                return self._hold(step, message)
            case IssuerCapture():
                return self._capture(step, message)
            case IssuerRelease():
                return self._release(step, message)
            case IssuerHolder():
                return self._holder(message)

    def state(self, network: str, operation: str) -> str:
        """State of a hold, for status inquiries; NOTHING where it is not known."""
        found = self._load(_hold_id(network, operation))
        return NOTHING if found is None else found.state

    # ---- hold

    def _hold(self, step: Step, m: IssuerHold) -> IssuerAnswer:
        fingerprint = self._fingerprint(m)
        known = self._load(_hold_id(m.network, m.operation))
        if known is not None:
            return self._repeat(known, fingerprint)
        hold = CeiboHold(
            network=m.network,
            operation=m.operation,
            kind=m.kind,
            amount=m.amount,
            currency=m.currency,
            fingerprint=fingerprint,
            created_ns=step.now_ns,
            day=m.day,
            state=NOTHING,
            terminal=m.terminal,
            branch=m.branch,
        )
        decide = self._decide_cash_out if m.kind == "cash_out" else self._decide_deposit
        hold.code, hold.key = decide(step, m, hold)
        approved = hold.code == "00"
        self._move(hold, "approved" if approved else "declined", step)
        if approved:
            hold.authorization = self._authorization(m.network, m.operation)
            hold.commission = getattr(self._config.commissions, m.kind)
        self._store(hold)
        return _answer(hold)

    def _repeat(self, known: CeiboHold, fingerprint: int) -> IssuerAnswer:
        if known.state == TUMBA:
            return IssuerAnswer("21", "YA_REVERSADA", duplicate=True)
        if known.fingerprint != fingerprint:
            return IssuerAnswer("94", "DUPLICADO_DISTINTO")
        return _answer(known, duplicate=True)

    def _decide_cash_out(self, step: Step, m: IssuerHold, hold: CeiboHold) -> tuple[str, str]:
        persons = self._persons(m)
        if len(persons) > 1:
            return _USE_DOCUMENT
        person = persons[0] if persons else None
        cards = person_cards(self._cards(person))
        locks = self._desk.locks(cards, _identifier(m), m.network, m.terminal, m.cashier)
        now_s = step.now_ns // 1_000_000_000
        assert m.token, "a cash_out without a code must not get this far"
        proof = self._desk.prove(cards, m.kind, m.amount, m.token, now_s)
        if self._desk.locked(locks, now_s):
            hold.internal = "locked"
            return "75", "CODIGO_BLOQUEADO"
        if proof.card is None:
            return self._refuse_code(step, m, proof, locks, hold)
        return self._reserve_cash_out(step, m, hold, proof)

    def _refuse_code(
        self, step: Step, m: IssuerHold, proof: Proof, locks: Locks, hold: CeiboHold
    ) -> tuple[str, str]:
        """A code that proves no card: counted where it is a wrong one, and the holder is told."""
        hold.internal = proof.internal or proof.refusal.lower()
        if not proof.counted:
            return "55", proof.refusal
        missed = self._desk.miss(locks, step.now_ns)
        if missed.desk:
            step.alarm("code_tries_terminal", m.terminal, f"cashier {m.cashier}")
        if missed.network:
            step.alarm("code_tries_network", m.network)
        for card in missed.locked:
            if card:
                step.notice(card, "locked", m.branch)
        return ("75", "CODIGO_BLOQUEADO") if missed.shut else ("55", proof.refusal)

    def _reserve_cash_out(
        self, step: Step, m: IssuerHold, hold: CeiboHold, proof: Proof
    ) -> tuple[str, str]:
        """The code is good, and with it consumed, whatever the card then has to say."""
        card = proof.card
        assert card is not None
        batch = self._batch
        batch.clear()
        self._desk.accept(batch, proof)
        if proof.voucher:
            self._redeem(batch, proof.voucher)
        hold.card, hold.person, hold.token_step = card.id, card.person, proof.step
        refusal = self._card_refusal(card, m)
        if refusal:
            self._ledger.apply(batch, step.now_ns)
            return refusal
        meters = self._meters(card, m.kind)
        if meters is None:
            self._ledger.apply(batch, step.now_ns)
            return self._decided(step, Result.OVERLOADED, hold)
        accepted = len(batch)
        fee = self._config.fees.cash_out
        hold_id = _hold_id(m.network, m.operation)
        batch.hold(
            hold_id, card.account, self._clearing(m.currency, step.now_ns), m.amount, day=m.day,
            night=self._limits.is_night(step.now_ns), code=1, policy=ASK_NETWORK,
            meters=meters, linked=fee > 0,
        )  # fmt: skip
        if fee:
            batch.hold(
                _fee_id(hold_id), card.account,
                self._account(m.currency, "fee_income", ACCOUNT_FEES, step.now_ns), fee,
                day=m.day, code=3, policy=ASK_NETWORK, metered=False,
            )  # fmt: skip
        results = self._ledger.apply(batch, step.now_ns)
        assert not proof.step or results[0] == Result.DONE, "the step was free a moment ago"
        result = _chain_result(results[accepted:])
        if result == Result.DONE:
            hold.fee = fee
        return self._decided(step, result, hold)

    def _decide_deposit(self, step: Step, m: IssuerHold, hold: CeiboHold) -> tuple[str, str]:
        persons = self._persons(m)
        if len(persons) > 1:
            return _USE_DOCUMENT
        card = self._deposit_card(persons[0], m) if persons else None
        if card is None:
            hold.internal = "no card" if persons else "nobody"
            return _NOT_APPROVED
        hold.card, hold.person = card.id, card.person
        hold.name = norms.mask_name(persons[0].name)
        refusal = self._card_refusal(card, m)
        if refusal:
            return refusal
        meters = self._meters(card, m.kind)
        if meters is None:
            return self._decided(step, Result.OVERLOADED, hold)
        batch = self._batch
        batch.clear()
        batch.hold(
            _hold_id(m.network, m.operation), self._clearing(m.currency, step.now_ns), card.account,
            m.amount, day=m.day, night=self._limits.is_night(step.now_ns), code=2,
            policy=ASK_NETWORK, meters=meters, meter_credit=True,
        )  # fmt: skip
        return self._decided(step, self._ledger.apply(batch, step.now_ns)[0], hold)

    def _decided(self, step: Step, result: int, hold: CeiboHold) -> tuple[str, str]:
        if result == Result.DONE:
            return "00", "APROBADA"
        outcome = Result(result)
        hold.internal = outcome.name.lower()
        if outcome in _OURS:
            step.alarm("ledger_refused", hold.operation, outcome.name.lower())
            return _BROKEN
        return _BY_RESULT.get(outcome, _NOT_APPROVED)

    def _card_refusal(self, card: Card, m: IssuerHold) -> tuple[str, str] | None:
        if card.state != "active" or (card.expires and day_date(m.day).isoformat() > card.expires):
            return _NOT_APPROVED
        if m.kind not in card.kinds:
            return "57", "TARJETA_NO_HABILITADA"
        if card.currency != m.currency:
            return "12", "OPERACION_NO_VALIDA"
        if not self._limits.limits.rule(m.kind, card.tier).allows(m.amount):
            return "13", "MONTO_NO_VALIDO"
        return None

    def _meters(self, card: Card, kind: str) -> tuple[bytes, ...] | None:
        if not self._limits.counts(kind):
            return ()
        return self._limits.meters(("person", card.person, card.tier), kind=kind)

    def _deposit_card(self, person: Person, m: IssuerHold) -> Card | None:
        """The card named, the only one, or the person's default: never a guess."""
        if isinstance(m.card, str):
            return self._registry.card(m.card) if m.card in person.cards else None
        cards = person_cards(self._cards(person))
        if len(cards) == 1:
            return cards[0]
        return next((c for c in cards if c.id == person.default_card), None)

    # ---- capture, release, annulment

    def _capture(self, step: Step, m: IssuerCapture) -> IssuerAnswer:
        hold_id = _hold_id(m.network, m.operation)
        hold = self._load(hold_id)
        if hold is None or hold.state == RECHAZADA:
            step.alarm("capture_without_hold", m.operation)
            return IssuerAnswer("25", "ORIGINAL_NO_ENCONTRADO")
        if hold.amount != m.amount:
            step.alarm("capture_amount_differs", m.operation)
            return IssuerAnswer("94", "DUPLICADO_DISTINTO")
        if hold.state == CAPTURADA:
            return _answer(hold, duplicate=True)
        if hold.state != ACTIVA:
            return IssuerAnswer("21", "YA_REVERSADA")
        batch = self._batch
        batch.clear()
        batch.capture(hold_id)
        if hold.commission:
            expense = self._commissions(hold.currency, step.now_ns)
            batch.transfer(expense, self._clearing(hold.currency, step.now_ns), hold.commission)
        results = self._ledger.apply(batch, step.now_ns)
        if results[0] != Result.DONE:
            self._capture_by_force(step, hold, hold_id)
        self._move(hold, "captured", step)
        self._store(hold)
        return _answer(hold)

    def _capture_by_force(self, step: Step, hold: CeiboHold, hold_id: bytes) -> None:
        """The cash is out, but the core's hold was dropped by mistake: post it all the same."""
        debit, credit = self._sides(hold, step.now_ns)
        batch = Batch()
        batch.capture(hold_id, forced=True, debit=debit, credit=credit, amount=hold.amount)
        results = self._ledger.apply(batch, step.now_ns)
        assert not any(results), f"forced capture refused: {results}"
        hold.forced = True
        step.alarm("overdraft_exception", hold.operation)

    def _release(self, step: Step, m: IssuerRelease) -> IssuerAnswer:
        hold_id = _hold_id(m.network, m.operation)
        hold = self._load(hold_id)
        if hold is None:
            return self._entomb(step, m, hold_id)
        if hold.amount != m.amount:
            step.alarm("release_amount_differs", m.operation)
            return IssuerAnswer("94", "DUPLICADO_DISTINTO")
        match hold.state:
            case "ACTIVA":
                return self._undo(step, hold, hold_id, "released")
            case "CAPTURADA" if m.reason == "annulment":
                if hold.compensated:
                    return IssuerAnswer("21", "YA_REVERSADA", duplicate=True)
                return self._undo(step, hold, hold_id, "compensated")
            case "CAPTURADA":
                step.alarm("release_after_capture", m.operation)
                return IssuerAnswer("A3", "CONFLICTO")
            case _:
                return IssuerAnswer("21", "YA_REVERSADA", duplicate=True)

    def _undo(self, step: Step, hold: CeiboHold, hold_id: bytes, event: str) -> IssuerAnswer:
        batch = self._batch
        batch.clear()
        commission = hold.commission if event == "compensated" else 0
        if event == "released":
            batch.release(hold_id)
        else:
            batch.annul(hold_id, linked=commission > 0)
            if commission:
                expense = self._commissions(hold.currency, step.now_ns)
                batch.transfer(self._clearing(hold.currency, step.now_ns), expense, commission)
        results = self._ledger.apply(batch, step.now_ns)
        result = _chain_result(results)
        if result == Result.FUNDS_SHORT:
            return IssuerAnswer("51", "FONDOS")
        if result != Result.DONE:
            return IssuerAnswer(*self._decided(step, result, hold))
        hold.compensated = event == "compensated"
        self._move(hold, event, step)
        self._store(hold)
        return IssuerAnswer("00", "APROBADA")

    def _entomb(self, step: Step, m: IssuerRelease, hold_id: bytes) -> IssuerAnswer:
        self._batch.clear()
        self._batch.release(hold_id)
        self._ledger.apply(self._batch, step.now_ns)
        tomb = CeiboHold(
            m.network, m.operation, m.kind, m.amount, "", 0, step.now_ns, 0, NOTHING, code="25",
            key="ORIGINAL_NO_ENCONTRADO",
        )  # fmt: skip
        self._move(tomb, "released", step)
        self._store(tomb)
        return IssuerAnswer("25", "ORIGINAL_NO_ENCONTRADO")

    # ---- holder

    def _holder(self, m: IssuerHolder) -> HolderAnswer:
        persons = self._persons(m)
        if len(persons) != 1:
            return HolderAnswer("05")
        cards = [
            CardChoice(card.id, card.label)
            for card in person_cards(self._cards(persons[0]))
            if card.state == "active" and "deposit" in card.kinds
        ]
        if not cards:
            return HolderAnswer("05")
        return HolderAnswer("00", name=norms.mask_name(persons[0].name), cards=cards)

    # ---- pieces

    def _persons(self, m: IssuerHold | IssuerHolder) -> list[Person]:
        if isinstance(m.document, str):
            person = self._registry.person_by_document(m.document_type, m.document)
            return [] if person is None else [person]
        return self._registry.persons_by_phone(m.phone) if isinstance(m.phone, str) else []

    def _cards(self, person: Person | None) -> list[Card | None]:
        return [] if person is None else [self._registry.card(card) for card in person.cards]

    def _redeem(self, batch: Batch, key: bytes) -> None:
        """Consume a voucher; what was held for it since its issue is free for this operation."""
        found = self._records.get(ops.VOUCHERS, key)
        assert found is not None, "a voucher that was proved a moment ago"
        voucher = ops.decode_voucher(found)
        voucher.state = "redeemed"
        self._records.put(ops.VOUCHERS, key, ops.encode(voucher), stamp=voucher.expires_ns)
        if voucher.hold:
            batch.release(voucher.hold)

    def _sides(self, hold: CeiboHold, now_ns: int) -> tuple[bytes, bytes]:
        card = self._registry.card(hold.card)
        assert card is not None, "a hold on a card that does not exist"
        clearing = self._clearing(hold.currency, now_ns)
        if hold.kind == "cash_out":
            return card.account, clearing
        return clearing, card.account

    def _clearing(self, currency: str, now_ns: int) -> bytes:
        return self._account(currency, "clearing:sicoop", ACCOUNT_CLEARING, now_ns)

    def _commissions(self, currency: str, now_ns: int) -> bytes:
        return self._account(currency, "commission_expense", ACCOUNT_COMMISSIONS, now_ns)

    def _account(self, currency: str, name: str, code: int, now_ns: int) -> bytes:
        return self._limits.account(f"ceibo:{currency}:{name}", currency, BOOK, code, now_ns)

    def _authorization(self, network: str, operation: str) -> str:
        """Six letters and digits; a keyed digest, so that nobody can foretell the next one."""
        digest = blake2b(
            (network + operation).encode(), digest_size=6, key=self._authorization_key
        ).digest()
        return digest.translate(_ALPHABET).decode()

    def _move(self, hold: CeiboHold, event: str, step: Step) -> None:
        hold.state = move(CEIBO, hold.state, event)
        told = "COMPENSADA" if event == "compensated" else hold.state
        hold.history.append((told, step.now_ns))

    def _load(self, hold_id: bytes) -> CeiboHold | None:
        return self._table.get(hold_id)

    def _store(self, hold: CeiboHold) -> None:
        self._table.put(_hold_id(hold.network, hold.operation), hold, hold.created_ns)


def card_account_flags() -> int:
    """Ledger flags of a card's account: it can never be overdrawn but by a forced capture."""
    return DEBITS_MUST_NOT_EXCEED_CREDITS


def _answer(hold: CeiboHold, duplicate: bool = False) -> IssuerAnswer:
    return IssuerAnswer(
        hold.code, hold.key, hold.authorization, hold.fee, hold.commission, hold.name, duplicate
    )


def _identifier(m: IssuerHold) -> str:
    return f"{m.document_type}{m.document}" if isinstance(m.document, str) else f"TEL{m.phone}"


def _hold_id(network: str, operation: str) -> bytes:
    """Network and operation have 4 and 12 digits: together the 16 bytes of a ledger id."""
    key = (network + operation).encode()
    assert len(key) == 16, "network has 4 digits, operation 12"
    return key


def _fee_id(hold_id: bytes) -> bytes:
    return account_id("fee:" + hold_id.decode())


def _chain_result(results: list[int]) -> int:
    """What a linked chain came to: the first reason that is not merely another's failure."""
    if not any(results):  # DONE is 0
        return Result.DONE
    return next(r for r in results if r not in (Result.DONE, Result.CHAIN_FAILED))
