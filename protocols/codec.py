"""What every protocol of the switch has in common: the codec contract, its error, the registry.

A codec is sans-I/O: bytes in, messages out; messages in, bytes out. It owns no socket, no clock and
no task, so the same object runs under trio, under the native pump and in a test. Codecs are found
by the entry-point group `troncal.protocols`; `docs/protocols.md` shows how to add one.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

ENTRY_POINT_GROUP = "troncal.protocols"


class ProtocolError(Exception):
    """The peer broke the wire format.

    The reason is for logs: it names the rule that was broken and never quotes the peer's bytes,
    which may hold a code or a document.

    Attributes:
        fatal: True when framing or the session is lost, so the link must be closed; False when one
            message is bad and the stream is still in step.
    """

    def __init__(self, reason: str, *, fatal: bool) -> None:
        super().__init__(reason)
        self.fatal = fatal


@runtime_checkable
class Codec(Protocol):
    """One instance per connection; holds the half-received frame and nothing else.

    Attributes:
        name: of the protocol, the same as its entry point's.
    """

    name: str

    def feed(self, data: bytes, /) -> list[Any]:
        """Take bytes in whatever pieces the network made; return the messages now complete.

        Messages that came before a bad frame are returned first and the error is raised by the
        next call: whoever drives a codec calls `feed(b"")` again until it returns nothing.

        Raises:
            ProtocolError: the next frame broke the format.
        """
        ...

    def encode(self, message: Any, /) -> bytes:
        """Return one whole frame, header included."""
        ...


@cache
def _entry_points() -> MappingProxyType[str, EntryPoint]:
    """The entry points of the group by name; reading the metadata costs milliseconds, so once."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if found.setdefault(point.name, point).value != point.value:
            raise LookupError(f"two protocols are called {point.name!r}: uninstall one of them")
    return MappingProxyType(found)


@cache
def protocol(name: str) -> type[Codec]:
    """The codec class registered as `name`; only this one is imported.

    Raises:
        LookupError: nothing is registered under this name, or what is there is not a codec.
    """
    point = _entry_points().get(name)
    if point is None:
        known = ", ".join(sorted(_entry_points())) or "none"
        raise LookupError(f"no protocol {name!r} is registered (known: {known})")
    loaded = point.load()
    for attribute in ("name", "feed", "encode"):
        if not hasattr(loaded, attribute):
            raise LookupError(f"protocol {name!r} ({point.value}) has no {attribute!r}")
    codec: type[Codec] = loaded
    return codec


def protocols() -> dict[str, type[Codec]]:
    """All registered protocols, name → codec class; imports each of them, at the first call only.

    Raises:
        LookupError: as `protocol`.
    """
    return {name: protocol(name) for name in sorted(_entry_points())}
