"""How long somebody waits for somebody else: the object store, above all, has no deadline of its own."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from undercroft.errors import ObjectStoreError

T = TypeVar("T")


async def in_time(answer: Awaitable[T], seconds: float, what: str) -> T:
    """What is awaited; `what` names it. Raises `ObjectStoreError` if it does not come in time.

    That counts as throttled: with fewer requests at once it might make it.
    """
    patience = asyncio.timeout(seconds)
    try:
        async with patience:
            return await answer
    except TimeoutError:
        if not patience.expired():
            raise
        raise ObjectStoreError(f"waited {seconds:g} s for {what}", throttled=True) from None
