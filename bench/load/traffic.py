"""What terminals send in a load: mixes of operations, ready to be sent.

A mix is written as `cash_out=50,deposit=20,confirm=20,last_operation=10`: shares of the requests,
whatever their sum. `confirm` is the mark that the cash has changed hands (`delivered`).

Traces and the operations that later requests name are left to the native client (`"trace":0`,
`"original":0`): every terminal counts its own.
"""

import random
import time
from collections.abc import Sequence

from bench.load.directory import AMOUNT, CASHIER
from core_ext._mac import totp

Card = tuple[str, bytes]  # document of the holder, seed

DEPOSIT_AMOUNT = 10_000
KINDS = ("cash_out", "deposit", "confirm", "last_operation", "holder")
CASH_OUT_ONLY = "cash_out=1"
COUNTER = "cash_out=40,deposit=20,confirm=30,last_operation=5,holder=5"
"""A day at the counter: every payment is marked, some are asked about."""


def shares(mix: str) -> dict[str, float]:
    """The shares of a mix by kind. Raises ValueError for a kind or a number that is none."""
    found: dict[str, float] = {}
    for part in mix.split(","):
        kind, _, share = part.strip().partition("=")
        if kind not in KINDS or kind in found:
            raise ValueError(f"{kind!r} is no kind of request: {', '.join(KINDS)}")
        found[kind] = float(share or 1)
        if found[kind] < 0:
            raise ValueError("shares of a mix are not negative")
    if not sum(found.values()) > 0:
        raise ValueError("a mix needs a request")
    return found


def cards_needed(mix: str, count: int) -> int:
    """How many cards `requests` uses up for so many requests, and never fewer than one."""
    of = shares(mix)
    return max(1, kinds(mix, count).count("cash_out")) if of.get("cash_out") else 1


def kinds(mix: str, count: int, seed: int = 1) -> list[str]:
    """Kinds of so many requests, in an order that depends on the seed alone.

    What asks about an operation comes only after there is one.
    """
    of = shares(mix)
    if len(of) == 1:
        return list(of) * count
    return random.Random(seed).choices(list(of), list(of.values()), k=count)


def requests(cards: Sequence[Card], mix: str, count: int, *, seed: int = 1) -> list[bytes]:
    """So many requests of a mix as payloads, with the codes of this moment.

    Each card makes one cash_out, since it can make only one in a step of its code; deposits and
    questions go round.

    Raises ValueError where there are fewer cards than cash_outs.
    """
    now_s = int(time.time())
    unused = iter(cards)
    made = []
    for index, kind in enumerate(kinds(mix, count, seed)):
        if kind == "cash_out":
            card = next(unused, None)
            if card is None:
                raise ValueError("there are fewer cards than cash_outs")
            made.append(cash_out(card, now_s))
        else:
            made.append(_other(kind, cards[index % len(cards)][0]))
    return made


def cash_out(card: Card, now_s: int, trace: int = 0) -> bytes:
    """A cash_out with the code of that second."""
    document, seed = card
    return (
        b'{"op":"cash_out","trace":%d,"cashier":"%b","document":"%b","token":"%b",'
        b'"amount":%d,"currency":"PYG"}'
        % (trace, CASHIER.encode(), document.encode(), totp(seed, now_s).encode(), AMOUNT)
    )


def _other(kind: str, document: str) -> bytes:
    if kind == "deposit":
        return (
            b'{"op":"deposit","trace":0,"cashier":"%b","document":"%b","amount":%d,'
            b'"currency":"PYG"}' % (CASHIER.encode(), document.encode(), DEPOSIT_AMOUNT)
        )
    if kind == "confirm":
        return b'{"op":"delivered","trace":0,"original":0}'
    if kind == "last_operation":
        return b'{"op":"last_operation","trace":0,"original":0}'
    return b'{"op":"holder","trace":0,"document":"%b"}' % document.encode()
