"""A node's data, opened by a command: as another process, beside a running node or alone."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable

import structlog

from undercroft.cli.node_database import database_path, existing, refuse_older
from undercroft.config import Settings
from undercroft.database.schema import KEY_VALUES, NODE
from undercroft.node import Node


def with_data(settings: Settings, act: Callable[[Node], Awaitable[None]]) -> None:
    """Does it with a node that serves nobody; what it has begun is committed on return.

    Raises an `UndercroftError` or OSError that says what is in the way.
    """
    for schema in (KEY_VALUES, NODE):
        existing(database_path(settings, schema))
    refuse_older(database_path(settings, NODE))
    # What a command has to say it prints; what goes wrong is on standard error.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_with_node(Node(settings), act))


async def _with_node(node: Node, act: Callable[[Node], Awaitable[None]]) -> None:
    try:
        await node.open_data()
        await act(node)
    finally:
        await node.stop()
