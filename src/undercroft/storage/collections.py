"""Directories as a tool sees them (collections), where each is one flat group of the keys of its artifacts.

A group has one component, whatever the depth of the directory: as many components as the directory has
could meet the pairs of another key (`artifact_key`), a file where a directory must be.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from undercroft.storage.layout import safe_component

# A longer listing would be megabytes of text.
MAX_NAMES = 10_000

# Entries of directories looked at for one answer: some tenths of a second of one of the disk's threads.
MAX_SEEN = 100_000


class Name(NamedTuple):
    """What lies in a collection; for a collection inside it there is neither `size` nor `modified`.

    `size` is in bytes, `modified` in seconds since the epoch.
    """

    name: str
    size: int | None = None
    modified: float = 0.0


def group_of(directories: Sequence[str]) -> str:
    """The group of a directory, given by its checked components: no two have the same one.

    Raises `InvalidKeyError` when it is too long for one component of a key.
    """
    group = "@" + "+".join(quote(part, safe="") for part in directories)
    return safe_component(group, "the directory in one component, percent-encoded,")


def collection_exists(place: Path, directories: Sequence[str]) -> bool:
    """Whether anything was ever stored in the collection or inside it. Blocks.

    Among very many other collections one that has nothing but collections inside may be overlooked.
    """
    group = group_of(directories)
    return (place / group).is_dir() or any(
        _name_inside(entry.name, group) is not None for entry in islice(_entries(place), MAX_SEEN)
    )


def list_collection(place: Path, directories: Sequence[str]) -> list[Name] | None:
    """What lies in the collection on this disk, in no order; None when that is too much to say. Blocks.

    `place` is the directory that holds the groups. A file is listed by its name alone: it may yet turn
    out to be damaged, or go.
    """
    group = group_of(directories)
    found: dict[tuple[str, bool], Name] = {}
    for seen, name in enumerate(_names(place, group)):
        if name is not None:
            found[name.name, name.size is None] = name
        if len(found) > MAX_NAMES or seen > MAX_SEEN:
            return None
    return list(found.values())


def _names(place: Path, group: str) -> Iterator[Name | None]:
    """Every name, those of collections once for each group inside them; None for what else was looked at."""
    for entry in _entries(place):
        name = _name_inside(entry.name, group)
        yield None if name is None else Name(name)
    for pair in _entries(place / group):
        yield None
        for second in _entries(Path(pair.path)):
            yield None
            for file in _entries(Path(second.path)):
                try:
                    status = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted meanwhile
                yield Name(file.name, status.st_size, status.st_mtime)


def _name_inside(other: str, group: str) -> str | None:
    """The name of the collection, directly inside that of `group`, to which the group `other` belongs."""
    start = group if group == "@" else f"{group}+"
    if not other.startswith(start) or other == start:
        return None
    return unquote(other[len(start) :].partition("+")[0])


def _entries(directory: Path) -> Iterator["os.DirEntry[str]"]:
    """What is in a directory; nothing if there is none."""
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
