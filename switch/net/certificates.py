"""Certificates of our own listeners: told a month before they expire (P09). Links watch theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import trio
from cryptography import x509

ALARM_S: Final = 30 * 86_400
EVERY_S: Final = 86_400


def expires_s(path: Path) -> float:
    """When the first certificate of a PEM file expires, seconds since 1970.

    Raises:
        OSError, ValueError: it cannot be read, or holds none.
    """
    found = x509.load_pem_x509_certificates(path.read_bytes())
    return min(one.not_valid_after_utc.timestamp() for one in found)


async def watch(node: Any, certificates: Mapping[str, Path]) -> None:
    """Look at the certificate of each listener once a day; one that was renewed is seen."""
    while certificates:
        step = node.begin()
        for listener, path in certificates.items():
            try:
                left_s = expires_s(path) - step.now_ns / 1e9
            except (OSError, ValueError) as error:
                step.alarm("certificate_expires", f"listener {listener}", str(error))
                continue
            if left_s < ALARM_S:
                days = int(left_s // 86_400)
                step.alarm("certificate_expires", f"listener {listener}", f"in {days} days")
        node.end(step)
        await trio.sleep(EVERY_S)
