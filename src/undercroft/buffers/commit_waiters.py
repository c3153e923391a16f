"""Those who wait for a commit, by the generation of events that will carry their row."""

import asyncio
from collections.abc import Callable, Hashable
from typing import NamedTuple

from undercroft.errors import ClosedError, CommitTimeoutError, RowRefusedError

# How late somebody may hear that the time is over: who gives up is looked for no more often.
SWEEP_S = 0.01

# Refusals are remembered for those who ask after the flush; so many, the oldest forgotten first.
REFUSALS_KEPT = 1_000


class Wish(NamedTuple):
    """What somebody waits for, and how long."""

    key: Hashable
    deadline: float
    timeout_ms: int


class CommitWaiters:
    """Generations are numbered upwards; `resolve(n)` says that all up to n are committed."""

    def __init__(self, name: str, stalled: Callable[[], str | None] = lambda: None) -> None:
        """`stalled` says why nothing is committed now, None if something is."""
        self._name = name
        self._stalled = stalled
        # Only those that wait still: under a long lock whoever gives up
        # tries again, and again.
        self._waiting: dict[int, dict[asyncio.Future[None], Wish]] = {}
        # One for all, for the first deadline when it was started or an earlier one: a timer for each
        # waiter, nearly always cancelled, cost more than the future.
        self._timer: asyncio.TimerHandle | None = None
        self._refusals: dict[tuple[int, Hashable], str] = {}
        self._committed = 0
        self._closed = False

    async def wait(self, generation: int, key: Hashable, timeout_ms: int) -> None:
        """Returns when the generation is committed.

        Raises `RowRefusedError` if the row `key` was refused, `CommitTimeoutError` after
        `timeout_ms`, `ClosedError` once closed.
        """
        if generation <= self._committed:
            self._raise_refusal(generation, key)
            return
        if self._closed:
            raise self._closed_error()
        loop = asyncio.get_running_loop()
        # A future for each: cancelling one waiter must not cancel the others.
        waiter: asyncio.Future[None] = loop.create_future()
        deadline = loop.time() + timeout_ms / 1_000
        self._waiting.setdefault(generation, {})[waiter] = Wish(key, deadline, timeout_ms)
        if self._timer is None or deadline < self._timer.when():
            self._start_timer(loop, deadline)
        try:
            await waiter
        except BaseException:
            # Whom a commit releases, `resolve` has taken out.
            self._leave(generation, waiter)
            raise

    def _start_timer(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tells those whose time is over, and looks again when that of the next one is."""
        self._timer = None
        now = loop.time()
        left: list[float] = []
        for waiters in self._waiting.values():
            for waiter, wish in waiters.items():
                if wish.deadline > now:
                    left.append(wish.deadline)
                else:
                    self._expire(waiter, wish.timeout_ms)
        if left:
            self._start_timer(loop, max(min(left), now + SWEEP_S))

    def _leave(self, generation: int, waiter: "asyncio.Future[None]") -> None:
        waiters = self._waiting.get(generation, {})
        waiters.pop(waiter, None)
        if not waiters:
            self._waiting.pop(generation, None)

    def _expire(self, waiter: "asyncio.Future[None]", timeout_ms: int) -> None:
        if not waiter.done():
            reason = self._stalled()
            waiter.set_exception(
                CommitTimeoutError(
                    f"buffer {self._name} did not commit within {timeout_ms} ms"
                    f"{'' if reason is None else f' ({reason})'}; the row is kept and may be committed later"
                )
            )

    @property
    def anyone(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def refuse(self, generation: int, key: Hashable, error: str) -> None:
        """Says that the row was set aside; its waiters hear of it when the generation is resolved."""
        self._refusals[generation, key] = error
        if len(self._refusals) > REFUSALS_KEPT:
            del self._refusals[next(iter(self._refusals))]

    def resolve(self, generation: int) -> None:
        """Releases everyone who waits for this generation or an earlier one."""
        self._committed = max(self._committed, generation)
        for number in [number for number in self._waiting if number <= generation]:
            for waiter, wish in self._waiting.pop(number).items():
                if not waiter.done():
                    self._release(waiter, number, wish.key)

    def _release(self, waiter: "asyncio.Future[None]", generation: int, key: Hashable) -> None:
        try:
            self._raise_refusal(generation, key)
        except RowRefusedError as error:
            waiter.set_exception(error)
        else:
            waiter.set_result(None)

    def _raise_refusal(self, generation: int, key: Hashable) -> None:
        error = self._refusals.get((generation, key))
        if error is not None:
            raise RowRefusedError(f"SQLite refuses the row {key!r} of {self._name}: {error}")

    def close(self) -> None:
        """Tells everyone left that no commit will come."""
        self._closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(self._closed_error())
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"buffer {self._name} closed before it committed this row")
