"""`undercroft transfers`: what waits to be moved to or from the object store, of a node running or not."""

from contextlib import aclosing
from typing import Annotated

import typer

from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, with_node_database
from undercroft.cli.output import moment, print_json, print_table
from undercroft.config import Settings
from undercroft.database import Database
from undercroft.s3.transfers import ListedTransfer, listed, retry_parked

# More than a person reads; --json has no end.
TABLE_ROWS = 200

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
def retry(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Give parked transfers new attempts; a running node begins within seconds."""

    async def act(_settings: Settings, database: Database) -> None:
        count = await retry_parked(database)
        if as_json:
            print_json({"retried": count})
        else:
            typer.echo(f"{count} parked transfer(s) will be tried again")

    with_node_database(data_dir, config, act)


async def _print_json(_settings: Settings, database: Database) -> None:
    async with aclosing(listed(database)) as pages:
        async for page in pages:
            for transfer in page:
                print_json(transfer)


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
    print_table(("type", "key", "state", "attempts", "next attempt", "last error"), map(_cells, shown))
    if total > len(shown):
        typer.echo(f"and {total - len(shown)} more, which --json lists")


def _cells(one: ListedTransfer) -> tuple[str, ...]:
    return (one.type, one.key, one.state, str(one.attempts), _next_attempt(one), one.last_error or "")


def _next_attempt(transfer: ListedTransfer) -> str:
    if transfer.state != "waiting":
        return ""
    if not transfer.next_attempt_at:
        return "at once"
    return moment(transfer.next_attempt_at)
