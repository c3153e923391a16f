"""The buffer mechanism: accept events at once, merge them, commit them in batches, lose nothing."""

import asyncio
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from undercroft.buffers.bufferable import Batch, Bufferable, QueueStats
from undercroft.buffers.commit_waiters import CommitWaiters
from undercroft.buffers.committer import Committer
from undercroft.buffers.generations import Generation, Generations, let_go
from undercroft.buffers.settings import BufferSettings
from undercroft.buffers.spill import read_spill, remove_spill, rows_in, spills_of, write_spill
from undercroft.buffers.transaction import RefusedRow
from undercroft.database import Database
from undercroft.errors import BufferFullError, ClosedError, DatabaseLockedError
from undercroft.processes.place import Place
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

log = structlog.get_logger(__name__)

StateT = TypeVar("StateT")
EventT = TypeVar("EventT")

# With a backlog, so many full batches share a transaction: 160,000 rows took 1.4 to 1.5 times as long at
# 1,000 rows to a transaction as at 8,000, and the writer thread still gets to others many times a second.
BATCHES_PER_TRANSACTION = 8

# From this share of the bound on, accesses are dropped so that real writes still find room.
SHED_FROM = 0.8


class Ticket(msgspec.Struct, frozen=True, gc=False):  # made for every event, in a quarter of a tuple's time
    """Names the flush that will carry an event, and the row the event is about."""

    generation: int
    key: Hashable


SHED = Ticket(0, None)


def nobody(_generation: int) -> None:
    """Hears nothing."""


