"""`init` makes a data directory; `check-config` reads a configuration and does nothing else."""

import os
import shutil
from pathlib import Path
from typing import Any

import click

from switch.cli.base import Call, CliError, Command
from switch.config import FILE_NAME, Config, ConfigError, Mistake, default_toml, load
from switch.ops import keys

HOST = "sicoop"
DIALECT = "ceibo"


@click.command(cls=Command)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.pass_obj
def init(call: Call, directory: Path) -> None:
    """Write DIRECTORY/troncal.toml, a master key and empty storage.

    DIRECTORY may exist, but must hold no troncal.toml. Keep a copy of master.key in another place:
    without it nothing in the data directory can be opened.
    """
    if call.config_path is not None:
        raise click.UsageError("init takes a DIRECTORY, not -c; it writes the file there")
    config = make(directory)
    following = f"troncal serve -c {config.path}"
    answer = {"config": str(config.path), "data": str(config.data), "next": following}

    def text() -> None:
        click.echo(f"configuration  {config.path}")
        click.echo(f"data           {config.data}")
        click.echo(f"next           {following}")

    call.answer(answer, text)


def make(directory: Path, **values: Any) -> Config:
    """Make a new node's directory; `values` as for `config.default_toml`.

    Raises:
        CliError: there is something in the way. Nothing was changed.
    """
    path = directory / FILE_NAME
    data = directory / "data"
    if path.exists():
        raise CliError(f"{path} exists", f"troncal serve -c {path}, or another directory")
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise CliError(f"{data} is not empty", "choose another directory, or move it away")
    made = [p for p in (directory, data) if not p.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _fill(path, values, made)
    except BaseException:
        for left in made[::-1]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        raise


def _fill(path: Path, values: dict[str, Any], made: list[Path]) -> Config:
    """Make what `init` promises; what was made is added to `made`, should the rest fail."""
    with open(path, "x", encoding="utf-8") as file:
        made.append(path)
        file.write(default_toml(**values))
    config = load(path)
    if keys.ENVIRONMENT not in os.environ:
        key = config.file(config.node.master_key_file)
        keys.MasterKey.create(key)
        made.append(key)
    for directory in (config.data, config.data / "journal"):
        directory.mkdir(mode=0o700, exist_ok=True)
    # Imported late: `check-config` needs no native module.
    from switch.cli.provision import Refusal, provision_all

    host: tuple[str, dict[str, Any]] = ("host_add", {"name": HOST, "dialect": DIALECT})
    for answer in provision_all(config, [host, ("cip_own_keys", {})]):
        assert not isinstance(answer, Refusal), "nothing is there yet that could be in the way"
    return config


@click.command("check-config", cls=Command)
@click.pass_obj
def check_config(call: Call) -> None:
    """Tell every mistake in the configuration with its line; nothing is started."""
    try:
        config = call.config()
        _check_master_key(config)
        _check_with_registry(config)
    except ConfigError as error:
        if call.json:
            call.answer({"ok": False, "mistakes": error.mistakes}, lambda: None)
            raise click.exceptions.Exit(1) from None
        count = len(error.mistakes)
        noun = "mistake" if count == 1 else "mistakes"
        raise CliError("\n".join([f"{count} {noun}", *error.lines()])) from None
    answer = {"ok": True, "config": str(config.path), "mistakes": []}
    call.answer(answer, lambda: click.echo(f"{config.path} is good"))


def _check_with_registry(config: Config) -> None:
    """Raises: ConfigError where the file names hosts that are not in the data directory."""
    # Most files need no data: a directory is not opened, and perhaps recovered, for nothing.
    asks = config.links or config.routes or "ceibo" not in config.node.roles
    if asks and (config.data / "journal").is_dir():
        from switch.cli.links import check_with_registry

        check_with_registry(config)


def _check_master_key(config: Config) -> None:
    """Raises: ConfigError where the master key cannot be used; never with any of it."""
    try:
        keys.MasterKey.load(config.file(config.node.master_key_file))
    except keys.MasterKeyError as error:
        mistake = Mistake(0, "node.master_key_file", str(error), error.hint)
        raise ConfigError(config.path, [mistake]) from None
