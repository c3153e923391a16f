"""The worker that moves artifacts to and from the object store, row by row."""

import asyncio
import hashlib
import os
import random as random_numbers
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, NamedTuple, TypeVar

import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.clock import now_us
from undercroft.errors import (
    ClosedError,
    DigestMismatchError,
    ObjectStoreError,
    TooLargeError,
    UndercroftError,
)
from undercroft.hydration import Cleaning, Hydration, HydrationTimes
from undercroft.s3.concurrency import StorePace
from undercroft.s3.object_store import ObjectStore
from undercroft.s3.transfers import NOT_WRITTEN, S3Transfers, Transfer
from undercroft.settings_sections import ObjectStoreSection
from undercroft.storage.disk import Disk, OpenFile
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

# Bytes may be damaged on their way. Whose digest is wrong this many times is damaged in the store.
DIGEST_ATTEMPTS = 3

HASH_BYTES = 16 << 20

# 2 to this power is longer than any delay; without a bound the number would grow with every attempt.
MOST_DOUBLINGS = 32


FORESEEN = (UndercroftError, OSError, *NOT_WRITTEN)


class Outcome(NamedTuple):
    """A transfer that is over. `answered` says whether the store was asked, and did."""

    result: Literal["moved", "skipped", "gone"]
    size: int = 0
    answered: bool = False


class Failure(NamedTuple):
    """A transfer to be tried again. `by_store` says whose fault it was; `park` that it is hopeless."""

    reason: str
    by_store: bool = False
    throttled: bool = False
    park: bool = False


