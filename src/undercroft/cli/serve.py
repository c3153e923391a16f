"""`undercroft serve`: runs the node until a signal."""

import asyncio
import gc
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from undercroft.cli.node_database import DataDirOption
from undercroft.cli.parent import EXIT_CRASHED, EXIT_UNUSABLE, Parent
from undercroft.config import Settings, load
from undercroft.errors import RowsLostError, UndercroftError
from undercroft.node import Node, running
from undercroft.processes.place import Place
from undercroft.supervisor import Crash
from undercroft.telemetry import logs

log = structlog.get_logger(__name__)

# How long a thread may keep Python's global lock while another wants it; 5 ms by default. The writers'
# threads and those of the disk wait for it at every step: docs/decisions/0011-switch-interval.md.
SWITCH_INTERVAL_S = 0.001

# More than any node has clients; a limit without end makes some programs look at each of them.
MOST_DESCRIPTORS = 1 << 20

# Some programs signal a process and its group, so that it hears of one request twice.
ONE_REQUEST_S = 0.2


def serve(
    data_dir: DataDirOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for a free one [default: 4000]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve together [default: 1]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings")] = None,
) -> None:
    """Run the node until SIGTERM or SIGINT; a second signal stops it at once.

    Every setting can also come from the environment (UNDERCROFT_PORT=4001,
    UNDERCROFT_BUFFERS__SHUTDOWN_MS=5000) or from the TOML file; flags win over both.
    """
    given = {"data_dir": data_dir, "host": host, "port": port, "workers": workers}
    try:
        settings = load({name: value for name, value in given.items() if value is not None}, config)
    except UndercroftError as error:
        raise typer.Exit(_failure(str(error), EXIT_UNUSABLE)) from error
    logs.configure(settings.log.level, settings.log.format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _take_descriptors()
    status = run_node(settings) if settings.workers == 1 else _run_parent(settings)
    if status:
        raise typer.Exit(status)


def _take_descriptors() -> None:
    """As many open files as this user may have: each connection and each artifact being sent is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _run_parent(settings: Settings) -> int:
    try:
        return Parent(settings, run_node, one_request_s=ONE_REQUEST_S).run()
    except (UndercroftError, OSError) as error:
        return _failure(str(error), EXIT_UNUSABLE)


def run_node(settings: Settings, place: Place | None = None) -> int:
    """Runs a node, or its part that has this place, to its end; answers the exit status."""
    if place is not None:
        logs.configure(settings.log.level, settings.log.format, worker=place.number)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            crash = runner.run(_run(settings, place))
    except RowsLostError as error:
        return _failure(str(error), EXIT_CRASHED)
    except (UndercroftError, OSError) as error:
        return _failure(str(error), EXIT_UNUSABLE)
    if crash is None:
        return 0
    return _failure(
        f"the worker {crash.worker} crashed: {crash.error!r}; what was accepted is committed or spilled",
        EXIT_CRASHED,
    )


def _failure(message: str, status: int) -> int:
    typer.echo(f"undercroft: {message}", err=True)
    return status


async def _run(settings: Settings, place: Place | None = None) -> Crash | None:
    """Serves until a signal or the parent's word (None), or a crash, which may also come of the drain."""
    node = Node(settings, place)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT) if place is None else (signal.SIGTERM,):
        loop.add_signal_handler(number, _on_signal, number, node)
    if place is not None:
        loop.add_reader(place.lifeline, _on_end_of_line, place.lifeline, node)
    async with running(node):
        # What there is now stays to the end. Full collections (workers/spare_memory.py) need not look at it.
        gc.freeze()
        crash = await node.supervisor.finished()
    log.info("stopped")
    return crash or node.failed_drain


def _on_end_of_line(lifeline: int, node: Node) -> None:
    """The parent wants the worker to end, or is dead. No signal: two of them would be one too many."""
    asyncio.get_running_loop().remove_reader(lifeline)
    node.request_stop()


def _on_signal(number: signal.Signals, node: Node) -> None:
    now = asyncio.get_running_loop().time()
    if not node.stop_asked_at:
        # First of all: a log that cannot be written must not keep anybody from stopping.
        node.request_stop()
        node.stop_asked_at = now
        log.info("stopping", signal=number.name)
    elif now - node.stop_asked_at >= ONE_REQUEST_S:
        # Asked twice: nothing more is written, which the data survives like a SIGKILL.
        logs.Outlet(sys.stderr).write("undercroft: stopped at once by a second signal\n")
        os._exit(128 + number)
