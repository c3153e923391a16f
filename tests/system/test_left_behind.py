"""What nodes of a released version have left undone or in pieces is done and found again by this one.

So it is with what nodes of this very version leave, which makes the next release's data directory possible.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from tests.system.data_dir import files_under, query
from tests.system.data_dirs.archives import settings, unpack
from tests.system.data_dirs.entries import Caller, artifact, artifact_key
from tests.system.data_dirs.fill import fill, stage
from tests.system.data_dirs.left import Left

TODAY = "today"
VERSIONS = ["0.3.0", TODAY]

ARTIFACTS = "SELECT key, size_bytes, content_sha256 FROM cache_artifacts"
KEY_VALUES = "SELECT key, json_payload FROM key_value_entries"
TOKENS = "SELECT * FROM tokens"
TRANSFERS = "SELECT id, type, key, attempts, parked_at IS NOT NULL, last_error FROM s3_transfers"

# What is to be there at once must not be mended by it a little later.
NO_RECONCILE = {"RECONCILE__FILES_PER_SECOND": "1"}

BYSTANDER = "acme/bystander/ccache/aa/00/aa00bystander"


class Opened(NamedTuple):
    """A node on what was left."""

    left: Left
    before: Path
    """The data directory as it was left."""
    now: Path
    objects: Path
    """The object store."""
    node: NodeProcess
    client: Client

    def caller(self, token: str) -> Caller:
        return Caller(self.client, self.left.tokens[token])


def rows(data_dir: Path, sql: str) -> set[tuple[Any, ...]]:
    database = "key_values.sqlite" if "key_value" in sql else "node.sqlite"
    return set(query(data_dir / database, sql))


@pytest.fixture(scope="module")
def leave(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Left]:
    """Puts what a version has left into a folder."""
    made_today = tmp_path_factory.mktemp(TODAY)

    def put(version: str, folder: Path) -> Left:
        if version != TODAY:
            return unpack(version, folder)
        if not (made_today / "left.json").exists():
            fill(made_today)
        shutil.copytree(made_today / "data", folder / "data")
        return Left.read(made_today)

    return put


@pytest.fixture(scope="module")
def before(
    leave: Callable[[str, Path], Left], version: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A data directory that nobody opens as it is: who reads one with SQLite empties its WAL."""
    folder = tmp_path_factory.mktemp("before")
    leave(version, folder)
    return folder / "data"


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[1, 2])
def opened(
    request: pytest.FixtureRequest,
    version: str,
    before: Path,
    leave: Callable[[str, Path], Left],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Opened]:
    """A node with one worker or two, and an object store that has what is to be cleaned and deleted."""
    folder = tmp_path_factory.mktemp("now")
    left, objects = leave(version, folder), folder / "objects"
    gone = [artifact_key("aa02gone", project) for project in left.cleaned]
    gone += map(key_of, left.deleted)
    for key in (*gone, artifact_key("aa09again"), BYSTANDER):
        (objects / key).parent.mkdir(parents=True, exist_ok=True)
        (objects / key).write_bytes(b"of the time before")
    store = {"OBJECT_STORE__URL": objects.as_uri()} | NO_RECONCILE
    workers = ("--workers", str(request.param))
    with (
        node_process(folder / "data", settings(left) | store, arguments=workers) as node,
        Client(node.url) as client,
    ):
        yield Opened(left, before, folder / "data", objects, node, client)
        assert node.stop() == 0
        assert node.logged("request_failed") == node.logged("worker_crashed") == []


# --- what was left, to begin with -----------------------------------------------------------------


def test_everything_was_left(before: Path, tmp_path: Path) -> None:
    """So that the tests below are about something."""
    names = {path.relative_to(before).as_posix() for path in files_under(before)}
    spills = {"key_values.spill", "cas_artifacts.spill", "s3_transfers.spill"}
    assert spills <= names
    assert sum(name.startswith("quarantine/") for name in names) == 1
    assert [path.stat().st_size for path in files_under(before / "temporary")] == [300_000]
    for database, sql, key in (
        ("key_values.sqlite", KEY_VALUES, "keyvalue:acme:app:in-wal"),
        ("node.sqlite", ARTIFACTS, artifact_key("aa08in-wal")),
    ):
        shutil.copy(before / database, tmp_path)
        assert key not in {row[0] for row in query(tmp_path / database, sql)}
        shutil.copy(before / f"{database}-wal", tmp_path)
        assert key in {row[0] for row in query(tmp_path / database, sql)}
    stages = query(tmp_path / "node.sqlite", "SELECT project_handle, stage FROM clean_jobs")
    assert set(stages) == {("later", "objects"), ("first", "key_values")}
    transfers = query(
        tmp_path / "node.sqlite", "SELECT type, parked_at IS NULL, attempts > 0 FROM s3_transfers"
    )
    assert {("upload", 1, 1), ("upload", 1, 0), ("delete", 1, 1), ("upload", 0, 1)} <= set(transfers)


