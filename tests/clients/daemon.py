"""A background process that a build tool started, and that is ended with the build."""

import os
import select
import signal

from .commands import CommandError

_END_LIMIT = 10.0


class Daemon:
    """A process held by a descriptor, so that its id cannot come to mean another process."""

    def __init__(self, pid: int) -> None:
        """Raises `ProcessLookupError` when it has ended already."""
        self._descriptor = os.pidfd_open(pid)

    def end(self) -> None:
        """Wait for the end, which it was told of; kill the process when it takes too long."""
        if not self._ended():
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            if not self._ended():
                raise CommandError("a daemon survived being killed")

    def close(self) -> None:
        os.close(self._descriptor)

    def _ended(self) -> bool:
        return bool(select.select([self._descriptor], [], [], _END_LIMIT)[0])
