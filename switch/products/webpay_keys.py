"""The RSA keys of Webpay, and the threads they are used in."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from core_ext import Histogram
from protocols.webpay import seal
from protocols.webpay.keyring import Ring, Version
from switch.config import Config, ConfigError, Mistake
from switch.flows.webpay_records import KeyNames
from switch.ops.key_store import KeyStore, KeyStoreError, fingerprint
from switch.ops.keys import UnsealError
from switch.products.webpay_periods import Periods

OWN_BITS: Final = 4096
MERCHANT_BITS_MIN: Final = 2048

T = TypeVar("T")


class Keys:
    """Own keys by key id, merchants' by their codes, each with all its versions.

    Args:
        now_ns: private parts of versions that have ended by then may have been deleted.

    Raises:
        ConfigError: a key is not in the store, or too short; with the name of its setting.
    """

    def __init__(self, config: Config, store: KeyStore, now_ns: int) -> None:
        self._store = store
        self._now_ns = now_ns
        self._periods = Periods(config.data / "keys")
        self._mistakes: list[Mistake] = []
        section = config.webpay
        self.own: dict[str, Ring[RSAPrivateKey]] = {}
        self.merchants: dict[str, Ring[RSAPublicKey]] = {}
        wanted = {key_id for m in section.merchant.values() for key_id in m.key_ids}
        names = {"101": ("own_key", section.own_key), "100": ("own_key_100", section.own_key_100)}
        for key_id in sorted(wanted):
            setting, name = names[key_id]
            where = f"webpay.{setting}"
            own = self._read(where, name, store.private)
            if own is not None:
                self.own[key_id] = own
                short = [v.name for v in own.all if v.key.key_size != OWN_BITS]
                if key_id == "101" and short:
                    self._wrong(where, f"{short[0]} has not {OWN_BITS} bits")
        for code, merchant in section.merchant.items():
            where = f'webpay.merchant."{code}".key'
            ring = self._read(where, merchant.key, store.public)
            if ring is None:
                continue
            self.merchants[code] = ring
            weak = [v.name for v in ring.all if v.key.key_size < MERCHANT_BITS_MIN]
            if weak and not section.allow.short_merchant_keys:
                self._wrong(where, f"{weak[0]} has under {MERCHANT_BITS_MIN} bits")
        if self._mistakes:
            raise ConfigError(config.path, self._mistakes)

    def _read(self, where: str, name: str, read: Callable[[str], T]) -> Ring[T] | None:
        try:
            return self._periods.ring(name, read, now_ns=self._now_ns)
        except (LookupError, KeyStoreError, UnsealError, OSError) as error:
            hint = "troncal webpay key list; key new NAME, key add NAME FILE.pem"
            self._mistakes.append(Mistake(0, where, f"{name}: {error}", hint))
            return None

    def _wrong(self, where: str, what: str) -> None:
        self._mistakes.append(Mistake(0, where, what, "webpay.allow, if it must be"))


class Opened(NamedTuple):
    """What a merchant had sealed. `keys`: the versions it was for and by; an answer uses them."""

    message: bytes
    keys: KeyNames


class Rsa:
    """Private operations, in threads of their own: nobody waits on the event loop for them.

    Args:
        wall_ns: says which versions of the keys hold now.

    Attributes:
        histograms: durations by operation and bits.
    """

    def __init__(self, keys: Keys, threads: int, wall_ns: Callable[[], int]) -> None:
        self._keys = keys
        self._wall_ns = wall_ns
        self._limiter = trio.CapacityLimiter(threads)
        self.histograms: dict[tuple[str, ...], Histogram] = {}

    def renew(self, keys: Keys) -> None:
        """Go on with keys that were read again; what is under way ends with those it began with."""
        self._keys = keys

    @property
    def waiting(self) -> int:
        """Operations that wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def sign(self, key_id: str, message: bytes, name: str = "") -> bytes:
        """The signature of a result, also its MAC, by the version of a request where it holds."""
        own = self._own(key_id, name)
        return await self._run("sign", own.key_size, lambda: seal.sign(message, own))

    def sign_now(self, key_id: str, message: bytes, name: str = "") -> bytes:
        """The same, at once; for the few of a recovery."""
        return seal.sign(message, self._own(key_id, name))

    async def open(self, key_id: str, merchant: str, wire: bytes) -> Opened:
        """What a merchant has sealed for us.

        Raises:
            SealError: it does not open.
        """
        now_ns, spare = self._wall_ns(), os.urandom(seal.KEY_BYTES)
        owns = self._keys.own[key_id].accepted(now_ns)
        peers = self._keys.merchants[merchant].accepted(now_ns)
        work = partial(
            seal.open_with, wire, [v.key for v in owns], [v.key for v in peers], spare_key=spare
        )
        bits = owns[0].key.key_size if owns else 0
        opened, own, peer = await self._run("open", bits, work)
        return Opened(opened.message, (owns[own].name, peers[peer].name))

    async def seal(
        self, key_id: str, merchant: str, message: bytes, names: KeyNames = ("", "")
    ) -> bytes:
        """A message sealed for a merchant, by the versions of its request where they hold."""
        own, peer = self._own(key_id, names[0]), self._peer(merchant, names[1]).key
        return await self._run(
            "sign", own.key_size,
            lambda: _enveloped(message, seal.sign(message, own), peer),
        )  # fmt: skip

    async def envelope(
        self, merchant: str, message: bytes, signature: bytes, name: str = ""
    ) -> bytes:
        """A message that is signed already; a public operation, a tenth of a millisecond."""
        peer = self._peer(merchant, name).key
        return await self._run(
            "envelope", peer.key_size, partial(_enveloped, message, signature, peer)
        )

    def fingerprints(self, key_id: str, merchant: str, names: KeyNames = ("", "")) -> KeyNames:
        """SHA-256 of our key and the merchant's, as they are used for an answer; for the log."""
        ring = self._keys.own[key_id]
        own = ring.used(self._wall_ns(), names[0]) or ring.all[0]
        peer = self._peer(merchant, names[1])
        return fingerprint(own.key.public_key()), fingerprint(peer.key)

    def _own(self, key_id: str, name: str) -> RSAPrivateKey:
        ring = self._keys.own[key_id]
        return (ring.used(self._wall_ns(), name) or ring.all[0]).key

    def _peer(self, merchant: str, name: str) -> Version[RSAPublicKey]:
        ring = self._keys.merchants[merchant]
        # A key that ended meanwhile is better than none: its owner may not be able to read this,
        # and that is for the owner to find out.
        return ring.used(self._wall_ns(), name) or ring.all[0]

    async def _run(self, what: str, bits: int, work: Callable[[], T]) -> T:
        began_ns = time.perf_counter_ns()
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            found = self.histograms.setdefault((what, str(bits)), Histogram())
            found.record(time.perf_counter_ns() - began_ns)


