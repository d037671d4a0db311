"""`certify`: play the certification pack against a network, and sign what came of it."""

import secrets
import ssl
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from protocols.session import PeerKey
from switch.certification import report as reports
from switch.certification import run, sandbox
from switch.certification.network_cases import PACK
from switch.certification.platform import Platform
from switch.certification.platform_stand import Side
from switch.certification.report import CaseReport, CheckFailed, Report
from switch.certification.stand import Terminal, Times
from switch.cli.base import Call, CliError, Command, print_fields, print_json, print_table, progress
from switch.cli.peers import read_object
from switch.cli.send import Credentials
from switch.config import Address, Config, LinkTls, parse_address
from switch.flows import norms
from switch.net.dial import Dialer
from switch.ops.keys import MasterKey

DIRECTORY: Final = "certification"
SIDES: Final = ("network", "platform")
LANES: Final = 16
CASES: Final = tuple(pack.id for pack in PACK)
_SECONDS: Final = click.FloatRange(0.5, 3600)
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


class Keys(msgspec.Struct):
    """The file of `--keys`: what `network add` and `terminal add` printed, put together."""

    network: Credentials
    terminals: list[Credentials]


@click.command(cls=Command)
@click.option("--network", type=norms.network, metavar="NNNN", help="The network to certify.")
@click.option("--side", type=click.Choice(SIDES), default=SIDES[0], show_default=True,
              help="Certify the network, or a platform as this network sees it.")  # fmt: skip
@click.option("--address", metavar="HOST:PORT",
              help="Where terminals, or networks, connect to it; else our own.")  # fmt: skip
@click.option("--keys", type=click.File("rb"), metavar="FILE",
              help="With --address: keys of network and terminals, as JSON.")  # fmt: skip
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT",
              help="Where our platform waits for the network.")  # fmt: skip
@click.option("--plaintext", is_flag=True, help="Let it listen outside loopback without TLS.")
@click.option("--tls", is_flag=True, help="Connect to --address with TLS.")
@click.option("--ca", type=_FILE, metavar="FILE",
              help="With --tls: authorities trusted, PEM; else those of the system.")  # fmt: skip
@click.option("--server-name", default="", metavar="NAME",
              help="With --tls: the name in its certificate; else its address.")  # fmt: skip
@click.option("--cert", type=_FILE, metavar="FILE",
              help="Our certificate, PEM: shown with --tls, used by --listen.")  # fmt: skip
