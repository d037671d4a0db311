"""Keys of an ISO 8583 link: sizes, versions, exchange; sealed one-time codes; PIN blocks."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core_ext._mac import MacKey
from protocols.iso8583.keys import HostKeys, KeyRefused, check_value, mac_key, unwrap, wrap
from protocols.iso8583.pin import clear_block, encrypted, pin_of
from protocols.iso8583.times import day_number, instant_ns, month_day, transmission_time
from protocols.iso8583.tokens import NoncesUsedUp, TokenOpener, TokenSealer

DAY_NS = 86_400_000_000_000
MAC_1, MAC_2 = bytes(range(16)), bytes(range(16, 32))
DATA_1, DATA_2 = bytes(range(32)), bytes(range(32, 64))
ZONE = bytes(range(64, 96))


def keys(**more: object) -> HostKeys:
    return HostKeys.of("aes-cmac", [(1, MAC_1)], [(1, DATA_1)], [(1, ZONE)], **more)  # type: ignore[arg-type]


# ---- wrapping and check values


def test_rfc_3394_section_4_6() -> None:
    zone = bytes.fromhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
    key = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = bytes.fromhex(
        "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    )
    assert wrap(zone, key) == wrapped
    assert unwrap(zone, wrapped) == key
    with pytest.raises(KeyRefused) as refused:
        unwrap(zone, wrapped[:-1] + b"\0")
    assert refused.value.code == "63"


def test_check_values() -> None:
    # NIST SP 800-38B has no zero block, so the CMAC is taken from the cipher: K1 from E(0).
    assert check_value(MAC_1) == MacKey("aes-cmac", MAC_1).mac(bytes(16))[:3]
    # DES of a zero block under the key of FIPS 81's examples, twice over.
    des = bytes.fromhex("0123456789ABCDEF" * 2)
    assert check_value(des, des=True).hex().upper() == "D5D44F"


@pytest.mark.parametrize(
    ("algorithm", "size"), [("aes-cmac", 16), ("retail", 16), ("retail-2", 16), ("hmac-sha256", 32)]
)
def test_key_sizes_are_those_of_the_algorithm(algorithm: str, size: int) -> None:
    assert len(mac_key(algorithm, bytes(range(size))).mac(b"text")) >= 8
    for wrong in (size - 1, size + 8):
        with pytest.raises(ValueError):
            mac_key(algorithm, bytes(wrong))


# ---- versions


def test_the_newest_key_signs_and_older_ones_still_verify() -> None:
    both = HostKeys.of("aes-cmac", [(1, MAC_1), (2, MAC_2)])
    old, new = mac_key("aes-cmac", MAC_1), mac_key("aes-cmac", MAC_2)
    assert both.signing_key().mac(b"x") == new.mac(b"x")
    assert both.signing_key(1).mac(b"x") == old.mac(b"x")
    assert both.signing_key(9).mac(b"x") == new.mac(b"x"), "a version that has gone"
    macs = [old.mac(b"a")[:8], new.mac(b"a")[:8], bytes(8), b"", new.mac(b"a")[:7]]
    assert both.verify_many([b"a"] * 5, macs) == [1, 2, 0, 0, 0]
    both.retire("mac", 1)
    assert both.verify_many([b"a"] * 2, macs[:2]) == [0, 2]
    with pytest.raises(ValueError):
        both.retire("mac", 2)


def test_a_mac_of_another_length_is_never_good() -> None:
    """A truncated MAC would be easier to guess; a longer one is another element's content."""
    one = keys()
    full = mac_key("aes-cmac", MAC_1).mac(b"a")
    assert one.verify_many([b"a"] * 4, [full[:4], full[:8], full, full[:8]]) == [0, 1, 0, 1]


def test_a_link_without_macs_must_be_named() -> None:
    assert not HostKeys([], algorithm="none").signs
    with pytest.raises(ValueError):
        HostKeys([])
    with pytest.raises(ValueError):
        HostKeys.of("none", [(1, MAC_1)])


def test_x9_9_only_verifies() -> None:
    weak = mac_key("x9.9", bytes(range(8)))
    with pytest.raises(ValueError):
        HostKeys([(1, weak)])
    mixed = HostKeys([(2, weak), (1, mac_key("aes-cmac", MAC_1))], algorithm="aes-cmac")
    assert mixed.verify_many([b"a"], [weak.mac(b"a")]) == [2]
    assert mixed.signing_key(2).algorithm == "aes-cmac"


def test_nothing_of_a_key_is_shown() -> None:
    assert MAC_1.hex() not in repr(keys())
    assert str(MAC_1) not in repr(keys())


# ---- exchange


