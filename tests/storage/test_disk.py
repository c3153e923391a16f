"""Files are published at once and whole, one wins, and nothing temporary survives."""

import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.disk_faults import ERRORS, fault
from tests.support.folders import artifact_files, temporary_files
from tests.support.leaks import open_files
from undercroft.errors import ClosedError, DataDirectoryError
from undercroft.storage.disk import Disk, is_full, make_directory
from undercroft.storage.open_file import READ_BYTES, sha256_of

KEY = "acc/proj/xcode/ab/cd/abcdef"


def publish(disk: Disk, data: bytes, *, over: bool, key: str = KEY) -> bool:
    """What the artifact service does with an upload, in the order in which it does it."""
    file = disk.temporary()
    try:
        file.write(data)
        disk.finish(file, 1)
        if over:
            disk.publish_over(file, key)
            return True
        return disk.publish_new(file, key)
    finally:
        file.discard()


def content(disk: Disk, key: str = KEY) -> bytes | None:
    file = disk.open(key)
    if file is None:
        return None
    try:
        return os.pread(file.descriptor, file.size + 1, 0)
    finally:
        os.close(file.descriptor)


@pytest.mark.parametrize("over", [False, True])
def test_published_file_is_there_whole(disk: Disk, tmp_path: Path, over: bool) -> None:
    assert publish(disk, b"bytes", over=over)
    assert content(disk) == b"bytes"
    assert temporary_files(tmp_path) == []
    assert open_files(tmp_path / "artifacts") == []


def test_new_never_replaces(disk: Disk) -> None:
    assert publish(disk, b"first", over=False)
    assert not publish(disk, b"second", over=False)
    assert content(disk) == b"first"


def test_over_replaces(disk: Disk) -> None:
    publish(disk, b"first", over=True)
    publish(disk, b"second", over=True)
    assert content(disk) == b"second"


def test_an_empty_directory_makes_way(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / KEY).mkdir(parents=True)
    assert not publish(disk, b"bytes", over=False)
    assert publish(disk, b"bytes", over=True)
    assert content(disk) == b"bytes"


def test_a_directory_with_something_in_it_stays(disk: Disk, tmp_path: Path) -> None:
    inside = tmp_path / "artifacts" / KEY / "sub"
    inside.mkdir(parents=True)
    with pytest.raises(DataDirectoryError, match=f"artifacts/{KEY} .* move it away"):
        publish(disk, b"bytes", over=True)
    assert disk.delete(KEY) is None
    assert inside.is_dir()
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("place", ["no/such", "/proc/self/no/such"])
def test_where_no_directory_can_be_made_nothing_is_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError):
        make_directory(place)


def test_one_of_many_threads_wins(disk: Disk, tmp_path: Path) -> None:
    for round_number in range(20):
        key, together = f"{KEY}{round_number}", threading.Barrier(8)

        def race(number: int, key: str = key, together: threading.Barrier = together) -> bool:
            together.wait()
            return publish(disk, b"%d" % number, over=False, key=key)

        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(race, range(8)))
        assert won.count(True) == 1
        assert content(disk, key) == b"%d" % won.index(True)
    assert temporary_files(tmp_path) == []


def test_readers_see_the_old_or_the_new_file_and_nothing_between(disk: Disk) -> None:
    publish(disk, b"0" * 100_000, over=True)
    stop = threading.Event()
    seen: list[bytes | None] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(content(disk))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 50):
        publish(disk, b"%d" % (number % 10) * 100_000, over=True)
    stop.set()
    reader.join()
    assert seen
    for data in seen:
        assert data is not None
        assert len(data) == 100_000
        assert len(set(data)) == 1


def test_temporary_names_differ_between_threads(disk: Disk) -> None:
    with ThreadPoolExecutor(8) as threads:
        files = list(threads.map(lambda _: disk.temporary(), range(200)))
    assert len({file.path for file in files}) == 200
    for file in files:
        file.discard()


def test_digest_is_that_of_the_bytes(disk: Disk) -> None:
    file = disk.temporary()
    for piece in (b"one", b"", b"two"):
        file.write(piece)
    assert (file.size, file.digest()) == (6, hashlib.sha256(b"onetwo").hexdigest())
    file.discard()


def test_short_writes_are_continued(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    really_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: really_write(descriptor, view[:3]))
    publish(disk, b"0123456789", over=True)
    assert content(disk) == b"0123456789"


# --- faults ------------------------------------------------------------------------------------------

