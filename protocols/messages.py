"""The canonical messages: what codecs decode to and what the flows of the switch understand.

They are the vocabularies of the framed session protocol (terminal to `red`, `red` to `sicoop`), so
that its codec needs no second form, and the issuer vocabulary (`sicoop` to `ceibo`), which crosses
the wire as ISO 8583. A message says what a peer sent, checked for type and range of each field
alone; what fields mean together is the business of the flows.

Amounts are integers in minor units of their currency. Optional fields that are absent are UNSET,
so that an encoder leaves them out and an explicit false or 0 is still sent.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Kind = Literal["cash_out", "deposit"]
Reason = Literal["timeout", "registration_failed", "cancelled"]

ENTREGUE = "ENTREGUE"
NO_ENTREGUE = "NO_ENTREGUE"
RECIBA = "RECIBA"
NO_RECIBA = "NO_RECIBA"
DEVUELVA = "DEVUELVA"
ESPERE = "ESPERE"

AMOUNT_MAX = 999_999_999_999  # DE4 has twelve digits

Trace = Annotated[int, Meta(ge=1, le=999_999)]
Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]
Money = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
UpToSixDigits = Annotated[str, Meta(pattern=r"^[0-9]{1,6}\Z")]
Token = Annotated[str, Meta(pattern=r"^[0-9]{6,8}\Z")]
Code = Annotated[str, Meta(pattern=r"^[0-9]{6,8}\Z")]
DocumentType = Literal["CI", "RUC", "PAS"]
Document = Annotated[str, Meta(min_length=5, max_length=12)]
Phone = Annotated[str, Meta(min_length=6, max_length=20)]
CardReference = Annotated[str, Meta(min_length=1, max_length=32)]
Depositor = Annotated[str, Meta(min_length=7, max_length=15)]
Text = Annotated[str, Meta(max_length=200)]
Declaration = Annotated[dict[Annotated[str, Meta(max_length=32)], Text], Meta(max_length=8)]
BusinessDate = Annotated[str, Meta(min_length=8, max_length=10)]
Reference = Annotated[str, Meta(pattern=r"^[0-9]{26}\Z")]
RequestId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Instant = Annotated[str, Meta(max_length=40)]

_MASKED = frozenset(
    (
        "token",
        "document",
        "phone",
        "declaration",
        "depositor",
        "supervisor_code",
        "cashier_code",
        "name",
    )
)


class Message(Struct, frozen=True, gc=False, tag_field="op", omit_defaults=True):
    """Base of all messages. Its repr masks what must never reach a log or a traceback."""

    def __repr__(self) -> str:
        shown = []
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if value is UNSET or value is None:
                continue
            shown.append(f"{field}=***" if field in _MASKED else f"{field}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


# ---- terminal to red ---------------------------------------------------------------------------


class CashOut(Message, frozen=True, tag="cash_out", kw_only=True):
    """The holder takes `amount` out of a card, proved by the one-time code `token`."""

    trace: Trace
    cashier: UpToSixDigits
    document_type: DocumentType = "CI"
    document: Document | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET
    token: Token
    amount: Amount
    currency: Currency
    branch: UpToSixDigits | UnsetType = UNSET
    local_time: Instant | UnsetType = UNSET


class Deposit(Message, frozen=True, tag="deposit", kw_only=True):
    """Cash of `amount` is to be credited to a card of the person named."""

    trace: Trace
    cashier: UpToSixDigits
    document_type: DocumentType = "CI"
    document: Document | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET
    card: CardReference | UnsetType = UNSET
    token: Token | UnsetType = UNSET  # known only to be refused: a deposit is proved by its cash
    amount: Amount
    currency: Currency
    depositor: Depositor | UnsetType = UNSET
    declaration: Declaration | UnsetType = UNSET
    branch: UpToSixDigits | UnsetType = UNSET
    local_time: Instant | UnsetType = UNSET


class Holder(Message, frozen=True, tag="holder"):
    """Who would receive a deposit: masked name and masked cards."""

    trace: Trace | UnsetType = UNSET
    document_type: DocumentType = "CI"
    document: Document | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET


class Annul(Message, frozen=True, tag="annul"):
    """Cashier and supervisor undo the operation with trace `original`."""

    trace: Trace
    cashier: UpToSixDigits
    original: Trace
    supervisor: UpToSixDigits | UnsetType = UNSET
    supervisor_code: Code | UnsetType = UNSET
    business_date: BusinessDate | UnsetType = UNSET


class LastOperation(Message, frozen=True, tag="last_operation"):
    """What the cashier must do now about the operation `original`, or the terminal's newest."""

    trace: Trace | UnsetType = UNSET
    original: Trace | UnsetType = UNSET
    kind: Kind = "cash_out"


