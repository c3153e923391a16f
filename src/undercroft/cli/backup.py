"""`undercroft backup` and `undercroft restore`: a data directory as it was at one moment."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

import undercroft
from undercroft.cli.node_database import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    existing,
    settings_of,
)
from undercroft.cli.output import moment, print_json, progress, size, told
from undercroft.clock import now_us
from undercroft.database.backup import artifact_count, artifacts_in, back_up
from undercroft.database.schema import KEY_VALUES, NODE, check_file
from undercroft.database.upkeep import integrity_problems
from undercroft.durable import sync_directory, write_through
from undercroft.errors import DatabaseFileError, DataDirectoryError
from undercroft.storage.layout import artifact_path

MANIFEST = "backup.json"
DATABASES = (KEY_VALUES, NODE)


class Manifest(msgspec.Struct, frozen=True):
    """What a backup says of itself; written last, so a directory without one is none."""

    version: str
    """Of the Undercroft that wrote it."""
    created_at: int
    """Microseconds since the epoch."""
    artifacts: int
    bytes: int
    gone: int
    """Artifacts that were evicted, or replaced by others of another size, while the files were copied."""
    with_artifacts: bool


class Copied(msgspec.Struct):
    """What was copied so far."""

    artifacts: int = 0
    bytes: int = 0
    gone: int = 0


def backup(
    destination: Annotated[Path, typer.Argument(help="Directory to be made")],
    databases_only: Annotated[
        bool, typer.Option("--databases-only", help="Leave artifacts out: tools store them again")
    ] = False,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a backup of the data directory, of a node running or stopped.

    Both databases are copied as they are at one moment each, then the files of the artifacts in them. The
    directory appears when it is complete. It holds everybody's artifacts and the hashes of all tokens.
    """
    with told():
        settings = settings_of(data_dir, config)
        if destination.resolve().is_relative_to(settings.data_dir.resolve()):
            # The node would take it for artifacts, and evict it.
            raise DataDirectoryError(
                f"{destination} is inside the data directory {settings.data_dir}: choose a place outside"
            )
        partial = _new_directory(destination, "choose a name that is not taken")
        try:
            manifest = _back_up(settings.data_dir, partial, databases_only)
            partial.rename(destination)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_directory(destination.absolute().parent)
    if as_json:
        print_json(manifest)
    else:
        gone = f"; {manifest.gone} went while it was made" if manifest.gone else ""
        typer.echo(f"{destination}: {manifest.artifacts} artifacts, {size(manifest.bytes)}{gone}")


def _new_directory(destination: Path, otherwise: str) -> Path:
    """A directory beside it, to be renamed when it is complete; `otherwise`: advice if it is taken."""
    if destination.exists():
        raise DataDirectoryError(f"{destination} is there already: {otherwise}")
    if not destination.absolute().parent.is_dir():
        raise DataDirectoryError(f"{destination} cannot be made: make {destination.parent} first")
    partial = destination.with_name(f"{destination.name}.partial")
    if partial.exists():
        raise DataDirectoryError(f"{partial} is left of one that did not end, or is being made: remove it")
    partial.mkdir(mode=0o700)
    return partial


def _back_up(source: Path, target: Path, databases_only: bool) -> Manifest:
    if left := sorted(source.glob("*.spill")):
        raise DataDirectoryError(
            f"{left[0]} has rows that are not in the database yet: start the node once, which commits them"
        )
    for schema in DATABASES:
        _copy_database(existing(source / f"{schema.name}.sqlite"), target / f"{schema.name}.sqlite")
    copied = Copied()
    if not databases_only:
        _copy_artifacts(source / "artifacts", target, copied)
    os.sync()
    manifest = Manifest(
        undercroft.__version__, now_us(), copied.artifacts, copied.bytes, copied.gone, not databases_only
    )
    write_through(target / MANIFEST, msgspec.json.encode(manifest))
    sync_directory(target)
    return manifest


def _copy_database(source: Path, target: Path) -> None:
    with progress(source.name, None) as tell:
        back_up(source, target, lambda done, total: tell(done * 100 // max(total, 1)))


def _copy_artifacts(source: Path, target: Path, copied: Copied) -> None:
    database = target / f"{NODE.name}.sqlite"
    with progress("artifacts", artifact_count(database)) as tell:
        for key, size_bytes in artifacts_in(database):
            _copy_artifact(source, target / "artifacts", key, size_bytes, copied)
            tell(copied.artifacts + copied.gone)


def _copy_artifact(source: Path, target: Path, key: str, size_bytes: int, copied: Copied) -> None:
    copy = Path(artifact_path(target, key))
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        # With its times and extended attributes, which say what it must be.
        shutil.copy2(artifact_path(source, key), copy, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        copied.gone += 1
        return
    if copy.is_symlink() or copy.stat().st_size != size_bytes:
        # Replaced since the databases were copied: what its row says is not there any more.
        copy.unlink()
        copied.gone += 1
        return
    copied.artifacts += 1
    copied.bytes += size_bytes


def restore(
    source: Annotated[Path, typer.Argument(help="Directory made by `undercroft backup`")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a data directory of a backup. No node may use that directory, and it must not be there yet.

    The databases are checked to their last page first. A file is checked when it is first asked for. The
    directory appears when it is complete.
    """
    with told():
        manifest = _checked(source)
        target = settings_of(data_dir, config).data_dir
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        partial = _new_directory(target, "give another by --data-dir, or move it away")
        try:
            restored = _restore(source, partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_directory(target.absolute().parent)
    if as_json:
        print_json(restored)
    else:
        gone = f"; {restored.gone} are not in the backup, and are misses" if restored.gone else ""
        made = f"{target} as of {moment(manifest.created_at)}"
        typer.echo(f"{made}: {restored.artifacts} artifacts, {size(restored.bytes)}{gone}")


def _checked(source: Path) -> Manifest:
    """What the backup says of itself, if it is one and whole."""
    try:
        manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataDirectoryError(f"{source} is no backup: there is no {MANIFEST} in it") from error
    except msgspec.DecodeError as error:
        raise DataDirectoryError(f"{source / MANIFEST} is damaged: {error}") from error
    for schema in DATABASES:
        path = existing(source / f"{schema.name}.sqlite")
        check_file(path, schema)
        with progress(path.name, 100) as tell:
            problems = integrity_problems(path, schema, _percent(tell))
        if problems:
            raise DatabaseFileError(f"{path} is damaged: {problems[0]}")
    return manifest


def _percent(tell: Callable[[int], None]) -> Callable[[float], None]:
    return lambda share: tell(int(share * 100))


def _restore(source: Path, target: Path) -> Copied:
    for schema in DATABASES:
        _copy_database(source / f"{schema.name}.sqlite", target / f"{schema.name}.sqlite")
    copied = Copied()
    _copy_artifacts(source / "artifacts", target, copied)
    os.sync()
    return copied