class TransferWorker:
    """Claims rows and works on them, as many at once as the store bears. `run` it, then `stop` it.

    A row goes only when there is nothing left to do for it. What fails comes back after a delay that
    doubles. After `max_attempts` it is parked, but only while the same kind of transfer succeeds for
    others and the store was never down, both for `retry_max_delay_ms`: an outage, however long, and a
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
        self._artifacts = artifacts
        self._disk = disk
        self._store = store
        self._telemetry = telemetry
        self._settings = settings
        self._cleaning = cleaning
        self._random = random
        self._pace = StorePace(settings.concurrency, clock)
        self._answer_s = settings.read_timeout_ms / 1_000
        self._jobs = Jobs()
        self._working: dict[str, tuple[Transfer, asyncio.Task[None]]] = {}
        self._claiming = asyncio.Lock()
        self._stopping = False
        self._insisting = 0

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
            claimed = await self._insist(lambda: self._transfers.claim(free, longest_delay_us=longest_us))
            if self._stopping:
                await self._give_back(claimed)
                return 0
            for transfer in claimed:
                job = self._jobs.start(f"{transfer.type} {transfer.key}", self._item(transfer))
                self._working[transfer.id] = (transfer, job)
        return len(claimed)

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
        # That an object is there already does not prove that others could be uploaded.
        kind = transfer.type if outcome.result != "skipped" else None
        is_back = outcome.answered and self._pace.succeeded(begun, kind)
        await self._insist(lambda: self._transfers.done(transfer))
        if is_back:
            log.info("object_store_back")
            await self._insist(self._transfers.hurry)
        return outcome.result

    async def _failed(self, transfer: Transfer, failure: Failure, begun: int) -> str:
        if failure.by_store:
            was_down = self._pace.is_down
            self._pace.failed(begun, throttled=failure.throttled)
            if self._pace.is_down and not was_down:
                log.warning("object_store_down", error=failure.reason)
        park = failure.park or self._is_hopeless(transfer)
        delay_us = self._delay_us(transfer.attempts)
        await self._insist(
            lambda: self._transfers.failed(transfer, failure.reason, delay_us=delay_us, park=park)
        )
        about = {"type": transfer.type, "key": transfer.key, "attempts": transfer.attempts + 1}
        if park:
            log.warning("transfer_parked", **about, error=failure.reason)
            return "parked"
        log.info("transfer_retried", **about, error=failure.reason, delay_ms=delay_us // 1_000)
        return "retried"

    def _is_hopeless(self, transfer: Transfer) -> bool:
        """Whether it failed too often, while others succeed."""
        if transfer.attempts + 1 < self._settings.max_attempts:
            return False
        return self._pace.works(transfer.type, self._settings.retry_max_delay_ms / 1_000)

    def _delay_us(self, attempts: int) -> int:
        """Doubles with each failure; from half of that on at random, lest all come back at once."""
        longest = self._settings.retry_max_delay_ms
        delay = min(self._settings.retry_base_delay_ms << min(attempts, MOST_DOUBLINGS), longest)
        return int(delay * 1_000 * (1 + self._random()) / 2)

    async def _attempt(self, transfer: Transfer) -> Outcome | Failure:
        """Does it within the deadline. Raises `ClosedError`."""
        act = {"upload": self._upload, "download": self._download, "delete": self._delete}[transfer.type]
        try:
            return await _within(self._settings.transfer_timeout_ms / 1_000, act(transfer.key))
        except ClosedError:
            raise
        except Exception as error:
            if not isinstance(error, FORESEEN):
                # A fault in the code costs one row an attempt, not the node its worker.
                log.exception("transfer_crashed", type=transfer.type, key=transfer.key)
            return _failure(error, transfer)

    # --- uploads ----------------------------------------------------------------------------------

    async def _upload(self, key: str) -> Outcome:
        # Alone: between the rename of a new file and its row the two would not belong together.
        async with self._artifacts.alone(key):
            row = self._artifacts.find(key)
            file = None if row is None else self._disk.open(key)
        if row is None or file is None:
            return Outcome("gone")
        # The descriptor is what is uploaded: a file that takes the name meanwhile has a row of its own.
        with os.fdopen(file.descriptor, "rb") as body:
            if file.size != row.size_bytes:
                # The next reader, or reconcile, puts it into quarantine.
                log.error("damaged_not_uploaded", key=key, size=file.size, expected_size=row.size_bytes)
                return Outcome("gone")
            digest = await self._digest(row, file)
            remote = await _within(self._answer_s, self._store.head(key))
            if remote is not None and (remote.size, remote.content_sha256) == (file.size, digest):
                return Outcome("skipped", answered=True)
            await self._store.put(key, body, file.size, digest)
        return Outcome("moved", file.size, answered=True)

    async def _digest(self, row: ArtifactAccess, file: OpenFile) -> str:
        """What the row says; computed where it is older than digests are."""
        if row.content_sha256 is not None:
            return row.content_sha256
        digest = hashlib.sha256()

        def add(offset: int) -> None:
            digest.update(os.pread(file.descriptor, HASH_BYTES, offset))

        # Piece by piece: who is cancelled waits for the thread.
        for offset in range(0, file.size, HASH_BYTES):
            await self._artifacts.threads.run(add, offset)
        return digest.hexdigest()

    # --- downloads --------------------------------------------------------------------------------

    async def _download(self, key: str) -> Outcome:
        if self._is_unwanted(key):
            return Outcome("gone")
        row = self._artifacts.find(key)
        if row is not None and self._disk.size(key) == row.size_bytes:
            return Outcome("skipped")
        times = HydrationTimes(self._answer_s, self._answer_s, 0.0)
        cleanings = self._cleaning.cleanings(key)

        def unwanted() -> bool:
            return self._is_unwanted(key) or self._cleaning.cleanings(key) != cleanings

        hydration = Hydration(key, self._store, self._artifacts, times, unwanted)
        result = await hydration.run()
        if result == "stored":
            # Before the row of the transfer goes: the two are in different buffers.
            await self._artifacts.settled(key)
            return Outcome("moved", hydration.received, answered=True)
        if result == "absent":
            return Outcome("gone", answered=True)
        if unwanted():
            return Outcome("gone")
        await hydration.finished()  # raises what went wrong
        return Outcome("gone")

    def _is_unwanted(self, key: str) -> bool:
        """Whether it was deleted here, and is about to be there: it must not come back."""
        return self._cleaning.is_being_cleaned(key) or self._transfers.is_queued("delete", key)

    # --- deletes ----------------------------------------------------------------------------------

    async def _delete(self, key: str) -> Outcome:
        # The row is queued before the artifact goes.
        async with self._artifacts.alone(key):
            # Row and file: after SIGKILL there may be the row of a file that was deleted.
            stored_again = self._artifacts.find(key) is not None and self._disk.size(key) is not None
        if stored_again:
            # The upload that was queued with it replaces the object.
            return Outcome("skipped")
        await _within(self._answer_s, self._store.delete([key]))
        return Outcome("moved", answered=True)


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """What `work` answers. What takes longer was throttled: with fewer at once it might make it."""
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await work
    except TimeoutError:
        if not deadline.expired():
            raise
        raise ObjectStoreError(f"not done within {seconds:g} s", throttled=True) from None


async def _until_written(act: Callable[[], Awaitable[T]]) -> T:
    pause = FIRST_DATABASE_PAUSE_S
    while True:
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_DATABASE_PAUSE_S)
        with suppress(*NOT_WRITTEN):
            return await act()


def _failure(error: Exception, transfer: Transfer) -> Failure:
    reason = str(error) if isinstance(error, UndercroftError) else repr(error)
    if isinstance(error, ObjectStoreError):
        return Failure(reason, by_store=True, throttled=error.throttled)
    if isinstance(error, TooLargeError):
        # Only a person can make room for it; whoever asks for it again gives it another try.
        return Failure(reason, park=True)
    if isinstance(error, DigestMismatchError):
        return Failure(reason, park=transfer.attempts + 1 >= DIGEST_ATTEMPTS)
    # Of our own disk and database, of a full one too: that passes.
    return Failure(reason)
