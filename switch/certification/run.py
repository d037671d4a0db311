"""A run from its first connection to its report."""

import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import trio
from msgspec import Struct

from protocols.session import PeerKey
from switch.calendar import Calendar
from switch.certification import network_cases
from switch.certification.files import Day
from switch.certification.line import Connect, NoAnswer, NoSession
from switch.certification.platform import Platform
from switch.certification.platform_cases import pack as platform_pack
from switch.certification.platform_stand import PlatformStand, Side
from switch.certification.report import (
    FAILED,
    FORMAT,
    NOT_PLAYED,
    PASSED,
    CaseReport,
    Report,
    verdict_of,
)
from switch.certification.stand import Pack, Stand, Terminal, Till, Times
from switch.clock import iso_ms
from switch.net.dial import Dialer
from switch.simulators.server import Server
from switch.simulators.terminal import tcp

UP_S: Final = 30.0
LANES_MAX: Final = 16

PLATFORM_PACK: Final = platform_pack({one.id: one.title for one in network_cases.PACK})

Progress = Callable[[CaseReport], None]


class Network(Struct):
    """A network as candidate.

    Fields:
        number: four digits. terminals: at least two that we may be, two for each lane.
        address: where its terminals connect. dialer: how, where that is with TLS.
        files: where it puts its daily files; None: it does not. files_wait_s: how long it has.
        make_file: makes it now (our own node), with the date as yyyymmdd.
        cashier, supervisor: who may work and annul at these terminals.
        announce: told when its file is waited for.
    """

    number: str
    terminals: list[Terminal]
    address: tuple[str, int]
    files: Path | None = None
    files_wait_s: float = 60.0
    make_file: Callable[[str], Awaitable[None]] | None = None
    cashier: str = "1"
    supervisor: str = "9"
    announce: Callable[[str], None] = lambda text: None
    dialer: Dialer | None = None


def _way(address: tuple[str, int], dialer: Dialer | None) -> Connect:
    if dialer is None:
        return tcp(*address)
    host, port = address
    return partial(dialer.open, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@asynccontextmanager
async def listening(
    platform: Platform, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, int]]:
    """Our platform, at this address, until the end of the block. Raises: OSError."""
    server = Server(platform.converse, seed=secrets.randbits(32), tls=tls)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(server.listen, host, port)
        nursery.cancel_scope.cancel()


def new_platform(number: str, key: PeerKey, calendar: Calendar) -> Platform:
    """Our platform, for one network."""
    return Platform({number: key}, today=calendar.business(time.time_ns()).iso)


async def certify_network(
    candidate: Network, platform: Platform, *, times: Times, calendar: Calendar,
    progress: Progress, only: Sequence[str] = (), settings: dict[str, Any] | None = None,
) -> Report:  # fmt: skip
    """Play the pack against a network that connects, or is to connect, to `platform`.

    Args:
        only: ids of cases; the others stand in the report as not played.
    """
    began_s = trio.current_time()
    began = iso_ms(time.time_ns())
    yesterday = calendar.business(time.time_ns()).number - 1
    make, iso = candidate.make_file, calendar.business_of(yesterday).iso

    async def make_file() -> None:
        assert make is not None
        await make(iso.replace("-", ""))

    stand = Stand(
        times=times, connect=_way(candidate.address, candidate.dialer),
        terminals=candidate.terminals[: 2 * LANES_MAX],
        platform=platform, progress=progress, cashier=candidate.cashier,
        supervisor=candidate.supervisor,
        extra=Day(
            candidate.number, iso, candidate.files, candidate.files_wait_s,
            None if make is None else make_file,
            candidate.announce,
        ),
    )  # fmt: skip
    packs, reports = _chosen(network_cases.PACK, only)
    hindrance = await _network_hindrance(candidate, platform, times)
    if hindrance:
        _not_played(packs, reports, hindrance, progress)
    else:
        await stand.run(packs, [r for r in reports if r.id in {p.id for p in packs}])
    return _report(
        candidate.number, "network", candidate.address, began, trio.current_time() - began_s,
        reports, settings or {},
    )  # fmt: skip


