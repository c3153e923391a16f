"""Where benchmarks keep their files."""

import os
from pathlib import Path

import pytest

from benchmarks import workspaces
from benchmarks.workspaces import FOLDER, chosen_folder, file_system, workspace


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's name of the device of `tmp_path`, for which there is a mount in a list of our own."""
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = [
        "21 27 0:999 / /elsewhere rw,relatime shared:1 - xfs /dev/elsewhere rw",
        f"42 27 {number} / /here rw,relatime shared:1 - ext4 /dev/here rw",
    ]
    (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
    (tmp_path / "jbd2").mkdir()
    monkeypatch.setattr(workspaces, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(workspaces, "JOURNALS", tmp_path / "jbd2")
    return Path(f"/sys/dev/block/{number}").resolve().name


def test_ext4_is_told_apart_by_its_journal(tmp_path: Path, mounted: str) -> None:
    (tmp_path / "jbd2" / f"{mounted}1-8").mkdir()  # of its first partition
    assert file_system(tmp_path) == "ext4 without a journal"
    (tmp_path / "jbd2" / f"{mounted}-8").mkdir()
    assert file_system(tmp_path) == "ext4"


@pytest.mark.usefixtures("mounted")
def test_other_file_systems_are_called_by_their_type(tmp_path: Path) -> None:
    mounts = (tmp_path / "mountinfo").read_text()
    (tmp_path / "mountinfo").write_text(mounts.replace("- ext4", "- btrfs"))
    assert file_system(tmp_path) == "btrfs"
    (tmp_path / "mountinfo").write_text("")
    assert file_system(tmp_path) == "unknown"


def test_a_workspace_is_where_it_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert chosen_folder() == Path.cwd()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with workspace() as folder:
        assert folder.parent == tmp_path
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []
