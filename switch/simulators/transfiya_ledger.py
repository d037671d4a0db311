"""The network's ledger of profile v2, for tests: prepares, commits and aborts entries at banks.

It believes a bank's word only by its proof, and repeats its calls as the real one does.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

import httpx
import trio

from protocols.transfiya import SigningKey, check_proof, decode, encode, js_iso, make_record
from protocols.transfiya.ledger import ABORTED, COMMITTED, FAILED, PREPARED

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]

FIRST_REPEAT_S: Final = 1.0
REPEAT_GROWTH: Final = 1.2
REPEATS_MAX: Final = 5
WORD_S: Final = 120.0


class Ledger:
    """Drives intents through two banks.

    Args:
        wall_ns: its clock. rng: handles. transports: per bank, the way to it.

    Attributes:
        drop: calls of ours and proofs of banks that get lost, by name, counted down.
        repeat: every call of ours goes out that many times more.
        tries_max: calls without a 202 until one is given up.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int],
        rng: random.Random,
        transports: dict[str, httpx.AsyncBaseTransport],
    ) -> None:
        self._wall_ns = wall_ns
        self._rng = rng
        self._transports = transports
        self.key = SigningKey(rng.randbytes(32))
        self.banks: dict[str, bytes] = {}  # name → public key of its bridge
        self.words: dict[tuple[str, str], Any] = {}  # (entry, status) → custom of the proof
        self.intents: dict[str, dict[str, Any]] = {}
        self.drop: Counter[str] = Counter()
        self.repeat = 0
        self.tries_max = REPEATS_MAX
        self.breaches: list[str] = []
        self.changed = trio.Event()
        self.states: dict[str, str] = {}

    def _record(self, data: Any, status: str = "") -> dict[str, Any]:
        custom = {"moment": js_iso(self._wall_ns() // 1_000_000)}
        return make_record(data, {**custom, "status": status} if status else custom, self.key)

    async def transfer(
        self, source: tuple[str, str], target: tuple[str, str], amount: int, symbol: str = "cop"
    ) -> str:
        """One intent from (bank, account) to another, to its end: completed or rejected."""
        handle = f"in{self._rng.getrandbits(60):015x}"
        claim = {
            "action": "transfer", "amount": amount, "symbol": {"handle": symbol},
            "source": {"handle": source[1]}, "target": {"handle": target[1]},
        }  # fmt: skip
        intent = self._record({"handle": handle, "claims": [claim]}, "created")
        self.intents[handle] = intent
        entries = [("debit", source[0], f"deb_{handle}"), ("credit", target[0], f"cre_{handle}")]
        self.states[handle] = "pending"
        good = True
        for schema, bank, name in entries:
            data = {
                "handle": name, "schema": schema, "amount": amount, "symbol": {"handle": symbol},
                "source": claim["source"], "target": claim["target"], "intent": intent,
            }  # fmt: skip
            await self._call(bank, f"{schema}s", self._record(data))
            good = good and await self._word(name, (PREPARED, FAILED)) == PREPARED
        act, status = ("commit", COMMITTED) if good else ("abort", ABORTED)
        self.states[handle] = status
        for schema, bank, name in entries:
            data = {"handle": name, "action": act, "intent": intent}
            await self._call(bank, f"{schema}s/{name}/{act}", self._record(data))
            while await self._word(name, (status,)) != status:
                await self._call(bank, f"{schema}s/{name}/{act}", self._record(data))
        self.states[handle] = "completed" if good else "rejected"
        return self.states[handle]

    async def _word(self, entry: str, statuses: tuple[str, ...]) -> str:
        with trio.move_on_after(WORD_S):
            while True:
                for status in statuses:
                    if (entry, status) in self.words:
                        return status
                await self.changed.wait()
        return ""

    async def _call(self, bank: str, path: str, record: Any) -> None:
        """Call a bank until it has answered 202, and then as often as repeats are wanted."""
        wait_s = FIRST_REPEAT_S
        accepted = 0
        for _ in range(self.tries_max + self.repeat):
            if await self.call(bank, path, record) == 202:
                accepted += 1
                if accepted > self.repeat:
                    return
            await trio.sleep(wait_s)
            wait_s *= REPEAT_GROWTH

    async def call(self, bank: str, path: str, record: Any) -> int:
        """One call; the HTTP status, 0 where there is no answer."""
        kind = path.rpartition("/")[2] if "/" in path else path
        if self.drop[kind] > 0:
            self.drop[kind] -= 1
            return 0
        async with httpx.AsyncClient(transport=self._transports[bank]) as client:
            try:
                with trio.fail_after(10.0):
                    response = await client.post(
                        f"http://127.0.0.1/transfiya/{bank}/v2/{path}", content=encode(record)
                    )
            except (httpx.HTTPError, trio.TooSlowError):
                return 0
        return response.status_code

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Event]],
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        """Take proofs of the banks."""
        raw, more = b"", True
        while more:
            event = await receive()
            raw += event.get("body", b"")
            more = event.get("more_body", False)
        parts = [unquote(part) for part in scope["path"].strip("/").split("/")]
        status, body = self._proof(parts, decode(raw))
        raw = encode(body)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    def _proof(self, parts: list[str], proof: Any) -> tuple[int, Any]:
        if self.drop["proof"] > 0:
            self.drop["proof"] -= 1
            return 503, {}
        intent = self.intents.get(parts[-2])
        if intent is None:
            return 404, {"data": {"reason": "record.not-found", "detail": ""}}
        public = check_proof(intent["hash"], proof)
        if public is None or public not in self.banks.values():
            self.breaches.append("a proof that does not hold")
            return 400, {"data": {"reason": "crypto.signature-invalid", "detail": ""}}
        custom = proof["custom"]
        key = (custom["handle"], custom["status"])
        if key in self.words and self.words[key] != custom:
            self.breaches.append(f"{key}: told in two ways")
        self.words[key] = custom
        self.changed.set()
        self.changed = trio.Event()
        if self.drop["answer"] > 0:
            self.drop["answer"] -= 1
            return 503, {}
        return 201, intent
