"""What was verified is remembered by the identity of the file."""

import pytest

from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.storage import verified_files
from undercroft.storage.open_file import OpenFile
from undercroft.storage.verified_files import VerifiedFiles

FILE = OpenFile(descriptor=3, size=10, inode=7, modified_ns=1_000)


def row(key: str = "k") -> ArtifactAccess:
    return ArtifactAccess(key, 10, 1)


def test_the_same_file_is_known() -> None:
    files = VerifiedFiles[ArtifactAccess]()
    assert files.row("k", FILE) is None
    files.add(FILE, row())
    assert files.row("k", FILE._replace(descriptor=9)) == row()
    assert files.row("other", FILE) is None


@pytest.mark.parametrize("change", [{"size": 11}, {"inode": 8}, {"modified_ns": 1_001}])
def test_another_file_under_the_key_is_not(change: dict[str, int]) -> None:
    files = VerifiedFiles[ArtifactAccess]()
    files.add(FILE, row())
    assert files.row("k", FILE._replace(**change)) is None


def test_forgotten_is_unknown() -> None:
    files = VerifiedFiles[ArtifactAccess]()
    files.add(FILE, row())
    files.forget("k")
    files.forget("k")
    assert files.row("k", FILE) is None


def test_the_oldest_goes_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified_files, "MAX_FILES", 2)
    files = VerifiedFiles[ArtifactAccess]()
    for key in ("a", "b", "a", "c"):
        files.add(FILE, row(key))
    assert [key for key in ("a", "b", "c") if files.row(key, FILE)] == ["a", "c"]


def test_who_wants_to_be_sure_knows_only_what_was_surely_verified() -> None:
    files = VerifiedFiles[ArtifactAccess]()
    files.add(FILE, row(), surely=False)
    assert files.row("k", FILE) == row()
    assert files.row("k", FILE, surely=True) is None
    files.add(FILE, row())
    assert files.row("k", FILE, surely=True) == row()
