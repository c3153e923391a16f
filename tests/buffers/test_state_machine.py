"""Everything at once, in any order: each table is compared with a plain model after every flush and start."""

import asyncio
import logging
import tempfile
from abc import abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import apsw
import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.locks import Lock
from undercroft.buffers import Ticket
from undercroft.buffers.s3_transfers import TransferDelete
from undercroft.errors import DatabaseLockedError, RowRefusedError

from .drivers import CacheArtifacts, Driver, KeyValues, S3Transfers
from .models import LastWins, Queue, Transfer
from .rig import Rig

T = TypeVar("T")

# Mostly two, so that events meet; more than eight, so that a flush takes several transactions.
keys = st.sampled_from("ab") | st.sampled_from("abcdefghijkl")
bad_keys = st.sampled_from(["bad1", "bad2"])
troubles = st.sampled_from([apsw.SQLITE_BUSY, apsw.SQLITE_LOCKED, apsw.SQLITE_FULL, apsw.SQLITE_IOERR])

# How long to wait for a commit that a fault may prevent.
IMPATIENCE_SECONDS = 0.02


class BufferMachine(RuleBasedStateMachine):
    """The rules that all tables share. The loop runs during rules only: between them, flushes stand still."""

    driver: ClassVar[Driver]

    def __init__(self) -> None:
        super().__init__()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.Runner()
        self.lock: Lock | None = None
        self.versions = 0
        self.batch_size = self.interval_ms = 1

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(coroutine)

    @initialize(batch_size=st.sampled_from([1, 2, 100]), interval_ms=st.sampled_from([5, 50]))
    def start(self, batch_size: int, interval_ms: int) -> None:
        self.batch_size = batch_size
        self.interval_ms = interval_ms
        self.open()

    def open(self) -> None:
        self.rig = Rig(
            self.driver,
            Path(self.folder.name),
            max_batch_size=self.batch_size,
            flush_interval_ms=self.interval_ms,
            shutdown_ms=30,  # what is not drained by then must come back from the spill file
        )
        self.run(self.rig.open())

    def teardown(self) -> None:
        self.release_lock()
        if hasattr(self, "rig"):
            self.run(self.rig.crash())
        self.loop.close()
        self.folder.cleanup()
        structlog.reset_defaults()

    # --- the model, per table ---

    @abstractmethod
    def accept_write(self, key: str) -> Ticket: ...

    @abstractmethod
    def commit_in_model(self, key: str) -> None: ...

    @abstractmethod
    def settle_model(self) -> None: ...

    @abstractmethod
    def crash_model(self) -> None: ...

    def next_version(self) -> int:
        self.versions += 1
        return self.versions

    # --- events ---

    @rule(key=keys)
    def write(self, key: str) -> None:
        async def enqueue() -> None:
            self.accept_write(key)

        self.run(enqueue())

    @rule(key=keys)
    def write_and_wait(self, key: str) -> None:
        async def enqueue() -> bool:
            return await self.unless_faulty(self.rig.buffer.committed(self.accept_write(key)))

        if self.run(enqueue()):
            self.commit_in_model(key)

    @rule(key=bad_keys)
    def bad_write(self, key: str) -> None:
        async def enqueue() -> None:
            ticket = self.rig.buffer.enqueue_nowait(self.driver.bad_write(key))
            with suppress(RowRefusedError):
                assert not await self.unless_faulty(self.rig.buffer.committed(ticket))

        self.run(enqueue())

    @rule(first=keys, second=keys)
    @precondition(lambda self: self.lock is None)
    def write_during_a_flush(self, first: str, second: str) -> None:
        async def overlap() -> None:
            self.rig.table.shut_gate()
            self.accept_write(first)
            flush = asyncio.create_task(self.unless_faulty(self.rig.buffer.flush()))
            await self.rig.arrived()
            self.accept_write(second)
            self.rig.table.open_gate()
            await flush

        self.run(overlap())

    # --- faults ---

    @rule(trouble=troubles, times=st.integers(1, 5))
    def fail_next_batches(self, trouble: int, times: int) -> None:
        self.rig.table.fail(*[trouble] * times)

    @rule()
    @precondition(lambda self: self.lock is None)
    def take_lock(self) -> None:
        self.lock = Lock(self.rig.path)

    @rule()
    def release_lock(self) -> None:
        if self.lock is not None:
            self.lock.release()
        self.lock = None

    async def unless_faulty(self, commit: Coroutine[Any, Any, None]) -> bool:
        """Whether the commit happened; without a fault it must."""
        if self.lock is None and not self.rig.table.will_fail:
            await commit
            return True
        try:
            await asyncio.wait_for(commit, IMPATIENCE_SECONDS)
        except TimeoutError:
            return False
        return True

    # --- flushes and ends ---

    @rule()
    def flush(self) -> None:
        if self.run(self.unless_faulty(self.rig.buffer.flush())):
            self.settle_model()
            assert self.rig.buffer.queue_stats() == (0, 0)

    @rule()
    def close_and_start_again(self) -> None:
        self.run(self.rig.close())
        spilled = self.rig.buffer.spill_path
        if self.lock is not None and spilled.exists():
            before = spilled.read_bytes()
            with pytest.raises(DatabaseLockedError):
                self.open()
            self.run(self.rig.crash())
            assert spilled.read_bytes() == before
        self.release_lock()
        self.open()
        self.settle_model()
        assert not spilled.exists()

    @rule()
    def crash_and_start_again(self) -> None:
        self.run(self.rig.crash())
        self.crash_model()
        self.open()


