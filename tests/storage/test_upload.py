"""Bytes on their way in take no more memory than a spool."""

import errno
import hashlib
import tracemalloc
from pathlib import Path

import pytest

from tests.support.disk_faults import fault
from tests.support.folders import temporary_files
from tests.support.leaks import open_files
from undercroft.errors import DigestMismatchError
from undercroft.storage.disk import Disk
from undercroft.storage.upload import SPOOL_BYTES, Upload


def test_small_upload_touches_the_disk_only_at_its_end(disk: Disk, tmp_path: Path) -> None:
    upload = Upload(disk)
    assert not upload.add(b"12345")
    assert temporary_files(tmp_path) == []
    file, found = upload.finish(None, 1)
    assert (file.size, found.size, upload.size) == (5, 5, 5)
    status = Path(file.path).stat()
    assert (status.st_ino, status.st_mtime_ns) == (found.inode, found.modified_ns)
    assert Path(file.path).read_bytes() == b"12345"
    upload.discard()


def test_empty_upload_is_an_empty_file(disk: Disk) -> None:
    upload = Upload(disk)
    file, _ = upload.finish(hashlib.sha256().hexdigest(), 1)
    assert Path(file.path).read_bytes() == b""
    upload.discard()


def test_paused_upload_goes_on_with_the_bytes_of_others(disk: Disk, tmp_path: Path) -> None:
    uploads = [Upload(disk) for _ in range(3)]
    for number, upload in enumerate(uploads):
        upload.add(b"%d" % number)
        assert upload.pause(hashlib.sha256(b"%d" % number).hexdigest()) == 1
    first, *others = uploads
    first.resume()
    for other in others:
        first.append(other)
        assert not other.on_disk
    file, _ = first.finish(hashlib.sha256(b"012").hexdigest(), 1)
    assert (Path(file.path).read_bytes(), first.size) == (b"012", 3)
    first.discard()
    assert temporary_files(tmp_path) == []


def test_pause_checks_the_digest(disk: Disk) -> None:
    upload = Upload(disk)
    upload.add(b"x")
    with pytest.raises(DigestMismatchError):
        upload.pause("0" * 64)
    upload.discard()


def test_it_is_time_to_write_when_the_spool_is_full(disk: Disk) -> None:
    upload = Upload(disk)
    assert not upload.add(b"x" * (SPOOL_BYTES - 1))
    assert upload.add(b"x")
    upload.write_out()
    assert not upload.add(b"x")
    upload.discard()


def test_memory_is_bounded_by_the_spool(disk: Disk) -> None:
    upload = Upload(disk)
    tracemalloc.start()
    try:
        for number in range(1_024):
            if upload.add(number.to_bytes(2, "big") * (8 << 10)):
                upload.write_out()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    file, _ = upload.finish(None, 1)
    assert file.size == 16 << 20
    assert peak < 4 * SPOOL_BYTES
    upload.discard()


def test_bytes_keep_their_order(disk: Disk) -> None:
    upload, whole = Upload(disk), bytearray()
    for number in range(20):
        chunk = b"%d," % number * 10_000
        whole += chunk
        if upload.add(chunk):
            upload.write_out()
    file, _ = upload.finish(hashlib.sha256(whole).hexdigest(), 1)
    assert Path(file.path).read_bytes() == whole
    upload.discard()


@pytest.mark.parametrize("size", [10, SPOOL_BYTES + 10])
def test_other_bytes_than_announced(disk: Disk, tmp_path: Path, size: int) -> None:
    upload = Upload(disk)
    if upload.add(b"x" * size):
        upload.write_out()
    with pytest.raises(DigestMismatchError, match="nothing was stored"):
        upload.finish("0" * 64, 1)
    upload.discard()
    assert temporary_files(tmp_path) == []
    assert len(open_files(tmp_path)) == 1  # the lock


@pytest.mark.parametrize("operation", ["open", "write"])
def test_discard_after_a_fault_leaves_nothing(disk: Disk, tmp_path: Path, operation: str) -> None:
    upload = Upload(disk)
    upload.add(b"12345")
    with fault(operation, errno.ENOSPC), pytest.raises(OSError, match="No space"):
        upload.write_out()
    upload.discard()
    upload.discard()
    assert temporary_files(tmp_path) == []
    assert len(open_files(tmp_path)) == 1
