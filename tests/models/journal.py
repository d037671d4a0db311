"""The journal's format in plain Python, written from its description and nothing else."""

import hashlib
import struct
from dataclasses import dataclass

BLOCK = 4096
HEADER = struct.Struct("<8sIIQQQII32s")


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@dataclass
class PlainGroup:
    partition: int
    epoch: int
    first_seq: int
    time_ns: int
    chain: bytes
    records: list[tuple[int, bytes]]
    offset: int
    used: int
    digest: bytes


def parse_group(data: bytes, offset: int) -> PlainGroup | None:
    """The group at a place, every field checked; None where there are only zeros."""
    header = data[offset : offset + HEADER.size]
    if not any(header):
        return None
    magic, partition, crc, epoch, first, time_ns, count, length, chain = HEADER.unpack(header)
    assert magic == b"TRNCJRN1"
    used = HEADER.size + length
    body = data[offset : offset + used]
    assert crc32c(body[:12] + body[16:]) == crc
    padded = -(-used // BLOCK) * BLOCK
    assert data[offset + used : offset + padded] == bytes(padded - used)
    records = []
    at = HEADER.size
    while at < used:
        (head,) = struct.unpack_from("<I", body, at)
        n = head & 0xFFFFFF
        records.append((head >> 24, body[at + 4 : at + 4 + n]))
        at += 4 + n
    assert at == used
    assert len(records) == count > 0
    digest = hashlib.sha256(body).digest()
    return PlainGroup(partition, epoch, first, time_ns, chain, records, offset, used, digest)


def parse_segment(data: bytes) -> list[PlainGroup]:
    """All groups from the beginning of a segment to its zeros."""
    groups = []
    offset = 0
    while offset < len(data):
        group = parse_group(data, offset)
        if group is None:
            assert not any(data[offset:])
            break
        groups.append(group)
        offset += -(-group.used // BLOCK) * BLOCK
    return groups
