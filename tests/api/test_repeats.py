"""Key values that are asked for in the same words: each answer is the newest, and counted."""

import asyncio
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import apsw
import pytest

from tests.support.locks import lock_of_another_connection
from tests.support.same_words import same_words
from tests.support.served_node import ServedNode
from undercroft import key_values
from undercroft.clock import now_us
from undercroft.key_values import ACCESS_RESOLUTION_US
from undercroft.telemetry import events

from .conftest import OpenNode
from .dialects import QUERY
from .test_clean import CLEAN, KEY_VALUE, cleaned
from .test_tuist import one, written

K = one("k")
HOUR_MS = 3_600_000


def values(*values: str) -> bytes:
    return b'{"entries":[%s]}' % b",".join(b'{"value":"%s"}' % value.encode() for value in values)


async def put(served: ServedNode, *values: str, query: str = QUERY) -> None:
    path = KEY_VALUE.replace(QUERY, query)
    assert (await served.client.put(path, json=written(*values))).status_code == 204


def execute(served: ServedNode, sql: str, *bindings: Any) -> None:
    """What another process does to the rows."""
    connection = apsw.Connection(str(served.folder / "key_values.sqlite"))
    try:
        connection.set_busy_timeout(10_000)
        connection.execute(sql, bindings)
    finally:
        connection.close()


@pytest.mark.parametrize("ack", ["committed", "buffered"])
async def test_the_newest_value_is_answered(
    open_node: OpenNode, ack: Literal["committed", "buffered"]
) -> None:
    served = await open_node(ack=ack, buffers={"flush_interval_ms": 1 if ack == "committed" else HOUR_MS})
    await put(served, "0")
    async with same_words(served, K) as ask:
        await ask()
        for number in range(1, 4):
            await put(served, str(number), "b")
            reply = await ask()
            assert (reply.status, reply.body, reply.repeated) == (200, values(str(number), "b"), True)
    committed = served.rows("SELECT json_payload FROM key_value_entries", "key_values")
    assert committed == ([(values("3", "b").decode(),)] if ack == "committed" else [])


async def test_a_value_is_answered_before_and_after_its_commit(open_node: OpenNode) -> None:
    served = await open_node(ack="buffered", buffers={"flush_interval_ms": HOUR_MS})
    await put(served, "v")
    async with same_words(served, K) as ask:
        before = await ask.twice()
        await served.node.key_values.flush()
        after = await ask()
        assert (after.common, after.repeated) == (before.common, True)


async def test_what_another_process_wrote_is_answered(served: ServedNode) -> None:
    await put(served, "first")
    async with same_words(served, K) as ask:
        await ask.twice()
        execute(served, "UPDATE key_value_entries SET json_payload = ?", values("other").decode())
        reply = await ask()
        assert (reply.body, reply.repeated) == (values("other"), True)


async def clean(served: ServedNode) -> None:
    assert (await served.client.delete(CLEAN)).status_code == 204
    await cleaned(served)


async def evict(served: ServedNode) -> None:
    eviction = served.node.background._key_value_eviction
    assert eviction._max_age_us is not None
    eviction._max_age_us = -HOUR_MS * 1_000
    await served.node.key_values.flush()
    await eviction.run_once()


async def remove(served: ServedNode) -> None:
    execute(served, "DELETE FROM key_value_entries")


@pytest.mark.parametrize("go", [clean, evict, remove])
async def test_what_is_gone_is_a_miss_until_it_is_stored_anew(served: ServedNode, go: Any) -> None:
    await put(served, "v")
    async with same_words(served, K) as ask:
        assert (await ask.twice()).repeated
        await go(served)
        assert [(reply.status, reply.repeated) for reply in (await ask(), await ask())] == [(404, False)] * 2
        await put(served, "again")
        reply = await ask.twice()
        assert (reply.status, reply.body, reply.repeated) == (200, values("again"), True)


async def test_answers_differ_in_nothing_but_id_and_date(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K) as ask, same_words(served, K) as other:
        replies = [await ask(), await ask(), await other(), await ask()]
    assert [reply.repeated for reply in replies] == [False, True, True, True]
    assert len({reply.common for reply in replies}) == 1
    assert len({reply.headers["x-request-id"] for reply in replies}) == 4
    assert all(reply.headers["server"] == "undercroft" for reply in replies)
    assert all(parsedate_to_datetime(reply.headers["date"]).tzinfo is not None for reply in replies)


