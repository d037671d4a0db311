"""The paper ticket: forty columns that any printer of a till can print.

Layout of a cash_out (cashier-domain §5); a deposit adds `Titular`, an annulment `Anula operacion`
and another title, a reprint says DUPLICADO:

                 RED DEMO S.A.
          RUC 80000000-0   Boca 000017
          Avda. Ejemplo 123, Asuncion
    ----------------------------------------
           EXTRACCION - TARJETA DIMO
    Fecha 01/01/2026           Hora 09:05:12
    Terminal 00001234   Cajero 000045 ANA R.
    Nro. operacion              260010000123
    Comprobante                       000123
    Autorizacion                      A7K2Q9
    Documento                     CI ****456
    MONTO                        Gs. 150.000
    Comision                           Gs. 0
    ----------------------------------------
    Efectivo entregado al titular.
    Operacion por cuenta de la entidad
    emisora. Conserve este comprobante.
    Control 1EABF11F                ORIGINAL

A ticket names nobody: documents, phones and the holder's name are masked here, whatever the caller
passes, and there is no field for a code or a card number. All of it is printable ASCII.
"""

import hmac
import unicodedata
from functools import lru_cache
from typing import Final, Literal

from msgspec import Struct

from core_ext._mac import MacKey
from switch.flows.norms import PHONE, amount_text, mask_document, mask_name

COLUMNS: Final = 40
PRODUCT: Final = "TARJETA DIMO"
"""Name of the card product in the title; the operator's own is given to `heading`."""

Kind = Literal["cash_out", "deposit"]
State = Literal["REGISTRADA", "ANULADA", "RECHAZO_REGISTRADO", "ERROR"]

_RULE: Final = "-" * COLUMNS
_TITLES: Final[dict[str, str]] = {"cash_out": "EXTRACCION", "deposit": "DEPOSITO"}
_NOT_APPROVED: Final = ("Operacion no aprobada.", "No se movio efectivo.")
_CLOSING: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("cash_out", "REGISTRADA"): ("Efectivo entregado al titular.",),
    ("cash_out", "ANULADA"): ("Efectivo no entregado o devuelto.",),
    ("deposit", "REGISTRADA"): ("Efectivo recibido del depositante.",),
    ("deposit", "ANULADA"): ("Efectivo no recibido o devuelto.",),
}
_ISSUER: Final = ("Operacion por cuenta de la entidad", "emisora. Conserve este comprobante.")

# Signs that Unicode does not decompose into ASCII and that do occur in names and addresses.
_SIGNS: Final = str.maketrans(
    {
        "ß": "ss",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "ø": "o",
        "Ø": "O",
        "đ": "d",
        "Đ": "D",
        "ł": "l",
        "Ł": "L",
        "ı": "i",
        "ŉ": "n",
        "‘": "'",
        "’": "'",
        "ʼ": "'",
        "´": "'",
        "“": '"',
        "”": '"',
        "«": '"',
        "»": '"',
        "–": "-",
        "—": "-",
        "‐": "-",
        "‑": "-",
        "−": "-",
        "₲": "Gs.",
        "¿": "",
        "¡": "",
    }
)


class Heading(Struct, frozen=True, gc=False):
    """What every ticket of one terminal begins with, made once by `heading`.

    Fields:
        lines: company, RUC and branch, address, rule.
        terminal: the left part of the terminal's line.
        titles: centred title by (kind, annulment).
    """

    lines: tuple[str, str, str, str]
    terminal: str
    titles: dict[tuple[str, bool], str]


class TicketData(Struct, frozen=True, gc=False):
    """What one ticket says. An empty string or None leaves the line out.

    Fields:
        heading: of the terminal that prints.
        business_date, hhmmss: `2026-01-01` and `090512`, the values that `control` covers, so that
            the console can check a ticket from its print alone.
        cashier: six digits; `cashier_name` is cut to the room left on its line.
        operation: number given by sicoop; `annuls` the number of the operation undone.
        document: (type, number), number in clear; `TEL` for a phone.
        holder: name of the holder of a deposit's card, in clear or already masked.
        amount, fee: minor units of `currency`.
        control: result of `control`; a refused operation has none.
        duplicate: a reprint.
    """

    heading: Heading
    kind: Kind
    business_date: str
    hhmmss: str
    cashier: str
    trace: int
    amount: int
    state: State = "REGISTRADA"
    operation: str = ""
    authorization: str = ""
    document: tuple[str, str] | None = None
    holder: str = ""
    cashier_name: str = ""
    fee: int = 0
    currency: str = "PYG"
    annuls: str = ""
    control: str = ""
    duplicate: bool = False


