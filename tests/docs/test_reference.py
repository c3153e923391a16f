"""The reference pages say what the code does."""

import re
import tomllib
from pathlib import Path

import httpx

import undercroft
from tests.support.node_process import NodeProcess
from tests.support.reference_tables import metrics_table, settings_table, snippets
from undercroft.config import Settings, every_setting

ROOT = Path(__file__).parents[2]


def test_the_configuration_page_has_every_setting() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert settings_table() in page, f"docs/configuration.md should have:\n{settings_table()}"


def test_the_example_file_is_valid() -> None:
    (example,) = snippets(ROOT / "docs/configuration.md", "toml")
    settings = Settings(**tomllib.loads(example))
    assert settings.buffers.of("key_values").max_batch_size == 5000
    assert settings.buffers.of("s3_transfers").max_batch_size == 1000


def test_the_metrics_page_has_every_series(fresh_node: NodeProcess) -> None:
    table = metrics_table(httpx.get(f"{fresh_node.url}/metrics").text)
    page = (ROOT / "docs/metrics.md").read_text()
    assert table in page, f"docs/metrics.md should have:\n{table}"


def test_the_api_page_has_every_route(fresh_node: NodeProcess) -> None:
    page = (ROOT / "docs/http-api.md").read_text()
    for path, operations in httpx.get(f"{fresh_node.url}/api/spec").json()["paths"].items():
        for method in operations.keys() - {"head"}:
            head = ", `HEAD`" if method == "get" and "head" in operations else ""
            written = f"| `{method.removeprefix('x-').upper()} {path}`{head} |".replace("_hash}", "_hash...}")
            many = written.replace("{key}`", "{key...}`").replace("{path}`", "{path...}`")
            assert many in page or written in page, written


def test_environment_variables_in_the_docs_exist() -> None:
    known = {"UNDERCROFT_" + name.upper().replace(".", "__") for name, _ in every_setting()}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"UNDERCROFT_[A-Z_]+", page.read_text()):
            assert name in known or name.endswith("_"), f"{page.name}: {name}"


def test_the_page_of_dependencies_has_every_library_with_a_reason() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[~=<>]", line)[0] for line in wanted}
    assert set(re.findall(r"^\| `([a-z-]+)` \| .+ \| .+ \|$", page, re.MULTILINE)) == names


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "src/undercroft/buffers/DESIGN.md"]
    for page in [*pages, *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_changelog_ends_with_the_version_of_the_package() -> None:
    newest = re.search(r"^## (?!Unreleased)(\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == undercroft.__version__
