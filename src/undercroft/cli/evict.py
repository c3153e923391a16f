"""`undercroft evict`: makes room now, the longest unused artifacts first."""

from datetime import timedelta
from typing import Annotated

import msgspec
import typer
from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from undercroft.cli.data_directory import with_data
from undercroft.cli.node_database import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    database_path,
    existing,
    settings_of,
)
from undercroft.cli.output import moment, print_json, progress, size, told
from undercroft.clock import now_us
from undercroft.config import Settings
from undercroft.database.listings import rows_by_use
from undercroft.database.schema import NODE
from undercroft.errors import DataDirectoryError, SettingsError
from undercroft.node import Node
from undercroft.storage.capacity import volume_of
from undercroft.telemetry import events
from undercroft.telemetry.events import Measurements, Metadata

ALL = 100.0
"""Percent."""

# Rows read at once while it is only counted.
SLICE_ROWS = 10_000


class Evicted(msgspec.Struct):
    """What went, or would go."""

    dry_run: bool
    artifacts: int = 0
    bytes: int = 0
    newest_use: int | None = None
    """When the one that was used last of them was used, in microseconds since the epoch."""


def evict(
    keep: Annotated[
        str | None,
        typer.Option(help="What may stay, like 50GB or 2TiB [default: disk.target_percent of the limit]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go")] = False,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the artifacts that were not used for longest, until no more than so much is left.

    The node may be running or stopped. What is in the object store stays there and is fetched again when
    somebody asks. The limit is disk.limit_bytes, or disk.limit_percent of the volume.
    """
    with told():
        settings = settings_of(data_dir, config)
        existing(database_path(settings, NODE))
        settings = _bounded(settings, _kept(settings) if keep is None else _size(keep))
        found = Evicted(dry_run)

        async def act(node: Node) -> None:
            if dry_run:
                await _count(node, found)
            else:
                await _evict(node, found)
                if node.background.disk_eviction.failures:
                    raise DataDirectoryError("not all of it could be deleted: see `undercroft doctor`")

        with_data(settings, act)
    if as_json:
        print_json(found)
    else:
        verb = "would go" if dry_run else "went"
        last = "" if found.newest_use is None else f"; none of them was used after {moment(found.newest_use)}"
        typer.echo(f"{found.artifacts:,} artifacts {verb}, {size(found.bytes)}{last}")


def _kept(settings: Settings) -> int:
    """What stays if nothing was said."""
    disk = settings.disk
    limit = int(volume_of(settings.data_dir)().total * disk.limit_percent / ALL)
    if disk.limit_bytes is not None:
        limit = min(limit, disk.limit_bytes)
    return int(limit * disk.target_percent / ALL)


def _size(text: str) -> int:
    try:
        return TypeAdapter(Annotated[ByteSize, Field(ge=0)]).validate_python(text)
    except ValidationError as error:
        raise SettingsError(f"--keep {text!r} is no size: write 0, 500MB or 2TiB") from error


def _bounded(settings: Settings, keep: int) -> Settings:
    """Settings by which eviction goes on until so much is left, whoever else fills the volume."""
    marks = {"high_watermark_percent": ALL, "target_percent": ALL, "limit_bytes": keep}
    return settings.model_copy(update={"disk": settings.disk.model_copy(update=marks)})


async def _count(node: Node, found: Evicted) -> None:
    """Goes through the rows in the order of eviction."""
    too_many = node.capacity.excess(ALL)
    after = (-1, -1)
    while found.bytes < too_many and (rows := await rows_by_use(node.node_database, after, SLICE_ROWS)):
        for used_at, number, size_bytes in rows:
            if found.bytes >= too_many:
                return
            found.artifacts, found.bytes, found.newest_use = (
                found.artifacts + 1,
                found.bytes + size_bytes,
                used_at,
            )
            after = (used_at, number)


async def _evict(node: Node, found: Evicted) -> None:
    total = node.capacity.excess(ALL)

    def on_evicted(measurements: Measurements, _metadata: Metadata) -> None:
        found.artifacts += 1
        found.bytes += int(measurements["bytes"])
        used_at = now_us() - round(timedelta(seconds=measurements["age_seconds"]) / timedelta(microseconds=1))
        found.newest_use = max(found.newest_use or 0, used_at)
        tell(found.bytes)

    with progress("evicting", total) as tell:
        node.telemetry.attach(events.DISK_EVICTED, on_evicted)
        await node.background.disk_eviction.run_once()
