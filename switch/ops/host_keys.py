"""The keys of an ISO 8583 host as its link uses them, from their sealed records.

A key that was made here is accepted at once, and sent under when the overlap is over: by then the
other side has it (`PeerKeyRecord.used_from_ns`). One that the other side made is used at once, and
so is one for a host that has never proved that it has the one before. So it does not matter which
side is given new keys first.
"""

from protocols.iso8583.keys import HostKeys
from switch.flows.registry import Host, PeerKeyRecord
from switch.ops.keys import MasterKey


def host_keys(master: MasterKey, host: Host, now_ns: int) -> HostKeys:
    """Return the keys of a host as they are valid now.

    Raises:
        UnsealError: sealed under another master key.
        ValueError: the host has no key that may be sent under.
    """
    own: dict[str, list[tuple[int, bytes]]] = {"mac": [], "data": [], "zone": []}
    later: list[tuple[str, int, bytes]] = []
    for purpose, records in key_sets(host):
        for record in records:
            if is_over(record, now_ns) or (purpose == "mac" and host.mac == "none"):
                continue
            key = open_key(master, host.name, purpose, record)
            if purpose != "zone" and own[purpose] and record.used_from_ns > now_ns:
                later.append((purpose, record.version, key))
            else:
                own[purpose].append((record.version, key))
    keys = HostKeys.of(host.mac, own["mac"], own["data"], own["zone"])
    for purpose, version, key in later:
        keys.add(purpose, key, pending=True, version=version)
    return keys


def key_sets(host: Host) -> tuple[tuple[str, list[PeerKeyRecord]], ...]:
    """Return the keys of a host by purpose, each oldest first."""
    return ("mac", host.mac_keys), ("data", host.data_keys), ("zone", host.zone_keys)


def open_key(master: MasterKey, host: str, purpose: str, record: PeerKeyRecord) -> bytes:
    """Return one key in clear; `purpose` is mac, data or zone. Raises: UnsealError."""
    owner = f"host:{host}:{purpose}:{record.version}"
    return master.open(record.sealed, purpose="peer-keys", owner=owner)


def is_over(record: PeerKeyRecord, now_ns: int) -> bool:
    """Tell whether a key's overlap with the one after it has ended."""
    return 0 < record.until_ns <= now_ns
