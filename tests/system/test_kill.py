"""SIGKILL and SIGTERM under load: nothing acknowledged is lost, nothing partial or foreign is served.

A plan says who writes what, and after how many answers it is killed; threads and disks add their own chance.
"""

import random
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.support.s3_endpoint import S3Endpoint
from tests.system.client import Client, eventually
from tests.system.data_dir import files_under, query, stored_artifacts, stored_values
from tests.system.kill_load import (
    ArtifactWriter,
    CleaningWriter,
    KeyValue,
    KeyValueWriter,
    Load,
    Writer,
    is_clean,
)
from tests.system.test_object_store import settings as bucket_settings
from undercroft.buffers import BufferSettings
from undercroft.settings_sections import HttpSection

WORKERS = 4

# Nothing is committed by the clock: what a stop finds is committed by its drain.
BUFFERED = {"ACK": "buffered", "BUFFERS__FLUSH_INTERVAL_MS": "600000"}

# What goes on while one worker is dead and replaced.
MORE = 150


def new_load(*, evicts: bool = False) -> Load:
    writers: list[Writer] = [KeyValueWriter(f"k{n}") for n in range(4)]
    writers += [ArtifactWriter(f"a{n}") for n in range(5)]
    return Load([*writers, CleaningWriter("c")], readers=2, evicts=evicts)


def answers_before(generator: random.Random) -> int:
    """Often while the first rows and files come into being, now and then when the WAL is long."""
    return int(10 ** generator.uniform(0.5, 3.0))


def start_of_an_empty_node(data_dir: Path, workers: int) -> float:
    """Seconds that a start takes here and now with nothing to take up."""
    empty = data_dir.with_name("empty")
    with node_process(empty, arguments=("--workers", str(workers))) as node:
        assert node.stop() == 0
    shutil.rmtree(empty)
    return node.ready_s


def note_start(node: NodeProcess, campaign: Campaign) -> None:
    """For `check_starts`."""
    campaign.took("started in", node.ready_s)
    campaign.checked("starts")


def check_starts(empty_s: float, campaign: Campaign) -> None:
    """A start after a kill does not wait for what is there to be looked through.

    A typical one: other work may hold up a single one by seconds. The ratio is for the machine, which may be
    busier than at the first start, and the two seconds are for the short form, which has few.
    """
    typical_s = campaign.typical("started in")
    assert typical_s <= 3 * empty_s + 2, f"{typical_s:.1f} s, and {empty_s:.1f} s with nothing there"


def test_kill(data_dir: Path, campaign: Campaign) -> None:
    load, empty_s = new_load(), start_of_an_empty_node(data_dir, 1)
    for number in campaign.rounds(short=6, long=100):
        with node_process(data_dir) as node:
            load.run(node.url, f"{campaign.seed} {number}", answers_before(campaign.random), node.kill)
            assert node.process.returncode == -signal.SIGKILL
            assert node.printed == []
        check_after_restart(data_dir, load, campaign, workers=1)
    check_starts(empty_s, campaign)
    shutil.rmtree(data_dir)


def processes_of(node: NodeProcess) -> list[psutil.Process]:
    """The parent, then its workers."""
    parent = psutil.Process(node.process.pid)
    return [parent, *parent.children()]


def kill_all(node: NodeProcess) -> None:
    """In any order: none is told to stop."""
    for process in processes_of(node)[::-1]:
        process.suspend()
    for process in processes_of(node):
        process.kill()


def kill_parent(node: NodeProcess) -> None:
    """Its workers end by themselves, in good order."""
    processes_of(node)[0].kill()


WAYS: tuple[Callable[[NodeProcess], None], ...] = (kill_all, kill_parent)


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_kill_while_it_evicts(
    data_dir: Path, campaign: Campaign, s3_endpoint: S3Endpoint, workers: int
) -> None:
    """What was evicted may be gone, or come from the bucket: never older than what was acknowledged."""
    load, more = new_load(evicts=True), ("--workers", str(workers))
    environment = bucket_settings(s3_endpoint, DISK__LIMIT_BYTES="10MB")
    empty_s = start_of_an_empty_node(data_dir, workers)
    for number in campaign.rounds(short=1, long=50):
        with node_process(data_dir, environment, arguments=more) as node:
            family, acknowledgements = processes_of(node), campaign.random.randrange(200, 1_000)
            plan = f"{campaign.seed} {number}"
            load.run(node.url, plan, acknowledgements, partial(kill_all, node))
            assert psutil.wait_procs(family[1:], timeout=60)[1] == []
            campaign.checked("evictions", evicted(node))
        with node_process(data_dir, environment, arguments=more) as node:
            note_start(node, campaign)
            check(node, load, campaign)
            assert node.stop() == 0
            campaign.checked("evictions after a kill", evicted(node))
        check_clean(data_dir)
    check_starts(empty_s, campaign)
    shutil.rmtree(data_dir)


def test_kill_of_several_workers(data_dir: Path, campaign: Campaign) -> None:
    load, empty_s = new_load(), start_of_an_empty_node(data_dir, WORKERS)
    for number in campaign.rounds(short=3, long=100):
        with node_process(data_dir, arguments=("--workers", str(WORKERS))) as node:
            family, way = processes_of(node), WAYS[number % len(WAYS)]
            plan = f"{campaign.seed} {number}"
            load.run(node.url, plan, answers_before(campaign.random), partial(way, node))
            assert psutil.wait_procs(family[1:], timeout=60)[1] == []
        check_after_restart(data_dir, load, campaign, workers=WORKERS)
        campaign.checked(f"times {way.__name__.replace('_', ' ')}")
    check_starts(empty_s, campaign)
    shutil.rmtree(data_dir)


