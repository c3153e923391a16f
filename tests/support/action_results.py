"""Messages of the Remote Execution API, written field by field."""

import hashlib
from collections.abc import Iterable


def varint(value: int) -> bytes:
    encoded = b""
    while value >= 0x80:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    """Bytes, a string or a message; or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(data: bytes) -> bytes:
    """A `Digest` of a blob."""
    return field(1, sha256(data).encode()) + field(2, len(data))


def output_file(data: bytes, contents: bytes = b"", path: bytes = b"out/file") -> bytes:
    inlined = field(5, contents) if contents else b""
    return field(2, field(1, path) + field(2, digest(data)) + field(4, 1) + inlined)


def output_directory(tree: bytes) -> bytes:
    return field(3, field(1, b"out/folder") + field(3, digest(tree)))


def directory(files: Iterable[bytes]) -> bytes:
    nodes = b"".join(field(1, field(1, b"name") + field(2, digest(data))) for data in files)
    return nodes + field(2, field(1, b"below") + field(2, digest(b"a Directory, which is in no CAS")))


def tree(root: Iterable[bytes], *children: Iterable[bytes]) -> bytes:
    return field(1, directory(root)) + b"".join(field(2, directory(child)) for child in children)


METADATA = field(9, field(1, b"worker") + varint(3 << 3 | 1) + b"8 bytes." + varint(4 << 3 | 5) + b"four")
EXIT_CODE = field(4, (1 << 64) - 1)
SYMLINK = field(12, field(1, b"out/link") + field(2, b"target"))
