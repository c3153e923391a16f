"""The directory of a parent and its workers."""

import fcntl
import os
import shutil
import uuid
from pathlib import Path

from undercroft.errors import unusable_directory


class ParentDirectory:
    """A directory among those for temporary files, locked as long as the parent or a worker lives.

    So whoever starts later sweeps it away when nobody of them does: docs/decisions/0002-temporary-files.md.
    """

    def __init__(self, data_dir: Path) -> None:
        self._above = data_dir / "temporary"
        self._path = self._above / f"parent-{uuid.uuid4().hex}"
        self.descriptor = -1

    def open(self) -> None:
        """Makes it, for nobody else. Raises `DataDirectoryError`."""
        try:
            self._above.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._above.mkdir(exist_ok=True)
            # While it is not locked yet it looks abandoned.
            turn = os.open(self._above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(turn, fcntl.LOCK_EX)
                self._path.mkdir(mode=0o700)
                self.descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            finally:
                os.close(turn)
        except OSError as error:
            raise unusable_directory(self._above, error) from error

    def close(self) -> None:
        """Removes it. Idempotent."""
        if self.descriptor >= 0:
            shutil.rmtree(self._path, ignore_errors=True)
            os.close(self.descriptor)
            self.descriptor = -1
