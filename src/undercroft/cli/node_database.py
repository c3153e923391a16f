"""What commands need to look at the databases of a node, running or not."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from undercroft.cli.output import told
from undercroft.config import Settings, load
from undercroft.database import Database
from undercroft.database.schema import NODE, Schema, is_older
from undercroft.errors import DataDirectoryError


def _directory(given: str) -> Path:
    if not given:  # a variable that is not set; it would be taken for the directory one is in
        raise typer.BadParameter("it is empty: give a directory, or leave the flag out")
    return Path(given)


DataDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        parser=_directory,
        metavar="<path>",
        help="Directory of databases and artifacts [default: data]",
    ),
]
ConfigOption: TypeAlias = Annotated[Path | None, typer.Option("--config", help="TOML file with settings")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object a line")]


def with_node_database(
    data_dir: Path | None,
    config: Path | None,
    act: Callable[[Settings, Database], Awaitable[None]],
    *,
    create: bool = False,
) -> None:
    """Does it with the open database, or says on standard error what is in the way and exits.

    With `create` a data directory that is not there yet is made, as the node itself would do.
    """
    with told():
        settings = settings_of(data_dir, config)
        path = database_path(settings, NODE)
        if create and not path.is_file():
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            refuse_older(existing(path))
        asyncio.run(_opened(settings, Database(path, NODE), act))


def settings_of(data_dir: Path | None, config: Path | None) -> Settings:
    """The settings a command works with. Raises `SettingsError`."""
    return load({} if data_dir is None else {"data_dir": data_dir}, config)


def database_path(settings: Settings, schema: Schema) -> Path:
    """Where a database of the node lies."""
    return settings.data_dir / f"{schema.name}.sqlite"


def existing(path: Path) -> Path:
    """The path. Raises `DataDirectoryError` if there is no file."""
    if not path.is_file():
        raise DataDirectoryError(f"there is no {path}: is this the data directory of a node?")
    return path


def refuse_older(path: Path) -> None:
    """To migrate is the node's: the older one that may be running could not start again afterwards."""
    if is_older(path, NODE):
        raise DataDirectoryError(
            f"{path} is of an older Undercroft: start the node of this version once, or use that older one"
        )


async def _opened(
    settings: Settings, database: Database, act: Callable[[Settings, Database], Awaitable[None]]
) -> None:
    database.open()
    try:
        await act(settings, database)
    finally:
        await database.close()
