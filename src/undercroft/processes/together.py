"""What a worker does together with its siblings: the part of the node that there is with several only."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from undercroft.buffers import SQLiteBuffer
from undercroft.processes.frames import Kind
from undercroft.processes.place import Place
from undercroft.processes.siblings import Siblings
from undercroft.processes.worker_application import WorkerApplication
from undercroft.storage.books import SharedBooks
from undercroft.storage.ledger import Entry
from undercroft.telemetry.life_metrics import Figures
from undercroft.telemetry.prometheus import Prometheus
from undercroft.telemetry.status import Status, together
from undercroft.telemetry.summed import LastWords, Report, decoded, encoded, merged, rendered, report_of


class Together:
    """Uploads in parts by way of one of them, and metrics of all. `open` it, then `close` it."""

    def __init__(
        self,
        place: Place,
        application: WorkerApplication,
        prometheus: Prometheus,
        refresh: Callable[[], Awaitable[None]],
        own_status: Callable[[], Awaitable[Status]],
    ) -> None:
        """`refresh` brings those figures up to date that are not asked for at each scrape."""
        self._place = place
        self._prometheus = prometheus
        self._refresh = refresh
        self._own_status = own_status
        figures = {Kind.METRICS: self._own_metrics, Kind.STATUS: self._encoded_status}
        self._siblings = Siblings(place, application.answer_here, figures)
        application.siblings = self._siblings
        self._last_words = LastWords(Path(f"/proc/self/fd/{place.directory}"))
        self._inherited: Report = []

    async def open(self) -> None:
        """From now on siblings are answered. Raises OSError."""
        self._inherited = self._last_words.read(self._place.number)
        await self._siblings.open()

    async def close(self, grace_ms: int) -> None:
        """After the server that clients speak to. Idempotent."""
        await self._siblings.close(grace_ms)

    # --- what the node says of itself -------------------------------------------------------------

    def missing(self) -> str | None:
        """Which siblings are not there, in words; None if all are."""
        numbers = self._siblings.missing()
        return f"worker {', '.join(map(str, numbers))} not there" if numbers else None

    async def _own(self) -> Report:
        """What was counted in this place, by this process and those before it."""
        await self._refresh()
        report = merged(report_of(self._prometheus.registry), [self._inherited])
        await self._last_words.write(self._place.number, report)
        return report

    async def _own_metrics(self) -> bytes:
        return encoded(await self._own())

    async def _of(self, worker: int) -> Report:
        answer = await self._siblings.ask(worker, Kind.METRICS)
        return self._last_words.read(worker) if answer is None else decoded(answer)

    @property
    def _others(self) -> list[int]:
        return [number for number in range(self._place.count) if number != self._place.number]

    async def render(self) -> tuple[bytes, str]:
        """The series of all of them, and their content type."""
        own, *rest = await asyncio.gather(self._own(), *(self._of(number) for number in self._others))
        return rendered(merged(own, rest))

    async def _encoded_status(self) -> bytes:
        return msgspec.json.encode(await self._own_status())

    async def status(self) -> Status:
        """The status of all of them that answer, as one."""
        answers = await asyncio.gather(*(self._siblings.ask(one, Kind.STATUS) for one in self._others))
        rest = [msgspec.json.decode(one, type=Status) for one in answers if one is not None]
        return together([await self._own_status(), *rest])


def shared_books(place: Place | None, buffer: SQLiteBuffer[Any, Any]) -> SharedBooks | None:
    """What several processes take together, `buffer` being that of artifacts; None where one is alone."""
    if place is None:
        return None
    books = SharedBooks(place.ledger, place.number, buffer.newest_generation)
    buffer.on_committed = books.on_committed
    return books


def worker_figures(place: Place | None) -> Figures:
    """How many processes serve, and how many have been started; one that is alone is one."""
    ledger = None if place is None else place.ledger
    return {
        "undercroft_workers_serving": (
            "Worker processes that serve",
            lambda: 1 if ledger is None else ledger.total(Entry.SERVES),
        ),
        "undercroft_worker_starts": (
            "Worker processes started since the node was, replacements of dead ones among them",
            lambda: 1 if ledger is None else ledger.total(Entry.STARTS),
        ),
    }
