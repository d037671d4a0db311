"""`troncal webpay`: keys, signatures and Bitácoras of Webpay, for operators and merchants.

`check-mac` and `bitacora` stand in for programs of the old kit and have its exit codes: 255 for a
signature that is not good, 1 and 2 for Bitácoras with bad records and files that cannot be read.
"""

import csv
import io
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from protocols.webpay import bitacora as records
from protocols.webpay import events as event_log
from switch.cli.base import Call, CliError, Group, print_json, print_table
from switch.cli.webpay_cards import card
from switch.cli.webpay_keys import key, public_keys, store_of
from switch.ops.key_store import KeyStoreError, private_from_pem

INVALID: Final = 255
FILE_BYTES_MAX: Final = 256 << 20
CONNECT_S: Final = 3.0
COLUMNS: Final = (
    "line", "prefix", "respuesta", "order", "merchant", "amount", "auth_code", "accounting_date",
    "tx_date", "tx_time", "session", "tx_id", "type", "pay_type", "instalments", "outcome",
    "charged", "reversed", "cause", "mac",
)  # fmt: skip
SHORT: Final = (
    "line", "prefix", "respuesta", "order", "amount", "auth_code", "accounting_date", "tx_time",
    "pay_type", "outcome", "charged", "reversed", "cause", "mac",
)  # fmt: skip
KEY_OPTION: Final = "A name in the key store, or a PEM file."


@click.group(cls=Group)
def webpay() -> None:
    """Webpay (KCC 6.0): signatures, Bitácoras, keys, and a check of what is configured."""


# ---- check-mac


@webpay.command("check-mac")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", "key_id", default="webpay-101", show_default=True, help=KEY_OPTION)
@click.pass_obj
def check_mac(call: Call, file: Path, key_id: str) -> None:
    """Check the signature of a result: prints CORRECTO (exit 0) or INVALIDO (exit 255).

    FILE holds the received pairs, values decoded, joined by "&", in the order received.
    """
    keys = public_keys(call, key_id)
    try:
        content = _content(file)
    except OSError as error:
        good, reason = False, f"{file}: {error.strerror or error}"
    else:
        good, reason = records.check_mac(content, keys)
    click.echo("CORRECTO" if good else "INVALIDO")
    if not good:
        click.echo(reason, err=True)
        raise click.exceptions.Exit(INVALID)


# ---- bitacora


@webpay.command("bitacora")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table")
@click.option("--key", "key_id", default="", help=KEY_OPTION + " Checks the signatures.")
@click.option(
    "--events", type=click.Path(path_type=Path), help="The kit's TBK_EVN file, for causes."
)
@click.pass_obj
def bitacora(call: Call, file: Path, form: str, key_id: str, events: Path | None) -> None:
    """Read a Bitácora: what became of each transaction.

    Exit code 1: a record is unreadable, or a signature is bad; 2: a file cannot be read.
    """
    keys = public_keys(call, key_id) if key_id else None
    try:
        parsed = records.parse(_content(file), keys)
        causes = _causes(_content(events)) if events is not None else {}
    except OSError as error:
        click.echo(f"error: {error.filename or file}: {error.strerror or error}", err=True)
        raise click.exceptions.Exit(2) from None
    rows = [_row(record, causes) for record in parsed.records]
    if call.json or form == "json":
        print_json(rows)
    elif form == "csv":
        click.echo(_csv(rows), nl=False)
    else:
        print_table([{name: _shown(row[name]) for name in SHORT} for row in rows], empty="")
        click.echo(f"{len(rows)} records, {parsed.skipped} other lines", err=True)
    if any(row["outcome"] == "UNREADABLE" or row["mac"] == "bad" for row in rows):
        raise click.exceptions.Exit(1)


def _row(record: records.Record, causes: dict[str, str]) -> dict[str, Any]:
    """One record as it is printed; a cause only where an acknowledgement is missing."""
    row: dict[str, Any] = {name: record.value(name) for name, _ in records.COLUMNS}
    cause = None
    if record.prefix == "ERR":
        cause = causes.get(f"tx {row['tx_id']}") or causes.get(f"order {row['order']}")
    end = record.outcome
    row |= {
        "line": record.line,
        "prefix": record.prefix,
        "outcome": record.outcome_name,
        "charged": None if end is None else end.charged,
        "reversed": None if end is None else end.reversed,
        "cause": cause,
        "mac": record.mac,
    }
    return {name: row[name] for name in COLUMNS}


def _causes(content: bytes) -> dict[str, str]:
    """Return the codes of missing acknowledgements in an event log, by transaction and order.

    A kit writes two lines for one failure: the transaction's number stands in the first, the
    order's in the second.
    """
    found: dict[str, str] = {}
    for line in content.split(b"\n"):
        event = event_log.parse_event(line)
        if event is None or event.code not in event_log.CAUSES:
            continue
        if event.tx_id:
            found[f"tx {event.tx_id}"] = event.code
        elif event.detail:
            found[f"order {event.detail}"] = event.code
    return found


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_shown(row[name]) for name in COLUMNS])
    return out.getvalue()


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


