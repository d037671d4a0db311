"""The job of a switch as one writes it in plain Python, without any input or output.

Read frames, verify the MAC, decode, look the holder up in a table, move the amount, answer with a
MAC. It is less than the switch does: there is no one-time code, nothing is written to disk, nothing
is held and captured, and a repeat is not recognised. It is written for speed: messages are msgspec
structs, MACs are one call into OpenSSL, the answers of one read leave together.
"""

import hmac
import struct

import msgspec

KEY = bytes(range(32))
ACCOUNTS = 100_000
DOCUMENT_FIRST = 10_000_000
BALANCE = 10**15
TAG_BYTES = 8

_PREFIX = struct.Struct(">BQ")
_FROM_CLIENT, _FROM_SERVER = 1, 2


class CashOut(msgspec.Struct, tag_field="op", tag="cash_out", gc=False):
    """What is asked."""

    trace: int
    cashier: str
    document: str
    token: str
    amount: int
    currency: str


class Answer(msgspec.Struct, tag_field="op", tag="answer", gc=False):
    """What is answered: as long as an answer of the switch without a ticket."""

    trace: int
    code: str
    key: str
    text: str
    instruction: str
    state: str
    operation: str
    authorization: str
    business_date: str
    amount: int
    fee: int
    duplicate: bool


class Table:
    """Balances by document."""

    def __init__(self, accounts: int = ACCOUNTS) -> None:
        self.balances = {str(DOCUMENT_FIRST + i): BALANCE for i in range(accounts)}
        self.operations = 0

    def take(self, request: CashOut) -> Answer:
        """Take the amount from the holder's balance."""
        balance = self.balances.get(request.document)
        if balance is None or balance < request.amount:
            return Answer(
                request.trace, "51", "SIN_FONDOS", "Fondos insuficientes.", "NO_ENTREGUE",
                "RECHAZO_REGISTRADO", "", "", "", request.amount, 0, False,
            )  # fmt: skip
        self.balances[request.document] = balance - request.amount
        self.operations += 1
        return Answer(
            request.trace, "00", "APROBADA", "Entregue el efectivo.", "ENTREGUE", "REGISTRADA",
            f"{self.operations:012d}", "A1B2C3", "2026-11-22", request.amount, 0, False,
        )  # fmt: skip


class Session:
    """One connection: bytes in, bytes out."""

    __slots__ = ("_buffered", "_counter_in", "_counter_out", "_table")

    def __init__(self, table: Table) -> None:
        self._table = table
        self._buffered = b""
        self._counter_in = 0
        self._counter_out = 0

    def receive(self, data: bytes) -> bytes:
        """The answers to all whole frames so far. Raises ValueError for a bad MAC or message."""
        data = self._buffered + data
        at, out = 0, []
        while len(data) - at >= 2:
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            if len(data) < end:
                break
            payload, tag = data[at + 2 : end - TAG_BYTES], data[end - TAG_BYTES : end]
            wanted = _tag(_FROM_CLIENT, self._counter_in, payload)
            if not hmac.compare_digest(wanted, tag):
                raise ValueError("bad MAC")
            self._counter_in += 1
            answer = _encode(self._table.take(_decode(payload)))
            out.append((len(answer) + TAG_BYTES).to_bytes(2, "big"))
            out.append(answer)
            out.append(_tag(_FROM_SERVER, self._counter_out, answer))
            self._counter_out += 1
            at = end
        self._buffered = data[at:]
        return b"".join(out)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CashOut).decode


def _tag(direction: int, counter: int, payload: bytes) -> bytes:
    return hmac.digest(KEY, _PREFIX.pack(direction, counter) + payload, "sha256")[:TAG_BYTES]
