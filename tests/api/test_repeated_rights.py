"""Who asks in the same words may do so no longer than their token is good, and sees nobody else's."""

import gc
import types
from typing import Any

import apsw
import pytest

from tests.support.same_words import Reply, SameWords, same_words
from tests.support.served_node import PATIENCE_S, ServedNode
from undercroft.artifacts import CacheArtifacts
from undercroft.auth import tokens
from undercroft.auth.credentials import new_token
from undercroft.auth.tokens import NewToken, create_token, revoke_token
from undercroft.clock import now_us
from undercroft.http.server import HttpServer
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.telemetry import events

from .conftest import OpenNode
from .dialects import CCACHE
from .test_clean import KEY_VALUE
from .test_repeats import K, values
from .test_tuist import written

PATH = CCACHE.path("0" * 64)

both_kinds = pytest.mark.parametrize("path", [K, PATH], ids=["key value", "artifact"])


@pytest.fixture
async def served(open_node: OpenNode) -> ServedNode:
    return await open_node(auth={"mode": "tokens"})


async def token(served: ServedNode, name: str, scope: str | None = None, **other: Any) -> str:
    """What a request of its owner has in its header."""
    projects = other.pop("projects", ("acc/*",))
    wanted = NewToken(name, projects, may_read=True, may_write=True, scope=scope, **other)
    return f"Bearer {(await create_token(served.node.node_database, wanted)).text}"


async def put(served: ServedNode, who: str, value: str) -> None:
    """Stores it as key value and as artifact."""
    headers = {"authorization": who}
    stored = await served.client.put(KEY_VALUE, json=written(value), headers=headers)
    assert stored.status_code == 204
    assert (await served.client.put(PATH, content=values(value), headers=headers)).is_success


def change(served: ServedNode, sql: str) -> None:
    """What another process does to the tokens."""
    connection = apsw.Connection(str(served.folder / "node.sqlite"))
    try:
        connection.set_busy_timeout(10_000)
        connection.execute(sql)
    finally:
        connection.close()


async def until_in_full(ask: SameWords, clock: "Clock") -> Reply:
    """What is answered once all that was known of the token is too old."""
    clock.add(tokens.FRESH_S + 0.001)
    reply = await ask()
    assert not reply.repeated
    return reply


class Clock:
    """The one that says how old is what is known of a token."""

    def __init__(self) -> None:
        self._now = 1_000.0

    def monotonic(self) -> float:
        return self._now

    def add(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tokens, "time", clock)
    return clock


@both_kinds
async def test_a_revoked_token_is_refused(served: ServedNode, clock: Clock, path: str) -> None:
    who = await token(served, "who")
    await put(served, who, "v")
    async with same_words(served, path, authorization=who) as ask:
        assert (await ask.twice()).repeated
        assert await revoke_token(served.node.node_database, "who")
        # As long as it is for any request.
        clock.add(tokens.FRESH_S / 2)
        assert (await ask()).repeated
        for reply in (await until_in_full(ask, clock), await ask()):
            assert (reply.status, reply.repeated) == (401, False)


@both_kinds
async def test_to_ask_over_and_over_keeps_no_token_good(served: ServedNode, clock: Clock, path: str) -> None:
    who = await token(served, "who")
    await put(served, who, "v")
    async with same_words(served, path, authorization=who) as ask:
        await ask()
        assert await revoke_token(served.node.node_database, "who")
        statuses = []
        for _ in range(20):
            statuses.append((await ask()).status)
            clock.add(tokens.FRESH_S / 8)
    assert statuses[0] == 200
    assert statuses[9:] == [401] * 11


