"""SIGTERM while the node evicts, cleans, fetches or puts together: nothing is lost, nothing left behind.

A plan says after how many answers, and how far the work has come, it is told to stop; the rest is chance.
"""

import http.client
import random
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.api.dialects import BAZEL_CAS, CCACHE, GRADLE, TUIST_CAS, WEBDAV
from tests.support.campaign import Campaign
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.folders import artifact_files, temporary_files
from tests.support.node_process import NodeProcess, node_process
from tests.support.s3_endpoint import S3Endpoint
from tests.system.client import Answer, Client, eventually
from tests.system.data_dir import query, stored_artifacts
from tests.system.kill_load import ArtifactWriter, CleaningWriter, Entry, KeyValue, KeyValueWriter, Load
from tests.system.stored_bytes import Stored, content_of
from tests.system.test_kill import WORKERS, check, check_clean, check_stop
from tests.system.test_object_store import settings as bucket_settings
from tests.system.test_store_storm import transfers_left
from tests.system.test_workers import Module
from undercroft.workers.disk_eviction import CHUNK

Settings = Mapping[str, str]

# So long that requests in progress are finished on a machine that does other work as well, and so short
# that none is.
GRACES_MS = ("10000", "1")


def small_load() -> Load:
    """What goes on beside the work."""
    return Load([KeyValueWriter("k"), ArtifactWriter("a0"), ArtifactWriter("a1")], readers=1)


def stop(
    data_dir: Path,
    campaign: Campaign,
    load: Load,
    work: Callable[[NodeProcess], "Work"],
    *,
    workers: int,
    settings: Settings | None = None,
) -> NodeProcess:
    """Tells a node under load to stop in the middle of the work; answers the node, which has ended."""
    with node_process(data_dir, settings, arguments=("--workers", str(workers))) as node:
        in_the_middle = work(node)
        plan, answers = f"{campaign.seed} {campaign.random.random()}", campaign.random.randrange(20, 200)
        try:
            tell = partial(node.signal, signal.SIGTERM)
            load.run(node.url, plan, answers, tell, ready=in_the_middle.is_under_way)
            check_stop(node, campaign, settings)
        finally:
            in_the_middle.end()
        assert node.printed == [], "\n".join(node.printed)
        assert [record for record in node.log if "exception" in record] == []
        failed = node.logged("request_failed")
        assert failed == node.logged("rows_spilled") == [], failed
    check_clean(data_dir)
    # What has a name has a row: nothing is left for reconcile to take in.
    assert set(artifact_files(data_dir)) <= set(stored_artifacts(data_dir))
    return node


