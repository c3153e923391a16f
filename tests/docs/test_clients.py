"""The configurations in docs/clients.md are those the real build tools are driven with."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.build_client import BuildClient
from tests.clients.clients_table import PAGE
from tests.clients.every_client import CLIENTS

DRIVEN = Path(__file__).parents[1] / "clients"

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def configuration(client: BuildClient) -> dict[str, str]:
    """The snippets for a tool, by their language."""
    section = PAGE.read_text().split(f"\n### {client.name}\n")[1].split("\n### ")[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))


def settings_in(language: str, snippet: str) -> set[str]:
    """Names of what a snippet sets, and what it sets other than text of the reader's own."""
    patterns = {
        "sh": r"^export (\w+)=|(?<=\|)([\w-]+)(?==)",
        "bazelrc": r"(--\w+)=",
        "groovy": r"^ *(\w+)(?: = |\(| \{)",
        "yaml": r"^ *(\w+):",
        "json": r'"(\w+)":',
    }
    found = re.findall(patterns[language], snippet, re.MULTILINE)
    return {name for match in found for name in ([match] if isinstance(match, str) else match) if name}


def test_every_tool_has_its_section() -> None:
    assert re.findall(r"^### (\S+)$", PAGE.read_text(), re.MULTILINE) == [client.name for client in CLIENTS]


@each_client
def test_it_sets_only_what_the_tests_of_the_tool_set(client: BuildClient) -> None:
    files = [DRIVEN / f"{client.name}_client.py", *(DRIVEN / f"{client.name}_project").glob("*.*")]
    driven = "\n".join(file.read_text() for file in files)
    for language, snippet in configuration(client).items():
        assert settings_in(language, snippet)
        for name in settings_in(language, snippet):
            assert re.search(rf"(?<!\w){name}(?!\w)", driven), f"{client.name}: {name}"


@each_client
def test_it_names_the_path_and_the_token(client: BuildClient) -> None:
    text = "\n".join(configuration(client).values())
    assert "TOKEN" in text
    # moon has the project apart from the rest of the path.
    path = client.path if client.name != "moon" else client.path.rpartition("/")[0]
    assert re.search(rf"http://HOST:4000{path}(?![\w/])", text)


@each_client
def test_it_is_well_formed(client: BuildClient) -> None:
    snippets = configuration(client)
    if "json" in snippets:
        json.loads(snippets["json"])
    if "sh" in snippets:
        subprocess.run(["sh", "-n", "-c", snippets["sh"]], check=True)
