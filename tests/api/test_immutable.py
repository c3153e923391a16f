"""`uploads.immutable`: what is stored stays, as long as it is whole."""

import pytest

from .conftest import OpenNode
from .dialects import REPLACING, DialectCase


@pytest.mark.parametrize("dialect", REPLACING, ids=lambda dialect: dialect.name)
async def test_what_is_stored_stays_and_what_is_damaged_is_healed(
    open_node: OpenNode, dialect: DialectCase
) -> None:
    served = await open_node(uploads={"immutable": True})
    path = dialect.path("0" * 64)

    async def put(content: bytes) -> int:
        return (await served.client.request(dialect.method, path, content=content)).status_code

    assert await put(b"first") == dialect.created
    # The client is told what it takes for success: the cache has the entry.
    assert await put(b"second") == dialect.again
    assert (await served.client.get(path)).content == b"first"
    (file,) = (served.folder / "artifacts").rglob("0" * 64)
    file.write_bytes(b"fir")
    assert (await served.client.get(path)).status_code == 404
    assert await put(b"third") == dialect.created
    assert (await served.client.get(path)).content == b"third"
