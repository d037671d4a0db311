"""Oracle of one-time passwords in plain Python (hmac, hashlib): RFC 4226, 6238, 6287."""

import hashlib
import hmac
from collections.abc import Sequence


def truncate(mac: bytes, digits: int) -> str:
    """Dynamic truncation, RFC 4226 §5.3."""
    offset = mac[-1] & 15
    value = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFFFFFF
    return str(value % 10**digits).zfill(digits)


def hotp(key: bytes, counter: int, *, digits: int = 6, algorithm: str = "sha1") -> str:
    return truncate(hmac.digest(key, counter.to_bytes(8, "big"), algorithm), digits)


def totp(
    key: bytes, time_s: int, *, step_s: int = 60, digits: int = 6, algorithm: str = "sha256"
) -> str:
    return hotp(key, time_s // step_s, digits=digits, algorithm=algorithm)


def question_field(question: str, kind: str) -> bytes:
    if kind == "A":
        field = question.encode()
    else:
        half_bytes = question if kind == "H" else f"{int(question):x}"
        field = bytes.fromhex(half_bytes + "0" * (len(half_bytes) % 2))
    return field + bytes(128 - len(field))


def ocra(
    suite: str, key: bytes, *, question: str, counter: int | None = None, pin: str | None = None,
    timestep: int | None = None,
) -> str:  # fmt: skip
    """RFC 6287, for suites without session data."""
    _, function, inputs = suite.split(":")
    _, algorithm, digits = function.split("-")
    message = suite.encode() + b"\0"
    for part in inputs.split("-"):
        if part == "C":
            assert counter is not None
            message += counter.to_bytes(8, "big")
        elif part[0] == "Q":
            message += question_field(question, part[1])
        elif part[0] == "P":
            assert pin is not None
            message += hashlib.new(part[1:].lower(), pin.encode()).digest()
        else:
            assert timestep is not None
            message += timestep.to_bytes(8, "big")
    return truncate(hmac.digest(key, message, algorithm.lower()), int(digits))


def judge(
    codes: Sequence[dict[int, str]], code: str, now: int, back: int, forward: int, probe: int
) -> list[tuple[int, int]]:
    """What `SeedVault.match` must answer, given the codes of every step, seed by seed."""
    inside = range(max(0, now - back), now + forward + 1)
    around = range(max(0, now - probe), now + probe + 1)
    hits = [max((s for s in inside if each[s] == code), default=None) for each in codes]
    if any(step is not None for step in hits):
        return [(0, 0) if step is None else (1, step) for step in hits]
    late = [max((s for s in around if each[s] == code), default=None) for each in codes]
    return [(0, 0) if step is None else (2, step) for step in late]
