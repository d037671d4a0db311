"""The network's side of a load on TransfiYa's bank side: HTTP/1.1 by hand, as cheap as it can be.

The load process answers a bank's calls at once (a network without latency) and calls the bank; both
speak no more HTTP than they need, so that the machine's time is the bank's. What is answered is
kept, and checked after the run.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
import trio

from protocols.transfiya import handle_of
from protocols.transfiya.times import label_text, zone_of

RECEIVE_BYTES: Final = 65_536
SYMBOL: Final = "$tin"
SYMBOL_SIGNER: Final = handle_of(hashlib.sha256(SYMBOL.encode()).digest())
ZONE: Final = zone_of("-05:00")
_OK: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_REQUEST: Final = (
    b"POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"authorization: Bearer %s\r\nx-api-key: %s\r\ncontent-length: %d\r\n\r\n"
)

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


class PeerError(Exception):
    """What came is no HTTP, or not what the rules say."""


class Wire:
    """One connection, either way: whole messages of a head and a body of known length."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""

    async def message(self) -> tuple[bytes, bytes] | None:
        """The next head and body; None at the end."""
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end >= 0:
                head = self._buffer[:end]
                whole = end + 4 + _length(head)
                if len(self._buffer) >= whole:
                    body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
                    return head, body
            data = await self.stream.receive_some(RECEIVE_BYTES)
            if not data:
                return None
            self._buffer += data


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    end = lower.find(b"\r\n", at + 2)
    return int(lower[at + 17 : end if end >= 0 else None])


class Bank:
    """Calls one bank, over as many connections as are needed at once."""

    def __init__(self, address: tuple[str, int], mount: str, api_key: str) -> None:
        self._address = address
        self._mount = mount
        self._api_key = api_key.encode()
        self._token = b""
        self._free: list[Wire] = []

    async def authorise(self, client_id: str, client_secret: str) -> None:
        form = f"grant_type=client_credentials&client_id={client_id}&client_secret={client_secret}"
        status, body = await self.call("oauth/token", form.encode())
        if status != 200:
            raise PeerError(f"the bank gives no token: {status}")
        self._token = decode(body)["access_token"].encode()

    async def call(self, endpoint: str, body: bytes) -> tuple[int, bytes]:
        """One call; status and body of its answer."""
        path = f"{self._mount}/{endpoint}".encode()
        message = _REQUEST % (path, self._token, self._api_key, len(body)) + body
        answer = None
        while answer is None:
            kept = bool(self._free)
            wire = self._free.pop() if kept else Wire(await trio.open_tcp_stream(*self._address))
            with suppress(trio.BrokenResourceError):
                await wire.stream.send_all(message)
                answer = await wire.message()
            if answer is None:  # a connection that was kept may have been closed meanwhile
                await trio.aclose_forcefully(wire.stream)
                if not kept:
                    raise PeerError("the bank closed the connection")
        if b"connection: close" in answer[0].lower():
            await trio.aclose_forcefully(wire.stream)
        else:
            self._free.append(wire)
        return int(answer[0][9:12]), answer[1]


class Peer:
    """The network as banks call it; knows actions, and who waits for which end.

    Attributes:
        ious: of each action that was proven, as they came. ends: what `/continue` told, by tx_ref
            and side; an empty text is a good end.
    """

    def __init__(self, wall_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        self.actions: dict[str, dict[str, Any]] = {}
        self.ious: dict[str, bytes] = {}
        self.ends: dict[str, list[str]] = {}
        self.wanted: dict[str, trio.Event] = {}
        self.calls = 0
        self.strange: list[str] = []
        self._ends_wanted = 0
        self._ended = trio.Event()

    def main(
        self, tx_ref: str, kind: str, source: str, target: str, amount: str, status: str
    ) -> dict[str, Any]:
        """A main action between two customers."""
        action = {
            "action_id": self._id(tx_ref, kind), "source": source, "target": target,
            "symbol": SYMBOL, "amount": amount,
            "labels": {
                "type": kind, "status": status, "tx_ref": tx_ref, "hash": "PENDING",
                "domain": "tin", "created": label_text(self._wall_ns(), ZONE),
            },
            "snapshot": _snapshot(source, target), "error": {"code": 0, "message": "Success"},
        }  # fmt: skip
        self.actions[str(action["action_id"])] = action
        return action

    def until(self, name: str) -> trio.Event:
        """Set when a transfer's `/continue` is there, or an action is proven."""
        return self.wanted.setdefault(name, trio.Event())

    async def has_ended(self, transfers: int) -> None:
        """Wait until so many transfers have had a `/continue`."""
        self._ends_wanted, self._ended = transfers, trio.Event()
        if len(self.ends) < transfers:
            await self._ended.wait()

    def _wake(self, name: str) -> None:
        event = self.wanted.pop(name, None)
        if event is not None:
            event.set()

    @staticmethod
    def _id(*names: str) -> str:
        text = hashlib.blake2b("/".join(names).encode(), digest_size=16).hexdigest()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:
        serve = partial(trio.serve_listeners, self._connection, listeners)
        await serve(task_status=task_status)

    async def _connection(self, stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        try:
            while (message := await wire.message()) is not None:
                answer = self._answer(*message)
                await stream.send_all(_OK % len(answer) + answer)
        except trio.BrokenResourceError:
            return

    def _answer(self, head: bytes, body: bytes) -> bytes:
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.calls += 1
        match [method, *path.removeprefix("/v1").strip("/").split("/")]:
            case ["POST", "action"]:
                return encode(self._create(decode(body)))
            case ["PUT", "action", action_id]:
                action = self.actions[action_id]
                action["labels"]["tx_id"] = decode(body)["labels"]["tx_id"]
                return encode(action)
            case ["POST", "action", action_id, "sendit"]:
                action = self.actions[action_id]
                self.ious[action_id] = body
                action["labels"].update(status="COMPLETED", hash="0" * 64)
                self._wake(action_id)
                return encode(action)
            case ["GET", "action", action_id]:
                return encode(self.actions[action_id])
            case ["POST", "transfer", tx_ref, "continue"]:
                error = decode(body).get("error")
                self.ends.setdefault(tx_ref, []).append(error["message"] if error else "")
                self._wake(tx_ref)
                if self._ends_wanted and len(self.ends) >= self._ends_wanted:
                    self._ended.set()
                return b'{"labels":{},"error":{"code":0,"message":"Success"}}'
            case ["POST", "oauth", "token"]:
                token = {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}
                return encode(token)
        self.strange.append(f"{method} {path}")
        return b"{}"

    def _create(self, value: dict[str, Any]) -> dict[str, Any]:
        labels = value["labels"]
        action = {
            **value,
            "action_id": self._id(labels["tx_ref"], value["source"], value["target"]),
            "labels": {**labels, "status": "PENDING", "hash": "PENDING", "domain": "tin"},
            "snapshot": _snapshot(value["source"], value["target"]),
            "error": {"code": 0, "message": "Success"},
        }
        self.actions[action["action_id"]] = action
        return action


def _snapshot(source: str, target: str) -> dict[str, Any]:
    return {
        "source": {"signer": {"handle": source, "labels": {}}},
        "target": {"signer": {"handle": target, "labels": {}}},
        "symbol": {"signer": {"handle": SYMBOL_SIGNER}},
    }