# --- and what becomes of it -----------------------------------------------------------------------


def test_tokens_still_admit_to_the_same(opened: Opened) -> None:
    old, new = artifact("aa01old"), artifact("ff00new")
    main, reader = opened.caller("main"), opened.caller("reader")
    assert main.get(old.read) == reader.get(old.read) == old.body
    assert main.request(new.method, new.path, new.body).status in (200, 201)
    assert reader.request(new.method, new.path, new.body).status == 403
    for stranger, status in (("elsewhere", 403), ("revoked", 401)):
        assert opened.caller(stranger).request("GET", old.read).status == status
        assert opened.caller(stranger).request(new.method, new.path, new.body).status == status
    assert opened.caller("elsewhere").request("PUT", "/ccache/other/app/ff01own", b"own").status in (200, 201)
    assert opened.client.request("GET", old.read).status == 401  # without a token


def test_the_list_of_tokens_is_what_it_was(opened: Opened, tmp_path: Path) -> None:
    assert len(rows(opened.now, TOKENS)) == len(opened.left.tokens)
    assert rows(opened.now, TOKENS) == rows(copy_of(opened.before, tmp_path), TOKENS)


def test_what_was_committed_to_the_wal_is_there(opened: Opened) -> None:
    assert len(opened.left.in_wal) == 2
    check(opened.caller("main"), opened.left.in_wal)


def test_what_was_spilled_is_there(opened: Opened) -> None:
    assert len(opened.left.spilled) == 3
    check(opened.caller("main"), opened.left.spilled)
    assert list(opened.now.glob("*.spill*")) == list(opened.now.glob("*.refused.jsonl")) == []
    replayed = {record["buffer"]: record["rows"] for record in opened.node.logged("spill_replayed")}
    assert replayed == {"key_values": 1, "cas_artifacts": 4, "s3_transfers": 4}


def test_a_delete_that_was_spilled_is_done(opened: Opened) -> None:
    for path in opened.left.deleted:
        assert opened.caller("main").get(path) is None
        assert key_of(path) not in {key for key, *_ in rows(opened.now, ARTIFACTS)}


def test_a_scope_is_read_by_itself_only(opened: Opened) -> None:
    assert len(opened.left.scoped) == 2
    for scope, bodies in opened.left.scoped.items():
        check(opened.caller(scope), bodies)
        check(opened.caller(scope), {artifact("aa01old").read: artifact("aa01old").body.decode()})
        for token in {"main", "reader", *opened.left.scoped} - {scope}:
            assert [opened.caller(token).get(path) for path in bodies] == [None, None]


def test_projects_are_cleaned_to_the_end(opened: Opened) -> None:
    main = opened.caller("main")
    wait_until_clean(main, opened.left)
    for project in opened.left.cleaned:
        assert [main.get(path) for path in opened.left.cleaned[project]] == [None, None]
        assert list(files_under(opened.now / "artifacts" / "acme" / project)) == []
        assert list(files_under(opened.objects / "acme" / project)) == []
    # Who stores again after the request finds it again.
    again = artifact("aa02gone", "first")
    check(main, main.store([again]))


def test_transfers_are_made(opened: Opened) -> None:
    waiting = opened.left.uploads
    assert len(waiting) == 4
    eventually(lambda: not queued(opened.now) - {opened.left.parked}, "all but the parked transfer are made")
    for key in waiting:
        assert (opened.objects / key).read_bytes() == artifact(last(key)).body
    for path in opened.left.deleted:
        assert not (opened.objects / key_of(path)).exists()
    assert (opened.objects / BYSTANDER).read_bytes() == b"of the time before"