async def test_who_names_the_request_gets_that_name(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K, x_request_id="mine") as ask, same_words(served, K) as other:
        assert {(await ask()).headers["x-request-id"] for _ in range(3)} == {"mine"}
        await other.twice()
        assert (await ask()).headers["x-request-id"] == "mine"
        assert (await other()).headers["x-request-id"] != "mine"


async def test_a_name_that_is_none_is_answered_by_another_each_time(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K, x_request_id="x" * 200) as ask:
        ids = [(await ask()).headers["x-request-id"] for _ in range(3)]
    assert len({*ids, "x" * 200}) == 4


async def test_each_answer_is_counted_once(served: ServedNode) -> None:
    told: list[tuple[str, str]] = []
    served.node.telemetry.attach(
        events.KEY_VALUE_GET, lambda _, of: told.append((of["project"], of["result"]))
    )
    await put(served, "v")
    async with same_words(served, K) as ask:
        assert sum([(await ask()).repeated for _ in range(5)]) == 4
        await remove(served)
        assert not (await ask()).repeated
    assert told == [("acc/proj", "hit")] * 5 + [("acc/proj", "miss")]
    metrics = (await served.client.get("/metrics")).text.splitlines()
    counted = {"cache_kv_get_total 6.0", "cache_kv_get_hit_total 5.0", "cache_kv_get_miss_total 1.0"}
    assert counted <= {*metrics}


async def test_the_same_words_on_other_projects_are_other_words(served: ServedNode) -> None:
    query = QUERY.replace("=proj", "=other")
    await put(served, "v")
    await put(served, "other", query=query)
    async with same_words(served, K) as ask, same_words(served, one("k", query)) as other:
        for _ in range(3):
            assert (await ask()).body == values("v")
            assert (await other()).body == values("other")
        await clean(served)
        assert (await ask()).status == 404
        assert (await other()).repeated


async def test_what_an_old_client_asks_with_put_is_asked_in_full(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K, method="PUT", content_length="0") as ask:
        reply = await ask.twice()
        assert (reply.status, reply.body, reply.repeated) == (200, values("v"), False)


async def test_what_is_asked_for_over_and_over_is_not_evicted(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(served, "v")
    later = now_us() + ACCESS_RESOLUTION_US
    async with same_words(served, K) as ask:
        await ask.twice()
        monkeypatch.setattr(key_values, "now_us", lambda: later)
        assert (await ask()).repeated
        await served.node.key_values.flush()
        assert (await ask()).repeated
        assert served.node.key_value_buffer.queue_stats().rows == 0
    sql = "SELECT last_accessed_at FROM key_value_entries"
    assert served.rows(sql, "key_values") == [(later,)]


async def test_a_node_that_tells_of_each_request_asks_each_in_full(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K) as ask:
        served.node.application._logs_requests = True
        assert not (await ask.twice()).repeated


async def test_who_locks_the_database_changes_no_answer(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K) as ask:
        before = await ask.twice()
        with lock_of_another_connection(served.folder / "key_values.sqlite", "EXCLUSIVE"):
            assert (await ask()).common == before.common
        assert (await ask()).repeated


@pytest.mark.parametrize("error", [apsw.BusyError("locked"), apsw.IOError("disk"), OSError("disk")])
async def test_what_cannot_be_looked_up_once_is_asked_in_full(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    await put(served, "v")
    find, failures = served.node.key_value_database.find, [error]

    def fail_once(sql: str, *bindings: Any) -> Any:
        if failures:
            raise failures.pop()
        return find(sql, *bindings)

    async with same_words(served, K) as ask:
        before = await ask.twice()
        monkeypatch.setattr(served.node.key_value_database, "find", fail_once)
        for repeated in (False, True):
            reply = await ask()
            assert (reply.common, reply.repeated) == (before.common, repeated)


async def test_a_node_that_stops_answers_nobody(served: ServedNode) -> None:
    await put(served, "v")
    async with same_words(served, K) as ask:
        await ask.twice()
        await served.node.stop()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await ask()
