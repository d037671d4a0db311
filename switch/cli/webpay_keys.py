"""`troncal webpay key`: the key store, and how its keys are rotated while both sides go on."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from switch.cli.base import Call, CliError, Group, print_table
from switch.config import Config
from switch.ops.key_store import KeyInfo, KeyStore, KeyStoreError, public_from_pem
from switch.ops.keys import MasterKey
from switch.products.webpay_periods import Period, Periods

DAY_NS: Final = 86_400 * 1_000_000_000
OVERLAP_DAYS: Final = 30
OVERLAP_DAYS_MAX: Final = 3650
T = TypeVar("T")

RELOAD: Final = "a node that runs takes it up with `troncal reload`"


def store_of(config: Config) -> KeyStore:
    """The key store of a node."""
    return KeyStore(config.data / "keys", MasterKey.load(config.file(config.node.master_key_file)))


def periods_of(config: Config) -> Periods:
    """The times of its keys' versions. Raises: CliError."""
    return _kept(lambda: Periods(config.data / "keys"))


def public_keys(call: Call, key_id: str) -> list[RSAPublicKey]:
    """Return the public key of a PEM file, or all versions of a name's; archives need old ones.

    Raises:
        BadParameter: there is none.
    """
    found: list[Any] = []
    try:
        if Path(key_id).is_file():
            found = [public_from_pem(Path(key_id).read_bytes())]
        else:
            config = call.config()
            ring = periods_of(config).ring(key_id, store_of(config).public)
            found = [version.key for version in ring.all]
    except (LookupError, KeyStoreError) as error:
        raise click.BadParameter(str(error).strip("'\""), param_hint="--key") from None
    if not all(isinstance(key, RSAPublicKey) for key in found):
        raise click.BadParameter("no RSA key", param_hint="--key")
    return found


