"""The builds of one tool against a node that asks for tokens."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import apsw
from typer.testing import CliRunner

from tests.support.node_process import node_process
from undercroft.auth.credentials import new_token
from undercroft.cli import app

from .build_client import Build, BuildClient


@dataclass(frozen=True)
class TokenBuilds:
    """Builds of one project, each with nothing kept locally, and who stored anything."""

    scoped_cold: Build
    """Token `pr` of a trust scope, as the first that stores."""
    scoped_warm: Build
    cold: Build
    """Token `ci`, after the builds of the scope."""
    warm: Build
    reader_warm: Build
    """Token `desk`, which may only read."""
    reader_cold: Build
    """The same in a project where nobody ever stored."""
    stranger: Build
    """A token that was never given out."""
    writers: frozenset[str]
    """Names of the tokens that stored anything."""


def build_with_tokens(client: BuildClient, project: Path, folder: Path) -> TokenBuilds:
    """Make all the builds, three at a time, since some tools rather wait than work."""
    data = folder / "data"
    tokens = {
        "ci": _created(data, "ci", "--read", "--write"),
        "desk": _created(data, "desk", "--read"),
        "pr": _created(data, "pr", "--read", "--write", "--scope", "pr"),
        "stranger": new_token().text,
    }
    with node_process(data, {"AUTH__MODE": "tokens"}) as node, ThreadPoolExecutor(3) as threads:
        url = node.url + client.path
        nobody_stores_here = node.url + client.path.replace("/acme/app", "/acme/empty")

        def build(name: str, token: str, at: str = url) -> Build:
            return client.build(project, at, folder / name, tokens[token])

        reader_cold = threads.submit(build, "reader-cold", "desk", nobody_stores_here)
        stranger = threads.submit(build, "stranger", "stranger")
        scoped_cold = build("scoped-cold", "pr")
        scoped_warm = threads.submit(build, "scoped-warm", "pr")
        cold = build("cold", "ci")
        reader_warm = threads.submit(build, "reader-warm", "desk")
        builds = TokenBuilds(
            scoped_cold=scoped_cold,
            scoped_warm=scoped_warm.result(),
            cold=cold,
            warm=build("warm", "ci"),
            reader_warm=reader_warm.result(),
            reader_cold=reader_cold.result(),
            stranger=stranger.result(),
            writers=_writers(data),
        )
        assert node.stop() == 0
    return builds


def _created(data_dir: Path, name: str, *options: str) -> str:
    asked = ["token", "create", "--project", "acme/*", "--name", name, *options, "--data-dir", str(data_dir)]
    made = CliRunner().invoke(app, asked)
    assert made.exit_code == 0, made.output
    return made.stdout.strip()


def _writers(data_dir: Path) -> frozenset[str]:
    connection = apsw.Connection(str(data_dir / "node.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        rows = connection.execute("SELECT written_by FROM cache_artifacts")
        return frozenset(str(who).partition(" (")[0] for (who,) in rows)
    finally:
        connection.close()
