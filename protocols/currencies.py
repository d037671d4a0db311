"""Currencies of ISO 4217, as far as the switch knows them: by letters and by number (DE49)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Currency(NamedTuple):
    """A currency of ISO 4217.

    Attributes:
        code: alphabetic code.
        number: numeric code, three digits.
        exponent: decimal places of the minor unit; amounts are integers in that unit.
        symbol: ASCII, for tickets and screens.
    """

    code: str
    number: str
    exponent: int
    symbol: str


CURRENCIES: Final[Mapping[str, Currency]] = MappingProxyType(
    {
        row.code: row
        for row in (
            Currency("ARS", "032", 2, "AR$"),
            Currency("BOB", "068", 2, "Bs."),
            Currency("BRL", "986", 2, "R$"),
            Currency("CLP", "152", 0, "CLP$"),
            Currency("COP", "170", 2, "COL$"),
            Currency("CRC", "188", 2, "CRC"),
            Currency("CUP", "192", 2, "CUP$"),
            Currency("DOP", "214", 2, "RD$"),
            Currency("GTQ", "320", 2, "Q"),
            Currency("HNL", "340", 2, "L"),
            Currency("MXN", "484", 2, "MX$"),
            Currency("NIO", "558", 2, "C$"),
            Currency("PAB", "590", 2, "B/."),
            Currency("PEN", "604", 2, "S/"),
            Currency("PYG", "600", 0, "Gs."),
            Currency("SVC", "222", 2, "SVC"),
            Currency("USD", "840", 2, "US$"),
            Currency("UYU", "858", 2, "$U"),
            Currency("VES", "928", 2, "Bs.D"),
        )
    }
)
"""Every currency by its alphabetic code."""

BY_NUMBER: Final[Mapping[str, Currency]] = MappingProxyType(
    {row.number: row for row in CURRENCIES.values()}
)
"""Every currency by its numeric code."""
