"""Puts the payment application together: flow, sources, service, pages, metrics."""

import os
from typing import Final

from switch.config import ConfigError, Mistake
from switch.flows.cip import CipFlow
from switch.flows.cip_bank import BankSource
from switch.flows.cip_book import CipRefusal, own_keys
from switch.flows.cip_dimo import DimoSource
from switch.node import Node
from switch.products import Product
from switch.products.cip_metrics import measure
from switch.products.cip_service import CipService
from switch.provisioning_cip import flow_of
from switch.remotes import Remotes
from switch.web.cip import application, refused
from switch.web.mounts import Mount

PREFIXES: Final = ("/cip", "/pay")
BODY_BYTES_MAX: Final = 96 << 10  # the API answers above 64 KiB in its own form


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
    _add_sources(node, remotes, flow)
    service = CipService(node, flow, idempotency)
    mount = Mount(
        "cip", PREFIXES, application(service),
        body_bytes_max=BODY_BYTES_MAX, requests_max=node.config.cip.requests_max,
        refused=refused(service),
    )  # fmt: skip
    return Product(flow=flow, service=service, mounts=(mount,), measure=measure(service))


def _add_sources(node: Node, remotes: Remotes, flow: CipFlow) -> None:
    """The sources that need more than this node's own state."""
    roles = node.config.node.roles
    flow.sources["dimo"] = DimoSource(
        platform=node.sicoop if "sicoop" in roles else None,
        registry=node.registry,
        calendar=node.calendar,
        book=flow.book,
        flow=flow,
        node=node,
    )
    bank = BankSource(find=remotes.bank, book=flow.book, flow=flow, adjustment=flow.adjustments.get)
    bank.prepare()
    flow.sources["bank"] = bank
