"""Telemetry that a test can count and wait for."""

import asyncio
from typing import NamedTuple

from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata

NAMES = sorted(value for name, value in vars(events).items() if name.isupper() and isinstance(value, str))


class Recorded(NamedTuple):
    measurements: Measurements
    metadata: Metadata


class RecordedEvents(Events):
    """Keeps every event."""

    def __init__(self) -> None:
        super().__init__()
        self._recorded: dict[str, list[Recorded]] = {name: [] for name in NAMES}
        self._news = asyncio.Event()

    def emit(self, name: str, measurements: Measurements, metadata: Metadata) -> None:
        self._recorded[name].append(Recorded(measurements, metadata))
        self._news.set()
        super().emit(name, measurements, metadata)

    def of(self, name: str) -> list[Recorded]:
        return list(self._recorded[name])

    def count(self, name: str) -> int:
        return len(self._recorded[name])

    def sum_of(self, name: str, measurement: str) -> float:
        return sum(recorded.measurements[measurement] for recorded in self._recorded[name])

    def forget(self) -> None:
        for recorded in self._recorded.values():
            recorded.clear()

    async def wait_for(self, name: str, count: int = 1) -> None:
        """Returns once `count` events of the name were emitted."""
        async with asyncio.timeout(20):
            while self.count(name) < count:
                self._news.clear()
                await self._news.wait()
