"""`undercroft transfers`: what waits to be moved to or from the object store, of a node running or not."""

from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from undercroft.cli.node_database import ConfigOption, DataDirOption, with_node_database
from undercroft.config import Settings
from undercroft.database import Database
from undercroft.s3.transfers import ListedTransfer, listed, retry_parked

# More than a person reads; --json has no end.
TABLE_ROWS = 200

# Where no terminal says how wide it is: keys are long, and one that is cut is of no use.
FILE_COLUMNS = 240

app = typer.Typer(no_args_is_help=True, help="Look at transfers to and from the object store.")


@app.command(name="list")
def list_transfers(
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of them, one JSON object a line")] = False,
) -> None:
    """List transfers, parked ones first, the others in the order of their arrival.

    The node may be running; what it was asked for within the last moment may not be there yet.
    """
    with_node_database(data_dir, config, _print_json if as_json else _print_table)


@app.command()
def retry(data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """Give parked transfers new attempts; a running node begins within seconds."""
    with_node_database(data_dir, config, _retry)


async def _retry(_settings: Settings, database: Database) -> None:
    count = await retry_parked(database)
    typer.echo(f"{count} parked transfer(s) will be tried again")


async def _print_json(_settings: Settings, database: Database) -> None:
    async with aclosing(listed(database)) as pages:
        async for page in pages:
            for transfer in page:
                typer.echo(msgspec.json.encode(transfer).decode())


async def _print_table(_settings: Settings, database: Database) -> None:
    shown: list[ListedTransfer] = []
    total = 0
    async with aclosing(listed(database)) as pages:
        async for page in pages:
            total += len(page)
            shown += page[: TABLE_ROWS - len(shown)]
    if not total:
        typer.echo("no transfers")
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    console.print(_table(shown))
    if total > len(shown):
        typer.echo(f"and {total - len(shown)} more, which --json lists")


def _table(transfers: list[ListedTransfer]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("type", "key", "state", "attempts", "next attempt", "last error"):
        table.add_column(heading, overflow="fold")
    for one in transfers:
        cells = (one.type, one.key, one.state, str(one.attempts), _next_attempt(one), one.last_error or "")
        # As text: in keys and errors brackets are brackets, no markup.
        table.add_row(*map(Text, cells))
    return table


def _next_attempt(transfer: ListedTransfer) -> str:
    if transfer.state != "waiting":
        return ""
    if not transfer.next_attempt_at:
        return "at once"
    return f"{datetime.fromtimestamp(transfer.next_attempt_at / 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
