"""What every command prints with: tables for people, JSON for programs, errors on standard error."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from undercroft.errors import UndercroftError

EXIT_UNUSABLE = 2
"""Options or settings are wrong, or what the command needs is missing, locked, foreign or unusable."""

# Where no terminal says how wide it is: keys are long, and one that is cut is of no use.
FILE_COLUMNS = 240

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def console() -> Console:
    """Standard output; nothing in what is printed is taken for markup or coloured by guess."""
    found = Console(highlight=False, markup=False)
    if not found.is_terminal:
        found.width = FILE_COLUMNS
    return found


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A row of cells for each; brackets in them are brackets."""
    made = Table(box=None, pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a `table`."""
    console().print(table(headings, rows))


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    typer.echo(msgspec.json.encode(value).decode())


def failure(message: object, code: int = EXIT_UNUSABLE) -> typer.Exit:
    """Says on standard error what is wrong; what it answers is to be raised."""
    typer.echo(f"undercroft: {message}", err=True)
    return typer.Exit(code)


@contextmanager
def told() -> Iterator[None]:
    """What is wrong inside is said in a line, and ends the command."""
    try:
        yield
    except (UndercroftError, OSError) as error:
        raise failure(error) from error


def moment(at_us: int | None, unknown: str = "") -> str:
    """A time in microseconds since the epoch, to the second."""
    if at_us is None:
        return unknown
    return f"{datetime.fromtimestamp(at_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def size(count: float) -> str:
    """Bytes in a decimal unit: 1.5 GB."""
    for unit in UNITS[:-1]:
        if abs(count) < 1_000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:.1f} {UNITS[-1]}"


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while it lasts, if that is a terminal; what it yields takes what is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