class Delivered(Message, frozen=True, tag="delivered"):
    """The cash of `original` has changed hands."""

    original: Trace
    trace: Trace | UnsetType = UNSET


class ShiftOpen(Message, frozen=True, tag="shift_open"):
    """A cashier starts work; `cashier_code` is his own one-time code, `float` the cash at start."""

    cashier: UpToSixDigits
    cashier_code: Code
    trace: Trace | UnsetType = UNSET
    float: Money | UnsetType = UNSET


class ShiftClose(Message, frozen=True, tag="shift_close"):
    """A cashier ends work with `counted` in the till (arqueo)."""

    cashier: UpToSixDigits
    counted: Money
    trace: Trace | UnsetType = UNSET


class SignOff(Message, frozen=True, tag="sign_off"):
    """The terminal leaves in good order; answered, then closed."""

    trace: Trace | UnsetType = UNSET


class Answer(Message, frozen=True, tag="answer"):
    """What red tells a terminal. `instruction` is the only word that decides about cash."""

    code: str
    key: str
    text: str
    trace: int | UnsetType = UNSET
    instruction: str | UnsetType = UNSET
    state: str | UnsetType = UNSET
    original: int | UnsetType = UNSET
    operation: str | UnsetType = UNSET
    authorization: str | UnsetType = UNSET
    business_date: str | UnsetType = UNSET
    amount: int | UnsetType = UNSET
    fee: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    ticket: list[str] | UnsetType = UNSET
    field: str | UnsetType = UNSET
    time: str | UnsetType = UNSET
    expected: int | UnsetType = UNSET
    difference: int | UnsetType = UNSET


class CardChoice(Struct, frozen=True, gc=False):
    """One card of a holder: an opaque reference and a label with at most the last four digits."""

    card: str
    label: str


class HolderAnswer(Message, frozen=True, tag="holder_answer"):
    """Masked holder of `holder`; code 05 where nobody is known."""

    code: str
    trace: int | UnsetType = UNSET
    id: int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    cards: list[CardChoice] | UnsetType = UNSET


class Notice(Message, frozen=True, tag="notice"):
    """Unasked information for the cashiers of a terminal."""

    text: str
    level: str


class Echo(Message, frozen=True, tag="echo"):
    """Are you there?"""

    trace: Trace | UnsetType = UNSET
    id: RequestId | UnsetType = UNSET


class EchoAnswer(Message, frozen=True, tag="echo_answer"):
    """I am."""

    trace: Trace | UnsetType = UNSET
    id: RequestId | UnsetType = UNSET


class Error(Message, frozen=True, tag="error"):
    """A complaint that belongs to no request; 63 carries no proof and ends the connection."""

    code: str
    field: str | UnsetType = UNSET


# ---- red to sicoop -----------------------------------------------------------------------------


class Hold(Message, frozen=True, tag="hold", kw_only=True):
    """Ask for a hold (pignoración) under the idempotency key `reference`."""

    id: RequestId
    reference: Reference
    kind: Kind
    branch: UpToSixDigits
    cashier: UpToSixDigits
    document_type: DocumentType = "CI"
    document: Document | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET
    token: Token | UnsetType = UNSET
    card: CardReference | UnsetType = UNSET
    depositor: Depositor | UnsetType = UNSET
    declaration: Declaration | UnsetType = UNSET
    amount: Amount
    currency: Currency
    sent_at: Instant


