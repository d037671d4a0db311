"""Logging: one line per event to stderr, JSON or for people, masked and bounded, never to stdout.

`configure` is called once by the command line. Everything else asks `logger("area")` and writes
`log.warning("peer_refused", peer="0012", code="63")`: the event is a stable identifier, the rest
are fields. Libraries that use the standard library's logging go the same way.

Logs are not on the data path: nothing is logged per message at level info.
"""

import json
import logging
import sys
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from switch.ops.masking import KEY_CHARS_MAX, masked, masked_text, masked_traceback

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["json", "console", "auto"]

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
HARMLESS_MAX: Final = 8192
HARMLESS_CHARS_MAX: Final = 64
RATE_KEY_CHARS_MAX: Final = 128
"""What a `RateLimit` remembers of a key: it may hold what a peer said."""

# Set by our own processors; all others come from the call and are masked.
_OWN: Final = frozenset(("event", "exception", "stack", "level", "timestamp", "area"))
_OURS: Final = ("level", "timestamp")  # nobody else has a say in them


def configure(level: Level = "info", form: Form = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for the process; a later call replaces the former.

    Args:
        level: least level that is written.
        form: `auto` is console on a terminal, else JSON.
        stream: where to; stderr by default.
    """
    out = sys.stderr if stream is None else stream
    if form == "auto":
        form = "console" if out.isatty() else "json"
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    render: Processor = _json if form == "json" else console
    structlog.configure(
        processors=[*chain, render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _take_over_standard_logging(level, [*chain, render], out)


def logger(area: str) -> FilteringBoundLogger:
    """Return the logger of an area of the program, such as `net` or `journal`."""
    return cast(FilteringBoundLogger, structlog.get_logger(area=area))


class _Mask:
    """Masks, bounds and escapes everything in an event; the processor before the renderer.

    Remembered are short values that came out as they went in, each under its key: what they hold
    stands in the log as it is.
    """

    def __init__(self) -> None:
        self._harmless: set[tuple[str, type, str | int]] = set()

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        shown: EventDict = {}
        for key, value in event.items():
            kind = type(value)
            short = kind is int or (kind is str and len(value) <= HARMLESS_CHARS_MAX)
            if key in _OURS or (short and (key, kind, value) in self._harmless):
                shown[key] = value
                continue
            name, found = self._masked(key, value)
            shown[name] = found
            if short and name == key and type(found) is kind and found == value:
                if len(self._harmless) >= HARMLESS_MAX:
                    self._harmless.clear()
                self._harmless.add((key, kind, value))
        return shown

    @staticmethod
    def _masked(key: str, value: Any) -> tuple[str, Any]:
        if key in ("exception", "stack"):
            return key, masked_traceback(str(value))
        if key in _OWN:
            return key, masked_text(str(value))
        return masked_text(key, KEY_CHARS_MAX), masked(key, value)


mask: Final = _Mask()


def console(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """Render one event for people: time, level, area, event, fields; a traceback below, set in."""
    fields = " ".join(f"{key}={_shown(value)}" for key, value in event.items() if key not in _OWN)
    head = f"{event.get('timestamp', '-')} {event.get('level', '-'):<7} {event.get('area', '-')}"
    line = f"{head} {event.get('event', '-')} {fields}".rstrip()
    below = [event[key] for key in ("stack", "exception") if key in event]
    return "\n".join([line, *below])


class RateLimit:
    """Lets the first few lines about one thing through, then counts: a peer must not fill the disk.

    Time is given, in seconds of any clock that does not step back. Not for several threads.

    Args:
        burst: lines let through per key and window.
        window_s: length of a window.
        keys_max: keys remembered; the longest unused is forgotten first.
    """

    def __init__(self, *, burst: int = 5, window_s: float = 60.0, keys_max: int = 10_000) -> None:
        if burst < 1 or window_s <= 0 or keys_max < 1:
            raise ValueError("burst, window_s and keys_max must be positive")
        self._burst = burst
        self._window_s = window_s
        self._keys_max = keys_max
        self._keys: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def admit(self, key: str, now_s: float) -> int | None:
        """Ask to write a line about `key`, such as `address/peer/63`.

        Returns:
            None: do not write it. Else how many were held back since the last that was written,
            to be logged with this one as `suppressed`.
        """
        key = key[:RATE_KEY_CHARS_MAX]
        window = self._keys.get(key)
        if window is None:
            if len(self._keys) >= self._keys_max:
                self._keys.popitem(last=False)
            self._keys[key] = _Window(now_s)
            return 0
        self._keys.move_to_end(key)
        if now_s - window.since_s >= self._window_s:
            window.since_s, window.written = now_s, 0
        if window.written >= self._burst:
            window.held_back += 1
            return None
        window.written += 1
        held_back, window.held_back = window.held_back, 0
        return held_back


class _Window:
    """What became of the lines of one key: `written` since `since_s`, `held_back` since then."""

    __slots__ = ("held_back", "since_s", "written")

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.written = 1
        self.held_back = 0


_encode: Final = json.JSONEncoder(ensure_ascii=True).encode


def _json(_logger: Any, _method: str, event: EventDict) -> str:
    """Render one event as a line of JSON; it is masked, so there are plain values only."""
    return _encode(event)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text) if not text or any(char in text for char in " ='\"") else text


def _take_over_standard_logging(level: Level, chain: list[Processor], out: TextIO) -> None:
    """Send the standard library's records through the same processors."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(_StandardFormatter(chain))
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, _StandardFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    # Libraries say at info what only their authors want to know (every request of a client).
    root.setLevel(_LEVELS["debug"] if level == "debug" else max(_LEVELS[level], logging.WARNING))


class _StandardFormatter(logging.Formatter):
    def __init__(self, chain: list[Processor]) -> None:
        super().__init__()
        self._chain = chain

    def format(self, record: logging.LogRecord) -> str:
        event: Any = {"event": _message(record), "area": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        method = record.levelname.lower()
        for process in self._chain:
            event = process(None, method, event)
        return cast(str, event)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # A library's own mistake in its format must not cost the line, nor end the program.
        return str(record.msg)
