"""What a run came to, as it is kept: JSON for programs, HTML for people, a signature over both.

    certification_<side>_<network>_<time>.json   the report
    certification_<side>_<network>_<time>.html   the same, to read and to print
    certification_<side>_<network>_<time>.sig    Ed25519 over both, detached

The signature covers the digests of both files. Its key is derived from the master key of the node
that ran the pack, so only the public key has to be kept by those who check reports.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct, field

from switch.ops.keys import MasterKey
from switch.reports.daily_file import sync_directory

FORMAT: Final = 1
REPORT_BYTES_MAX: Final = 64 << 20
SIGNATURE_BYTES_MAX: Final = 64 << 10
SIGNED: Final = (".json", ".html")
SIGNATURE: Final = ".sig"

PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_PLAYED: Final = "not played"
INCOMPLETE: Final = "incomplete"

Verdict = Literal["passed", "failed", "not played"]


class Exchange(Struct):
    """One message, masked. `at_ms` counts from the start of its case."""

    at_ms: int
    way: str
    message: dict[str, Any]


class Check(Struct):
    """One thing that was expected, and what came."""

    what: str
    expected: str
    came: str
    ok: bool


class CaseReport(Struct):
    """One case. `began_s` counts from the start of the run."""

    id: str
    title: str
    verdict: Verdict = "not played"
    reason: str = ""
    began_s: float = 0.0
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)


class Report(Struct):
    """A run. Times are UTC.

    Fields:
        verdict: `passed` only where every case of the pack was played and passed; `incomplete`
            where none failed and some were not played.
        settings: the budgets and addresses that it was run with.
    """

    format: int
    product: str
    network: str
    side: str
    candidate: str
    began: str
    ended: str
    seconds: float
    verdict: str
    passed: int
    failed: int
    not_played: int
    settings: dict[str, Any]
    cases: list[CaseReport]

    @property
    def ok(self) -> bool:
        return self.verdict == PASSED


class CheckFailed(ValueError):
    """A report that is not what was signed; says which part."""


class Signature(Struct, forbid_unknown_fields=True):
    """The detached signature: `sha256` by the suffix of the file it is of."""

    algorithm: Literal["ed25519"]
    public_key: str
    sha256: dict[str, str]
    signature: str


def verdict_of(cases: list[CaseReport]) -> str:
    verdicts = {case.verdict for case in cases}
    if FAILED in verdicts:
        return FAILED
    return INCOMPLETE if NOT_PLAYED in verdicts else PASSED


def signing_key(master: MasterKey) -> Ed25519PrivateKey:
    """The key that reports of this node are signed with."""
    return Ed25519PrivateKey.from_private_bytes(master.subkey("certification"))


def public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def write(directory: Path, name: str, report: Report, key: Ed25519PrivateKey) -> list[Path]:
    """Write report, page and signature, each whole or not at all; returns their paths.

    Raises: FileExistsError: a report is never overwritten. OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        ".json": msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n",
        ".html": html(report).encode(),
    }
    digests = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in contents.items()}
    signed = Signature(
        "ed25519", public_hex(key), digests, key.sign(_signed_bytes(name, digests)).hex()
    )
    contents[SIGNATURE] = _signature_bytes(signed)
    paths = []
    for suffix, data in contents.items():
        path = directory / (name + suffix)
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        paths.append(path)
    sync_directory(directory)
    return paths


def _signature_bytes(signed: Signature) -> bytes:
    return msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n"


def _signed_bytes(name: str, digests: dict[str, str]) -> bytes:
    """What is signed: the name too, so that one report cannot pass for another."""
    lines = [f"troncal certification {FORMAT}", name]
    lines += [f"{suffix} {digests[suffix]}" for suffix in SIGNED]
    return "\n".join(lines).encode()


def check(path: Path, public_key: Ed25519PublicKey) -> Report:
    """Verify a report against the key of whoever made it.

    Args:
        path: of the JSON, the HTML or the signature; the others are beside it.

    Raises:
        CheckFailed: it is not what was signed by that key. OSError: a file is missing.
    """
    base = path.with_suffix("")
    try:
        read = _bounded(base.with_name(base.name + SIGNATURE), SIGNATURE_BYTES_MAX)
        signed = msgspec.json.decode(read, type=Signature)
        signature = bytes.fromhex(signed.signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise CheckFailed("the signature is not readable") from None
    if set(signed.sha256) != set(SIGNED) or read != _signature_bytes(signed):
        raise CheckFailed("the signature is not as it was written")
    try:
        public_key.verify(signature, _signed_bytes(base.name, signed.sha256))
    except InvalidSignature:
        raise CheckFailed("the signature is not by that key, or not of this report") from None
    if signed.public_key != public_key.public_bytes_raw().hex():
        raise CheckFailed("the signature names another key")
    found = {s: _bounded(base.with_name(base.name + s), REPORT_BYTES_MAX) for s in SIGNED}
    for suffix, data in found.items():
        if hashlib.sha256(data).hexdigest() != signed.sha256[suffix]:
            raise CheckFailed(f"{base.name}{suffix} was changed after it was signed")
    return msgspec.json.decode(found[".json"], type=Report)


def _bounded(path: Path, bytes_max: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise CheckFailed(f"{path.name} is larger than {bytes_max} bytes")
    return data


def html(report: Report) -> str:
    """The report as a page of its own: nothing is loaded, nothing runs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("switch.web", "templates/certification"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pairs"] = _pairs
    return environment.get_template("report.html").render(report=report)


def _pairs(message: dict[str, Any]) -> str:
    """A message in one line: `op=cash_out amount=50000`."""
    return " ".join(f"{name}={_shown(value)}" for name, value in message.items())


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return msgspec.json.encode(value).decode()