@pytest.mark.parametrize(
    ("algorithm", "kind", "size"),
    [("aes-cmac", "mac", 16), ("retail", "mac", 16), ("hmac-sha256", "mac", 32),
     ("aes-cmac", "data", 32)],
)  # fmt: skip
def test_exchange(algorithm: str, kind: str, size: int) -> None:
    first = bytes(range(16 if algorithm in ("aes-cmac", "retail") else 32))
    ours = HostKeys.of(algorithm, [(1, first)], [(1, DATA_1)], [(1, ZONE)])
    theirs = HostKeys.of(algorithm, [(4, first)], [(7, DATA_1)], [(2, ZONE)])
    new = bytes(range(100, 100 + size))
    tags = ours.offer(kind, new)
    assert tags["30"] == kind
    assert len(tags["31"]) == 2 * (size + 8)
    assert len(tags["32"]) == 6
    version = ours.add(kind, new, pending=True)
    assert theirs.accept(kind, tags["31"], tags["32"].lower()) == (5 if kind == "mac" else 8, new)
    if kind == "mac":
        mac = theirs.signing_key().mac(b"x")[:8]
        assert ours.verify_many([b"x"], [mac]) == [version], "accepted before the answer"
        assert ours.signing_key().mac(b"x") != theirs.signing_key().mac(b"x")
        ours.promote("mac", version)
        assert ours.signing_key().mac(b"x") == theirs.signing_key().mac(b"x")
    else:
        assert ours.sealing_key == DATA_1
        assert ours.data_keys == [new, DATA_1]
        ours.promote("data", version)
        assert ours.sealing_key == new == theirs.sealing_key


def test_the_same_key_again_changes_nothing() -> None:
    both = keys()
    tags = both.offer("mac", MAC_2)
    assert both.accept("mac", tags["31"], tags["32"])[0] == 2
    assert both.accept("mac", tags["31"], tags["32"])[0] == 2
    assert both.versions("mac") == [2, 1]
    data = both.offer("data", DATA_1)
    assert both.accept("data", data["31"], data["32"])[0] == 1


def test_versions_may_be_counted_elsewhere() -> None:
    both = keys()
    assert both.add("mac", MAC_2, version=9) == 9
    assert both.add("data", DATA_2, pending=True, version=4) == 4
    assert both.versions("mac") == [9, 1]
    assert both.signing_key(9).mac(b"x") == mac_key("aes-cmac", MAC_2).mac(b"x")
    with pytest.raises(ValueError):
        both.add("mac", bytes(16), version=1)
    both.forget("data", 4)
    assert both.versions("data") == [1]
    both.forget("mac", 9)
    assert both.versions("mac") == [9, 1], "in use already"


def test_an_older_zone_key_still_unwraps() -> None:
    changed = HostKeys.of("aes-cmac", [(1, MAC_1)], [], [(2, DATA_2), (1, ZONE)])
    tags = keys().offer("mac", MAC_2)
    assert changed.accept("mac", tags["31"], tags["32"])[1] == MAC_2


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("zone", {}, "12"),
        ("mac", {"31": "zz"}, "30"),
        ("mac", {"31": "00" * 23}, "30"),
        ("mac", {"31": "00" * 24}, "63"),
        ("mac", {"32": "000000"}, "63"),
        ("mac", {"32": "0000"}, "30"),
        ("mac", {"32": ""}, "30"),
        ("data", {}, "30"),
    ],
)
def test_keys_that_are_refused(kind: str, change: dict[str, str], code: str) -> None:
    both = keys()
    tags = {**both.offer("mac", MAC_2), **change}
    with pytest.raises(KeyRefused) as refused:
        both.accept(kind, tags["31"], tags["32"])
    assert refused.value.code == code
    assert both.versions("mac") == [1]
    assert both.versions("data") == [1]


def test_without_a_zone_key_nothing_is_exchanged() -> None:
    bare = HostKeys.of("aes-cmac", [(1, MAC_1)])
    tags = keys().offer("mac", MAC_2)
    with pytest.raises(KeyRefused) as refused:
        bare.accept("mac", tags["31"], tags["32"])
    assert refused.value.code == "12"
    with pytest.raises(LookupError):
        bare.offer("mac", MAC_2)


# ---- one-time codes


def test_a_code_is_sealed_as_specified() -> None:
    sealer = TokenSealer(DATA_1, start=5)
    sealed = bytes.fromhex(sealer.seal("012345", "260010000123"))
    nonce, text = sealed[:12], sealed[12:]
    assert nonce == (5).to_bytes(12, "big")
    assert len(text) == 6 + 16
    assert AESGCM(DATA_1).decrypt(nonce, text, b"260010000123") == b"012345"


