"""What one round of reconcile has seen so far, and how far it has come."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Literal

import apsw
import structlog

from undercroft.database.cursors import Cursors
from undercroft.errors import ClosedError, UndercroftError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.workers.pace import Clock, Sleep

log = structlog.get_logger(__name__)

CURSOR = "reconcile"

# What was looked at since is looked at again after a crash: cheaper than to write for each file.
SAVE_S = 10.0
PROGRESS_S = 60.0

# A database that cannot be asked will not be able to a moment later either.
DATABASE_PAUSE_S = 1.0

# Kinds of errors, foreign things, and files that were adopted, of which a log line has been written.
# Beyond that they are counted.
MOST_REPORTS = 1_000

Stage = Literal["files", "rows"]
Found = Literal["agrees", "adopted", "removed", "mended", "row_without_file", "damaged"]


class Reported:
    """What has been said once and need not be again. Lives as long as the process."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def is_news(self, what: str) -> bool:
        """Whether it has not been said yet. Nothing is when too much was."""
        if what in self._said or len(self._said) >= MOST_REPORTS:
            return False
        self._said.add(what)
        return True


class Round:
    """Counts, keeps the cursor, and tells now and then how far it has come."""

    def __init__(
        self,
        cursors: Cursors,
        telemetry: Events,
        reported: Reported,
        *,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.files = self.rows = self.foreign = self.left = self.errors = self.directories_removed = 0
        self.found: Counter[Found] = Counter()
        self._cursors = cursors
        self._telemetry = telemetry
        self._reported = reported
        self._clock = clock
        self._sleep = sleep
        self._failures, self._adopted = Reported(), Reported()  # in each round anew
        self._began = self._saved = self._told = clock()

    @property
    def seconds(self) -> float:
        """How long it has taken, since the start of this process if that took it up."""
        return self._clock() - self._began

    def tell(self, found: Found) -> None:
        """Counts what was found."""
        self.found[found] += 1
        self._telemetry.emit(events.RECONCILED, {"count": 1}, {"found": found})

    def tell_foreign(self, path: str) -> None:
        """Counts what is not the node's, and says so once."""
        self.foreign += 1
        if self._reported.is_news(path):
            log.warning("reconcile_foreign", path=path)

    def tell_adopted(self, key: str, size: int) -> None:
        """Counts a file that is an artifact from now on, and names it: whoever put it there will ask."""
        self.tell("adopted")
        if self._adopted.is_news(key):
            log.info("reconcile_adopted", key=key, size=size)

    def failed(self, what: str, error: Exception) -> None:
        """Counts what could not be looked at; it is left for the next round."""
        self.errors += 1
        number = getattr(error, "errno", None)
        if self._failures.is_news(f"{type(error).__name__} {number}"):
            log.warning("reconcile_failed", what=what, error=f"{type(error).__name__}: {error}")

    async def attempt(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Does a piece of work that may fail without harm to the rest. Raises `ClosedError`."""
        try:
            await work
        except ClosedError:
            raise
        except apsw.Error as error:
            self.failed(what, error)
            await self._sleep(DATABASE_PAUSE_S)
        except (OSError, UndercroftError) as error:
            self.failed(what, error)

    async def come_to(self, stage: Stage, place: str, *, save: bool = False) -> None:
        """Everything up to `place` was looked at. Saved every so often, at once with `save`."""
        now = self._clock()
        if save or now - self._saved >= SAVE_S:
            self._saved = now
            await self.attempt("cursor", self._cursors.save(CURSOR, f"{stage}:{place}"))
        if now - self._told >= PROGRESS_S:
            self._told = now
            log.info("reconcile_goes_on", stage=stage, place=place, **self.figures())

    def figures(self) -> dict[str, float]:
        """All counts, for the log."""
        return {
            "files": self.files,
            "adopted": self.found["adopted"],
            "removed": self.found["removed"],
            "foreign": self.foreign,
            "directories_removed": self.directories_removed,
            "rows": self.rows,
            "agree": self.found["agrees"],
            "rows_mended": self.found["mended"],
            "rows_without_file": self.found["row_without_file"],
            "damaged": self.found["damaged"],
            "left": self.left,
            "errors": self.errors,
            "seconds": round(self.seconds, 1),
        }
