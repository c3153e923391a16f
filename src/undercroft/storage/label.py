"""What a file says of itself: an extended attribute that it gets before its name.

`rename` and `link` carry it along in the one step that makes the file visible. So there is no moment at which
a file stands under its name and nobody can say what it must be, whoever was killed when.
"""

import binascii
import errno
import hashlib
import os
import struct
from typing import NamedTuple

ATTRIBUTE = "user.undercroft"

VERSION = 1

# Version, size, SHA-256, when it was stored (microseconds since the epoch), boot, and a check of all these.
# 59 bytes: with its name it just fits into an inode of 256 bytes, where ext4 keeps it at no cost of a block.
_LAYOUT = struct.Struct("<BQ32sq8s")
_CHECK = struct.Struct("<H")

# What a file without an attribute answers, and a file system without attributes.
_SILENT = frozenset({errno.ENODATA, errno.ENOTSUP})


class Label(NamedTuple):
    """What the bytes of a file must be, and when and in which boot of the machine they were stored."""

    size_bytes: int
    content_sha256: str
    stored_at: int
    boot: bytes


# Of what cannot be read as a label. No file has that size, so it fits none.
VOID = Label(-1, "", 0, b"")


def boot_mark(boot_id: str) -> bytes:
    """A boot id as labels carry it."""
    return hashlib.sha256(boot_id.encode()).digest()[:8]


def packed(label: Label) -> bytes:
    """The label as it is kept."""
    size_bytes, content_sha256, stored_at, boot = label
    said = _LAYOUT.pack(VERSION, size_bytes, bytes.fromhex(content_sha256), stored_at, boot)
    return said + _CHECK.pack(binascii.crc_hqx(said, 0))


def unpacked(kept: bytes) -> Label | None:
    """The label; `VOID` if it is damaged, None if it is of a version that this one knows nothing of."""
    if kept and kept[0] != VERSION:
        return None
    said, check = kept[: _LAYOUT.size], kept[_LAYOUT.size :]
    if check != _CHECK.pack(binascii.crc_hqx(said, 0)):
        return VOID
    _, size_bytes, digest, stored_at, boot = _LAYOUT.unpack(said)
    return Label(size_bytes, digest.hex(), stored_at, boot)


def write_label(descriptor: int, label: Label) -> None:
    """Gives an open file its label; raises OSError, as for want of room."""
    os.setxattr(descriptor, ATTRIBUTE, packed(label))


def label_of(descriptor: int) -> Label | None:
    """What an open file says of itself; `VOID` if that is damaged, None if it is nothing. Raises OSError."""
    try:
        return unpacked(os.getxattr(descriptor, ATTRIBUTE))
    except OSError as error:
        if error.errno in _SILENT:
            return None
        raise


def takes_labels(path: str) -> bool:
    """Whether the file system keeps labels, tried on a file of this free name. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_label(descriptor, Label(0, "0" * 64, 0, bytes(8)))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        raise
    finally:
        os.close(descriptor)
        os.unlink(path)
    return True
