"""Webpay put together: the flow with its authorisers, keys, files, service and pages."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio

from switch.config import Config, ConfigError, Mistake
from switch.flows.webpay import WebpayFlow
from switch.flows.webpay_authorisers import BankAuthoriser, LedgerAuthoriser
from switch.flows.webpay_records import OWED, Payment
from switch.node import Node
from switch.ops.data_keys import DataKeys
from switch.ops.key_store import KeyStore, KeyStoreError
from switch.ops.logs import logger
from switch.ops.metrics import Metrics
from switch.products import Product
from switch.products.webpay_holders import HolderBanks
from switch.products.webpay_keys import Keys, Rsa, secret_at, secrets_of
from switch.products.webpay_service import WebpayService
from switch.products.webpay_shop import Shops
from switch.remotes import Remotes
from switch.reports.bitacora import BitacoraWriter
from switch.web.mounts import Mount
from switch.web.webpay import WebLimits, webpay_app

REQUEST_BYTES_MAX: Final = 32 << 10
REQUEST_S: Final = 30.0
PAGES: Final = ("/webpay", "/api/webpay")
DATA_KEYS: Final = "webpay-cards.keys"

log = logger("webpay")


class Vault:
    """Card numbers of pending reversals."""

    def __init__(self, keys: DataKeys) -> None:
        self._keys = keys

    def open(self, payment: str, sealed: bytes) -> str:
        found = self._keys.open(payment, sealed)
        return "" if found is None else found.decode("ascii")


def build(node: Node, remotes: Remotes) -> Product:
    """Make the acquirer.

    Raises:
        ConfigError: a key or a bank that merchants need is not there.
    """
    config = node.config
    section = config.webpay
    store = KeyStore(config.data / "keys", node.master)
    wall_ns = node.clock.wall_ns
    rsa = Rsa(Keys(config, store, wall_ns()), section.limits.rsa_threads, wall_ns)
    shops = Shops(config, store, wall_ns=wall_ns)
    data_keys = DataKeys(config.data / DATA_KEYS, node.master.subkey("fingerprint"))
    flow = WebpayFlow(
        config=config, records=node.store.records, vault=Vault(data_keys), sign=rsa.sign_now,
        ledger=LedgerAuthoriser(node.store.ledger, node.store.records), told=_log,
        renew=partial(_renew, config, store, rsa, shops, wall_ns),
    )  # fmt: skip
    _add_banks(config, remotes, flow)
    writer = BitacoraWriter(config.data, config.file(section.bitacora.dir), section.bitacora)
    bank_key = section.authentication.bank_key
    banks = HolderBanks(config, secret_at(config, "webpay.authentication.bank_key", bank_key))
    service = WebpayService(
        config=config, node=node, flow=flow, rsa=rsa, data_keys=data_keys, writer=writer,
        api_keys=tuple(secrets_of(config)), banks=banks,
    )  # fmt: skip
    limits = WebLimits(
        address_per_min=section.limits.address_per_min,
        merchant_per_min=section.limits.merchant_per_min,
        seal_fail_per_min=section.limits.seal_fail_per_min,
    )
    app = webpay_app(service, prefixes=section.prefixes, clock=trio.current_time, limits=limits)
    mount = Mount(
        "webpay", (*section.prefixes, *PAGES), app, body_bytes_max=REQUEST_BYTES_MAX,
        requests_max=section.limits.requests_max, request_s=REQUEST_S,
    )  # fmt: skip
    return Product(
        flow=flow, service=service, mounts=(mount, *shops.mounts),
        measure=partial(_measure, node=node, flow=flow, service=service, rsa=rsa, writer=writer),
    )  # fmt: skip


def _renew(
    config: Config, store: KeyStore, rsa: Rsa, shops: Shops, wall_ns: Callable[[], int]
) -> None:
    """Read all keys again, after a rotation; what cannot be read leaves all as they were."""
    try:
        keys = Keys(config, store, wall_ns())
        shops.renew()
    except (ConfigError, KeyStoreError) as error:
        log.error("keys_not_renewed", mistake=str(error))
    else:
        rsa.renew(keys)


def _log(payment: Payment, event: str) -> None:
    """One line per event; the record's own name, of which no address of a page can be made."""
    log.info(
        "payment", payment=payment.shown, merchant=payment.merchant, order=payment.order,
        what=event, state=payment.state, cause=payment.cause, first6_last4=payment.pan_masked,
        elapsed_ms=payment.elapsed_ms,
    )  # fmt: skip


