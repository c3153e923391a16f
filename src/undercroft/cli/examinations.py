"""What `undercroft doctor` looks at, one part of a node's surroundings after the other."""

import asyncio
import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import msgspec

from undercroft.cli.node_database import database_path
from undercroft.cli.output import size
from undercroft.config import Settings, directory_of, listening_url, without_effect
from undercroft.database.schema import KEY_VALUES, NODE, check_file
from undercroft.database.upkeep import size_on_disk
from undercroft.errors import ObjectStoreError, SettingsError, UndercroftError
from undercroft.s3.object_store import open_object_store
from undercroft.storage.capacity import volume_of
from undercroft.storage.layout import directory_identity
from undercroft.telemetry.events import Events

# A node answers `/up` in milliseconds, unless its disk hangs.
ANSWER_S = 5.0

# Times in rows and of files are compared with each other, to the second.
CLOCK_TOLERANCE_S = 2.0

# Below this many free inodes a day's compile cache may not fit, whatever bytes are free.
FEW_INODES = 100_000

# The databases need room above the limit of artifacts.
DATABASE_ROOM = 50_000_000

# Less than a day of anybody's artifacts: a unit may have been forgotten.
SMALL_LIMIT = 100_000_000

# Connections, artifacts being sent and received, databases.
ENOUGH_DESCRIPTORS = 8_192


class Finding(msgspec.Struct, frozen=True):
    """What was found of one thing, and what to do about it."""

    what: str
    state: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(what, "ok", found)


def warning(what: str, found: str, advice: str) -> Finding:
    """It works, but maybe not as it was meant."""
    return Finding(what, "warning", found, advice)


def problem(what: str, found: str, advice: str) -> Finding:
    """The node would not start, or not work."""
    return Finding(what, "problem", found, advice)


def of_settings(settings: Settings) -> Iterator[Finding]:
    """Which of them do nothing, and who may come in."""
    yield ok("settings", "all are right")
    for name in without_effect(settings):
        yield warning("settings", f"{name} has no effect", "remove it, or set what it belongs to")
    limit = settings.disk.limit_bytes
    if limit is not None and limit < SMALL_LIMIT:
        advice = "if that was not meant, give it a unit, as in 200GB"
        yield warning("settings", f"disk.limit_bytes = {limit:,} bytes: next to nothing is kept", advice)
    if settings.auth.mode == "none" and settings.allow_unauthenticated:
        advice = "unless the network keeps others out, set auth.mode to tokens"
        yield warning("access", "everybody who reaches the port may read and write", advice)


def of_data_directory(settings: Settings) -> Iterator[Finding]:
    """Whether the node can write there, and who else can read it."""
    directory = settings.data_dir
    if not directory.exists():
        parent = _nearest(directory)
        if may_write(parent):
            yield ok("data directory", f"{directory} will be made at the first start")
        else:
            advice = f"make it for the user of the node, or let that user write to {parent}"
            yield problem("data directory", f"{directory} is not there and cannot be made", advice)
        return
    probe = directory / f"doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"probe")
        written_at = probe.stat().st_mtime
        probe.unlink()
    except OSError as error:
        advice = "run as the user of the node, mend its permissions, or make room"
        yield problem("data directory", f"{directory} cannot be written to: {error.strerror}", advice)
        return
    yield ok("data directory", f"{directory} can be written to")
    if abs(written_at - time.time()) > CLOCK_TOLERANCE_S:
        off = f"the file system is {written_at - time.time():+.0f} s off the clock of this machine"
        yield warning("clock", off, "is it a network file system? its server needs the right time, too")
    if directory.stat().st_mode & 0o007:
        found = f"every user of this machine may look into {directory}"
        yield warning("permissions", found, f"chmod o= {directory}: it has everybody's artifacts")


def may_write(directory: Path) -> bool:
    """Whether this user may make files there; root always may."""
    return directory.is_dir() and os.access(directory, os.W_OK)


def _nearest(directory: Path) -> Path:
    """The closest directory above that is there."""
    return next(parent for parent in directory.absolute().parents if parent.exists())


def of_room(settings: Settings) -> Iterator[Finding]:
    """Bytes and inodes that are left."""
    place = settings.data_dir if settings.data_dir.exists() else _nearest(settings.data_dir)
    volume = volume_of(place)()
    free = f"{size(volume.free)} of {size(volume.total)} are free"
    used_percent = 100 * (1 - volume.free / max(volume.total, 1))
    if used_percent >= settings.disk.limit_percent:
        advice = "make room: uploads are refused above disk.limit_percent, whoever fills the volume"
        yield problem("room", free, advice)
    elif used_percent >= settings.disk.high_watermark_percent:
        yield warning("room", free, "above disk.high_watermark_percent: the node evicts what it can")
    else:
        yield ok("room", free)
    if volume.total * (100 - settings.disk.limit_percent) / 100 < DATABASE_ROOM:
        advice = f"choose a disk.limit_percent that leaves {size(DATABASE_ROOM)} to the databases"
        yield warning("room", f"disk.limit_percent = {settings.disk.limit_percent:g}", advice)
    inodes = os.statvfs(place)
    if inodes.f_files > 0 and inodes.f_favail < FEW_INODES:
        advice = "make the file system anew with more of them (mkfs.ext4 -i 8192)"
        yield warning("room", f"{inodes.f_favail:,} inodes are free: each artifact takes one", advice)


