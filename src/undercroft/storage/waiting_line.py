"""Uploads that wait for room: in line, each with an answer, none for ever."""

import asyncio


class WaitingLine:
    """Uploads that wait for room, in the order of their arrival."""

    def __init__(self) -> None:
        self._sizes: dict[asyncio.Future[bool], int] = {}
        self._open = False
        self.news = asyncio.Event()
        """Set when somebody joins."""

    def open(self) -> None:
        """From now on somebody answers."""
        self._open = True

    def close(self) -> None:
        """Refuses all who wait, and whoever comes."""
        self._open = False
        self.refuse_all()

    async def join(self, size: int) -> bool:
        """Waits for room for `size` bytes; False when there will be none."""
        if not self._open:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._sizes[answer] = size
        self.news.set()
        try:
            return await answer
        finally:
            # Cancelled or answered. Until here the room is kept for it; it reserves it before anybody
            # else gets a turn.
            del self._sizes[answer]

    def _waiting(self) -> list[asyncio.Future[bool]]:
        return [answer for answer in self._sizes if not answer.done()]

    def __bool__(self) -> bool:
        return bool(self._waiting())

    @property
    def wanted(self) -> int:
        """Bytes for all in the line, and for those who were promised theirs but had no turn since."""
        return sum(self._sizes.values())

    def serve(self, room: int, *, overtaking: bool = False) -> int:
        """Promises `room` bytes to the first in the line; answers to how many.

        Unless told so nobody overtakes: the small would leave no room for the large, ever.
        """
        room -= sum(size for answer, size in self._sizes.items() if answer.done())
        served = 0
        for answer in self._waiting():
            if self._sizes[answer] <= room:
                room -= self._sizes[answer]
                answer.set_result(True)
                served += 1
            elif not overtaking:
                break
        return served

    def refuse_some(self) -> None:
        """Sends away half of those who wait, the last that came."""
        waiting = self._waiting()
        for answer in waiting[len(waiting) // 2 :]:
            answer.set_result(False)

    def refuse_all(self) -> None:
        """Sends away whoever waits."""
        for answer in self._waiting():
            answer.set_result(False)
