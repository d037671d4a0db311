"""Keys of an ISO 8583 link: MAC, data and zone keys in versions that overlap, and their exchange.

A link has MAC keys (who wrote a message), data keys (one-time codes under way, `tokens.py`) and
zone keys, which do nothing but wrap the other two when a new one is sent to the other end
(network management code 101). The newest version of a kind is the one we use; older ones are still
accepted until they are retired. Version numbers are each side's own and never leave it.

Sources: RFC 3394 (wrapping), RFC 4493 (AES-CMAC and the check value over a zero block), ISO/IEC
9797-1 (retail MAC, X9.9).
"""

from collections.abc import Sequence
from typing import Any, Final, Self, TypeVar

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from core_ext._mac import MacKey, equal

EXCHANGED: Final = ("mac", "data")
"""Kinds of key that can be exchanged; a zone key never travels over the link it protects."""

MAC_BYTES: Final = 8
DATA_KEY_BYTES: Final = 32
ZONE_KEY_BYTES: Final = 32
CHECK_BYTES: Final = 3

# By their names in the configuration; `-2` is padding method 2 of ISO/IEC 9797-1, else method 1.
_NATIVE: Final = {
    "aes-cmac": "aes-cmac",
    "retail": "retail-1",
    "retail-2": "retail-2",
    "hmac-sha256": "hmac-sha256",
    "x9.9": "x9.9-1",
    "x9.9-2": "x9.9-2",
}
_KEY_BYTES: Final = {
    "aes-cmac": 16,
    "retail": 16,
    "retail-2": 16,
    "hmac-sha256": 32,
    "x9.9": 8,
    "x9.9-2": 8,
}
_WEAK: Final = frozenset(("x9.9-1", "x9.9-2"))
_DES: Final = frozenset(("retail", "retail-2"))
_PROBE: Final = bytes(16)  # whether two MAC keys are one, whose bytes cannot be read back


class KeyRefused(ValueError):
    """A key that came by key exchange was not taken. Its text has nothing of the key.

    Attributes:
        code: for DE39: 30 for a form that cannot be read, 12 for a kind that is not exchanged
            here, 63 for a key that does not unwrap or does not match its check value.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def mac_key_bytes(algorithm: str) -> int:
    """Size of an algorithm's key, in bytes. Raises: ValueError for an unknown one."""
    try:
        return _KEY_BYTES[algorithm]
    except KeyError:
        raise ValueError(f"unknown MAC algorithm {algorithm!r}") from None


def mac_key(algorithm: str, key: bytes) -> MacKey:
    """A MAC key ready for use.

    Raises:
        ValueError: unknown algorithm, or a key of another size than the algorithm's.
    """
    if len(key) != mac_key_bytes(algorithm):
        raise ValueError(f"a key of {algorithm} has {mac_key_bytes(algorithm)} bytes")
    return MacKey(_NATIVE[algorithm], key)


def check_value(key: bytes, *, des: bool = False) -> bytes:
    """The three bytes by which two people compare a key without telling it.

    Args:
        key: 16 or 32 bytes.
        des: a two-key DES key: first bytes of its encryption of a zero block, else of its AES-CMAC
            over a zero block.
    """
    if des:
        # The CBC-MAC of a single block is its encryption.
        return MacKey("tdes-mac-1", key).mac(bytes(8))[:CHECK_BYTES]
    return MacKey("aes-cmac", key).mac(bytes(16))[:CHECK_BYTES]


def wrap(zone_key: bytes, key: bytes) -> bytes:
    """`key` under the zone key, by RFC 3394: eight bytes longer."""
    return aes_key_wrap(zone_key, key)


def unwrap(zone_key: bytes, wrapped: bytes) -> bytes:
    """The key inside. Raises: KeyRefused (63): wrapped under another key, or altered."""
    try:
        return aes_key_unwrap(zone_key, wrapped)
    except (InvalidUnwrap, ValueError):
        raise KeyRefused("63", "the key does not unwrap under the zone key") from None


