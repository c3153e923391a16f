"""Messages of the Remote Execution API read by the book: by their schema, merged as protobuf does.

https://protobuf.dev/programming-guides/encoding/, with the fields of remote_execution.proto that matter.
"""

from typing import Any, TypeAlias

Schema: TypeAlias = dict[int, Any]
"""What each field is: a schema for a message, in a list if it is repeated; BYTES for bytes and strings."""

BYTES = "bytes"

DIGEST: Schema = {1: BYTES}
OUTPUT_FILE: Schema = {1: BYTES, 2: DIGEST, 5: BYTES}
OUTPUT_DIRECTORY: Schema = {1: BYTES, 3: DIGEST}
ACTION_RESULT: Schema = {2: [OUTPUT_FILE], 3: [OUTPUT_DIRECTORY], 5: BYTES, 6: DIGEST, 7: BYTES, 8: DIGEST}
FILE_NODE: Schema = {1: BYTES, 2: DIGEST}
DIRECTORY: Schema = {1: [FILE_NODE]}
TREE: Schema = {1: DIRECTORY, 2: [DIRECTORY]}

EMPTY = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class NoMessageError(ValueError):
    """The bytes are no message of this schema."""


def message(data: bytes, schema: Schema, into: dict[int, Any] | None = None) -> dict[int, Any]:
    """The fields of a message, added to those of `into`; raises `NoMessageError`."""
    fields = {} if into is None else into
    rest = data
    while rest:
        tag, rest = _number(rest)
        if not 0 < tag >> 3 < 1 << 29:
            raise NoMessageError(f"tag {tag}")
        value, rest = _value(tag & 7, rest)
        if isinstance(value, bytes):
            _set(fields, tag >> 3, value, schema.get(tag >> 3))
    return fields


def _set(fields: dict[int, Any], number: int, value: bytes, kind: Any) -> None:
    if kind == BYTES:
        fields[number] = value
    elif isinstance(kind, list):
        fields.setdefault(number, []).append(message(value, kind[0]))
    elif kind is not None:
        fields[number] = message(value, kind, fields.get(number))


def _value(wire: int, data: bytes) -> tuple[bytes | int, bytes]:
    if wire == 0:
        return _number(data)
    if wire == 2:
        length, data = _number(data)
    else:
        length = {1: 8, 5: 4}.get(wire, 1 << 64)
    if length > len(data):
        raise NoMessageError(f"{length} bytes of {len(data)}")
    return data[:length] if wire == 2 else 0, data[length:]


def _number(data: bytes) -> tuple[int, bytes]:
    for length in range(1, 11):
        if len(data) >= length and data[length - 1] < 0x80:
            return sum((byte & 0x7F) << 7 * at for at, byte in enumerate(data[:length])), data[length:]
    raise NoMessageError("a number without an end")


def needed_by_action_result(data: bytes) -> tuple[set[bytes], set[bytes]]:
    """What an action result names: blobs, and those that are trees."""
    result = message(data, ACTION_RESULT)
    needed = [file.get(2, {}) for file in result.get(2, []) if not file.get(5)]
    needed += [result.get(digest, {}) for raw, digest in ((5, 6), (7, 8)) if not result.get(raw)]
    return _names(needed), _names([folder.get(3, {}) for folder in result.get(3, [])])


def needed_by_tree(data: bytes) -> set[bytes]:
    """What a tree names."""
    tree = message(data, TREE)
    folders = [tree.get(1, {}), *tree.get(2, [])]
    return _names([file.get(2, {}) for folder in folders for file in folder.get(1, [])])


def _names(digests: list[dict[int, Any]]) -> set[bytes]:
    return {digest.get(1, b"") for digest in digests} - {b"", EMPTY}
