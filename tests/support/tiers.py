"""Nodes that share an object store: a directory, so that a test can see and change what is in it."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.served_node import PATIENCE_S, ServedNode


def directory_store(folder: Path) -> dict[str, Any]:
    """Settings of an object store in a directory, which is made. What is absent there is asked for again."""
    folder.mkdir(exist_ok=True)
    return {"url": folder.as_uri(), "negative_ttl_ms": 0, "first_byte_timeout_ms": PATIENCE_S * 1_000}


async def transferred(served: ServedNode) -> None:
    """Returns when no transfer is queued."""
    async with asyncio.timeout(PATIENCE_S):
        while await served.node.transfers.count():  # noqa: ASYNC110  # the node has no event for it
            await asyncio.sleep(0.01)
