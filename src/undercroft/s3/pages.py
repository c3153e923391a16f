"""What the object store has, page by page, none of which is waited for without end."""

from collections.abc import AsyncGenerator, AsyncIterator

from undercroft.s3.object_store import ObjectStore, RemoteObject
from undercroft.s3.patience import in_time


async def pages_of(
    store: ObjectStore, prefix: str, seconds: float
) -> AsyncGenerator[list[RemoteObject], None]:
    """Objects under a prefix, which is a whole number of components; close it, as it has a connection.

    Raises `ObjectStoreError`, also when a page takes longer than that.
    """
    pages = store.list(prefix)
    try:
        while page := await in_time(_next(pages), seconds, f"list of {prefix or 'the object store'}"):
            yield [found for found in page[0] if found.key.startswith(prefix)]
    finally:
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


async def _next(pages: AsyncIterator[list[RemoteObject]]) -> tuple[list[RemoteObject]] | None:
    """The next page, in a tuple, because an empty one is not the end."""
    async for page in pages:
        return (page,)
    return None