def _instant(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """An instant in ISO 8601, UTC where it names no zone; a date is its first moment."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("is no date or time, as 2026-12-01 or 2026-12-01T03:00Z") from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000


@click.group("key", cls=Group)
def key() -> None:
    """The key store: RSA pairs of our own, public keys of merchants and acquirers."""


@key.command("new")
@click.argument("name")
@click.pass_obj
def key_new(call: Call, name: str) -> None:
    """Make a pair of 4096 bits; the private key is stored encrypted."""
    store = store_of(call.config())
    info = _kept(lambda: store.new(name))
    call.fields(_row(info, Period(name)))


@key.command("add")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def key_add(call: Call, name: str, file: Path) -> None:
    """Store a public or a private key from a PEM file."""
    config = call.config()
    info = _kept(lambda: store_of(config).add(name, file.read_bytes()))
    call.fields(_row(info, periods_of(config).of_version(name)[1]))


@key.command("list")
@click.pass_obj
def key_list(call: Call) -> None:
    """Name, bits, SHA-256 of the public key, and the time of each."""
    config = call.config()
    store, periods = store_of(config), periods_of(config)
    rows = [_row(store.info(name), periods.of_version(name)[1]) for name in store.names()]
    call.answer(rows, lambda: print_table(rows, empty="no keys"))


@key.command("show")
@click.argument("name")
@click.pass_obj
def key_show(call: Call, name: str) -> None:
    """Print the public key in PEM, to be given to the other side."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        public = store_of(call.config()).public(name)
    except (LookupError, KeyStoreError) as error:
        raise click.BadParameter(str(error).strip("'\""), param_hint="NAME") from None
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    click.echo(pem.decode(), nl=False)


@key.command("rotate")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--from", "from_ns", callback=_instant, metavar="TIME", help="In use from; else now.")
@click.option(
    "--overlap-days", type=click.IntRange(0, OVERLAP_DAYS_MAX), default=OVERLAP_DAYS,
    show_default=True, help="The old key is accepted so much longer.",
)  # fmt: skip
@click.pass_obj
def key_rotate(
    call: Call, name: str, file: Path | None, from_ns: int | None, overlap_days: int
) -> None:
    """Give the key NAME another version: a new pair, or the key of a PEM file.

    What we begin uses it from its date on; what is answered uses the version of the question. The
    old version is accepted until the overlap ends, the new one at once: the other side may change
    earlier or later than we do.
    """
    config = call.config()
    store, periods = store_of(config), periods_of(config)
    before = _kept(lambda: _info(store, name))
    pem = None if file is None else _fitting(file, before)
    if pem is None and not before.private:
        raise CliError(f"{name} is the key of somebody else", "name the PEM file of the new one")
    start = time.time_ns() if from_ns is None else from_ns
    version = _kept(lambda: periods.next_name(name, store))
    info = _kept(lambda: store.new(version) if pem is None else store.add(version, pem))
    periods.rotate(name, version, from_ns=start, until_ns=start + overlap_days * DAY_NS)
    call.fields(_row(info, periods.of_version(version)[1]))
    click.echo(RELOAD, err=True)


@key.command("end")
@click.argument("name")
@click.option("--at", "at_ns", callback=_instant, metavar="TIME", help="Else now.")
@click.pass_obj
def key_end(call: Call, name: str, at_ns: int | None) -> None:
    """Accept the version NAME of a key no longer than until then; at once if it was stolen."""
    config = call.config()
    periods = periods_of(config)
    info = _kept(lambda: _info(store_of(config), name))
    _kept(lambda: periods.end(name, at_ns=time.time_ns() if at_ns is None else at_ns))
    call.fields(_row(info, periods.of_version(name)[1]))
    click.echo(RELOAD, err=True)


@key.command("forget")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.pass_obj
def key_forget(call: Call, name: str, yes: bool) -> None:
    """Delete the private part of the version NAME, which must have ended.

    Its public part stays, because old Bitácoras are signed by it. What was sealed for it opens
    nowhere any more; backups keep it until they are gone.
    """
    config = call.config()
    store, periods = store_of(config), periods_of(config)
    info = _kept(lambda: _info(store, name))
    period = periods.of_version(name)[1]
    if not info.private:
        raise CliError(f"{name} has no private part here")
    if not period.ended(time.time_ns()):
        hint = f"troncal webpay key rotate, then key end {name}"
        raise CliError(f"{name} has not ended", hint)
    if not yes:
        click.confirm(f"Delete the private part of {name} for ever?", abort=True, err=True)
    store.forget_private(name)
    call.fields(_row(store.info(name), period))
    click.echo(RELOAD, err=True)


def _fitting(file: Path, before: KeyInfo) -> bytes:
    """The PEM of a file, if it may take a key's place. Raises: CliError."""
    try:
        pem = file.read_bytes()
    except OSError as error:
        raise CliError(f"{file}: {error.strerror or error}") from None
    public = _kept(lambda: public_from_pem(pem))
    if (b"PRIVATE KEY-----" in pem) != before.private:
        kind = "private" if before.private else "public"
        raise CliError(f"{file} holds no {kind} key, as {before.name} is")
    if getattr(public, "key_size", 0) < before.bits:
        raise CliError(f"{file} holds a key of less than {before.bits} bits")
    return pem


def _info(store: KeyStore, name: str) -> KeyInfo:
    try:
        return store.info(name)
    except LookupError as error:
        raise KeyStoreError(str(error).strip("'\"")) from None


def _kept(make: Callable[[], T]) -> T:
    """Do it, and say what is wrong as the commands do."""
    try:
        return make()
    except KeyStoreError as error:
        raise CliError(str(error)) from None


def _row(info: KeyInfo, period: Period) -> dict[str, Any]:
    return {
        "name": info.name,
        "bits": info.bits,
        "private": info.private,
        "sha256": info.sha256,
        "from": shown(period.from_ns),
        "until": shown(period.until_ns),
    }


def shown(instant_ns: int) -> str:
    """An instant for people and programs; nothing where there is none."""
    if not instant_ns:
        return ""
    return f"{datetime.fromtimestamp(instant_ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"