def heading(
    *,
    company: str,
    ruc: str,
    address: str,
    branch: str,
    terminal: str,
    product: str = PRODUCT,
) -> Heading:
    """Return the fixed part of a terminal's tickets. Too long lines are cut at 40 columns."""
    label = ascii_text(product)
    titles = {
        (kind, annulment): _centred(f"{'ANULACION ' if annulment else ''}{title} - {label}")
        for kind, title in _TITLES.items()
        for annulment in (False, True)
    }
    ruc_and_branch = "   ".join(
        part for part in (f"RUC {ruc}" if ruc else "", f"Boca {branch}") if part
    )
    return Heading(
        lines=(
            _centred(ascii_text(company)),
            _centred(ascii_text(ruc_and_branch)),
            _centred(ascii_text(address)),
            _RULE,
        ),
        terminal=f"Terminal {terminal}",
        titles=titles,
    )


def compose(data: TicketData) -> list[str]:
    """Return the lines of a ticket: at most 40 columns of printable ASCII, no blanks at the end.

    About 4 µs; it is done for every approved operation.
    """
    day = data.business_date
    time = data.hhmmss
    head = data.heading
    lines = [line for line in head.lines if line]
    lines.append(head.titles[data.kind, data.state == "ANULADA"])
    lines.append(
        f"Fecha {day[8:]}/{day[5:7]}/{day[:4]}           Hora {time[:2]}:{time[2:4]}:{time[4:]}"
    )
    lines.append(_row(head.terminal, _cashier(data, COLUMNS - len(head.terminal) - 1)))
    if data.operation:
        lines.append(_row("Nro. operacion", data.operation))
    if data.annuls:
        lines.append(_row("Anula operacion", data.annuls))
    lines.append(f"Comprobante                       {data.trace:06d}")
    if data.authorization:
        lines.append(_row("Autorizacion", data.authorization))
    lines.extend(_person(data))
    lines.append(_row("MONTO", amount_text(data.amount, data.currency)))
    lines.append(_row("Comision", amount_text(data.fee, data.currency)))
    lines.append(_RULE)
    lines.extend(_CLOSING.get((data.kind, data.state), _NOT_APPROVED))
    lines.extend(_ISSUER)
    copy = "DUPLICADO" if data.duplicate else "ORIGINAL"
    lines.append(_row(f"Control {data.control}" if data.control else "", copy))
    return lines


def control_key(subkey: bytes) -> MacKey:
    """The ticket key: 32 bytes, the master key's subkey `ticket`."""
    return MacKey("hmac-sha256", subkey)


def control(
    key: MacKey,
    *,
    kind: str,
    reference: str,
    operation: str,
    authorization: str,
    amount: int,
    currency: str,
    business_date: str,
    hhmmss: str,
    state: str,
) -> str:
    """Return the eight characters that prove a ticket: HMAC-SHA-256 under the ticket key, cut.

    Args:
        key: the ticket key, HMAC-SHA-256.
        business_date: `2026-01-01`.
        hhmmss: local time of registration, `090512`.
        state: REGISTRADA, on reprints too, or ANULADA.
    """
    text = (
        f"TK1|{kind}|{reference}|{operation}|{authorization}|{amount}|{currency}"
        f"|{business_date}|{hhmmss}|{state}"
    )
    return key.mac(text.encode())[:4].hex().upper()


def control_matches(shown: str, expected: str) -> bool:
    """Tell whether a control typed from paper, in any case and with blanks around, is right.

    Constant time: whoever may ask often must not learn the digits one by one.
    """
    typed = shown.strip().upper().encode("utf-8", "replace")
    return hmac.compare_digest(typed, expected.encode())


def ascii_text(text: str) -> str:
    """Return a text as printable ASCII: accents dropped, other signs as `?`, controls as blanks."""
    if text.isascii() and text.isprintable():
        return text
    return _folded(text)


# Names of cashiers and companies repeat on every ticket; folding one costs 5 to 20 µs.
@lru_cache(maxsize=4096)
def _folded(text: str) -> str:
    out = []
    for char in unicodedata.normalize("NFKD", text.translate(_SIGNS)):
        if " " <= char <= "~":
            out.append(char)
        elif unicodedata.combining(char):
            continue
        elif unicodedata.category(char)[0] in "CZ":
            out.append(" ")
        else:
            out.append("?")
    return "".join(out)


def _centred(text: str) -> str:
    text = text.strip()[:COLUMNS].rstrip()
    return " " * ((COLUMNS - len(text)) // 2) + text if text else ""


def _row(label: str, value: str) -> str:
    """Label at the left edge, value at the right; a value too long for the room is cut."""
    room = COLUMNS - len(label)
    return (label + (value.rjust(room) if len(value) <= room else value[:room])).rstrip()


def _cashier(data: TicketData, room: int) -> str:
    text = f"Cajero {data.cashier}"
    if data.cashier_name:
        text = f"{text} {ascii_text(data.cashier_name).strip()}"[:room].rstrip()
    return text


def _person(data: TicketData) -> list[str]:
    lines = []
    if data.document is not None:
        kind, number = data.document
        masked = mask_document(number)
        if kind == PHONE:
            lines.append(_row("Telefono", masked))
        else:
            lines.append(_row("Documento", f"{kind} {masked}"))
    if data.kind == "deposit" and data.holder:
        lines.append(_row("Titular", ascii_text(mask_name(data.holder))[: COLUMNS - 8]))
    return lines