class PlatformPeer(Struct):
    """A platform as candidate.

    Fields:
        side: the network that we are there. key, version: its key.
        address: where the platform listens for networks. dialer: how, where that is with TLS.
    """

    side: Side
    key: PeerKey
    address: tuple[str, int]
    version: int = 1
    dialer: Dialer | None = None


async def certify_platform(
    candidate: PlatformPeer, *, times: Times, progress: Progress, only: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
) -> Report:  # fmt: skip
    """Play the pack against a platform in the simulator profile that has the kit (see `kit`)."""
    began_s, began = trio.current_time(), iso_ms(time.time_ns())
    side, address = candidate.side, candidate.address
    stand = PlatformStand(
        side=side, key=candidate.key, version=candidate.version,
        connect=_way(address, candidate.dialer), times=times, progress=progress,
    )  # fmt: skip
    packs, reports = _chosen(PLATFORM_PACK, only)
    hindrance = await _platform_hindrance(stand, address)
    if hindrance:
        _not_played(packs, reports, hindrance, progress)
    else:
        await stand.run(packs, [r for r in reports if r.id in {p.id for p in packs}])
    return _report(
        side.network, "platform", address, began, trio.current_time() - began_s, reports,
        settings or {},
    )  # fmt: skip


async def _platform_hindrance(stand: PlatformStand, address: tuple[str, int]) -> str:
    """Why no case can be played, or ''."""
    line = stand.lanes[0].lines[0]
    async with trio.open_nursery() as nursery:
        try:
            await line.open(nursery)
        except NoSession as why:
            return f"no session with {address[0]}:{address[1]}: {why}"
        finally:
            await line.close()
            nursery.cancel_scope.cancel()
    return ""


async def _network_hindrance(candidate: Network, platform: Platform, times: Times) -> str:
    """Why no case can be played, or ''."""
    where = f"{candidate.address[0]}:{candidate.address[1]}"
    till = Till(candidate.terminals[0], _way(candidate.address, candidate.dialer))
    async with trio.open_nursery() as nursery:
        try:
            await till.begin(nursery, times.answer)
        except (NoSession, NoAnswer) as why:
            return f"no session with {where}: {why}"
        finally:
            await till.close()
            nursery.cancel_scope.cancel()
    if not await platform.until(lambda: platform.up, UP_S):
        return f"the network did not sign on at our platform within {UP_S:g} s"
    return ""


def _chosen(
    pack: Sequence[Pack], only: Sequence[str]
) -> tuple[list[Pack], list[CaseReport]]:  # fmt: skip
    """The cases to play, and a report for every one of the pack."""
    packs = [one for one in pack if not only or one.id in only]
    chosen = {one.id for one in packs}
    reports = [CaseReport(one.id, one.title) for one in pack]
    for report in reports:
        if report.id not in chosen:
            report.reason = "left out by --case"
    return packs, reports


def _not_played(
    packs: Sequence[Pack], reports: Sequence[CaseReport], why: str, progress: Progress
) -> None:
    chosen = {one.id for one in packs}
    for report in reports:
        if report.id in chosen:
            report.verdict, report.reason = "failed", why
            progress(report)


def _report(
    network: str, side: str, address: tuple[str, int], began: str, seconds: float,
    cases: list[CaseReport], settings: dict[str, Any],
) -> Report:  # fmt: skip
    counts = {v: sum(c.verdict == v for c in cases) for v in (PASSED, FAILED, NOT_PLAYED)}
    return Report(
        format=FORMAT, product=f"troncal {version('troncal')}", network=network, side=side,
        candidate=f"{address[0]}:{address[1]}", began=began, ended=iso_ms(time.time_ns()),
        seconds=round(seconds, 3), verdict=verdict_of(cases), passed=counts[PASSED],
        failed=counts[FAILED], not_played=counts[NOT_PLAYED], settings=settings, cases=cases,
    )  # fmt: skip


def file_name(report: Report) -> str:
    """Name of a report's files, without suffix; sortable by time."""
    stamp = report.began.replace("-", "").replace(":", "").split(".")[0]
    return f"certification_{report.side}_{report.network}_{stamp}Z"