def _enveloped(message: bytes, signature: bytes, peer: RSAPublicKey) -> bytes:
    aes_key, iv = os.urandom(seal.KEY_BYTES), os.urandom(seal.IV_BYTES)
    return seal.envelope(message, signature, peer, aes_key=aes_key, iv=iv)


def secrets_of(
    config: Config, environ: Mapping[str, str] = os.environ
) -> Iterator[tuple[str, str]]:
    """(merchant, API key) of those that have one.

    Raises:
        ConfigError: one cannot be read.
    """
    for code, merchant in config.webpay.merchant.items():
        where = f'webpay.merchant."{code}".api_key'
        text = secret_at(config, where, merchant.api_key, environ)
        if text:
            yield code, text


def secret_at(
    config: Config, where: str, place: str, environ: Mapping[str, str] = os.environ
) -> str:
    """The secret at `env:NAME` or `file:PATH`; empty where there is none.

    Args:
        where: the setting, for the mistake.

    Raises:
        ConfigError: it cannot be read.
    """
    kind, _, name = place.partition(":")
    if not kind:
        return ""
    try:
        text = environ[name] if kind == "env" else Path(config.file(name)).read_text()
    except (KeyError, OSError):
        mistake = Mistake(0, where, f"{name} cannot be read", "set it, or leave it out")
        raise ConfigError(config.path, [mistake]) from None
    return text.strip()