def test_kill_of_one_worker(data_dir: Path, campaign: Campaign) -> None:
    """The others go on, it is replaced, and all of them serve what it had acknowledged."""
    load = new_load()
    with node_process(data_dir, arguments=("--workers", str(WORKERS))) as node:
        for number in campaign.rounds(short=2, long=100):
            victim = campaign.random.choice(processes_of(node)[1:])
            plan = f"{campaign.seed} {number}"
            load.run(node.url, plan, answers_before(campaign.random), victim.kill, more=MORE)
            node.wait_for("worker_serves")
            check(node, load, campaign)
        assert node.stop() == 0
    check_clean(data_dir)


def check_stop(node: NodeProcess, campaign: Campaign, settings: Mapping[str, str] | None = None) -> None:
    """A node that was told to stop ends with 0, in the time its settings promise from the signal on."""
    grace = (settings or {}).get("HTTP__STOP_GRACE_MS")
    grace_ms = HttpSection().stop_grace_ms if grace is None else int(grace)
    promised_s = (grace_ms + BufferSettings().shutdown_ms) / 1_000
    assert node.wait(promised_s) == 0
    campaign.took("stopped in", node.stop_s)
    assert node.stop_s <= promised_s


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_stop(data_dir: Path, campaign: Campaign, workers: int) -> None:
    """SIGTERM: everything that was answered is committed, the status is 0, and nothing is left behind."""
    load = new_load()
    for number in campaign.rounds(short=2, long=50):
        with node_process(data_dir, arguments=("--workers", str(workers))) as node:
            plan = f"{campaign.seed} {number}"
            load.run(node.url, plan, answers_before(campaign.random), partial(node.signal, signal.SIGTERM))
            check_stop(node, campaign)
            assert node.logged("request_failed") == node.logged("drain_failed") == []
        check_after_stop(data_dir, load, campaign)
    shutil.rmtree(data_dir)


def test_stop_with_buffers_that_are_full_of_what_was_answered(data_dir: Path, campaign: Campaign) -> None:
    """The same with acknowledgements before the commit: it is the drain that keeps them."""
    load, drained, before = new_load(), 0, set[str]()

    def tell(node: NodeProcess) -> None:
        before.update(committed_rows(data_dir))
        node.signal(signal.SIGTERM)

    for number in campaign.rounds(short=3, long=50):
        with node_process(data_dir, BUFFERED) as node:
            load.run(
                node.url, f"{campaign.seed} {number}", answers_before(campaign.random), partial(tell, node)
            )
            check_stop(node, campaign)
            assert node.logged("request_failed") == node.logged("drain_failed") == []
        drained += len(committed_rows(data_dir) - before)
        check_after_stop(data_dir, load, campaign)
    assert drained > 0
    campaign.checked("rows that the stop committed", drained)
    shutil.rmtree(data_dir)


def committed_rows(data_dir: Path) -> set[str]:
    return {*stored_values(data_dir), *stored_artifacts(data_dir)}


def check_after_stop(data_dir: Path, load: Load, campaign: Campaign) -> None:
    """All that was answered is there after the next start, and nothing else."""
    check_clean(data_dir)
    with node_process(data_dir) as node:
        check(node, load, campaign)
        assert node.stop() == 0


def evicted(node: NodeProcess) -> int:
    """Artifacts of all passes that came to an end."""
    return sum(record["artifacts"] for record in node.logged("disk_evicted"))


def check_after_restart(data_dir: Path, load: Load, campaign: Campaign, *, workers: int) -> None:
    """A new node knows everything, and cleans up after the dead one."""
    left = set((data_dir / "temporary").iterdir())
    with node_process(data_dir, arguments=("--workers", str(workers))) as node:
        note_start(node, campaign)
        mine = set((data_dir / "temporary").iterdir())
        # The parent of several has one, too.
        assert len([one for one in mine if not one.name.startswith("parent-")]) == workers
        assert not mine & left
        check(node, load, campaign)
        assert node.stop() == 0
    check_clean(data_dir)
    check_rows(data_dir)


def check_clean(data_dir: Path) -> None:
    """After a stop in good order: sound databases, and nothing temporary."""
    for name in ("key_values", "node"):
        assert query(data_dir / f"{name}.sqlite", "PRAGMA integrity_check") == [("ok",)]
    assert list((data_dir / "temporary").iterdir()) == []
    assert list(data_dir.glob("*.spill")) == list(data_dir.glob("*-wal")) == []


def check(node: NodeProcess, load: Load, campaign: Campaign) -> None:
    """Reads everything twice, and takes over what became of the writes that were cut off."""
    with Client(node.url) as client:
        eventually(lambda: is_clean(client), "the project is clean")
        for writer in load.writers:
            gone = writer.cleaned if isinstance(writer, CleaningWriter) else frozenset()
            for entry, known in writer.known.items():
                found = entry.get(client)
                may_go = load.evicts and not isinstance(entry, KeyValue)
                assert found in known.allowed() or (may_go and found is None), f"{entry}: {describe(found)}"
                assert found is None or entry not in gone, f"{entry} was to go"
                again = entry.get(client)
                # Reconcile may have adopted the whole file of a write that was never answered.
                assert again == found or (found is None and again in known.allowed())
                known.settle(again)
                campaign.checked("key values" if isinstance(entry, KeyValue) else "artifacts")


def describe(found: bytes | None) -> str:
    return "not there" if found is None else f"{len(found)} bytes, {found[:32].hex()}"


def check_rows(data_dir: Path) -> None:
    """No row contradicts its file: what was mended while it was read is committed by now."""
    artifacts = data_dir / "artifacts"
    sizes = {str(path.relative_to(artifacts)): path.stat().st_size for path in files_under(artifacts)}
    for key, (size, _) in stored_artifacts(data_dir).items():
        assert key not in sizes or sizes[key] == size
