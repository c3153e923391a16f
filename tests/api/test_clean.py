"""Cleaning a project over HTTP."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from tests.support.locks import lock_of_another_connection
from tests.support.served_node import PATIENCE_S, ServedNode
from undercroft.database import insisting
from undercroft.workers.clean_project import CleanProject

from .conftest import OpenNode
from .dialects import CCACHE, QUERY, TUIST_CAS
from .test_bad_input import QUERIES

CLEAN = f"/api/cache/clean{QUERY}"
KEY_VALUE = f"/api/cache/keyvalue{QUERY}"


async def cleaned(served: ServedNode, path: str = CLEAN) -> dict[str, Any]:
    """The progress of a request once it is carried out."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            progress: dict[str, Any] = (await served.client.get(path)).json()
            if progress["state"] == "done":
                return progress


async def test_everything_of_the_project_goes(served: ServedNode) -> None:
    await served.client.put(KEY_VALUE, json={"cas_id": "k", "entries": [{"value": "v"}]})
    await served.client.post(TUIST_CAS.path("abcdef"), content=b"bytes")
    await served.client.put(CCACHE.path("0" * 64), content=b"bytes")
    taken = await served.client.delete(CLEAN)
    assert (taken.status_code, taken.content) == (204, b"")
    progress = await cleaned(served)
    assert (await served.client.get(f"/api/cache/keyvalue/k{QUERY}")).status_code == 404
    assert (await served.client.get(TUIST_CAS.path("abcdef"))).status_code == 404
    await served.assert_nothing_stored()
    requested, finished = (
        datetime.fromisoformat(progress.pop(f"{what}_at")) for what in ("requested", "finished")
    )
    assert requested.tzinfo is not None
    assert requested < finished
    assert progress == {
        "state": "done",
        "key_values": 1,
        "artifacts": 2,
        "transfers": 0,
        "objects": 0,
        "last_error": None,
    }


async def test_what_is_written_after_the_answer_stays(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a POST that does not replace, while the old one is still there."""
    gate = asyncio.Event()
    really_work = CleanProject.work

    async def work(cleaner: CleanProject) -> None:
        await gate.wait()
        await really_work(cleaner)

    monkeypatch.setattr(CleanProject, "work", work)
    served = await open_node()
    path = TUIST_CAS.path("abcdef")
    await served.client.post(path, content=b"old")
    await served.client.delete(CLEAN)
    assert (await served.client.get(path)).content == b"old"
    await served.client.post(path, content=b"new")
    gate.set()
    assert (await cleaned(served))["artifacts"] == 0
    assert (await served.client.get(path)).content == b"new"


async def test_handles_in_any_case(served: ServedNode) -> None:
    await served.client.post(TUIST_CAS.path("abcdef"), content=b"bytes")
    path = "/api/cache/clean?account_handle=ACC&project_handle=Proj"
    assert (await served.client.delete(path)).status_code == 204
    assert (await cleaned(served, path))["artifacts"] == 1
    assert (await served.client.get(CLEAN)).status_code == 200


async def test_progress_of_a_project_nobody_asked_for_is_404(served: ServedNode) -> None:
    await served.client.delete(CLEAN)
    missing = await served.client.get(CLEAN.replace("=proj", "=other"))
    assert missing.status_code == 404
    assert missing.json()["message"]


@pytest.mark.parametrize("method", ["DELETE", "GET"])
async def test_bad_handles_are_400(served: ServedNode, method: str) -> None:
    for what, query in QUERIES.items():
        refused = await served.client.request(method, f"/api/cache/clean{query}")
        assert refused.status_code == 400, what
        assert refused.json()["message"], what
    assert served.rows("SELECT id FROM clean_jobs") == []


async def test_a_request_that_cannot_be_kept_is_503(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insisting, "LOCKED_ATTEMPTS", 1)
    served = await open_node()
    with lock_of_another_connection(served.folder / "node.sqlite"):
        refused = await served.client.delete(CLEAN)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert "lock" in refused.json()["message"]
    assert (await served.client.get(CLEAN)).status_code == 404
