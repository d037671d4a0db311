"""A Webpay world in a thread of its own, for tests whose main thread belongs to a browser."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from switch.cli.webpay_world import Keys, Plan, World, running
from tests.webpay_shops import private

T = TypeVar("T")
START_S = 120.0


@cache
def keys() -> Keys:
    """Published and test-only pairs: making one of 4096 bits takes seconds."""
    return Keys(
        private("sim_webpay_4096"), private("merchant_test_2048"), generate_private_key(65537, 2048)
    )


class Threaded:
    """A world, and how to run something in its thread."""

    def __init__(self, world: World, token: trio.lowlevel.TrioToken) -> None:
        self.world = world
        self._token = token

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run an async function in the world's thread."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def call_sync(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)


@contextmanager
def threaded(
    directory: Path, plans: Sequence[Plan], values: Mapping[str, Any] | None = None
) -> Iterator[Threaded]:
    """Run a world in another thread until the end of the block."""
    ready = threading.Event()
    found: list[Any] = []
    failed: list[BaseException] = []

    async def live() -> None:
        stop = trio.Event()
        async with running(directory, plans, keys(), values) as world:
            found.extend((world, trio.lowlevel.current_trio_token(), stop))
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="webpay-world")
    thread.start()
    try:
        assert ready.wait(START_S), "the world does not start"
        if failed:
            raise failed[0]
        world, token, stop = found
        yield Threaded(world, token)
    finally:
        if found:
            trio.from_thread.run_sync(stop.set, trio_token=found[1])
        thread.join(START_S)
    if failed:
        raise failed[0]