def test_what_is_parked_waits_for_a_person(opened: Opened) -> None:
    eventually(lambda: queued(opened.now) == {opened.left.parked}, "only the parked transfer is left")
    assert not (opened.objects / opened.left.parked).exists()
    command = [sys.executable, "-m", "undercroft", "transfers", "retry", "--data-dir", str(opened.now)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 parked transfer(s) will be tried again\n"
    # A running node looks every few seconds, or when there is something new.
    opened.caller("main").store([artifact("ff02new")])
    eventually(lambda: not queued(opened.now), "it is made")
    assert (opened.objects / opened.left.parked).read_bytes() == artifact("aa00parked").body


def test_parts_of_an_upload_that_was_not_completed_are_swept(opened: Opened) -> None:
    old = {path.parent.name for path in files_under(opened.before / "temporary")}
    assert len(old) == 1
    assert old.isdisjoint(path.name for path in (opened.now / "temporary").iterdir())
    main = opened.caller("main")
    assert main.part(opened.left.upload_id, b"more").status == 404
    check(main, main.store_module("unfinished.zip"))


def test_quarantine_is_kept_and_its_artifact_may_be_stored_again(opened: Opened) -> None:
    (old,) = files_under(opened.before / "quarantine")
    (now,) = files_under(opened.now / "quarantine")
    damaged = artifact("aa05damaged")
    assert (now.name, now.read_bytes()) == (old.name, damaged.body.swapcase())
    main = opened.caller("main")
    assert main.get(opened.left.damaged) is None
    check(main, main.store([damaged]))


def test_nothing_else_is_lost(opened: Opened, tmp_path: Path) -> None:
    before = copy_of(opened.before, tmp_path)
    main = opened.caller("main")
    wait_until_clean(main, opened.left)
    check(main, opened.left.readable)
    # Of `later` nothing was left but its objects.
    lost = {artifact_key("aa02gone", "first"), artifact_key("aa04deleted")}
    kept = {row for row in rows(before, ARTIFACTS) if row[0] not in lost}
    assert len(kept) >= 15
    assert kept <= rows(opened.now, ARTIFACTS)
    values = {row for row in rows(before, KEY_VALUES) if row[0] != "keyvalue:acme:first:gone"}
    assert len(values) >= 50
    assert values <= rows(opened.now, KEY_VALUES)
    for database in ("key_values.sqlite", "node.sqlite"):
        assert query(opened.now / database, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("workers", [1, 2])
def test_transfers_wait_as_long_as_there_is_no_object_store(
    version: str, workers: int, leave: Callable[[str, Path], Left], before: Path, tmp_path: Path
) -> None:
    left = leave(version, tmp_path)
    with (
        node_process(tmp_path / "data", settings(left), arguments=("--workers", str(workers))) as node,
        Client(node.url) as client,
    ):
        wait_until_clean(Caller(client, left.tokens["main"]), left)
        assert node.stop() == 0
    (tmp_path / "copy").mkdir()
    waited = rows(copy_of(before, tmp_path / "copy"), TRANSFERS)
    now = rows(tmp_path / "data", TRANSFERS)
    assert {row for row in waited - now if row[1:3] != ("delete", artifact_key("aa09again"))} == set()
    # With what was spilled, and without the delete that was overtaken by an upload.
    assert {(kind, key) for _, kind, key, *_ in now} == {
        *(("upload", key) for key in (*left.uploads, left.parked)),
        *(("delete", key_of(path)) for path in left.deleted),
    }


# --- looking --------------------------------------------------------------------------------------


def check(caller: Caller, bodies: dict[str, str]) -> None:
    for path, body in bodies.items():
        assert caller.get(path) == body.encode(), path


def wait_until_clean(caller: Caller, left: Left) -> None:
    eventually(lambda: {stage(caller, project) for project in left.cleaned} == {"done"}, "all is cleaned")


def queued(data_dir: Path) -> set[str]:
    return {key for _, _, key, *_ in rows(data_dir, TRANSFERS)}


def last(path: str) -> str:
    return path.rpartition("/")[2]


def key_of(path: str) -> str:
    return artifact_key(last(path))


def copy_of(data_dir: Path, folder: Path) -> Path:
    """The databases, which SQLite may do with what it does to a WAL."""
    for file in data_dir.glob("*.sqlite*"):
        shutil.copy(file, folder)
    return folder