# Operation and how often it works first; with fsync, the second call is that of the directory.
FAULTS: list[tuple[str, int, bool]] = [
    ("open", 0, False),
    ("write", 0, False),
    ("setxattr", 0, False),
    ("fsync", 0, False),
    ("fsync", 1, False),
    ("link", 0, False),
    ("mkdir", 0, False),
    ("open", 0, True),
    ("write", 0, True),
    ("setxattr", 0, True),
    ("fsync", 0, True),
    ("replace", 0, True),
    ("mkdir", 0, True),
]


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize(("operation", "after", "over"), FAULTS)
def test_fault_leaves_nothing_behind(
    tmp_path: Path, operation: str, after: int, over: bool, number: int
) -> None:
    disk = Disk(tmp_path, fsync=True)
    disk.open_directories()
    with fault(operation, number, after=after) as injected, pytest.raises(OSError, match="Errno") as raised:
        publish(disk, b"data", over=over)
    assert injected.struck
    assert raised.value.errno == number
    assert is_full(raised.value) == (number != errno.EIO)
    assert temporary_files(tmp_path) == []
    assert artifact_files(tmp_path) == []
    assert len(open_files(tmp_path)) == 1  # the lock
    # The disk recovers.
    assert publish(disk, b"data", over=over)
    assert content(disk) == b"data"
    disk.close()


@pytest.mark.parametrize("operation", ["write", "setxattr", "fsync", "replace"])
def test_fault_while_replacing_leaves_the_old_file(tmp_path: Path, operation: str) -> None:
    disk = Disk(tmp_path, fsync=True)
    disk.open_directories()
    publish(disk, b"old", over=True)
    with fault(operation, errno.EIO), pytest.raises(OSError, match="Errno"):
        publish(disk, b"new", over=True)
    assert content(disk) == b"old"
    assert temporary_files(tmp_path) == []
    disk.close()


def test_fsync_only_where_it_is_set(tmp_path: Path) -> None:
    disk = Disk(tmp_path, fsync=False)
    disk.open_directories()
    with fault("fsync", errno.EIO) as injected:
        publish(disk, b"data", over=False)
    assert injected.calls == 0
    disk.close()


def test_file_is_synced_before_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path, fsync=True)
    disk.open_directories()
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    publish(disk, b"data", over=False)
    # The file, and each directory that was made for it in the one above.
    assert synced[0].is_relative_to(tmp_path / "temporary")
    directories = [path for path in (disk.artifacts / KEY).parents if path.is_relative_to(disk.artifacts)]
    assert synced[1:] == directories
    synced.clear()
    publish(disk, b"data", over=True)
    assert synced[1:] == directories[:1]
    disk.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_read_error_is_no_absence(disk: Disk, number: int) -> None:
    publish(disk, b"data", over=True)
    with fault("open", number), pytest.raises(OSError, match="Errno"):
        disk.open(KEY)


# --- opening, deleting, quarantine -------------------------------------------------------------------


def test_absent_is_none(disk: Disk) -> None:
    assert disk.open(KEY) is None
    assert disk.size(KEY) is None
    assert disk.delete(KEY) is None
    assert not disk.quarantine(KEY, 1)


def test_file_where_a_directory_would_be_is_absence(disk: Disk) -> None:
    (disk.artifacts / "acc").write_bytes(b"")
    assert disk.open(KEY) is None
    assert disk.delete(KEY) is None
    assert not disk.quarantine(KEY, 1)


def test_size_and_delete(disk: Disk, tmp_path: Path) -> None:
    publish(disk, b"12345", over=True)
    assert disk.size(KEY) == 5
    assert disk.delete(KEY) == 5
    assert artifact_files(tmp_path) == []
    assert open_files(tmp_path / "artifacts") == []


def test_open_file_keeps_its_bytes_after_delete(disk: Disk) -> None:
    publish(disk, b"12345", over=True)
    file = disk.open(KEY)
    assert file is not None
    disk.delete(KEY)
    assert os.pread(file.descriptor, 10, 0) == b"12345"
    os.close(file.descriptor)


def test_quarantined_file_is_out_of_reach_but_kept(disk: Disk, tmp_path: Path) -> None:
    publish(disk, b"damaged", over=True)
    inode = (disk.artifacts / KEY).stat().st_ino
    assert disk.quarantine(KEY, inode)
    assert disk.open(KEY) is None
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert kept.read_bytes() == b"damaged"
    assert kept.name.endswith("abcdef")


def test_file_that_replaced_a_damaged_one_is_not_quarantined(disk: Disk) -> None:
    publish(disk, b"damaged", over=True)
    inode = (disk.artifacts / KEY).stat().st_ino
    publish(disk, b"healed", over=True)
    assert not disk.quarantine(KEY, inode)
    assert content(disk) == b"healed"


def replaced_in_between(disk: Disk, monkeypatch: pytest.MonkeyPatch, *, again: bool = False) -> None:
    """Another process publishes between the look at a file and what is done to it; with `again` once more."""
    really_rename = os.rename

    def rename(source: str, target: str) -> None:
        monkeypatch.setattr(os, "rename", really_rename)
        publish(disk, b"fresh", over=True)
        really_rename(source, target)
        if again:
            publish(disk, b"fresher", over=True)

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("act", ["delete_file", "quarantine"])
def test_file_that_replaces_another_just_then_stays(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, again: bool
) -> None:
    publish(disk, b"old", over=True)
    inode = (disk.artifacts / KEY).stat().st_ino
    replaced_in_between(disk, monkeypatch, again=again)
    assert not getattr(disk, act)(KEY, inode)
    assert content(disk) == (b"fresher" if again else b"fresh")
    assert temporary_files(tmp_path) == []
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_only_the_file_that_was_meant_is_deleted(disk: Disk, tmp_path: Path) -> None:
    publish(disk, b"old", over=True)
    inode = (disk.artifacts / KEY).stat().st_ino
    publish(disk, b"new", over=True)
    assert disk.delete_file(KEY, inode) is None
    assert content(disk) == b"new"
    assert disk.delete_file(KEY, (disk.artifacts / KEY).stat().st_ino) == 3
    assert disk.delete_file(KEY, inode) is None
    assert artifact_files(tmp_path) == []


