"""Whether files can say what they are, and what follows where they cannot."""

import structlog

from undercroft.errors import DataDirectoryError
from undercroft.storage.disk import Disk

log = structlog.get_logger(__name__)


def check_that_files_vouch(disk: Disk, *, alone: bool) -> None:
    """Warns if they cannot. Raises `DataDirectoryError` if several processes are to share them.

    A row follows its file. What comes between, a death or another process, finds a file without its row.
    """
    if disk.files_vouch:
        return
    why = f"the file system of {disk.artifacts} has no extended attributes (user.*)"
    if not alone:
        raise DataDirectoryError(
            f"{why}, without which several processes cannot share it: set workers to 1, "
            "or use a file system that has them, like ext4 or XFS"
        )
    log.warning("files_cannot_vouch", why=f"{why}: a SIGKILL while an entry is replaced may cost that entry")
