"""The rules of the table of key values."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.buffers import Batch
from undercroft.buffers.bufferable import BATCH_BYTES
from undercroft.buffers.key_values import (
    ACCESSES,
    WRITES,
    KeyValueAccess,
    KeyValueBuffer,
    KeyValueEvent,
    KeyValueState,
    KeyValueWrite,
)
from undercroft.clock import now_us
from undercroft.database.connection import open_connection
from undercroft.database.schema import KEY_VALUES, migrate

from .drivers import KeyValues
from .rig import Rig

TABLE = KeyValueBuffer()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(KeyValues(), tmp_path).open()
    yield rig
    await rig.crash()


def state_after(*events: KeyValueEvent) -> KeyValueState:
    state = TABLE.init_state()
    for event in events:
        TABLE.handle_event(state, event)
    return state


def batches_after(*events: KeyValueEvent) -> list[Batch]:
    return TABLE.flush_batches(state_after(*events), 100)[0]


def row(rig: Rig, key: str) -> dict[str, Any]:
    names = ("id", "key", "json_payload", "last_accessed_at", "inserted_at", "updated_at")
    found = rig.database.find(f"SELECT {', '.join(names)} FROM key_value_entries WHERE key = ?", key)
    assert found is not None
    return dict(zip(names, found, strict=True))


W1, W2, A1, A2 = (
    KeyValueWrite("k", "1"),
    KeyValueWrite("k", "2"),
    KeyValueAccess("k", 10),
    KeyValueAccess("k", 20),
)


@pytest.mark.parametrize(
    ("events", "batches"),
    [
        ([W1, W2], [(WRITES, [W2])]),  # the newest payload wins
        ([W2, W1], [(WRITES, [W1])]),
        ([A1, W1], [(WRITES, [W1])]),  # a write replaces a pending access
        ([W1, A1], [(WRITES, [W1])]),  # an access counts only where nothing is pending
        ([A1, A2], [(ACCESSES, [A1])]),
        ([A1], [(ACCESSES, [A1])]),
        ([KeyValueAccess("a", 1), W1], [(WRITES, [W1]), (ACCESSES, [KeyValueAccess("a", 1)])]),
    ],
)
def test_events_of_one_key_merge(events: list[KeyValueEvent], batches: list[Batch]) -> None:
    assert batches_after(*events) == batches


def test_flushing_leaves_the_old_state_and_starts_a_new_one() -> None:
    state = state_after(W1)
    batches, new = TABLE.flush_batches(state, 100)
    assert TABLE.pending(state, "k") == W1
    assert TABLE.queue_empty(new)
    assert TABLE.queue_stats(new) == (0, 0)
    assert batches == [(WRITES, [W1])]


def test_batches_have_at_most_the_size_asked_for() -> None:
    state = state_after(*(KeyValueWrite(str(n), "") for n in range(7)))
    assert [len(batch.entries) for batch in TABLE.flush_batches(state, 3)[0]] == [3, 3, 1]


def test_batches_are_bounded_in_bytes_too() -> None:
    large, small = "x" * (BATCH_BYTES // 2), "y"
    payloads = [small, large, small, large, "z" * 2 * BATCH_BYTES, small, small]
    writes = [KeyValueWrite(str(n), payload) for n, payload in enumerate(payloads)]
    batches = batches_after(*writes)
    assert [len(batch.entries) for batch in batches] == [3, 1, 1, 2]
    assert [entry for batch in batches for entry in batch.entries] == writes


@pytest.mark.parametrize("text", ["", "ascii", "\N{EURO SIGN}" * 9, "\N{GRINNING FACE}", "\ud800"])
def test_sizes_are_those_of_utf_8(text: str) -> None:
    extra = 2 * len(text.encode(errors="surrogatepass"))
    empty = TABLE.queue_stats(state_after(KeyValueWrite("", ""))).bytes
    assert TABLE.queue_stats(state_after(KeyValueWrite(text, text))).bytes == empty + extra


def test_an_access_alone_says_nothing_about_the_value() -> None:
    assert TABLE.pending(state_after(A1), "k") is None


def test_sizes_follow_replacements() -> None:
    big, small = KeyValueWrite("k", "x" * 1_000), KeyValueWrite("k", "")
    assert TABLE.queue_stats(state_after(big, small)) == TABLE.queue_stats(state_after(small))
    assert TABLE.queue_stats(state_after(big)).bytes > 1_000


def test_only_accesses_may_be_shed() -> None:
    assert TABLE.sheddable(A1)
    assert not TABLE.sheddable(W1)


async def test_times_are_those_of_the_flush(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.enqueue("k", 1)
    monkeypatch.setattr("undercroft.buffers.key_values.now_us", lambda: 1_000)
    await rig.buffer.flush()
    first = row(rig, "k")
    assert first["inserted_at"] == first["updated_at"] == first["last_accessed_at"] == 1_000
    rig.enqueue("k", 2)
    monkeypatch.setattr("undercroft.buffers.key_values.now_us", lambda: 2_000)
    await rig.buffer.flush()
    assert row(rig, "k") == first | {"json_payload": "2", "last_accessed_at": 2_000, "updated_at": 2_000}


async def test_the_clock_is_in_microseconds(rig: Rig) -> None:
    before = now_us()
    await rig.commit("k")
    assert before <= row(rig, "k")["updated_at"] <= now_us()
    assert now_us() > 1_600_000_000_000_000


async def test_an_access_moves_only_its_time_and_only_forward(rig: Rig) -> None:
    await rig.commit("k")
    first = row(rig, "k")
    later = first["last_accessed_at"] + 5
    rig.buffer.enqueue_nowait(KeyValueAccess("k", later))
    await rig.buffer.flush()
    assert row(rig, "k") == first | {"last_accessed_at": later}
    rig.buffer.enqueue_nowait(KeyValueAccess("k", 1))
    await rig.buffer.flush()
    assert row(rig, "k")["last_accessed_at"] == later


async def test_an_access_of_an_unknown_key_makes_no_row(rig: Rig) -> None:
    rig.buffer.enqueue_nowait(KeyValueAccess("nobody", 5))
    await rig.buffer.flush()
    assert rig.rows() == {}


async def test_an_access_during_the_flush_of_its_write(rig: Rig) -> None:
    rig.table.shut_gate()
    flush = asyncio.create_task(rig.commit("k", 1))
    await rig.arrived()
    at = now_us() + 1_000_000_000
    rig.buffer.enqueue_nowait(KeyValueAccess("k", at))
    assert rig.pending("k") == 1
    rig.table.open_gate()
    await flush
    await rig.buffer.flush()
    assert (row(rig, "k")["json_payload"], row(rig, "k")["last_accessed_at"]) == ("1", at)


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_every_text_arrives_as_it_was(values: dict[str, str]) -> None:
    connection = open_connection(Path(":memory:"))
    try:
        migrate(connection, KEY_VALUES)
        TABLE.write_batch(connection, WRITES, [KeyValueWrite(*pair) for pair in values.items()])
        assert dict(connection.execute("SELECT key, json_payload FROM key_value_entries")) == values
    finally:
        connection.close()
