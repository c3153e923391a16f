"""A node of its own for each test, and what is common to all dialects."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.served_node import ServedNode, served_node

OpenNode = Callable[..., Awaitable[ServedNode]]


@pytest.fixture
async def open_node(tmp_path: Path) -> AsyncIterator[OpenNode]:
    """Starts a node with settings; it is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def open_one(**settings: Any) -> ServedNode:
            return await stack.enter_async_context(served_node(tmp_path / "data", **settings))

        yield open_one


@pytest.fixture
async def served(open_node: OpenNode) -> ServedNode:
    return await open_node()