class Confirm(Message, frozen=True, tag="confirm"):
    """red has registered the operation: capture the hold."""

    id: RequestId
    reference: Reference
    registered_at: Instant


class Reverse(Message, frozen=True, tag="reverse"):
    """Undo whatever the hold under `reference` may have done; blocks it where it never came."""

    id: RequestId
    reference: Reference
    amount: Amount
    reason: Reason


class AnnulRegistered(Message, frozen=True, tag="annul"):
    """Undo a registered operation by human decision."""

    id: RequestId
    reference: Reference
    amount: Amount
    supervisor: UpToSixDigits


class Status(Message, frozen=True, tag="status"):
    """What do you hold under `reference`?"""

    id: RequestId
    reference: Reference


class StatusAnswer(Message, frozen=True, tag="status_answer"):
    """State of the asked side, and its response code where it has decided."""

    id: int
    state: str
    reference: str | UnsetType = UNSET
    code: str | UnsetType = UNSET


class NetworkHolder(Message, frozen=True, tag="holder"):
    """`holder` on the way from red to sicoop."""

    id: RequestId
    document_type: DocumentType = "CI"
    document: Document | UnsetType = UNSET
    phone: Phone | UnsetType = UNSET


class NetworkAnswer(Message, frozen=True, tag="answer"):
    """sicoop's answer. `key` tells codes apart that share two digits; `name` is masked."""

    id: int
    code: str
    reference: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    operation: str | UnsetType = UNSET
    authorization: str | UnsetType = UNSET
    business_date: str | UnsetType = UNSET
    fee: int | UnsetType = UNSET
    commission: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    name: str | UnsetType = UNSET
    field: str | UnsetType = UNSET
    time: str | UnsetType = UNSET


# ---- sicoop to ceibo (carried by ISO 8583 where they are apart) ---------------------------------


class IssuerHold(Message, frozen=True, tag="issuer_hold"):
    """0100: place a hold. (`network`, `operation`) name it for ever.

    `day` counts days of the business date from 1970-01-01.
    """

    network: str
    operation: str
    kind: Kind
    amount: int
    currency: str
    terminal: str
    branch: str
    cashier: str
    day: int
    document_type: str
    document: str | UnsetType = UNSET
    phone: str | UnsetType = UNSET
    token: str | UnsetType = UNSET
    card: str | UnsetType = UNSET
    depositor: str | UnsetType = UNSET


class IssuerCapture(Message, frozen=True, tag="issuer_capture"):
    """0220: the operation is registered, post the hold."""

    network: str
    operation: str
    kind: Kind
    amount: int
    currency: str = ""


class IssuerRelease(Message, frozen=True, tag="issuer_release"):
    """0420: undo the hold; with reason `annulment` also one that has been captured."""

    network: str
    operation: str
    kind: Kind
    amount: int
    reason: str
    currency: str = ""


class IssuerHolder(Message, frozen=True, tag="issuer_holder"):
    """0600, processing code 330000: the masked holder."""

    document_type: str
    document: str | UnsetType = UNSET
    phone: str | UnsetType = UNSET
    network: str = ""


class IssuerStatus(Message, frozen=True, tag="issuer_status"):
    """0600, from either side: in which state is the operation with you?"""

    network: str
    operation: str


class IssuerAnswer(Message, frozen=True, tag="issuer_answer"):
    """ceibo's decision. `key` is the internal key of the response-code table."""

    code: str
    key: str
    authorization: str = ""
    fee: int = 0
    commission: int = 0
    name: str = ""
    duplicate: bool = False


class IssuerState(Message, frozen=True, tag="issuer_state"):
    """Answer to `IssuerStatus`: 00 and a state of the side asked, or 25 where it knows nothing."""

    code: str
    state: str = ""


TerminalRequest = (
    CashOut
    | Deposit
    | Holder
    | Annul
    | LastOperation
    | Delivered
    | ShiftOpen
    | ShiftClose
    | SignOff
)
NetworkRequest = Hold | Confirm | Reverse | AnnulRegistered | Status | NetworkHolder
