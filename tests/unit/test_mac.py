"""`_mac` against plain Python oracles: hmac, cryptography's CMAC and ciphers, tests/models/otp."""

import copy
import gc
import hmac
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core_ext import _mac
from core_ext._mac import MacKey, SeedVault, equal, hotp, ocra, totp
from tests.models import otp

try:  # where cryptography keeps the old cipher from version 48 on
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
except ImportError:
    from cryptography.hazmat.primitives.ciphers.algorithms import TripleDES

EXAMPLES = settings(max_examples=2000 if os.environ.get("TRONCAL_FUZZ") else 150, deadline=None)
KEY_BYTES = {
    "hmac-sha256": 32, "hmac-sha512": 64, "hmac-sha1": 20, "aes-cmac": 16, "tdes-cmac": 24,
    "retail-1": 16, "retail-2": 32, "x9.9-1": 8, "x9.9-2": 8, "tdes-mac-1": 16, "tdes-mac-2": 24,
}  # fmt: skip
SUITE = "OCRA-1:HOTP-SHA256-8:QN10-T1M"
NOW = 1_767_268_800


def des(key: bytes, block: bytes, *, decrypt: bool = False) -> bytes:
    key = {8: key * 3, 16: key + key[:8], 24: key}[len(key)]
    cipher = Cipher(TripleDES(key), modes.ECB())
    context = cipher.decryptor() if decrypt else cipher.encryptor()
    return context.update(block) + context.finalize()


