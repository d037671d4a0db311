"""Keys of Webpay that are rotated while payments are under way: acquirer's, merchant's, kit's."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from protocols.webpay import seal
from protocols.webpay.keyring import Ring, Version
from protocols.webpay.mac import payment_mac, verify_mac
from protocols.webpay.pairs import join_pairs, parse_pairs
from switch.config import ConfigError
from switch.ops.key_store import KeyStore, KeyStoreError
from switch.products.webpay_keys import Keys
from switch.products.webpay_periods import Periods
from switch.web.webpay import Entered, Refused
from switch.web.webpay_shop import MerchantKit, ShopError, ShopSettings
from tests.webpay_house import MASTER, Acquirer, Page, acquiring, card, key, request_pairs

OWN, SHOP = "webpay-101", "shop"
HOUR_NS = 3_600_000_000_000


@cache
def fresh(bits: int) -> RSAPrivateKey:
    """Another pair, as a rotation makes one."""
    return generate_private_key(65537, bits)


def old_own() -> RSAPrivateKey:
    return key("sim_webpay_4096")


def old_shop() -> RSAPrivateKey:
    return key("merchant_test_2048")


def rotate(acquirer: Acquirer, name: str, *, from_ns: int, until_ns: int) -> None:
    """What `troncal webpay key rotate` does, and then `troncal reload`."""
    directory = acquirer.config.data / "keys"
    periods, store = Periods(directory), KeyStore(directory, MASTER)
    version = periods.next_name(name, store)
    if name == OWN:
        pem = fresh(4096).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    else:
        public = fresh(2048).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    store.add(version, pem)
    periods.rotate(name, version, from_ns=from_ns, until_ns=until_ns)
    acquirer.node.reconfigure(acquirer.config)


def sealed(
    acquirer: Acquirer, order: str, *, own: RSAPrivateKey, shop: RSAPrivateKey
) -> dict[str, str]:
    """A request sealed by a version of the shop's key for a version of the acquirer's."""
    pairs = request_pairs(order, acquirer.shop.port)
    code = dict(pairs)["TBK_CODIGO_COMERCIO"]
    mac = payment_mac(pairs, code)
    whole = [(name, mac if name == "TBK_MAC" else value) for name, value in pairs]
    wire = seal.seal_wire(
        join_pairs(whole), shop, own.public_key(), aes_key=os.urandom(32), iv=os.urandom(16)
    )
    return {
        "TBK_PARAM": wire.decode(), "TBK_VERSION_KCC": "6.0", "TBK_CODIGO_COMERCIO": code,
        "TBK_KEY_ID": "101",
    }  # fmt: skip


async def pay(acquirer: Acquirer, order: str, *, own: RSAPrivateKey, shop: RSAPrivateKey) -> Any:
    """Pay an order of a shop whose kit has these keys; returns the payment as it ended."""

    async def answers(stream: trio.SocketStream, data: bytes) -> None:
        """The kit: opens with its own key alone, verifies with the one it knows, seals ACK."""
        body = data.partition(b"\r\n\r\n")[2]
        fields = dict(part.split("=", 1) for part in body.decode().split("&"))
        wire = fields["TBK_PARAM"].replace("%0a", "").replace("%2b", "+").replace("%2f", "/")
        opened = seal.open_wire(
            wire.replace("%3d", "=").encode(), shop, own.public_key(), spare_key=bytes(32)
        )
        good = verify_mac(parse_pairs(opened.message), opened.signature.hex(), own.public_key())
        word = b"ACK" if good else b"ERR"
        reply = seal.seal_wire(
            word, shop, own.public_key(), aes_key=os.urandom(32), iv=os.urandom(16)
        )
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(reply)}\r\n\r\n".encode()
        await stream.send_all(head + reply)

    acquirer.shop.script = answers
    fields = sealed(acquirer, order, own=own, shop=shop)
    entered = await acquirer.service.enter(fields, "127.0.0.1")
    assert isinstance(entered, Entered), entered
    page = Page(acquirer, entered.page_id, entered.cookie)
    await acquirer.service.shown(page.page_id)
    await page.pay(card())
    return await page.ended()


async def test_shops_change_to_a_new_acquirers_key_one_by_one(tmp_path: Path) -> None:
    """In the overlap both kinds of shops sell: each is answered with the key it asked with."""
    async with acquiring(tmp_path) as acquirer:
        now = acquirer.node.clock.wall_ns()
        rotate(acquirer, OWN, from_ns=now - HOUR_NS, until_ns=now + HOUR_NS)
        old = await pay(acquirer, "OC1", own=old_own(), shop=old_shop())
        new = await pay(acquirer, "OC2", own=fresh(4096), shop=old_shop())
        assert (old.state, new.state) == ("CONFIRMED", "CONFIRMED")
        assert (old.keys, new.keys) == ((OWN, SHOP), (f"{OWN}.2", SHOP))
        for payment, pair in ((old, old_own()), (new, fresh(4096))):
            pairs = parse_pairs(payment.message)
            assert verify_mac(pairs, payment.signature.hex(), pair.public_key())


async def test_a_merchant_changes_its_key(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        now = acquirer.node.clock.wall_ns()
        rotate(acquirer, SHOP, from_ns=now - HOUR_NS, until_ns=now + HOUR_NS)
        old = await pay(acquirer, "OC1", own=old_own(), shop=old_shop())
        new = await pay(acquirer, "OC2", own=old_own(), shop=fresh(2048))
        assert (old.state, new.state) == ("CONFIRMED", "CONFIRMED")
        assert (old.keys[1], new.keys[1]) == (SHOP, f"{SHOP}.2")


@pytest.mark.parametrize("name", [OWN, SHOP])
async def test_an_ended_key_opens_nothing(tmp_path: Path, name: str) -> None:
    async with acquiring(tmp_path) as acquirer:
        now = acquirer.node.clock.wall_ns()
        rotate(acquirer, name, from_ns=now - 2 * HOUR_NS, until_ns=now - HOUR_NS)
        fields = sealed(acquirer, "OC1", own=old_own(), shop=old_shop())
        refused = await acquirer.service.enter(fields, "127.0.0.1")
        assert refused == Refused("SEAL", 1)
        assert acquirer.payments() == []


async def test_a_payment_outlives_the_end_of_its_key(tmp_path: Path) -> None:
    """What was asked in time is answered: by the new key, where the old one has ended meanwhile."""
    async with acquiring(tmp_path, mode="direct") as acquirer:
        now = acquirer.node.clock.wall_ns()
        fields = sealed(acquirer, "OC1", own=old_own(), shop=old_shop())
        entered: Any = await acquirer.service.enter(fields, "127.0.0.1")
        rotate(acquirer, OWN, from_ns=now - 2 * HOUR_NS, until_ns=now - HOUR_NS)
        page = Page(acquirer, entered.page_id, entered.cookie)
        await acquirer.service.shown(page.page_id)
        await page.pay(card())
        await page.ended()
        payment = page.payment
        pairs = parse_pairs(payment.message)
        assert verify_mac(pairs, payment.signature.hex(), fresh(4096).public_key())


async def test_a_private_part_that_was_deleted_is_not_missed_once_it_has_ended(
    tmp_path: Path,
) -> None:
    async with acquiring(tmp_path) as acquirer:
        now = acquirer.node.clock.wall_ns()
        rotate(acquirer, OWN, from_ns=now - 2 * HOUR_NS, until_ns=now - HOUR_NS)
        store = KeyStore(acquirer.config.data / "keys", MASTER)
        store.forget_private(OWN)
        with pytest.raises(LookupError):
            store.private(OWN)
        acquirer.node.reconfigure(acquirer.config)
        done = await pay(acquirer, "OC1", own=fresh(4096), shop=old_shop())
        assert done.state == "CONFIRMED"
        assert store.public(OWN).key_size == 4096  # for old files
        assert Keys(acquirer.config, store, now).own["101"].all[0].name == f"{OWN}.2"
        # One that is accepted still must be there.
        with pytest.raises(ConfigError, match=OWN):
            Keys(acquirer.config, store, now - 90 * 60 * 10**9)


async def test_a_key_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async with acquiring(tmp_path) as acquirer:
        (acquirer.config.data / "keys" / "webpay.periods").write_text("{")
        acquirer.node.reconfigure(acquirer.config)
        payment = await pay(acquirer, "OC1", own=old_own(), shop=old_shop())
        assert payment.state == "CONFIRMED"


# ---- the merchant's side


class Calendar:
    """A clock that a test sets."""

    now_ns = 10 * HOUR_NS

    def __call__(self) -> int:
        return self.now_ns


def rings(from_ns: int, until_ns: int) -> tuple[Ring[Any], Ring[Any]]:
    own = Ring([
        Version("m", old_shop(), 0, until_ns), Version("m.2", fresh(2048), from_ns)
    ])  # fmt: skip
    webpay = Ring(
        [
            Version("w", old_own().public_key(), 0, until_ns),
            Version("w.2", fresh(4096).public_key(), from_ns),
        ]
    )
    return own, webpay


def test_a_kit_uses_new_keys_from_their_date_and_reads_old_ones_until_theirs(
    tmp_path: Path,
) -> None:
    clock = Calendar()
    settings = ShopSettings(
        merchant="597026007976", notify_url="http://127.0.0.1:8081/cgi-bin/tbk_bp_resultado.cgi",
        notify_ip="127.0.0.1", notify_port=8081, directory=tmp_path,
    )  # fmt: skip
    own, webpay = rings(20 * HOUR_NS, 30 * HOUR_NS)
    kit = MerchantKit(settings, own, webpay, wall_ns=clock)

    def asks(own_key: RSAPrivateKey, shop_key: RSAPrivateKey) -> bool:
        wire = kit.seal_message(b"ACK").encode()
        try:
            seal.open_wire(wire, own_key, shop_key.public_key(), spare_key=bytes(32))
        except seal.SealError:
            return False
        return True

    def reads(own_key: RSAPrivateKey, shop_key: RSAPrivateKey) -> bool:
        wire = seal.seal_wire(
            b"TBK_RESPUESTA=0", own_key, shop_key.public_key(), aes_key=bytes(32), iv=bytes(16)
        )
        return kit.open_result(wire.decode()) is not None

    old, new = (old_own(), old_shop()), (fresh(4096), fresh(2048))
    assert (asks(*old), asks(*new), reads(*old), reads(*new)) == (True, False, True, True)
    clock.now_ns = 20 * HOUR_NS
    assert (asks(*old), asks(*new), reads(*old), reads(*new)) == (False, True, True, True)
    clock.now_ns = 30 * HOUR_NS
    assert (asks(*old), asks(*new), reads(*old), reads(*new)) == (False, True, False, True)
    kit.renew(Ring([Version("m", old_shop(), 0, 1)]), webpay)
    with pytest.raises(ShopError):
        kit.seal_message(b"ACK")


# ---- versions and their times


def test_versions_by_their_times() -> None:
    ring = Ring([Version("a", 1, 0, 300), Version("a.2", 2, 200), Version("a.3", 3, 900)])
    assert [v.name for v in ring.accepted(100)] == ["a", "a.3", "a.2"]
    assert [v.name for v in ring.accepted(200)] == ["a.2", "a", "a.3"]
    assert [v.name for v in ring.accepted(300)] == ["a.2", "a.3"]
    assert [ring.used(now).name for now in (0, 199, 200, 899, 900)] == [  # type: ignore[union-attr]
        "a", "a", "a.2", "a.2", "a.3",
    ]  # fmt: skip
    assert ring.used(250, "a") == ("a", 1, 0, 300)
    assert ring.used(300, "a") == ("a.2", 2, 200, 0)
    assert Ring([Version("a", 1, 0, 5)]).used(5) is None
    assert [v.name for v in ring.all] == ["a.3", "a.2", "a"]
    for wrong in ([], [Version("a", 1), Version("a", 2)]):
        with pytest.raises(ValueError, match="one version"):
            Ring(wrong)


def test_periods_are_kept(tmp_path: Path) -> None:
    periods, store = Periods(tmp_path), KeyStore(tmp_path, MASTER)
    periods.rotate("k", "k.2", from_ns=100, until_ns=200)
    periods.rotate("k", "k.3", from_ns=150, until_ns=250)
    again = Periods(tmp_path)
    assert [(p.name, p.from_ns, p.until_ns) for p in again.of("k")] == [
        ("k", 0, 200), ("k.2", 100, 250), ("k.3", 150, 0),
    ]  # fmt: skip
    assert again.of_version("k.2")[0] == "k"
    with pytest.raises(KeyStoreError, match="rotate that"):
        again.next_name("k.2", store)
    again.end("k", at_ns=120)
    assert Periods(tmp_path).of("k")[0].until_ns == 120
    with pytest.raises(KeyStoreError, match="the last version"):
        again.end("k.3", at_ns=1)