@click.option("--cert-key", type=_FILE, metavar="FILE", help="Its private key, PEM.")
@click.option("--files", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Where the network puts its daily file.")  # fmt: skip
@click.option("--files-wait", "files_wait_s", type=_SECONDS, default=300, show_default=True,
              help="Seconds to wait for that file.")  # fmt: skip
@click.option("--branch", type=norms.branch, default="17", show_default=True,
              help="Of the terminals, where a platform is certified.")  # fmt: skip
@click.option("--cashier", type=norms.cashier, default="1", show_default=True)
@click.option("--supervisor", type=norms.supervisor, default="9", show_default=True)
@click.option("--terminal-s", type=_SECONDS, default=30, show_default=True,
              help="The network answers a terminal within this.")  # fmt: skip
@click.option("--platform-s", type=_SECONDS, default=25, show_default=True,
              help="The network waits so long for its platform.")  # fmt: skip
@click.option("--issuer-s", type=_SECONDS, default=15, show_default=True,
              help="A platform waits so long for its issuer.")  # fmt: skip
@click.option("--confirm-s", type=_SECONDS, default=60, show_default=True,
              help="A platform waits so long for a confirmation.")  # fmt: skip
@click.option("--case", "only", type=click.Choice(CASES), multiple=True, metavar="ID",
              help="Play this case only. Repeatable.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Of the report; else `certification` beside the configuration.")  # fmt: skip
@click.option("--check", "check_path", type=_FILE, metavar="REPORT",
              help="Verify a signed report instead.")  # fmt: skip
@click.option("--public-key", metavar="HEX", help="With --check: the signer's; else our own.")
@click.option("--show-key", is_flag=True, help="Print the public key that reports are signed with.")
@click.pass_obj
def certify(
    call: Call, /, network: str | None, check_path: Path | None, public_key: str | None,
    show_key: bool, **values: Any,
) -> None:  # fmt: skip
    """Play the 65 cases of the certification pack against a peer and sign a report.

    Of a network we are the terminals, and the platform that it connects to; of a platform (--side
    platform) we are this network. Without --address the candidate is a node of our own, made for
    the run in a directory of its own. Exit code 1 unless every case was played and passed.

    --keys holds {"network": …, "terminals": […, …]}: what `network add --json` and `terminal add
    --json` print; two terminals for each case that is to run beside others.
    """
    if public_key is not None and check_path is None:
        raise click.UsageError("--public-key goes with --check")
    if [check_path is not None, show_key, network is not None].count(True) != 1:
        raise click.UsageError("one of --network, --check and --show-key")
    if (values["cert"] is None) != (values["cert_key"] is None):
        raise click.UsageError("--cert and --cert-key go together")
    if not values["tls"] and (values["ca"] or values["server_name"]):
        raise click.UsageError("--ca and --server-name go with --tls")
    if (values["tls"] or values["cert"]) and values["address"] is None:
        raise click.UsageError("--tls and --cert go with --address")
    if check_path is not None:
        _check(call, check_path, public_key)
    elif show_key:
        call.fields({"public_key": reports.public_hex(_key(call.config()))})
    else:
        assert network is not None
        _certify(call, network, **values)


# ---- a report


def _check(call: Call, path: Path, public_key: str | None) -> None:
    if public_key is None:
        key = _key(call.config()).public_key()
    else:
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        except ValueError:
            raise click.BadParameter("64 hex digits", param_hint="--public-key") from None
    try:
        found = reports.check(path, key)
    except CheckFailed as failed:
        raise CliError(
            f"{path.name}: {failed}", "do not rely on it; ask for the original"
        ) from None
    call.fields({"signature": "good"} | _summary(found))


def _key(config: Config) -> Ed25519PrivateKey:
    return reports.signing_key(MasterKey.load(config.file(config.node.master_key_file)))


def _summary(report: Report) -> dict[str, Any]:
    names = ("network", "side", "candidate", "began", "verdict", "passed", "failed", "not_played")
    return {name: getattr(report, name) for name in names} | {"seconds": report.seconds}


# ---- a run


def _certify(
    call: Call, network: str, *, address: str | None, keys: BinaryIO | None, listen: str,
    plaintext: bool, output: Path | None, side: str, **values: Any,
) -> None:  # fmt: skip
    config = call.config()
    key = _key(config)
    at = _address(listen, "--listen")
    if not (plaintext or at.loopback or values["cert"]):
        hint = "--cert and --cert-key, or --plaintext where the line is protected otherwise"
        raise CliError("our platform would listen outside loopback without TLS", hint)
    if (address is None) != (keys is None):
        raise click.UsageError("--address and --keys go together")
    run_ours = {"network": _our_network, "platform": _our_platform}[side]
    run_theirs = {"network": _their_network, "platform": _their_platform}[side]
    if keys is None:
        report = trio.run(run_ours, config, network, at, values)
    else:
        assert address is not None
        given = _keys(keys, network)
        where = _address(address, "--address")
        report = trio.run(run_theirs, config, given, where, at, values)
    directory = output or config.path.parent / DIRECTORY
    paths = reports.write(directory, run.file_name(report), report, key)
    told = _summary(report) | {
        "files": [str(path) for path in paths], "public_key": reports.public_hex(key)
    }  # fmt: skip
    if call.json:
        print_json(told | {"cases": [_row(case) for case in report.cases]})
    else:
        _print(report, told)
    if not report.ok:
        raise click.exceptions.Exit(1)


async def _our_network(
    config: Config, network: str, at: Address, values: dict[str, Any]
) -> Report:  # fmt: skip
    key = PeerKey(secrets.token_bytes(32))
    platform = run.new_platform(network, key, config.calendar())

    async def played(home: Path, tell: _Keep) -> None:
        async with (
            run.listening(platform, at.host, at.port) as where,
            sandbox.network_node(home, network, key, where, 2 * LANES) as box,
        ):
            candidate = run.Network(
                network, box.terminals, box.addresses["terminals"], box.files,
                make_file=box.make_file,
            )  # fmt: skip
            tell(await _network(config, candidate, platform, sandbox.TIMES, values["only"]))

    return await _in_sandbox(played)


async def _our_platform(
    config: Config, network: str, _at: Address, values: dict[str, Any]
) -> Report:  # fmt: skip
    key = PeerKey(secrets.token_bytes(32))

    async def played(home: Path, tell: _Keep) -> None:
        async with sandbox.platform_node(home, network, key) as box:
            side = Side(
                network, list(sandbox.PLATFORM_TERMINALS), sandbox.BRANCH, box.config.calendar(),
                box.yesterday, box.read_file, box.files,
            )  # fmt: skip
            peer = run.PlatformPeer(side, key, box.addresses["sicoop"])
            tell(await _platform(peer, sandbox.TIMES, values["only"]))

    return await _in_sandbox(played)


_Keep = Callable[[Report], None]


async def _in_sandbox(played: Callable[[Path, _Keep], Awaitable[None]]) -> Report:
    """Run in a directory that is gone afterwards; a node that ends badly has its report too."""
    found: list[Report] = []
    with tempfile.TemporaryDirectory(prefix="troncal-certify-") as directory:
        try:
            await played(Path(directory) / "node", found.append)
        except* CliError as errors:
            if not found:
                raise
            for error in errors.exceptions:
                click.echo(f"error: {error}", err=True)
    return found[0]


async def _their_network(
    config: Config, keys: Keys, address: Address, at: Address, values: dict[str, Any]
) -> Report:  # fmt: skip
    network = keys.network.peer
    platform = run.new_platform(network, keys.network.peer_key(), config.calendar())
    terminals = [Terminal(t.peer, t.peer_key(), t.version) for t in keys.terminals]
    candidate = run.Network(
        network, terminals, address, values["files"], values["files_wait_s"],
        cashier=values["cashier"], supervisor=values["supervisor"], announce=_announce,
        dialer=_dialer(values),
    )  # fmt: skip
    async with run.listening(platform, at.host, at.port, _listener_tls(values)) as where:
        click.echo(f"our platform listens at {where[0]}:{where[1]}", err=True)
        return await _network(config, candidate, platform, _times(values), values["only"])


async def _their_platform(
    config: Config, keys: Keys, address: Address, _at: Address, values: dict[str, Any]
) -> Report:  # fmt: skip
    terminals = [terminal.peer for terminal in keys.terminals]
    side = Side(keys.network.peer, terminals, values["branch"], config.calendar())
    peer = run.PlatformPeer(
        side, keys.network.peer_key(), address, keys.network.version, _dialer(values)
    )
    return await _platform(peer, _times(values), values["only"])


def _dialer(values: dict[str, Any]) -> Dialer | None:
    """How the candidate is reached; None: by plain TCP. Raises: CliError."""
    if not values["tls"]:
        return None
    names = {"ca": values["ca"], "cert": values["cert"], "key": values["cert_key"]}
    paths = {name: str(path or "") for name, path in names.items()}
    try:
        return Dialer(LinkTls(server_name=values["server_name"], **paths), Path)
    except (OSError, ValueError) as error:
        raise CliError(str(error), "PEM files that we may read") from None


def _listener_tls(values: dict[str, Any]) -> ssl.SSLContext | None:
    """TLS of our platform; None: plain TCP. Raises: CliError."""
    if values["cert"] is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(values["cert"], values["cert_key"])
    except (OSError, ssl.SSLError):
        hint = "PEM, without a password"
        raise CliError("--cert and --cert-key are no certificate and its key", hint) from None
    return context


def _announce(text: str) -> None:
    click.echo(text, err=True)


def _times(values: dict[str, Any]) -> Times:
    names = ("terminal", "platform", "issuer", "confirm")
    return Times(**{name: values[f"{name}_s"] for name in names})


async def _network(
    config: Config, candidate: run.Network, platform: Platform, times: Times,
    only: tuple[str, ...],
) -> Report:  # fmt: skip
    with _shown(only) as tell:
        return await run.certify_network(
            candidate, platform, times=times, calendar=config.calendar(), progress=tell,
            only=only, settings=_settings(times),
        )  # fmt: skip


async def _platform(peer: run.PlatformPeer, times: Times, only: tuple[str, ...]) -> Report:
    with _shown(only) as tell:
        return await run.certify_platform(
            peer, times=times, progress=tell, only=only, settings=_settings(times)
        )


def _settings(times: Times) -> dict[str, Any]:
    budgets = msgspec.structs.asdict(times).items()
    return {f"{name} budget, seconds": value for name, value in budgets}


@contextmanager
def _shown(only: tuple[str, ...]) -> Iterator[run.Progress]:
    """A bar, and a line for each case that fails, on stderr."""
    columns = (
        TextColumn("certifying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )  # fmt: skip
    with progress(*columns) as bar:
        task = bar.add_task("cases", total=len(only) or len(PACK), last="")

        def tell(case: CaseReport) -> None:
            bar.update(task, advance=1, last=f"{case.id} {case.verdict}")
            if case.verdict == reports.FAILED:
                bar.console.print(f"{case.id} failed: {case.reason}", highlight=False, markup=False)

        yield tell


def _address(text: str, option: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _keys(file: BinaryIO, network: str) -> Keys:
    """Raises: CliError, without any of the keys."""
    hint = "see `troncal certify --help`"
    try:
        found = msgspec.convert(read_object(file), Keys)
    except msgspec.ValidationError:
        raise CliError("the file of --keys has no network and terminals", hint) from None
    if found.network.peer != network:
        raise CliError(f"the file of --keys is not of network {network}", hint)
    if len(found.terminals) < 2:
        raise CliError("the file of --keys needs two terminals or more", hint)
    repeated = [peer for peer, n in Counter(t.peer for t in found.terminals).items() if n > 1]
    if repeated:
        raise CliError(f"terminal {repeated[0]} stands in the file of --keys twice", hint)
    for one in (found.network, *found.terminals):
        one.peer_key()
    return found


def _row(case: CaseReport) -> dict[str, Any]:
    names = ("id", "title", "verdict", "reason", "seconds")
    return {name: getattr(case, name) for name in names}


def _print(report: Report, told: dict[str, Any]) -> None:
    left = [_row(case) for case in report.cases if case.verdict != reports.PASSED]
    if left:
        print_table(left, "Cases that did not pass")
    print_fields(told)
