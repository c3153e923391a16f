"""What each internal condition becomes for each client: section 8 of the contract."""

import errno
from typing import Any

import apsw
import pytest

from tests.support.disk_faults import fault
from tests.support.folders import files_under, temporary_files
from tests.support.locks import lock_of_another_connection
from tests.support.served_node import ServedNode
from undercroft.artifacts import CacheArtifacts
from undercroft.errors import BufferFullError, CommitTimeoutError, RowRefusedError
from undercroft.key_values import KeyValueStore
from undercroft.storage.capacity import Volume

from .conftest import OpenNode
from .dialects import CCACHE, DIALECTS, QUERY, TUIST_CAS, DialectCase, message_of

every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)

DATA = b"x" * 1_000
KEY_VALUE = {"cas_id": "k", "entries": [{"value": "v"}]}


async def put(served: ServedNode, dialect: DialectCase, data: bytes = DATA) -> tuple[int, dict[str, str]]:
    """Status and headers; an error has a JSON message."""
    answer = await served.client.request(dialect.method, dialect.path_for(data), content=data)
    if answer.status_code >= 300:
        assert message_of(answer.headers["content-type"], answer.content)
    return answer.status_code, dict(answer.headers)


def assert_accounts(served: ServedNode, used: int = 0) -> None:
    assert (served.node.capacity.used, served.node.capacity.reserved) == (used, 0)
    assert temporary_files(served.folder) == []


@every_dialect
async def test_absent(served: ServedNode, dialect: DialectCase) -> None:
    got = await served.client.get(dialect.path("0" * 64))
    assert got.status_code == 404
    assert got.json()["message"]


@every_dialect
@pytest.mark.parametrize("damage", [DATA[:-1], DATA[:-1] + b"y"], ids=["size", "bit"])
async def test_damaged_on_disk(served: ServedNode, dialect: DialectCase, damage: bytes) -> None:
    await put(served, dialect)
    (file,) = (path for path in (served.folder / "artifacts").rglob("*") if path.is_file())
    file.write_bytes(damage)
    for method in ("GET", "HEAD"):
        assert (await served.client.request(method, dialect.path_for(DATA))).status_code == 404
    assert len(files_under(served.folder / "quarantine")) == 1
    assert_accounts(served)
    status, _ = await put(served, dialect)
    assert status == dialect.created
    assert (await served.client.get(dialect.path_for(DATA))).content == DATA


