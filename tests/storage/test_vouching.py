"""Where files cannot say what they are."""

import errno
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.disk_faults import fault
from undercroft.errors import DataDirectoryError
from undercroft.storage.disk import Disk
from undercroft.storage.vouching import check_that_files_vouch


@pytest.fixture
def mute(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    with fault("setxattr", errno.ENOTSUP):
        disk.open_directories()
    return disk


def test_where_they_can_nothing_is_said(disk: Disk) -> None:
    with capture_logs() as logs:
        check_that_files_vouch(disk, alone=False)
    assert logs == []


def test_one_process_works_and_says_so(mute: Disk) -> None:
    with capture_logs() as logs:
        check_that_files_vouch(mute, alone=True)
    assert [line["event"] for line in logs] == ["files_cannot_vouch"]
    mute.close()


def test_several_processes_are_refused(mute: Disk) -> None:
    with pytest.raises(DataDirectoryError, match="set workers to 1"):
        check_that_files_vouch(mute, alone=False)
    mute.close()
