"""What becomes of a payment: by its result, the shop's answer and when that was complete.

ACK in time         RESPUESTA 0 stands, another is declined
anything else       RESPUESTA 0 is reversed, another is declined and nobody has heard of it
"""

from typing import Final, Literal, NamedTuple

from protocols.webpay.bitacora import OUTCOMES

ShopAnswer = Literal["ACK", "ERR", "BAD", "NONE"]
Cause = Literal["", "REJECTED", "NO_ANSWER", "BAD_ANSWER", "RECOVERY"]

ACK_MS_MAX: Final = 30_000
"""From the moment the result is known; an answer complete at exactly this is in time."""

_CAUSES: Final[dict[str, Cause]] = {
    "ERR": "REJECTED", "BAD": "BAD_ANSWER", "NONE": "NO_ANSWER",
}  # fmt: skip


class Decision(NamedTuple):
    """How a payment ends.

    Attributes:
        prefix: of its line in the Bitácora.
        outcome: CONFIRMED, DECLINED, DECLINED_UNACKED or REVERSED.
        cause: of a missing ACK; empty where it is there.
        reversal: a reversal is owed.
    """

    prefix: str
    outcome: str
    cause: Cause
    charged: bool
    reversal: bool

    @property
    def page(self) -> str:
        return "EXITO" if self.outcome == "CONFIRMED" else "FRACASO"


def decide(
    respuesta: int, answer: ShopAnswer, elapsed_ms: float | None, *, limit_ms: int = ACK_MS_MAX
) -> Decision:
    """Decide by the answer; one that came late, or never (`elapsed_ms` None), is none."""
    timely = answer if elapsed_ms is not None and elapsed_ms <= limit_ms else "NONE"
    return _decision(respuesta, "" if timely == "ACK" else _CAUSES[timely])


def recovered(respuesta: int) -> Decision:
    """Decide after a restart: whatever the shop may have said is not known."""
    return _decision(respuesta, "RECOVERY")


def _decision(respuesta: int, cause: Cause) -> Decision:
    prefix = "ERR" if cause else "ACK"
    outcome = OUTCOMES[prefix, respuesta == 0]
    return Decision(prefix, outcome.name, cause, outcome.charged, outcome.reversed)
