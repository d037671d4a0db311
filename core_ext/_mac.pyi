from typing import Literal, final

from typing_extensions import Buffer

def load_openssl(name: str = "libcrypto.so.3") -> str: ...
def locked_memory() -> tuple[int, int]: ...
def siphash(key: bytes, data: bytes) -> int: ...
def equal(a: Buffer, b: Buffer) -> bool: ...
def hotp(key: bytes, counter: int, *, digits: int = 6, algorithm: str = "sha1") -> str: ...
def totp(
    key: bytes,
    time_s: int,
    *,
    step_s: int = 60,
    digits: int = 6,
    algorithm: str = "sha256",
    t0: int = 0,
) -> str: ...
def ocra(
    suite: str,
    key: bytes,
    *,
    question: str,
    counter: int | None = None,
    pin: str | None = None,
    timestep: int | None = None,
) -> str: ...

@final
class MacKey:
    @property
    def algorithm(self) -> str: ...
    @property
    def mac_bytes(self) -> int: ...
    def __new__(cls, algorithm: str, key: bytes) -> MacKey: ...
    def mac(self, data: Buffer) -> bytes: ...
    def verify(self, data: Buffer, mac: Buffer) -> bool: ...
    def mac_many(self, messages: list[bytes], length: int = 8) -> list[bytes]: ...
    def verify_many(self, messages: list[bytes], macs: list[bytes]) -> list[bool]: ...

@final
class SeedVault:
    def __new__(cls, kek: bytes) -> SeedVault: ...
    def seal(self, seed: bytes, aad: bytes) -> bytes: ...
    def unseal(self, sealed: bytes, aad: bytes) -> bytes: ...
    def match(
        self,
        sealed: list[bytes],
        aads: list[bytes],
        code: str,
        *,
        mode: Literal["totp", "ocra"] | str,
        now_s: int,
        digits: int = 6,
        algorithm: str = "sha256",
        step_s: int = 60,
        question: str = "",
        suite: str = "",
        back: int = 2,
        forward: int = 1,
        probe: int = 15,
        pad_to: int = 4,
    ) -> list[tuple[int, int]]: ...
