"""Requests that one worker hands on to another."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from undercroft.api.request import Receive, Scope, Send
from undercroft.errors import SiblingError
from undercroft.http.exchange import TOO_SLOW
from undercroft.processes.frames import Kind
from undercroft.processes.place import Place
from undercroft.processes.siblings import Siblings
from undercroft.processes.worker_application import WorkerApplication, owner_of
from undercroft.storage.ledger import Entry, Ledger

SCOPE: dict[str, Any] = {
    "method": "POST",
    "path": "/p",
    "raw_path": b"/p",
    "query_string": b"a=b",
    "headers": [(b"authorization", b"Bearer x")],
    "client": ("192.0.2.1", "4711"),
}

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[Place]]:
    """Two workers that have the same parent."""
    directory = os.open(tmp_path, os.O_RDONLY)
    ledger = Ledger.create(2)
    with socket.socket() as listener:
        yield [Place(n, 2, listener, -1, directory, ledger, n > 0, lambda: None) for n in range(2)]
    os.close(directory)


@asynccontextmanager
async def two(places: Sequence[Place], application: Application) -> AsyncIterator[tuple[Siblings, Siblings]]:
    """One that hands on, and the one that answers."""

    async def metrics() -> bytes:
        return b"sums"

    both = (
        Siblings(places[0], application, {Kind.METRICS: metrics}),
        Siblings(places[1], application, {Kind.METRICS: metrics}),
    )
    for one in both:
        await one.open()
    try:
        yield both
    finally:
        for one in both:
            await one.close(1_000)


class Asked:
    """A request of a client, and what it was answered."""

    def __init__(self, *chunks: bytes, leaves: bool = False) -> None:
        self.events = [{"type": "http.request", "body": c, "more_body": True} for c in chunks]
        self.events.append(
            {"type": "http.disconnect"}
            if leaves
            else {"type": "http.request", "body": b"", "more_body": False}
        )
        self.answer: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        if not self.events:
            await asyncio.Event().wait()
        return self.events.pop(0)

    async def send(self, event: Any) -> None:
        self.answer.append(event)


async def answer(send: Send, status: int, *pieces: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]})
    for number, piece in enumerate(pieces, start=1):
        await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})


async def test_a_request_and_its_answer_arrive_as_they_were(places: list[Place]) -> None:
    seen: list[Any] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({name: scope[name] for name in SCOPE})
        more = True
        while more:
            event = await receive()
            seen.append(event["body"])
            more = event["more_body"]
        await answer(send, 207, b"x" * 300_000, b"y")

    asked = Asked(b"1" * 700_000, b"2")
    async with two(places, application) as (one, _):
        assert await one.hand_on(1, SCOPE, asked.receive, asked.send)
    assert seen[0] == SCOPE | {"client": ("192.0.2.1", 0)}
    assert seen[1:] == [b"1" * 700_000, b"2", b""]
    assert asked.answer == [
        {"type": "http.response.start", "status": 207, "headers": [(b"a", b"b")]},
        {"type": "http.response.body", "body": b"x" * 300_000, "more_body": True},
        {"type": "http.response.body", "body": b"y", "more_body": False},
    ]


async def test_who_answers_before_the_body_is_here_is_heard(places: list[Place]) -> None:
    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await answer(send, 404, b"no")

    asked = Asked(*[b"x" * 100_000] * 100)
    async with two(places, application) as (one, _):
        assert await one.hand_on(1, SCOPE, asked.receive, asked.send)
    assert [event.get("status") for event in asked.answer] == [404, None]


async def test_a_client_that_leaves_is_seen_by_who_answers(places: list[Place]) -> None:
    kinds = []

    async def application(_scope: Scope, receive: Receive, send: Send) -> None:
        kinds.extend([(await receive())["type"], (await receive())["type"]])
        await answer(send, 400, b"")

    asked = Asked(b"begun", leaves=True)
    async with two(places, application) as (one, _):
        await one.hand_on(1, SCOPE, asked.receive, asked.send)
    assert kinds == ["http.request", "http.disconnect"]


async def test_a_body_that_is_too_slow_is_known_as_that(places: list[Place]) -> None:
    heard = []

    async def application(_scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])
        await answer(send, 408, b"")

    asked = Asked(b"begun", leaves=True)
    asked.events[-1][TOO_SLOW] = True
    async with two(places, application) as (one, _):
        await one.hand_on(1, SCOPE, asked.receive, asked.send)
    assert heard[1] == {"type": "http.disconnect", TOO_SLOW: True}
    assert asked.answer[0]["status"] == 408


async def test_nobody_there_is_no_answer(places: list[Place]) -> None:
    async def application(*_: object) -> None:
        raise AssertionError

    asked = Asked()
    async with two(places, application) as (one, other):
        await other.close(0)
        assert not await one.hand_on(1, SCOPE, asked.receive, asked.send)
        assert await one.ask(1, Kind.METRICS) is None
    assert asked.answer == []


@pytest.mark.parametrize("begun", [False, True])
async def test_an_answer_that_breaks_off_is_never_taken_for_whole(places: list[Place], begun: bool) -> None:
    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ConnectionResetError

    asked = Asked()
    async with two(places, application) as (one, _):
        if begun:
            with pytest.raises(SiblingError, match="broke off in the middle"):
                await one.hand_on(1, SCOPE, asked.receive, asked.send)
        else:
            assert not await one.hand_on(1, SCOPE, asked.receive, asked.send)


async def test_an_answer_that_breaks_off_is_told_of(places: list[Place]) -> None:
    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ConnectionResetError

    queries = (f"account_handle=a&project_handle=p{n}".encode() for n in range(40))
    of_the_other = next(q for q in queries if owner_of(SCOPE | {"query_string": q}, 2) == 1)
    scope = SCOPE | {"raw_path": b"/api/cache/module/part", "query_string": of_the_other}
    worker, asked = WorkerApplication([], None), Asked()
    async with two(places, application) as (worker.siblings, _):
        with capture_logs() as log, pytest.raises(SiblingError):
            await worker(scope, asked.receive, asked.send)
    (told,) = (entry for entry in log if entry["log_level"] == "warning")
    assert (told["event"], told["worker"], told["path"]) == ("answer_broke_off", 1, "/p")


async def test_an_answer_that_a_stop_cuts_off_is_no_fault(places: list[Place]) -> None:
    """The sibling sees the end of it, and nothing is printed."""
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def application(*_: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    asked = Asked()
    async with two(places, application) as (one, other):
        handing_on = asyncio.create_task(one.hand_on(1, SCOPE, asked.receive, asked.send))
        await began.wait()
        await other.close(0)
        assert cancelled.is_set()
        assert not await handing_on
    assert asked.answer == []
    assert faults == []


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_has_gone_is_answered_all_the_same(places: list[Place], loop: Any) -> None:
    """As the server does with clients: whoever answers has done nothing wrong."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(answer_to_nobody(places))


