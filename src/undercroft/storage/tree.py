"""The tree of artifacts, directory by directory, in an order that can be taken up again anywhere."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from undercroft.errors import InvalidKeyError
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.layout import MODULE, artifact_key, module_key, safe_component, safe_handle

Parts: TypeAlias = tuple[str, ...]
"""The components of a path below the directory of artifacts."""

# account/project/kind/aa/bb/id at least.
_LEAST_PARTS = 6
_ABOVE_PAIRS = 3

# Where the kind stands; behind a trust scope it is one further.
_KIND = 2

# category/aa/bb/hash/name
_MODULE_PARTS = 5

# No layout of ours is as deep: whatever lies there somebody else has put there.
MAX_DEPTH = 16


class Listing(NamedTuple):
    """What lies in one directory, each list in sorted order."""

    parts: Parts
    keys: list[str]
    """Keys of artifacts."""
    directories: list[Parts]
    foreign: list[str]
    """Paths below the directory of artifacts that cannot belong to an artifact."""
    error: OSError | None = None
    """Why it could not be read; then it looks empty and is not `empty`."""

    @property
    def empty(self) -> bool:
        """Whether nothing at all is in it."""
        return not (self.keys or self.directories or self.foreign or self.error)


class TreeWalk:
    """Every directory of the tree, each before those inside it, in sorted order. One listing is in memory.

    Nothing is followed that is no directory of artifacts: no link, no name or depth of another kind.
    """

    def __init__(self, root: Path, threads: DiskThreads, after: Parts | None = None) -> None:
        """With `after` it begins behind that directory, which need not be there any more."""
        self._root = root
        self._threads = threads
        self._after = after
        self._ahead: list[Parts] = [()]

    async def next(self) -> Listing | None:
        """The next directory, None at the end. One that cannot be read is a listing with an `error`."""
        while self._ahead:
            listing = await self._threads.run(list_directory, self._root, self._ahead.pop())
            self._ahead += [parts for parts in reversed(listing.directories) if self._leads_on(parts)]
            if self._after is None or listing.parts > self._after:
                return listing
        return None

    def _leads_on(self, parts: Parts) -> bool:
        """Whether the directory is ahead, or something ahead may be inside it."""
        return self._after is None or parts > self._after or parts == self._after[: len(parts)]


def list_directory(root: Path, parts: Parts) -> Listing:
    """What lies in the directory; one that is gone is empty. Blocks."""
    listing = Listing(parts, [], [], [])
    try:
        with os.scandir(root.joinpath(*parts)) as entries:
            for entry in entries:
                _add(listing, entry)
    except FileNotFoundError:
        return Listing(parts, [], [], [])
    except OSError as error:
        return Listing(parts, [], [], [], error)
    for found in (listing.keys, listing.directories, listing.foreign):
        found.sort()
    return listing


def _add(listing: Listing, entry: "os.DirEntry[str]") -> None:
    parts = (*listing.parts, entry.name)
    if entry.is_dir(follow_symlinks=False) and may_hold_artifacts(parts):
        listing.directories.append(parts)
    elif entry.is_file(follow_symlinks=False) and is_artifact_key(parts):
        listing.keys.append("/".join(parts))
    else:
        listing.foreign.append("/".join(parts))


def is_artifact_key(parts: Parts) -> bool:
    """Whether `artifact_key` or `module_key` makes a key of these components."""
    if len(parts) < _LEAST_PARTS or not _are_safe(parts):
        return False
    module = _in_module(parts)
    if module is not None:
        return _is_module_key(module)
    account, project, kind, *group, _, _, identifier = parts
    return artifact_key(account, project, kind, identifier, group=group) == "/".join(parts)


def may_hold_artifacts(parts: Parts) -> bool:
    """Whether artifacts may lie in, or below, a directory of this name at this depth.

    Below two directories named by pairs of characters there are files only. Names of groups may look
    like pairs themselves, so a third pair in a row is given the benefit of the doubt.
    """
    if len(parts) > MAX_DEPTH or not _are_safe(parts):
        return False
    module = _in_module(parts)
    if module is not None:
        return len(module) < _MODULE_PARTS and _is_module_folder(module)
    *above, last = parts[_ABOVE_PAIRS:] or ("",)
    below_pairs = len(above) >= 2 and all(map(_is_pair, above[-2:]))
    return not below_pairs or _is_pair(last)


def _in_module(parts: Parts) -> Parts | None:
    """The components behind the kind if that is `module`, of a trust scope or not."""
    kind = _KIND + (len(parts) > _KIND and parts[_KIND].startswith("~"))
    return parts[kind + 1 :] if len(parts) > kind and parts[kind] == MODULE else None


def _is_module_folder(parts: Parts) -> bool:
    """Whether `{category}/{aa}/{bb}/{hash}` can begin so."""
    if len(parts) < _MODULE_PARTS - 1:
        return all(map(_is_pair, parts[1:]))
    return _is_module_key((*parts, "name"))


def _is_module_key(parts: Parts) -> bool:
    if len(parts) != _MODULE_PARTS:
        return False
    category, _, _, identifier, name = parts
    return module_key("a", "p", category, identifier, name).split("/")[3:] == list(parts)


def _is_pair(name: str) -> bool:
    return len(name) == 2


def _are_safe(parts: Parts) -> bool:
    try:
        for part in parts:
            safe_component(part, "path component")
        return all(safe_handle(part, "handle") == part for part in parts[:2])
    except InvalidKeyError:
        return False


def _is_made_for_a_hash(parts: Parts) -> bool:
    """Whether the directory is named by a pair of its characters, or by the hash of a module."""
    module = _in_module(parts)
    if module is not None and len(module) == _MODULE_PARTS - 1:
        return _is_module_folder(module)
    return len(parts) > _ABOVE_PAIRS and _is_pair(parts[-1])


def remove_if_unused(root: Path, parts: Parts, idle_seconds: float) -> bool:
    """Removes an empty directory made for a hash in which nothing has changed for so long. Blocks.

    Only then can it not be one that a writer has just made for its artifact: the writer, who makes
    missing directories once, would find it gone again. Answers whether it was removed.
    """
    if not _is_made_for_a_hash(parts):
        return False
    directory = root.joinpath(*parts)
    with suppress(OSError):  # it is gone, or not empty any more
        if directory.stat(follow_symlinks=False).st_mtime + idle_seconds < time.time():
            directory.rmdir()
            return True
    return False
