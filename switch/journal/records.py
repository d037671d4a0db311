"""Application records of the journal, and how followers read those of the record store."""

import msgspec

PUT_HEAD = 10  # space, open flag and key length, stamp


class AlarmRecord(msgspec.Struct, array_like=True):
    """An alarm as the journal keeps it."""

    at_ns: int
    name: str
    subject: str
    detail: str


class NoticeRecord(msgspec.Struct, array_like=True):
    """What a card holder's app is told outside of an operation."""

    at_ns: int
    card: str
    what: str
    branch: str


def parse_put(payload: bytes) -> tuple[int, bytes, bytes]:
    """Space, key and value of a `put` of the record store (kind 64)."""
    end = PUT_HEAD + (payload[1] & 0x7F)
    return payload[0], payload[PUT_HEAD:end], payload[end:]
