"""`undercroft status`: what a running node does, or what a stopped one has."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, database_path, settings_of
from undercroft.cli.output import console, failure, print_json, size, table, told
from undercroft.config import Settings, listening_url
from undercroft.database.backup import artifact_count
from undercroft.database.schema import KEY_VALUES, NODE
from undercroft.database.upkeep import size_on_disk
from undercroft.errors import DataDirectoryError
from undercroft.storage.layout import directory_identity
from undercroft.telemetry.activity import Counts, Period
from undercroft.telemetry.status import Status

EXIT_TROUBLE = 1
"""The node runs and something is wrong with it."""

EXIT_STOPPED = 3
"""No node answers at the address."""

ANSWER_S = 10.0
WATCH_S = 2.0

HOUR_S, DAY_S = 3_600, 86_400


class Stopped(msgspec.Struct, frozen=True):
    """What lies in the data directory of a node that does not run."""

    running: bool
    artifacts: int
    database_bytes: int
    left_over: list[str]
    """Files with rows that the next start commits."""


def status(  # noqa: PLR0917  # options of a command, which typer passes by name
    url: Annotated[str | None, typer.Option(help="Of the node [default: from host and port]")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="CACHE_TOKEN", help="Token, if the node asks for one")
    ] = None,
    day: Annotated[bool, typer.Option("--day", help="The last day instead of the last hour")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every other second")] = False,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a node does for builds, and how it is.

    Asks a running node by HTTP, one of another machine by --url. If none answers, it says what lies in the
    data directory. The status is 0 if all is well, 1 if not, 2 if the node cannot be asked, 3 if none runs.
    """
    with told():
        settings = settings_of(data_dir, config)
        address = (url or listening_url(settings)).rstrip("/")
        found = _ask(address, token)
        if found is not None and data_dir is not None and url is None:
            refuse_another(found, data_dir, address)
        if found is None and url is None:
            _show_stopped(settings, address, as_json)
    if found is None:
        raise failure(f"no node answers at {address}", EXIT_STOPPED)
    if watch and not as_json:
        _watch(address, token, found, day=day)
    elif as_json:
        print_json(found)
    else:
        console().print(rendered(found, day=day))
    if troubles(found):
        raise typer.Exit(EXIT_TROUBLE)


