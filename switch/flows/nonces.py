"""Nonces of the one-time codes that leave this process: counted, durable, never twice."""

from core_ext import Records
from protocols.iso8583.keys import HostKeys
from protocols.iso8583.tokens import NONCE_BLOCK, TokenSealer
from switch.flows import operations as ops
from switch.flows.step import Step


class NonceBook:
    """Seals one-time codes for a link, under nonces that never come twice.

    Numbers are reserved in blocks, durably with the step that uses the first of them. A block never
    begins before the clock either, so that a restored backup does not count again.
    """

    def __init__(self, link: str, records: Records, keys: HostKeys) -> None:
        self._key = f"nonce:{link}".encode()
        self._records = records
        self._keys = keys
        self._sealing = b""
        self._sealer: TokenSealer | None = None

    def seal(self, step: Step, token: str, operation: str) -> str:
        """Tag 03 of DE48 for the one-time code of an operation.

        Raises:
            LookupError: the link has no data key.
        """
        key = self._keys.sealing_key
        sealer = self._sealer
        if sealer is None or not sealer.left:
            found = self._records.get(ops.META, self._key)
            start = max(0 if found is None else int(found), step.now_ns)
            self._records.put(ops.META, self._key, b"%d" % (start + NONCE_BLOCK))
            sealer = TokenSealer(key, start)
        elif key != self._sealing:
            sealer = TokenSealer(key, sealer.next, sealer.left)
        self._sealer, self._sealing = sealer, key
        return sealer.seal(token, operation)
