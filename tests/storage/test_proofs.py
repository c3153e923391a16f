"""Large files are proven while they are sent."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from undercroft.errors import DamagedArtifactError
from undercroft.storage import proofs
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.open_file import READ_BYTES, OpenFile
from undercroft.storage.proofs import Proofs, Reached
from undercroft.storage.verified_files import VerifiedFiles

DATA = os.urandom(3 * READ_BYTES + 1_000)


class Row(NamedTuple):
    key: str
    size_bytes: int
    content_sha256: str | None


ROW = Row("key", len(DATA), hashlib.sha256(DATA).hexdigest())


class Rig:
    def __init__(self) -> None:
        self.threads = DiskThreads()
        self.verified = VerifiedFiles[Row]()
        self.damaged: list[str] = []
        self.proofs = Proofs(self.threads, self.verified, self._on_damaged)

    async def _on_damaged(self, key: str, _row: Row, _file: OpenFile) -> None:
        self.damaged.append(key)

    def reached(self, file: OpenFile, row: Row = ROW) -> Reached:
        found = self.proofs.reached(file, row)
        assert found is not None
        return found


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(proofs, "PIECES_AT_ONCE", 1)
    rig = Rig()
    yield rig
    rig.threads.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[OpenFile]:
    descriptor = os.open(path, os.O_RDONLY)
    status = os.fstat(descriptor)
    yield OpenFile(descriptor, status.st_size, status.st_ino, status.st_mtime_ns)
    os.close(descriptor)


async def test_what_is_right_is_proven_once(rig: Rig, file: OpenFile) -> None:
    reached = rig.reached(file)
    await reached(10)
    assert rig.verified.row("key", file, surely=True) is None
    await reached(len(DATA) - 1)
    await reached(len(DATA))
    assert rig.verified.row("key", file, surely=True) == ROW
    assert rig.proofs.reached(file, ROW) is None
    assert rig.damaged == []


@pytest.mark.parametrize("at", [0, READ_BYTES, len(DATA) - 1])
async def test_the_end_of_what_is_damaged_is_never_reached(
    rig: Rig, path: Path, file: OpenFile, at: int
) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes([DATA[at] ^ 1]))
    reached = rig.reached(file)
    await reached(2 * READ_BYTES)
    with pytest.raises(DamagedArtifactError):
        await reached(len(DATA))
    # Whoever comes a moment later is not sent even the beginning.
    with pytest.raises(DamagedArtifactError):
        await rig.reached(file)(10)
    assert rig.damaged == ["key", "key"]
    assert rig.verified.row("key", file, surely=True) is None


async def test_a_file_that_gets_shorter_meanwhile_is_damaged(rig: Rig, path: Path, file: OpenFile) -> None:
    reached = rig.reached(file)
    await reached(10)
    os.truncate(path, READ_BYTES)
    with pytest.raises(DamagedArtifactError):
        await reached(len(DATA))


async def test_readers_share_the_work_and_one_that_leaves_spoils_nothing(rig: Rig, file: OpenFile) -> None:
    first, second = rig.reached(file), rig.reached(file)
    leaver = asyncio.ensure_future(first(len(DATA)))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert len(rig.proofs._under_way) == 1
    await asyncio.gather(*(second(offset) for offset in (len(DATA), 5, READ_BYTES)))
    assert rig.verified.row("key", file, surely=True) == ROW
    assert rig.damaged == []


async def test_without_readers_nothing_is_kept(rig: Rig, file: OpenFile) -> None:
    reached = rig.reached(file)
    await reached(10)
    del reached
    rig.threads.close()  # they have forgotten what they did last, too
    assert len(rig.proofs._under_way) == 0


async def test_where_no_digest_is_known_there_is_nothing_to_prove(rig: Rig, file: OpenFile) -> None:
    assert rig.proofs.reached(file, ROW._replace(content_sha256=None)) is None