class SQLiteBuffer(Generic[StateT, EventT]):
    """A write-behind buffer for one table.

    Everything runs on one event loop but the transactions, which run in the database's writer
    thread. `enqueue` never waits for SQLite. A row leaves memory only after its commit. While one
    generation of events is being written the next one gathers, so however many wait in `committed`,
    they share a transaction.

    Life: `open`, then `run` as a task of the owner's, `close`.
    """

    def __init__(
        self,
        table: Bufferable[StateT, EventT],
        database: Database,
        telemetry: Events,
        settings: BufferSettings | None = None,
        place: Place | None = None,
        *,
        stem: str | None = None,
    ) -> None:
        """Of several processes that serve together each has a `place`. `stem` names files, not its table."""
        self.name = table.buffer_name
        self.operations = tuple(table.entry_types)
        self.settings = settings or BufferSettings()
        self._siblings_run = place is not None and place.siblings_run
        self._stem = self.name if stem is None else stem
        own = self._stem if place is None else f"{self._stem}.{place.number}"
        self.spill_path: Path = database.path.with_name(f"{own}.spill")
        """Where `close` puts rows that SQLite would not take in time."""
        self.refused_path: Path = database.path.with_name(f"{self._stem}.refused.jsonl")
        """Where rows are kept that SQLite refuses for what they are."""
        self.on_committed: Callable[[int], None] = nobody
        """Told the number of each generation that was committed, before anybody who waits for it is."""
        self._table = table
        self._database = database
        self._telemetry = telemetry
        self._committer = Committer(table, database, telemetry, self.settings, self.refused_path)
        # One generation, one transaction.
        self._generations = Generations(table, self.settings.max_batch_size * BATCHES_PER_TRANSACTION)
        self._shed_rows = int(self.settings.max_pending_rows * SHED_FROM)
        self._shed_bytes = int(self.settings.max_pending_bytes * SHED_FROM)
        self._waiters = CommitWaiters(self.name, lambda: self.stalled)
        self._wake = asyncio.Event()
        self._tick = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._room_freed = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._closing = asyncio.Lock()
        self._accepts = False
        self._closed = False

    # --- accepting events -------------------------------------------------------------------------

    def enqueue_nowait(self, event: EventT, *, past_bound: bool = False) -> Ticket:
        """Accepts an event in constant time; raises `BufferFullError` when there is no room.

        It is durable after the commit that carries it: wait with `committed`. An event that only
        says "used" is shed under pressure, counted but without an error. `past_bound` is for an
        event that can no longer be refused, whose caller has awaited `wait_for_room` before: it is
        accepted although others have taken the room meanwhile.
        """
        self._check_open()
        waiting = self._generations
        if not past_bound and (waiting.rows >= self._shed_rows or waiting.bytes >= self._shed_bytes):
            if self._table.sheddable(event):
                self._telemetry.emit(events.SHED, {"count": 1}, {"buffer": self.name})
                return SHED
            if self.is_full:
                raise self._no_room()
        return self._accept(event)

    async def enqueue(self, event: EventT) -> Ticket:
        """Like `enqueue_nowait`, but waits up to `enqueue_timeout_ms` for room in a full buffer."""
        if self.is_full and not self._table.sheddable(event):
            await self.wait_for_room()
        return self.enqueue_nowait(event)

    async def wait_for_room(self) -> None:
        """Returns when there is room for an event, at once if there is.

        Raises `BufferFullError` after `enqueue_timeout_ms`, `ClosedError` when not open.
        """
        if self.is_full:  # a timer for nothing would be a tenth of the event loop's work for an upload
            try:
                async with asyncio.timeout(self.settings.enqueue_timeout_ms / 1_000):
                    while self._accepts and self.is_full:
                        self._wake.set()
                        await self._room_freed.wait()
            except TimeoutError:
                raise self._no_room() from None
        self._check_open()

    def _check_open(self) -> None:
        if not self._accepts:
            raise ClosedError(f"buffer {self.name} accepts nothing: it is not open")

    def _accept(self, event: EventT) -> Ticket:
        number = self._generations.add(event)
        if self._timer is None:
            self._start_timer()
        if self._is_due:
            self._wake.set()
        return Ticket(number, self._table.row_key(event))

    @property
    def _is_due(self) -> bool:
        """Whether there is as much as a flush begins with."""
        return self._generations.rows_gathered >= self.settings.max_batch_size or self._generations.full_waits

    @property
    def is_full(self) -> bool:
        """Whether the bound is reached. Rows in flight count: they are in memory."""
        waiting, settings = self._generations, self.settings
        return waiting.rows >= settings.max_pending_rows or waiting.bytes >= settings.max_pending_bytes

    def _no_room(self) -> BufferFullError:
        self._telemetry.emit(events.REJECTED, {"count": 1}, {"buffer": self.name})
        rows, size = self.queue_stats()
        return BufferFullError(
            f"buffer {self.name} is full with {rows} rows, {size} bytes (max_pending_rows "
            f"{self.settings.max_pending_rows}, max_pending_bytes {self.settings.max_pending_bytes}): "
            "try again later"
        )

    # --- asking -----------------------------------------------------------------------------------

    def pending(self, key: Hashable) -> Any | None:
        """What uncommitted events make of the row with this key, in the table's own shape.

        None means that they say nothing: ask the database. One look-up for each generation.
        """
        return self._generations.pending(key)

    def ticket_of(self, key: Hashable) -> Ticket | None:
        """The flush by which what is `pending` for the key is committed; None when nothing is."""
        number = self._generations.number_of(key)
        return None if number is None else Ticket(number, key)

    def queue_stats(self) -> QueueStats:
        """Rows and bytes that are not committed yet, waiting and in flight."""
        return self._generations.stats()

    def newest_generation(self) -> int:
        """The number of the generation that carries what was enqueued last."""
        return self._generations.newest

    @property
    def rows_in_flight(self) -> int:
        """Rows handed to SQLite that are not committed yet."""
        return self._generations.rows_in_flight

    @property
    def oldest_age(self) -> float:
        """Seconds the oldest uncommitted event has waited; 0.0 when there is none."""
        return self._generations.oldest_age

    @property
    def stalled(self) -> str | None:
        """Why SQLite took nothing at the last attempt; None when it did."""
        return self._committer.stalled

    # --- waiting for commits ----------------------------------------------------------------------

    async def committed(self, ticket: Ticket) -> None:
        """Returns after the commit that carries the ticket's event; starts that flush at once.

        Raises `RowRefusedError` if SQLite refuses the row, `CommitTimeoutError` after
        `commit_timeout_ms` (the row stays and may yet be committed), `ClosedError` if the buffer
        was closed without committing it (then it was spilled).
        """
        started = time.perf_counter()
        self._wake.set()
        await self._waiters.wait(ticket.generation, ticket.key, self.settings.commit_timeout_ms)
        waited = time.perf_counter() - started
        self._telemetry.emit(events.COMMIT_WAIT, {"seconds": waited}, {"buffer": self.name})

    async def flush(self) -> None:
        """Commits everything accepted so far; raises `CommitTimeoutError` after `flush_timeout_ms`."""
        if self._closed:
            raise ClosedError(f"buffer {self.name} is closed")
        self._on_tick()
        await self._waiters.wait(self._generations.newest, None, self.settings.flush_timeout_ms)

    # --- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Commits what earlier processes spilled, then accepts events.

        Raises `DatabaseLockedError` if the database stays locked; the spill files are kept.
        """
        if self._siblings_run:
            await self._drop_spill()
        else:
            for path in spills_of(self.spill_path.parent, self._stem):
                await self._replay(path)
        self._accepts = True

    async def _drop_spill(self) -> None:
        """Nobody was told that those rows were stored, and siblings may have stored newer ones since."""
        if self.spill_path.exists():
            await asyncio.to_thread(remove_spill, self.spill_path)
            log.warning("spill_dropped", buffer=self.name, path=str(self.spill_path))

    async def _replay(self, path: Path) -> None:
        # Before anything new is accepted: a spilled row must never overwrite a newer one.
        batches = read_spill(path, self._table.entry_types)
        for start in range(0, len(batches), BATCHES_PER_TRANSACTION):
            group = batches[start : start + BATCHES_PER_TRANSACTION]
            if await self._committer.commit(group) is None:
                raise DatabaseLockedError(
                    f"the rows in {path} must be written before anything else, and SQLite "
                    f"does not take them ({self.stalled}): mend that and start again"
                )
        # The file has the only copy that survives a loss of power until the commits do.
        await self._database.sync()
        await asyncio.to_thread(remove_spill, path)
        count = rows_in(batches)
        log.info("spill_replayed", buffer=self.name, rows=count)
        self._telemetry.emit(events.REPLAYED, {"count": count}, {"buffer": self.name})

    async def run(self) -> None:
        """Flushes whenever there is a reason to, until `close`."""
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            if not self._closed:
                await self._flush_generation()
                await self._before_the_next()

    async def _before_the_next(self) -> None:
        if self.stalled is not None and not self._closed:
            await self._next_tick()
        elif self._is_due or (self.queue_stats().rows and (self._waiters.anyone or self._timer is None)):
            # The wake of those who wait, or the timer's, may have been spent on an older generation.
            self._wake.set()

    async def _next_tick(self) -> None:
        """After a failure only time, `flush` and `close` lead to the next attempt.

        Those who wait for a commit or for room would have a full disk tried again without a pause.
        """
        self._tick.clear()
        await self._tick.wait()

    def _on_tick(self) -> None:
        self._tick.set()
        self._wake.set()

    async def close(self) -> None:
        """Accepts nothing more, drains for up to `shutdown_ms`, spills what is left. Idempotent.

        It drains by itself, so that a crash of `run` loses nothing. Raises OSError if the spill
        file cannot be written, and what the drain raised (then too the rows are spilled).
        """
        self._accepts = False
        # A second caller waits for the first: two of them would write the same spill file.
        async with self._closing:
            if not self._closed:
                await self._drain_or_spill()

    async def _drain_or_spill(self) -> None:
        try:
            async with asyncio.timeout(self.settings.shutdown_ms / 1_000):
                await self._drain()
        except TimeoutError:
            log.warning("drain_timed_out", buffer=self.name, shutdown_ms=self.settings.shutdown_ms)
        finally:
            self._end_run()
            try:
                await self._spill()
            finally:
                self._waiters.close()

    def _end_run(self) -> None:
        self._closed = True
        self._committer.give_up()
        self._stop_timer()
        self._on_tick()
        self._room_freed.set()

    async def _drain(self) -> None:
        while self.queue_stats().rows:
            await self._flush_generation()
            if self.stalled:
                await asyncio.sleep(self.settings.retry_base_delay_ms / 1_000)

    async def _spill(self) -> None:
        # The oldest first. What is in flight may be committed yet, which does no harm.
        batches = [batch for one in self._generations.all() for batch in self._batches_of(one)]
        if not batches:
            return
        await asyncio.to_thread(write_spill, self.spill_path, batches)
        count = rows_in(batches)
        log.warning("rows_spilled", buffer=self.name, rows=count, path=str(self.spill_path))
        self._telemetry.emit(events.SPILLED, {"count": count}, {"buffer": self.name})

    def _batches_of(self, generation: Generation[StateT]) -> list[Batch]:
        return self._table.flush_batches(generation.state, self.settings.max_batch_size)[0]

    def reset(self) -> None:
        """Forgets what is pending. For tests only, while nothing is in flight."""
        self._stop_timer()
        self._generations.forget()

    # --- flushing ---------------------------------------------------------------------------------

    async def _flush_generation(self) -> None:
        """Commits the oldest generation; what SQLite does not take now goes back."""
        async with self._flushing:
            generation = self._generations.take()
            if not self._generations.rows_gathered:
                self._stop_timer()
            refused: list[RefusedRow] | None = None
            # Whatever ends the attempt, what is not known to be committed is kept.
            try:
                refused = await self._committer.commit(batches := self._batches_of(generation))
                for row in refused or ():
                    self._waiters.refuse(generation.number, self._table.entry_key(row.entry), row.error)
            finally:
                self._settle(generation.number, committed=refused is not None)
        let_go(batches)

    def _settle(self, number: int, *, committed: bool) -> None:
        self._generations.settle(committed=committed)
        if committed:
            self.on_committed(number)
            self._waiters.resolve(number)
        else:
            self._start_timer()
        # Wakes all who wait for room; each looks for itself whether there is any.
        self._room_freed.set()
        self._room_freed.clear()

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop_timer()
        self._timer = loop.call_later(self.settings.flush_interval_ms / 1_000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._on_tick()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
