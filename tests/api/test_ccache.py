"""ccache's dialect in its three layouts."""

from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from tests.support.served_node import ServedNode

BASE = "/ccache/acc/proj"
HEX = "0123456789abcdef0123456789abcdef01234567"
OLD = "0123456789abcdefghijklmnopqrstuv0"
BAZEL_HASH = HEX + "0" * 24

LAYOUTS = {
    "subdirs": f"{BASE}/{HEX[:2]}/{HEX[2:]}",
    "subdirs, old key": f"{BASE}/{OLD[:2]}/{OLD[2:]}",
    "flat": f"{BASE}/{HEX}",
    "flat, old key": f"{BASE}/{OLD}",
    "bazel": f"{BASE}/ac/{BAZEL_HASH}",
    "another tool": f"{BASE}/{quote('any name +%?~ é', safe='')}",
}


@pytest.mark.parametrize("path", LAYOUTS.values(), ids=LAYOUTS)
async def test_every_layout(served: ServedNode, path: str) -> None:
    assert (await served.client.get(path)).status_code == 404
    assert (await served.client.head(path)).status_code == 404
    assert (await served.client.put(path, content=b"first")).status_code == 201
    assert (await served.client.put(path, content=b"second")).status_code == 200
    got = await served.client.get(path)
    assert (got.status_code, got.content) == (200, b"second")
    head = await served.client.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "6", b"")
    deleted = await served.client.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await served.client.get(path)).status_code == 404
    assert served.node.capacity.used == 0


@pytest.mark.parametrize("path", LAYOUTS.values(), ids=LAYOUTS)
async def test_delete_of_what_is_not_there_is_204(served: ServedNode, path: str) -> None:
    assert (await served.client.delete(path)).status_code == 204


async def test_subdirs_and_flat_are_one_key(served: ServedNode) -> None:
    await served.client.put(LAYOUTS["subdirs"], content=b"x")
    assert (await served.client.get(LAYOUTS["flat"])).content == b"x"


async def test_credentials_are_taken_unasked(served: ServedNode) -> None:
    for header in ("Bearer token", "Basic dXNlcjp0b2tlbg=="):
        put = await served.client.put(LAYOUTS["flat"], content=b"x", headers={"authorization": header})
        assert put.is_success


@pytest.mark.parametrize("rest", ["", "a/b/c", "abc/def", "ac/x/y", "/ab", "ab/", f"zz/{'k' * 254}"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_what_is_in_no_layout_is_400(served: ServedNode, method: str, rest: str) -> None:
    assert (await served.client.request(method, f"{BASE}/{rest}")).status_code == 400
    await served.assert_nothing_stored()


async def test_a_directory_where_an_artifact_belongs(served: ServedNode) -> None:
    path, key = f"{BASE}/abcdef", "acc/proj/ccache/ab/cd/abcdef"
    inside = served.folder / "artifacts" / key / "sub"
    inside.mkdir(parents=True)
    with capture_logs() as logs:
        refused = await served.client.put(path, content=b"x")
        assert (await served.client.get(path)).status_code == 404
        assert (await served.client.delete(path)).status_code == 204
    assert refused.status_code == 413
    said = f"artifacts/{key} in the data directory is a directory with something in it: move it away"
    assert said in refused.text
    (told,) = [entry for entry in logs if entry["event"].startswith("request_")]
    assert (told["event"], told["log_level"], told["error"]) == ("request_refused", "warning", said)
    assert "exc_info" not in told
    inside.rmdir()
    assert (await served.client.put(path, content=b"x")).status_code == 201
    assert (await served.client.get(path)).content == b"x"
