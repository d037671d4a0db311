"""What a platform must have for its certification: a network with terminals, persons, cards.

    terminals    two or more of the network, in one branch
    9000001 …    documents of the simulator profile, one card each; 9000013 and 9000014 have two
    5000001 …    CARDS persons with one card each, balance BALANCE
    5900001      one person with a card whose codes are bound to the amount (`ocra`)

The seed of every card is K32 of the vectors, but for the second card of 9000013. The platform runs
in the simulator profile: amounts ending in 00 are approved, other endings choose the code.
"""

import itertools
from typing import Any, Final

from core_ext._mac import ocra, totp
from switch.ops.keys import OCRA_SUITE, base32
from switch.simulators.magic import DOCUMENT_FIRST, Magic

SEED: Final = b"12345678901234567890123456789012"
OTHER_SEED: Final = b"98765432109876543210987654321098"
STEP_S: Final = 60
CARD_FIRST: Final = 5_000_001
CARDS: Final = 90
OCRA_DOCUMENT: Final = "5900001"
BALANCE: Final = 1_000_000


def cards() -> list[dict[str, Any]]:
    """Values of `card_add` for every card."""
    documents = [str(CARD_FIRST + n) for n in range(CARDS)]
    documents += [document(name) for name in Magic if name is not Magic.UNKNOWN_PERSON]
    documents.append(document(Magic.TWO_CARDS_SAME_CODE))
    made = [{"document": d, "seed": base32(SEED)} for d in documents]
    two = document(Magic.TWO_CARDS_DIFFERENT_CODES)
    made.append({"document": two, "seed": base32(OTHER_SEED)})
    made.append({"document": OCRA_DOCUMENT, "seed": base32(SEED), "token_mode": "ocra"})
    return [values | {"name": "CERTIFICACION", "balance": BALANCE} for values in made]


def document(name: Magic) -> str:
    """The document that chooses a behaviour."""
    return str(DOCUMENT_FIRST + name - 1)


def code(time_s: float, away: int = 0) -> str:
    """The code that a holder's app shows, or did so many steps ago (negative)."""
    return totp(SEED, int(time_s) + away * STEP_S)


def wrong(time_s: float) -> str:
    """A code that no step near now has."""
    near = {code(time_s, away) for away in range(-20, 21)}
    return next(text for n in itertools.count() if (text := f"{n:06}") not in near)


def bound_code(time_s: float, amount: int) -> str:
    """The code of a cash_out of this amount."""
    return ocra(OCRA_SUITE, SEED, question=f"1{amount:09}", timestep=int(time_s) // STEP_S)