@pytest.mark.parametrize("over", [False, True])
def test_a_published_file_says_what_it_is(disk: Disk, over: bool) -> None:
    publish(disk, b"12345", over=over)
    found = disk.look(KEY)
    assert found is not None
    assert found.label == (5, hashlib.sha256(b"12345").hexdigest(), 1, disk.boot)
    assert found.fitting_label == found.label
    assert disk.has_name(KEY, found.inode)
    assert not disk.has_name(KEY, found.inode + 1)
    assert not disk.has_name("acc/proj/xcode/ab/cd/other", found.inode)


def test_where_no_attributes_are_kept_files_say_nothing(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with fault("setxattr", errno.ENOTSUP):
        disk.open_directories()
        assert not disk.files_vouch
        publish(disk, b"12345", over=False)
    found = disk.look(KEY)
    assert found is not None
    assert found.label is None
    disk.close()


def test_quarantine_takes_the_longest_keys(disk: Disk, tmp_path: Path) -> None:
    key = f"{'a' * 255}/{'p' * 255}/xcode/ij/kl/{'é' * 127}"
    publish(disk, b"damaged", over=True, key=key)
    assert disk.quarantine(key, (disk.artifacts / key).stat().st_ino)
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("size", [0, 1, READ_BYTES, READ_BYTES + 1])
def test_sha256_of_an_open_file(disk: Disk, size: int) -> None:
    data = os.urandom(size)
    publish(disk, data, over=True)
    file = disk.open(KEY)
    assert file is not None
    assert sha256_of(file) == hashlib.sha256(data).hexdigest()
    os.close(file.descriptor)


# --- life --------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from undercroft.storage.disk import Disk
disk = Disk(Path(sys.argv[1]))
disk.open_directories()
file = disk.temporary()
file.write(b"in progress")
print(file.path, flush=True)
sys.stdin.read()
"""


def test_temporaries_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        ours = Disk(tmp_path)
        ours.open_directories()
        assert theirs.read_bytes() == b"in progress"
        ours.close()
        other.kill()
        other.wait()
    assert theirs.exists()
    after = Disk(tmp_path)
    after.open_directories()
    assert not theirs.exists()
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    after.close()


def test_opening_keeps_artifacts_and_quarantine(tmp_path: Path) -> None:
    for _ in range(2):
        disk = Disk(tmp_path)
        disk.open_directories()
        publish(disk, b"data", over=False)
        disk.close()
    assert artifact_files(tmp_path) == [KEY]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_close_is_idempotent_and_final(disk: Disk, tmp_path: Path) -> None:
    disk.close()
    disk.close()
    assert open_files(tmp_path) == []
    with pytest.raises(ClosedError):
        disk.temporary()


def test_constructor_touches_nothing(tmp_path: Path) -> None:
    Disk(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def _file_in_the_way(data_dir: Path) -> None:
    (data_dir / "artifacts").write_bytes(b"")


def _not_a_directory(data_dir: Path) -> None:
    data_dir.rmdir()
    data_dir.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_file_in_the_way, _not_a_directory])
def test_unusable_directory_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    spoil(data_dir)
    with pytest.raises(DataDirectoryError, match=f"cannot use {data_dir}.*choose another"):
        Disk(data_dir).open_directories()
    assert open_files(tmp_path) == []


def test_unwritable_directory_is_named(tmp_path: Path) -> None:
    # By a fault, because root may write everywhere.
    with fault("mkdir", errno.EACCES), pytest.raises(DataDirectoryError, match="Permission denied"):
        Disk(tmp_path / "data").open_directories()


def test_failed_opening_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path)

    def fail() -> None:
        raise OSError(errno.EIO, "bad", "temporary")

    monkeypatch.setattr(disk, "_sweep", fail)
    with pytest.raises(DataDirectoryError):
        disk.open_directories()
    disk.close()
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "dangling link", "socket", "device"])
def test_what_is_no_file_of_ours_is_none(disk: Disk, tmp_path: Path, kind: str) -> None:
    """And nobody waits for it: a FIFO would hold up the event loop until somebody writes to it."""
    path = disk.artifacts / KEY
    path.parent.mkdir(parents=True)
    target = tmp_path / "elsewhere"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):
            bound.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(target)
        if kind == "link":
            target.write_bytes(b"not ours to serve")
    assert disk.open(KEY) is None
    assert disk.size(KEY) is None
    assert open_files(disk.artifacts) == []
