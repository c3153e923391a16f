"""The worker that moves artifacts to and from the object store, row by row."""

import asyncio
import random as random_numbers
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.clock import now_us
from undercroft.errors import (
    ClosedError,
    ObjectStoreError,
    TooLargeError,
    UndercroftError,
)
from undercroft.hydration import Cleaning
from undercroft.s3.concurrency import Blame, StorePace
from undercroft.s3.moves import Moves, Outcome
from undercroft.s3.object_store import ObjectStore
from undercroft.s3.patience import in_time
from undercroft.s3.transfers import NOT_WRITTEN, S3Transfers, Transfer
from undercroft.settings_sections import ObjectStoreSection
from undercroft.storage.disk import Disk
from undercroft.supervisor import Jobs
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

T = TypeVar("T")

log = structlog.get_logger(__name__)

# Nobody tells this process of rows that another one queued on the same data directory.
SLOW_POLL_S = 5.0

# A row that is due and cannot be claimed must not make the loop spin.
LEAST_WAIT_S = 0.02

# Pauses while rows cannot be claimed or given back.
FIRST_DATABASE_PAUSE_S = 0.1
LONGEST_DATABASE_PAUSE_S = 5.0

# One of so many slots is for uploads and deletes, if there are any, and at least one is.
SHARE_OF_OTHERS = 4

# 2 to this power is longer than any delay; without a bound the number would grow with every attempt.
MOST_DOUBLINGS = 32


FORESEEN = (UndercroftError, OSError, *NOT_WRITTEN)


class Failure(NamedTuple):
    """A transfer to be tried again. `by_store` says whose fault it was; `park` that it is hopeless."""

    reason: str
    by_store: bool = False
    throttled: bool = False
    park: bool = False


