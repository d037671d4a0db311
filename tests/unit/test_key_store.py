"""The key store: private keys sealed and bound to their names, public keys in the clear."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from switch.ops.key_store import KeyStore, KeyStoreError, fingerprint
from switch.ops.keys import MasterKey, UnsealError
from tests.webpay_shops import private_pem, public, public_pem, vectors

MASTER = MasterKey(bytes(range(32)))
OTHER = MasterKey(bytes(range(1, 33)))


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys", MASTER)


def test_a_private_key_comes_back_and_is_nowhere_in_the_clear(
    store: KeyStore, tmp_path: Path
) -> None:
    info = store.add("shop", private_pem("merchant_test_2048"))
    assert (info.kind, info.bits, info.private) == ("RSA", 2048, True)
    assert info.sha256 == vectors()["keys"]["merchant_test_2048"]["spki_sha256"]
    numbers = store.private("shop").private_numbers()
    secret = numbers.p.to_bytes(128, "big")
    for path in (tmp_path / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0
        assert secret not in path.read_bytes()
    assert store.public("shop").public_numbers() == public("merchant_test_2048").public_numbers()


def test_a_file_moved_to_another_name_does_not_open(store: KeyStore, tmp_path: Path) -> None:
    store.add("a", private_pem("merchant_test_2048"))
    keys = tmp_path / "keys"
    (keys / "b.key").write_bytes((keys / "a.key").read_bytes())
    with pytest.raises(UnsealError):
        store.private("b")
    with pytest.raises(UnsealError):
        KeyStore(keys, OTHER).private("a")


def test_names_are_checked_and_never_taken_by_another_key(store: KeyStore) -> None:
    store.add("a", public_pem("webpay_cert_101"))
    assert store.add("a", public_pem("webpay_cert_101")).private is False
    with pytest.raises(KeyStoreError, match="another key"):
        store.add("a", public_pem("webpay_prod_101"))
    for name in ("", "../a", "a/b", ".a", "a" * 65):
        with pytest.raises(KeyStoreError):
            store.add(name, public_pem("webpay_cert_101"))
        with pytest.raises(LookupError):
            store.public(name)
    with pytest.raises(LookupError):
        store.private("a")
    assert store.names() == ["a"]


def test_what_is_no_key_is_refused_without_being_shown(store: KeyStore) -> None:
    key = Ed25519PrivateKey.generate()
    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    for pem in (b"", b"secret text", b"x" * 100_000, locked,
                b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):  # fmt: skip
        with pytest.raises(KeyStoreError) as caught:
            store.add("a", pem)
        assert "secret" not in str(caught.value)


def test_other_kinds_are_stored_and_asked_for_by_kind(store: KeyStore) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert store.add("signer", pem).kind == "Ed25519"
    found = store.private_as("signer", Ed25519PrivateKey)
    assert fingerprint(found.public_key()) == fingerprint(key.public_key())
    with pytest.raises(KeyStoreError, match="is no RSA"):
        store.private("signer")


def test_another_master_key_seals_all_and_a_repeat_changes_nothing(
    store: KeyStore, tmp_path: Path
) -> None:
    store.add("a", private_pem("merchant_test_2048"))
    store.reseal(OTHER)
    after = (tmp_path / "keys" / "a.key").read_bytes()
    store.reseal(OTHER)
    assert (tmp_path / "keys" / "a.key").read_bytes() == after
    moved = KeyStore(tmp_path / "keys", OTHER)
    assert moved.private("a").key_size == 2048
    with pytest.raises(UnsealError):
        store.private("a")
    with pytest.raises(UnsealError):
        KeyStore(tmp_path / "keys", MASTER).reseal(MasterKey(bytes(32)))
