"""`undercroft token`: who may do what. A running node follows within a second."""

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from undercroft.auth.grants import checked_pattern, checked_scope
from undercroft.auth.tokens import ListedToken, NewToken, create_token, list_tokens, revoke_token
from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, with_node_database
from undercroft.cli.output import failure, print_json, print_table, told
from undercroft.clock import now_us
from undercroft.config import Settings
from undercroft.database import Database
from undercroft.errors import SettingsError

EXIT_NOT_FOUND = 1
"""There is no such token."""

_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke tokens.")


@app.command()
def create(  # noqa: PLR0917  # options of a command, which typer passes by name
    project: Annotated[list[str], typer.Option(help="ACCOUNT/PROJECT, with * for any; may be repeated")],
    read: Annotated[bool, typer.Option("--read", help="Allow reading")] = False,
    write: Annotated[bool, typer.Option("--write", help="Allow writing")] = False,
    name: Annotated[str | None, typer.Option(help="Who it is for [default: the id of the token]")] = None,
    scope: Annotated[
        str | None, typer.Option(help="Trust scope: what it writes only tokens of this scope read")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Lifetime, like 12h, 30d or 8w [default: none]")] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token and print it, once: the node keeps only a hash of it."""
    with told():
        wanted = NewToken(
            _checked_name(name),
            tuple(checked_pattern(one) for one in project),
            read,
            write,
            None if scope is None else checked_scope(scope),
            None if expires is None else now_us() + _lifetime_us(expires),
        )
        if not read and not write:
            raise SettingsError("a token that may do nothing is of no use: give --read, --write or both")

    async def act(_settings: Settings, database: Database) -> None:
        token = await create_token(database, wanted)
        if as_json:
            print_json({"id": token.id, "token": token.text})
        else:
            typer.echo(token.text)

    with_node_database(data_dir, config, act, create=True)


def _checked_name(name: str | None) -> str | None:
    if name is not None and not (name.isprintable() and 0 < len(name) <= 100):
        raise SettingsError(f"{name[:100]!r} is no name: up to 100 printable characters")
    return name


def _lifetime_us(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        raise SettingsError(f"{text!r} is no lifetime: write 90m, 12h, 30d or 8w")
    return int(match[1]) * _SECONDS[match[2]] * 1_000_000


@app.command(name="list")
def list_(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List tokens, revoked and expired ones too. Secrets are not kept, so they are not shown."""

    async def act(_settings: Settings, database: Database) -> None:
        tokens = await list_tokens(database)
        if as_json:
            for token in tokens:
                print_json(token)
        elif tokens:
            headings = ("id", "name", "projects", "rights", "scope", "created (UTC)", "state")
            print_table(headings, map(_cells, tokens))
        else:
            typer.echo("no tokens")

    with_node_database(data_dir, config, act)


def _cells(one: ListedToken) -> tuple[str, ...]:
    rights = " ".join(["read"] * one.may_read + ["write"] * one.may_write)
    projects, scope = " ".join(one.projects), one.scope or ""
    return (one.id, one.name, projects, rights, scope, _day(one.created_at), _state(one))


def _state(token: ListedToken) -> str:
    if token.revoked_at is not None:
        return f"revoked {_day(token.revoked_at)}"
    if token.expires_at is None:
        return "valid"
    return f"{'expired' if token.expires_at <= now_us() else 'valid until'} {_day(token.expires_at)}"


def _day(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us / 1_000_000, UTC):%Y-%m-%d %H:%M}"


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of the token")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a token. A running node refuses it from a second later on."""

    async def act(_settings: Settings, database: Database) -> None:
        if not await revoke_token(database, name):
            raise failure(f"there is no token named {name!r} that is not revoked already", EXIT_NOT_FOUND)
        if as_json:
            print_json({"revoked": name})
        else:
            typer.echo(f"revoked {name}")

    with_node_database(data_dir, config, act)
