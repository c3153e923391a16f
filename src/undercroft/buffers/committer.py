"""Brings batches into SQLite, with retries while somebody holds a lock."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import structlog

from undercroft.buffers.bufferable import Batch, Bufferable
from undercroft.buffers.settings import BufferSettings
from undercroft.buffers.spill import append_refused
from undercroft.buffers.transaction import RefusedRow, Written, is_locked, write_batches
from undercroft.database import Database
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

log = structlog.get_logger(__name__)

# A lock that is gone by then is no news but a retry that is counted: worker processes take turns at the one
# lock of a database, and where the medium is slow each turn lasts.
SHORT_LOCK_S = 1.0


class Committer:
    """Commits batches of one table, and says why not when it cannot."""

    def __init__(
        self,
        table: Bufferable[Any, Any],
        database: Database,
        telemetry: Events,
        settings: BufferSettings,
        refused_path: Path,
    ) -> None:
        self._table = table
        self._database = database
        self._telemetry = telemetry
        self._settings = settings
        self._refused_path = refused_path
        self.stalled: str | None = None
        """Why the last transaction failed; None when it was committed."""
        self._stalled_at = 0.0
        self._told: str | None = None
        self._given_up = asyncio.Event()

    def give_up(self) -> None:
        """Retries nothing from now on: a transaction that meets a lock fails at once."""
        self._given_up.set()

    async def commit(self, batches: Sequence[Batch]) -> list[RefusedRow] | None:
        """Commits in one transaction; answers the rows that SQLite will never take.

        None when it takes nothing now.
        """
        if not batches:
            return []
        written = await self._with_retries(batches)
        if written is None:
            return None
        await self._report(written)
        return written.refused

    async def _with_retries(self, batches: Sequence[Batch]) -> Written | None:
        for attempt in range(1, self._settings.retry_max_attempts + 2):
            try:
                written = await self._database.write(lambda c: write_batches(c, self._table, batches))
            except apsw.Error as error:
                self._stall(error)
                if not is_locked(error) or attempt > self._settings.retry_max_attempts:
                    return None
                await self._back_off(batches, attempt)
                if self._given_up.is_set():
                    return None
            else:
                self._recover()
                return written
        return None

    async def _back_off(self, batches: Sequence[Batch], attempt: int) -> None:
        for operation in dict.fromkeys(batch.operation for batch in batches):
            metadata = {"buffer": self._table.buffer_name, "operation": operation}
            self._telemetry.emit(events.RETRY, {"count": 1}, metadata | {"attempt": str(attempt)})
        delay_ms = self._settings.retry_base_delay_ms * 2 ** (attempt - 1)
        delay_ms = min(delay_ms, self._settings.retry_max_delay_ms)
        # Jitter, so that processes which met the same lock do not meet again.
        await self._pause(delay_ms * random.uniform(0.5, 1.0) / 1_000)  # noqa: S311  # not a secret

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._given_up.wait()

    def _stall(self, error: apsw.Error) -> None:
        now = time.monotonic()
        if self.stalled is None:
            self._stalled_at = now
        self.stalled = f"{type(error).__name__}: {error}"
        metadata = {"buffer": self._table.buffer_name, "error": type(error).__name__}
        self._telemetry.emit(events.STALLED, {"count": 1}, metadata)
        if not is_locked(error) or now - self._stalled_at >= SHORT_LOCK_S:
            self._tell(self.stalled)

    def _tell(self, reason: str) -> None:
        if self._told != reason:
            log.warning("flush_stalled", buffer=self._table.buffer_name, error=reason)
        self._told = reason

    def _recover(self) -> None:
        if self._told is not None:
            log.info("flush_recovered", buffer=self._table.buffer_name)
        self.stalled = self._told = None

    async def _report(self, written: Written) -> None:
        for operation, rows in written.rows_by_operation.items():
            self._telemetry.emit(
                events.FLUSH,
                {"duration_ms": written.duration_ms, "batch_size": rows},
                {"buffer": self._table.buffer_name, "operation": operation},
            )
        if written.refused:
            await self._set_aside(written.refused)

    async def _set_aside(self, refused: Sequence[RefusedRow]) -> None:
        name = self._table.buffer_name
        for operation, entry, error in refused:
            key = self._table.entry_key(entry)
            log.error("row_refused", buffer=name, operation=operation, key=repr(key), error=error)
            self._telemetry.emit(events.REFUSED, {"count": 1}, {"buffer": name, "operation": operation})
        try:
            await asyncio.to_thread(append_refused, self._refused_path, refused)
        except OSError as error:
            # The batch they came from is committed; only this copy for a person is missing.
            log.error("refused_rows_not_kept", path=str(self._refused_path), error=str(error))  # noqa: TRY400
