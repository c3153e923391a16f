"""The dialect that the architecture page adds works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.served_node import served_node
from undercroft.api import dialects, responses
from undercroft.api.artifact_routes import FOUND, NOT_STORED
from undercroft.api.dialects import SOFT, Dialect
from undercroft.api.request import Request
from undercroft.api.routing import OCTETS, Route
from undercroft.api.services import Services
from undercroft.storage.layout import artifact_key, safe_component, safe_handle
from undercroft.telemetry import traffic_metrics

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

# What a file beside the other dialects imports.
NAMES = (responses, Request, OCTETS, Route, Services, artifact_key, safe_component, safe_handle)


def written_dialect() -> Dialect:
    """The class and the line of the table, from the page."""
    section = PAGE.read_text().partition("## A build tool is added")[2].partition("\n## ")[0]
    module, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {**globals(), "FOUND": FOUND, "NOT_STORED": NOT_STORED}
    exec(module, names)  # it is the test
    dialect = eval(line, names | {"Dialect": Dialect, "SOFT": SOFT})  # so is this
    assert isinstance(dialect, Dialect)
    return dialect


async def test_it_stores_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, written_dialect()))
    monkeypatch.setattr(traffic_metrics, "TOOLS", (*traffic_metrics.TOOLS, "blob"))
    async with served_node(tmp_path / "data") as served:
        assert (await served.client.put("/blob/acme/app/key", content=b"bytes")).status_code == 201
        assert (await served.client.get("/blob/acme/app/key")).content == b"bytes"
        assert (await served.client.get("/blob/acme/app/other")).status_code == 404
        assert (await served.client.put("/blob/acme/%2e%2e/key", content=b"bytes")).status_code == 400
        assert "/blob/{account}/{project}/{key}" in (await served.client.get("/api/spec")).json()["paths"]
