"""Which blobs an `ActionResult` and a `Tree` of the Remote Execution API name.

Of protobuf's wire format (https://protobuf.dev/programming-guides/encoding/) only what it takes to find
them: the messages have a fixed depth, and the work is linear in their size. Field numbers:
https://github.com/bazelbuild/remote-apis, build/bazel/remote/execution/v2/remote_execution.proto.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

EMPTY_SHA256 = hashlib.sha256().hexdigest()

_HASH = re.compile(rb"[0-9a-f]{64}")
_EMPTY = EMPTY_SHA256.encode()


_MAX_VARINT_BYTES = 10
_MAX_TAG = (1 << 32) - 1


class UnreadableError(ValueError):
    """The bytes are not the message they were taken for."""


class Named(NamedTuple):
    """Hashes of blobs, each once. The empty blob is not among them."""

    blobs: list[str]
    trees: list[str]
    """Those that are `Tree` messages and name further ones."""


def named_by_action_result(data: bytes) -> Named:
    """What an action result needs to be of use; raises `UnreadableError`, and nothing else."""
    blobs: dict[str, None] = {}
    trees: dict[str, None] = {}
    streams: dict[int, list[memoryview]] = {5: [], 6: [], 7: [], 8: []}
    for number, value in _messages(memoryview(data), 2, 3, 5, 6, 7, 8):
        if number == 3:  # output_directories
            _add(trees, _merged(_all(value, 3)))
        elif number > 3:
            streams[number].append(value)
        elif not _last(_all(value, 5)):  # output_files, unless they have contents
            _add(blobs, _merged(_all(value, 2)))
    # stdout_raw and stdout_digest, then stderr: what stands in the message itself nobody fetches.
    for raw, digest in ((5, 6), (7, 8)):
        if not _last(streams[raw]):
            _add(blobs, _merged(streams[digest]))
    return Named(list(blobs), list(trees))


def named_by_tree(data: bytes) -> list[str]:
    """The files of the directories of a tree; raises `UnreadableError`, and nothing else."""
    blobs: dict[str, None] = {}
    for _, directory in _messages(memoryview(data), 1, 2):  # root, children
        for _, file in _messages(directory, 1):
            _add(blobs, _merged(_all(file, 2)))
    return list(blobs)


def _add(names: dict[str, None], digest: memoryview | None) -> None:
    name = bytes(_last(_all(digest, 1))) if digest is not None else b""
    if not name:
        return  # not set, or set to the default: nothing is named
    if _HASH.fullmatch(name) is None:
        raise UnreadableError(f"{name[:80]!r} is no SHA-256")
    if name != _EMPTY:
        names[name.decode()] = None


def _all(message: memoryview, number: int) -> list[memoryview]:
    return [value for _, value in _messages(message, number)]


def _last(values: list[memoryview]) -> memoryview | bytes:
    """A string or bytes: of several the last counts, of none the default is meant."""
    return values[-1] if values else b""


def _merged(values: list[memoryview]) -> memoryview | None:
    """A message, None where there is none; of several the fields count as if they stood in one."""
    if len(values) > 1:
        return memoryview(b"".join(values))
    return values[0] if values else None


def _messages(data: memoryview, *wanted: int) -> Iterator[tuple[int, memoryview]]:
    """Those fields that are messages, strings or bytes."""
    for number, value in _fields(data):
        if number in wanted and isinstance(value, memoryview):
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field numbers and values; of fixed-size numbers, which nobody wants here, 0."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        if not 8 <= tag <= _MAX_TAG:
            raise UnreadableError(f"{tag} is no tag")
        value: memoryview | int = 0
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, start = _varint(data, at)
                at = start + length
                value = data[start:at]
            case 5:
                at += 4
            case wire:  # groups (3, 4) are in no message of this API
                raise UnreadableError(f"{wire} is no wire type of this API")
        if at > end:
            raise UnreadableError("a field goes on behind the end")
        yield tag >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    if at < len(data) and (byte := data[at]) < 0x80:
        return byte, at + 1  # nearly all are tags and short lengths
    value = 0
    for shift, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise UnreadableError("a number has no end")
