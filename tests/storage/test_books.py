"""What artifacts and uploads take, kept by several processes together."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from undercroft.errors import CapacityError
from undercroft.storage.books import SharedBooks
from undercroft.storage.capacity import Capacity, Reservation, Volume
from undercroft.storage.ledger import Entry, Ledger

WORKERS = 3
LIMIT = 1_000
LARGEST = 200


class Table:
    """Stands for the database and the disk: what is committed, and what lies there."""

    def __init__(self) -> None:
        # A ledger of its own is memory that all of them share.
        self._shared = Ledger.create(1)

    def total(self) -> int:
        return self._shared.get(0, Entry.RESERVED)

    def on_disk(self) -> int:
        return self._shared.get(0, Entry.WRITTEN)

    def commit(self, size: int) -> None:
        self._add(Entry.RESERVED, size)

    def lay(self, size: int) -> None:
        self._add(Entry.WRITTEN, size)

    def _add(self, entry: Entry, size: int) -> None:
        with self._shared.alone():
            self._shared.set(0, entry, self._shared.get(0, entry) + size)


class Life:
    """A worker that reserves, writes, publishes, commits and deletes by chance."""

    def __init__(self, ledger: Ledger, worker: int, table: Table, seed: str) -> None:
        self.generation = 0
        self.books = SharedBooks(ledger, worker, lambda: self.generation)
        self.books.open(table.total)
        self.capacity = Capacity(lambda: Volume(10**9, 10**9), LIMIT, 100.0, self.books)
        self.table = table
        self.random = random.Random(f"{seed} {worker}")
        self.going_on: list[tuple[Reservation, int]] = []
        self.pending: list[int] = []
        self.mine: list[int] = []

    def step(self) -> None:
        self.random.choice(
            [self.reserve, self.reserve, self.publish, self.give_up, self.commit, self.delete]
        )()
        assert self.table.on_disk() <= LIMIT

    def reserve(self) -> None:
        size = self.random.randrange(1, LARGEST)
        with suppress(CapacityError):
            reservation = self.capacity.reserve(size)
            self.going_on.append((reservation, size))
            reservation.wrote(self.random.randrange(size))

    def publish(self) -> None:
        if self.going_on:
            reservation, size = self.going_on.pop()
            self.table.lay(size)
            reservation.published(size)
            self.pending.append(size)

    def give_up(self) -> None:
        if self.going_on:
            self.going_on.pop()[0].release()

    def delete(self) -> None:
        if self.mine:
            size = self.mine.pop()
            self.table.lay(-size)
            self.books.forgot(size, removed=True)
            self.pending.append(-size)

    def commit(self) -> None:
        generation, self.generation = self.generation, self.generation + 1
        for size in self.pending:
            self.table.commit(size)
        self.mine += [size for size in self.pending if size > 0]
        self.pending.clear()
        self.books.on_committed(generation)

    def finish(self) -> None:
        while self.going_on:
            self.give_up()
        self.commit()


def forked(work: Callable[[], None]) -> int:
    """The id of a process that does the work; it ends with 0 unless that raises."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_the_limit_is_never_exceeded_and_nothing_leaks(seed: str) -> None:
    ledger, table = Ledger.create(WORKERS), Table()

    def live(worker: int, *, ends: bool) -> None:
        life = Life(ledger, worker, table, seed)
        for _ in range(600):
            life.step()
        life.finish()
        while not ends:
            life.step()

    processes = [forked(lambda number=number: live(number, ends=number > 0)) for number in range(WORKERS)]  # type: ignore[misc]
    victim = processes[0]
    seen = [0]
    for process in processes[1:]:
        while not (found := os.waitpid(process, os.WNOHANG))[0]:
            seen.append(table.on_disk())
            time.sleep(0.001)
        assert found[1] == 0
    # It dies in the middle of whatever it does, maybe with the lock.
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    ledger.clear(0)
    with ledger.alone():
        assert [ledger.total(entry) for entry in (Entry.RESERVED, Entry.WRITTEN, Entry.FREED)] == [0, 0, 0]
    assert LIMIT / 2 < max(seen) <= LIMIT


def test_what_is_published_stays_reserved_until_it_is_committed() -> None:
    life = Life(Ledger.create(1), 0, Table(), "")
    reservation = life.capacity.reserve(300)
    reservation.published(250)
    assert (life.capacity.used, life.capacity.reserved, life.capacity.written) == (0, 250, 250)
    life.pending.append(250)
    life.commit()
    assert (life.capacity.used, life.capacity.reserved, life.capacity.written) == (250, 0, 0)


