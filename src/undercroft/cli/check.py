"""`undercroft check`: reads both databases to the end and says what is damaged in them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from undercroft.cli.node_database import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    database_path,
    existing,
    settings_of,
)
from undercroft.cli.output import print_json, told
from undercroft.database.schema import KEY_VALUES, NODE
from undercroft.database.upkeep import MAX_PROBLEMS, integrity_problems

# One damaged page has many lines, all but the same. What to do is the same after the tenth.
MOST_SHOWN = 10

EXIT_DAMAGED = 1


def check(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the databases of a node, running or stopped; nothing is written to them.

    Every row and page is read. A running node goes on serving, but its WAL grows until the end. The
    status is 0 if all is well, 1 if something is damaged, 2 if it could not be checked.
    """
    damaged = False
    with told():
        settings = settings_of(data_dir, config)
        for schema in (KEY_VALUES, NODE):
            path = existing(database_path(settings, schema))
            with progress(path.name) as tell:
                found = integrity_problems(path, schema, tell)
            if as_json:
                print_json({"database": path.name, "problems": found})
            else:
                for line in shown(found) or ["ok"]:
                    typer.echo(f"{path.name}: {line}")
            damaged = damaged or bool(found)
    if damaged:
        raise typer.Exit(EXIT_DAMAGED)


def shown(problems: list[str]) -> list[str]:
    """The first problems, and how many there are besides. No more than `MAX_PROBLEMS` are looked for."""
    if len(problems) <= MOST_SHOWN:
        return problems
    most = " at least" if len(problems) >= MAX_PROBLEMS else ""
    return [*problems[:MOST_SHOWN], f"and{most} {len(problems) - MOST_SHOWN} more"]


@contextmanager
def progress(name: str) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, if that is a terminal."""
    with typer.progressbar(length=100, label=name, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def tell(share: float) -> None:
            percent = int(share * 100)
            if percent > bar.pos:
                bar.update(percent - bar.pos)

        yield tell