def test_a_code_is_opened_by_any_key_and_for_its_own_operation_only() -> None:
    sealer = TokenSealer(DATA_2, start=0)
    one, two = (sealer.seal("12345678", "260010000123") for _ in range(2))
    assert one != two
    opener = TokenOpener([DATA_1, DATA_2])
    assert opener.open(one, "260010000123") == "12345678"
    assert opener.open(one.lower(), "260010000123") == "12345678"
    assert opener.open(one, "260010000124") is None
    assert TokenOpener([DATA_1]).open(one, "260010000123") is None
    assert opener.open(one[:-2] + ("00" if one[-2:] != "00" else "01"), "260010000123") is None


@pytest.mark.parametrize("sealed", ["", "zz", "00" * 33, "00" * 37])
def test_what_is_no_sealed_code_is_refused(sealed: str) -> None:
    with pytest.raises(ValueError):
        TokenOpener([DATA_1]).open(sealed, "260010000123")


def test_what_is_no_code_inside_is_refused() -> None:
    text = AESGCM(DATA_1).encrypt(bytes(12), b"12345a", b"260010000123")
    with pytest.raises(ValueError) as error:
        TokenOpener([DATA_1]).open((bytes(12) + text).hex(), "260010000123")
    assert "12345" not in str(error.value)


def test_nonces_end_with_what_was_reserved() -> None:
    sealer = TokenSealer(DATA_1, start=2**40, count=2)
    assert [sealer.seal("123456", "260010000123")[:24] for _ in range(2)] == [
        (2**40 + i).to_bytes(12, "big").hex().upper() for i in range(2)
    ]
    assert sealer.left == 0
    with pytest.raises(NoncesUsedUp):
        sealer.seal("123456", "260010000123")
    sealer.reserved(2**40 + 3)
    assert sealer.seal("123456", "260010000123")[:24].endswith("02")


# ---- PIN blocks: what the vectors do not say


@pytest.mark.parametrize("format_", [0, 2, 3])
@pytest.mark.parametrize("pin", ["1234", "12345", "123456789012"])
def test_pin_blocks_are_read_back(format_: int, pin: str) -> None:
    block = clear_block(format_, pin, "5555555551234567", bytes(range(250, 256)) + bytes(4))
    assert block[0] >> 4 == format_
    assert pin_of(block, "5555555551234567") == pin
    if format_ != 2:
        with pytest.raises(ValueError):
            pin_of(block, "9999999999994567")


@pytest.mark.parametrize(
    ("format_", "pin", "pan"),
    [(1, "1234", "5555555551234567"), (0, "123", "5555555551234567"), (2, "1234567890123", ""),
     (0, "12a4", "5555555551234567"), (0, "1234", "555555555123"), (3, "1234", "5555555551234567")],
)  # fmt: skip
def test_what_makes_no_pin_block(format_: int, pin: str, pan: str) -> None:
    with pytest.raises(ValueError):
        clear_block(format_, pin, pan, b"short")


def test_a_pin_block_under_a_key() -> None:
    # Two equal halves make triple DES single DES: FIPS 81's key and "Now is t".
    key = bytes.fromhex("0123456789ABCDEF" * 2)
    assert encrypted(b"Now is t", key).hex().upper() == "3FA40E8A984D4815"


# ---- dates without a year


def test_transmission_time_is_utc() -> None:
    second = 1_767_268_799  # 2026-01-01T11:59:59Z
    assert transmission_time(second * 1_000_000_000 + 999_999_999) == "0101115959"


@pytest.mark.parametrize(
    ("now", "text", "expected"),
    [
        # (days of 1970-01-01 to now, MMDD, day)
        (20_454, "0101", 20_454),  # 2026-01-01
        (20_454, "1231", 20_453),  # 2025-12-31, yesterday
        (20_453, "0101", 20_454),  # 2026-01-01, seen from the day before
        (20_454, "0701", 20_635),  # 2026-07-01 is nearer than 2025-07-01
        (20_454, "0703", 20_272),  # 2025-07-03 is nearer
    ],
)
def test_a_date_means_the_nearest(now: int, text: str, expected: int) -> None:
    assert day_number(text, now * DAY_NS + 5) == expected
    assert month_day(expected) == text
    noon = expected * DAY_NS + DAY_NS // 2
    assert instant_ns(text + "120000", now * DAY_NS) == noon


def test_nearest_instants_over_new_year() -> None:
    new_year = 20_454 * DAY_NS
    second = 1_000_000_000
    assert instant_ns("1231235959", new_year) == new_year - second
    assert instant_ns("0101000001", new_year - second) == new_year + second


def test_leap_day() -> None:
    assert month_day(day_number("0229", 19_782 * DAY_NS)) == "0229"  # 2024-02-29
    with pytest.raises(ValueError):
        day_number("0229", 20_500 * DAY_NS)  # 2026: none in the years around


@pytest.mark.parametrize(
    "text", ["1301000000", "0132000000", "0101240000", "0101006000", "01010000"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        instant_ns(text, 20_454 * DAY_NS)