@every_dialect
async def test_full_now_by_the_limit(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(disk={"limit_bytes": 1_500})
    # An upload in progress: nothing that eviction could take.
    with served.node.capacity.reserve(1_000):
        status, _ = await put(served, dialect)
        assert status == dialect.full_now
    assert_accounts(served, 0)
    assert (await served.client.get(dialect.path_for(DATA))).status_code == 404


@every_dialect
async def test_full_now_by_the_volume(served: ServedNode, dialect: DialectCase) -> None:
    served.node.capacity._volume = lambda: Volume(1_000_000, 999)
    status, _ = await put(served, dialect)
    assert status == dialect.full_now
    await served.assert_nothing_stored()


@every_dialect
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_full_now_by_the_file_system(served: ServedNode, dialect: DialectCase, number: int) -> None:
    with fault("write", number):
        status, _ = await put(served, dialect)
    assert status == dialect.full_now
    await served.assert_nothing_stored()


@every_dialect
async def test_too_large_ever(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(disk={"limit_bytes": 999})
    status, _ = await put(served, dialect)
    assert status == dialect.too_large
    await served.assert_nothing_stored()


@every_dialect
async def test_buffer_full(served: ServedNode, dialect: DialectCase, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> None:
        raise BufferFullError("full")

    monkeypatch.setattr(served.node.artifact_buffer, "wait_for_room", refuse)
    status, headers = await put(served, dialect)
    assert status == dialect.busy
    assert ("retry-after" in headers) == (dialect.busy == 503)
    monkeypatch.undo()
    await served.assert_nothing_stored()


@every_dialect
async def test_commit_timed_out(
    served: ServedNode, dialect: DialectCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(_ticket: Any) -> None:
        raise CommitTimeoutError("late")

    monkeypatch.setattr(served.node.artifact_buffer, "committed", late)
    status, headers = await put(served, dialect)
    assert status == dialect.busy
    assert ("retry-after" in headers) == (dialect.busy == 503)
    # The artifact is there; only the promise about its row could not be kept in time.
    assert (await served.client.get(dialect.path_for(DATA))).content == DATA
    assert_accounts(served, dialect.stored_size(DATA))


async def test_what_is_there_is_acknowledged_only_after_its_commit(open_node: OpenNode) -> None:
    served = await open_node(buffers={"commit_timeout_ms": 100, "retry_base_delay_ms": 1})
    with lock_of_another_connection(served.node.node_database.path) as lock:
        assert [(await put(served, TUIST_CAS))[0] for _ in range(2)] == [503, 503]
        lock.release()
    assert (await put(served, TUIST_CAS))[0] == 204


@every_dialect
async def test_row_the_database_refuses(
    served: ServedNode, dialect: DialectCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_ticket: Any) -> None:
        raise RowRefusedError("refused")

    monkeypatch.setattr(served.node.artifact_buffer, "committed", refuse)
    status, headers = await put(served, dialect)
    # Not 503: to try again would never help.
    assert status == {503: 400, 412: 413}.get(dialect.busy, dialect.busy)
    assert "retry-after" not in headers


@every_dialect
async def test_disk_error_while_writing(
    served: ServedNode, dialect: DialectCase, capsys: pytest.CaptureFixture[str]
) -> None:
    with fault("write", errno.EIO):
        status, _ = await put(served, dialect)
    assert status == dialect.busy
    assert "request_failed" in capsys.readouterr().out
    await served.assert_nothing_stored()


@every_dialect
@pytest.mark.parametrize("operation", ["pread", "preadv"])
async def test_disk_error_while_reading(served: ServedNode, dialect: DialectCase, operation: str) -> None:
    await put(served, dialect)
    if operation == "preadv":
        assert (await served.client.get(dialect.path_for(DATA))).status_code == 200  # verified
    with fault("preadv", errno.EIO), fault("pread", errno.EIO):
        got = await served.client.get(dialect.path_for(DATA))
    assert got.status_code == 404
    assert (await served.client.get(dialect.path_for(DATA))).content == DATA
    assert served.node.capacity.used == dialect.stored_size(DATA)


async def broken(*_args: object, **_kwargs: object) -> None:
    raise ZeroDivisionError("nobody foresaw this")


@every_dialect
async def test_unforeseen_error(
    served: ServedNode,
    dialect: DialectCase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("read", "store"):
        monkeypatch.setattr(CacheArtifacts, name, broken)
    got = await served.client.get(dialect.path("0" * 64))
    assert got.status_code == 404
    assert "nobody foresaw" not in got.text
    status, _ = await put(served, dialect)
    assert status == dialect.busy
    log = capsys.readouterr().out
    assert log.count("request_failed") == 2
    assert "ZeroDivisionError" in log


async def test_delete_that_fails_is_soft_for_ccache(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CacheArtifacts, "delete", broken)
    assert (await served.client.delete(CCACHE.path("k"))).status_code == 413


# --- key values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BufferFullError("full"), CommitTimeoutError("late"), ZeroDivisionError()])
async def test_key_value_that_could_not_be_written(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(KeyValueStore, "put", fail)
    answer = await served.client.put(f"/api/cache/keyvalue{QUERY}", json=KEY_VALUE)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["message"]


async def test_key_value_the_database_refuses(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise RowRefusedError("refused")

    monkeypatch.setattr(KeyValueStore, "put", refuse)
    answer = await served.client.put(f"/api/cache/keyvalue{QUERY}", json=KEY_VALUE)
    assert (answer.status_code, answer.json()) == (400, {"message": "refused"})


async def test_key_value_that_could_not_be_read(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise apsw.IOError("disk")

    monkeypatch.setattr(KeyValueStore, "get", fail)
    assert (await served.client.get(f"/api/cache/keyvalue/k{QUERY}")).status_code == 404


async def test_real_full_buffer_answers_503_and_recovers(open_node: OpenNode) -> None:
    buffers = {"max_pending_rows": 1, "enqueue_timeout_ms": 0, "flush_interval_ms": 3_600_000}
    served = await open_node(ack="buffered", buffers=buffers)
    path = f"/api/cache/keyvalue{QUERY}"
    assert (await served.client.put(path, json=KEY_VALUE)).status_code == 204
    assert (await served.client.put(path, json=KEY_VALUE | {"cas_id": "other"})).status_code == 503
    await served.node.key_values.flush()
    assert (await served.client.put(path, json=KEY_VALUE | {"cas_id": "other"})).status_code == 204


async def test_credentials_and_bodies_stay_out_of_the_log(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(KeyValueStore, "put", broken)
    headers = {"authorization": "Bearer secret-token"}
    await served.client.put(f"/api/cache/keyvalue{QUERY}", json=KEY_VALUE, headers=headers)
    captured = capfd.readouterr()
    assert "request_failed" in captured.out + captured.err
    assert "secret-token" not in captured.out + captured.err
