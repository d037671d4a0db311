"""What a cardholder types into the payment form, read and checked.

Nothing typed here is ever shown: `Card` hides its number, expiry and security code from `repr`,
pickles and comparisons in messages, and a mistake names the field, never its content.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final, Literal, NoReturn

from msgspec import Struct

NUMBER: Final = re.compile(r"[0-9]{13,19}", re.ASCII)
CODE: Final = re.compile(r"[0-9]{3,4}", re.ASCII)
EXPIRY: Final = re.compile(r"(0[1-9]|1[0-2])\s?/?\s?(?:20)?([0-9]{2})", re.ASCII)
INSTALMENTS: Final = re.compile(r"(VN|S2|SI|NC|VC|CI)-([0-9]{1,2})", re.ASCII)
RUT: Final = re.compile(r"([1-9][0-9]{0,8})-?([0-9K])", re.ASCII)
FIELD_MAX: Final = 40
EXPIRY_YEARS_MAX: Final = 20

Mistake = Literal["tipo", "numero", "vencimiento", "codigo", "cuotas", "banco"]


class Card(Struct, frozen=True):
    """How one payment is to be paid. Secret: kept in memory while needed and nowhere else.

    Attributes:
        kind: "C" credit, "D" debit.
        pan: 13 to 19 digits with a right check digit.
        expiry: YYMM; empty for debit.
        cvv: 3 or 4 digits; empty for debit.
        pay_type: of `TBK_TIPO_PAGO`.
        instalments: 0 where there are none.
        bank: id of the bank of a debit card; else empty.
    """

    kind: Literal["C", "D"]
    pan: str
    expiry: str
    cvv: str
    pay_type: str
    instalments: int
    bank: str

    def __repr__(self) -> str:
        return f"Card({self.pay_type}, ******)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a card is not stored")


def luhn(number: str) -> bool:
    """Tell whether the last digit of a card number is the right check digit."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def instalment_choice(text: str) -> tuple[str, int] | None:
    """Read one of a merchant's choices, such as `VC-6`; None where it is none."""
    found = INSTALMENTS.fullmatch(text)
    return (found[1], int(found[2])) if found else None


def read_card(
    form: Mapping[str, str],
    *,
    kinds: Sequence[str],
    choices: Sequence[str],
    banks: Sequence[str],
    today: date,
) -> Card | tuple[Mistake, ...]:
    """Read the fields of the payment form.

    Args:
        form: as posted.
        kinds: what the merchant's form offers: "C", "D".
        choices: the instalments offered, as `VN-0`; the fixed ones alone where the shop fixed them.
        banks: ids of the banks offered.
        today: local date; a card is good to the end of its month.

    Returns:
        The card, or the fields that are wrong, in the order in which the form shows them.
    """
    kind = form.get("tipo", "C" if tuple(kinds) == ("C",) else "")
    if kind not in kinds:
        return ("tipo",)
    number = re.sub(r"[ .-]", "", form.get("numero", "")[:FIELD_MAX])
    wrong: list[Mistake] = []
    bank = form.get("banco", "") if kind == "D" else ""
    if kind == "D" and bank not in banks:
        wrong.append("banco")
    if not (NUMBER.fullmatch(number) and luhn(number)):
        wrong.append("numero")
    if kind == "D":
        return tuple(wrong) or Card("D", number, "", "", "VD", 0, bank)
    expiry = _expiry(form.get("vencimiento", ""), today)
    code = form.get("codigo", "").strip()
    chosen = form.get("cuotas", choices[0] if len(choices) == 1 else "")
    choice = instalment_choice(chosen) if chosen in choices else None
    if expiry is None:
        wrong.append("vencimiento")
    if not CODE.fullmatch(code):
        wrong.append("codigo")
    if choice is None:
        wrong.append("cuotas")
    if wrong or expiry is None or choice is None:
        return tuple(wrong)
    return Card("C", number, expiry, code, *choice, bank="")


def _expiry(text: str, today: date) -> str | None:
    """Return an expiry as YYMM; None where it is none, is past, or is absurdly far away."""
    found = EXPIRY.fullmatch(text.strip()[:FIELD_MAX])
    if not found:
        return None
    month, year = int(found[1]), 2000 + int(found[2])
    now, then = (today.year, today.month), (year, month)
    if then < now or year > today.year + EXPIRY_YEARS_MAX:
        return None
    return f"{year % 100:02d}{month:02d}"


def read_rut(text: str) -> str | None:
    """Read a Chilean identity number as `11111111-1`; None: its check digit is wrong, or missing.

    The check digit is 11 less the sum of the digits, weighted 2 to 7 from the right, modulo 11.
    """
    found = RUT.fullmatch(re.sub(r"[ .]", "", text.strip()[:FIELD_MAX]).upper())
    if found is None:
        return None
    total = sum(int(digit) * (2 + place % 6) for place, digit in enumerate(reversed(found[1])))
    return f"{found[1]}-{found[2]}" if found[2] == "0K987654321"[total % 11] else None


def pesos(hundredths: int, currency: str) -> str:
    """Return an amount as people in Chile write it: `$ 10.000`, `US$ 500,05`."""
    whole, cents = divmod(hundredths, 100)
    grouped = f"{whole:,}".replace(",", ".")
    return f"US$ {grouped},{cents:02d}" if currency == "USD" else f"$ {grouped}"


def choice_text(choice: str) -> str:
    """Return a choice of instalments in words."""
    found = instalment_choice(choice)
    if found is None:
        return choice
    kind, count = found
    words: dict[str, str] = {
        "VN": "Sin cuotas",
        "S2": "2 cuotas sin interés",
        "SI": "3 cuotas sin interés",
        "NC": f"{count} cuotas sin interés",
        "VC": f"{count} cuotas",
        "CI": f"{count} cuotas fijas",
    }
    return words[kind]


def hide(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a form may be shown again: the choices, never a number, date or code."""
    return {name: form[name] for name in ("tipo", "banco", "cuotas") if name in form}
