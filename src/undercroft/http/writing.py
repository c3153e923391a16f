"""What a connection writes: in order, and no faster than the client reads."""

import asyncio

from undercroft.http.exchange import Pieces
from undercroft.http.owner import Owner


class WritingProtocol(asyncio.Protocol):
    """The half of a connection that goes to the client: the `Wire` of exchanges, but for their bodies."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._drain: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        """The client does not read as fast as it is sent to."""
        if self._drain is None:
            self._drain = self._loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up."""
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.set_result(None)

    async def drained(self) -> None:
        """Returns when the client has read enough for more, or has gone."""
        if self._drain is not None:
            await asyncio.shield(self._drain)

    @property
    def date_line(self) -> bytes:
        """The header with the time of an answer."""
        return self._owner.date_line

    def write(self, *pieces: bytes | bytearray) -> None:
        """Hands bytes to the transport; nothing happens once the client has gone."""
        self._owner.write_answers()  # one of them may be for this client, and comes first
        if self._transport is not None and not self._transport.is_closing():
            if len(pieces) == 1:
                self._transport.write(pieces[0])
            else:
                self._transport.writelines(pieces)

    def write_soon(self, pieces: Pieces) -> None:
        """Does so at the end of this turn of the loop, or before the connection ends."""
        self._owner.write_soon(self, pieces)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