class HostKeys:
    """All keys shared with one host; one object for all connections of its link.

    Args:
        mac: (version, key) pairs; versions begin at 1. Keys of different algorithms may stand side
            by side while a link changes over; `x9.9` only verifies.
        data, zone: (version, 32 bytes) pairs; either may be empty.
        algorithm: of MAC keys that come by key exchange; default: that of the newest MAC key.
            "none", with no MAC key, is the only way to a link without MACs.

    Raises:
        ValueError: no MAC key that can sign, equal versions, or a key of the wrong size.
    """

    __slots__ = ("_data", "_mac", "_pending", "_signing", "_zone", "algorithm")

    def __init__(
        self,
        mac: Sequence[tuple[int, MacKey]],
        data: Sequence[tuple[int, bytes]] = (),
        zone: Sequence[tuple[int, bytes]] = (),
        *,
        algorithm: str = "",
    ) -> None:
        self._mac = _newest_first(mac, "MAC")
        self._data = _newest_first(data, "data")
        self._zone = _newest_first(zone, "zone")
        self._pending: set[tuple[str, int]] = set()
        if any(len(key) != DATA_KEY_BYTES for _, key in (*self._data, *self._zone)):
            raise ValueError("data and zone keys have 32 bytes")
        if (algorithm == "none") != (not self._mac):
            raise ValueError("a link has MAC keys, or the algorithm none")
        self.algorithm = algorithm or _named(self._mac[0][1])
        self._signing = self._newest_signing()
        if self._mac and self._signing is None:
            raise ValueError("x9.9 only verifies: a link needs another key to sign with")

    @classmethod
    def of(
        cls,
        algorithm: str,
        mac: Sequence[tuple[int, bytes]],
        data: Sequence[tuple[int, bytes]] = (),
        zone: Sequence[tuple[int, bytes]] = (),
    ) -> Self:
        """From raw MAC keys, all of one algorithm. Raises: ValueError as the constructor."""
        keys = [(version, mac_key(algorithm, key)) for version, key in mac]
        return cls(keys, data, zone, algorithm=algorithm)

    def __repr__(self) -> str:
        versions = [version for version, _ in self._mac]
        return f"HostKeys({self.algorithm!r}, mac versions {versions})"

    @property
    def signs(self) -> bool:
        """Messages of this link carry MACs."""
        return self._signing is not None

    @property
    def data_keys(self) -> list[bytes]:
        """Keys that one-time codes may have come under, newest first."""
        return [key for _, key in self._data]

    @property
    def sealing_key(self) -> bytes:
        """The data key that the next code goes out under. Raises: LookupError where none is."""
        for version, key in self._data:
            if ("data", version) not in self._pending:
                return key
        raise LookupError("the link has no data key")

    def versions(self, kind: str) -> list[int]:
        """Versions of "mac", "data" or "zone" keys, newest first."""
        return [version for version, _ in self._of(kind)]

    # ---- MACs

    def signing_key(self, version: int = 0) -> MacKey:
        """The newest MAC key, or the given version while it is there and may sign."""
        assert self._signing is not None, "a link without MACs"
        if version:
            for known, key in self._mac:
                if known == version and key.algorithm not in _WEAK:
                    return key
        return self._signing

    def verify_many(self, inputs: list[bytes], macs: list[bytes]) -> list[int]:
        """The key version each MAC is good under; 0 where it is good under none.

        Args:
            inputs: what each MAC covers. macs: as received, eight bytes; b"" where none came.
        """
        first, key = self._mac[0]
        good = key.verify_many(inputs, macs)
        found = [first if ok else 0 for ok in good]
        if False not in good and set(map(len, macs)) <= {MAC_BYTES}:
            return found
        for i, mac in enumerate(macs):
            if len(mac) != MAC_BYTES:
                found[i] = 0
            elif not good[i]:
                found[i] = next(
                    (v for v, older in self._mac[1:] if older.verify(inputs[i], mac)), 0
                )
        return found

    # ---- versions

    def add(self, kind: str, key: bytes, *, pending: bool = False, version: int = 0) -> int:
        """Take a new key as the newest of its kind; the same key again changes nothing.

        Args:
            pending: accept what comes under it, but go on sending under the one before.
            version: its number where somebody else counts; 0: the next one.

        Returns:
            Its version.

        Raises:
            ValueError: a key of the wrong size, a kind other than "mac" and "data", or a version
                that another key has.
        """
        known = self._known(kind, key)
        if known:
            return known
        own = self._of(kind)
        version = version or (own[0][0] + 1 if own else 1)
        if any(taken == version for taken, _ in own):
            raise ValueError("another key has this version")
        if kind == "data" and len(key) != DATA_KEY_BYTES:
            raise ValueError("a data key has 32 bytes")
        own.append((version, mac_key(self.algorithm, key) if kind == "mac" else key))
        own.sort(key=_version, reverse=True)
        if pending:
            self._pending.add((kind, version))
        self._signing = self._newest_signing()
        return version

    def promote(self, kind: str, version: int) -> None:
        """Send under a pending key from now on: the other end has it."""
        self._pending.discard((kind, version))
        self._signing = self._newest_signing()

    def forget(self, kind: str, version: int) -> None:
        """Drop a pending key: the other end has refused it. One that is in use already stays."""
        if (kind, version) in self._pending:
            self._pending.discard((kind, version))
            own = self._of(kind)
            own[:] = [pair for pair in own if pair[0] != version]

    def retire(self, kind: str, version: int) -> None:
        """Accept nothing under this version any more.

        Raises:
            ValueError: it is the only key of its kind that we can send under.
        """
        own = self._of(kind)
        usable = [v for v, _ in own if v != version and (kind, v) not in self._pending]
        if kind == "mac":
            usable = [v for v, k in self._mac if v in usable and k.algorithm not in _WEAK]
        if not usable:
            raise ValueError("the only key of its kind")
        own[:] = [pair for pair in own if pair[0] != version]
        self._pending.discard((kind, version))
        self._signing = self._newest_signing()

    # ---- exchange

    def offer(self, kind: str, key: bytes) -> dict[str, str]:
        """DE48 of a key exchange that carries `key`.

        Raises:
            LookupError: the link has no zone key.
        """
        if not self._zone:
            raise LookupError("the link has no zone key")
        check = check_value(key, des=kind == "mac" and self.algorithm in _DES)
        wrapped = wrap(self._zone[0][1], key)
        return {"30": kind, "31": wrapped.hex().upper(), "32": check.hex().upper()}

    def accept(self, kind: str, wrapped_hex: str, check_hex: str) -> tuple[int, bytes]:
        """Take the key of an exchange that the other end began; in use at once.

        Returns:
            Its version and the key itself, to be stored.

        Raises:
            KeyRefused: with the code for the answer.
        """
        if kind not in EXCHANGED or (kind == "mac" and not self.signs):
            raise KeyRefused("12", "this kind of key is not exchanged here")
        if not self._zone:
            raise KeyRefused("12", "the link has no zone key")
        try:
            wrapped, check = bytes.fromhex(wrapped_hex), bytes.fromhex(check_hex)
        except ValueError:
            raise KeyRefused("30", "key or check value is not hexadecimal") from None
        size = mac_key_bytes(self.algorithm) if kind == "mac" else DATA_KEY_BYTES
        if len(wrapped) != size + 8 or len(check) != CHECK_BYTES:
            raise KeyRefused("30", "key or check value has another size")
        key = self._unwrap(wrapped)
        if not equal(check_value(key, des=kind == "mac" and self.algorithm in _DES), check):
            raise KeyRefused("63", "the check value is not that of the key")
        version = self.add(kind, key)
        self.promote(kind, version)
        return version, key

    def _unwrap(self, wrapped: bytes) -> bytes:
        for _, zone_key in self._zone[1:]:
            try:
                return unwrap(zone_key, wrapped)
            except KeyRefused:
                continue
        return unwrap(self._zone[0][1], wrapped)

    def _of(self, kind: str) -> list[tuple[int, Any]]:
        if kind == "mac":
            return self._mac
        return self._data if kind == "data" else self._zone

    def _known(self, kind: str, key: bytes) -> int:
        """Version of a key that is here already; 0 where it is not. Raises: ValueError."""
        if kind == "mac":
            proof = mac_key(self.algorithm, key).mac(_PROBE)
            return next((v for v, k in self._mac if equal(k.mac(_PROBE), proof)), 0)
        if kind != "data":
            raise ValueError("only MAC and data keys are added")
        return next((v for v, k in self._data if len(key) == len(k) and equal(k, key)), 0)

    def _newest_signing(self) -> MacKey | None:
        for version, key in self._mac:
            if key.algorithm not in _WEAK and ("mac", version) not in self._pending:
                return key
        return None


_Key = TypeVar("_Key")


def _version(pair: tuple[int, object]) -> int:
    return pair[0]


def _newest_first(pairs: Sequence[tuple[int, _Key]], what: str) -> list[tuple[int, _Key]]:
    ordered = sorted(pairs, key=_version, reverse=True)
    versions = [version for version, _ in ordered]
    if len(set(versions)) != len(versions) or any(version < 1 for version in versions):
        raise ValueError(f"versions of {what} keys must differ and begin at 1")
    return ordered


def _named(key: MacKey) -> str:
    for name, native in _NATIVE.items():
        if native == key.algorithm:
            return name
    raise ValueError(f"{key.algorithm} is no MAC algorithm of a link")
