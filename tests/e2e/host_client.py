"""A sicoop of another make: ISO 8583 in the `ceibo` dialect over a plain socket.

It shares no line with the switch: messages are laid out by pyiso8583 from a table typed here from
the description of the dialect, MACs are `cryptography`'s CMAC, one-time codes are sealed with its
AES-GCM.
"""

import datetime
import os
import socket
import struct
from typing import Any

import iso8583
from cryptography.hazmat.primitives import cmac
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

UTC = datetime.UTC
NETWORK = "0012"
CASH_OUT, DEPOSIT = "010000", "210000"
MAC_BYTES = 8
Message = dict[str, Any]


def _text(length: int, prefix: int = 0) -> dict[str, Any]:
    return {
        "data_enc": "ascii", "len_enc": "ascii", "len_type": prefix, "max_len": length, "desc": "",
    }  # fmt: skip


def _bytes(length: int) -> dict[str, Any]:
    return {"data_enc": "b", "len_enc": "b", "len_type": 0, "max_len": length, "desc": ""}


SPEC: dict[str, dict[str, Any]] = {
    "h": _bytes(0), "t": _text(4), "p": _bytes(8), "1": _bytes(8),
    "3": _text(6), "4": _text(12), "7": _text(10), "11": _text(6), "12": _text(6), "13": _text(4),
    "15": _text(4), "25": _text(2), "28": _text(9), "30": _text(9), "32": _text(11, 2),
    "37": _text(12), "38": _text(6), "39": _text(2), "41": _text(8), "42": _text(15),
    "48": _text(999, 3), "49": _text(3), "54": _text(120, 3), "64": _bytes(8), "70": _text(3),
    "90": _text(42), "128": _bytes(8),
}  # fmt: skip


def tlv(tags: dict[str, str]) -> str:
    """DE48: tag of two characters, length of three digits, value."""
    return "".join(f"{tag}{len(value):03}{value}" for tag, value in tags.items())


def tags_of(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    while text:
        tag, length = text[:2], int(text[2:5])
        found.setdefault(tag, []).append(text[5 : 5 + length])
        text = text[5 + length :]
    return found


def mac(key: bytes, data: bytes) -> bytes:
    maker = cmac.CMAC(algorithms.AES(key))
    maker.update(data)
    return maker.finalize()[:MAC_BYTES]


def sealed(key: bytes, token: str, operation: str) -> str:
    nonce = os.urandom(12)
    return (nonce + AESGCM(key).encrypt(nonce, token.encode(), operation.encode())).hex().upper()


def transmission_time(away_s: float = 0) -> str:
    moment = datetime.datetime.now(UTC) + datetime.timedelta(seconds=away_s)
    return f"{moment:%m%d%H%M%S}"


class Host:
    """One connection. Keys in hex, as `troncal host rotate` prints them."""

    def __init__(
        self, address: tuple[str, int], keys: dict[str, str], *, seconds: float = 30
    ) -> None:
        self.mac_key = bytes.fromhex(keys["mac_key"])
        self.data_key = bytes.fromhex(keys["data_key"])
        self.zone_key = bytes.fromhex(keys["zone_key"])
        self._socket = socket.create_connection(address, seconds)
        self._rest = b""
        self._stan = 0

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # ---- messages

    def encoded(self, message: Message, *, key: bytes | None = None) -> bytes:
        """A message with its MAC, without the length before it."""
        place = "128" if any(n.isdigit() and int(n) > 64 for n in message) else "64"
        whole, _ = iso8583.encode({**message, place: "00" * MAC_BYTES}, SPEC)
        body = bytes(whole[:-MAC_BYTES])
        return body + mac(key or self.mac_key, body)

    def message(self, mti: str, elements: Message) -> Message:
        self._stan += 1
        own = {"t": mti, "7": transmission_time(), "11": f"{self._stan:06}"}
        given = {k: tlv(v) if isinstance(v, dict) else v for k, v in elements.items()}
        return own | given

    def send(self, message: Message, **options: Any) -> None:
        self.send_bytes(self.encoded(message, **options))

    def send_bytes(self, body: bytes) -> None:
        self._socket.sendall(struct.pack(">H", len(body)) + body)

    def receive(self) -> Message | None:
        """The next message, its MAC checked; None: the other side has closed."""
        while len(self._rest) < 2 or len(self._rest) < 2 + struct.unpack(">H", self._rest[:2])[0]:
            data = self._socket.recv(65_536)
            if not data:
                return None
            self._rest += data
        length = struct.unpack(">H", self._rest[:2])[0]
        body, self._rest = self._rest[2 : 2 + length], self._rest[2 + length :]
        assert mac(self.mac_key, body[:-MAC_BYTES]) == body[-MAC_BYTES:], "MAC of an answer"
        message, _ = iso8583.decode(body, SPEC)
        if "48" in message:
            message["48"] = tags_of(message["48"])
        return dict(message)

    def ask(self, mti: str, elements: Message) -> Message:
        """Send a request and return its answer; echoes are checked."""
        message = self.message(mti, elements)
        self.send(message)
        answer = self.receive()
        assert answer is not None, "closed instead of an answer"
        assert answer["t"] == f"{mti[:2]}{int(mti[2]) + 1}0"
        for element in ("3", "4", "7", "11", "37", "41", "49", "70"):
            if element in message:
                assert answer.get(element) == message[element], f"DE{element} is not echoed"
        return answer

    # ---- the dialect

    def manage(self, function: str, **elements: Any) -> Message:
        return self.ask("0800", {"70": function, **elements})

    def sign_on(self) -> None:
        assert self.manage("001")["39"] == "00"

    def hold(
        self, operation: str, document: str, amount: int, token: str = "", **changes: Any
    ) -> Message:
        """Elements of a 0100; a cash_out where there is a token. None leaves an element out."""
        now = datetime.datetime.now(UTC)
        tags = {"01": f"CI{document}", "04": "000345"}
        if token:
            tags["03"] = sealed(self.data_key, token, operation)
        elements: Message = {
            "3": CASH_OUT if token else DEPOSIT, "4": f"{amount:012}", "12": f"{now:%H%M%S}",
            "13": f"{now:%m%d}", "15": f"{now:%m%d}", "32": NETWORK, "37": operation,
            "41": "00000017", "42": "000017".ljust(15), "48": tags, "49": "600",
        }  # fmt: skip
        for name, value in changes.items():
            if name.startswith("tag"):
                tags[name[3:]] = value
            else:
                elements[name[2:]] = value
        return {name: value for name, value in elements.items() if value is not None}

    def decision(self, operation: str, kind: str, amount: int, reason: str = "00") -> Message:
        """Elements of a 0220 or 0420."""
        original = "0100" + "000000" + "0000000000" + NETWORK.zfill(11) + "0" * 11
        return {
            "3": kind, "4": f"{amount:012}", "25": reason, "32": NETWORK, "37": operation,
            "49": "600", "90": original,
        }  # fmt: skip

    def state(self, operation: str) -> str:
        """State of a hold; "" where it is not known."""
        answer = self.ask("0600", {"32": NETWORK, "37": operation})
        if answer["39"] == "25":
            return ""
        assert answer["39"] == "00"
        return str(answer["48"]["10"][0])
