"""Key values that are stored under the same head: each body is looked at, acknowledged and counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.locks import lock_of_another_connection
from tests.support.same_words import Reply, SameWords, same_words
from tests.support.served_node import ServedNode
from tests.workers.clean_rig import until
from undercroft.auth import tokens
from undercroft.auth.tokens import revoke_token
from undercroft.telemetry import events

from .conftest import OpenNode
from .dialects import QUERY
from .test_clean import KEY_VALUE
from .test_repeated_rights import Clock, change, token, until_in_full
from .test_repeats import HOUR_MS, clean, execute, values
from .test_tuist import one

TRIGGER = """
CREATE TRIGGER refuse BEFORE INSERT ON key_value_entries WHEN NEW.json_payload LIKE '%bad%'
BEGIN SELECT RAISE(ABORT, 'not this one'); END
"""


def put_of(value: str, cas_id: str = "k") -> bytes:
    return b'{"cas_id":"%s","entries":[{"value":"%s"}]}' % (cas_id.encode(), value.encode())


@asynccontextmanager
async def putting(served: ServedNode, path: str = KEY_VALUE, **headers: str) -> AsyncIterator[SameWords]:
    """A PUT whose head is known; its body is as long as `put_of("aaa")`."""
    async with same_words(served, path, method="PUT", body=put_of("aaa"), **headers) as ask:
        assert (await ask()).status == 204
        yield ask


def rows(served: ServedNode) -> dict[str, str]:
    return dict(served.rows("SELECT key, json_payload FROM key_value_entries", "key_values"))


async def test_what_is_acknowledged_is_committed(served: ServedNode) -> None:
    async with putting(served) as ask:
        for value, cas_id in (("bbb", "k"), ("ccc", "l"), ("é!", "k")):
            reply = await ask(put_of(value, cas_id))
            assert (reply.status, reply.repeated) == (204, True)
            read = (await served.client.get(one(cas_id))).content
            assert read == values(value)
            assert rows(served)[f"keyvalue:acc:proj:{cas_id}"].encode() == read


async def test_answers_differ_in_nothing_but_id_and_date(served: ServedNode) -> None:
    async with same_words(served, KEY_VALUE, method="PUT", body=put_of("aaa")) as ask:
        replies = [await ask() for _ in range(3)]
    assert [reply.repeated for reply in replies] == [False, True, True]
    assert len({reply.common for reply in replies}) == 1
    assert len({reply.headers["x-request-id"] for reply in replies}) == 3


async def test_a_write_at_the_same_time_is_one_of_two(served: ServedNode) -> None:
    async with putting(served) as ask, putting(served) as other:
        for _ in range(10):
            one_reply, other_reply = await asyncio.gather(ask(put_of("bbb")), other(put_of("ccc", "l")))
            assert (one_reply.status, other_reply.status) == (204, 204)
    stored = {key[-1]: value.encode() for key, value in rows(served).items()}
    assert stored == {"k": values("bbb"), "l": values("ccc")}


async def test_buffered_writes_wait_for_nothing(open_node: OpenNode) -> None:
    served = await open_node(ack="buffered", buffers={"flush_interval_ms": HOUR_MS})
    async with putting(served) as ask:
        assert (await ask(put_of("bbb"))).repeated
        assert (await served.client.get(one("k"))).content == values("bbb")
        assert rows(served) == {}


async def test_what_is_cleaned_is_stored_anew(served: ServedNode) -> None:
    async with putting(served) as ask:
        await clean(served)
        assert rows(served) == {}
        assert (await ask(put_of("bbb"))).repeated
        assert (await served.client.get(one("k"))).content == values("bbb")


MALFORMED = [
    b'{"cas_id":"k","entries":[{"value":"aaa"}]',
    b'{"cas_id":"k","entries":[{"value":aaaa"}]}',
    b'{"cas_id":"k","entries":[{"falue":"aaa"}]}',
    b'{"cas_id":"k","entries":[]}' + b" " * 15,
    b'{"cas_id":"/","entries":[{"value":"aaa"}]}',
    b'{"cas_id":"k","entries":[{"value":"\xff\xff\xff"}]}',
]


@pytest.mark.parametrize("body", MALFORMED)
async def test_what_is_wrong_is_told_in_full(served: ServedNode, body: bytes) -> None:
    body = body.ljust(len(put_of("aaa")))
    async with putting(served) as ask:
        refused = await served.client.put(KEY_VALUE, content=body)
        reply = await ask(body)
        assert (reply.status, reply.body, reply.repeated) == (400, refused.content, False)
        assert not (await ask(put_of("bbb"))).repeated  # a wrong body is a reason to look at the head again
        assert (await ask(put_of("ccc"))).repeated
    assert list(rows(served).values()) == [values("ccc").decode()]


async def test_a_full_buffer_is_waited_for_in_full(open_node: OpenNode) -> None:
    buffers: dict[str, Any] = {"max_pending_rows": 1, "flush_interval_ms": HOUR_MS, "enqueue_timeout_ms": 50}
    served = await open_node(ack="buffered", buffers=buffers | {"max_batch_size": 1_000})
    async with putting(served) as ask:
        await served.node.key_values.flush()
        assert (await ask(put_of("bbb"))).repeated
        with lock_of_another_connection(served.folder / "key_values.sqlite", "EXCLUSIVE"):
            reply = await ask(put_of("ccc", "l"))
            assert (reply.status, reply.repeated) == (503, False)
            assert reply.headers["retry-after"] == "1"
        rejected = (await served.client.get("/metrics")).text.splitlines()
        line = 'undercroft_buffer_rejected_total{buffer="key_values"} 1.0'
        assert line in rejected, [line for line in rejected if "rejected" in line]


async def both_ways(served: ServedNode, ask: SameWords, body: bytes) -> tuple[Reply, Any]:
    """The answers to a body under the same head, and to one that is asked in full."""
    reply = await ask(body)
    assert reply.repeated
    return reply, await served.client.put(KEY_VALUE, content=body)


async def test_a_late_commit_is_answered_as_in_full(open_node: OpenNode) -> None:
    served = await open_node(buffers={"commit_timeout_ms": 50})
    async with putting(served) as ask:
        with lock_of_another_connection(served.folder / "key_values.sqlite", "EXCLUSIVE"):
            await ask(put_of("aaa"))
            await until(lambda: served.node.key_value_buffer.stalled)  # from here on the reason is told
            with capture_logs() as logs:
                reply, in_full = await both_ways(served, ask, put_of("bbb"))
            assert b"BusyError" in reply.body
            assert (reply.status, reply.body) == (503, in_full.content) == (in_full.status_code, reply.body)
            assert reply.headers["retry-after"] == in_full.headers["retry-after"] == "1"
            assert reply.headers.keys() == in_full.headers.keys()
        told, told_in_full = [record for record in logs if record["event"] == "request_refused"]
        assert told["request_id"] == reply.headers["x-request-id"]
        assert told_in_full.keys() - told.keys() == {"client"}
        same = ("method", "path", "status", "error", "log_level")
        assert [told[name] for name in same] == [told_in_full[name] for name in same]
        assert (await ask(put_of("ccc"))).status == 204  # the lock is gone, the connection goes on


async def test_a_row_that_sqlite_refuses_is_answered_as_in_full(served: ServedNode) -> None:
    async with putting(served) as ask:
        execute(served, TRIGGER)
        reply, in_full = await both_ways(served, ask, put_of("bad"))
        assert (reply.status, reply.body) == (in_full.status_code, in_full.content)
        assert b"not this one" in reply.body
        good = await ask(put_of("bbb"))
        assert (good.status, good.repeated) == (204, True)


async def test_what_nobody_foresaw_is_no_secret_told(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_ticket: Any) -> None:
        raise apsw.CorruptError("page 7")

    async with putting(served) as ask:
        monkeypatch.setattr(served.node.key_values, "settled", fail)
        with capture_logs() as logs:
            reply = await ask(put_of("bbb"))
        assert (reply.status, reply.repeated) == (503, True)
        assert b"page 7" not in reply.body
    (told,) = [record for record in logs if record["event"] == "request_failed"]
    assert isinstance(told["exc_info"], apsw.CorruptError)


async def test_each_write_is_counted_once(open_node: OpenNode) -> None:
    served = await open_node(buffers={"commit_timeout_ms": 50})
    told: list[tuple[str, str]] = []
    served.node.telemetry.attach(
        events.KEY_VALUE_PUT, lambda _, of: told.append((of["project"], of["result"]))
    )
    async with putting(served) as ask:
        await ask(put_of("bbb"))
        with lock_of_another_connection(served.folder / "key_values.sqlite", "EXCLUSIVE"):
            await ask(put_of("ccc"))
        await ask(MALFORMED[2])
    results = ["success", "success", "error", "error"]
    assert told == [("acc/proj", result) for result in results]


async def test_the_same_body_of_other_projects_is_theirs(served: ServedNode) -> None:
    other_query = QUERY.replace("=proj", "=other")
    async with putting(served) as ask, putting(served, KEY_VALUE.replace(QUERY, other_query)) as other:
        assert (await ask(put_of("bbb"))).repeated
        assert (await other(put_of("ccc"))).repeated
        assert (await served.client.get(one("k"))).content == values("bbb")
        assert (await served.client.get(one("k", other_query))).content == values("ccc")


async def test_who_names_the_request_gets_that_name(served: ServedNode) -> None:
    async with putting(served, x_request_id="mine") as ask:
        assert {(await ask()).headers["x-request-id"] for _ in range(3)} == {"mine"}


async def test_a_node_that_tells_of_each_request_asks_each_in_full(served: ServedNode) -> None:
    async with same_words(served, KEY_VALUE, method="PUT", body=put_of("aaa")) as ask:
        served.node.application._logs_requests = True
        assert not (await ask.twice()).repeated


async def test_a_page_in_a_browser_writes_nothing(served: ServedNode) -> None:
    async with same_words(
        served, KEY_VALUE, method="PUT", body=put_of("aaa"), origin="http://localhost"
    ) as ask:
        for _ in range(3):
            reply = await ask()
            assert (reply.status, reply.repeated) == (403, False)
    assert rows(served) == {}


# --- rights -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tokens, "time", clock)
    return clock


@pytest.mark.parametrize("taken", ["may_write = 0", """projects = '["other/*"]'"""])
async def test_who_may_not_write_any_more_is_refused(open_node: OpenNode, clock: Clock, taken: str) -> None:
    served = await open_node(auth={"mode": "tokens"})
    who = await token(served, "who")
    async with putting(served, authorization=who) as ask:
        assert (await ask(put_of("bbb"))).repeated
        change(served, f"UPDATE tokens SET {taken}")
        for reply in (await until_in_full(ask, clock), await ask(put_of("ccc"))):
            assert (reply.status, reply.repeated) == (403, False)
    assert list(rows(served).values()) == [values("bbb").decode()]


async def test_a_revoked_token_writes_nothing(open_node: OpenNode, clock: Clock) -> None:
    served = await open_node(auth={"mode": "tokens"})
    who = await token(served, "who")
    async with putting(served, authorization=who) as ask:
        assert (await ask(put_of("bbb"))).repeated
        assert await revoke_token(served.node.node_database, "who")
        for reply in (await until_in_full(ask, clock), await ask(put_of("ccc"))):
            assert (reply.status, reply.repeated) == (401, False)
    assert list(rows(served).values()) == [values("bbb").decode()]


async def test_who_reads_only_is_never_let_in(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens", "anonymous_read": True})
    async with same_words(served, KEY_VALUE, method="PUT", body=put_of("aaa")) as ask:
        for _ in range(3):
            reply = await ask()
            assert (reply.status < 300, reply.repeated) == (False, False)
    assert rows(served) == {}


async def test_what_is_written_in_a_scope_stays_there(open_node: OpenNode, clock: Clock) -> None:
    served = await open_node(auth={"mode": "tokens"})
    trusted, scoped = await token(served, "main"), await token(served, "fork", scope="pr")
    async with putting(served, authorization=scoped) as ask, putting(served, authorization=trusted) as main:
        assert (await main(put_of("bbb"))).repeated
        assert (await ask(put_of("ccc"))).repeated
    assert rows(served) == {
        "keyvalue:acc:proj:k": values("bbb").decode(),
        "keyvalue:acc:proj:~pr:k": values("ccc").decode(),
    }