def _add_banks(config: Config, remotes: Remotes, flow: WebpayFlow) -> None:
    """A way to every bank that a merchant names."""
    section = config.webpay
    mcc = {code: merchant.mcc for code, merchant in section.merchant.items()}
    names = {m.authoriser: code for code, m in section.merchant.items() if m.authoriser != "ledger"}
    for authoriser, code in names.items():
        name = authoriser.partition(":")[2]
        where = f'webpay.merchant."{code}".authoriser'
        try:
            port = remotes.bank(name)
        except LookupError:
            hint = f"troncal host add {name} --dialect bank --connect HOST:PORT"
            mistake = Mistake(0, where, f"there is no bank {name}", hint)
            raise ConfigError(config.path, [mistake]) from None
        if not port.settings.institution:
            mistake = Mistake(0, f"links.{name}.institution", "is missing", "DE32 of our requests")
            raise ConfigError(config.path, [mistake])
        port.add(flow)
        timeout_s = section.limits.auth_timeout_ms / 1000
        flow.add_authoriser(authoriser, BankAuthoriser(port, flow, timeout_s=timeout_s, mcc=mcc))


def _measure(
    metrics: Metrics,
    *,
    node: Node,
    flow: WebpayFlow,
    service: WebpayService,
    rsa: Rsa,
    writer: BitacoraWriter,
) -> None:
    """Counters and gauges; no order, card or token is a label."""
    metrics.add_counter(
        "webpay_requests", "Payment requests by the check that decided.",
        lambda: {(tag,): n for tag, n in service.requests.items()}, ("tag",),
    )  # fmt: skip
    metrics.add_counter(
        "webpay_payments", "Finished payments.", lambda: flow.outcomes, ("outcome", "cause")
    )
    metrics.add_gauge("webpay_state", "Open payments by state.", lambda: _states(flow), ("state",))
    metrics.add_counter(
        "webpay_seal_failures", "Messages that did not open.",
        lambda: _by_peer(service.seal_failures, service.notifier.seal_failures), ("peer",),
    )  # fmt: skip
    metrics.add_counter("webpay_late_ack", "ACKs that came too late.", lambda: flow.late_acks)
    metrics.add_counter("webpay_reply_replay", "Sealed replies seen before.", lambda: flow.replays)
    metrics.add_counter(
        "webpay_recovered", "Payments taken up at the start.",
        lambda: {(state,): n for state, n in flow.recoveries.items()}, ("state",),
    )  # fmt: skip
    metrics.add_histograms(
        "webpay_rsa", "Private operations.", lambda: rsa.histograms, "op", "bits"
    )
    metrics.add_gauge("webpay_rsa_queue", "Private operations that wait.", lambda: rsa.waiting)
    metrics.add_histograms(
        "webpay_notify", "From the result to the shop's answer.",
        lambda: service.notifier.times, "mode", "answer",
    )  # fmt: skip
    metrics.add_histogram(
        "webpay_ack_margin", "Time left when an ACK came.", service.notifier.margins
    )
    metrics.add_gauge(
        "webpay_reversals_pending", "Reversals not acknowledged.",
        lambda: _pending(flow), ("authoriser",),
    )  # fmt: skip
    metrics.add_gauge(
        "webpay_reversal_oldest_seconds", "Age of the oldest reversal not acknowledged.",
        lambda: _oldest(flow, node.clock.wall_ns()), ("authoriser",),
    )  # fmt: skip
    metrics.add_histograms(
        "webpay_auth", "From a request to its authoriser's answer.", lambda: flow.auth_times,
        "authoriser",
    )  # fmt: skip
    metrics.add_counter(
        "webpay_bitacora_lines", "Lines written.",
        lambda: {(prefix,): n for prefix, n in writer.counts.items()}, ("prefix",),
    )  # fmt: skip
    metrics.add_gauge(
        "webpay_bitacora_lag_records", "Lines that are not written yet.",
        lambda: flow.newest_line - writer.number,
    )  # fmt: skip


def _states(flow: WebpayFlow) -> Mapping[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for payment in flow.open_payments():
        found[(payment.state,)] = found.get((payment.state,), 0) + 1
    return found


def _pending(flow: WebpayFlow) -> Mapping[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for payment in flow.open_payments():
        if payment.reversal == OWED:
            found[(payment.authoriser,)] = found.get((payment.authoriser,), 0) + 1
    return found


def _oldest(flow: WebpayFlow, now_ns: int) -> Mapping[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for payment in flow.open_payments():
        if payment.reversal == OWED:
            key, age_s = (payment.authoriser,), (now_ns - payment.sent_ns) / 1e9
            found[key] = max(found.get(key, 0.0), age_s)
    return found


def _by_peer(*counts: Mapping[str, int]) -> Mapping[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for some in counts:
        for peer, n in some.items():
            found[(peer,)] = found.get((peer,), 0) + n
    return found
