"""Key pairs by name: private keys sealed under the master key, public keys in the clear.

    <data>/keys/<name>.key   PKCS#8, sealed (purpose "product-keys"), mode 0600
    <data>/keys/<name>.pub   SubjectPublicKeyInfo, PEM

A name without a private part is the public key of a peer. Files are written whole and renamed, so
a stop leaves the old key or the new one. Nothing here is in the journal: keys change by hand, and
the same key must be there for whatever the journal brings back.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Struct

from switch.ops.keys import MasterKey, UnsealError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
PURPOSE: Final = "product-keys"
PEM_BYTES_MAX: Final = 64 << 10
RSA_BITS: Final = 4096
RSA_BITS_MIN: Final = 1024
"""Shorter ones are not even test keys."""

Kind = TypeVar("Kind")


class KeyStoreError(ValueError):
    """A key cannot be read, named or stored so; never says what is in it."""


class KeyInfo(Struct, frozen=True):
    """What may be shown of a key: `sha256` is that of its public part (DER)."""

    name: str
    kind: str
    bits: int
    private: bool
    sha256: str


class KeyStore:
    """The keys of one directory.

    Args:
        directory: `<data>/keys`; made by the first `add`.
        master: seals the private keys.
    """

    def __init__(self, directory: Path, master: MasterKey) -> None:
        self._directory = directory
        self._master = master

    def __repr__(self) -> str:
        return f"KeyStore({str(self._directory)!r})"

    def names(self) -> list[str]:
        """Return the names of all keys, sorted."""
        return sorted(path.stem for path in self._directory.glob("*.pub"))

    def private(self, name: str) -> RSAPrivateKey:
        """Return an RSA private key. Raises: LookupError, UnsealError, KeyStoreError."""
        return self.private_as(name, RSAPrivateKey)  # type: ignore[type-abstract]

    def public(self, name: str) -> RSAPublicKey:
        """Return an RSA public key, also that of a private entry. Raises: as `private`."""
        return self.public_as(name, RSAPublicKey)  # type: ignore[type-abstract]

    def private_as(self, name: str, kind: type[Kind]) -> Kind:
        """Return a private key that must be of a kind, such as `Ed25519PrivateKey`.

        Raises:
            LookupError: no private key of this name.
            UnsealError: it was sealed under another master key.
            KeyStoreError: it is of another kind.
        """
        sealed = self._read(name, "key", "private key")
        der = self._master.open(sealed, purpose=PURPOSE, owner=_owner(name))
        # It was checked when it came, and its seal says that it is the same: checking an RSA key
        # costs as much as a hundred signatures.
        private = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
        return _of_kind(private, kind, name)

    def public_as(self, name: str, kind: type[Kind]) -> Kind:
        """Return a public key that must be of a kind. Raises: LookupError, KeyStoreError."""
        return _of_kind(_public_of(self._read(name, "pub", "key")), kind, name)

    def add(self, name: str, pem: bytes) -> KeyInfo:
        """Store a private or a public key; durable on return.

        Raises:
            KeyStoreError: no good name, no key of a kind we know, protected by a password, an RSA
                key below 1024 bits, or the name is taken by another key.
        """
        private, public = _read_pem(pem)
        self._check(name, public)
        if private is not None:
            der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            sealed = self._master.seal(der, purpose=PURPOSE, owner=_owner(name))
            self._write(f"{name}.key", sealed)
        self._write(f"{name}.pub", _pem(public))
        return self.info(name)

    def new(self, name: str, bits: int = RSA_BITS) -> KeyInfo:
        """Make an RSA pair. Takes seconds. Raises: KeyStoreError: as `add`."""
        if NAME.fullmatch(name) and name in self.names():
            raise KeyStoreError(f"there is a key {name} already")
        key = generate_private_key(65537, bits)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.add(name, pem)

    def forget_private(self, name: str) -> None:
        """Delete the private part of a key, overwritten first; its public part stays.

        Durable on return. Backups keep it until they are gone.

        Raises:
            LookupError: there is no private key of this name.
        """
        self._read(name, "key", "private key")
        path = self._directory / f"{name}.key"
        with open(path, "r+b", 0) as file:
            file.write(bytes(path.stat().st_size))
            os.fsync(file.fileno())
        path.unlink()
        self._sync()

    def info(self, name: str) -> KeyInfo:
        """Return what may be shown of a key. Raises: LookupError."""
        public = _public_of(self._read(name, "pub", "key"))
        private = (self._directory / f"{name}.key").exists()
        kind = type(public).__name__.removeprefix("_").removesuffix("PublicKey")
        return KeyInfo(name, kind, getattr(public, "key_size", 256), private, fingerprint(public))

    def reseal(self, to: MasterKey) -> None:
        """Seal every private key under another master key; what is so already is left alone.

        Raises:
            UnsealError: a key opens under neither.
        """
        for path in sorted(self._directory.glob("*.key")):
            sealed, owner = path.read_bytes(), _owner(path.stem)
            try:
                der = self._master.open(sealed, purpose=PURPOSE, owner=owner)
            except UnsealError:
                to.open(sealed, purpose=PURPOSE, owner=owner)
                continue
            self._write(path.name, to.seal(der, purpose=PURPOSE, owner=owner))

    def _check(self, name: str, public: Any) -> None:
        if not NAME.fullmatch(name):
            raise KeyStoreError("a key's name is 1 to 64 letters, digits, '.', '_' or '-'")
        if isinstance(public, RSAPublicKey) and public.key_size < RSA_BITS_MIN:
            raise KeyStoreError(f"an RSA key of {public.key_size} bits is too short")
        if name in self.names() and self.info(name).sha256 != fingerprint(public):
            raise KeyStoreError(f"there is another key {name} already")

    def _read(self, name: str, suffix: str, what: str) -> bytes:
        if not NAME.fullmatch(name):
            raise LookupError(f"no {what} {name!r}")
        try:
            return (self._directory / f"{name}.{suffix}").read_bytes()
        except FileNotFoundError:
            raise LookupError(f"no {what} {name!r} in the key store") from None

    def _write(self, name: str, data: bytes) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / name
        new = path.with_name(f"{name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
        self._sync()

    def _sync(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def fingerprint(public: Any) -> str:
    """Return the SHA-256 of a public key's SubjectPublicKeyInfo, in hex."""
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def public_from_pem(pem: bytes) -> Any:
    """Return the public key of a PEM file, which may hold a private one. Raises: KeyStoreError."""
    return _read_pem(pem)[1]


def private_from_pem(pem: bytes) -> Any:
    """Return the private key of a PEM file. Raises: KeyStoreError."""
    private = _read_pem(pem)[0]
    if private is None:
        raise KeyStoreError("the file holds no private key")
    return private


def _read_pem(pem: bytes) -> tuple[Any, Any]:
    """Return (private or None, public)."""
    if len(pem) > PEM_BYTES_MAX:
        raise KeyStoreError("the file is too large for a key")
    try:
        if b"PRIVATE KEY-----" in pem:
            private = load_pem_private_key(pem, None)
            return private, private.public_key()
        return None, load_pem_public_key(pem)
    except TypeError:
        raise KeyStoreError("the key is protected by a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyStoreError("the file holds no key in PEM") from None


def _public_of(pem: bytes) -> Any:
    return load_pem_public_key(pem)


def _pem(public: Any) -> bytes:
    data: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def _of_kind(key: Any, kind: type[Kind], name: str) -> Kind:
    if not isinstance(key, kind):
        raise KeyStoreError(f"{name} is no {kind.__name__}")
    return key


def _owner(name: str) -> str:
    return f"key:{name}"
