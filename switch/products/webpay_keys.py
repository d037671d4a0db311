"""The RSA keys of Webpay, and the threads they are used in."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from core_ext import Histogram
from protocols.webpay import seal
from switch.config import Config, ConfigError, Mistake
from switch.ops.key_store import KeyStore, KeyStoreError

OWN_BITS: Final = 4096
MERCHANT_BITS_MIN: Final = 2048

T = TypeVar("T")


class Keys:
    """Own keys by key id, merchants' by their codes.

    Raises:
        ConfigError: a key is not in the store, or too short; with the name of its setting.
    """

    def __init__(self, config: Config, store: KeyStore) -> None:
        self._store = store
        self._mistakes: list[Mistake] = []
        section = config.webpay
        self.own: dict[str, RSAPrivateKey] = {}
        self.merchants: dict[str, RSAPublicKey] = {}
        wanted = {key_id for m in section.merchant.values() for key_id in m.key_ids}
        names = {"101": ("own_key", section.own_key), "100": ("own_key_100", section.own_key_100)}
        for key_id in sorted(wanted):
            setting, name = names[key_id]
            where = f"webpay.{setting}"
            private = self._read(where, name, store.private)
            if private is not None:
                self.own[key_id] = private
                if key_id == "101" and private.key_size != OWN_BITS:
                    self._wrong(where, f"{name} has not {OWN_BITS} bits")
        for code, merchant in section.merchant.items():
            where = f'webpay.merchant."{code}".key'
            public = self._read(where, merchant.key, store.public)
            if public is None:
                continue
            self.merchants[code] = public
            if public.key_size < MERCHANT_BITS_MIN and not section.allow.short_merchant_keys:
                self._wrong(where, f"{merchant.key} has under {MERCHANT_BITS_MIN} bits")
        if self._mistakes:
            raise ConfigError(config.path, self._mistakes)

    def _read(self, where: str, name: str, read: Callable[[str], T]) -> T | None:
        try:
            return read(name)
        except (LookupError, KeyStoreError, OSError) as error:
            hint = "troncal webpay key list; key new NAME, key add NAME FILE.pem"
            self._mistakes.append(Mistake(0, where, f"{name}: {error}", hint))
            return None

    def _wrong(self, where: str, what: str) -> None:
        self._mistakes.append(Mistake(0, where, what, "webpay.allow, if it must be"))


class Rsa:
    """Private operations, in threads of their own: nobody waits on the event loop for them.

    Attributes:
        histograms: durations by operation and bits.
    """

    def __init__(self, keys: Keys, threads: int) -> None:
        self._keys = keys
        self._limiter = trio.CapacityLimiter(threads)
        self.histograms: dict[tuple[str, ...], Histogram] = {}

    @property
    def waiting(self) -> int:
        """Operations that wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def sign(self, key_id: str, message: bytes) -> bytes:
        """The signature of a result; also its MAC."""
        own = self._keys.own[key_id]
        return await self._run("sign", own, lambda: seal.sign(message, own))

    def sign_now(self, key_id: str, message: bytes) -> bytes:
        """The same, at once; for the few of a recovery."""
        return seal.sign(message, self._keys.own[key_id])

    async def open(self, key_id: str, merchant: str, wire: bytes) -> seal.Opened:
        """What a merchant has sealed for us.

        Raises:
            SealError: it does not open.
        """
        own, peer = self._keys.own[key_id], self._keys.merchants[merchant]
        spare = os.urandom(seal.KEY_BYTES)
        return await self._run(
            "open", own, lambda: seal.open_wire(wire, own, peer, spare_key=spare)
        )

    async def seal(self, key_id: str, merchant: str, message: bytes) -> bytes:
        """A message sealed for a merchant."""
        signature = await self.sign(key_id, message)
        return self.envelope(merchant, message, signature)

    def envelope(self, merchant: str, message: bytes, signature: bytes) -> bytes:
        """A message that is signed already; a public operation, a tenth of a millisecond."""
        peer = self._keys.merchants[merchant]
        aes_key, iv = os.urandom(seal.KEY_BYTES), os.urandom(seal.IV_BYTES)
        return seal.envelope(message, signature, peer, aes_key=aes_key, iv=iv)

    async def _run(self, what: str, own: RSAPrivateKey, work: Callable[[], T]) -> T:
        began_ns = time.perf_counter_ns()
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            found = self.histograms.setdefault((what, str(own.key_size)), Histogram())
            found.record(time.perf_counter_ns() - began_ns)


def secrets_of(
    config: Config, environ: Mapping[str, str] = os.environ
) -> Iterator[tuple[str, str]]:
    """(merchant, API key) of those that have one.

    Raises:
        ConfigError: one cannot be read.
    """
    for code, merchant in config.webpay.merchant.items():
        kind, _, name = merchant.api_key.partition(":")
        where = f'webpay.merchant."{code}".api_key'
        if not kind:
            continue
        try:
            text = environ[name] if kind == "env" else Path(config.file(name)).read_text()
        except (KeyError, OSError):
            mistake = Mistake(0, where, f"{name} cannot be read", "set it, or leave api_key out")
            raise ConfigError(config.path, [mistake]) from None
        if text.strip():
            yield code, text.strip()
