"""The same bytes to a server that remembers what came before and to one that does not: the same answers."""

import asyncio
import random
import re
from functools import partial
from typing import Any

import pytest
import uvloop

from tests.http.test_connection import read_all, serving
from tests.support.campaign import Campaign
from undercroft.http.repeats import REPEAT, Answer, Settle

PATIENCE_S = 20

BODIES = [
    b"",
    b"hello",
    b"GET /",
    b"\r\n",
    b"\r\n\r\nx",
    b"raise",
    b"later",
    b"at once",
    b"x" * 8_100,
    b"x" * 8_192,
    b"x" * 20_000,
    b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
]

HOSTS = [*[b"host: x\r\n"] * 6, b"", b"host: x\r\nhost: y\r\n"]

VERSIONS = [*[b"1.1"] * 12, b"1.0", b"2.0"]


def chunked(body: bytes) -> bytes:
    piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return b"transfer-encoding: chunked\r\n\r\n" + piece + b"0\r\n\r\n"


def message(chance: random.Random) -> bytes:
    """A request, most often a plain one; one that is refused; or what may stand between two."""
    put = b"PUT /c HTTP/%b\r\n%b" % (chance.choice(VERSIONS), chance.choice(HOSTS))
    get = put.replace(b"PUT /c", b"GET /a")
    body = chance.choice(BODIES)
    odd = [
        put + chunked(body),
        b"\r\n",
        b"\n",
        put + b"content-length: 5\r\nexpect: 100-continue\r\n\r\nhello",
        put + b"x-y: upgrade\r\ncontent-length: 5\r\n\r\nhello",
        put + b"connection: keep-alive\r\ncontent-length: 005 \r\n\r\nhello",
        put + b"content-length: +5\r\n\r\nhello",
        put + b"content-length: 5\r\nconnection: close\r\n\r\nhello",
        put.replace(b"/c", b"http://x/c?q") + b"content-length: 5\r\n\r\nhello",
        put + b"\r\n",
        get + b"content-length: 2\r\n\r\nhi",
        b"garbage\r\n\r\n",
        b"X",
    ]
    plain = [put + b"content-length: %d\r\n\r\n%b" % (len(body), body)] * 9 + [get + b"\r\n"] * 3
    return chance.choice(plain + odd)


def answer_of(body: bytes) -> Answer:
    return Answer(200, ((b"content-length", b"%d" % len(body)),), body)


class Echo:
    """Answers with what it was asked, the first time and again, some of it later."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.begun = self.settled = self.in_full = 0

    def _again(self, asked: bytes, body: bytes) -> Answer | Settle | None:
        if body == b"raise":
            raise ValueError(body)
        if body == b"later":
            return None
        if body == b"at once":
            return answer_of(asked + body)
        self.begun += 1
        return partial(self._settle, asked + body)

    async def _settle(self, said: bytes) -> Answer:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)
        self.settled += 1
        return answer_of(said)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.in_full += 1
        asked = b"%b %b " % (scope["method"].encode(), scope["raw_path"])
        for _ in range(self._chance.randrange(3)):
            await asyncio.sleep(0)
        body, _ = await read_all(receive)
        if REPEAT in scope:
            fetches = scope["method"] == "GET"
            scope[REPEAT] = (lambda _: answer_of(asked + body)) if fetches else partial(self._again, asked)
        answer = answer_of(asked + body)
        await send({"type": "http.response.start", "status": 200, "headers": [*answer.headers]})
        await send({"type": "http.response.body", "body": answer.body})


Write = tuple[bytes, bool]
"""What is sent at once, and whether the client waits a moment behind it."""


def conversation(chance: random.Random) -> list[Write]:
    """Few messages over and over, some glued to the one before them, some cut in two."""
    pool = [b"".join(message(chance) for _ in range(chance.choice((1, 1, 2)))) for _ in range(2)]
    chosen = [chance.choice(pool) for _ in range(chance.randrange(1, 6))] * chance.randrange(1, 5)
    writes: list[Write] = []
    for one in chosen:
        cut = chance.randrange(len(one) + 1) if chance.random() < 0.1 else len(one)
        for piece in filter(None, (one[:cut], one[cut:])):
            if writes and chance.random() < 0.1:
                writes[-1] = (writes[-1][0] + piece, writes[-1][1])
            else:
                writes.append((piece, chance.random() < 0.7))
    return writes


async def said_to(port: int, writes: list[Write]) -> tuple[bytes, bool]:
    """All that is answered, but for what depends on when pieces come; and whether there was a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers, reset = b"", False
    try:
        async with asyncio.timeout(PATIENCE_S):
            for piece, waits in writes:
                if not writer.transport.is_closing():
                    writer.write(piece)
                await asyncio.sleep(0.001 if waits else 0)
            if not writer.transport.is_closing():
                writer.write_eof()
            while piece := await reader.read(1 << 20):
                answers += piece
    except OSError:  # also where the end of what is sent cannot be told any more
        reset = True
    finally:
        writer.close()
    kept = re.sub(rb"date: [^\r]*\r\n", b"", answers)
    return kept.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""), reset


async def compare(chance: random.Random, campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """25 conversations, each with the same words on several connections one after the other and at once."""
    echo, remembering = Echo(chance), Echo(chance)
    async with serving(echo) as plain, serving(remembering) as rig:
        monkeypatch.setattr(plain.server.repeats, "answer", lambda _asked: None)  # knows nothing
        for _ in range(25):
            writes = conversation(chance)
            for _ in range(3):
                (expected, cut_off), (answers, reset) = await asyncio.gather(
                    said_to(plain.port, writes), said_to(rig.port, writes)
                )
                # What a reset takes along of what was sent before it is a matter of time.
                if not (cut_off or reset):
                    assert answers == expected, writes
                else:
                    assert answers.startswith(expected) or expected.startswith(answers), writes
                campaign.checked("conversations compared")
    assert remembering.begun == remembering.settled
    campaign.checked("begun again", remembering.begun)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_is_remembered_changes_no_answer(
    loop: Any, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in campaign.rounds(short=4, long=200):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(compare(campaign.random, campaign, monkeypatch))
