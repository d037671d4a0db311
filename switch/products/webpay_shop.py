"""The merchant side of the process: kits of the shops in `[webpay_shop]`, served by HTTP."""

import time
from collections.abc import Callable
from typing import Final
from zoneinfo import ZoneInfo

from switch.config import Config, ConfigError, Mistake
from switch.ops.key_store import KeyStore, KeyStoreError
from switch.ops.keys import UnsealError
from switch.sections.webpay import WebpayShop
from switch.web.mounts import Mount
from switch.web.webpay_orders import Orders
from switch.web.webpay_shop import NOTIFICATION_BYTES_MAX, MerchantKit, ShopSettings, shop_app

PATHS: Final = ("/cgi-bin/tbk_bp_resultado.cgi", "/xt_compra")
ORDERS: Final = "webpay_orders.sqlite"
FOLDER: Final = "comercio"
"""Beside the acquirer's Bitácora, which may be of the same merchant, and never in it."""

REQUEST_S: Final = 30.0


def shop_mounts(
    config: Config, store: KeyStore, *, wall_ns: Callable[[], int]
) -> tuple[Mount, ...]:
    """Make the kits and their place on the HTTP listener; nothing where no shop is configured.

    Raises:
        ConfigError: a key is not there.
    """
    if not config.webpay_shop:
        return ()
    kits = [_kit(config, store, code, shop, wall_ns) for code, shop in config.webpay_shop.items()]
    orders = Orders(config.data / ORDERS)
    # The loop's own clock cannot be asked from the threads in which closing pages are decided.
    app = shop_app(kits, orders, clock=time.monotonic)
    return (
        Mount(
            "webpay_shop", PATHS, app, body_bytes_max=NOTIFICATION_BYTES_MAX, request_s=REQUEST_S
        ),
    )


def _kit(
    config: Config, store: KeyStore, code: str, shop: WebpayShop, wall_ns: Callable[[], int]
) -> MerchantKit:
    try:
        own, webpay = store.private(shop.key), store.public(shop.webpay_key)
    except (LookupError, KeyStoreError, UnsealError) as error:
        hint = "troncal webpay key add NAME FILE.pem"
        mistake = Mistake(0, f'webpay_shop."{code}"', str(error).strip("'\""), hint)
        raise ConfigError(config.path, [mistake]) from None
    settings = ShopSettings(
        merchant=code,
        currency=shop.currency,
        key_id=shop.key_id,
        notify_url=shop.notify_url,
        notify_ip=shop.notify_ip,
        notify_port=shop.notify_port,
        directory=config.file(shop.bitacora.dir) / FOLDER,
        style=shop.bitacora.style,
        layout=shop.bitacora.layout,
        timezone=ZoneInfo(config.webpay.timezone).key,
        acquirer_url=shop.acquirer_url,
        closing=shop.closing,
    )
    return MerchantKit(settings, own, webpay, wall_ns=wall_ns)