def cbc_mac(key: bytes, data: bytes, padding: int) -> bytes:
    """ISO/IEC 9797-1 algorithm 1 over DES with a key of 1, 2 or 3 lengths."""
    if padding == 2:
        data += b"\x80"
    data = data.ljust(max(8, -len(data) // 8 * -8), b"\0")
    chain = bytes(8)
    for at in range(0, len(data), 8):
        chain = des(key, bytes(a ^ b for a, b in zip(chain, data[at : at + 8], strict=True)))
    return chain


def oracle(algorithm: str, key: bytes, data: bytes) -> bytes:
    if algorithm.startswith("hmac-"):
        return hmac.digest(key, data, algorithm[5:])
    if algorithm.endswith("cmac"):
        full = {16: key + key[:8]}.get(len(key), key)
        cmac = CMAC(algorithms.AES(key) if algorithm[0] == "a" else TripleDES(full))
        cmac.update(data)
        return cmac.finalize()
    padding = int(algorithm[-1])
    if algorithm.startswith("retail"):
        first, second = key[: len(key) // 2], key[len(key) // 2 :]
        return des(first, des(second, cbc_mac(first, data, padding), decrypt=True))
    return cbc_mac(key, data, padding)


@st.composite
def keys(draw: st.DrawFn) -> tuple[str, bytes]:
    algorithm = draw(st.sampled_from(sorted(KEY_BYTES)))
    if algorithm.startswith("hmac"):
        sizes = st.integers(1, 300)
    elif algorithm == "aes-cmac":
        sizes = st.sampled_from([16, 24, 32])
    elif algorithm.startswith("retail"):
        sizes = st.sampled_from([16, 32])
    elif algorithm.startswith("x9"):
        sizes = st.just(8)
    else:
        sizes = st.sampled_from([16, 24])
    size = draw(sizes)
    return algorithm, draw(st.binary(min_size=size, max_size=size))


@EXAMPLES
@given(keys(), st.binary(max_size=1600))
@example(("aes-cmac", bytes(16)), b"")
@example(("retail-1", bytes(range(16))), b"")
@example(("tdes-cmac", bytes(range(16))), bytes(512))
@example(("aes-cmac", bytes(range(32))), bytes(529))
@example(("hmac-sha256", bytes(65)), bytes(8183))
def test_agrees_with_the_oracle(key: tuple[str, bytes], data: bytes) -> None:
    mac = MacKey(*key)
    expected = oracle(*key, data)
    assert mac.mac(data) == expected
    assert mac.mac(bytearray(data)) == expected
    assert len(expected) == mac.mac_bytes
    for cut in range(len(expected) + 2):
        assert mac.verify(memoryview(data), expected[:cut].ljust(cut)) == (
            4 <= cut <= len(expected)
        )


@pytest.mark.parametrize(("algorithm", "size"), KEY_BYTES.items())
def test_every_length_around_the_blocks(algorithm: str, size: int) -> None:
    key = bytes(range(1, size + 1))
    mac = MacKey(algorithm, key)
    messages = [bytes(range(1, n + 1)) for n in range(70)]  # padding 1 hides zeros at the end
    macs = [oracle(algorithm, key, message) for message in messages]
    assert mac.mac_many(messages, mac.mac_bytes) == macs
    assert mac.mac_many(messages) == [tag[:8] for tag in macs]
    assert mac.verify_many(messages, macs) == [True] * len(macs)
    assert mac.verify_many(messages, macs[1:] + macs[:1]) == [False] * len(macs)
    assert mac.mac(messages[5]) == macs[5]  # nothing of the last message is left in the key


def test_one_wrong_bit_anywhere_fails() -> None:
    mac = MacKey("aes-cmac", bytes(16))
    tag = mac.mac(b"payload")
    for bit in range(128):
        bad = (int.from_bytes(tag, "big") ^ (1 << bit)).to_bytes(16, "big")
        assert not mac.verify(b"payload", bad)
        assert mac.verify(b"payload", bad[:8]) == (bit < 64)


@pytest.mark.parametrize(
    ("algorithm", "size"),
    [("hmac-sha256", 0), ("hmac-sha256", 4097), ("aes-cmac", 20), ("aes-cmac", 40),
     ("aes-cmac", 17), ("tdes-cmac", 8), ("retail-1", 24), ("retail-2", 8), ("x9.9-1", 16),
     ("tdes-mac-1", 32), ("md5", 16), ("", 16)],
)  # fmt: skip
def test_bad_keys_are_refused(algorithm: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"key of|unknown MAC") as raised:
        MacKey(algorithm, b"\xa5" * size)
    assert "a5" not in str(raised.value).lower()


def test_bad_arguments() -> None:
    mac = MacKey("hmac-sha1", b"k")
    for length in (3, 21, -1):
        with pytest.raises(ValueError, match="4 to 20 bytes"):
            mac.mac_many([b""], length)
    with pytest.raises(ValueError, match="as many MACs"):
        mac.verify_many([b""], [])
    wrong: Any
    for wrong in ([1], ["x"], [None], [bytearray(1)]):
        with pytest.raises(TypeError):
            mac.mac_many(wrong)
    for wrong in (["x"], [None]):
        with pytest.raises(TypeError):
            mac.verify_many([b""], wrong)
    wrong = "text"
    with pytest.raises(TypeError):
        mac.mac(wrong)
    with pytest.raises(TypeError):
        mac.verify(b"", wrong)
    with pytest.raises(TypeError):
        MacKey("hmac-sha1", wrong)
    assert mac.mac_many([]) == []
    assert mac.verify_many([], []) == []


def test_secrets_do_not_leak_through_the_object() -> None:
    secret = b"very secret key!"
    things: list[Any] = [MacKey("aes-cmac", secret), SeedVault(secret * 2)]
    for thing in things:
        assert secret.decode() not in repr(thing) + str(thing)
        assert secret.hex() not in repr(thing)
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)
        assert not hasattr(thing, "__dict__")


def test_keys_and_contexts_are_given_back() -> None:
    def churn() -> None:
        for size, names in ((16, ("aes-cmac", "hmac-sha256")), (24, ("tdes-cmac", "hmac-sha512"))):
            for name in names:
                for _ in range(3000):
                    MacKey(name, bytes(size)).mac_many([b"x"])

    churn()
    gc.collect()
    locked, before = _mac.locked_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    churn()
    assert _mac.locked_memory() == locked
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB


def test_threads_may_share_a_key_in_mac_many() -> None:
    mac = MacKey("aes-cmac", bytes(16))
    messages = [bytes([i]) * 300 for i in range(200)]
    right = mac.mac_many(messages)
    wrong: list[list[bytes]] = []

    def work() -> None:
        for _ in range(30):
            if (tags := mac.mac_many(messages)) != right:
                wrong.append(tags)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        assert mac.mac(messages[7])[:8] == right[7]
    for thread in threads:
        thread.join()
    assert not wrong


def test_equal() -> None:
    assert equal(b"", b"")
    assert equal(b"abc", bytearray(b"abc"))
    assert not equal(b"abc", b"abd")
    assert not equal(b"abc", b"ab")
    wrong: Any = "abc"
    with pytest.raises(TypeError):
        equal(b"abc", wrong)


def test_missing_library_is_told_plainly() -> None:
    """In a process of its own, where nothing is loaded yet."""
    program = (
        "from core_ext import _mac\n"
        "for name in ('libnowhere.so.3', 'libc.so.6'):\n"
        "    try: _mac.load_openssl(name)\n"
        "    except RuntimeError as error: print(error)\n"
        "print(_mac.hotp(b'12345678901234567890', 0))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert "needs OpenSSL 3" in lines[0]
    assert "libnowhere.so.3" in lines[0]
    assert "OPENSSL_version_major" in lines[1]
    assert lines[2] == "755224"
    assert _mac.load_openssl().startswith("OpenSSL 3")


# --------------------------------------------------------------------------- one-time passwords


@EXAMPLES
@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, 2**64 - 1),
    st.integers(6, 10),
    st.sampled_from(["sha1", "sha256", "sha512"]),
)
def test_hotp_agrees_with_the_oracle(key: bytes, counter: int, digits: int, algorithm: str) -> None:
    expected = otp.hotp(key, counter, digits=digits, algorithm=algorithm)
    assert hotp(key, counter, digits=digits, algorithm=algorithm) == expected
    time_s = counter // 2**30
    expected = otp.totp(key, time_s, digits=digits, algorithm=algorithm)
    assert totp(key, time_s, digits=digits, algorithm=algorithm) == expected


@st.composite
def challenges(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    hashes = st.sampled_from(["SHA1", "SHA256", "SHA512"])
    kind, length = draw(st.sampled_from("ANH")), draw(st.integers(4, 64))
    alphabet = {"A": "abcXYZ019-", "N": "0123456789", "H": "0123456789abcdefABCDEF"}[kind]
    inputs: dict[str, Any] = {
        "question": draw(st.text(alphabet, min_size=1, max_size=2 * length)),
    }
    suite = f"OCRA-1:HOTP-{draw(hashes)}-{draw(st.integers(4, 10))}:"
    if draw(st.booleans()):
        inputs["counter"] = draw(st.integers(0, 2**64 - 1))
        suite += "C-"
    suite += f"Q{kind}{length:02d}"
    if draw(st.booleans()):
        inputs["pin"] = draw(st.text("0123456789ñ", max_size=8))
        suite += f"-P{draw(hashes)}"
    if draw(st.booleans()):
        inputs["timestep"] = draw(st.integers(0, 2**63 - 1))
        suite += draw(st.sampled_from(["-T1S", "-T59S", "-T1M", "-T48H"]))
    return suite, inputs


@EXAMPLES
@given(challenges(), st.binary(min_size=1, max_size=150))
def test_ocra_agrees_with_the_oracle(challenge: tuple[str, dict[str, Any]], key: bytes) -> None:
    suite, inputs = challenge
    assert ocra(suite, key, **inputs) == otp.ocra(suite, key, **inputs)


@pytest.mark.parametrize(
    "suite",
    ["", "OCRA-1", "OCRA-2:HOTP-SHA1-6:QN08", "OCRA-1:HOTP-MD5-6:QN08", "OCRA-1:HOTP-SHA1-3:QN08",
     "OCRA-1:HOTP-SHA1-0:QN08", "OCRA-1:HOTP-SHA1-6:QN03", "OCRA-1:HOTP-SHA1-6:QN65",
     "OCRA-1:HOTP-SHA1-6:QX08", "OCRA-1:HOTP-SHA1-6:QN08-S064", "OCRA-1:HOTP-SHA1-6:QN08-T0M",
     "OCRA-1:HOTP-SHA1-6:QN08-T49H", "OCRA-1:HOTP-SHA1-6:QN08-T60S", "OCRA-1:HOTP-SHA1-6:QN08\n"],
)  # fmt: skip
def test_bad_suites_are_refused(suite: str) -> None:
    with pytest.raises(ValueError, match="OCRA"):
        ocra(suite, b"key", question="12345678", timestep=1 if "-T" in suite else None)


@pytest.mark.parametrize(
    ("suite", "inputs"),
    [("QN08", {"question": "1234567a"}), ("QN08", {"question": ""}),
     ("QN08", {"question": "1" * 17}), ("QN08", {"question": "١٢٣٤"}),  # Arabic digits
     ("QH08", {"question": "xyz"}), ("QH08", {"question": "ab cd"}), ("QA08", {"question": "ñ"}),
     ("QN08", {"question": "1", "counter": 1}), ("QN08", {"question": "1", "pin": "1"}),
     ("QN08", {"question": "1", "timestep": 1}), ("C-QN08", {"question": "1"}),
     ("C-QN08", {"question": "1", "counter": -1}), ("C-QN08", {"question": "1", "counter": 2**64}),
     ("QN08-PSHA1", {"question": "1"}), ("QN08-T1M", {"question": "1"}),
     ("QN08-T1M", {"question": "1", "timestep": -1})],
)  # fmt: skip
def test_bad_ocra_inputs_are_refused(suite: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"question|counter|time step|suite says"):
        ocra("OCRA-1:HOTP-SHA1-6:" + suite, b"key", **inputs)


def test_bad_hotp_arguments() -> None:
    for wrong in ({"digits": 5}, {"digits": 11}, {"algorithm": "md5"}):
        arguments: Any = wrong
        with pytest.raises(ValueError, match=r"digits|hash"):
            hotp(b"key", 0, **arguments)
    for counter in (-1, 2**64):
        with pytest.raises(ValueError, match="64 bits"):
            hotp(b"key", counter)
    with pytest.raises(ValueError, match="key must"):
        hotp(b"", 0)
    with pytest.raises(ValueError, match="64 bits"):
        totp(b"key", 0, t0=1)
    with pytest.raises(ValueError, match="step_s"):
        totp(b"key", 0, step_s=0)


# ------------------------------------------------------------------------------- sealed seeds

VAULT = SeedVault(bytes(range(32)))


@EXAMPLES
@given(st.binary(min_size=1, max_size=128), st.binary(max_size=40))
def test_seal_is_aes_gcm(seed: bytes, aad: bytes) -> None:
    sealed = VAULT.seal(seed, aad)
    other = AESGCM(bytes(range(32)))
    assert len(sealed) == 12 + len(seed) + 16
    assert VAULT.unseal(sealed, aad) == seed
    assert other.decrypt(sealed[:12], sealed[12:], aad) == seed
    nonce = b"n" * 12
    assert VAULT.unseal(nonce + other.encrypt(nonce, seed, aad), aad) == seed


def test_nonces_differ() -> None:
    assert len({VAULT.seal(b"seed", b"")[:12] for _ in range(1000)}) == 1000


def test_any_change_is_noticed() -> None:
    sealed = VAULT.seal(b"seed", b"card 1")
    for at in range(len(sealed)):
        bad = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(ValueError, match="does not verify"):
            VAULT.unseal(bad, b"card 1")
    with pytest.raises(ValueError, match="does not verify"):
        VAULT.unseal(sealed, b"card 2")
    with pytest.raises(ValueError, match="does not verify"):
        SeedVault(bytes(32)).unseal(sealed, b"card 1")
    with pytest.raises(InvalidTag):
        AESGCM(bytes(32)).decrypt(sealed[:12], sealed[12:], b"card 1")
    for size in (0, 28, 157):
        with pytest.raises(ValueError, match="29 to 156"):
            VAULT.unseal(bytes(size), b"")


def test_bad_vault_arguments() -> None:
    for size in (0, 16, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            SeedVault(bytes(size))
    for seed, aad in ((b"", b""), (bytes(129), b""), (b"s", bytes(1025))):
        with pytest.raises(ValueError, match="a seed has"):
            VAULT.seal(seed, aad)


@st.composite
def guesses(draw: st.DrawFn) -> dict[str, Any]:
    """Seeds, a mode and a code that is right for one of them somewhere near, or is not."""
    # With four digits many codes match by chance, at several steps and seeds at once.
    digits = draw(st.sampled_from([4, 4, 6, 8]))
    mode = "ocra" if digits == 4 else draw(st.sampled_from(["totp", "ocra"]))
    seeds = draw(st.lists(st.binary(min_size=1, max_size=128), max_size=6))
    back, forward = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    probe = draw(st.integers(0, 20))
    now = draw(st.integers(0, 30) | st.integers(29_000_000, 30_000_000))
    suite = f"OCRA-1:HOTP-SHA256-{digits}:QN10-T1M"
    algorithm = draw(st.sampled_from(["sha1", "sha256", "sha512"]))
    span = range(max(0, now - 25), now + 26)
    if mode == "ocra":
        codes = [
            {s: otp.ocra(suite, seed, question="1000150000", timestep=s) for s in span}
            for seed in seeds
        ]
    else:
        codes = [
            {s: otp.hotp(seed, s, digits=digits, algorithm=algorithm) for s in span}
            for seed in seeds
        ]
    aimed = draw(st.integers(0, 4)) > 0
    if codes and aimed:
        chosen = draw(st.integers(0, len(codes) - 1))
        code = codes[chosen][draw(st.sampled_from(span))]
    else:
        code = str(draw(st.integers(0, 10**digits - 1))).zfill(digits)
    return {
        "seeds": seeds, "codes": codes, "code": code, "mode": mode, "suite": suite, "now": now,
        "back": back, "forward": forward, "probe": probe, "digits": digits,
        "algorithm": algorithm, "pad_to": draw(st.integers(0, 5)),
    }  # fmt: skip


@EXAMPLES
@given(guesses(), st.integers(0, 59))
def test_match_agrees_with_the_oracle(guess: dict[str, Any], second: int) -> None:
    aads = [f"card {i}".encode() for i in range(len(guess["seeds"]))]
    sealed = [VAULT.seal(seed, aad) for seed, aad in zip(guess["seeds"], aads, strict=True)]
    found = VAULT.match(
        sealed, aads, guess["code"], mode=guess["mode"], now_s=guess["now"] * 60 + second,
        digits=guess["digits"], algorithm=guess["algorithm"], question="1000150000",
        suite=guess["suite"], back=guess["back"], forward=guess["forward"], probe=guess["probe"],
        pad_to=guess["pad_to"],
    )  # fmt: skip
    bounds = (guess["now"], guess["back"], guess["forward"], guess["probe"])
    assert found == otp.judge(guess["codes"], guess["code"], *bounds)


def test_two_cards_with_one_seed_both_match() -> None:
    sealed = [VAULT.seal(b"same", b"1"), VAULT.seal(b"other", b"2"), VAULT.seal(b"same", b"3")]
    code = totp(b"same", NOW)
    found = VAULT.match(sealed, [b"1", b"2", b"3"], code, mode="totp", now_s=NOW)
    assert found == [(1, NOW // 60), (0, 0), (1, NOW // 60)]


def test_a_seed_that_does_not_verify_is_an_error_after_all() -> None:
    sealed = [VAULT.seal(b"seed", b"1"), VAULT.seal(b"seed", b"2")]
    for code in (totp(b"seed", NOW), "000000"):
        with pytest.raises(ValueError, match="does not verify"):
            VAULT.match(sealed, [b"1", b"other"], code, mode="totp", now_s=NOW)


@pytest.mark.parametrize(
    "wrong",
    [{"code": "12345"}, {"code": "1234567"}, {"code": "12345A"}, {"code": "１２３４５６"},
     {"code": "-12345"}, {"code": "¹²³⁴⁵⁶"}, {"digits": 5}, {"digits": 11}, {"algorithm": "md5"},
     {"mode": "hotp"}, {"now_s": -1}, {"now_s": 1 << 60}, {"step_s": 0}, {"back": -1},
     {"forward": 1001}, {"probe": -1}, {"pad_to": 65}, {"pad_to": -1}, {"aads": []},
     {"sealed": [b""]}, {"sealed": [bytes(40)] * 65, "aads": [b""] * 65},
     {"mode": "ocra"}, {"mode": "ocra", "suite": SUITE},
     {"mode": "ocra", "suite": SUITE, "question": "1"},  # a code of 6 digits for a suite of 8
     {"mode": "ocra", "suite": SUITE, "question": "x"},
     {"mode": "ocra", "suite": "OCRA-1:HOTP-SHA256-6:QN10", "question": "1"},
     {"mode": "ocra", "suite": "OCRA-1:HOTP-SHA256-6:C-QN10-T1M", "question": "1"},
     {"mode": "ocra", "suite": "OCRA-1:HOTP-SHA256-6:QN10-PSHA1-T1M", "question": "1"}],
)  # fmt: skip
def test_bad_match_arguments(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "sealed": [VAULT.seal(b"seed", b"")], "aads": [b""], "code": "918273", "mode": "totp",
        "now_s": NOW,
    } | wrong  # fmt: skip
    with pytest.raises(ValueError) as raised:
        VAULT.match(**arguments)
    assert arguments["code"] not in str(raised.value)
    assert raised.value.__context__ is None or arguments["code"] not in str(
        raised.value.__context__
    )


@pytest.mark.timed
def test_an_unknown_person_takes_the_time_of_a_known_one() -> None:
    """No seed, one seed or four, all wrong: the same work. Best of many, so load matters little."""
    sealed = [VAULT.seal(bytes([i]) * 32, b"") for i in range(4)]

    best = dict.fromkeys((0, 1, 4), 1 << 62)
    for _ in range(400):
        for n in best:  # in turn: a slow moment of the machine hits all alike
            start = time.perf_counter_ns()
            found = VAULT.match(sealed[:n], [b""] * n, "000000", mode="totp", now_s=NOW)
            best[n] = min(best[n], time.perf_counter_ns() - start)
            assert found == [(0, 0)] * n
    assert max(best.values()) < 1.4 * min(best.values())
