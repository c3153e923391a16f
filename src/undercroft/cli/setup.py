"""`undercroft setup TOOL`: prints the configuration that points a build tool at a node."""

import string
from typing import Annotated
from urllib.parse import urlsplit

import typer

from undercroft.cli.client_configuration import TOOLS, Snippet, Target
from undercroft.cli.node_database import JsonOption
from undercroft.cli.output import print_json, told
from undercroft.errors import SettingsError
from undercroft.storage.layout import safe_handle

PROJECT_PARTS = 2

# Of a token68 (RFC 9110, 11.2), which is what every tool can send: none of them means anything to a shell.
TOKEN_CHARACTERS = set(string.ascii_letters + string.digits + "-._~+/=")


def setup(
    tool: Annotated[str, typer.Argument(help=f"One of {', '.join(TOOLS)}")],
    url: Annotated[str, typer.Option(help="Where clients reach the node")] = "http://127.0.0.1:4000",
    project: Annotated[str, typer.Option(help="ACCOUNT/PROJECT, names of your choice")] = "acme/app",
    token: Annotated[
        str | None, typer.Option(help="Token of the client [default: the node asks for none]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the configuration that points a build tool at a node.

    Nothing is asked or written: the node may be anywhere, running or not. Each piece can be pasted where its
    first line says; a token in it is a secret.
    """
    with told():
        snippets = _configuration(tool, _target(url, project, token))
    for snippet in snippets:
        if as_json:
            print_json(snippet)
        else:
            typer.echo(f"{snippet.with_place}\n")


def _configuration(tool: str, target: Target) -> list[Snippet]:
    if tool not in TOOLS:
        raise SettingsError(f"no build tool is called {tool!r} here: there are {', '.join(TOOLS)}")
    return TOOLS[tool](target)


def _target(url: str, project: str, token: str | None) -> Target:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(f"{url!r} is no address of a node: write http://HOST:PORT or https://HOST")
    handles = project.split("/")
    if len(handles) != PROJECT_PARTS:
        raise SettingsError(f"{project!r} is no project: write ACCOUNT/PROJECT")
    account, name = (safe_handle(handle, "project") for handle in handles)
    if token is not None and not (token and set(token) <= TOKEN_CHARACTERS):
        raise SettingsError(
            "a token has no spaces and no quotes: copy it as `undercroft token create` printed it"
        )
    return Target(url.rstrip("/"), account, name, token)
