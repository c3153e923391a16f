"""The rules of the table of artifacts."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from undercroft.buffers.bufferable import BATCH_BYTES
from undercroft.buffers.cache_artifacts import (
    ACCESSES,
    DELETES,
    ArtifactAccess,
    ArtifactDelete,
    ArtifactEvent,
    CacheArtifactsBuffer,
    CacheArtifactsState,
)

from .drivers import CacheArtifacts
from .rig import Rig

TABLE = CacheArtifactsBuffer()
DIGEST, OTHER_DIGEST = "d" * 64, "e" * 64


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(CacheArtifacts(), tmp_path).open()
    yield rig
    await rig.crash()


def state_after(*events: ArtifactEvent) -> CacheArtifactsState:
    state = TABLE.init_state()
    for event in events:
        TABLE.handle_event(state, event)
    return state


def store(size: int, at: int, digest: str | None = None) -> ArtifactAccess:
    return ArtifactAccess("k", size, at, digest, stored=True)


def access(size: int, at: int) -> ArtifactAccess:
    return ArtifactAccess("k", size, at)


def stored_at(at: int) -> ArtifactAccess:
    return msgspec.structs.replace(store(1, at, DIGEST), stored_at=at)


def gone(at: int) -> ArtifactDelete:
    return ArtifactDelete("k", at)


GONE = ArtifactDelete("k")


def row(rig: Rig, key: str = "k") -> dict[str, Any] | None:
    names = ("id", "size_bytes", "content_sha256", "last_accessed_at", "inserted_at", "updated_at")
    found = rig.database.find(f"SELECT {', '.join(names)} FROM cache_artifacts WHERE key = ?", key)
    return None if found is None else dict(zip(names, found, strict=True))


async def flushed(rig: Rig, *events: ArtifactEvent) -> dict[str, Any] | None:
    for event in events:
        rig.buffer.enqueue_nowait(event)
    await rig.buffer.flush()
    return row(rig)


@pytest.mark.parametrize(
    ("events", "accesses", "deletes"),
    [
        ([access(1, 10)], [access(1, 10)], []),
        ([access(1, 10), access(2, 20)], [access(2, 20)], []),
        ([access(1, 10), GONE], [], [GONE]),  # a delete removes a pending access
        ([GONE, access(1, 10)], [access(1, 10)], []),  # an access removes a pending delete
        ([GONE, GONE], [], [GONE]),
        ([store(1, 10), GONE, store(2, 30)], [store(2, 30)], []),
        ([store(1, 10), access(9, 20)], [store(1, 20)], []),  # an access moves only the time of a store
        ([store(1, 20), access(9, 10)], [store(1, 20)], []),
        ([access(1, 10), store(2, 20)], [store(2, 20)], []),
        ([store(1, 10, DIGEST), store(2, 20, OTHER_DIGEST)], [store(2, 20, OTHER_DIGEST)], []),
        # A digest that is not given keeps the one before, pending or in the table.
        ([store(1, 10, DIGEST), store(2, 20)], [store(2, 20, DIGEST)], []),
        ([store(1, 10, DIGEST), access(2, 20)], [store(1, 20, DIGEST)], []),
        ([store(1, 10, DIGEST), GONE, store(2, 20)], [store(2, 20)], []),
        # What was stored goes with what it replaces in the table: it is written, then deleted.
        ([stored_at(5), gone(5)], [stored_at(5)], [gone(5)]),
        ([stored_at(5), gone(5), gone(5)], [stored_at(5)], [gone(5)]),
        ([stored_at(5), gone(5), GONE], [], [GONE]),
        ([stored_at(5), gone(5), stored_at(6)], [stored_at(6)], []),
        ([stored_at(5), gone(4)], [stored_at(5)], []),  # an older one, which that replaces
        ([access(1, 10), gone(4)], [], [gone(4)]),
    ],
)
def test_events_of_one_key_merge(
    events: list[ArtifactEvent], accesses: list[ArtifactEvent], deletes: list[ArtifactEvent]
) -> None:
    state = state_after(*events)
    assert list(state.accesses.values()) == accesses
    assert list(state.deletes.values()) == deletes
    assert TABLE.queue_stats(state) == TABLE.queue_stats(state_after(*accesses, *deletes))


FOUND = msgspec.structs.replace(store(9, 5, DIGEST), stored_at=4, instead_of=3)


@pytest.mark.parametrize(
    ("events", "merged"),
    [
        ([store(1, 10), FOUND], msgspec.structs.replace(FOUND, instead_of=None)),  # in its place
        ([access(1, 10), FOUND], FOUND),
        ([FOUND, store(1, 10)], store(1, 10, DIGEST)),
        ([FOUND, access(1, 10)], msgspec.structs.replace(FOUND, accessed_at=10)),
        ([GONE, FOUND], FOUND),
    ],
)
def test_what_is_found_merges_like_a_store(events: list[ArtifactEvent], merged: ArtifactEvent) -> None:
    assert list(state_after(*events).accesses.values()) == [merged]


def found_instead_of(stored_at: int | None) -> ArtifactAccess:
    return msgspec.structs.replace(FOUND, instead_of=stored_at)


async def test_what_is_found_takes_the_place_of_the_row_it_was_found_beside_only(rig: Rig) -> None:
    assert await flushed(rig, found_instead_of(3)) is None  # that one is gone
    await flushed(rig, msgspec.structs.replace(store(1, 10), stored_at=3))
    for other in (0, 2):
        unchanged = await flushed(rig, found_instead_of(other))
        assert unchanged is not None
        assert unchanged["size_bytes"] == 1
    replaced = await flushed(rig, found_instead_of(3))
    assert replaced is not None
    assert (replaced["size_bytes"], replaced["content_sha256"]) == (9, DIGEST)


async def test_what_is_found_without_a_row_makes_one(rig: Rig) -> None:
    made = await flushed(rig, found_instead_of(0))
    assert made is not None
    assert made["size_bytes"] == 9


async def test_a_row_of_before_there_was_a_time_of_storing_can_be_replaced(rig: Rig) -> None:
    old = await flushed(rig, store(1, 10))
    assert old is not None
    await rig.database.write(
        lambda connection: connection.execute("UPDATE cache_artifacts SET stored_at = NULL").fetchall()
    )
    replaced = await flushed(rig, found_instead_of(old["inserted_at"]))
    assert replaced is not None
    assert replaced["size_bytes"] == 9


async def test_a_delete_of_one_store_leaves_another(rig: Rig) -> None:
    await flushed(rig, msgspec.structs.replace(store(1, 10), stored_at=3))
    assert await flushed(rig, ArtifactDelete("k", 2)) is not None
    assert await flushed(rig, ArtifactDelete("k", 3)) is None


async def test_an_access_does_not_change_the_size(rig: Rig) -> None:
    await flushed(rig, store(5, 10, DIGEST))
    row_ = await flushed(rig, access(1, 20))
    assert row_ is not None
    assert (row_["size_bytes"], row_["last_accessed_at"]) == (5, 20)


def test_accesses_come_before_deletes() -> None:
    state = state_after(*(ArtifactDelete(f"d{n}") for n in range(3)), access(1, 1))
    batches, new = TABLE.flush_batches(state, 2)
    assert [(batch.operation, len(batch.entries)) for batch in batches] == [
        (ACCESSES, 1),
        (DELETES, 2),
        (DELETES, 1),
    ]
    assert TABLE.queue_empty(new)
    assert not TABLE.queue_empty(state)


def test_sizes_are_those_of_utf_8() -> None:
    one, four = (
        TABLE.queue_stats(state_after(ArtifactDelete(key))).bytes for key in ("k", "\N{GRINNING FACE}")
    )
    assert four == one + 3


@pytest.mark.parametrize("make", [lambda key: ArtifactAccess(key, 1, 1), ArtifactDelete])
def test_batches_are_bounded_in_bytes_too(make: Callable[[str], ArtifactEvent]) -> None:
    state = state_after(*(make(str(n) * BATCH_BYTES) for n in range(3)))
    assert [len(batch.entries) for batch in TABLE.flush_batches(state, 100)[0]] == [1, 1, 1]


def test_pending_tells_stores_and_deletes_and_no_mere_accesses() -> None:
    assert TABLE.pending(state_after(store(1, 10)), "k") == store(1, 10)
    assert TABLE.pending(state_after(GONE), "k") == GONE
    assert TABLE.pending(state_after(access(1, 10)), "k") is None


def test_only_accesses_that_store_nothing_may_be_shed() -> None:
    assert TABLE.sheddable(access(1, 1))
    assert not TABLE.sheddable(store(1, 1))
    assert not TABLE.sheddable(GONE)


async def test_an_upsert_replaces_all_but_the_id_and_the_first_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undercroft.buffers.cache_artifacts.now_us", lambda: 1_000)
    first = await flushed(rig, store(5, 10, DIGEST))
    assert first is not None
    assert first | {"id": 0} == {
        "id": 0,
        "size_bytes": 5,
        "content_sha256": DIGEST,
        "last_accessed_at": 10,
        "inserted_at": 1_000,
        "updated_at": 1_000,
    }
    monkeypatch.setattr("undercroft.buffers.cache_artifacts.now_us", lambda: 2_000)
    second = await flushed(rig, store(6, 20, OTHER_DIGEST))
    replaced = {
        "size_bytes": 6,
        "content_sha256": OTHER_DIGEST,
        "last_accessed_at": 20,
        "updated_at": 2_000,
    }
    assert second == first | replaced


async def test_the_digest_is_kept_when_none_is_given(rig: Rig) -> None:
    await flushed(rig, store(5, 10, DIGEST))
    after_access = await flushed(rig, access(5, 20))
    assert after_access is not None
    assert (after_access["content_sha256"], after_access["last_accessed_at"]) == (DIGEST, 20)


async def test_an_access_makes_no_row_and_changes_no_size(rig: Rig) -> None:
    assert await flushed(rig, access(5, 10)) is None
    await flushed(rig, store(6, 20, DIGEST))
    after = await flushed(rig, access(5, 30))
    assert after is not None
    assert (after["size_bytes"], after["content_sha256"], after["last_accessed_at"]) == (6, DIGEST, 30)


async def test_a_delete_removes_the_row_and_is_idempotent(rig: Rig) -> None:
    await flushed(rig, store(5, 10), ArtifactAccess("other", 1, 1, stored=True))
    assert await flushed(rig, GONE) is None
    assert await flushed(rig, GONE) is None
    assert rig.rows() == {"other": 1}


async def test_a_store_after_the_committed_delete_starts_anew(rig: Rig) -> None:
    await flushed(rig, store(5, 10, DIGEST))
    await flushed(rig, GONE)
    anew = await flushed(rig, store(6, 20))
    assert anew is not None
    assert (anew["size_bytes"], anew["content_sha256"]) == (6, None)


async def test_deletes_go_by_a_list_of_keys_in_one_statement(rig: Rig) -> None:
    for n in range(50):
        rig.enqueue(f"k{n}")
    await rig.buffer.flush()
    for n in range(49):
        rig.buffer.enqueue_nowait(ArtifactDelete(f"k{n}"))
    await rig.buffer.flush()
    assert rig.rows() == {"k49": 1}
    assert rig.table.batches == [(ACCESSES, 50), (DELETES, 49)]


@pytest.mark.parametrize("digest", ["short", "d" * 65])
async def test_a_digest_of_the_wrong_length_is_refused_alone(rig: Rig, digest: str) -> None:
    rig.enqueue("good")
    await flushed(rig, store(1, 1, digest))
    assert rig.rows() == {"good": 1}


async def test_a_delete_takes_the_row_along_that_a_pending_store_was_to_replace(rig: Rig) -> None:
    await flushed(rig, stored_at(4))
    rig.buffer.enqueue_nowait(stored_at(5))
    rig.buffer.enqueue_nowait(gone(5))
    assert rig.buffer.pending("k") == gone(5)
    assert await flushed(rig) is None
    assert rig.buffer.queue_stats() == (0, 0)


async def test_a_batch_of_several_kinds_is_committed_as_a_whole(rig: Rig) -> None:
    def write(connection: apsw.Connection) -> None:
        connection.execute(
            "CREATE TEMP TRIGGER bad BEFORE UPDATE ON cache_artifacts BEGIN SELECT raise(ABORT, 'no'); END"
        )
        batch = [stored_at(5), msgspec.structs.replace(access(1, 9), key="other")]
        with pytest.raises(apsw.ConstraintError):
            TABLE.write_batch(connection, ACCESSES, batch)
        connection.execute("DROP TRIGGER bad")

    await flushed(rig, msgspec.structs.replace(store(1, 1), key="other"))
    await rig.database.write(write)
    assert row(rig) is None


async def test_what_is_found_keeps_who_wrote_the_same_bytes(rig: Rig) -> None:
    def who() -> Any:
        return rig.database.find("SELECT written_by, tool, user_agent FROM cache_artifacts WHERE key = 'k'")

    written = msgspec.structs.replace(stored_at(3), written_by="ci", tool="module", user_agent="agent")
    same = msgspec.structs.replace(FOUND, instead_of=3, stored_at=6)
    await flushed(rig, written, same)
    assert who() == ("ci", "module", "agent")
    await flushed(rig, msgspec.structs.replace(same, instead_of=6, stored_at=7))
    assert who() == ("ci", "module", "agent")
    await flushed(rig, msgspec.structs.replace(same, instead_of=7, stored_at=8, content_sha256=OTHER_DIGEST))
    assert who() == (None, None, None)
