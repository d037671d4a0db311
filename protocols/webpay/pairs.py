"""Ordered lists of `NAME=VALUE`, joined by `#`: the clear form of all messages of KCC 6.0.

Order is part of what is signed. Text stands for bytes, Latin-1, one character each.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal

MESSAGE_BYTES_MAX: Final = 4096
UNSIGNED: Final = frozenset(("TBK_MAC", "TBK_CODIGO_COMERCIO"))

Pairs = tuple[tuple[str, str], ...]

_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]+")
_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,39}")


class PairsError(ValueError):
    """The bytes are no pair list.

    Attributes:
        tag: `PAIRS`, or `DUPLICATE_NAME` where a name occurs twice.
    """

    def __init__(self, tag: Literal["PAIRS", "DUPLICATE_NAME"]) -> None:
        super().__init__(tag)
        self.tag = tag


def parse_pairs(data: bytes) -> Pairs:
    """Read a pair list of 1 to 4096 bytes, 0x20 to 0x7E each; the first `=` of a piece divides.

    Raises:
        PairsError: it is none, or repeats a name. What repeats comes after what is malformed.
    """
    if len(data) > MESSAGE_BYTES_MAX or not _PRINTABLE.fullmatch(data):
        raise PairsError("PAIRS")
    found: list[tuple[str, str]] = []
    for piece in data.decode("ascii").split("#"):
        name, equals, value = piece.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise PairsError("PAIRS")
        found.append((name, value))
    if len({name for name, _ in found}) < len(found):
        raise PairsError("DUPLICATE_NAME")
    return tuple(found)


def join_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Write a pair list.

    Raises:
        UnicodeEncodeError: a character above U+00FF.
    """
    return "#".join(f"{name}={value}" for name, value in pairs).encode("latin-1")


def signed_bytes(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The bytes under a signature: all pairs in order, but the MAC and the merchant's code."""
    return join_pairs(pair for pair in pairs if pair[0] not in UNSIGNED)
