"""Those who wait for a commit, by the generation of events that will carry their row."""

import asyncio
from collections.abc import Hashable
from typing import NamedTuple

from undercroft.errors import ClosedError, CommitTimeoutError, RowRefusedError

# Refusals are remembered for those who ask after the flush; so many, the oldest forgotten first.
REFUSALS_KEPT = 1_000


class _Refusal(NamedTuple):
    committed: int
    """What was committed before: earlier events of the same row, that were fine."""
    generation: int
    error: str


class CommitWaiters:
    """Generations are numbered upwards; `resolve(n)` says that all up to n are committed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: dict[int, list[tuple[Hashable, asyncio.Future[None]]]] = {}
        self._refusals: dict[Hashable, _Refusal] = {}
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
        self._waiting.setdefault(generation, []).append((key, waiter))
        timer = loop.call_later(timeout_ms / 1_000, self._expire, waiter, timeout_ms)
        try:
            await waiter
        finally:
            timer.cancel()

    def _expire(self, waiter: "asyncio.Future[None]", timeout_ms: int) -> None:
        if not waiter.done():
            waiter.set_exception(
                CommitTimeoutError(
                    f"buffer {self._name} did not commit within {timeout_ms} ms; "
                    "the row is kept and may be committed later"
                )
            )

    @property
    def anyone(self) -> bool:
        """Whether somebody waits."""
        return any(not waiter.done() for waiters in self._waiting.values() for _, waiter in waiters)

    def refuse(self, generation: int, key: Hashable, error: str) -> None:
        """Says that the row was set aside; its waiters hear of it when the generation is resolved."""
        self._refusals.pop(key, None)
        self._refusals[key] = _Refusal(self._committed, generation, error)
        if len(self._refusals) > REFUSALS_KEPT:
            del self._refusals[next(iter(self._refusals))]

    def resolve(self, generation: int) -> None:
        """Releases everyone who waits for this generation or an earlier one."""
        self._committed = max(self._committed, generation)
        for number in [number for number in self._waiting if number <= generation]:
            for key, waiter in self._waiting.pop(number):
                if not waiter.done():
                    self._release(waiter, number, key)

    def _release(self, waiter: "asyncio.Future[None]", generation: int, key: Hashable) -> None:
        try:
            self._raise_refusal(generation, key)
        except RowRefusedError as error:
            waiter.set_exception(error)
        else:
            waiter.set_result(None)

    def _raise_refusal(self, generation: int, key: Hashable) -> None:
        refusal = self._refusals.get(key)
        if refusal is not None and refusal.committed < generation <= refusal.generation:
            raise RowRefusedError(f"SQLite refuses the row {key!r} of {self._name}: {refusal.error}")

    def close(self) -> None:
        """Tells everyone left that no commit will come."""
        self._closed = True
        for waiters in self._waiting.values():
            for _, waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(self._closed_error())
        self._waiting.clear()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"buffer {self._name} closed before it committed this row")
