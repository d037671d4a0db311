"""Errors: what the network's answers mean, and the codes a bank gives its own reasons."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SUCCESS = 0
SERVER_ERROR = 99
FIELD_UNCHANGEABLE = 116
HASH_INVALID = 115
DUPLICATE = 122
BANK_CODES = range(300, 400)
DEFAULT = "default"
DEFAULT_CODES: Mapping[str, int] = MappingProxyType({"account-inactive": 307, DEFAULT: 314})

MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        0: "success", 99: "unexpected server error", 100: "no permission", 102: "invalid labels",
        104: "invalid handle", 106: "invalid source", 107: "invalid target", 108: "invalid symbol",
        109: "invalid amount", 110: "action type not supported",
        111: "rejection reason not defined", 112: "not enough balance", 113: "keys not available",
        115: "invalid action hash", 116: "field may not be changed", 118: "schema validation",
        121: "not found", 122: "duplicate", 123: "business rule broken",
        136: "technical or configuration", 307: "account inactive", 314: "general bank error",
    }
)  # fmt: skip

_NOT_OK_STATES = frozenset(("REJECT", "REJECTED", "ERROR"))


def bank_code(reason: str, codes: Mapping[str, int]) -> int:
    """The code of a refusal's reason; the default one where it has none of its own."""
    return codes.get(reason, codes.get(DEFAULT, DEFAULT_CODES[DEFAULT]))


def error_body(code: int, message: str) -> dict[str, Any]:
    """The body that goes with every refusal."""
    return {"error": {"code": code, "message": message}}


def _code(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) else None


def error_code(body: Any) -> int | None:
    """The code inside a body, None where there is none."""
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if isinstance(error, dict):
        return _code(error.get("code"))
    return _code(body.get("code")) if "labels" not in body else None


def classify(http: int, body: Any) -> tuple[bool, int | None]:
    """Return whether an answer is a success, and its code if it has one.

    Refusals come with an HTTP error, with a code in a good answer, or as a rejected state.

    Args:
        http: status of the answer.
        body: the decoded body, or None.
    """
    code = error_code(body)
    if http >= 400 or not isinstance(body, dict) or code not in (None, SUCCESS):
        return False, code
    labels = body.get("labels")
    status = labels.get("status") if isinstance(labels, dict) else None
    return not (isinstance(status, str) and status in _NOT_OK_STATES), code
