"""Messages of the demo protocol: an authorization request and its reply."""

from enum import StrEnum

from msgspec import Struct


class ResponseCode(StrEnum):
    """One ASCII digit on the wire."""

    APPROVED = "0"
    DECLINED = "1"
    INSUFFICIENT_FUNDS = "3"


class AuthorizationRequest(Struct, frozen=True, gc=False):
    """A request to hold funds (MTI 0100).

    Fields:
        stan: systems trace audit number, 1..999_999, unique per terminal and day.
        card: 64-bit token standing for the card number.
        amount_minor: amount to hold, in minor units, 1..999_999_999_999.
        currency: ISO 4217 numeric code, 1..999, e.g. 600.
        terminal: eight printable ASCII characters, blanks kept.
    """

    stan: int
    card: int
    amount_minor: int
    currency: int
    terminal: str


class AuthorizationReply(Struct, frozen=True, gc=False):
    """The decision (MTI 0110).

    Fields:
        stan: of the request.
        code: what was decided.
    """

    stan: int
    code: ResponseCode


Message = AuthorizationRequest | AuthorizationReply
