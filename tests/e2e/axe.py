"""axe-core, fetched once from npm's registry and kept in the user's cache; checked by its hash."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

VERSION = "4.10.3"
SHA256 = "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"
URL = f"https://registry.npmjs.org/axe-core/-/axe-core-{VERSION}.tgz"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "troncal"
RUN = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
    .filter(v => ['serious', 'critical'].includes(v.impact))
    .map(v => v.id + ': ' + v.nodes.map(n => n.target.join(' ')).join(', '))"""


def source() -> str:
    """The script; the test is skipped where it can be had from nowhere."""
    path = CACHE / f"axe-{VERSION}.js"
    if not path.exists():
        try:
            answer = httpx.get(URL, timeout=30, follow_redirects=True).raise_for_status()
        except httpx.HTTPError as error:
            pytest.skip(f"axe-core cannot be fetched: {type(error).__name__}")
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            CACHE.mkdir(parents=True, exist_ok=True)
            path.write_bytes(member.read())
    text = path.read_bytes()
    assert hashlib.sha256(text).hexdigest() == SHA256, "another axe-core than the one we know"
    return text.decode()


def serious(page: Any) -> list[str]:
    """Serious and critical findings about the page as it is."""
    page.evaluate(source())
    found: list[str] = page.evaluate(RUN)
    return found
