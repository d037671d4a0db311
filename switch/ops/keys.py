"""The master key and what it protects: peer keys, card seeds, and the keys derived for one purpose.

    master key (32 bytes, never used itself for encryption)
      HKDF-SHA-256, info "troncal/1/<purpose>"
        peer-keys     seals keys of networks, terminals and hosts
        card-seeds    seals seeds of one-time codes; the key of the native SeedVault
        fingerprint   keys digests of request bodies and of unknown identifiers
        ticket        MAC of the control on tickets
        vale          MAC under which vouchers are stored
        conciliation  MAC of documents in the daily file
        product-keys  seals private keys of the key store
        certification signs reports of the certification pack (seed of an Ed25519 key)
        check         the check value that tells one master key from another

A sealed secret is nonce(12) ‖ ciphertext ‖ tag(16), AES-256-GCM under the sub-key of its purpose,
with purpose and owner as associated data: a blob moved to another owner does not open. Nonces are
random; one sub-key is good for 2^32 of them (NIST SP 800-38D §8.3), a seal per provisioning act.

Python cannot wipe memory, so the long-lived keys are handed to native objects (MacKey, SeedVault)
that lock and zero theirs; here nothing shows a secret: not repr, not errors, not pickles.
"""

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NoReturn
from urllib.parse import quote, urlencode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
FILE_BYTES_MAX: Final = 256
"""A master key file is 64 hex digits and a line end; more is some other file."""

ENVIRONMENT: Final = "TRONCAL_MASTER_KEY"
OCRA_SUITE: Final = "OCRA-1:HOTP-SHA256-8:QN10-T1M"

Purpose = Literal[
    "peer-keys", "card-seeds", "fingerprint", "ticket", "vale", "conciliation", "product-keys",
    "certification",
]  # fmt: skip
PURPOSES: Final[tuple[Purpose, ...]] = (
    "peer-keys",
    "card-seeds",
    "fingerprint",
    "ticket",
    "vale",
    "conciliation",
    "product-keys",
    "certification",
)


RETAINED: Final[tuple[Purpose, ...]] = ("fingerprint", "ticket", "vale", "conciliation")
"""Purposes whose key stays when the master key is rotated: what was made under it must be known
again (repeats, tickets, vouchers, documents in daily files) and is nowhere stored sealed."""


class MasterKeyError(Exception):
    """The master key is missing, malformed or badly kept.

    Attributes:
        hint: what to do about it, for the command line.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class UnsealError(ValueError):
    """A sealed secret does not open: other master key, other owner, or damaged."""

    def __init__(self) -> None:
        super().__init__("sealed secret does not open under this master key for this owner")


class MasterKey:
    """The node's root secret. Made by `load`, `create` or from 32 bytes; cannot be pickled.

    Args:
        key: 32 bytes.
    """

    __slots__ = ("_ciphers", "_key", "_subkeys")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self._key = bytes(key)
        self._subkeys: dict[str, bytes] = {}
        self._ciphers: dict[str, AESGCM] = {}

    @classmethod
    def load(cls, path: Path, environ: Mapping[str, str] = os.environ) -> "MasterKey":
        """Read the key from TRONCAL_MASTER_KEY (hex) or else from the file at `path`.

        Raises:
            MasterKeyError: missing, not 64 hex digits, or open to others; with a hint.
        """
        text = environ.get(ENVIRONMENT)
        if text is not None:
            return cls(_from_hex(text, ENVIRONMENT))
        return cls(_from_hex(_read_private(path), str(path)))

    @classmethod
    def create(cls, path: Path) -> "MasterKey":
        """Make a new key and its file (mode 0600), durable on return.

        Raises:
            MasterKeyError: the file is there already; a key is never overwritten.
            OSError: it cannot be written.
        """
        key = secrets.token_bytes(KEY_BYTES)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError:
            raise MasterKeyError(
                f"{path} exists", "keep it: everything sealed under it is lost without it"
            ) from None
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # whatever the umask took or left
            file.write(key.hex().encode() + b"\n")
            file.flush()
            os.fsync(fd)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return cls(key)

    def __repr__(self) -> str:
        return f"MasterKey(check={self.check_value!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a master key cannot be pickled or copied")

    @property
    def check_value(self) -> str:
        """Eight hex digits that tell this key from another and give nothing away; may be logged."""
        return self._derived("check")[:4].hex()

    def subkey(self, purpose: Purpose) -> bytes:
        """Return the 32-byte key of a purpose; always the same for one master key.

        Raises:
            ValueError: the purpose is unknown.
        """
        if purpose not in PURPOSES:
            raise ValueError(f"unknown purpose {purpose!r}")
        return self._derived(purpose)

    def seal_subkey(self, of: "MasterKey", purpose: Purpose) -> bytes:
        """Seal the key of a purpose that another master key has, for `retain`."""
        return self.seal(of.subkey(purpose), purpose="peer-keys", owner=f"retained:{purpose}")

    def retain(self, purpose: Purpose, sealed: bytes) -> None:
        """Go on with the key that a purpose had under an earlier master key.

        Raises:
            UnsealError: `sealed` is not what `seal_subkey` made for this purpose.
        """
        assert purpose in RETAINED
        key = self.open(sealed, purpose="peer-keys", owner=f"retained:{purpose}")
        self._subkeys[purpose] = key

    def seal(self, secret: bytes, *, purpose: Purpose, owner: str) -> bytes:
        """Encrypt a secret for one owner: nonce ‖ ciphertext ‖ tag, 28 bytes longer.

        Args:
            owner: who it belongs to, such as `terminal:00000017:1` or a card's id.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher(purpose).encrypt(nonce, secret, associated(purpose, owner))

    def open(self, sealed: bytes, *, purpose: Purpose, owner: str) -> bytes:
        """Decrypt what `seal` made for this purpose and owner.

        Raises:
            UnsealError: it was not made under this key for this purpose and owner.
        """
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise UnsealError
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher(purpose).decrypt(nonce, rest, associated(purpose, owner))
        except InvalidTag:
            raise UnsealError from None

    def _derived(self, purpose: str) -> bytes:
        found = self._subkeys.get(purpose)
        if found is None:
            info = f"troncal/1/{purpose}".encode()
            found = HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self._key)
            self._subkeys[purpose] = found
        return found

    def _cipher(self, purpose: Purpose) -> AESGCM:
        found = self._ciphers.get(purpose)
        if found is None:
            found = self._ciphers[purpose] = AESGCM(self.subkey(purpose))
        return found


