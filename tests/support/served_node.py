"""A node in the test's own event loop, with a client, raw connections, and eyes on what it stores."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import httpx

from tests.support.folders import artifact_files, temporary_files
from tests.support.leaks import open_files
from undercroft.config import Settings
from undercroft.database.connection import open_connection, transaction
from undercroft.database.schema import KEY_VALUES, NODE, migrate
from undercroft.node import Node, running

PATIENCE_S = 20


class Answer(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawConnection:
    """A connection that sends whatever it is given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *data: bytes) -> None:
        self._writer.writelines(data)
        await self._writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer; fails if the connection ends inside it."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split()[1])
            lines = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in lines}
            has_body = method != "HEAD" and status >= 200 and status not in (204, 304)
            length = int(headers["content-length"]) if has_body else 0
            return Answer(status, headers, await self._reader.readexactly(length))

    async def some(self) -> bytes:
        """The first bytes that come."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read(1_000)

    async def line(self) -> bytes:
        """The next line, without what ends it."""
        async with asyncio.timeout(PATIENCE_S):
            return (await self._reader.readline()).rstrip(b"\r\n")

    async def rest(self) -> bytes:
        """Everything until the node closes the connection."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read()

    async def is_usable(self) -> bool:
        """Whether the connection still answers; False if it was closed."""
        try:
            await self.send(b"GET /up HTTP/1.1\r\nhost: x\r\n\r\n")
            return (await self.answer()).status == 200
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise  # a stray byte is worse than either
        except ConnectionError:
            pass
        return False

    def end_sending(self) -> None:
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class ServedNode:
    """A started node as tests see it."""

    def __init__(self, node: Node, client: httpx.AsyncClient) -> None:
        self.node = node
        self.client = client
        self.folder = node.settings.data_dir

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[RawConnection]:
        opened = RawConnection(*await asyncio.open_connection("127.0.0.1", self.node.port))
        try:
            yield opened
        finally:
            await opened.close()

    async def raw(self, *data: bytes, method: str = "GET") -> tuple[Answer, bool]:
        """Sends the bytes on a new connection; the answer, and whether the connection is usable after."""
        async with self.connection() as connection:
            await connection.send(*data)
            return await connection.answer(method), await connection.is_usable()

    def rows(self, sql: str, database: str = "node") -> list[tuple[Any, ...]]:
        """What another process reads."""
        connection = apsw.Connection(str(self.folder / f"{database}.sqlite"))
        try:
            return list(connection.execute(sql))
        finally:
            connection.close()

    async def upload_begun(self) -> None:
        """Returns when room is reserved for an upload."""
        async with asyncio.timeout(PATIENCE_S):
            while self.node.capacity.reserved == 0:  # noqa: ASYNC110  # the node has no event for it
                await asyncio.sleep(0)

    async def requests_ended(self) -> None:
        """Returns when the node works on no request any more."""
        assert self.node.server is not None
        async with asyncio.timeout(PATIENCE_S):
            while self.node.server.busy:  # noqa: ASYNC110  # the server has no event for it
                await asyncio.sleep(0)

    async def assert_nothing_stored(self) -> None:
        """No file, no row, nothing temporary, nothing reserved, nothing open."""
        await self.requests_ended()
        await self.node.artifacts.flush()
        await self.node.key_values.flush()
        assert artifact_files(self.folder) == []
        assert temporary_files(self.folder) == []
        assert open_files(self.folder / "artifacts") == []
        assert (self.node.capacity.used, self.node.capacity.reserved) == (0, 0)
        assert self.rows("SELECT key FROM cache_artifacts") == []
        assert self.rows("SELECT key FROM key_value_entries", "key_values") == []


@cache
def _databases() -> tempfile.TemporaryDirectory[str]:
    """Empty databases, made once: to copy them is several times faster than to make them for each test."""
    folder = tempfile.TemporaryDirectory(prefix="undercroft-tests-")
    for name, schema in (("key_values", KEY_VALUES), ("node", NODE)):
        connection = open_connection(Path(folder.name) / f"{name}.sqlite")
        with transaction(connection):
            migrate(connection, schema)
        connection.close()
    return folder


@asynccontextmanager
async def served_node(data_dir: Path, **settings: Any) -> AsyncIterator[ServedNode]:
    """Starts a node on a free port, in a folder that is not there yet."""
    shutil.copytree(_databases().name, data_dir)
    node = Node(Settings(data_dir=data_dir, port=0, **settings))
    async with (
        running(node),
        httpx.AsyncClient(base_url=node.url, timeout=PATIENCE_S, verify=False) as client,
    ):
        yield ServedNode(node, client)
