"""A shop's orders and what it was told about them, in SQLite: durable before it says ACEPTADO.

    NEW → SENT → PAID | DECLINED | REFUSED; DECLINED, REFUSED → SENT on a new try;
    PAID → DISPUTED by reconciliation only

`decide` is the closing page: the shop's validations and its data base in one transaction. Nothing
else ever marks an order paid.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

ORDER_STATES: Final = ("NEW", "SENT", "PAID", "DECLINED", "REFUSED", "DISPUTED")
SENDABLE: Final = ("NEW", "SENT", "DECLINED", "REFUSED")
BUSY_S: Final = 20.0
BUDGET_S: Final = 25.0
"""What the closing page takes at most; a kit waits 30 s from its own start."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS orders (
    merchant TEXT NOT NULL, number TEXT NOT NULL, amount TEXT NOT NULL, session TEXT NOT NULL,
    state TEXT NOT NULL, tx_id TEXT NOT NULL DEFAULT '', respuesta TEXT NOT NULL DEFAULT '',
    auth_code TEXT NOT NULL DEFAULT '', PRIMARY KEY (merchant, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results (
    merchant TEXT NOT NULL, number TEXT NOT NULL, tx_id TEXT NOT NULL, mac TEXT NOT NULL,
    respuesta TEXT NOT NULL, accepted INTEGER NOT NULL,
    PRIMARY KEY (merchant, number, tx_id, mac)
) WITHOUT ROWID;
"""

Check = Literal["mac", "amount", "duplicate"]


class Order(Struct, frozen=True):
    """One order as the shop has it. `amount` is the text that was sent, compared as text."""

    merchant: str
    number: str
    amount: str
    session: str
    state: str
    tx_id: str = ""
    respuesta: str = ""
    auth_code: str = ""


class Verdict(Struct, frozen=True):
    """What the closing page says: ACEPTADO or not, and why, for the event log."""

    accepted: bool
    reason: str
    repeated: bool = False

    @property
    def word(self) -> str:
        return "ACEPTADO" if self.accepted else "RECHAZADO"


class OrderError(ValueError):
    """An order cannot be made or sent as asked."""


class _OutOfTime(Exception):
    """The budget of the closing page is over; what it changed is rolled back."""


class Orders:
    """The data base of one or many shops. Calls block; give them a worker thread.

    Args:
        path: the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        with self._connection() as base:
            base.execute("PRAGMA journal_mode = WAL")
            base.executescript(SCHEMA)

    def create(self, merchant: str, number: str, amount: str, session: str = "") -> Order:
        """Store a new order, before its cardholder leaves. Raises: OrderError: it is there."""
        with self._transaction() as base:
            if _order(base, merchant, number) is not None:
                raise OrderError("the order exists")
            base.execute(
                "INSERT INTO orders (merchant, number, amount, session, state)"
                " VALUES (?, ?, ?, ?, 'NEW')",
                (merchant, number, amount, session),
            )
        return Order(merchant, number, amount, session, "NEW")

    def send(self, merchant: str, number: str, tx_id: str) -> Order:
        """Mark an order as sent to Webpay. Raises: OrderError: unknown, or paid already."""
        with self._transaction() as base:
            order = _order(base, merchant, number)
            if order is None or order.state not in SENDABLE:
                raise OrderError("the order is unknown" if order is None else "the order is paid")
            _set(base, merchant, number, state="SENT", tx_id=tx_id)
        return order

    def refuse(self, merchant: str, number: str) -> None:
        """Note that the payment request of an order was refused; a paid order stays paid."""
        with self._transaction() as base:
            order = _order(base, merchant, number)
            if order is not None and order.state in SENDABLE:
                _set(base, merchant, number, state="REFUSED")

    def order(self, merchant: str, number: str) -> Order | None:
        """Return an order; None where there is none of this number."""
        with self._connection() as base:
            return _order(base, merchant, number)

    def all(self, merchant: str, limit: int = 1000) -> list[Order]:
        """Return the orders of a merchant, by number."""
        with self._connection() as base:
            rows = base.execute(
                f"SELECT {_COLUMNS} FROM orders WHERE merchant = ? ORDER BY number LIMIT ?",
                (merchant, limit),
            )
            return [Order(*row) for row in rows]

    def decide(
        self,
        merchant: str,
        pairs: Mapping[str, str],
        mac: str,
        *,
        mac_good: bool,
        clock: Callable[[], float],
        budget_s: float = BUDGET_S,
        skip: Iterable[Check] = (),
        before_commit: Callable[[], None] | None = None,
    ) -> Verdict:
        """Say whether a result is accepted; durable on return.

        Args:
            merchant: whose result it is, by the seal it came in or the page's own code.
            pairs: the result, values decoded, `TBK_MAC` and unsigned pairs included or not.
            mac: its `TBK_MAC`.
            mac_good: whether that is Webpay's signature over the pairs.
            clock: seconds, monotonic; the budget counts from now on.
            skip: validations left out, for a simulated shop only.
            before_commit: called once everything is done but the commit; simulated shops crash
                there.
        """
        until = clock() + budget_s
        skipped = frozenset(skip)
        if not mac_good and "mac" not in skipped:
            return Verdict(False, "MAC INVALIDO")
        try:
            with self._transaction(budget_s) as base:
                verdict = _closing(base, merchant, pairs, mac, skipped)
                if before_commit is not None:
                    before_commit()
                if clock() >= until:
                    raise _OutOfTime
        except (_OutOfTime, sqlite3.OperationalError):
            return Verdict(False, "fuera de plazo")
        return verdict

    def dispute(self, merchant: str, undone: Iterable[tuple[str, str, str]]) -> list[str]:
        """Mark orders that were paid by a sale which Webpay has reversed as DISPUTED.

        Args:
            undone: number, transaction and MAC of reversed sales. One that was rejected here, as
                a second of a paid order is, changes nothing.

        Returns:
            The numbers of the orders.
        """
        found = []
        with self._transaction() as base:
            for number, tx_id, mac in undone:
                order = _order(base, merchant, number)
                paid = base.execute(
                    "SELECT 1 FROM results WHERE merchant = ? AND number = ? AND tx_id = ?"
                    " AND mac = ? AND accepted AND respuesta = '0'",
                    (merchant, number, tx_id, mac.lower()),
                ).fetchone()
                if paid is not None and order is not None and order.state == "PAID":
                    _set(base, merchant, number, state="DISPUTED")
                    found.append(number)
        return found

    @contextmanager
    def _connection(self, busy_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self._path, timeout=busy_s, isolation_level=None)
        try:
            base.execute("PRAGMA synchronous = FULL")
            yield base
        finally:
            base.close()

    @contextmanager
    def _transaction(self, busy_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
        # SQLite lets waiting writers starve; those of this process queue here instead.
        if not self._writing.acquire(timeout=busy_s):
            raise sqlite3.OperationalError("the data base of orders is busy")
        try:
            with self._connection(busy_s) as base:
                base.execute("BEGIN IMMEDIATE")
                try:
                    yield base
                except BaseException:
                    base.execute("ROLLBACK")
                    raise
                base.execute("COMMIT")
        finally:
            self._writing.release()


_COLUMNS: Final = "merchant, number, amount, session, state, tx_id, respuesta, auth_code"


def _order(base: sqlite3.Connection, merchant: str, number: str) -> Order | None:
    row = base.execute(
        f"SELECT {_COLUMNS} FROM orders WHERE merchant = ? AND number = ?", (merchant, number)
    ).fetchone()
    return None if row is None else Order(*row)


def _set(base: sqlite3.Connection, merchant: str, number: str, **values: Any) -> None:
    changes = ", ".join(f"{name} = ?" for name in values)
    base.execute(
        f"UPDATE orders SET {changes} WHERE merchant = ? AND number = ?",
        (*values.values(), merchant, number),
    )


def _closing(
    base: sqlite3.Connection,
    merchant: str,
    pairs: Mapping[str, str],
    mac: str,
    skip: frozenset[str],
) -> Verdict:
    """Steps 2 to 7 of the closing page, inside its transaction."""
    number = pairs.get("TBK_ORDEN_COMPRA", "")
    order = _order(base, merchant, number)
    if pairs.get("TBK_CODIGO_COMERCIO", merchant) != merchant:
        return Verdict(False, "código de otro comercio")
    if order is None:
        return Verdict(False, "orden desconocida")
    key = (merchant, number, pairs.get("TBK_ID_TRANSACCION", ""), mac.lower())
    told = base.execute(
        "SELECT accepted FROM results"
        " WHERE merchant = ? AND number = ? AND tx_id = ? AND mac = ?", key
    ).fetchone()  # fmt: skip
    if told is not None and "duplicate" not in skip:
        return Verdict(bool(told[0]), "repetida", repeated=True)
    respuesta = pairs.get("TBK_RESPUESTA", "")
    paid = order.state in ("PAID", "DISPUTED")
    if respuesta != "0":
        verdict = Verdict(True, "rechazada por el emisor")
        if not paid:
            _set(base, merchant, number, state="DECLINED", respuesta=respuesta)
    elif pairs.get("TBK_MONTO") != order.amount and "amount" not in skip:
        verdict = Verdict(False, "monto distinto")
    elif paid and "duplicate" not in skip:
        verdict = Verdict(False, "orden ya pagada")
    else:
        verdict = Verdict(True, "pagada")
        code = pairs.get("TBK_CODIGO_AUTORIZACION", "")
        _set(base, merchant, number, state="PAID", respuesta="0", auth_code=code)
    base.execute(
        "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)",
        (*key, respuesta, int(verdict.accepted)),
    )
    return verdict
