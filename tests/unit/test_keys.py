"""Master key: how it is kept, what it seals, and that no secret shows."""

import copy
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from switch.ops import keys
from switch.ops.keys import MasterKey, MasterKeyError, UnsealError, reseal

RAW = bytes(range(32))
MASTER = MasterKey(RAW)
OTHER = MasterKey(RAW[::-1])


def test_create_then_load(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    before = os.umask(0o777)  # the mode must not depend on it
    try:
        made = MasterKey.create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert MasterKey.load(path, {}).check_value == made.check_value
    assert len(path.read_text()) == 65


def test_create_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    MasterKey.create(path)
    before = path.read_bytes()
    with pytest.raises(MasterKeyError, match="exists"):
        MasterKey.create(path)
    assert path.read_bytes() == before


def test_two_keys_differ(tmp_path: Path) -> None:
    one, two = MasterKey.create(tmp_path / "1"), MasterKey.create(tmp_path / "2")
    assert one.check_value != two.check_value


def test_environment_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    MasterKey.create(path)
    loaded = MasterKey.load(path, {"TRONCAL_MASTER_KEY": f"  {RAW.hex().upper()}\n"})
    assert loaded.check_value == MASTER.check_value


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    MasterKey.create(path)
    path.chmod(mode)
    with pytest.raises(MasterKeyError, match="open to other users") as caught:
        MasterKey.load(path, {})
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "00" * 2000, "é" * 64])
def test_malformed_keys(tmp_path: Path, text: str) -> None:
    path = tmp_path / "master.key"
    path.write_text(text)
    path.chmod(0o600)
    for environ in ({}, {"TRONCAL_MASTER_KEY": text}):
        with pytest.raises(MasterKeyError, match="does not hold a master key") as caught:
            MasterKey.load(path, environ)
        assert "64 hex digits" in caught.value.hint
        assert not text or text not in str(caught.value)
        assert caught.value.__cause__ is None


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyError, match="No such file") as caught:
        MasterKey.load(tmp_path / "none", {})
    assert "troncal init" in caught.value.hint
    with pytest.raises(MasterKeyError, match="not a regular file"):
        MasterKey.load(tmp_path, {})


def test_a_pipe_in_its_place_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(MasterKeyError, match="not a regular file"):
        MasterKey.load(tmp_path / "pipe", {})


def test_wrong_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        MasterKey(b"short")


def test_subkeys_are_hkdf_and_all_differ() -> None:
    for purpose in keys.PURPOSES:
        info = f"troncal/1/{purpose}".encode()
        assert MASTER.subkey(purpose) == HKDF(SHA256(), 32, salt=None, info=info).derive(RAW)
    derived = {MASTER.subkey(purpose) for purpose in keys.PURPOSES}
    assert len(derived) == len(keys.PURPOSES)
    assert RAW not in derived
    with pytest.raises(ValueError, match="unknown purpose"):
        MASTER.subkey("check")


@given(st.binary(max_size=200), st.sampled_from(keys.PURPOSES), st.text(max_size=40))
def test_sealed_opens_only_for_its_purpose_and_owner(secret, purpose, owner) -> None:
    sealed = MASTER.seal(secret, purpose=purpose, owner=owner)
    assert len(sealed) == len(secret) + keys.NONCE_BYTES + keys.TAG_BYTES
    assert MASTER.open(sealed, purpose=purpose, owner=owner) == secret
    other = keys.PURPOSES[(keys.PURPOSES.index(purpose) + 1) % len(keys.PURPOSES)]
    for master, wrong_purpose, wrong_owner in (
        (OTHER, purpose, owner),
        (MASTER, other, owner),
        (MASTER, purpose, owner + "x"),
    ):
        with pytest.raises(UnsealError):
            master.open(sealed, purpose=wrong_purpose, owner=wrong_owner)


def test_any_changed_bit_is_noticed() -> None:
    sealed = MASTER.seal(b"secret", purpose="peer-keys", owner="terminal:00000017:1")
    for at in range(len(sealed) * 8):
        bad = bytearray(sealed)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(UnsealError):
            MASTER.open(bytes(bad), purpose="peer-keys", owner="terminal:00000017:1")
    for cut in range(len(sealed)):
        with pytest.raises(UnsealError):
            MASTER.open(sealed[:cut], purpose="peer-keys", owner="terminal:00000017:1")