async def answer_to_nobody(places: list[Place]) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    began, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        began.set()
        await go_on.wait()
        await answer(send, 200, *[bytes(1 << 20)] * 8)
        done.set()

    asked = Asked()
    async with two(places, application) as (one, _), asyncio.timeout(20):
        handing_on = asyncio.create_task(one.hand_on(1, SCOPE, asked.receive, asked.send))
        await began.wait()
        handing_on.cancel()
        await asyncio.gather(handing_on, return_exceptions=True)
        go_on.set()
        await done.wait()
    assert (asked.answer, faults) == ([], [])


async def test_metrics_are_asked_for_and_who_serves_is_known(places: list[Place]) -> None:
    async def application(*_: object) -> None:
        raise AssertionError

    async with two(places, application) as (one, _):
        assert await one.ask(1, Kind.METRICS) == b"sums"
        assert one.missing() == [1]
        places[1].ledger.set(1, Entry.SERVES, 1)
        assert one.missing() == []


async def test_who_comes_next_listens_in_the_same_place(places: list[Place]) -> None:
    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await answer(send, 200, b"")

    async with two(places, application), two(places, application) as (one, _):
        asked = Asked()
        assert await one.hand_on(1, SCOPE, asked.receive, asked.send)


def test_every_worker_knows_who_has_the_uploads_of_a_project() -> None:
    def of(query: str) -> int | None:
        return owner_of(SCOPE | {"query_string": query.encode()}, 4)

    owners = {of(f"account_handle=a&project_handle=p{n}") for n in range(40)}
    assert owners == {0, 1, 2, 3}
    assert of("project_handle=P1&account_handle=A&x=y") == of("account_handle=a&project_handle=p1")
    assert of("account_handle=a") is None
    assert of("account_handle=a&project_handle=..%2F") is None