def of_databases(settings: Settings) -> Iterator[Finding]:
    """Whether they can be opened. To read all of them is `undercroft check`."""
    for schema in (KEY_VALUES, NODE):
        path = database_path(settings, schema)
        if not path.exists():
            yield ok("database", f"{path.name} will be made at the first start")
            continue
        try:
            check_file(path, schema)
        except UndercroftError as error:
            yield problem("database", str(error), "Operations in the documentation says how to recover")
        else:
            yield ok(
                "database", f"{path.name}, {size(size_on_disk(path).total)}; `undercroft check` reads it all"
            )


def of_leftovers(settings: Settings) -> Iterator[Finding]:
    """Rows that did not get into a database."""
    for path in sorted(settings.data_dir.glob("*.spill")):
        yield warning("rows", f"{path.name}: a stop could not commit them", "start the node, which does")
    for path in sorted(settings.data_dir.glob("*.refused.jsonl")):
        advice = "look into it: SQLite refused these rows for what they are; then remove it"
        yield warning("rows", f"{path.name}: {size(path.stat().st_size)} of refused rows", advice)


def of_clock(settings: Settings) -> Iterator[Finding]:
    """Whether anything was written in a time to come."""
    paths = [
        path for schema in (KEY_VALUES, NODE) for path in settings.data_dir.glob(f"{schema.name}.sqlite*")
    ]
    ahead = max((path.stat().st_mtime - time.time() for path in paths), default=0.0)
    if ahead > CLOCK_TOLERANCE_S:
        advice = "set the clock (timedatectl): eviction and cleaning go by it"
        yield warning("clock", f"the data was written {ahead:.0f} s from now: it was set back", advice)
    else:
        yield ok("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC, and nothing is newer")


def of_address(settings: Settings) -> Iterator[Finding]:
    """Whether the port is free, or a node is there already."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except UnicodeError:
        yield problem(
            "address", f"cannot listen on {where}: that is no name of a machine", "choose another host"
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            yield _taken(settings)
        else:
            advice = "choose another host or port"
            yield problem("address", f"cannot listen on {where}: {error.strerror}", advice)
    else:
        yield ok("address", f"{where} is free: no node runs there")


def _taken(settings: Settings) -> Finding:
    """Somebody listens: a node, one with trouble, or another program."""
    url = listening_url(settings)
    try:
        answer = httpx.get(f"{url}/up", timeout=ANSWER_S, trust_env=False)
        is_of_another = answer.headers.get("server") == "undercroft" and _is_of_another(url, settings)
    except httpx.HTTPError as error:
        return problem("address", f"{url} is taken by who does not answer: {error}", "choose another port")
    if answer.headers.get("server") != "undercroft":
        return problem("address", f"{url} is taken by another program", "choose another port")
    if answer.status_code != httpx.codes.OK:
        return problem(
            "node", f"{url} runs and has trouble: {answer.text[:500]}", "see Operations in the documentation"
        )
    if is_of_another:
        return warning(
            "node",
            f"{url} runs, but works in another directory than {settings.data_dir}",
            "set port to that of the node you mean, or choose another for this one",
        )
    return ok("node", f"{url} runs and is well")


def _is_of_another(url: str, settings: Settings) -> bool:
    """Whether the node says so; one that asks for a token says nothing."""
    answer = httpx.get(f"{url}/api/status", timeout=ANSWER_S, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        return False
    its = answer.json().get("data_directory")
    # Nothing is said by one whose disk fails, and by one of an older version.
    return bool(its) and (not settings.data_dir.is_dir() or its != directory_identity(settings.data_dir))


def of_limits(_settings: Settings) -> Iterator[Finding]:
    """What the system lets a process of this user have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < ENOUGH_DESCRIPTORS:
        advice = f"raise it for the user of the node (LimitNOFILE={ENOUGH_DESCRIPTORS} in systemd)"
        yield warning("limits", f"at most {hard} open files", advice)
    else:
        yield ok("limits", "open files: enough")


async def of_object_store(settings: Settings) -> list[Finding]:
    """Whether the bucket can be asked with these credentials."""
    section = settings.object_store
    if section.url is None:
        return [ok("object store", "none is set: the node is complete on its own")]
    directory = directory_of(section.url)
    if directory is not None and directory.parent.is_dir() and not directory.exists():
        # To open it would make it.
        advice = "is its file system mounted? if the store is new, the next start makes the directory"
        return [warning("object store", f"there is no {directory}", advice)]
    try:
        store = open_object_store(section.connection(section.url), Events())
        async with asyncio.timeout(ANSWER_S):
            await store.check()
    except SettingsError as error:
        return [problem("object store", str(error), "mend object_store.* or the rights of the credentials")]
    except (ObjectStoreError, TimeoutError) as error:
        reason = str(error) or f"no answer in {ANSWER_S:g} s"
        return [warning("object store", reason, "the node starts without it and uses it when it answers")]
    return [ok("object store", "it can be listed")]
