"""What a connection needs of whoever keeps it."""

import asyncio
from typing import TYPE_CHECKING, Protocol

from undercroft.http.exchange import Application, Pieces
from undercroft.http.limits import Limits
from undercroft.http.repeats import Repeats

if TYPE_CHECKING:
    from undercroft.http.connection import HttpConnection
    from undercroft.http.writing import WritingProtocol


class Owner(Protocol):
    """Who keeps the connections."""

    application: Application
    limits: Limits
    date_line: bytes
    busy: set["HttpConnection"]
    """Those with a request that is being answered, whether its client is still there or not."""
    repeats: Repeats

    def opened(self, connection: "HttpConnection") -> None:
        """A client has connected."""
        ...

    def closed(self, connection: "HttpConnection") -> None:
        """It is gone."""
        ...

    def start(self, connection: "HttpConnection") -> "asyncio.Task[None]":
        """Runs `connection.serve`."""
        ...

    def write_soon(self, connection: "WritingProtocol", pieces: Pieces) -> None:
        """Writes at the end of this turn of the loop, when all that has come by now was looked at."""
        ...

    def write_answers(self) -> None:
        """Writes them now."""
        ...
