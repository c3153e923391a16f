"""Reconcile over real files and a real database, in a time of its own, with an object store by contract."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import apsw

from tests.support.artifact_rig import ArtifactRig
from tests.support.fake_cleaning import FakeCleaning
from undercroft.buffers.s3_transfers import TransferType
from undercroft.database import transaction
from undercroft.errors import ObjectStoreError
from undercroft.s3.object_store import RemoteBody, RemoteObject
from undercroft.settings_sections import ReconcileSection
from undercroft.storage.boot import boot_id
from undercroft.telemetry import events
from undercroft.workers.reconcile import Reconcile

FAST = 10**9


class FakeTime:
    """A clock that only sleeping moves, and what is to happen during a sleep."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """Awaited once, in the next sleep."""

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            await act()
        await asyncio.sleep(0)


class FakeStore:
    """Answers `head` from a dictionary; everything else fails the test."""

    def __init__(self) -> None:
        self.objects: dict[str, RemoteObject] = {}
        self.down = False
        self.hangs = False
        self.asked: list[str] = []

    def put_object(self, key: str, size: int, content_sha256: str | None) -> None:
        self.objects[key] = RemoteObject(key, size, content_sha256, 0)

    async def head(self, key: str) -> RemoteObject | None:
        self.asked.append(key)
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise ObjectStoreError("down")
        return self.objects.get(key)

    async def get(self, key: str, start: int = 0) -> RemoteBody | None:
        raise NotImplementedError

    async def put(self, key: str, file: BinaryIO, size: int, content_sha256: str | None) -> None:
        raise NotImplementedError

    async def delete(self, keys: Sequence[str]) -> None:
        raise NotImplementedError

    def list(self, prefix: str) -> AsyncIterator["list[RemoteObject]"]:
        raise NotImplementedError

    async def presigned_url(self, key: str, expires_s: int) -> str | None:
        raise NotImplementedError

    async def check(self) -> None:
        raise NotImplementedError


class ReconcileRig(ArtifactRig):
    """An artifact service, and the reconcile of it."""

    store_of_objects: FakeStore | None = None
    cleaning = FakeCleaning()

    def reconcile(self, time: FakeTime | None = None, **options: Any) -> Reconcile:
        """Another one, as after a restart. Nothing holds it up unless `options` say so."""
        time = time or FakeTime()
        paces: dict[str, Any] = {"files_per_second": FAST, "bytes_per_second": FAST, "pause_ms": 0}
        paces |= {name: options.pop(name) for name in paces if name in options}
        usual: dict[str, Any] = {"clock": time.clock, "sleep": time.sleep}
        return Reconcile(
            self.artifacts,
            self.disk,
            self.database,
            self.transfers,
            self.store_of_objects,
            telemetry=self.telemetry,
            cleaning=self.cleaning,
            settings=ReconcileSection(**paces),
            **usual | options,
        )

    async def round(self, *, flush: bool = True, **options: Any) -> dict[str, int]:
        """One whole round by a new reconcile over what is committed; what it found, by kind."""
        self.telemetry.forget()
        if flush:
            await self.artifacts.flush()
        await self.reconcile(**options).run_round()
        assert self.telemetry.count(events.RECONCILE_ROUND) == 1
        return self.found()

    def found(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for event in self.telemetry.of(events.RECONCILED):
            what = event.metadata["found"]
            counts[what] = counts.get(what, 0) + int(event.measurements["count"])
        return counts

    async def set_boot(self, name: str, first_started_at: int) -> None:
        await self.execute("INSERT OR REPLACE INTO boots VALUES (1, ?, ?)", name, first_started_at)

    async def of_this_boot(self) -> None:
        """What lies there now was written in this boot."""
        await self.set_boot(boot_id(), 0)

    async def power_loss(self) -> None:
        """What lies there now was written in an earlier boot."""
        await self.set_boot("an earlier boot", 0)

    async def execute(self, sql: str, *values: Any) -> None:
        def run(connection: apsw.Connection) -> None:
            with transaction(connection):
                connection.execute(sql, values)

        await self.database.write(run)

    def place(self, key: str, data: bytes) -> None:
        """A file without a row."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        self.path(key).write_bytes(data)

    async def queued(self) -> list[tuple[str, str]]:
        """Type and key of all transfers."""
        kinds: tuple[TransferType, ...] = ("upload", "download", "delete")
        return sorted(
            [(kind, row.key) for kind in kinds for row in await self.transfers.pending(kind, 1_000)]
        )


async def cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def make_old(path: os.PathLike[str]) -> None:
    """Puts the time of the last write far back; that of the last change of name is now."""
    os.utime(path, (1, 1))