def associated(purpose: Purpose, owner: str) -> bytes:
    """Return the associated data of a sealed secret; SeedVault needs it for `card-seeds`.

    A purpose has no NUL in it, so no two pairs give the same bytes.
    """
    return f"{purpose}\0{owner}".encode()


def reseal(old: MasterKey, new: MasterKey, sealed: bytes, *, purpose: Purpose, owner: str) -> bytes:
    """Return a sealed secret under another master key, for its rotation.

    Raises:
        UnsealError: it does not open under `old`.
    """
    return new.seal(old.open(sealed, purpose=purpose, owner=owner), purpose=purpose, owner=owner)


def generate_peer_key() -> bytes:
    """Return 32 random bytes for a network, a terminal or a host."""
    return secrets.token_bytes(KEY_BYTES)


def generate_seed(algorithm: str = "sha256") -> bytes:
    """Return a random seed as long as the hash of its algorithm (RFC 6238 §5.1): 20 or 32 bytes."""
    return secrets.token_bytes(hashlib.new(algorithm).digest_size)


def base32(seed: bytes) -> str:
    """Return a seed as enrolment shows it: base32 without padding."""
    return base64.b32encode(seed).decode().rstrip("=")


def from_base32(text: str) -> bytes:
    """Read a seed typed by people: case, blanks, hyphens and padding do not matter.

    Raises:
        ValueError: not base32, or empty; without the text.
    """
    plain = text.replace(" ", "").replace("-", "").rstrip("=").upper()
    try:
        seed = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except (binascii.Error, ValueError):
        seed = b""
    if not seed:
        raise ValueError("not a base32 seed")
    return seed


def otpauth_uri(
    seed: bytes,
    *,
    account: str,
    issuer: str,
    mode: Literal["totp", "ocra"] = "totp",
    algorithm: str = "sha256",
    digits: int = 6,
    period_s: int = 60,
    suite: str = OCRA_SUITE,
) -> str:
    """Return the enrolment URI of a seed, as authenticator apps read it from a QR code.

    `otpauth://totp/Issuer:account?secret=…&issuer=…&algorithm=SHA256&digits=6&period=60`, the form
    that Google Authenticator made common. There is none for RFC 6287, so `ocra` has the suite in
    place of the parameters it fixes: `otpauth://ocra/Issuer:account?secret=…&issuer=…&suite=…`.
    The result is as secret as the seed: shown once, never logged.
    """
    parameters = {"secret": base32(seed), "issuer": issuer}
    if mode == "totp":
        parameters |= {
            "algorithm": algorithm.upper(),
            "digits": str(digits),
            "period": str(period_s),
        }
    else:
        parameters["suite"] = suite
    # A colon in a part would end the issuer early, so it is escaped; quote_via: blanks as %20.
    label = f"{quote(issuer, safe='')}:{quote(account, safe='')}"
    return f"otpauth://{mode}/{label}?{urlencode(parameters, quote_via=quote)}"


def _from_hex(text: str, source: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise MasterKeyError(
            f"{source} does not hold a master key",
            f"it must be {2 * KEY_BYTES} hex digits; restore it from your backup of the key",
        ) from None
    return key


def _read_private(path: Path) -> str:
    """Read a small file that nobody else may read; what is checked is the file that is read."""
    try:
        # O_NONBLOCK: a pipe in its place must not keep the node from starting.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MasterKeyError(
            f"{path} cannot be read: {error.strerror}",
            f"`troncal init` makes it; or set {ENVIRONMENT} to {2 * KEY_BYTES} hex digits",
        ) from None
    try:
        _check_private(path, os.fstat(fd))
        return os.read(fd, FILE_BYTES_MAX).decode("ascii", "replace")
    finally:
        os.close(fd)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise MasterKeyError(f"{path} is not a regular file", "name the key file itself")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(status.st_mode)
        raise MasterKeyError(
            f"{path} is open to other users (mode {mode:04o})", f"chmod 600 {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise MasterKeyError(f"{path} belongs to another user", f"chown it to uid {os.geteuid()}")