@both_kinds
async def test_an_expired_token_is_refused_at_once(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    expires_at = now_us() + int(PATIENCE_S * 10 * 1e6)
    who = await token(served, "who", expires_at=expires_at)
    await put(served, who, "v")
    async with same_words(served, path, authorization=who) as ask:
        monkeypatch.setattr(tokens, "now_us", lambda: expires_at - 1)
        assert (await ask.twice()).repeated
        monkeypatch.setattr(tokens, "now_us", lambda: expires_at)
        assert [((reply := await ask()).status, reply.repeated) for _ in range(2)] == [(401, False)] * 2


@both_kinds
@pytest.mark.parametrize("taken", ["may_read = 0", """projects = '["other/*"]'"""])
async def test_a_token_with_other_rights_is_refused(
    served: ServedNode, clock: Clock, path: str, taken: str
) -> None:
    who = await token(served, "who")
    await put(served, who, "v")
    async with same_words(served, path, authorization=who) as ask:
        before = await ask.twice()
        assert before.repeated
        change(served, f"UPDATE tokens SET {taken}")
        for reply in (await until_in_full(ask, clock), await ask()):
            assert (reply.status, reply.repeated) == (403, False)
        change(served, """UPDATE tokens SET may_read = 1, projects = '["acc/*"]'""")
        assert (await until_in_full(ask, clock)).common == before.common
        assert (await ask()).repeated


@both_kinds
async def test_rights_that_were_seen_to_change_by_another_request_count(
    served: ServedNode, clock: Clock, path: str
) -> None:
    """What is remembered of the token is fresh again, but not what it was."""
    who = await token(served, "who")
    await put(served, who, "v")
    async with same_words(served, path, authorization=who) as ask:
        assert (await ask.twice()).repeated
        change(served, """UPDATE tokens SET projects = '["other/*"]'""")
        clock.add(tokens.FRESH_S + 0.001)
        refused = await served.client.get(CCACHE.path("1" * 64), headers={"authorization": who})
        assert refused.status_code == 403
        reply = await ask()
        assert (reply.status, reply.repeated) == (403, False)


async def test_rights_that_change_while_a_request_is_answered_count(
    served: ServedNode, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request was let in by what was known before, and another one has found out what is true now."""
    who, read, turns = await token(served, "who"), CacheArtifacts.read, [True]
    await put(served, who, "v")

    async def slowly(artifacts: CacheArtifacts, key: str, surely: bool = False) -> OpenArtifact | None:
        if turns:
            turns.pop()
            change(served, """UPDATE tokens SET projects = '["other/*"]'""")
            clock.add(tokens.FRESH_S + 0.001)
            await served.client.get(PATH, headers={"authorization": who})
        return await read(artifacts, key, surely)

    monkeypatch.setattr(CacheArtifacts, "read", slowly)
    async with same_words(served, PATH, authorization=who) as ask:
        assert (await ask()).status == 200
        reply = await ask()
        assert (reply.status, reply.repeated) == (403, False)


@both_kinds
async def test_a_token_that_gets_a_scope_reads_in_it(served: ServedNode, clock: Clock, path: str) -> None:
    who, fork = await token(served, "who"), await token(served, "fork", "fork")
    await put(served, who, "trusted")
    await put(served, fork, "own")
    async with same_words(served, path, authorization=who) as ask:
        assert (await ask.twice()).body == values("trusted")
        change(served, "UPDATE tokens SET scope = 'fork' WHERE name = 'who'")
        assert (await until_in_full(ask, clock)).body == values("own")
        change(served, "UPDATE tokens SET scope = NULL WHERE name = 'who'")
        assert (await until_in_full(ask, clock)).body == values("trusted")
        assert (await ask()).repeated


@both_kinds
async def test_scopes_see_nothing_of_each_other(served: ServedNode, path: str) -> None:
    names = {"main": None, "fork": "fork", "pr": "pr"}
    who = {name: await token(served, name, scope) for name, scope in names.items()}
    await put(served, who["main"], "trusted")
    async with (
        same_words(served, path, authorization=who["main"]) as main,
        same_words(served, path, authorization=who["fork"]) as fork,
        same_words(served, path, authorization=who["pr"]) as pr,
    ):
        for ask in (main, fork, pr, main, fork, pr):
            assert (await ask()).body == values("trusted")
        for value in ("own", "newer"):
            await put(served, who["pr"], value)
            for ask, seen in ((pr, value), (main, "trusted"), (fork, "trusted")) * 2:
                reply = await ask()
                assert (reply.body, reply.repeated) == (values(seen), ask is main)
        await put(served, who["main"], "newest")
        for ask, seen in ((pr, "newer"), (main, "newest"), (fork, "newest")):
            assert (await ask.twice()).body == values(seen)


@both_kinds
async def test_what_only_a_scope_has_is_a_miss_for_others(served: ServedNode, path: str) -> None:
    main, pr = await token(served, "main"), await token(served, "pr", "pr")
    await put(served, pr, "own")
    async with (
        same_words(served, path, authorization=pr) as ask,
        same_words(served, path, authorization=main) as other,
    ):
        for _ in range(3):
            assert (await ask()).body == values("own")
            assert (await other()).status == 404


@both_kinds
async def test_strangers_and_who_has_no_token_are_refused(served: ServedNode, path: str) -> None:
    who, stranger = await token(served, "who"), await token(served, "stranger", projects=("other/*",))
    await put(served, who, "v")
    async with (
        same_words(served, path, authorization=who) as ask,
        same_words(served, path, authorization=stranger) as other,
        same_words(served, path, authorization=f"Bearer {new_token().text}") as guessed,
        same_words(served, path) as nobody,
    ):
        for _ in range(3):
            assert (await ask()).status == 200
            assert [(await one()).status for one in (other, guessed, nobody)] == [403, 401, 401]
        assert (await ask()).repeated


@both_kinds
async def test_anonymous_readers(open_node: OpenNode, path: str) -> None:
    served = await open_node(auth={"mode": "tokens", "anonymous_read": True})
    who, pr = await token(served, "who"), await token(served, "pr", "pr")
    await put(served, pr, "own")
    async with same_words(served, path) as ask:
        assert (await ask.twice()).status == 404
        await put(served, who, "trusted")
        reply = await ask.twice()
        assert (reply.body, reply.repeated) == (values("trusted"), True)
        await put(served, pr, "newer")
        assert (await ask()).body == values("trusted")


@both_kinds
async def test_each_request_is_let_in_once(served: ServedNode, clock: Clock, path: str) -> None:
    told: list[str] = []
    who = await token(served, "who")
    await put(served, who, "v")
    telemetry = served.node.telemetry
    telemetry.attach(events.AUTHORIZED, lambda _, of: told.append(of["method"]))
    telemetry.attach(events.AUTH_CACHE, lambda _, of: told.append(of["result"]))
    async with same_words(served, path, authorization=who) as ask:
        assert [(await ask()).repeated for _ in range(3)] == [False, True, True]
        assert sorted(told) == ["hit"] * 3 + ["token"] * 3
        told.clear()
        await until_in_full(ask, clock)
        assert sorted(told) == ["miss", "token"]


async def test_who_asks_for_what_is_gone_is_let_in_once(served: ServedNode) -> None:
    told: list[str] = []
    who = await token(served, "who")
    await put(served, who, "v")
    served.node.telemetry.attach(events.AUTHORIZED, lambda _, of: told.append(of["method"]))
    served.node.telemetry.attach(events.AUTH_CACHE, lambda _, of: told.append(of["result"]))
    async with same_words(served, PATH, authorization=who) as ask:
        assert (await ask.twice()).repeated
        (file,) = (served.folder / "artifacts").rglob("0" * 64)
        file.unlink()
        told.clear()
        assert (await ask()).status == 404
        assert sorted(told) == ["hit", "token"]


# --- what is kept ------------------------------------------------------------------------------------

# Whence all that there is could be reached, the test's own variables as well; and an open connection has the
# head of the request that it was sent last.
NOT_FOLLOWED = (type, types.ModuleType, types.CoroutineType, types.FrameType, types.TracebackType, HttpServer)


def reachable(root: object) -> list[object]:
    """All objects that are kept by one, but for modules and what is running."""
    found, left, seen = [], [root], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, NOT_FOLLOWED) or "asyncio" in type(one).__module__:
            continue
        seen.add(id(one))
        found.append(one)
        if isinstance(one, types.FunctionType):
            left += [one.__closure__, one.__defaults__, one.__kwdefaults__]
        else:
            left += gc.get_referents(one)
    return found


async def test_no_secret_is_kept(served: ServedNode) -> None:
    who = await token(served, "who")
    await put(served, who, "v")
    async with (
        same_words(served, K, authorization=who) as ask,
        same_words(served, PATH, authorization=who) as other,
    ):
        assert (await ask.twice()).repeated
        assert (await other.twice()).repeated
    assert served.node.server is not None
    kept = reachable(served.node.server.repeats)
    texts = [one if isinstance(one, bytes) else one.encode() for one in kept if isinstance(one, str | bytes)]
    # It is looked in the right place.
    assert any(b"acc/proj/ccache" in text for text in texts)
    secret = who.split("_", 2)[2].encode()
    assert len(secret) > 20
    assert not any(secret in text for text in texts)
