"""The merchant side of the process: kits of the shops in `[webpay_shop]`, served by HTTP."""

import time
from collections.abc import Callable
from typing import Final
from zoneinfo import ZoneInfo

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from protocols.webpay.keyring import Ring
from switch.config import Config, ConfigError, Mistake
from switch.ops.key_store import KeyStore, KeyStoreError
from switch.ops.keys import UnsealError
from switch.products.webpay_periods import Periods
from switch.sections.webpay import WebpayShop
from switch.web.mounts import Mount
from switch.web.webpay_orders import Orders
from switch.web.webpay_shop import NOTIFICATION_BYTES_MAX, MerchantKit, ShopSettings, shop_app

PATHS: Final = ("/cgi-bin/tbk_bp_resultado.cgi", "/xt_compra")
ORDERS: Final = "webpay_orders.sqlite"
FOLDER: Final = "comercio"
"""Beside the acquirer's Bitácora, which may be of the same merchant, and never in it."""

REQUEST_S: Final = 30.0


class Shops:
    """The kits of all shops, and their place on the HTTP listener; none where none is configured.

    Raises:
        ConfigError: a key is not there.
    """

    def __init__(self, config: Config, store: KeyStore, *, wall_ns: Callable[[], int]) -> None:
        self._config = config
        self._store = store
        self._wall_ns = wall_ns
        rings = self._rings()
        self._kits = {
            code: MerchantKit(_settings(config, code, shop), *rings[code], wall_ns=wall_ns)
            for code, shop in config.webpay_shop.items()
        }
        self.mounts: tuple[Mount, ...] = ()
        if self._kits:
            # The loop's own clock cannot be asked from the threads in which closing pages decide.
            orders = Orders(config.data / ORDERS)
            app = shop_app(list(self._kits.values()), orders, clock=time.monotonic)
            self.mounts = (
                Mount(
                    "webpay_shop", PATHS, app, body_bytes_max=NOTIFICATION_BYTES_MAX,
                    request_s=REQUEST_S,
                ),
            )  # fmt: skip

    def renew(self) -> None:
        """Read the keys again. Raises: ConfigError: one is not there; nothing has changed then."""
        for code, rings in self._rings().items():
            self._kits[code].renew(*rings)

    def _rings(self) -> dict[str, tuple[Ring[RSAPrivateKey], Ring[RSAPublicKey]]]:
        periods = Periods(self._config.data / "keys")
        found, now_ns = {}, self._wall_ns()
        for code, shop in self._config.webpay_shop.items():
            try:
                found[code] = (
                    periods.ring(shop.key, self._store.private, now_ns=now_ns),
                    periods.ring(shop.webpay_key, self._store.public),
                )
            except (LookupError, KeyStoreError, UnsealError) as error:
                hint = "troncal webpay key add NAME FILE.pem"
                mistake = Mistake(0, f'webpay_shop."{code}"', str(error).strip("'\""), hint)
                raise ConfigError(self._config.path, [mistake]) from None
        return found


def _settings(config: Config, code: str, shop: WebpayShop) -> ShopSettings:
    return ShopSettings(
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