def test_what_is_deleted_leaves_no_room_until_that_is_committed() -> None:
    life = Life(Ledger.create(1), 0, Table(), "")
    life.table.commit(LIMIT)
    life.books.forgot(400, removed=True)
    life.pending.append(-400)
    with pytest.raises(CapacityError):
        life.capacity.reserve(1)
    assert life.capacity.room_to_come(0) == 400
    assert life.capacity.awaits_commit
    life.commit()
    assert life.capacity.room() == 400
    assert not life.capacity.awaits_commit


def test_every_worker_sees_what_the_others_hold() -> None:
    ledger, table = Ledger.create(2), Table()
    one, other = (Life(ledger, number, table, "") for number in range(2))
    held = one.capacity.reserve(LIMIT - 10)
    with pytest.raises(CapacityError):
        other.capacity.reserve(11)
    other.capacity.reserve(10)
    held.release()
    assert other.capacity.reserved == 10


class SlowLedger(Ledger):
    """Something happens before each question."""

    before: Callable[[], None] = staticmethod(lambda: None)
    locked = False

    def total(self, entry: Entry) -> int:
        self.before()
        return super().total(entry)

    @contextmanager
    def alone(self) -> Iterator[None]:
        with super().alone():
            self.locked = True
            yield
            self.locked = False


class Neighbour:
    """A worker that holds 600 bytes, and has come so far with them."""

    def __init__(self, ledger: Ledger, table: Table, far: int) -> None:
        self.books = SharedBooks(ledger, 1, lambda: 1)
        self.books.open(table.total)
        self._table = table
        self._reservation = Capacity(lambda: Volume(LIMIT, LIMIT), None, 100.0, self.books).reserve(600)
        self._steps = iter((self._write, self._publish, self._commit))
        for _ in range(far):
            self.go_on()

    def go_on(self) -> None:
        next(self._steps)()

    def _write(self) -> None:
        self._table.lay(600)
        self._reservation.wrote(600)

    def _publish(self) -> None:
        self._reservation.published(600)

    def _commit(self) -> None:
        self._table.commit(600)
        self.books.on_committed(1)


@pytest.mark.parametrize("question", range(6))
@pytest.mark.parametrize("far", range(3))
@pytest.mark.parametrize("limit_bytes", [None, LIMIT])
def test_what_a_sibling_does_meanwhile_makes_no_room(
    limit_bytes: int | None, far: int, question: int
) -> None:
    """Whichever number was read before it does, and whichever is read after."""
    ledger, table = SlowLedger.create(2), Table()
    neighbour, asked = Neighbour(ledger, table, far), itertools.count()

    def before() -> None:
        if next(asked) == question:
            neighbour.go_on()

    def total() -> int:
        before()
        return table.total()

    def volume() -> Volume:
        before()
        # Either limit alone, the other is far away.
        return Volume(LIMIT, LIMIT - table.on_disk()) if limit_bytes is None else Volume(10**9, 10**9)

    books = SharedBooks(ledger, 0, lambda: 1)
    books.open(total)
    ledger.before = before
    with pytest.raises(CapacityError):
        Capacity(volume, limit_bytes, 100.0, books).reserve(LIMIT - 600 + 1)


def test_nobody_reserves_between_the_two_numbers_of_what_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one of them it would be less that is still to be written."""
    ledger = SlowLedger.create(2)
    neighbour, set_locked = Neighbour(ledger, Table(), 1), list[bool]()
    really_set = ledger.set

    def note(worker: int, entry: Entry, value: int) -> None:
        set_locked.append(ledger.locked)
        really_set(worker, entry, value)

    monkeypatch.setattr(ledger, "set", note)
    neighbour.go_on()
    # The reservation is given back after that, in an order that needs no lock.
    assert set_locked == [True, True, False, False]


def test_a_file_that_a_sibling_removed_is_counted_by_it_alone() -> None:
    ledger, table = Ledger.create(2), Table()
    table.commit(500)
    one, other = (Life(ledger, number, table, "") for number in range(2))
    one.books.forgot(300, removed=True)
    other.books.forgot(300, removed=False)
    assert one.books.present == 200
    one.books.on_committed(0)
    other.books.on_committed(0)
    assert ledger.total(Entry.FREED) == 0