# ---- reconciliation


@webpay.command("reconcile")
@click.argument("merchant")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def reconcile(call: Call, merchant: str, file: Path) -> None:
    """Compare a shop's paid orders with the acquirer's Bitácora in FILE.

    A paid order whose sale was reversed becomes DISPUTED, and is printed. Exit code 1: there are
    some; 2: the file cannot be read. Records without a good signature count for nothing.
    """
    from switch.products.webpay_shop import ORDERS
    from switch.web.webpay_orders import Orders
    from switch.web.webpay_shop import reconcile as compare

    config = call.config()
    shop = config.webpay_shop.get(merchant)
    if shop is None:
        raise CliError(f"there is no shop {merchant}", f'[webpay_shop."{merchant}"]')
    try:
        content = _content(file)
    except OSError as error:
        click.echo(f"error: {file}: {error.strerror or error}", err=True)
        raise click.exceptions.Exit(2) from None
    signed = records.parse(content, public_keys(call, shop.webpay_key)).records
    good = [record for record in signed if record.mac == "ok"]
    rows = [{"order": number} for number in compare(Orders(config.data / ORDERS), merchant, good)]
    call.answer(rows, lambda: print_table(rows, empty="both sides agree"))
    if rows:
        raise click.exceptions.Exit(1)


# ---- keys and cards


webpay.add_command(key)
webpay.add_command(card)


# ---- doctor


@webpay.command("doctor")
@click.pass_obj
def doctor(call: Call) -> None:
    """Check keys, addresses, clock and reachability. Exit code 1: something is wrong."""
    from switch.cli.webpay_doctor import examine

    config = call.config()
    rows = examine(config, store_of(config), _connect)
    call.answer(rows, lambda: print_table(rows))
    if any(row["state"] == "wrong" for row in rows):
        raise click.exceptions.Exit(1)


def _connect(url: str) -> str:
    """Open a connection to the server of an address. Return what it was.

    Raises:
        OSError: it cannot be reached, or TLS fails.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), CONNECT_S) as plain:
        if parts.scheme != "https":
            return "open"
        context = ssl.create_default_context()
        with context.wrap_socket(plain, server_hostname=parts.hostname) as secure:
            return secure.version() or "TLS"


# ---- from the old kit


@webpay.command("import-kit")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def import_kit(directory: Path) -> None:
    """Print our sections for an old kit: reads datos/tbk_config.dat of its directory."""
    from switch.cli.webpay_doctor import kit_toml

    file = directory / "datos" / "tbk_config.dat"
    try:
        content = _content(file)
    except OSError as error:
        raise CliError(f"{file}: {error.strerror or error}", "name the kit's cgi-bin") from None
    try:
        click.echo(kit_toml(content), nl=False)
    except ValueError as error:
        raise CliError(f"{file}: {error}") from None


@webpay.command("kcc51")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", "key_id", required=True, help=KEY_OPTION)
@click.option(
    "--direction", type=click.Choice(["merchant_to_webpay", "webpay_to_merchant"]),
    default="merchant_to_webpay", show_default=True,
    help="The second needs the merchant's private key.",
)  # fmt: skip
@click.option("--merchant", default="", help="The merchant's code: checks the checksum too.")
@click.pass_obj
def kcc51(call: Call, file: Path, key_id: str, direction: str, merchant: str) -> None:
    """Decode an archived message of KCC 5.1; only with allow.kcc51 = true. Proves nothing:
    anybody with the merchant's public key could have made it."""
    from protocols.webpay import kcc51 as old

    if not call.config().webpay.allow.kcc51:
        raise CliError("KCC 5.1 is switched off", "[webpay] allow = { kcc51 = true }")
    try:
        wire = _content(file)
    except OSError as error:
        raise CliError(f"{file}: {error.strerror or error}") from None
    try:
        if direction == "merchant_to_webpay":
            message = old.open_archived(wire, public_keys(call, key_id)[0], "merchant_to_webpay")
        else:
            message = old.open_archived(wire, _private(call, key_id), "webpay_to_merchant")
    except ValueError as error:
        raise CliError(str(error)) from None
    click.echo(message.decode("latin-1"))
    if merchant:
        right = old.verify(message, merchant)
        click.echo(f"its checksum is {'right' if right else 'wrong'}", err=True)


# ---- common


def _content(file: Path) -> bytes:
    """Read a file. Raises: OSError, also for what is too large."""
    with open(file, "rb") as opened:
        content = opened.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise OSError(27, "file too large", str(file))
    return content


def _private(call: Call, key_id: str) -> RSAPrivateKey:
    found: Any = None
    try:
        if Path(key_id).is_file():
            found = private_from_pem(Path(key_id).read_bytes())
        else:
            found = store_of(call.config()).private(key_id)
    except (LookupError, KeyStoreError) as error:
        raise click.BadParameter(str(error).strip("'\""), param_hint="--key") from None
    if not isinstance(found, RSAPrivateKey):
        raise click.BadParameter("no RSA key", param_hint="--key")
    return found
