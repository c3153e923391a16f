"""`undercroft inspect`: what is known of one artifact."""

from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, with_node_database
from undercroft.cli.output import failure, moment, print_json
from undercroft.config import Settings
from undercroft.database import Database

MOST = 20
"""So many candidates are shown."""

EXIT_NOT_FOUND = 1
"""Nothing is known of the artifact."""


class Inspected(msgspec.Struct, frozen=True):
    """An artifact's row, and the file beside it; times in microseconds since the epoch."""

    key: str
    size_bytes: int
    content_sha256: str | None
    stored_at: int | None
    last_accessed_at: int
    written_by: str | None
    tool: str | None
    user_agent: str | None
    file_bytes: int | None
    """None if there is no file."""


def inspect(
    key: Annotated[str, typer.Argument(help="Key, hash or address of an artifact")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who wrote an artifact, when and with what, and whether its file is there.

    KEY is the place of the file below artifacts/ in the data directory, or just its last part: the hash or
    name with which the build tool asks, or the address that it asks.

    The node may be running; what it stored within the last moment may not be there yet.
    """

    async def act(settings: Settings, database: Database) -> None:
        found_key = key if database.find(SELECT, key) is not None else await _the_only_one(database, key)
        row: Any = database.find(SELECT, found_key)
        path = settings.data_dir / "artifacts" / found_key
        values: list[Any] = [found_key, *row, path.stat().st_size if path.is_file() else None]
        found = Inspected(*values)
        if as_json:
            print_json(found)
        else:
            typer.echo(_text(found))

    with_node_database(data_dir, config, act)


async def _the_only_one(database: Database, asked: str) -> str:
    """The key that ends with the last part of what was asked for; exits unless there is exactly one."""
    *path, name = [part for part in urlsplit(asked).path.split("/") if part] or [asked]
    keys = await _keys_ending_with(database, name)
    if not keys and path:
        keys = await _keys_ending_with(database, path[-1] + name)  # as ccache asks: ab/cdef
    if len(keys) > 1:
        there = [key for key in keys if set(path) <= set(key.split("/"))]
        keys = there if len(there) == 1 else keys
    if not keys:
        raise failure(f"nothing is known of {asked!r}", EXIT_NOT_FOUND)
    if len(keys) > 1:
        shown = "\n".join(keys)
        raise failure(f"there are several with the name {name!r}, ask for one of:\n{shown}", EXIT_NOT_FOUND)
    return keys[0]


async def _keys_ending_with(database: Database, name: str) -> list[str]:
    return await database.read(
        lambda connection: [str(key) for (key,) in connection.execute(SEARCH, (name, MOST))]
    )


def _text(found: Inspected) -> str:
    file = "there is none" if found.file_bytes is None else f"{found.file_bytes} bytes"
    lines = {
        "key": found.key,
        "size": f"{found.size_bytes} bytes",
        "sha256": found.content_sha256 or "unknown",
        "stored": moment(found.stored_at, "unknown"),
        "last used": moment(found.last_accessed_at),
        "written by": found.written_by or "nobody who gave a name",
        "tool": found.tool or "unknown",
        "client": found.user_agent or "unknown",
        "file": file,
    }
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items())


# All keys are looked at: it is one person who asks.
SEARCH = """
SELECT key FROM cache_artifacts
WHERE substr(key, -length(?1) - 1) = '/' || ?1 ORDER BY last_accessed_at DESC LIMIT ?2
"""

SELECT = """
SELECT size_bytes, content_sha256, stored_at, last_accessed_at, written_by, tool, user_agent
FROM cache_artifacts WHERE key = ?
"""
