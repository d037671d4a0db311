"""Tables of the read model that belong to one product each.

A module `switch/journal/projections/<product>.py` holds one `PROJECTION`; it is read where the
product's section is enabled.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

from switch.config import Config

PRODUCTS = ("webpay", "transfiya", "cip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """How records of a product become rows.

    Attributes:
        schema: `CREATE TABLE IF NOT EXISTS …` of its tables and indexes, each `STRICT`, with a
            primary key: a row replaces the one before it.
        columns: how many each of its tables has.
        spaces: of the record store, whose records it reads.
        rows: (space, key, value) of a record to (table, a name unique in it, row); pure. What may
            not be seen in the read model is masked here.
    """

    schema: str
    columns: Mapping[str, int]
    spaces: frozenset[int]
    rows: Callable[[int, bytes, bytes], Iterable[tuple[str, Any, tuple[Any, ...]]]]


def projections(config: Config) -> list[Projection]:
    """Those of the products that are enabled."""
    found = []
    for product in PRODUCTS:
        section = getattr(config, product, None)
        name = f"{__name__}.{product}"
        if section is not None and section.enabled and util.find_spec(name) is not None:
            found.append(import_module(name).PROJECTION)
    return found
