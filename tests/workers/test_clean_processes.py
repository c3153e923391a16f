"""Cleaning where several processes share the data directory: one works, all of them know."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.memory_store import MemoryStore
from tests.support.served_node import PATIENCE_S, ServedNode, served_node
from undercroft.config import Settings
from undercroft.errors import ObjectStoreError
from undercroft.node import Node, running
from undercroft.storage.upload import Stored
from undercroft.workers import clean_project
from undercroft.workers.clean_project import CleanProject

from .clean_rig import PROJECT, CleanRig, drop, progress, until

KEY = "acc/proj/ccache/ab/cd/abcdef"
PATH = "/ccache/acc/proj/abcdef"
CLEAN = "/api/cache/clean?account_handle=acc&project_handle=proj"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[CleanRig]:
    rig = await CleanRig(tmp_path).open()
    yield rig
    await rig.close()


@pytest.fixture
def processes(rig: CleanRig, monkeypatch: pytest.MonkeyPatch) -> tuple[CleanProject, CleanProject]:
    """The one that has the turn, and another."""
    monkeypatch.setattr(clean_project, "FOLLOW_EVERY_S", 0.001)
    return rig.cleaner(rig.bucket), rig.cleaner(rig.bucket)


Processes = tuple[CleanProject, CleanProject]


async def test_a_request_is_known_everywhere_when_it_is_answered(processes: Processes) -> None:
    for asked, other in (processes, processes[::-1]):
        before = other.cleanings(KEY)
        await asked.request(*PROJECT)
        assert other.is_being_cleaned(KEY)
        assert other.cleanings(KEY) > before
        await processes[0].work()
        assert not asked.is_being_cleaned(KEY)
        assert not other.is_being_cleaned(KEY)
        # A whole job came and went.
        assert other.cleanings(KEY) > before


async def test_what_is_about_to_go_is_not_said_to_exist_by_another_process(
    rig: CleanRig, processes: Processes
) -> None:
    await rig.store(b"old", key=KEY)
    # The last one made is the one that this process's artifacts ask.
    await processes[0].request(*PROJECT)
    assert await rig.store(b"new", key=KEY) is Stored.REPLACED
    await processes[0].work()
    assert await rig.content(KEY) == b"new"


async def test_a_job_that_another_process_did_is_let_go(rig: CleanRig, processes: Processes) -> None:
    worker, asked = processes
    following = [asyncio.create_task(process.follow()) for process in processes]
    working = asyncio.create_task(worker.run())
    job = await asked.request(*PROJECT)
    await until(lambda: rig.execute("SELECT 1 FROM clean_jobs WHERE id = ? AND stage = 'done'", job.id))
    await until(lambda: asked.unfinished == 0)
    for task in (*following, working):
        await drop(task)


async def test_who_takes_over_goes_on_where_another_process_was(rig: CleanRig, processes: Processes) -> None:
    worker, asked = processes
    await rig.put_values("keyvalue:acc:proj:k")
    rig.bucket.put_now(KEY)
    rig.bucket.fail_on("delete", "", ObjectStoreError("not now"))
    await asked.request(*PROJECT)
    await worker.work()
    assert worker.unfinished == 1
    rig.bucket.heal()
    await asked.work()
    assert progress(asked.newest_job(*PROJECT)) == (1, 0, 0, 1)
    # The marker that was put first.
    assert rig.bucket.puts == ["acc/proj/.clean-1"]


async def test_a_newer_request_to_another_process_supersedes(rig: CleanRig, processes: Processes) -> None:
    worker, asked = processes
    rig.bucket.fail_on("put", "", ObjectStoreError("not now"))
    await worker.request(*PROJECT)
    await worker.work()
    rig.bucket.heal()
    job = await asked.request(*PROJECT)
    await worker.work()
    newest = worker.newest_job(*PROJECT)
    assert newest is not None
    assert (newest.id, newest.stage, worker.unfinished) == (job.id, "done", 0)


async def test_a_table_that_cannot_be_read_is_told_of_once(
    rig: CleanRig, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[None] = []
    worker = processes[0]
    really_behind = worker._is_behind

    def is_behind() -> bool:
        reads.append(None)
        return really_behind()

    monkeypatch.setattr(worker, "_is_behind", is_behind)
    with capture_logs() as logs, monkeypatch.context() as patched:
        patched.setattr("undercroft.workers.clean_jobs.UNFINISHED_IDS", "SELECT * FROM nothing")
        following = asyncio.create_task(worker.follow())
        await until(lambda: len(reads) > 3)
    await processes[1].request(*PROJECT)
    await until(lambda: worker.unfinished == 1)
    assert [entry["event"] for entry in logs].count("clean_jobs_not_read") == 1
    await rig.database.close()
    await following


# --- whole nodes -------------------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()
    monkeypatch.setattr(Node, "_object_store", lambda _node: store)
    return store


async def cleaned(served: ServedNode) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await served.client.get(CLEAN)).json()["state"] != "done":
            pass


async def test_no_process_serves_what_is_being_cleaned(store: MemoryStore, tmp_path: Path) -> None:
    store.keep(KEY, b"old", hashlib.sha256(b"old").hexdigest())
    async with served_node(tmp_path / "data") as a:
        other = Node(Settings(data_dir=tmp_path / "data", port=0))
        async with running(other):
            await until(lambda: not a.node.background.clean_project.unfinished)
            store.fail_on("delete", "", ObjectStoreError("not now"))
            assert (await a.client.delete(CLEAN)).status_code == 204
            assert (await a.client.get(f"{other.url}{PATH}")).status_code == 404
            store.heal()
            await cleaned(a)
            assert (await a.client.get(PATH)).status_code == 404
            # And the other way round: who took the request asks the store again once it is done.
            assert (await a.client.delete(f"{other.url}{CLEAN}")).status_code == 204
            await cleaned(a)
            store.keep(KEY, b"new", hashlib.sha256(b"new").hexdigest())
            other.read_through._misses.clear()
            assert (await a.client.get(f"{other.url}{PATH}")).content == b"new"
