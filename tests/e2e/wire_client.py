"""A terminal or a network written from the protocol's description alone, and nothing of the switch.

Blocking sockets, the standard library, and CMAC out of cryptography: whatever this client and the
switch agree on, they agree on through the bytes between them. It also makes the one-time codes that
a holder's app shows, and runs the program as a user of the command line does.
"""

import base64
import contextlib
import hmac
import http.client
import json
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

ROOT = Path(__file__).parents[2]
CLIENT, SERVER = 1, 2  # direction bytes: the side that connected, the side that accepted
MAC_BYTES = 8
STEP_S = 60
NOBODY = bytes(32)  # the key of the one frame that proves nothing
ERROR_63 = b'{"op":"error","code":"63"}'

Message = dict[str, Any]


# --- MessagePack, as far as maps of strings, integers, lists and truth values go -----------------


def pack(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if 0 <= value < 128:
            return bytes([value])
        return (
            b"\xcf" + struct.pack(">Q", value) if value > 0 else b"\xd3" + struct.pack(">q", value)
        )
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return (
            bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xd9" + bytes([len(data)])
        ) + data
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(pack, value))
    head = (
        bytes([0x80 | len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))
    )
    return head + b"".join(pack(name) + pack(item) for name, item in value.items())


_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_SIZES = {
    0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDB: (">I", "str"),
    0xDC: (">H", "list"), 0xDD: (">I", "list"), 0xDE: (">H", "map"), 0xDF: (">I", "map"),
}  # fmt: skip


def unpack(data: bytes) -> Any:
    value, end = _unpack(data, 0)
    assert end == len(data), "bytes behind the map"
    return value


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    first = data[at]
    at += 1
    if first < 0x80 or first >= 0xE0:
        return (first if first < 0x80 else first - 256), at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        size = struct.calcsize(_NUMBERS[first])
        return struct.unpack_from(_NUMBERS[first], data, at)[0], at + size
    if first in _SIZES:
        form, kind = _SIZES[first]
        count = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
    elif first >= 0xA0:
        kind, count = "str", first & 0x1F
    else:
        kind, count = ("list" if first >= 0x90 else "map"), first & 0x0F
    if kind == "str":
        return data[at : at + count].decode(), at + count
    items = []
    for _ in range(count * (2 if kind == "map" else 1)):
        item, at = _unpack(data, at)
        items.append(item)
    return (items if kind == "list" else dict(zip(items[::2], items[1::2], strict=True))), at


# --- one-time codes ------------------------------------------------------------------------------


def _truncate(mac: bytes, digits: int) -> str:
    offset = mac[-1] & 15
    number = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


def seed_bytes(seed: str) -> bytes:
    return base64.b32decode(seed + "=" * (-len(seed) % 8))


def totp(seed: str, step: int | None = None, *, away: int = 0) -> str:
    """Return the code of `step` (default: the present one), or of one `away` from it."""
    step = int(time.time()) // STEP_S if step is None else step
    message = (step + away).to_bytes(8, "big")
    return _truncate(hmac.digest(seed_bytes(seed), message, "sha256"), 6)