def _ask(address: str, token: str | None) -> Status | None:
    """None when nobody listens. Raises `DataDirectoryError` for an answer that is none."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        answer = httpx.get(f"{address}/api/status", headers=headers, timeout=ANSWER_S, trust_env=False)
    except httpx.ConnectError:
        return None
    except httpx.UnsupportedProtocol as error:
        raise DataDirectoryError(
            f"{address!r} is no address of a node: write http://HOST:PORT or https://HOST"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataDirectoryError(f"{address} does not answer: {type(error).__name__}: {error}") from error
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise DataDirectoryError(f"{address} asks for a token: give --token, or set CACHE_TOKEN")
    try:
        return msgspec.json.decode(answer.content, type=Status)
    except msgspec.DecodeError as error:
        raise DataDirectoryError(
            f"{address} is no Undercroft of this version: {answer.text[:200]}"
        ) from error


def refuse_another(found: Status, data_dir: Path, address: str) -> None:
    """Raises `DataDirectoryError` if the node at the address is not that of the data directory."""
    if not data_dir.is_dir():
        raise DataDirectoryError(f"there is no directory {data_dir}; the node at {address} has another")
    if found.data_directory not in ("", directory_identity(data_dir)):
        raise DataDirectoryError(
            f"the node at {address} works in another directory than {data_dir}: "
            "give --url, or the port of its node (UNDERCROFT_PORT)"
        )


def _watch(address: str, token: str | None, found: Status, *, day: bool) -> None:
    with Live(rendered(found, day=day), console=Console(highlight=False, markup=False)) as live:
        while True:
            time.sleep(WATCH_S)
            now = _ask(address, token)
            live.update(Text(f"no node answers at {address}") if now is None else rendered(now, day=day))


def _show_stopped(settings: Settings, address: str, as_json: bool) -> None:
    path = database_path(settings, NODE)
    if not path.is_file():
        return
    databases = sum(size_on_disk(database_path(settings, schema)).total for schema in (KEY_VALUES, NODE))
    left = sorted(one.name for one in settings.data_dir.glob("*.spill"))
    found = Stopped(False, artifact_count(path), databases, left)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"no node answers at {address}; {settings.data_dir} has {found.artifacts:,} artifacts")
        typer.echo(f"and databases of {size(databases)}")
        for name in left:
            typer.echo(f"{name}: rows that the next start commits")
    raise typer.Exit(EXIT_STOPPED)


def troubles(found: Status) -> list[str]:
    """What is wrong with the node; empty if all is well."""
    stalled = [f"buffer {one.name}: {one.stalled}" for one in found.buffers if one.stalled is not None]
    if found.object_store.health == "failing":
        stalled.append("the object store fails")
    if found.transfers.parked:
        stalled.append(f"{found.transfers.parked:,} transfers are parked: undercroft transfers list")
    return stalled


def rendered(found: Status, *, day: bool) -> RenderableType:
    """The status for people."""
    period, name = (found.day, "last day") if day else (found.hour, "last hour")
    wrong = troubles(found)
    processes = f", {found.workers} processes" if found.workers > 1 else ""
    head = f"Undercroft {found.version}, up {duration(found.at - found.started_at)}{processes}: "
    return Group(
        Text(head + ("; ".join(wrong) if wrong else "all is well")),
        Text(),
        _activity(period, name),
        Text(),
        table(
            ("buffer", "rows", "bytes", "in flight", "oldest", "flush", "longest", "retries"),
            _buffers(found),
        ),
        Text(),
        *(Text(line) for line in _disk_and_store(found)),
    )


def _activity(period: Period, name: str) -> Table:
    rows = [("all", *_cells(period.total))]
    for kind, counts in (("", period.tools), ("", period.projects)):
        ordered = sorted(counts.items(), key=lambda one: one[1].requests, reverse=True)
        rows += [(kind + label, *_cells(one)) for label, one in ordered]
    headings = (name, "requests", "hit ratio", "served", "stored", "time saved", "failed")
    return table(headings, rows)


def _cells(counts: Counts) -> tuple[str, ...]:
    asked = counts.hits + counts.misses
    return (
        f"{counts.requests:,}",
        f"{100 * counts.hits / asked:.1f} %" if asked else "-",
        size(counts.served_bytes),
        size(counts.stored_bytes),
        duration(counts.saved_seconds) if counts.saved_seconds else "-",
        f"{counts.failed:,}",
    )


def _buffers(found: Status) -> Iterator[Sequence[str]]:
    for one in found.buffers:
        yield (
            one.name,
            f"{one.rows:,}",
            size(one.bytes),
            f"{one.in_flight:,}",
            duration(one.oldest_age_seconds),
            "-" if one.flush_ms is None else f"{one.flush_ms:.1f} ms",
            "-" if one.longest_flush_ms is None else f"{one.longest_flush_ms:.1f} ms",
            f"{one.retries:,}",
        )


def _disk_and_store(found: Status) -> Iterator[str]:
    disk, transfers, store = found.disk, found.transfers, found.object_store
    share = 100 * disk.used_bytes / disk.limit_bytes if disk.limit_bytes else 0
    age = (
        ""
        if disk.eviction_age_seconds is None
        else f", last one unused for {duration(disk.eviction_age_seconds)}"
    )
    yield (
        f"disk          {size(disk.used_bytes)} of {size(disk.limit_bytes)} ({share:.0f} %), eviction from "
        f"{disk.high_percent:g} % to {disk.target_percent:g} %; {disk.evicted:,} evicted{age}"
    )
    yield f"volume        {size(disk.free_bytes)} of {size(disk.volume_bytes)} free"
    yield f"object store  {store.health}; {store.requests:,} requests looked at, {store.errors:,} failed"
    waiting = f"{transfers.uploads:,} up, {transfers.downloads:,} down, {transfers.deletes:,} deletes"
    yield f"transfers     {waiting}; {transfers.in_work:,} in work, {transfers.parked:,} parked"
    for one in found.warnings[:5]:
        values = " ".join(f"{name}={value}" for name, value in one.values.items())
        yield f"{one.level:<13} {one.at[:19]} {one.event} {values}"[:200]


def duration(seconds: float) -> str:
    """A time in the unit that fits."""
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms" if seconds else "0 s"
    for unit, length, up_to in (("s", 1, 120), ("min", 60, 2 * HOUR_S), ("h", HOUR_S, 2 * DAY_S)):
        if seconds < up_to:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / DAY_S:.0f} days"
