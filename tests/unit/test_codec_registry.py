"""The registry of protocols: found by entry point, loaded once, checked."""

import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from protocols import codec
from protocols.codec import ENTRY_POINT_GROUP, Codec, ProtocolError, protocol, protocols
from protocols.demo import DemoCodec

ROOT = Path(__file__).parents[2]
DECLARED: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "entry-points"
][ENTRY_POINT_GROUP]


class Registry:
    """Stands in for the installed metadata."""

    def __init__(self, points: list[tuple[str, str]]) -> None:
        self.points = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in points]
        self.reads = 0

    def __call__(self, *, group: str) -> list[EntryPoint]:
        assert group == ENTRY_POINT_GROUP
        self.reads += 1
        return self.points


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace what is installed by the given (name, value) pairs."""

    def clear() -> None:
        codec._entry_points.cache_clear()
        protocol.cache_clear()

    def replace(*points: tuple[str, str]) -> Registry:
        registry = Registry(list(points))
        monkeypatch.setattr(codec, "entry_points", registry)
        clear()
        return registry

    yield replace
    clear()


def test_every_declared_protocol_loads_and_is_a_codec(install: Any) -> None:
    registry = install(*DECLARED.items())
    loaded = protocols()
    assert loaded.keys() == DECLARED.keys()
    assert loaded["demo"] is DemoCodec
    assert all(found.name == name for name, found in loaded.items())
    assert protocols() == loaded
    assert registry.reads == 1
    assert isinstance(DemoCodec(), Codec)


@pytest.mark.parametrize("value", DECLARED.values())
def test_the_lines_of_pyproject_name_classes_that_exist(value: str) -> None:
    module, _, name = value.partition(":")
    assert isinstance(getattr(import_module(module), name), type)


def test_one_protocol_is_loaded_without_the_others(install: Any) -> None:
    install(("demo", "protocols.demo:DemoCodec"), ("broken", "no.such.module:Codec"))
    assert protocol("demo") is DemoCodec
    with pytest.raises(ModuleNotFoundError):
        protocol("broken")


def test_an_unknown_name_says_what_is_there(install: Any) -> None:
    install(("demo", "protocols.demo:DemoCodec"))
    with pytest.raises(LookupError, match=r"'nothing'.*known: demo"):
        protocol("nothing")
    install()
    with pytest.raises(LookupError, match="known: none"):
        protocol("demo")


def test_two_protocols_of_one_name_are_refused(install: Any) -> None:
    install(("demo", "protocols.demo:DemoCodec"), ("demo", "elsewhere:Codec"))
    with pytest.raises(LookupError, match="two protocols"):
        protocols()
    install(("demo", "protocols.demo:DemoCodec"), ("demo", "protocols.demo:DemoCodec"))
    assert protocols() == {"demo": DemoCodec}


def test_what_is_no_codec_is_refused(install: Any) -> None:
    install(("demo", "protocols.demo:ResponseCode"))
    with pytest.raises(LookupError, match="has no"):
        protocol("demo")


def test_protocol_error() -> None:
    error = ProtocolError("length below 9", fatal=True)
    assert (str(error), error.fatal) == ("length below 9", True)
