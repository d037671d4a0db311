"""Puts the payment application together: flow, sources, service, pages, metrics."""

import os
import secrets
from typing import Final

from switch.config import ConfigError, Mistake
from switch.flows.cip import CipFlow
from switch.flows.cip_book import CipRefusal, own_keys
from switch.flows.cip_sources import LedgerSource, SimulatedSource
from switch.net.calls import Order
from switch.node import Node
from switch.ops.keys import MasterKey
from switch.products import Product
from switch.products.cip_metrics import measure
from switch.products.cip_service import CipService
from switch.remotes import Remotes
from switch.web.cip import application
from switch.web.mounts import Mount

PREFIXES: Final = ("/cip", "/pay")
BODY_BYTES_MAX: Final = 64 << 10


class Sealed:
    """The flow's view of the master key."""

    def __init__(self, master: MasterKey) -> None:
        self._master = master

    def seal(self, secret: bytes, owner: str) -> bytes:
        return self._master.seal(secret, purpose="product-keys", owner=owner)

    def open(self, sealed: bytes, owner: str) -> bytes:
        return self._master.open(sealed, purpose="product-keys", owner=owner)


def flow_of(node: Node) -> CipFlow:
    """The flow on a node's state, with the sources that need nothing outside of it."""
    flow = CipFlow(
        section=node.config.cip,
        records=node.store.records,
        vault=Sealed(node.master),
        chance=secrets.token_bytes,
    )
    flow.sources["simulator"] = SimulatedSource(node.store.records, flow)
    flow.sources["ledger"] = LedgerSource(node.store.ledger, node.limits, node.registry)
    return flow


def build(node: Node, remotes: Remotes) -> Product:
    """The payment application of a node whose state is recovered.

    Raises:
        ConfigError: a key of the environment is missing, or applications contradict each other.
    """
    flow = flow_of(node)
    try:
        confirmation, idempotency = own_keys(flow.book, node.config.cip, os.environ.get)
        flow.book.use_confirmation_key(confirmation)
        step = node.begin()
        flow.book.configure(step, node.config.cip.application)
        node.end(step)
    except (ValueError, CipRefusal) as error:
        raise ConfigError(node.config.path, [Mistake(0, "cip", str(error))]) from None
    service = CipService(node, flow, idempotency)
    mount = Mount(
        "cip", PREFIXES, application(service),
        body_bytes_max=BODY_BYTES_MAX, requests_max=node.config.cip.requests_max,
    )  # fmt: skip
    return Product(flow=flow, service=service, mounts=(mount,), measure=measure(service))


__all__ = ["Order", "build", "flow_of"]
