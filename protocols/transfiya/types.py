"""Typed views of the network's records, for deciding. Unknown fields are no fault.

A view drops what it does not know, so nothing that is hashed, signed or echoed comes from here:
for that there is the untyped value (`stable.decode`).
"""

from typing import Any

import msgspec
from msgspec import Struct, field


class Party(Struct, frozen=True):
    """A wallet or a signer, as frozen into a snapshot."""

    handle: str | None = None
    default: str | None = None


class Side(Struct, frozen=True):
    """One side of an action: its alias and the true party."""

    wallet: Party | None = None
    signer: Party | None = None


class Snapshot(Struct, frozen=True):
    """The parties of an action as they were resolved."""

    source: Side | None = None
    target: Side | None = None
    symbol: Side | None = None


class Labels(Struct, frozen=True):
    """What an action says of itself. Words of `status` that are not known are kept."""

    type: str | None = None
    status: str | None = None
    tx_ref: str | None = None
    tx_id: str | None = None
    domain: str | None = None
    initiated: str | None = None


class Action(Struct, frozen=True):
    """One action, or a transfer, which has the same outline.

    `amount` is decimal text; anything else is kept to be refused as an amount.
    """

    action_id: str | None = None
    source: str | None = None
    target: str | None = None
    symbol: str | None = None
    amount: Any = None
    labels: Labels = field(default_factory=Labels)
    snapshot: Snapshot | None = None
    tx_ref: str | None = None

    def signer(self, side: str) -> str | None:
        """The true party of `source`, `target` or `symbol`, None where the snapshot lacks it."""
        part: Side | None = getattr(self.snapshot, side, None)
        return part.signer.handle if part is not None and part.signer is not None else None

    @property
    def reference(self) -> str | None:
        """The transfer's reference, wherever it stands."""
        return self.labels.tx_ref or self.tx_ref


class ShapeError(ValueError):
    """A body whose known fields have the wrong types."""


def action_of(value: Any) -> Action:
    """Return the view of a decoded body.

    Raises:
        ShapeError: no object, or a known field of the wrong type.
    """
    try:
        return msgspec.convert(value, Action)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ShapeError("a field of the wrong type") from error
