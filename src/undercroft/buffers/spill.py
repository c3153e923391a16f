"""The files rows go to when the database will not have them."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from undercroft.buffers.bufferable import Batch
from undercroft.durable import sync_directory, write_through
from undercroft.errors import UndercroftError

FORMAT = "undercroft-spill-2"

# Of version 0.3.0 and before: without a seal.
UNSEALED_FORMAT = "undercroft-spill-1"


def write_spill(path: Path, batches: Iterable[Batch]) -> None:
    """Writes the batches durably under `path`, whole or not at all. Raises OSError."""
    lines = [_encode(FORMAT), *(_encode(batch) for batch in batches)]
    temporary = path.with_name(path.name + ".tmp")
    try:
        content = b"\n".join(lines) + b"\n"
        write_through(temporary, content + _seal(content))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_spill(path: Path) -> None:
    """Removes a spill file for good. Raises OSError.

    Should it come back after a loss of power, its rows would overwrite newer ones.
    """
    path.unlink()
    sync_directory(path.parent)


def rows_in(batches: Iterable[Batch]) -> int:
    """How many rows the batches have."""
    return sum(len(batch.entries) for batch in batches)


def spills_of(directory: Path, stem: str) -> list[Path]:
    """The spill files of a buffer, or of workers there were before, the oldest first. Raises OSError.

    Not those of a buffer whose name only begins with the same letters.
    """
    own = re.compile(re.escape(stem) + r"(\.\d+)?\.spill")
    found = (path for path in directory.iterdir() if own.fullmatch(path.name))
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def read_spill(path: Path, entry_types: Mapping[str, type[msgspec.Struct]]) -> list[Batch]:
    """The batches of a spill file.

    Raises `UndercroftError` when it is not one of this version's or an older one's, or not as it was written.
    """
    try:
        head, _, rest = path.read_bytes().partition(b"\n")
        lines = _content(_decode(head), head, rest).splitlines()
        return [_read_batch(line, entry_types) for line in lines]
    except (OSError, ValueError, KeyError, RecursionError, msgspec.DecodeError) as error:
        raise UndercroftError(
            f"the spill file {path} cannot be read ({error!r}); it holds rows that were acknowledged: "
            "move it away to start without them"
        ) from error


def _seal(content: bytes) -> bytes:
    """The last line: without it a file that was cut between two rows would look whole."""
    return _encode(hashlib.sha256(content).hexdigest()) + b"\n"


def _content(form: Any, head: bytes, rest: bytes) -> bytes:
    """The lines behind the head, compared with their seal. Raises `ValueError`."""
    if form == UNSEALED_FORMAT:
        return rest
    if form != FORMAT:
        raise ValueError(f"it does not start with {FORMAT!r}")
    length = len(_seal(b""))
    content, seal = rest[:-length], rest[-length:]
    if seal != _seal(head + b"\n" + content):
        raise ValueError("it was cut or changed after it was written")
    return content


def _read_batch(line: bytes, entry_types: Mapping[str, type[msgspec.Struct]]) -> Batch:
    operation, rows = msgspec.convert(_decode(line), tuple[str, list[Any]])
    entry_type = entry_types[operation]
    return Batch(operation, [msgspec.convert(row, entry_type) for row in rows])


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        # A lone surrogate has no UTF-8, but an escape in JSON. SQLite will refuse the row, alone.
        return json.dumps(msgspec.to_builtins(value)).encode()


def _decode(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        return json.loads(line)


def append_refused(path: Path, rows: Sequence[tuple[str, msgspec.Struct, str]]) -> None:
    """Appends rows that SQLite refused, one JSON line each, for a person to look at. Raises OSError."""
    with path.open("ab") as file:
        file.writelines(_encode(row) + b"\n" for row in rows)
