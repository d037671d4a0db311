"""Products beside the cashier roles, each made by a module of its own when it is played.

`switch/products/<product>.py` has one function, `build(node, remotes) -> Product`: it puts the
product's flow, service and pages together. A product is played where its role is in `node.roles`
and its section is enabled; one that is not is not even imported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from switch.config import Config
from switch.flows.product import ProductFlow
from switch.flows.step import Call
from switch.node import Node
from switch.ops.metrics import Metrics
from switch.remotes import Remotes
from switch.web.mounts import Mount

ROLES = ("webpay", "transfiya", "cip")


class Service(Protocol):
    """What a product does outside of steps; `switch.net.calls.Calls` is one."""

    def ready(self, message: Call) -> None:
        """Take a call whose step is durable. Called from the reply gate: it must not wait."""

    def flush(self) -> None:
        """No more calls for now."""

    async def run(self, *, task_status: Any) -> None:
        """Work until cancelled; after `stop`, end when what is under way has ended."""

    def stop(self) -> None:
        """The node drains: begin nothing more."""


def _nothing(metrics: Metrics) -> None:
    """A product without metrics of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product as the process runs it.

    Attributes:
        mounts: its part of the `http` listener, which is open while any product has one.
        measure: adds its metrics.
    """

    flow: ProductFlow
    service: Service
    mounts: Sequence[Mount] = ()
    measure: Callable[[Metrics], None] = field(default=_nothing)


def played(config: Config) -> list[str]:
    """Products this configuration plays."""
    return [
        role
        for role in ROLES
        if role in config.node.roles
        and (section := getattr(config, role, None)) is not None
        and section.enabled
    ]


def build(node: Node, remotes: Remotes) -> list[Product]:
    """Make all that are played; called with the state recovered, before open work is finished.

    Raises:
        ConfigError: what only the registry, the key store or a file could tell.
    """
    products: list[Product] = []
    for role in played(node.config):
        module = import_module(f"switch.products.{role}")
        products.append(module.build(node, remotes))
    return products
