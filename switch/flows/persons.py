"""Acts that take two persons: who they are, why they did it, and what they enclosed. Pure."""

import re
from typing import Final

from msgspec import Struct

REASON_CHARS_MAX: Final = 200
_PERSON = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@ -]{0,31}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._ -]{0,99}", re.ASCII)


class Signed(Struct, frozen=True):
    """Who answers for an act. `evidence` names the enclosed file, kept under its SHA-256."""

    author: str
    second: str
    reason: str
    evidence: str = ""
    evidence_sha256: str = ""


def name(person: str) -> str:
    """Return the name of an operator in normal form. Raises: ValueError."""
    found = person.strip().lower()
    if not _PERSON.fullmatch(found):
        raise ValueError("a person is named by 1 to 32 letters and digits")
    return found


def words(reason: str) -> str:
    """Return a reason without blanks around it. Raises: ValueError."""
    found = reason.strip()
    if not 1 <= len(found) <= REASON_CHARS_MAX or not found.isprintable():
        raise ValueError(f"a reason of 1 to {REASON_CHARS_MAX} characters is needed")
    return found


def signed(signature: Signed, *, evidence: bool = False) -> Signed:
    """Check a signature and return it in normal form.

    Args:
        evidence: something must be enclosed.

    Raises:
        ValueError: one person missing, twice the same, no reason, or nothing enclosed.
    """
    author, second = name(signature.author), name(signature.second)
    if author == second:
        raise ValueError("author and second must be two persons")
    reason = words(signature.reason)
    enclosed = bool(signature.evidence or signature.evidence_sha256)
    if evidence and not enclosed:
        raise ValueError("evidence must be enclosed")
    if enclosed and not (
        _FILE_NAME.fullmatch(signature.evidence) and _SHA256.fullmatch(signature.evidence_sha256)
    ):
        raise ValueError("evidence is a file name and the SHA-256 of its content")
    return Signed(author, second, reason, signature.evidence, signature.evidence_sha256)