class TransferWorker:
    """Claims rows and works on them, as many at once as the store bears. `run` it, then `stop` it.

    A row goes only when there is nothing left to do for it. What fails comes back after a delay that
    doubles. After `max_attempts` it is parked, but only if the same kind of transfer succeeded for
    others since it failed last, and the store was not down in between: an outage, however long, and a
    store that takes no uploads at all park nothing, and a row that was unlucky in an outage gets more
    than one try after it.
    """

    def __init__(
        self,
        transfers: S3Transfers,
        artifacts: CacheArtifacts,
        disk: Disk,
        store: ObjectStore,
        telemetry: Events,
        *,
        settings: ObjectStoreSection,
        cleaning: Cleaning,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_numbers.random,
    ) -> None:
        """`clock` answers seconds, `random` a number from 0 to 1."""
        self._transfers = transfers
        self._moves = Moves(transfers, artifacts, disk, store, settings=settings, cleaning=cleaning)
        self._telemetry = telemetry
        self._settings = settings
        self._random = random
        self._pace = StorePace(settings.concurrency, clock)
        self._blame = Blame(self._pace)
        self._jobs = Jobs()
        self._working: dict[str, tuple[Transfer, asyncio.Task[None]]] = {}
        self._claiming = asyncio.Lock()
        self._stopping = False
        self._insisting = 0
        self._claimed_last = ""

    @property
    def in_work(self) -> int:
        """Transfers that are being worked on."""
        return len(self._working)

    @property
    def limit(self) -> int:
        """How many may be at once, now."""
        return self._pace.limit

    async def in_work_under(self, prefix: str) -> frozenset[asyncio.Task[None]]:
        """What is worked on now under keys that start with `prefix`: to be waited for, not cancelled."""
        # What is being claimed is in work before anybody here sees it.
        async with self._claiming:
            found = self._working.values()
            return frozenset(task for transfer, task in found if transfer.key.startswith(prefix))

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until `stop`, cancellation, or the end of the database."""
        try:
            await self._insist(self._transfers.release_all)
            while not self._stopping:
                await self._turn()
        except ClosedError:
            return
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Breaks off what is in work and gives its rows back. Idempotent.

        Rows that cannot be given back now are when the next process starts.
        """
        self._stopping = True
        self._transfers.committed_news.set()
        await self._jobs.stop()
        unfinished = [transfer for transfer, _ in self._working.values()]
        self._working.clear()
        await self._give_back(unfinished)

    async def _give_back(self, unfinished: list[Transfer]) -> None:
        try:
            if unfinished:
                await self._transfers.release(unfinished)
        except (*NOT_WRITTEN, ClosedError) as error:
            log.info("transfers_stay_claimed", count=len(unfinished), error=str(error))

    async def _turn(self) -> None:
        """Starts what can be started, then waits until that may be more."""
        self._transfers.committed_news.clear()
        free = 0 if self._pace.pause_s else self.limit - self.in_work
        more_may_wait = free <= 0 or await self._start(free) == free
        seconds = SLOW_POLL_S if more_may_wait else await self._until_next_attempt()
        try:
            async with asyncio.timeout(min(seconds, self._pace.pause_s or SLOW_POLL_S)):
                # Set by a commit of new rows, and by the end of a transfer.
                await self._transfers.committed_news.wait()
        except TimeoutError:
            return

    async def _start(self, free: int) -> int:
        """Starts at most `free` transfers; answers how many."""
        longest_us = self._settings.retry_max_delay_ms * 1_000
        async with self._claiming:
            kept = min(self._kept_from_downloads(), free)
            claimed = await self._insist(
                lambda: self._transfers.claim(free, kept, longest_delay_us=longest_us)
            )
            if self._stopping:
                await self._give_back(claimed)
                return 0
            for transfer in claimed:
                job = self._jobs.start(f"{transfer.type} {transfer.key}", self._item(transfer))
                self._working[transfer.id] = (transfer, job)
                self._claimed_last = transfer.type
        return len(claimed)

    def _kept_from_downloads(self) -> int:
        """Free slots that are for others first: downloads may come without an end."""
        if self.limit == 1:
            return int(self._claimed_last == "download")  # they take turns
        others = sum(transfer.type != "download" for transfer, _ in self._working.values())
        return max(max(self.limit // SHARE_OF_OTHERS, 1) - others, 0)

    async def _until_next_attempt(self) -> float:
        due_at = await self._insist(self._transfers.next_attempt_at)
        return SLOW_POLL_S if due_at is None else max((due_at - now_us()) / 1_000_000, LEAST_WAIT_S)

    async def _insist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Does what the database must do, again and again if need be. Raises `ClosedError`."""
        try:
            return await act()
        except NOT_WRITTEN as error:
            if not self._insisting:
                log.warning("transfers_not_written", error=f"{type(error).__name__}: {error}")
        self._insisting += 1
        try:
            answer = await _until_written(act)
        finally:
            self._insisting -= 1
        if not self._insisting:
            log.info("transfers_written_again")
        return answer

    # --- one row ----------------------------------------------------------------------------------

    async def _item(self, transfer: Transfer) -> None:
        begun = self._pace.begin()
        try:
            outcome = await self._attempt(transfer)
            if isinstance(outcome, Failure):
                result = await self._failed(transfer, outcome, begun)
            else:
                result = await self._over(transfer, outcome, begun)
        except ClosedError:
            return  # everything stops, and gives the row back
        finally:
            self._transfers.committed_news.set()
        del self._working[transfer.id]
        size = 0 if isinstance(outcome, Failure) else outcome.size
        self._telemetry.emit(events.TRANSFER, {"bytes": size}, {"type": transfer.type, "result": result})

    async def _over(self, transfer: Transfer, outcome: Outcome, begun: int) -> str:
        # That an object is there already, or no more, does not prove that others could be uploaded.
        proves_nothing = transfer.type == "upload" and outcome.result != "moved"
        kind = None if proves_nothing else transfer.type
        is_back = outcome.answered and self._pace.succeeded(begun, kind)
        self._blame.forget(transfer.id)
        await self._insist(lambda: self._transfers.done(transfer))
        if is_back:
            log.info("object_store_back")
            await self._insist(self._transfers.hurry)
        return outcome.result

    async def _failed(self, transfer: Transfer, failure: Failure, begun: int) -> str:
        verdict = self._blame.judge(transfer.id, transfer.type)
        if failure.by_store:
            self._store_failed(None if verdict.is_own else transfer.key, failure, begun)
        too_often = transfer.attempts + 1 >= self._settings.max_attempts
        park = failure.park or (too_often and verdict.is_hopeless)
        delay_us = self._delay_us(transfer.attempts)
        await self._insist(
            lambda: self._transfers.failed(transfer, failure.reason, delay_us=delay_us, park=park)
        )
        about = {"type": transfer.type, "key": transfer.key, "attempts": transfer.attempts + 1}
        if park:
            self._blame.forget(transfer.id)
            log.warning("transfer_parked", **about, error=failure.reason)
            return "parked"
        # Of an outage one line tells, not one for each transfer that meets it.
        tell = log.debug if failure.by_store and self._pace.is_down else log.info
        tell("transfer_retried", **about, error=failure.reason, delay_ms=delay_us // 1_000)
        return "retried"

    def _store_failed(self, key: str | None, failure: Failure, begun: int) -> None:
        was_down = self._pace.is_down
        self._pace.failed(begun, key, throttled=failure.throttled)
        if self._pace.is_down and not was_down:
            log.warning("object_store_down", error=failure.reason)

    def _delay_us(self, attempts: int) -> int:
        """Doubles with each failure; from half of that on at random, lest all come back at once."""
        longest = self._settings.retry_max_delay_ms
        delay = min(self._settings.retry_base_delay_ms << min(attempts, MOST_DOUBLINGS), longest)
        return int(delay * 1_000 * (1 + self._random()) / 2)

    async def _attempt(self, transfer: Transfer) -> Outcome | Failure:
        """Does it within the deadline. Raises `ClosedError`."""
        seconds = self._settings.transfer_timeout_ms / 1_000
        try:
            return await in_time(
                self._moves.make(transfer), seconds, f"the {transfer.type} of {transfer.key}"
            )
        except ClosedError:
            raise
        except Exception as error:
            if not isinstance(error, FORESEEN):
                # A fault in the code costs one row an attempt, not the node its worker.
                log.exception("transfer_crashed", type=transfer.type, key=transfer.key)
            return _failure(error)


async def _until_written(act: Callable[[], Awaitable[T]]) -> T:
    pause = FIRST_DATABASE_PAUSE_S
    while True:
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_DATABASE_PAUSE_S)
        with suppress(*NOT_WRITTEN):
            return await act()


def _failure(error: Exception) -> Failure:
    reason = str(error) if isinstance(error, UndercroftError) else repr(error)
    if isinstance(error, ObjectStoreError):
        return Failure(reason, by_store=True, throttled=error.throttled)
    if isinstance(error, TooLargeError):
        # Only a person can make room for it; whoever asks for it again gives it another try.
        return Failure(reason, park=True)
    # Of our own disk and database, of a full one too: that passes.
    return Failure(reason)
