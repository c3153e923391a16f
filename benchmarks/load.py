"""What the measurements feed to the databases, and the other work they must share the event loop with."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from typing import NamedTuple

# Passes over REQUEST in one unit of foreign work: about 200 microseconds on a processor of 2024.
PASSES_PER_UNIT = 36

REQUEST = json.dumps({"key": "5f" * 32, "size": 1_234, "digest": "a7" * 32, "tags": {"os": "linux"}})


class Row(NamedTuple):
    """A key value entry as a build tool sends it: key of 82 characters, payload of about 200 bytes."""

    key: str
    json_payload: str


def make_rows(count: int) -> list[Row]:
    """`count` rows with distinct keys; the same rows each time, in no order an index would like."""
    return [_row(hashlib.sha256(str(number).encode()).hexdigest()) for number in range(count)]


def _row(digest: str) -> Row:
    entries = [{"value": digest}, {"value": digest[::-1]}]
    payload = {"entries": entries, "size": int(digest[:7], 16), "os": "linux"}
    return Row(f"keyvalue:acme:app:{digest}", json.dumps(payload))


def work_unit() -> None:
    """One unit of what request handlers do: decode, build and encode small objects, GIL held throughout."""
    for _ in range(PASSES_PER_UNIT):
        json.dumps(json.loads(REQUEST))


def unit_us() -> float:
    """Microseconds one unit takes on an otherwise idle process, the best of 200."""
    clock = time.perf_counter
    best = float("inf")
    for _ in range(200):
        started = clock()
        work_unit()
        best = min(best, clock() - started)
    return best * 1e6


class ForeignWork:
    """Keeps the event loop saturated with units of work by so many handlers, each giving way after one.

    In every turn of the loop all handlers run before it looks for anything else, as the handlers of
    so many busy connections do. `units` counts those done: a writer that starves the loop is found
    out by it.
    """

    def __init__(self, handlers: int, unit: Callable[[], None] = work_unit) -> None:
        self.units = 0
        self._handlers = handlers
        self._unit = unit

    async def run(self) -> None:
        """Works until it is cancelled."""
        await asyncio.gather(*(self._handle() for _ in range(self._handlers)))

    async def _handle(self) -> None:
        while True:
            self._unit()
            self.units += 1
            await asyncio.sleep(0)