class Work:
    """What the node does when it is told to stop."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node
        self._client = Client(node.url)

    def is_under_way(self) -> bool:
        """Whether it is in the middle of it. Asked again and again until it is; the first time begins it."""
        raise NotImplementedError

    def end(self) -> None:
        """The node has ended."""
        self._client.connection.close()


class Asking(threading.Thread):
    """One request whose answer the stop may cut off; then there is none."""

    def __init__(self, url: str, send: Callable[[Client], Answer]) -> None:
        super().__init__()
        self._url = url
        self._send = send
        self.answer: Answer | None = None
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with Client(self._url) as client:
                self.answer = self._send(client)
        except (OSError, http.client.HTTPException):
            pass  # no answer, which is judged by whoever joins
        except BaseException as error:  # noqa: BLE001  # for the main thread to raise
            self.failure = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.failure is not None:
            raise self.failure


# --- eviction -------------------------------------------------------------------------------------


class Evicting(Work):
    """Uploads are larger than the room there is."""

    def __init__(self, node: NodeProcess) -> None:
        super().__init__(node)
        self._evicted: float | None = None

    def is_under_way(self) -> bool:
        before, self._evicted = self._evicted, self._client.metric("undercroft_disk_evicted_artifacts_total")
        return before is not None and self._evicted > before


def evicted(node: NodeProcess) -> int:
    return sum(record["artifacts"] for record in node.logged("disk_evicted"))


def was_evicting(node: NodeProcess) -> bool:
    """Whether a pass ended after the node was told to stop."""
    events = [record["event"] for record in node.log]
    return "disk_evicted" in events[events.index("stopping") :]


def rows_without_file(data_dir: Path) -> set[str]:
    """What a stop between the two would leave, until somebody looks."""
    return set(stored_artifacts(data_dir)) - set(artifact_files(data_dir))


def kept_artifacts(load: Load) -> set[Entry]:
    """What was acknowledged, and nobody asked to go."""
    return {
        entry
        for writer in load.writers
        for entry, known in writer.known.items()
        if known.acknowledged is not None and not known.deleted and not isinstance(entry, KeyValue)
    }


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_stop_while_it_evicts(data_dir: Path, campaign: Campaign, workers: int) -> None:
    """What is missing made room: there is no more of it than the log says, or was in work at the stop."""
    writers = [KeyValueWriter("k"), *(ArtifactWriter(f"a{number}") for number in range(4))]
    load, arguments = Load(writers, readers=1, evicts=True), ("--workers", str(workers))
    limits = {"DISK__LIMIT_BYTES": "16MB"}
    for _ in campaign.rounds(short=1, long=30):
        node = stop(data_dir, campaign, load, Evicting, workers=workers, settings=limits)
        kept = kept_artifacts(load)
        assert rows_without_file(data_dir) == set()
        # What a stop finds in work goes, without being told of: so many at once, in each process.
        in_work = CHUNK * workers
        with node_process(data_dir, limits, arguments=arguments) as again:
            check(again, load, campaign)
            assert again.stop() == 0
        check_clean(data_dir)
        missing = len(kept - kept_artifacts(load))
        assert missing <= evicted(node) + evicted(again) + 2 * in_work
        campaign.checked("evictions", evicted(node))
        campaign.checked("stops in the middle of an eviction", was_evicting(node))
    shutil.rmtree(data_dir)


# --- cleaning -------------------------------------------------------------------------------------

# Their removal takes longer than a look at how far it is.
TO_CLEAN = 300


class Cleaning(Work):
    """Removes a project: told to stop when only so many of its artifacts are left."""

    def __init__(self, node: NodeProcess, campaign: Campaign, writer: CleaningWriter) -> None:
        super().__init__(node)
        self._writer = writer
        self._folder = node.data_dir / "artifacts" / "acme" / "cleaned"
        self._until = 0
        for _ in range(TO_CLEAN):
            writer.write(self._client, campaign.random)
        self._share = campaign.random.uniform(0.3, 1.0)

    def is_under_way(self) -> bool:
        if not self._until:
            self._until = int(self._left() * self._share)
            self._writer.clean(self._client)
        return self._left() <= self._until

    def _left(self) -> int:
        return sum(1 for path in self._folder.rglob("*") if path.is_file())


def unfinished_jobs(data_dir: Path) -> int:
    return len(query(data_dir / "node.sqlite", "SELECT id FROM clean_jobs WHERE stage <> 'done'"))


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_stop_while_a_project_is_cleaned(data_dir: Path, campaign: Campaign, workers: int) -> None:
    """The next start goes on with it, to its end; no other project has lost anything."""
    load, writer, arguments = small_load(), CleaningWriter("c"), ("--workers", str(workers))
    # Only checked: it writes before the others do.
    load.writers.append(writer)
    broken_off = 0
    for _ in campaign.rounds(short=1, long=30):
        stop(data_dir, campaign, load, lambda node: Cleaning(node, campaign, writer), workers=workers)
        broken_off += unfinished_jobs(data_dir)
        with node_process(data_dir, arguments=arguments) as node:
            check(node, load, campaign)
            assert node.stop() == 0
        check_clean(data_dir)
        assert unfinished_jobs(data_dir) == 0
    assert broken_off > 0
    campaign.checked("cleanings broken off, and ended by the next start", broken_off)
    shutil.rmtree(data_dir)


# --- hydration ------------------------------------------------------------------------------------

IN_BUCKET = (GRADLE, CCACHE, WEBDAV, TUIST_CAS, BAZEL_CAS)

# What comes whole before it is sent, and what is sent while it comes.
SIZES = (300_000, 2_000_000)

SLOW = (
    Fault("stall", only="GET "),
    Fault("stall", after=100_000, only="GET "),
    Fault(bytes_per_s=300_000, only="GET "),
    Fault(bytes_per_s=3_000_000, only="GET "),
)


class Fetching(Work):
    """Reads what only a bucket has, which is slow or says nothing more."""

    def __init__(self, node: NodeProcess, stored: Stored) -> None:
        super().__init__(node)
        self._stored = stored
        self.asked: dict[str, Asking] = {}

    def is_under_way(self) -> bool:
        if not self.asked:
            self.asked = {
                path: Asking(self._node.url, lambda client, path=path: client.request("GET", path))  # type: ignore[misc]
                for path in self._stored.artifacts
            }
        return self._client.metric("undercroft_hydrations_in_flight") >= 2

    def end(self) -> None:
        super().end()
        for path, asking in self.asked.items():
            asking.join()
            answer, (_, content) = asking.answer, self._stored.artifacts[path]
            assert answer is None or answer.status == 404 or answer.body == content, f"wrong bytes: {path}"


class Bucket:
    """What was stored, uploaded, and is not on the disk any more."""

    def __init__(self, data_dir: Path, proxy: FaultProxy, settings: Settings) -> None:
        self.stored = Stored()
        self._data_dir = data_dir
        self._proxy = proxy
        with node_process(data_dir, settings) as node, Client(node.url) as client:
            for number, dialect in enumerate(IN_BUCKET):
                for size in SIZES:
                    assert self.stored.put(client, dialect, f"in bucket {number} {size}", size)
            eventually(lambda: transfers_left(data_dir) == 0, "all is in the bucket", 60)
            assert node.stop() == 0

    def on_disk(self) -> dict[str, bytes]:
        """What is on disk under the names of what is in the bucket."""
        ids = {path.split("?")[0].rsplit("/", 1)[1] for path in self.stored.artifacts}
        files = (self._data_dir / "artifacts" / name for name in artifact_files(self._data_dir))
        return {str(file): file.read_bytes() for file in files if file.name in ids}

    def lose(self) -> None:
        """From now on only the bucket has it."""
        for name in self.on_disk():
            Path(name).unlink()

    def is_whole(self) -> int:
        """How many of them are on disk. Whatever is there must be whole, before anybody heals it."""
        contents = {content for _, content in self.stored.artifacts.values()}
        found = self.on_disk()
        assert set(found.values()) <= contents
        return len(found)


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_stop_while_artifacts_are_fetched(
    data_dir: Path, campaign: Campaign, s3_endpoint: S3Endpoint, workers: int
) -> None:
    """A fetch is over or nothing of it is left, and none is lost: the next start fetches it again."""
    load, arguments = small_load(), ("--workers", str(workers))
    with FaultProxy(s3_endpoint.port) as proxy:
        settings = bucket_settings(s3_endpoint, proxy.url)
        bucket = Bucket(data_dir, proxy, settings)
        for _ in campaign.rounds(short=1, long=30):
            bucket.lose()
            draws = random.Random(campaign.random.random())
            proxy.choose(lambda _line, draws=draws: draws.choice(SLOW))  # type: ignore[misc]
            grace = {"HTTP__STOP_GRACE_MS": campaign.random.choice(("1", "500"))}
            fetching = partial(Fetching, stored=bucket.stored)
            stop(data_dir, campaign, load, fetching, workers=workers, settings=settings | grace)
            campaign.checked("fetches that were over", bucket.is_whole())
            proxy.set(Fault())
            with node_process(data_dir, settings, arguments=arguments) as node, Client(node.url) as client:
                check(node, load, campaign)
                bucket.stored.check_all(client)
                assert bucket.stored.missing == set()
                assert node.stop() == 0
            check_clean(data_dir)
            campaign.checked("artifacts fetched after it", len(bucket.stored.artifacts))
    shutil.rmtree(data_dir)


# --- uploads in parts -----------------------------------------------------------------------------

UPLOADS = 3
# So many that to put them together takes longer than to see how far it is.
PARTS = 60
PART_BYTES = 100_000


class Completing(Work):
    """Puts parts together: told to stop when so many files of parts are gone."""

    def __init__(self, node: NodeProcess, campaign: Campaign, names: list[str]) -> None:
        super().__init__(node)
        self.modules = [Module(node, name, content_of(name, PARTS * PART_BYTES)) for name in names]
        self._uploads = [self._begun(module) for module in self.modules]
        self.asked: list[Asking] = []
        self._until = UPLOADS * PARTS - campaign.random.randrange(5, UPLOADS * PARTS // 2)

    @staticmethod
    def _begun(module: Module) -> str:
        upload = module.start()
        for number in range(PARTS):
            part = module.data[number * PART_BYTES : (number + 1) * PART_BYTES]
            assert module.part(upload, number + 1, part).status == 204
        return upload

    def is_under_way(self) -> bool:
        if not self.asked:
            self.asked = [
                Asking(self._node.url, lambda _, module=module, upload=upload: module.complete(upload, PARTS))  # type: ignore[misc]
                for module, upload in zip(self.modules, self._uploads, strict=True)
            ]
        return len(temporary_files(self._node.data_dir)) <= self._until

    def end(self) -> None:
        super().end()
        for asking in self.asked:
            asking.join()


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_stop_while_uploads_are_completed(data_dir: Path, campaign: Campaign, workers: int) -> None:
    """What was answered is there. With time enough all are, without it each is whole or not there."""
    load, arguments = small_load(), ("--workers", str(workers))
    for number in campaign.rounds(short=1, long=30):
        grace = campaign.random.choice(GRACES_MS)
        works: list[Completing] = []

        def completing(node: NodeProcess, number: int = number, works: list[Completing] = works) -> Work:
            works.append(Completing(node, campaign, [f"in-parts-{number}-{n}" for n in range(UPLOADS)]))
            return works[0]

        stop(data_dir, campaign, load, completing, workers=workers, settings={"HTTP__STOP_GRACE_MS": grace})
        statuses = [asking.answer and asking.answer.status for asking in works[0].asked]
        assert statuses == [204] * UPLOADS or grace == GRACES_MS[1]
        assert {*statuses} <= {204, 503, None}  # 503: the worker that has the parts ended first
        stored = [status == 204 for status in statuses]
        with node_process(data_dir, arguments=arguments) as node:
            check(node, load, campaign)
            for module, must_be_there in zip(works[0].modules, stored, strict=True):
                module.node = node
                found = module.get()
                assert found == module.data or (found is None and not must_be_there)
            assert node.stop() == 0
        check_clean(data_dir)
        campaign.checked("uploads completed", sum(stored))
        campaign.checked("uploads cut off", UPLOADS - sum(stored))
    shutil.rmtree(data_dir)
