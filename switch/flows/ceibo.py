"""The issuer role: cards, codes, limits and holds (pignoraciones).

Every request names its hold by (network, operation). The decision about it is kept for ever under
that name: the same request again gets the first answer, a release that finds nothing leaves a
tombstone that refuses a later hold. Book of ceibo, in ledger terms:

    cash_out   Dr card        Cr clearing    amount   (with the fee linked: Dr card, Cr fee income)
    deposit    Dr clearing    Cr card        amount   (pending, so not spendable)

Who asks is the sicoop of this process (`ask`) or a host (`serve`), each with holds and a clearing
account of its own. What a host asks for again gets the first answer, message by message.
"""

from collections.abc import Iterator
from hashlib import blake2b

from core_ext import Batch, Ledger, Records, Result
from core_ext._ledger import DEBITS_MUST_NOT_EXCEED_CREDITS
from core_ext._mac import siphash
from protocols.codes import KEY_OF_CODE
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
from switch.flows.operations import Case, CeiboHold
from switch.flows.registry import Card, Person, Registry, account_id
from switch.flows.states import (
    ACTIVA,
    CAPTURADA,
    CEIBO,
    CONCILIADA,
    CONFIRMADA,
    DESCONOCIDA,
    LIBERADA,
    NOTHING,
    RECHAZADA,
    REVERSADA,
    REVERSANDO,
    TUMBA,
    VENCIDA,
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

NEAR = ""  # the sicoop of this process, as the link of a hold
SICOOP = "sicoop"  # the host that `init` makes: the same counterparty in a process of its own

# What sicoop's word about a hold that it never decided comes to; all else: it stays as it is.
_SETTLED = frozenset((CONFIRMADA, CAPTURADA, CONCILIADA))
_UNDONE = frozenset((RECHAZADA, VENCIDA, REVERSANDO, REVERSADA, TUMBA, DESCONOCIDA))
_PASSING = frozenset(("91", "94", "96"))  # answers that are no decision, so not repeated

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
        self._authorization_key = authorization_key[:16]
        self._batch = Batch()
        self._table = ops.Table(
            records, ops.CEIBO_HOLDS, ops.decode_ceibo, lambda hold: hold.state == ACTIVA
        )
        self.flush = self._table.flush

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; what is decided already stays as it is."""
        self._config = config

    def ask(
        self,
        step: Step,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
    ) -> IssuerAnswer | HolderAnswer:
        """Answer the sicoop of this process."""
        return self._handle(step, message, NEAR, 0)

    def serve(
        self,
        step: Step,
        link: str,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
        declared: int,
    ) -> IssuerAnswer | HolderAnswer:
        """Answer a request of the host `link`.

        Args:
            declared: keyed digest of what repeats of the message are compared in: equal, and the
                first answer is given again; else 94.
        """
        if isinstance(message, IssuerHold | IssuerHolder):
            return self._handle(step, message, link, declared)
        what = _what(message)
        hold_id = _hold_id(link, message.network, message.operation)
        known = self._load(hold_id)
        first = None if known is None else known.firsts.get(what)
        if known is not None and first is not None:
            if first[0] != declared:
                return IssuerAnswer("94", "DUPLICADO_DISTINTO")
            code = first[1]
            number = known.authorization if code == "00" else ""
            return IssuerAnswer(code, KEY_OF_CODE[code], number, duplicate=True)
        answer = self._handle(step, message, link, declared)
        hold = self._load(hold_id)
        if hold is not None and answer.code not in _PASSING:
            hold.firsts[what] = (declared, answer.code)
            self._store(hold)
        return answer

    def _handle(
        self,
        step: Step,
        message: IssuerHold | IssuerCapture | IssuerRelease | IssuerHolder,
        link: str,
        declared: int,
    ) -> IssuerAnswer | HolderAnswer:
        match message:
            case IssuerHold():
                return self._hold(step, message, link, declared)
            case IssuerCapture():
                return self._capture(step, message, link)
            case IssuerRelease():
                return self._release(step, message, link)
            case IssuerHolder():
                return self._holder(message)

    def state(self, network: str, operation: str, link: str = NEAR) -> str:
        """State of a hold, for status inquiries; NOTHING where it is not known."""
        found = self._load(_hold_id(link, network, operation))
        return NOTHING if found is None else found.state

    def resolve(
        self, step: Step, link: str, network: str, operation: str, outcome: str
    ) -> str:  # fmt: skip
        """Two persons have decided about a hold: `capture`, `release` or `annul`.

        A released hold is captured anew, by force: the cash was out. Of a deposit in suspense:
        `capture` gives it to its card, `charge` says that an adjustment has dealt with it. Returns
        why it cannot be done, or ''.
        """
        hold_id = _hold_id(link, network, operation)
        hold = self._load(hold_id)
        if hold is None:
            return "there is no such hold, or it is older than the retention"
        if outcome == "capture" and hold.internal == ops.IN_SUSPENSE:
            return self._from_suspense(step, hold)
        if outcome == "charge" and hold.internal == ops.IN_SUSPENSE:
            hold.internal = ops.ADJUSTED
            self._store(hold)
            return ""
        if outcome == "capture" and hold.state in (ACTIVA, LIBERADA):
            self._post(step, hold, hold_id)
            return ""
        if outcome == "release" and hold.state == ACTIVA:
            answer = self._undo(step, hold, hold_id, "released")
        elif outcome == "annul" and hold.state == CAPTURADA and not hold.compensated:
            answer = self._undo(step, hold, hold_id, "compensated")
        else:
            return f"{outcome} is not open to a hold that is {hold.state}"
        return "" if answer.code == "00" else answer.key

    def hold_of(
        self, m: IssuerHold | IssuerCapture | IssuerRelease, link: str
    ) -> CeiboHold | None:  # fmt: skip
        """The hold that a message of a host is about."""
        return self._load(_hold_id(link, m.network, m.operation))

    def undecided(self) -> Iterator[CeiboHold]:
        """Holds that nobody has captured or released yet."""
        return self._table.open()

    def balances(self, link: str, network: str, operation: str) -> tuple[int, int] | None:
        """Ledger and available balance of the card, as they were after an approved hold; the first
        call fixes them for its repeats."""
        hold = self._load(_hold_id(link, network, operation))
        if hold is None or hold.code != "00" or not hold.card:
            return None
        if not hold.balances:
            card = self._registry.card(hold.card)
            balance = None if card is None else self._ledger.balance(card.account)
            assert balance is not None, "a hold on a card that does not exist"
            posted = balance.credits_posted - balance.debits_posted
            hold.balances = (posted, balance.available)
            self._store(hold)
        return hold.balances[0], hold.balances[1]

    def on_platform_state(
        self, step: Step, link: str, network: str, operation: str, state: str
    ) -> bool:
        """sicoop's word about a hold that it never decided (policy ask-network).

        `state` is one of sicoop's, DESCONOCIDA where it knows no such operation. False: that
        decides nothing yet.
        """
        hold_id = _hold_id(link, network, operation)
        hold = self._load(hold_id)
        if hold is None or hold.state != ACTIVA:
            return True
        if state in _SETTLED:
            self._post(step, hold, hold_id)
        elif state in _UNDONE:
            if self._undo(step, hold, hold_id, "released").code != "00":
                step.alarm("hold_inconsistent", operation, state)  # not in the ledger any more
                return True
        else:
            return False
        step.alarm("hold_decided_by_inquiry", operation, state)
        step.audit(f"host:{link}", "status", operation, hold.state, state)
        return True

    # ---- hold

    def _hold(self, step: Step, m: IssuerHold, link: str, declared: int) -> IssuerAnswer:
        fingerprint = declared or self._fingerprint(m)
        known = self._load(_hold_id(link, m.network, m.operation))
        if known is not None:
            return self._repeat(known, fingerprint)
        if not step.admitting:
            return IssuerAnswer(*_BROKEN)
        hold = _new_hold(step, m, link, fingerprint)
        hold.code, hold.key = self._decide(step, m, hold)
        approved = hold.code == "00"
        self._move(hold, "approved" if approved else "declined", step)
        if approved:
            hold.authorization = self._authorization(m.network, m.operation)
            hold.commission = getattr(self._config.commissions, m.kind)
        self._store(hold)
        return _answer(hold)

    def refuse(self, step: Step, link: str, m: IssuerHold, declared: int, code: str) -> None:
        """Remember that a hold was refused before it was looked at, so that a copy of the message
        that arrives when it would be taken is refused as well."""
        if not step.admitting or self._load(_hold_id(link, m.network, m.operation)) is not None:
            return
        hold = _new_hold(step, m, link, declared)
        hold.code, hold.key = code, KEY_OF_CODE[code]
        self._move(hold, "declined", step)
        self._store(hold)

    def _repeat(self, known: CeiboHold, fingerprint: int) -> IssuerAnswer:
        if known.state == TUMBA:
            return IssuerAnswer("21", "YA_REVERSADA", duplicate=True)
        if known.fingerprint != fingerprint:
            return IssuerAnswer("94", "DUPLICADO_DISTINTO")
        return _answer(known, duplicate=True)

    def _decide(self, step: Step, m: IssuerHold, hold: CeiboHold) -> tuple[str, str]:
        decide = self._decide_cash_out if m.kind == "cash_out" else self._decide_deposit
        return decide(step, m, hold)

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
        if proof.stale is not None:
            step.notice(proof.stale.id, "clock", m.branch)  # the app shows how to correct it (T11)
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
        hold_id = _hold_id(hold.link, m.network, m.operation)
        batch.hold(
            hold_id, card.account, self._clearing(hold, step.now_ns), m.amount, day=m.day,
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
        desk, now_s = self._desk, step.now_ns // 1_000_000_000
        if not desk.may_ask(m.network, m.terminal, m.cashier, now_s):
            hold.internal = "asked too often"  # the same for everybody, or it would still tell
            return _NOT_APPROVED
        if card is None:
            hold.internal = "no card" if persons else "nobody"
            if not persons and desk.asked_in_vain(m.network, m.terminal, m.cashier, step.now_ns):
                step.alarm("document_probing", m.terminal, f"cashier {m.cashier}")
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
            _hold_id(hold.link, m.network, m.operation), self._clearing(hold, step.now_ns),
            card.account, m.amount, day=m.day, night=self._limits.is_night(step.now_ns), code=2,
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

    def _capture(self, step: Step, m: IssuerCapture, link: str) -> IssuerAnswer:
        hold_id = _hold_id(link, m.network, m.operation)
        hold = self._load(hold_id)
        if hold is None or hold.state == RECHAZADA:
            step.alarm("capture_without_hold", m.operation)
            return IssuerAnswer("25", "ORIGINAL_NO_ENCONTRADO")
        if _differs(hold, m):
            step.alarm("capture_amount_differs", m.operation)
            return IssuerAnswer("94", "DUPLICADO_DISTINTO")
        if hold.state == CAPTURADA:
            return _answer(hold, duplicate=True)
        if hold.state != ACTIVA:
            return IssuerAnswer("21", "YA_REVERSADA")
        self._post(step, hold, hold_id)
        return _answer(hold)

    def _post(self, step: Step, hold: CeiboHold, hold_id: bytes) -> None:
        if hold.kind == "deposit" and hold.state == ACTIVA and self._is_closed(hold.card):
            self._suspend(step, hold, hold_id)
            return
        batch = self._batch
        batch.clear()
        batch.capture(hold_id)
        if hold.commission:
            expense = self._commissions(hold.currency, step.now_ns)
            batch.transfer(expense, self._clearing(hold, step.now_ns), hold.commission)
        results = self._ledger.apply(batch, step.now_ns)
        if results[0] != Result.DONE:
            self._capture_by_force(step, hold, hold_id)
        self._move(hold, "captured", step)
        self._store(hold)

    def _suspend(self, step: Step, hold: CeiboHold, hold_id: bytes) -> None:
        """The cash is in, but the card was closed meanwhile (D24): red owes it all the same, and
        people find out to whom it goes."""
        clearing = self._clearing(hold, step.now_ns)
        batch = self._batch
        batch.clear()
        batch.release(hold_id)
        batch.transfer(clearing, self._suspense(hold.currency, step.now_ns), hold.amount)
        if hold.commission:
            batch.transfer(
                self._commissions(hold.currency, step.now_ns), clearing, hold.commission
            )  # fmt: skip
        results = self._ledger.apply(batch, step.now_ns)
        assert not any(results), f"suspense refused: {results}"
        hold.internal = ops.IN_SUSPENSE
        self._move(hold, "captured", step)
        self._store(hold)
        name = hold.network + hold.operation
        case = Case(name, hold.network, day_date(hold.day).strftime("%Y%m%d"), ops.IN_SUSPENSE)
        case.opened_ns, case.sicoop_state, case.sicoop_amount = step.now_ns, CAPTURADA, hold.amount
        self._records.put(ops.CASES, name.encode(), ops.encode(case), open=True)
        step.alarm("suspense", hold.operation, hold.card)

    def _from_suspense(self, step: Step, hold: CeiboHold) -> str:
        """The card is open again: what waits for it is its own. Returns why not, or ''."""
        card = self._registry.card(hold.card)
        if card is None or self._is_closed(card.id):
            return "the card is closed: adjust another one"
        batch = self._batch
        batch.clear()
        batch.transfer(self._suspense(hold.currency, step.now_ns), card.account, hold.amount)
        if any(self._ledger.apply(batch, step.now_ns)):
            return "the card cannot take it"
        hold.internal = ops.FROM_SUSPENSE
        self._store(hold)
        return ""

    def _is_closed(self, card: str) -> bool:
        found = self._registry.card(card)
        return found is None or found.state == "closed"

    def _capture_by_force(self, step: Step, hold: CeiboHold, hold_id: bytes) -> None:
        """The cash is out, but the core's hold was dropped by mistake: post it all the same."""
        debit, credit = self._sides(hold, step.now_ns)
        batch = Batch()
        batch.capture(hold_id, forced=True, debit=debit, credit=credit, amount=hold.amount)
        results = self._ledger.apply(batch, step.now_ns)
        assert not any(results), f"forced capture refused: {results}"
        hold.forced = True
        step.alarm("overdraft_exception", hold.operation)

    def _release(self, step: Step, m: IssuerRelease, link: str) -> IssuerAnswer:
        hold_id = _hold_id(link, m.network, m.operation)
        hold = self._load(hold_id)
        if hold is None:
            return self._entomb(step, m, hold_id, link)
        if _differs(hold, m):
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
                batch.transfer(self._clearing(hold, step.now_ns), expense, commission)
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

    def _entomb(self, step: Step, m: IssuerRelease, hold_id: bytes, link: str) -> IssuerAnswer:
        self._batch.clear()
        self._batch.release(hold_id)
        self._ledger.apply(self._batch, step.now_ns)
        tomb = CeiboHold(
            m.network, m.operation, m.kind, m.amount, "", 0, step.now_ns, 0, NOTHING, code="25",
            key="ORIGINAL_NO_ENCONTRADO", link=link,
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
        clearing = self._clearing(hold, now_ns)
        if hold.kind == "cash_out":
            return card.account, clearing
        return clearing, card.account

    def _clearing(self, hold: CeiboHold, now_ns: int) -> bytes:
        name = f"clearing:{hold.link or SICOOP}"
        return self._account(hold.currency, name, ACCOUNT_CLEARING, now_ns)

    def _commissions(self, currency: str, now_ns: int) -> bytes:
        return self._account(currency, "commission_expense", ACCOUNT_COMMISSIONS, now_ns)

    def _suspense(self, currency: str, now_ns: int) -> bytes:
        return self._account(currency, "suspense", ACCOUNT_SUSPENSE, now_ns)

    def _account(self, currency: str, name: str, code: int, now_ns: int) -> bytes:
        return self._limits.account(f"ceibo:{currency}:{name}", currency, BOOK, code, now_ns)

    def _authorization(self, network: str, operation: str) -> str:
        """Six letters and digits; a keyed digest, so that nobody can foretell the next one."""
        digest = siphash(self._authorization_key, (network + operation).encode()).to_bytes(8)
        return digest[:6].translate(_ALPHABET).decode()

    def _move(self, hold: CeiboHold, event: str, step: Step) -> None:
        hold.state = move(CEIBO, hold.state, event)
        told = "COMPENSADA" if event == "compensated" else hold.state
        hold.history.append((told, step.now_ns))

    def _load(self, hold_id: bytes) -> CeiboHold | None:
        return self._table.get(hold_id)

    def _store(self, hold: CeiboHold) -> None:
        self._table.put(hold_key(hold), hold, hold.created_ns)


def _new_hold(step: Step, m: IssuerHold, link: str, fingerprint: int) -> CeiboHold:
    return CeiboHold(
        network=m.network, operation=m.operation, kind=m.kind, amount=m.amount,
        currency=m.currency, fingerprint=fingerprint, created_ns=step.now_ns, day=m.day,
        state=NOTHING, terminal=m.terminal, branch=m.branch, link=link,
    )  # fmt: skip


def card_account_flags() -> int:
    """Ledger flags of a card's account: it can never be overdrawn but by a forced capture."""
    return DEBITS_MUST_NOT_EXCEED_CREDITS


def _answer(hold: CeiboHold, duplicate: bool = False) -> IssuerAnswer:
    return IssuerAnswer(
        hold.code, hold.key, hold.authorization, hold.fee, hold.commission, hold.name, duplicate
    )


def _identifier(m: IssuerHold) -> str:
    return f"{m.document_type}{m.document}" if isinstance(m.document, str) else f"TEL{m.phone}"


def _what(m: IssuerCapture | IssuerRelease) -> str:
    """Kind of a message, as repeats are known by."""
    if isinstance(m, IssuerCapture):
        return "capture"
    return "annulment" if m.reason == "annulment" else "release"


def _differs(hold: CeiboHold, m: IssuerCapture | IssuerRelease) -> bool:
    """True where a message is about something else than the hold of this name."""
    if hold.amount != m.amount:
        return True
    known = hold.state != TUMBA  # of which nobody has seen more than the amount
    return known and (hold.kind != m.kind or m.currency not in ("", hold.currency))


def hold_key(hold: CeiboHold) -> bytes:
    """Key of a hold's record, and its id in the ledger."""
    return _hold_id(hold.link, hold.network, hold.operation)


def _hold_id(link: str, network: str, operation: str) -> bytes:
    """Network and operation have 4 and 12 digits: together the 16 bytes of a ledger id.

    Other hosts than sicoop give numbers of their own, so that the host is part of the name.
    """
    key = (network + operation).encode()
    assert len(key) == 16, "network has 4 digits, operation 12"
    if link not in (NEAR, SICOOP):
        return blake2b(link.encode() + b"|" + key, digest_size=16).digest()
    return key


def _fee_id(hold_id: bytes) -> bytes:
    name = hold_id.decode() if hold_id.isdigit() else hold_id.hex()
    return account_id("fee:" + name)


def _chain_result(results: list[int]) -> int:
    """What a linked chain came to: the first reason that is not merely another's failure."""
    if not any(results):  # DONE is 0
        return Result.DONE
    return next(r for r in results if r not in (Result.DONE, Result.CHAIN_FAILED))
