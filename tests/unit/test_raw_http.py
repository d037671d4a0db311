"""The client of the notifications: one delivery, timed to the byte, whatever the peer is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from switch.net.raw_http import Delivery

Answer = Callable[[trio.SocketStream], Awaitable[None]]
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def peer(answer: Answer) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that reads a request and then does what it is told."""
    seen: list[bytes] = []

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            seen.append(await stream.receive_some(4096))
            await answer(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, listeners)
        yield listeners[0].socket.getsockname()[1], seen
        nursery.cancel_scope.cancel()


def says(*parts: bytes) -> Answer:
    async def answer(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)

    return answer


@pytest.mark.parametrize(
    ("raw", "status", "body", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nABCD", 200, b"AB", True),
        (b"HTTP/1.0 200 OK\n\nAB", 200, b"AB", True),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\n",
            201,
            b"",
            True,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n0\r\n\r\n",
            200,
            b"A",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nA", 200, b"", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nAB", 200, b"AB", False),
        (b"HTTP/1.1 200", None, b"", False),
        (b"no HTTP at all", None, b"no HTTP at all", True),
    ],
)
async def test_answers_of_all_kinds(
    raw: bytes, status: int | None, body: bytes, whole: bool
) -> None:
    async with peer(says(raw)) as (port, seen):
        delivery = Delivery("127.0.0.1", port)
        await delivery.run(REQUEST, until_s=trio.current_time() + 10)
        await delivery.aclose()
        answer = delivery.answer
        assert (answer.status, bytes(answer.body), answer.whole) == (status, body, whole)
        assert delivery.ended_s is not None
        assert seen == [REQUEST]


async def test_an_answer_without_end_is_cut() -> None:
    async with peer(says(b"HTTP/1.0 200 OK\n\n", b"x" * 100_000)) as (port, _):
        delivery = Delivery("127.0.0.1", port, bytes_max=64 << 10)
        await delivery.run(REQUEST, until_s=trio.current_time() + 10)
        await delivery.aclose()
        assert (delivery.answer.ended, delivery.answer.whole) == (True, False)


async def test_three_tries_a_second_apart(autojump_clock: MockClock) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    began = trio.current_time()
    delivery = Delivery("127.0.0.1", port)
    await delivery.run(REQUEST, until_s=began + 30)
    assert (delivery.connects, delivery.phase, delivery.error) == (3, "connect", "OSError")
    assert delivery.is_none
    assert not delivery.is_open
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_what_comes_exactly_at_the_limit_is_read(mock_clock: MockClock) -> None:
    async def late(stream: trio.SocketStream) -> None:
        await trio.sleep(5.0)
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nA")
        await trio.sleep_forever()

    async with peer(late) as (port, seen):
        delivery = Delivery("127.0.0.1", port)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await delivery.run(REQUEST, until_s=5.0)

            nursery.start_soon(run)
            while not seen:
                await trio.testing.wait_all_tasks_blocked(0.001)
            mock_clock.jump(5.0)
        assert delivery.ended_s == 5.0
        await delivery.aclose()


async def test_the_watch_sees_what_comes_later(mock_clock: MockClock) -> None:
    async def late(stream: trio.SocketStream) -> None:
        await trio.sleep(7.0)
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nA")

    async with peer(late) as (port, seen):
        delivery = Delivery("127.0.0.1", port)
        found: list[bool] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await delivery.run(REQUEST, until_s=5.0)
                assert delivery.ended_s is None
                assert delivery.is_open
                found.append(await delivery.watch(10.0))

            nursery.start_soon(run)
            while not seen:
                await trio.testing.wait_all_tasks_blocked(0.001)
            mock_clock.jump(5.01)
            await trio.testing.wait_all_tasks_blocked(0.02)
            mock_clock.jump(2.0)
        assert found == [True]
        assert bytes(delivery.answer.body) == b"A"
        await delivery.aclose()
