"""The node the build tools talk to: a process of its own, stopped as a person would, by SIGTERM."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.node_process import NodeProcess, node_process

from .build_client import Build, BuildClient
from .c_project import fresh_marker
from .clients_table import Row, write_table
from .every_client import CLIENTS

GUESTS = {"moon", "rush"}
"""Those that come by another tool's routes, and take minutes to be tried with faults and tokens."""

LONG = {"test_faults.py", "test_tokens.py"}

_ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with node_process(tmp_path / "node") as running:
        yield running
        assert running.stop() == 0


@dataclass(frozen=True)
class BothBuilds:
    """A project nobody had built before, built twice against one node that has been stopped since."""

    project: Path
    cold: Build
    warm: Build
    data_dir: Path
    """What the node left behind."""


@pytest.fixture(scope="session", params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> BuildClient:
    """Each build tool in turn, once it is known to be installed."""
    tool: BuildClient = request.param
    tool.require()
    return tool


@pytest.fixture(scope="session")
def both_builds(
    client: BuildClient, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> BothBuilds:
    """The builds that every test of a tool starts from: made once, since they take most of the time."""
    folder = tmp_path_factory.mktemp(client.name)
    client.write_project(folder / "project", fresh_marker())
    with node_process(folder / "data") as node:
        cold = client.build(folder / "project", node.url + client.path, folder / "cold")
        warm = client.build(folder / "project", node.url + client.path, folder / "warm")
        assert node.stop() == 0
    row = Row(client.name, client.version(), cold.seconds, warm.seconds, warm.hits, warm.cacheable)
    request.config.stash[_ROWS].append(row)
    return BothBuilds(folder / "project", cold, warm, folder / "data")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-clients-table", action="store_true", help="write what the builds took into docs/clients.md"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the longest builds of `GUESTS` to `make clients`."""
    if config.getoption("--update-clients-table", default=False):
        return
    left = [item for item in items if item.path.name in LONG and _tool(item) in GUESTS]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


def _tool(item: pytest.Item) -> str | None:
    client = getattr(getattr(item, "callspec", None), "params", {}).get("client")
    return client.name if client is not None else None


def pytest_configure(config: pytest.Config) -> None:
    rows: list[Row] = []
    config.stash[_ROWS] = rows


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Not known when the tests of other folders are run, too: pytest reads this file too late then.
    if session.config.getoption("--update-clients-table", default=False):
        rows = session.config.stash[_ROWS]
        write_table(rows)