class LastWinsMachine(BufferMachine):
    """Tables in which the last event of a key counts."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LastWins()

    def accept_write(self, key: str) -> Ticket:
        version = self.next_version()
        ticket = self.rig.enqueue(key, version)
        self.model.accept(key, version)
        return ticket

    def commit_in_model(self, key: str) -> None:
        self.model.commit(key)
        assert self.rig.rows().get(key) == self.model.newest(key)

    def settle_model(self) -> None:
        self.model.settle(self.rig.rows())

    def crash_model(self) -> None:
        self.model.crash(self.rig.rows())

    @invariant()
    def every_write_can_be_read(self) -> None:
        rows = self.rig.rows()
        for key in self.model.histories.keys() - self.model.vague:
            assert self.seen(key, rows) == self.model.newest(key), key

    def seen(self, key: str, rows: dict[str, int]) -> int | None:
        pending = self.rig.pending(key)
        return rows.get(key) if pending is None else pending


class KeyValuesMachine(LastWinsMachine):
    driver = KeyValues()

    @rule(key=keys)
    def access(self, key: str) -> None:
        async def enqueue() -> None:
            self.rig.buffer.enqueue_nowait(self.driver.access(key))

        self.run(enqueue())  # changes no value, makes no row


class CacheArtifactsMachine(LastWinsMachine):
    driver: ClassVar[CacheArtifacts] = CacheArtifacts()

    @rule(key=keys)
    def delete(self, key: str) -> None:
        async def enqueue() -> None:
            self.rig.buffer.enqueue_nowait(self.driver.delete(key))

        self.run(enqueue())
        self.model.accept(key, None)

    @rule(key=keys)
    def access(self, key: str) -> None:
        """Moves the time of a row that is there, makes none; cancels a delete that is pending."""

        async def enqueue() -> None:
            self.rig.buffer.enqueue_nowait(self.driver.access(key, 99))

        self.run(enqueue())
        if self.model.newest(key) is None:
            self.model.unsure.add(key)
            self.model.vague.add(key)

    @rule(key=keys, writes_first=st.booleans())
    def write_and_delete(self, key: str, writes_first: bool) -> None:
        """Both in one generation."""

        async def enqueue() -> None:
            if writes_first:
                self.accept_write(key)
            self.rig.buffer.enqueue_nowait(self.driver.delete(key))
            self.model.accept(key, None)
            if not writes_first:
                self.accept_write(key)

        self.run(enqueue())

    def seen(self, key: str, rows: dict[str, int]) -> int | None:
        found = self.rig.buffer.pending(key)
        if found is None:
            return rows.get(key)
        return found.size_bytes if hasattr(found, "size_bytes") else None


class S3TransfersMachine(BufferMachine):
    driver = S3Transfers()

    def __init__(self) -> None:
        super().__init__()
        self.model = Queue()

    def accept_write(self, key: str) -> Ticket:
        event = self.driver.write(key, self.next_version())
        ticket = self.rig.buffer.enqueue_nowait(event)
        self.model.insert(event.id, key)
        return ticket

    def commit_in_model(self, key: str) -> None:
        self.model.commit(key)
        assert key in {row.key for row in self.transfers() if not row.claimed}

    def settle_model(self) -> None:
        self.model.settle(self.transfers())

    def crash_model(self) -> None:
        self.model.crash(self.transfers())

    def transfers(self) -> list[Transfer]:
        connection = apsw.Connection(str(self.rig.path))
        try:
            found = connection.execute("SELECT id, key, claimed_at IS NOT NULL FROM s3_transfers").fetchall()
        finally:
            connection.close()
        return [Transfer(str(row[0]), str(row[1]), bool(row[2])) for row in found]

    @rule(data=st.data())
    @precondition(lambda self: self.model.key_of_id)
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.key_of_id)))

        async def enqueue() -> None:
            self.rig.buffer.enqueue_nowait(TransferDelete(name))

        self.run(enqueue())
        self.model.delete(name)

    @rule(key=keys)
    def queue_again_and_finish(self, key: str) -> None:
        """A worker is done with a row just after its artifact was queued anew."""
        old = [row.id for row in self.transfers() if row.key == key]

        async def enqueue() -> None:
            self.accept_write(key)
            for name in old:
                self.rig.buffer.enqueue_nowait(TransferDelete(name))

        self.run(enqueue())
        self.model.done.update(old)

    @rule(number=st.integers(0, 99))
    @precondition(lambda self: self.lock is None)
    def claim(self, number: int) -> None:
        """A worker takes a row, if there is one."""
        names = sorted(row.id for row in self.transfers())
        if not names:
            return
        name = names[number % len(names)]
        sql = "UPDATE s3_transfers SET claimed_at = 1 WHERE id = ?"
        self.run(self.rig.database.write(lambda connection: connection.execute(sql, (name,)).fetchall()))
        self.model.claim(name)


TestKeyValues = KeyValuesMachine.TestCase
TestCacheArtifacts = CacheArtifactsMachine.TestCase
TestS3Transfers = S3TransfersMachine.TestCase
