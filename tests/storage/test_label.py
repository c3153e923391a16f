"""What a file says of itself: whole or void, never something else."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.disk_faults import fault
from undercroft.storage import label as labels
from undercroft.storage.label import (
    ATTRIBUTE,
    VOID,
    Label,
    boot_mark,
    label_of,
    packed,
    takes_labels,
    unpacked,
)

LABEL = Label(12_345, "ab" * 32, 1_700_000_000_000_000, boot_mark("a boot"))

# An inode of 256 bytes of ext4 has 128 of its own, 32 of extra fields, 8 around its attributes, and for each
# attribute 16 and its name (without "user."), filled up to 4.
IN_INODE_BYTES = 256 - 128 - 32 - 8 - 16 - 12


def labelled(path: Path, kept: bytes | None) -> int:
    """A descriptor of an empty file that has these bytes for a label."""
    path.write_bytes(b"")
    if kept is not None:
        os.setxattr(path, ATTRIBUTE, kept)
    return os.open(path, os.O_RDONLY)


def test_what_is_kept_is_what_was_said() -> None:
    assert unpacked(packed(LABEL)) == LABEL


def test_it_takes_no_block_of_its_own() -> None:
    assert len(packed(LABEL)) <= IN_INODE_BYTES


def test_every_damaged_bit_is_seen() -> None:
    kept = packed(LABEL)
    for bit in range(8, len(kept) * 8):  # behind the version
        damaged = bytearray(kept)
        damaged[bit // 8] ^= 1 << bit % 8
        assert unpacked(bytes(damaged)) is VOID


@pytest.mark.parametrize("kept", [b"", packed(LABEL)[:-1], packed(LABEL) + b"\0", bytes([labels.VERSION])])
def test_what_has_not_its_length_is_void(kept: bytes) -> None:
    assert unpacked(kept) is VOID


def test_of_another_version_nothing_is_known() -> None:
    assert unpacked(bytes([labels.VERSION + 1]) + packed(LABEL)[1:]) is None


@pytest.mark.parametrize(("kept", "said"), [(packed(LABEL), LABEL), (b"\1?", VOID), (None, None)])
def test_it_is_read_from_the_file(tmp_path: Path, kept: bytes | None, said: Label | None) -> None:
    descriptor = labelled(tmp_path / "file", kept)
    assert label_of(descriptor) == said
    os.close(descriptor)


def test_a_file_system_without_attributes_says_nothing(tmp_path: Path) -> None:
    descriptor = labelled(tmp_path / "file", None)
    with fault("getxattr", errno.ENOTSUP):
        assert label_of(descriptor) is None
    os.close(descriptor)


def test_a_label_that_cannot_be_read_is_no_absence(tmp_path: Path) -> None:
    descriptor = labelled(tmp_path / "file", packed(LABEL))
    with fault("getxattr", errno.EIO), pytest.raises(OSError, match="Input/output"):
        label_of(descriptor)
    os.close(descriptor)


def test_whether_labels_are_kept_is_tried(tmp_path: Path) -> None:
    assert takes_labels(f"{tmp_path}/probe")
    with fault("setxattr", errno.ENOTSUP):
        assert not takes_labels(f"{tmp_path}/probe")
    with fault("setxattr", errno.ENOSPC), pytest.raises(OSError, match="No space"):
        takes_labels(f"{tmp_path}/probe")
    assert list(tmp_path.iterdir()) == []
