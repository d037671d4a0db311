"""A terminal's side of the wire, written from its specification alone, over a blocking socket.

It shares no code with the session protocol of the switch, and sends whatever it is told to: half
frames, wrong MACs, old counters. Everything it receives is verified.
"""

import hashlib
import hmac
import secrets
import socket
import ssl
import struct
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

TIMEOUT_S = 60.0
NOBODY = bytes(32)  # the key of errors that prove nothing


def tag(algorithm: str, key: bytes, direction: int, counter: int, payload: bytes) -> bytes:
    """The eight MAC bytes of a frame."""
    covered = bytes([direction]) + counter.to_bytes(8) + payload
    if algorithm == "aes-cmac":
        cmac = CMAC(AES(key[:16]))
        cmac.update(covered)
        return cmac.finalize()[:8]
    return hmac.digest(key, covered, hashlib.sha256)[:8]


def framed(payload: bytes, mac: bytes) -> bytes:
    return struct.pack(">H", len(payload) + len(mac)) + payload + mac


class Wire:
    """One connection.

    Args:
        source: address on the loopback to come from, so that nobody else is locked or slowed.

    Attributes:
        proved: whether the last frame received was under a key of ours (63 never is).
        sent_bytes: all that was sent, to be replayed.
    """

    def __init__(
        self,
        address: tuple[str, int],
        number: str,
        key: bytes,
        *,
        algorithm: str = "hmac-sha256",
        encoding: str = "json",
        source: str = "127.0.0.1",
        receive_bytes: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.number, self.key, self.algorithm, self.encoding = number, key, algorithm, encoding
        plain = socket.socket()
        if receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.settimeout(TIMEOUT_S)
        plain.bind((source, 0))
        plain.connect(address)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        self.session_key = key
        self.sent = self.received = 0
        self.proved = True
        self.sent_bytes = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    # ---- out

    def payload(self, message: dict[str, Any]) -> bytes:
        if self.encoding == "msgpack":
            return msgspec.msgpack.encode(message)
        return msgspec.json.encode(message)

    def seal(self, payload: bytes) -> bytes:
        """The next frame."""
        mac = tag(self.algorithm, self.session_key, 1, self.sent, payload)
        self.sent += 1
        return framed(payload, mac)

    def frame(self, message: dict[str, Any]) -> bytes:
        return self.seal(self.payload(message))

    def raw(self, data: bytes) -> None:
        self.sent_bytes += data
        self.socket.sendall(data)

    def send(self, *messages: dict[str, Any]) -> None:
        self.raw(b"".join(map(self.frame, messages)))

    def send_for_ever(self, message: dict[str, Any]) -> None:
        """Until the peer ends it. Raises: ConnectionError; TimeoutError where it takes no more."""
        while True:
            self.send(message)

    def reset(self) -> None:
        """End with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # ---- in

    def receive(self) -> dict[str, Any] | None:
        """The next message, its MAC verified; None at the end of the connection."""
        head = self._exactly(2)
        if head is None:
            return None
        (size,) = struct.unpack(">H", head)
        frame = self._exactly(size)
        if frame is None:
            return None
        payload, mac = frame[:-8], frame[-8:]
        self.proved = mac == tag(self.algorithm, self.session_key, 2, self.received, payload)
        if not self.proved:
            assert mac == tag("hmac-sha256", NOBODY, 2, self.received, payload), "nobody's MAC"
        self.received += 1
        decode = msgspec.json.decode if payload[:1] == b"{" else msgspec.msgpack.decode
        found = decode(payload)
        assert isinstance(found, dict)
        return found

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except (ConnectionError, ssl.SSLError):
                return None
            if not more:
                return None
            data += more
        return data

    def ended(self) -> bool:
        """Wait for the end; False where a message comes instead."""
        return self.receive() is None

    # ---- both

    def sign_on(self, **fields: Any) -> dict[str, Any] | None:
        """Sign on with these fields changed; the answer, and the session key if there is one."""
        nonce = secrets.token_bytes(16)
        message = {
            "op": "sign_on", "peer": self.number, "key": 1, "nonce": nonce.hex(), "version": 1,
        }  # fmt: skip
        self.send(message | fields)
        return self.signed_on(nonce)

    def signed_on(self, nonce: bytes) -> dict[str, Any] | None:
        answer = self.receive()
        if answer is not None and answer["op"] == "sign_on_answer":
            assert self.proved
            assert answer["client_nonce"] == nonce.hex()
            secret = b"troncal/1" + nonce + bytes.fromhex(answer["nonce"])
            self.session_key = hmac.digest(self.key, secret, hashlib.sha256)
        return answer

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.send(message)
        answer = self.receive()
        while answer is not None and answer["op"] == "echo":  # we had been silent for long
            self.send({"op": "echo_answer"})
            answer = self.receive()
        assert answer is not None
        return answer
