"""The files rows go to when the database will not have them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from undercroft.buffers.bufferable import Batch
from undercroft.errors import UndercroftError

FORMAT = "undercroft-spill-1"


def write_spill(path: Path, batches: Iterable[Batch]) -> None:
    """Writes the batches durably under `path`, whole or not at all. Raises OSError."""
    lines = [msgspec.json.encode(FORMAT)]
    lines += [msgspec.json.encode((operation, entries)) for operation, entries in batches]
    temporary = path.with_name(path.name + ".tmp")
    try:
        _write_through(temporary, b"\n".join(lines) + b"\n")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable (fsync of the directory, see man 2 fsync)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_spill(path: Path, entry_types: Mapping[str, type[msgspec.Struct]]) -> list[Batch]:
    """The batches of a spill file; raises `UndercroftError` when it is not one of this version's."""
    head, *lines = path.read_bytes().splitlines()
    try:
        if msgspec.json.decode(head) != FORMAT:
            raise ValueError(f"it does not start with {FORMAT!r}")  # noqa: TRY301
        return [_read_batch(line, entry_types) for line in lines]
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise UndercroftError(
            f"the spill file {path} cannot be read ({error!r}); it holds rows that were acknowledged: "
            "move it away to start without them"
        ) from error


def _read_batch(line: bytes, entry_types: Mapping[str, type[msgspec.Struct]]) -> Batch:
    operation, raw = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
    entries = msgspec.json.decode(raw, type=list[msgspec.Raw])
    return Batch(operation, [msgspec.json.decode(entry, type=entry_types[operation]) for entry in entries])


def append_refused(path: Path, rows: Sequence[tuple[str, msgspec.Struct, str]]) -> None:
    """Appends rows that SQLite refused, one JSON line each, for a person to look at. Raises OSError."""
    with path.open("ab") as file:
        file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