def test_nonces_never_repeat() -> None:
    blobs = {MASTER.seal(b"", purpose="vale", owner="")[: keys.NONCE_BYTES] for _ in range(1000)}
    assert len(blobs) == 1000


def test_native_vault_opens_card_seeds() -> None:
    mac = pytest.importorskip("core_ext._mac")
    vault = mac.SeedVault(MASTER.subkey("card-seeds"))
    aad = keys.associated("card-seeds", "card-000042")
    seed = keys.generate_seed()
    assert vault.unseal(MASTER.seal(seed, purpose="card-seeds", owner="card-000042"), aad) == seed
    assert MASTER.open(vault.seal(seed, aad), purpose="card-seeds", owner="card-000042") == seed


def test_s09_rotation_of_the_master_key() -> None:
    sealed = MASTER.seal(b"secret", purpose="peer-keys", owner="network:0012:1")
    moved = reseal(MASTER, OTHER, sealed, purpose="peer-keys", owner="network:0012:1")
    assert OTHER.open(moved, purpose="peer-keys", owner="network:0012:1") == b"secret"
    with pytest.raises(UnsealError):
        MASTER.open(moved, purpose="peer-keys", owner="network:0012:1")
    with pytest.raises(UnsealError):
        reseal(OTHER, MASTER, sealed, purpose="peer-keys", owner="network:0012:1")


def test_no_secret_shows() -> None:
    MASTER.subkey("ticket")
    shown = repr(MASTER) + str(MASTER) + f"{MASTER!r:>80}"
    assert RAW.hex() not in shown
    assert MASTER.subkey("ticket").hex() not in shown
    assert MASTER.check_value in shown
    assert not hasattr(MASTER, "__dict__")
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            act(MASTER)


def test_generated_secrets() -> None:
    assert len(keys.generate_peer_key()) == 32
    assert keys.generate_peer_key() != keys.generate_peer_key()
    assert len(keys.generate_seed("sha1")) == 20
    assert len(keys.generate_seed()) == 32


@given(st.binary(min_size=1, max_size=64))
def test_base32_reads_back_however_typed(seed) -> None:
    text = keys.base32(seed)
    assert "=" not in text
    spaced = " ".join(text[at : at + 4] for at in range(0, len(text), 4)).lower()
    assert keys.from_base32(text) == keys.from_base32(spaced) == seed


@pytest.mark.parametrize("text", ["", "=", "1890", "ABC!", "A", "ñ"])
def test_bad_base32(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a base32 seed$"):
        keys.from_base32(text)


def test_otpauth_of_totp() -> None:
    uri = keys.otpauth_uri(RAW, account="tarjeta: 42 ñ", issuer="Troncal & Cía")
    parts = urlsplit(uri)
    assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
    assert parts.path.count(":") == 1
    assert unquote(parts.path) == "/Troncal & Cía:tarjeta: 42 ñ"
    assert parse_qs(parts.query) == {
        "secret": [keys.base32(RAW)],
        "issuer": ["Troncal & Cía"],
        "algorithm": ["SHA256"],
        "digits": ["6"],
        "period": ["60"],
    }
    assert "+" not in uri


def test_otpauth_of_ocra() -> None:
    uri = keys.otpauth_uri(RAW, account="42", issuer="Troncal", mode="ocra")
    assert uri.startswith("otpauth://ocra/Troncal:42?")
    assert parse_qs(urlsplit(uri).query) == {
        "secret": [keys.base32(RAW)],
        "issuer": ["Troncal"],
        "suite": ["OCRA-1:HOTP-SHA256-8:QN10-T1M"],
    }


def test_t21_no_core_dumps() -> None:
    program = (
        "from switch.ops.hardening import forbid_core_dumps as f; import resource as r; f();"
        "print(r.getrlimit(r.RLIMIT_CORE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "(0, 0)"
