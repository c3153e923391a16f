"""The line of uploads that wait for room: who is answered, in which order, with what."""

import asyncio

import pytest

from undercroft.storage.waiting_line import WaitingLine


class Uploads:
    """Uploads in a line, by name, with the answers they got in the order in which they got them."""

    def __init__(self) -> None:
        self.line = WaitingLine()
        self.line.open()
        self.answers: dict[str, bool] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, **sizes: int) -> None:
        for name, size in sizes.items():
            self.tasks[name] = asyncio.create_task(self._wait(name, size))
        await asyncio.sleep(0)

    async def _wait(self, name: str, size: int) -> None:
        self.answers[name] = await self.line.join(size)

    async def answered(self) -> dict[str, bool]:
        for _ in range(3):
            await asyncio.sleep(0)
        return self.answers


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


async def test_the_first_come_first_while_there_is_room(uploads: Uploads) -> None:
    await uploads.come(first=10, second=20, third=30)
    assert uploads.line.wanted == 60
    assert uploads.line.serve(30) == 2
    assert list((await uploads.answered()).items()) == [("first", True), ("second", True)]
    assert uploads.line.wanted == 30
    assert uploads.line
    assert uploads.line.serve(29) == 0
    assert uploads.line.serve(30) == 1
    assert (await uploads.answered())["third"]
    assert not uploads.line


async def test_nobody_overtakes_unless_told_so(uploads: Uploads) -> None:
    await uploads.come(large=100, small=1, middle=50)
    assert uploads.line.serve(60) == 0
    assert await uploads.answered() == {}
    assert uploads.line.serve(50, overtaking=True) == 1
    assert await uploads.answered() == {"small": True}


async def test_room_is_promised_once(uploads: Uploads) -> None:
    """Who was promised it has had no turn yet to reserve it."""
    await uploads.come(first=60, second=60)
    assert uploads.line.serve(100) == 1
    assert uploads.line.serve(100) == 0
    assert uploads.line.wanted == 120
    assert await uploads.answered() == {"first": True}
    assert uploads.line.serve(100) == 1


async def test_the_last_half_is_sent_away_first(uploads: Uploads) -> None:
    await uploads.come(a=1, b=1, c=1, d=1, e=1)
    refused = []
    for _ in range(3):
        uploads.line.refuse_some()
        refused.append("".join(await uploads.answered()))
    assert refused == ["cde", "cdeb", "cdeba"]
    assert not any(uploads.answers.values())


async def test_one_that_is_cancelled_stands_in_nobodys_way(uploads: Uploads) -> None:
    await uploads.come(first=60, second=60)
    uploads.tasks["first"].cancel()
    await uploads.answered()
    assert uploads.line.wanted == 60
    assert uploads.line.serve(60) == 1


async def test_a_closed_line_refuses(uploads: Uploads) -> None:
    await uploads.come(early=1)
    uploads.line.close()
    await uploads.come(late=1)
    assert await uploads.answered() == {"early": False, "late": False}
    assert uploads.line.wanted == 0


async def test_a_line_that_was_never_opened_refuses() -> None:
    assert not await WaitingLine().join(1)


async def test_news_that_somebody_came(uploads: Uploads) -> None:
    assert not uploads.line.news.is_set()
    await uploads.come(one=1)
    assert uploads.line.news.is_set()
