"""The house as `design.md` draws it: imports point down, and each kind of work has its place."""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import undercroft

SOURCE = Path(undercroft.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text()) for file in FILES}

# Lowest first. A part imports from parts below it and from itself, never sideways.
LAYERS = (
    ("errors", "clock", "durable", "telemetry.events", "supervisor"),
    ("http",),
    ("database", "storage", "s3"),
    ("processes.place",),
    ("buffers",),
    ("s3.transfers", "key_values", "telemetry", "settings_sections"),
    ("artifact_rows", "config", "auth"),
    ("artifacts",),
    ("hydration", "multipart"),
    ("s3.moves",),
    ("s3.transfer_worker", "read_through", "workers"),
    ("api",),
    ("background", "processes", "start_checks"),
    ("node",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 42
WIRING = {("node.py", "__init__"), ("background.py", "__init__")}
"""May be longer: one line per part."""
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

# Background work starts here and nowhere else.
STARTERS = {
    "supervisor.py": {"create_task", "ensure_future"},
    "database/connection_thread.py": {"Thread"},
    "http/server.py": {"create_task"},  # one for each connection, ended with it
    "api/responses.py": {"ensure_future"},  # listens for the client's leaving, inside one request
    "storage/disk_threads.py": {"Thread"},
}
ROW_QUERIES = {"artifacts.py", "auth/tokens.py", "key_values.py", "s3/transfers.py", "api/health.py"}
ROW_QUERIES_IN = ("database", "buffers", "workers")


def part_of(module: str) -> str:
    """The part a module below `undercroft` belongs to. Some packages are spread over layers."""
    apart = [part for part in RANK if "." in part and f"{module}.".startswith(f"{part}.")]
    return apart[0] if apart else module.split(".", maxsplit=1)[0]


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported, with the imported name where that may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers_of(package: str) -> set[str]:
    return {
        file for file, tree in TREES.items() if any(name.split(".")[0] == package for name in imports(tree))
    }


def calls(tree: ast.AST) -> set[str]:
    """Names of what is called, without what it is called on."""
    functions = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {
        function.attr if isinstance(function, ast.Attribute) else function.id
        for function in functions
        if isinstance(function, ast.Attribute | ast.Name)
    }


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40
    assert {"node.py", "api/app.py", "buffers/sqlite_buffer.py"} <= set(TREES)


@pytest.mark.parametrize("file", [file for file in TREES if file != "__init__.py"])
def test_imports_point_down(file: str) -> None:
    part = part_of(module_of(file))
    for name in imports(TREES[file]):
        if not name.startswith("undercroft."):
            continue
        other = part_of(name.removeprefix("undercroft."))
        if other in RANK:
            assert other == part or RANK[other] < RANK[part], f"{file} imports {name}"


def test_every_part_has_a_layer() -> None:
    parts = {part_of(module_of(file)) for file in TREES if file != "__init__.py"}
    assert parts == set(RANK)


def test_metrics_library_only_in_telemetry() -> None:
    assert {file.split("/")[0] for file in importers_of("prometheus_client")} == {"telemetry"}


def test_sqlite_only_where_rows_are_read_or_written() -> None:
    outside = {file for file in importers_of("apsw") if file.split("/")[0] not in ROW_QUERIES_IN}
    assert outside <= ROW_QUERIES
    assert importers_of("sqlite3") == set()


def test_connections_and_pragmas_only_in_database() -> None:
    for file, tree in TREES.items():
        if not file.startswith("database/"):
            assert not calls(tree) & {"pragma", "open_connection", "Connection"}, file
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not [text for text in texts if isinstance(text, str) and "PRAGMA" in text], file


def test_http_server_only_in_its_module() -> None:
    assert importers_of("httptools") == {"http/connection.py", "http/parsing.py"}


def test_background_work_starts_in_few_places() -> None:
    starting = set(chain.from_iterable(STARTERS.values())) | {"Process", "start_new_thread", "TaskGroup"}
    found = {file: calls(tree) & starting for file, tree in TREES.items()}
    assert {file: names for file, names in found.items() if names} == STARTERS


def test_process_ends_in_the_command_only() -> None:
    for file, tree in TREES.items():
        if not file.startswith("cli/"):
            # A transport has an `abort`, too.
            transports = ("http/connection.py", "http/writing.py")
            endings = {"exit", "_exit", "SystemExit"} | ({"abort"} if file not in transports else set())
            assert not calls(tree) & endings, file


def test_broad_except_says_why() -> None:
    """Ruff finds them; this keeps their number small."""
    marked = {file.relative_to(SOURCE).as_posix() for file in FILES if "noqa: BLE001" in file.read_text()}
    edges = {"http/connection.py", "http/repeats.py", "api/app.py", "node.py"}
    assert marked <= edges | {"database/connection_thread.py", "storage/disk_threads.py"}


@pytest.mark.parametrize("file", TREES)
def test_modules_are_short_and_named_for_what_they_hold(file: str) -> None:
    assert len((SOURCE / file).read_text().splitlines()) <= MAX_MODULE_LINES
    assert not set(module_of(file).split(".")) & BANNED_NAMES


@pytest.mark.parametrize("file", TREES)
def test_functions_are_short(file: str) -> None:
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES or (file, node.name) in WIRING, f"{file}: {node.name}"
