"""TransfiYa's network, for tests and demonstrations: strict, with faults on demand.

`Network` keeps signers, wallets, actions and a double-entry book; it is an ASGI application for the
banks, and drives whole transfers by calling them. It uses the protocol's codec and none of the
bank's code.
"""

import base64
import hashlib
import math
import random
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import httpx
import trio

from core_ext import Histogram
from protocols.transfiya import (
    AmountError,
    BodyError,
    check_iou,
    decode,
    encode,
    error_body,
    handle_of,
    js_iso,
    to_minor,
)
from protocols.transfiya.times import instant_ns, label_text, zone_of
from switch.web.wire import PooledTransport

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

CONTINUE_S: Final = 480.0
ANSWER_S: Final = 12 * 3600.0
BANK_CALL_S: Final = 10.0
BANK_TRIES: Final = 4
BANK_PAUSE_S_MAX: Final = 5.0
LOG_MAX: Final = 100_000
SWAP_S: Final = 5.0
CONNECTIONS_MAX: Final = 256
KEPT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 1 << 20
DOMAIN: Final = "tin"
ZONE: Final = zone_of("-05:00")
_TX_CHARS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_CREATED_TYPES: Final = ("UPLOAD", "DOWNLOAD")


@dataclass
class Fault:
    """One fault: at an endpoint, so many times, after so many good ones.

    Attributes:
        endpoint: create, find, get, tag, prove, continue, accept, reject, signer, transfer, token;
            or a call of ours: debit, credit, action, status. `*`: any call of a bank.
        kind: drop (nothing is done), lose (done, but the answer is lost), delay (`value` seconds),
            slow (done at once, answered `value` seconds later), status (`value`: HTTP status),
            refuse (`value`: error code, HTTP 400), deny (the same, but it is done), garbage,
            forbidden (all tokens are worth nothing more), expired (prove: the IOU counts as
            expired), amount (create: written as `value`), bare (create: without a snapshot),
            duplicate (our call goes out twice, the second after `value` seconds), other (a second
            one with another amount), swap (our call waits until another one to that bank has gone
            out, at most `value` seconds), mark (our call tells `value` as the status), stop (the
            transfer is given up before our call), undo (the same after its answer), restart (the
            network is away for `value` seconds, and has forgotten its tokens).
        after_s: not before the network has run so long.
    """

    endpoint: str
    kind: str
    count: int = 1
    skip: int = 0
    value: Any = None
    tx_ref: str = ""
    after_s: float = 0.0


class Dropped(Exception):
    """A connection that ended without an answer."""


@dataclass
class BankEntry:
    """A bank as the network knows it."""

    id: str
    signer: str
    base_url: str
    auth: str = "none"
    client_id: str = field(default="", repr=False)
    client_secret: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    own_client_id: str = field(default="", repr=False)
    own_client_secret: str = field(default="", repr=False)
    own_api_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    token_until_s: float = 0.0
    synchronous: bool = False


@dataclass
class Wallet:
    """An alias: whose default signer money goes to, and how transfers to it are accepted."""

    handle: str
    default: str
    bank: str
    link: str = "ASK"  # TRUST: accepted by itself; BLOCK: refused


@dataclass
class Transfer:
    """One payment under way."""

    tx_ref: str
    kind: str
    source: str
    target: str
    amount: str
    minor: int
    main: dict[str, Any]
    status: str = "PENDING"
    phase: str = ""
    reversing: bool = False
    error: dict[str, Any] = field(default_factory=dict)
    heard: trio.Event = field(default_factory=trio.Event)
    word: Any = None
    awaited: str = ""
    accepted: trio.Event = field(default_factory=trio.Event)
    signer: str = ""
    refused: dict[str, Any] | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    history: list[str] = field(default_factory=list)


