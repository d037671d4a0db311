"""Whether this node lives, whether it may be given traffic, and what it has measured, over HTTP.

    GET /healthz   200 while the process is worth keeping; 503: restart it
    GET /readyz    200 while it can take operations; 503: send them elsewhere, do not restart it
    GET /metrics   the text format of Prometheus

Answers are JSON objects with `status` and `checks`; a check is "ok" or says what is wrong.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from switch.ops.metrics import CONTENT_TYPE, Metrics

_NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Where health is read from; every field is called at each request and must not block.

    Attributes:
        journal_failure: what the journal died of, None while it lives. After a failure nothing is
            ever acknowledged, so the process is of no use any more.
        recovered: the state of the last run has been read back.
        listeners_open: all listeners of the configuration accept.
        journal_room_bytes: what the journal may still write.
        room_bytes_min: below this the node takes no new operations.
        draining: the node is about to stop.
        ways_down: roles in other processes that cannot be reached at all.
    """

    journal_failure: Callable[[], str | None]
    recovered: Callable[[], bool]
    listeners_open: Callable[[], bool]
    journal_room_bytes: Callable[[], int]
    room_bytes_min: int
    draining: Callable[[], bool]
    ways_down: Callable[[], list[str]] = list

    def alive(self) -> dict[str, str]:
        """The checks of /healthz."""
        failure = self.journal_failure()
        return {"process": "ok", "journal": "ok" if failure is None else f"failed: {failure}"}

    def ready(self) -> dict[str, str]:
        """The checks of /readyz; whoever is not alive is not ready."""
        room_bytes = self.journal_room_bytes()
        return {
            **self.alive(),
            "recovery": "ok" if self.recovered() else "running",
            "listeners": "ok" if self.listeners_open() else "not open",
            "journal_room": "ok"
            if room_bytes >= self.room_bytes_min
            else f"{room_bytes} bytes left, {self.room_bytes_min} needed",
            "drain": "draining" if self.draining() else "ok",
            "links": f"down: {', '.join(down)}" if (down := self.ways_down()) else "ok",
        }


def ops_app(metrics: Metrics, health: Health, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The application of the ops listener; `routes` come first (the console lives there too)."""

    async def exposition(request: Request) -> Response:
        text = await metrics.exposition_in_turns()
        return Response(text, media_type=CONTENT_TYPE, headers=_NO_STORE)

    return Starlette(
        routes=[
            *routes,
            Route("/metrics", exposition),
            Route("/healthz", _checked(health.alive)),
            Route("/readyz", _checked(health.ready)),
        ]
    )


def _checked(read: Callable[[], dict[str, str]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        checks = read()
        sound = all(result == "ok" for result in checks.values())
        return JSONResponse(
            {"status": "ok" if sound else "failed", "checks": checks},
            status_code=200 if sound else 503,
            headers=_NO_STORE,
        )

    return endpoint