def ocra(seed: str, kind: str, amount: int, *, away: int = 0) -> str:
    """OCRA-1:HOTP-SHA256-8:QN10-T1M; the question is the kind's digit and the amount."""
    question = ("1" if kind == "cash_out" else "2") + str(amount).zfill(9)
    digits = f"{int(question):x}"  # the decimal number as hexadecimal digits, left-aligned
    field = bytes.fromhex(digits.ljust(256, "0"))
    step = (int(time.time()) // STEP_S + away).to_bytes(8, "big")
    data = b"OCRA-1:HOTP-SHA256-8:QN10-T1M" + b"\0" + field + step
    return _truncate(hmac.digest(seed_bytes(seed), data, "sha256"), 8)


def wrong(*right: str) -> str:
    """Return a code of the same length that none of the right ones is."""
    return next(code for n in range(99) if (code := str(n).zfill(len(right[0]))) not in right)


# --- the framed session --------------------------------------------------------------------------


def tag(algorithm: str, key: bytes, direction: int, counter: int, payload: bytes) -> bytes:
    data = bytes([direction]) + counter.to_bytes(8, "big") + payload
    if algorithm == "hmac-sha256":
        return hmac.digest(key, data, "sha256")[:MAC_BYTES]
    mac = CMAC(AES(key[:16]))
    mac.update(data)
    return mac.finalize()[:MAC_BYTES]


def framed(payload: bytes, mac: bytes) -> bytes:
    return struct.pack(">H", len(payload) + len(mac)) + payload + mac


class Ended(Exception):
    """The other side closed the connection."""


class Peer:
    """One connection. `sign_on` must come first; `ask` sends a message and returns its answer."""

    def __init__(
        self,
        address: tuple[str, int],
        peer: str,
        key: str,
        *,
        algorithm: str = "hmac-sha256",
        packed: bool = False,
        key_number: int = 1,
    ) -> None:
        self.socket = socket.create_connection(address, timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer, self.long_key, self.key_number = peer, bytes.fromhex(key), key_number
        self.key = self.long_key
        self.algorithm, self.packed = algorithm, packed
        self.sent = self.received = 0
        self.buffer = b""
        self.aside: list[Message] = []
        self.trace = 0
        self.answer: Message = {}

    # bytes

    def frame(self, payload: bytes) -> bytes:
        """Return the next frame of ours; each call uses up one counter."""
        mac = tag(self.algorithm, self.key, CLIENT, self.sent, payload)
        self.sent += 1
        return framed(payload, mac)

    def encode(self, message: Message) -> bytes:
        if self.packed:
            return pack(message)
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()

    def decode(self, payload: bytes) -> Message:
        first = payload[0]
        assert (first == 0x7B) != (0x80 <= first <= 0x8F or first in (0xDE, 0xDF))
        message = json.loads(payload) if first == 0x7B else unpack(payload)
        assert isinstance(message, dict)
        return message

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Ended
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def read_frame(self) -> tuple[bytes, bytes]:
        """Return payload and MAC of the next frame, unchecked."""
        body = self._exactly(struct.unpack(">H", self._exactly(2))[0])
        return body[:-MAC_BYTES], body[-MAC_BYTES:]

    def read(self) -> Message:
        """Return the next message; its MAC must be good under the key of now."""
        payload, mac = self.read_frame()
        assert mac == tag(self.algorithm, self.key, SERVER, self.received, payload), payload
        self.received += 1
        assert (payload[:1] == b"{") != self.packed, "answered in the other encoding"
        return self.decode(payload)

    def read_63(self) -> None:
        """The next and last frame is the error 63 that everybody who proves nothing gets."""
        payload, mac = self.read_frame()
        assert payload == ERROR_63
        assert mac == tag("hmac-sha256", NOBODY, SERVER, self.received, payload)
        self.expect_end()

    def expect_end(self) -> None:
        try:
            payload, _ = self.read_frame()
        except Ended:
            return
        raise AssertionError(f"not closed, but {payload!r}")

    def silent(self, seconds: float = 0.15) -> bool:
        """Say whether nothing comes, no end either."""
        return not self.buffer and not select.select([self.socket], [], [], seconds)[0]

    # messages

    def sign_on_frame(self, nonce: bytes, **changes: Any) -> bytes:
        message = {
            "op": "sign_on",
            "peer": self.peer,
            "key": self.key_number,
            "nonce": nonce.hex(),
            "version": 1,
        }
        return self.frame(self.encode(message | changes))

    def sign_on(self) -> "Peer":
        nonce = secrets.token_bytes(16)
        self.send_bytes(self.sign_on_frame(nonce))
        self.answer = self.read()
        assert self.answer["op"] == "sign_on_answer", self.answer
        assert self.answer["client_nonce"] == nonce.hex()
        return self.rekey(nonce)

    def rekey(self, nonce: bytes) -> "Peer":
        """Go on under the session key, once `answer` is the answer to a sign-on with `nonce`."""
        label = b"troncal/1" + nonce + bytes.fromhex(self.answer["nonce"])
        self.key = hmac.digest(self.long_key, label, "sha256")
        return self

    def send(self, message: Message) -> None:
        self.send_bytes(self.frame(self.encode(message)))

    def ask(self, message: Message) -> Message:
        """Send a message and return the next that comes (notices are put aside)."""
        self.send(message)
        return self.next()

    def next(self) -> Message:
        while True:
            message = self.read()
            if message["op"] == "notice":
                self.aside.append(message)
            elif message["op"] == "echo":
                self.send({"op": "echo_answer"})
            else:
                return message

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- the program ---------------------------------------------------------------------------------


def surroundings() -> dict[str, str]:
    """The environment of its processes: ours, with nothing of the switch but who makes way."""
    found = {name: value for name, value in os.environ.items() if "TRONCAL" not in name}
    return found | {"TRONCAL_NODE_FOLLOWERS": "equal"}  # all cores are busy: nobody is to wait


def run(
    *words: object, config: Path | None = None, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `troncal WORDS…` to its end."""
    environment = surroundings()
    if config is not None:
        environment["TRONCAL_CONFIG"] = str(config)
    return subprocess.run(
        [sys.executable, "-m", "switch", *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def told(*words: object, config: Path | None = None) -> Any:
    """Run a command with --json that must succeed, and return what it printed."""
    done = run(*words, "--json", config=config)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return json.loads(done.stdout)


class Node:
    """`troncal serve` with free ports."""

    def __init__(self, config: Path, *more: str) -> None:
        self.config = config
        self.log = config.parent / "serve.log"
        words = ["serve", "-c", str(config)]
        for name in ("terminals", "sicoop", "ceibo", "http", "ops"):
            words += ["--listen", f"{name}=127.0.0.1:0"]
        environment = surroundings()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "switch", *words, *more],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        assert self.ready_line.startswith("ready {"), (
            self.ready_line,
            self.log.read_text()[-2000:],
        )
        listeners = json.loads(self.ready_line.removeprefix("ready "))
        self.listeners = {name: (host, port) for name, (host, port) in listeners.items()}

    def peer(self, listener: str, number: str, key: str, **options: Any) -> Peer:
        return Peer(self.listeners[listener], number, key, **options)

    def get(self, path: str) -> tuple[int, str]:
        """HTTP GET of the operators' listener."""
        connection = http.client.HTTPConnection(*self.listeners["ops"], timeout=120)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; return the exit code. Nothing but the ready line may stand on stdout."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=120)
        assert rest == ""
        return self.process.returncode