class _Failure(Exception):
    """A transfer that cannot go on."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message}


class _Refused(Exception):
    """A call of a bank that is not taken."""

    def __init__(self, code: int, message: str, http: int = 400) -> None:
        super().__init__(message)
        self.code, self.http = code, http


class Network:
    """The network.

    Args:
        wall_ns: its clock. rng: identifiers, faults. symbol: handle of the currency's signer.
        transports: per bank, another way than TCP to call it.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int],
        rng: random.Random,
        *,
        transports: dict[str, httpx.AsyncBaseTransport] | None = None,
        symbol: str = "$tin",
        exponent: int = 2,
    ) -> None:
        self._wall_ns = wall_ns
        self.rng = rng
        self.symbol = symbol
        self.symbol_signer = handle_of(hashlib.sha256(symbol.encode()).digest())
        self._exponent = exponent
        self._transports = transports or {}
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._nursery: trio.Nursery | None = None
        self.banks: dict[str, BankEntry] = {}
        self.signers: dict[str, str] = {}  # handle → bank
        self.wallets: dict[str, Wallet] = {}
        self.actions: dict[str, dict[str, Any]] = {}
        self._of_transfer: dict[str, list[dict[str, Any]]] = {}
        self._completed_ns: dict[str, int] = {}
        self.ious: dict[str, str] = {}  # action → hash of the accepted one
        self.transfers: dict[str, Transfer] = {}
        self.balances: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.calls: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self.breaches: list[str] = []
        self.tokens: dict[str, tuple[str, float]] = {}
        self.nonces: set[str] = set()
        self.log: deque[tuple[str, str, Any]] = deque(maxlen=LOG_MAX)
        self.answers: dict[str, Histogram] = {}  # of the banks, by endpoint
        self.enforce_nonces = True
        self.enforce_tokens = True
        self.refuse_duplicates = False
        self.expired_iou = "reject"
        self.reversal_form = "main"  # or "reject": the completed REJECT action
        self.accept_ecdsa = True
        self.noise = False
        self.clock_offset_s = 0.0
        self.continue_s = CONTINUE_S
        self.refund_s = CONTINUE_S
        self.bank_tries = BANK_TRIES
        self.answer_s = ANSWER_S
        self.deny_source: Callable[[Transfer], bool] = lambda transfer: False
        self.token_s = 3600
        self._began_s = -math.inf
        self._away_until_s = -math.inf
        self._called: dict[str, trio.Event] = {}  # by bank: set when the next call has gone out
        self._driving = 0
        self._idle = trio.Event()

    # ---- set-up

    def add_bank(self, entry: BankEntry) -> None:
        self.banks[entry.id] = entry
        self.signers[entry.signer] = entry.id

    def add_customer(self, bank: str, handle: str, alias: str, link: str = "ASK") -> None:
        """A customer's signer, and the alias that leads to it."""
        self.signers[handle] = bank
        self.wallets[alias] = Wallet(alias, handle, bank, link)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Drive transfers until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._began_s = trio.current_time()
                task_status.started()
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                for client in self._clients.values():
                    await client.aclose()

    def now_text(self) -> str:
        return label_text(self._now_ns(), ZONE)

    def _now_ns(self) -> int:
        return self._wall_ns() + int(self.clock_offset_s * 1e9)

    def _id(self) -> str:
        text = f"{self.rng.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"

    # ---- transfers

    def begin(
        self, source: str, target: str, amount: str, kind: str = "SEND", **labels: Any
    ) -> Transfer:
        """Make a transfer and drive it."""
        tx_ref = labels.pop("tx_ref", "") or "".join(self.rng.choices(_TX_CHARS, k=17))
        main: dict[str, Any] = {
            "action_id": self._id(), "source": source, "target": target, "symbol": self.symbol,
            "amount": amount,
            "labels": {
                "type": kind, "status": "PENDING", "tx_ref": tx_ref, "hash": "PENDING",
                "domain": DOMAIN, "created": self.now_text(), **labels,
            },
            "snapshot": self._snapshot(source, target), "error": {"code": 0, "message": "Success"},
        }  # fmt: skip
        minor = to_minor(amount, self._exponent)
        transfer = Transfer(tx_ref, kind, source, target, amount, minor, main)
        self.transfers[tx_ref] = transfer
        self._keep(main)
        assert self._nursery is not None, "run() drives transfers"
        self._nursery.start_soon(self._drive, transfer)
        return transfer

    def _keep(self, action: dict[str, Any]) -> None:
        self.actions[action["action_id"]] = action
        self._of_transfer.setdefault(action["labels"]["tx_ref"], []).append(action)

    def _side(self, name: str) -> dict[str, Any]:
        wallet = self.wallets.get(name)
        handle = wallet.default if wallet else name if name in self.signers else ""
        side: dict[str, Any] = {}
        if wallet:
            side["wallet"] = {"handle": name, "default": wallet.default, "labels": {}}
        if handle:
            side["signer"] = {"handle": handle, "labels": {}}
        return side

    def _snapshot(self, source: str, target: str) -> dict[str, Any]:
        symbol = {
            "wallet": {"handle": self.symbol, "labels": {"type": "CURRENCY"}},
            "signer": {"handle": self.symbol_signer},
        }
        return {"source": self._side(source), "target": self._side(target), "symbol": symbol}

    def _user(self, transfer: Transfer, side: str) -> str:
        found: str = transfer.main["snapshot"][side].get("signer", {}).get("handle", "")
        return found

    def _bank(self, transfer: Transfer, side: str) -> BankEntry:
        bank = self.signers.get(self._user(transfer, side))
        if bank is None:
            raise _Failure(106 if side == "source" else 107, f"no bank for {side}")
        return self.banks[bank]

    async def settled(self) -> None:
        """Wait until no transfer is driven any more."""
        while self._driving:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _drive(self, transfer: Transfer) -> None:
        self._driving += 1
        try:
            await self._bring(transfer)
        finally:
            self._driving -= 1
            if not self._driving:
                self._idle.set()

    async def _bring(self, transfer: Transfer) -> None:
        """Take a transfer to its end, and tell both banks."""
        try:
            if transfer.kind == "REQUEST" and not await self._resolve(transfer, "source"):
                self._end(transfer, "REJECTED")
                await self._tell(transfer)
                return
            await self._call_for(transfer, "debit", "source")
            if transfer.kind != "REQUEST":
                await self._resolve(transfer, "target")
            await self._signed(transfer, transfer.main, "source")
            await self._call_for(transfer, "credit", "target")
            self._end(transfer, "COMPLETED")
        except _Failure as failure:
            transfer.error = failure.error
            await self._reverse(transfer)
        await self._tell(transfer)

    def _end(self, transfer: Transfer, status: str) -> None:
        transfer.status = status
        transfer.history.append(status)
        transfer.ended.set()

    async def _resolve(self, transfer: Transfer, side: str) -> bool:
        """Have the target (or the payer of a request) accepted; False: a request was declined."""
        transfer.phase = "resolve"
        wallet = self.wallets.get(getattr(transfer, side))
        if wallet is not None and wallet.link == "BLOCK":
            raise _Failure(123, "blocked")
        if side == "target" and (wallet is None or wallet.link == "TRUST"):
            return True
        bank = self._bank(transfer, side)
        await self._post(bank, "status", self.record(transfer), transfer)
        with trio.move_on_after(self.answer_s):
            await transfer.accepted.wait()
        if transfer.refused is not None or not transfer.accepted.is_set():
            if transfer.kind == "REQUEST":
                transfer.error = transfer.refused or {"code": 123, "message": "no answer"}
                transfer.main["labels"].update(status="REJECTED", hash="none")
                return False
            raise _Failure(123, "rejected by the target")
        return True

    def record(self, transfer: Transfer) -> dict[str, Any]:
        """The transfer as banks see it."""
        main = transfer.main
        labels = {**main["labels"], "status": transfer.status}
        error = transfer.error or {"code": 0, "message": "Success"}
        return {
            "tx_ref": transfer.tx_ref, "source": main["source"], "target": main["target"],
            "symbol": main["symbol"], "amount": main["amount"], "labels": labels,
            "snapshot": main["snapshot"], "error": error,
        }  # fmt: skip

    async def _call_for(self, transfer: Transfer, endpoint: str, side: str) -> None:
        """Call /debit or /credit and wait for the bank's /continue."""
        transfer.phase = endpoint if not transfer.reversing else "refund"
        transfer.heard, transfer.word = trio.Event(), None
        bank = self._bank(transfer, side)
        transfer.awaited = bank.id
        if endpoint == "debit" and self.deny_source(transfer):
            raise _Failure(123, "stopped")
        limit_s = self.refund_s if transfer.reversing else self.continue_s
        with trio.move_on_after(limit_s):
            answer = await self._post(bank, endpoint, self._told(transfer), transfer)
            if self._status(answer) == "COMPLETED":
                return  # a synchronous bank
            await transfer.heard.wait()
        if not transfer.heard.is_set():
            raise _Failure(99, "no continue in time")
        if transfer.word:
            raise _Failure(transfer.word["code"], transfer.word["message"])
        kind = "UPLOAD" if endpoint == "debit" else "DOWNLOAD"
        if not self._action_of(transfer, kind, self._user(transfer, side), "COMPLETED"):
            raise _Failure(123, "continued without a proof")

    def _told(self, transfer: Transfer) -> dict[str, Any]:
        """The record that a bank is called with."""
        if transfer.reversing and self.reversal_form == "reject":
            for action in self._of_transfer[transfer.tx_ref]:
                if action["labels"]["type"] == "REJECT":
                    return action
        return transfer.main

    @staticmethod
    def _status(action: Any) -> str:
        labels = action.get("labels") if isinstance(action, dict) else None
        return str(labels.get("status", "")) if isinstance(labels, dict) else ""

    def _action_of(
        self, transfer: Transfer, kind: str, user: str, status: str = ""
    ) -> dict[str, Any] | None:
        for action in self._of_transfer.get(transfer.tx_ref, ()):
            labels = action["labels"]
            if labels["type"] != kind:
                continue
            parties = (action["source"], action["target"])
            if user in parties and status in ("", labels["status"]):
                return action
        return None

    async def _signed(self, transfer: Transfer, action: dict[str, Any], side: str) -> None:
        """Have an action signed by its bank's customer."""
        transfer.phase = "action"
        transfer.heard, transfer.word = trio.Event(), None
        bank = self._bank(transfer, side)
        transfer.awaited = bank.id
        await self._post(bank, "action", action, transfer)
        with trio.move_on_after(self.continue_s):
            await transfer.heard.wait()
        if action["labels"]["status"] != "COMPLETED":
            word = transfer.word or {"code": 99, "message": "not signed"}
            raise _Failure(word["code"], word["message"])

    async def _reverse(self, transfer: Transfer) -> None:
        """Undo what was done; where that fails too, people decide."""
        source, target = self._user(transfer, "source"), self._user(transfer, "target")
        done = transfer.main["labels"]["status"] == "COMPLETED"
        transfer.reversing, transfer.status = True, "ERROR"
        transfer.history.append("ERROR")
        if done and self._action_of(transfer, "DOWNLOAD", target, "COMPLETED"):
            transfer.ended.set()
            return
        for action in self._of_transfer[transfer.tx_ref]:
            labels = action["labels"]
            if labels["status"] == "PENDING":
                labels.update(status="ERROR" if labels["type"] in _CREATED_TYPES else "REJECTED")
        try:
            if done:
                await self._signed(transfer, self._reject_action(transfer), "target")
            transfer.main["labels"].update(status="REJECTED", hash="none")
            transfer.main["error"] = transfer.error
            if self._action_of(transfer, "UPLOAD", source, "COMPLETED"):
                await self._call_for(transfer, "credit", "source")
        except _Failure as failure:
            transfer.history.append(f"reversal failed: {failure.error['message']}")
            transfer.ended.set()
            return
        self._end(transfer, "REJECTED")

    def _reject_action(self, transfer: Transfer) -> dict[str, Any]:
        action: dict[str, Any] = {
            "action_id": self._id(), "source": transfer.target, "target": transfer.source,
            "symbol": self.symbol, "amount": transfer.amount,
            "labels": {
                "type": "REJECT", "status": "PENDING", "tx_ref": transfer.tx_ref,
                "hash": "PENDING", "domain": DOMAIN, "created": self.now_text(),
            },
            "snapshot": {
                "source": transfer.main["snapshot"]["target"],
                "target": transfer.main["snapshot"]["source"],
                "symbol": transfer.main["snapshot"]["symbol"],
            },
        }  # fmt: skip
        self._keep(action)
        return action

    async def _tell(self, transfer: Transfer) -> None:
        """/status to the banks of both sides; their answers change nothing."""
        for side in ("source", "target"):
            try:
                bank = self._bank(transfer, side)
                await self._post(bank, "status", self.record(transfer), transfer)
            except _Failure:
                continue

    # ---- calls to banks

    async def _post(
        self, bank: BankEntry, endpoint: str, value: dict[str, Any], transfer: Transfer
    ) -> Any:
        """Call a bank, a few times where it does not answer; returns its good answer."""
        due = self._take(endpoint, transfer.tx_ref)
        for fault in due:
            if fault.kind in ("duplicate", "other"):
                copy = decode(encode(value))  # as it is now: the record itself goes on changing
                if fault.kind == "other":
                    copy["amount"] = "1.11"
                assert self._nursery is not None
                self._nursery.start_soon(self._later, bank, endpoint, copy, fault.value or 0.0)
            elif fault.kind == "delay":
                await trio.sleep(fault.value)
            elif fault.kind == "swap":
                with trio.move_on_after(fault.value or SWAP_S):
                    await self._called.setdefault(bank.id, trio.Event()).wait()
            elif fault.kind == "mark":
                value = {**value, "labels": {**value["labels"], "status": fault.value}}
            elif fault.kind == "stop":
                raise _Failure(123, "given up")
            elif fault.kind == "lose":
                await self._call(bank, endpoint, value)  # its answer is not heard
        answer = await self._answered(bank, endpoint, value)
        if any(fault.kind == "undo" for fault in due):
            raise _Failure(123, "given up")
        return answer

    async def _answered(self, bank: BankEntry, endpoint: str, value: dict[str, Any]) -> Any:
        for attempt in range(self.bank_tries):
            if attempt:
                await trio.sleep(min(1.0 * attempt, BANK_PAUSE_S_MAX))
            http, answer = await self._call(bank, endpoint, value)
            if 200 <= http < 300:
                return answer
            error = answer.get("error") if isinstance(answer, dict) else None
            code = error.get("code") if isinstance(error, dict) else None
            if 400 <= http < 500 and http not in (401, 403, 408, 429):
                if code not in range(300, 400):
                    self.breaches.append(f"{endpoint}: {bank.id} refused with code {code}")
                message = error.get("message", "") if isinstance(error, dict) else ""
                raise _Failure(code if isinstance(code, int) else 314, str(message))
        raise _Failure(99, f"{bank.id} does not answer {endpoint}")

    async def _later(
        self, bank: BankEntry, endpoint: str, value: dict[str, Any], after_s: float
    ) -> None:
        await trio.sleep(after_s)
        http, answer = await self._call(bank, endpoint, value)
        self.log.append((f"duplicate {endpoint}", str(http), answer))

    async def call_bank(self, bank: str, endpoint: str, value: Any) -> tuple[int, Any]:
        """One call by hand, for tests."""
        return await self._call(self.banks[bank], endpoint, value)

    async def _call(self, bank: BankEntry, endpoint: str, value: Any) -> tuple[int, Any]:
        client = self._clients.get(bank.id)
        if client is None:
            wire = self._transports.get(bank.id) or PooledTransport(
                connections_max=CONNECTIONS_MAX, idle_s=KEPT_S, body_bytes_max=ANSWER_BYTES_MAX
            )
            client = self._clients[bank.id] = httpx.AsyncClient(
                transport=wire, timeout=BANK_CALL_S, headers={"accept-encoding": "identity"}
            )
        self._called.pop(bank.id, trio.Event()).set()
        for again in (False, True):
            try:
                with trio.fail_after(BANK_CALL_S):
                    headers = await self._headers(client, bank)
                    began_s = trio.current_time()
                    response = await client.post(
                        f"{bank.base_url}/{endpoint}", content=encode(self._noisy(value)),
                        headers=headers,
                    )  # fmt: skip
            except (httpx.HTTPError, trio.TooSlowError, Dropped, OSError):
                return 0, None
            self.calls[f"to:{endpoint}:{response.status_code}"] += 1
            taken_ns = int((trio.current_time() - began_s) * 1e9)
            self.answers.setdefault(endpoint, Histogram()).record(taken_ns)
            if response.status_code in (401, 403) and not again and "oauth2" in bank.auth:
                bank.token = ""
                continue
            break
        try:
            return response.status_code, decode(response.content)
        except BodyError:
            return response.status_code, None

    async def _headers(self, client: httpx.AsyncClient, bank: BankEntry) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if "api_key" in bank.auth:
            headers["x-api-key"] = bank.own_api_key or bank.own_client_secret
        if "oauth2" in bank.auth:
            if not bank.token or trio.current_time() > bank.token_until_s:
                form = {
                    "grant_type": "client_credentials", "client_id": bank.own_client_id,
                    "client_secret": bank.own_client_secret,
                }  # fmt: skip
                response = await client.post(f"{bank.base_url}/oauth/token", data=form)
                found = decode(response.content)
                bank.token = found.get("access_token", "")
                bank.token_until_s = trio.current_time() + found.get("expires_in", 0) * 0.9
            headers["authorization"] = f"Bearer {bank.token}"
        return headers

    def _noisy(self, value: Any) -> Any:
        """A copy with unknown fields at every level, where noise is on."""
        if not self.noise:
            return value
        if isinstance(value, dict):
            noisy = {name: self._noisy(inner) for name, inner in value.items()}
            for _ in range(self.rng.randrange(1, 3)):
                noisy[f"zz{self.rng.randrange(10**6)}"] = self.rng.choice(
                    [None, 1, "x", [1, {"a": None}], {"nested": {"more": True}}]
                )
            return noisy
        return value

    # ---- calls of banks

    def _take(self, endpoint: str, tx_ref: str = "") -> list[Fault]:
        """Faults that are due at an endpoint, each counted down."""
        due = []
        for fault in list(self.faults):
            if fault.endpoint not in (endpoint, "*") or (fault.tx_ref and fault.tx_ref != tx_ref):
                continue
            if trio.current_time() < self._began_s + fault.after_s:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            self.struck[f"{endpoint}:{fault.kind}"] += 1
            fault.count -= 1
            if fault.count <= 0:
                self.faults.remove(fault)
            due.append(fault)
        return due

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while scope["type"] == "lifespan":
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
        body = b""
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return  # the bank was cut off in the middle of its request
            body += event.get("body", b"")
            if not event.get("more_body", False):
                break
        http, answer, more = await self._serve(scope, body)
        raw = answer if isinstance(answer, bytes) else encode(self._noisy(answer))
        headers = [(b"content-type", b"application/json"), *more]
        headers.append((b"content-length", str(len(raw)).encode()))
        await send({"type": "http.response.start", "status": http, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    async def _serve(self, scope: Scope, body: bytes) -> tuple[int, Any, list[tuple[bytes, bytes]]]:
        raw_path = scope.get("raw_path") or scope["path"].encode()
        path = raw_path.decode("latin-1").partition("?")[0].removeprefix("/v1")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if trio.current_time() < self._away_until_s:
            raise Dropped
        if parts == ["oauth", "token"]:
            return await self._token(body, headers)
        name, handler = self._route(scope["method"], parts)
        self.calls[name] += 1
        due = self._take(name)
        for fault in due:
            if fault.kind == "delay":
                await trio.sleep(fault.value)
            elif fault.kind == "drop":
                raise Dropped
            elif fault.kind == "garbage":
                return 200, b"<html>not what you think</html>", []
            elif fault.kind == "status":
                return fault.value, b"", [(b"retry-after", b"1")]
            elif fault.kind == "refuse":
                return 400, error_body(fault.value, "as the fault wishes"), []
            elif fault.kind == "forbidden":
                self.tokens.clear()
            elif fault.kind == "restart":
                self.tokens.clear()
                self._away_until_s = trio.current_time() + fault.value
                raise Dropped
        bank = self._who(headers)
        if bank is None:
            return 403, {"message": "Forbidden"}, []
        try:
            nonce = headers.get(b"x-nonce", "")
            if self.enforce_nonces and (not nonce or nonce in self.nonces):
                self.breaches.append(f"{name}: nonce used before or missing")
                raise _Refused(123, "nonce")
            self.nonces.add(nonce)
            value = decode(body) if body else {}
            self.log.append((name, path, value))
            answer = handler(bank, parts, query, value, due)
        except BodyError:
            return 400, error_body(118, "no JSON"), []
        except _Refused as refusal:
            return refusal.http, error_body(refusal.code, str(refusal)), []
        for fault in due:
            if fault.kind == "slow":
                await trio.sleep(fault.value)
            elif fault.kind == "deny":
                return 400, error_body(fault.value, "done all the same"), []
        if any(fault.kind == "lose" for fault in due):
            raise Dropped
        return 200, answer, []

    async def _token(
        self, body: bytes, headers: dict[bytes, str]
    ) -> tuple[int, Any, list[tuple[bytes, bytes]]]:
        self.calls["token"] += 1
        for fault in self._take("token"):
            if fault.kind == "delay":
                await trio.sleep(fault.value)
            elif fault.kind == "drop":
                raise Dropped
            elif fault.kind == "status":
                return fault.value, b"", []
        form = {k: v[0] for k, v in parse_qs(body.decode()).items()}
        basic = headers.get(b"authorization", "").removeprefix("Basic ")
        pair = base64.b64decode(basic).decode() if basic else ""
        for bank in self.banks.values():
            whole = (form.get("client_id"), form.get("client_secret"))
            if whole == (bank.client_id, bank.client_secret) or (
                pair and pair == bank.client_id + bank.client_secret
            ):
                token = f"{self.rng.getrandbits(128):032x}"
                self.tokens[token] = (bank.id, trio.current_time() + self.token_s)
                answer = {
                    "access_token": token, "expires_in": self.token_s, "token_type": "Bearer",
                }  # fmt: skip
                return 200, answer, []
        return 403, {"message": "Forbidden"}, []

    def _who(self, headers: dict[bytes, str]) -> BankEntry | None:
        token = headers.get(b"authorization", "").removeprefix("Bearer ")
        if not self.enforce_tokens:
            key = headers.get(b"x-api-key") or headers.get(b"api_key")
            return next((b for b in self.banks.values() if b.api_key == key), None)
        found = self.tokens.get(token)
        if found is None or trio.current_time() > found[1]:
            return None
        return self.banks[found[0]]

    def _route(self, method: str, parts: list[str]) -> tuple[str, Callable[..., Any]]:
        match [method, *parts]:
            case ["POST", "action"]:
                return "create", self._create
            case ["GET", "action"]:
                return "find", self._find
            case ["GET", "action", _]:
                return "get", self._get
            case ["PUT", "action", _]:
                return "tag", self._put
            case ["POST", "action", _, "sendit"]:
                return "prove", self._sendit
            case ["POST", "transfer"]:
                return "transfer", self._transfer
            case ["GET", "transfer"]:
                return "search", self._transfers
            case ["POST", "transfer", _, "accept"]:
                return "accept", self._accept
            case ["POST", "transfer", _, "reject"]:
                return "reject", self._reject
            case ["POST", "transfer", _, "continue"]:
                return "continue", self._continue
            case ["POST", "signer"]:
                return "signer", self._signer
            case ["GET", "conciliation"]:
                return "conciliation", self._conciliation
        return "unknown", self._unknown

    def _unknown(self, *_: Any) -> Any:
        raise _Refused(121, "no such call", 404)

    def _breach(self, code: int, message: str) -> _Refused:
        self.breaches.append(message)
        return _Refused(code, message)

    def _create(
        self, bank: BankEntry, _parts: Any, _query: Any, value: Any, due: list[Fault]
    ) -> Any:
        labels = value.get("labels") if isinstance(value, dict) else None
        texts = ("source", "target", "symbol", "amount")
        if not isinstance(labels, dict) or any(not isinstance(value.get(n), str) for n in texts):
            raise self._breach(118, "create: a field is missing or no text")
        kind, tx_ref = labels.get("type"), labels.get("tx_ref")
        transfer = self.transfers.get(tx_ref) if isinstance(tx_ref, str) else None
        if kind not in _CREATED_TYPES:
            raise self._breach(110, f"create: type {kind}")
        if transfer is None:
            raise self._breach(121, "create: no such transfer")
        self._check_times("create", labels)
        self._check_parties(bank, kind, value, transfer)
        same = [
            one
            for one in self._of_transfer[transfer.tx_ref]
            if one["labels"]["type"] == kind
            and one["source"] == value["source"]
            and one["target"] == value["target"]
        ]
        if same and self.refuse_duplicates:
            raise _Refused(122, "duplicate")
        action: dict[str, Any] = {
            "action_id": self._id(), **{name: value[name] for name in texts},
            "labels": {**labels, "status": "PENDING", "hash": "PENDING", "domain": DOMAIN},
            "snapshot": self._snapshot(value["source"], value["target"]),
            "error": {"code": 0, "message": "Success"},
        }  # fmt: skip
        for fault in due:
            if fault.kind == "amount":
                action["amount"] = fault.value
        self._keep(action)
        bare = any(fault.kind == "bare" for fault in due)
        return {k: v for k, v in action.items() if k != "snapshot"} if bare else action

    def _check_times(self, what: str, labels: dict[str, Any]) -> None:
        try:
            if instant_ns(labels["received"]) > instant_ns(labels["dispatched"]):
                raise self._breach(118, f"{what}: received after dispatched")
        except (KeyError, TypeError, ValueError):
            raise self._breach(118, f"{what}: times") from None

    def _check_parties(
        self, bank: BankEntry, kind: str, value: dict[str, Any], transfer: Transfer
    ) -> None:
        source, target = self._user(transfer, "source"), self._user(transfer, "target")
        if kind == "UPLOAD":
            right = [(bank.signer, source)]
        else:
            right = [(source if transfer.reversing else target, bank.signer)]
        if (value["source"], value["target"]) not in right:
            raise self._breach(106, f"{kind}: wrong parties")
        if self.signers.get(value["source"]) != bank.id:
            raise self._breach(106, f"{kind}: not a signer of {bank.id}")
        try:
            minor = to_minor(value["amount"], self._exponent)
        except AmountError:
            raise self._breach(109, f"{kind}: amount") from None
        if minor != transfer.minor or value["symbol"] != self.symbol:
            raise self._breach(109, f"{kind}: another amount or symbol")

    def _find(self, _bank: Any, _parts: Any, query: dict[str, str], *_: Any) -> Any:
        found = self._of_transfer.get(query.get("labels.tx_ref", ""), [])
        return {"entities": found, "pagination": {"total": len(found)}}

    def _one(self, action_id: str) -> dict[str, Any]:
        found = self.actions.get(action_id)
        if found is None:
            raise _Refused(121, "no such action", 404)
        return found

    def _get(self, _bank: Any, parts: list[str], *_: Any) -> Any:
        return self._one(parts[1])

    def _put(self, _bank: Any, parts: list[str], _query: Any, value: Any, _due: Any) -> Any:
        action = self._one(parts[1])
        labels = value.get("labels") if isinstance(value, dict) else None
        if not isinstance(labels, dict) or list(value) != ["labels"] or list(labels) != ["tx_id"]:
            raise self._breach(116, "tag: only tx_id may be set")
        if action["labels"].get("tx_id", labels["tx_id"]) != labels["tx_id"]:
            raise self._breach(116, "tag: set before")
        action["labels"]["tx_id"] = labels["tx_id"]
        return action

    def _sendit(self, _bank: Any, parts: list[str], _query: Any, iou: Any, due: list[Fault]) -> Any:
        action = self._one(parts[1])
        labels = action["labels"]
        value = iou.get("hash", {}).get("value") if isinstance(iou, dict) else None
        if labels["status"] == "COMPLETED":
            if self.ious.get(action["action_id"]) != value:
                raise self._breach(115, "prove: completed with another IOU")
            return action
        if labels["status"] != "PENDING":
            raise _Refused(123, f"the action is {labels['status']}")
        verdict = check_iou(iou, action, self._now_ns(), accept_ecdsa=self.accept_ecdsa)
        if any(fault.kind == "expired" for fault in due):
            verdict = "iou-expired"
        if verdict == "iou-expired" and self.expired_iou == "refuse":
            raise _Refused(123, verdict)
        if verdict != "ok":
            labels.update(status="REJECTED", hash="none")
            action["error"] = {"code": 115, "message": verdict}
            self._wake(action)
            return action
        self._book(action, iou["data"])
        self._completed_ns[action["action_id"]] = self._now_ns()
        self.ious[action["action_id"]] = iou["hash"]["value"]
        # Not the IOU's own: banks must not compare the two.
        labels.update(
            status="COMPLETED", hash=hashlib.sha256(action["action_id"].encode()).hexdigest()
        )
        self._wake(action)
        return action

    def _book(self, action: dict[str, Any], data: dict[str, Any]) -> None:
        minor = to_minor(action["amount"], self._exponent)
        self.balances[data["source"]] -= minor
        self.balances[data["target"]] += minor

    def _wake(self, action: dict[str, Any]) -> None:
        """A main or REJECT action has its end: whoever waits for it goes on."""
        transfer = self.transfers.get(action["labels"]["tx_ref"])
        if transfer is not None and action["labels"]["type"] not in _CREATED_TYPES:
            transfer.heard.set()

    def _named(self, name: str) -> Transfer:
        """A transfer by its reference or by the id of one of its actions."""
        found = self.transfers.get(name)
        if found is None and name in self.actions:
            found = self.transfers.get(self.actions[name]["labels"]["tx_ref"])
        if found is None:
            raise _Refused(121, "no such transfer", 404)
        return found

    def _transfer(self, _bank: Any, _parts: Any, _query: Any, value: Any, _due: Any) -> Any:
        try:
            labels = dict(value["labels"])
            kind = labels.pop("type")
            transfer = self.begin(value["source"], value["target"], value["amount"], kind, **labels)
        except (KeyError, TypeError, AmountError):
            raise self._breach(118, "transfer: a field is missing") from None
        return self.record(transfer)

    def _transfers(self, _bank: Any, _parts: Any, query: dict[str, str], *_: Any) -> Any:
        found = [
            self.record(one)
            for one in self.transfers.values()
            if (one.source, one.target) == (query.get("source"), query.get("target"))
        ]
        return {"entities": found, "pagination": {"total": len(found)}}

    def _accept(self, bank: BankEntry, parts: list[str], _query: Any, value: Any, _due: Any) -> Any:
        transfer = self._named(parts[1])
        handle = value.get("signer", {}).get("handle") if isinstance(value, dict) else None
        if not isinstance(handle, str) or self.signers.get(handle) != bank.id:
            raise self._breach(106, "accept: no signer of that bank")
        if transfer.accepted.is_set() and transfer.signer != handle:
            self.breaches.append("accept: twice")
        transfer.signer = handle
        transfer.accepted.set()
        return self.record(transfer)

    def _reject(self, _bank: Any, parts: list[str], _query: Any, value: Any, _due: Any) -> Any:
        transfer = self._named(parts[1])
        transfer.refused = self._bank_error(value.get("error"))
        transfer.accepted.set()
        return self.record(transfer)

    def _bank_error(self, error: Any) -> dict[str, Any]:
        code = error.get("code") if isinstance(error, dict) else None
        if not isinstance(code, int) or not 300 <= code < 400:
            raise self._breach(118, f"a bank's error code is {code}")
        return {"code": code, "message": str(error.get("message", ""))}

    def _is_proven(self, transfer: Transfer) -> bool:
        """True when the action this phase waits for is completed."""
        if transfer.phase == "action":
            return False
        kind = "UPLOAD" if transfer.phase == "debit" else "DOWNLOAD"
        side = "target" if transfer.phase == "credit" else "source"
        return bool(self._action_of(transfer, kind, self._user(transfer, side), "COMPLETED"))

    def _has_proof(self, transfer: Transfer, bank: BankEntry) -> bool:
        return any(
            action["labels"]["status"] == "COMPLETED"
            and bank.signer in (action["source"], action["target"])
            for action in self._of_transfer[transfer.tx_ref]
        )

    def _continue(self, bank: Any, parts: list[str], _query: Any, value: Any, _due: Any) -> Any:
        transfer = self._named(parts[1])
        if "hash" in value.get("labels", {}):  # of the older kind: the whole signed action
            own = self.actions.get(value.get("action_id", ""))
            if own is None or own["labels"]["status"] != "COMPLETED":
                raise self._breach(118, "continue: no signed action")
            if bank.id == transfer.awaited:
                transfer.heard.set()
            return self.record(transfer)
        self._check_times("continue", value)
        error = self._bank_error(value["error"]) if "error" in value else None
        refunding = transfer.phase == "refund"
        if transfer.reversing and not refunding and transfer.phase != "action":
            return self.record(transfer)  # ignored: the reversal goes on as it is
        if bank.id == transfer.awaited and not transfer.heard.is_set():
            # A repeat from an earlier phase says nothing about this one.
            if error is not None or self._is_proven(transfer):
                transfer.word = error
                transfer.heard.set()
            elif not self._has_proof(transfer, bank):
                self.breaches.append("continue: without a proof")
        return self.record(transfer)

    def _signer(self, bank: BankEntry, _parts: Any, _query: Any, value: Any, _due: Any) -> Any:
        handle = value.get("handle") if isinstance(value, dict) else None
        if not isinstance(handle, str) or not re.fullmatch(r"w[1-9A-Za-z]{25,34}", handle):
            raise self._breach(104, "signer: handle")
        if handle in self.signers:
            raise _Refused(122, "duplicate")
        self.signers[handle] = bank.id
        return value

    # ---- the end of the day

    def _conciliation(self, _bank: Any, _parts: Any, query: dict[str, str], *_: Any) -> Any:
        try:
            from_ns = instant_ns(query["startDate"]) if "startDate" in query else 0
            until_ns = instant_ns(query["endDate"]) if "endDate" in query else 1 << 63
        except ValueError:
            raise self._breach(118, "conciliation: dates") from None
        return {"text": self.conciliation(query.get("bankId", ""), from_ns, until_ns)}

    def conciliation(self, bank: str, from_ns: int = 0, until_ns: int = 1 << 63) -> str:
        """Completed actions of a bank, one per line: id, reference, type, amount, tx_id."""
        lines = []
        for action in self.actions.values():
            labels = action["labels"]
            settlement = self.banks[bank].signer if bank in self.banks else ""
            if (
                labels["status"] == "COMPLETED"
                and settlement in (action["source"], action["target"])
                and from_ns <= self._completed_ns[action["action_id"]] < until_ns
            ):
                lines.append(
                    f"{action['action_id']};{labels['tx_ref']};{labels['type']};"
                    f"{action['amount']};{labels.get('tx_id', '')}"
                )
        return "".join(line + "\n" for line in sorted(lines))

    def report(self) -> dict[str, Any]:
        """Open actions and transfers, balances, calls that broke a rule."""
        open_actions = [
            action["action_id"]
            for action in self.actions.values()
            if action["labels"]["status"] == "PENDING"
        ]
        return {
            "at": js_iso(self._now_ns() // 1_000_000),
            "transfers": dict(Counter(one.status for one in self.transfers.values())),
            "open_actions": open_actions,
            "balances": {bank.id: self.balances[bank.signer] for bank in self.banks.values()},
            "sum": sum(self.balances.values()),
            "breaches": list(self.breaches),
        }
