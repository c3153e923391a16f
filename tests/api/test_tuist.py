"""Tuist's dialect: exact statuses of key values, CAS artifacts and Gradle entries."""

import asyncio
import hashlib
import json
from urllib.parse import quote

import pytest

from tests.support.served_node import ServedNode

from .conftest import OpenNode
from .dialects import QUERY

KEY_VALUE = f"/api/cache/keyvalue{QUERY}"
ODD_NAMES = [
    "a b",
    "grün 日本",
    "100%",
    "%2e%2e",
    "a?b",
    "a+b",
    "~x",
    "a:b",
    "a&b=c",
    "...",
    "#",
    "e" * 255,
    "é" * 127,
]


@pytest.mark.parametrize(("path", "name"), [("cas", "id"), ("gradle", "key")])
async def test_message_names_the_parameter_as_the_path_does(served: ServedNode, path: str, name: str) -> None:
    got = await served.client.get(f"/api/cache/{path}/%2Fx{QUERY}")
    assert got.status_code == 400
    assert got.json()["message"].startswith(f"{name} ")


def one(cas_id: str, query: str = QUERY) -> str:
    return f"/api/cache/keyvalue/{quote(cas_id, safe='')}{query}"


def written(*values: str, cas_id: str = "k") -> dict[str, object]:
    return {"cas_id": cas_id, "entries": [{"value": value} for value in values]}


# --- key values --------------------------------------------------------------------------------------


async def test_put_and_get(served: ServedNode) -> None:
    put = await served.client.put(KEY_VALUE, json=written("b", "a", "b", ""))
    assert (put.status_code, put.content) == (204, b"")
    got = await served.client.get(one("k"))
    assert got.status_code == 200
    assert got.headers["content-type"] == "application/json"
    assert got.content == b'{"entries":[{"value":"b"},{"value":"a"},{"value":"b"},{"value":""}]}'


async def test_acknowledged_put_is_in_sqlite(served: ServedNode) -> None:
    await served.client.put(KEY_VALUE, json=written("v"))
    rows = served.rows("SELECT key, json_payload FROM key_value_entries", "key_values")
    assert rows == [("keyvalue:acc:proj:k", '{"entries":[{"value":"v"}]}')]


async def test_last_put_replaces_the_whole_list(served: ServedNode) -> None:
    await served.client.put(KEY_VALUE, json=written("1", "2", "3"))
    await served.client.put(KEY_VALUE, json=written("4"))
    assert (await served.client.get(one("k"))).json() == {"entries": [{"value": "4"}]}


async def test_concurrent_puts_leave_one_of_them(served: ServedNode) -> None:
    puts = [served.client.put(KEY_VALUE, json=written(str(number), str(number))) for number in range(20)]
    assert {put.status_code for put in await asyncio.gather(*puts)} == {204}
    values = [entry["value"] for entry in (await served.client.get(one("k"))).json()["entries"]]
    assert len(values) == 2
    assert len(set(values)) == 1


async def test_missing_key_is_404_with_a_message(served: ServedNode) -> None:
    missing = await served.client.get(one("k"))
    assert missing.status_code == 404
    assert missing.json()["message"]


async def test_old_clients_read_with_put(served: ServedNode) -> None:
    assert (await served.client.put(one("k"))).status_code == 404
    await served.client.put(KEY_VALUE, json=written("v"))
    got = await served.client.put(one("k"))
    assert (got.status_code, got.json()) == (200, {"entries": [{"value": "v"}]})


async def test_unknown_fields_are_ignored(served: ServedNode) -> None:
    body = {"cas_id": "k", "entries": [{"value": "v", "extra": [1]}], "more": {"x": None}}
    assert (await served.client.put(KEY_VALUE, json=body)).status_code == 204
    assert (await served.client.get(one("k"))).json() == {"entries": [{"value": "v"}]}


@pytest.mark.parametrize("value", ["ünïcödé 日本", "\x00\x1f", '"\\/', "x" * 100_000, "\U0001f600"])
async def test_values_round_trip(served: ServedNode, value: str) -> None:
    assert (await served.client.put(KEY_VALUE, json=written(value))).status_code == 204
    assert (await served.client.get(one("k"))).json() == {"entries": [{"value": value}]}


async def test_odd_ids_round_trip(served: ServedNode) -> None:
    for name in ODD_NAMES:
        assert (await served.client.get(one(name))).status_code == 404, name
        assert (await served.client.put(KEY_VALUE, json=written(name, cas_id=name))).status_code == 204, name
    for name in ODD_NAMES:
        assert (await served.client.get(one(name))).json() == {"entries": [{"value": name}]}


async def test_odd_handles_round_trip(served: ServedNode) -> None:
    for name in ODD_NAMES:
        query = f"?account_handle={quote(name, safe='')}&project_handle={quote(name, safe='')}"
        assert (await served.client.get(one("k", query))).status_code == 404, name
        put = await served.client.put(f"/api/cache/keyvalue{query}", json=written(name))
        assert put.status_code == 204, name
        assert (await served.client.get(one("k", query))).json() == {"entries": [{"value": name}]}


async def test_plus_in_the_query_is_a_space(served: ServedNode) -> None:
    await served.client.put("/api/cache/keyvalue?account_handle=a+b&project_handle=p", json=written("v"))
    assert (await served.client.get(one("k", "?account_handle=a%20b&project_handle=p"))).status_code == 200


async def test_handles_ignore_case(served: ServedNode) -> None:
    query = "?account_handle=Acc&project_handle=PROJ"
    await served.client.put(f"/api/cache/keyvalue{query}", json=written("v"))
    assert (await served.client.get(one("k"))).status_code == 200
    assert (await served.client.get(one("K"))).status_code == 404


async def test_projects_are_apart(served: ServedNode) -> None:
    await served.client.put(KEY_VALUE, json=written("v"))
    for query in ("?account_handle=acc&project_handle=x", "?account_handle=x&project_handle=proj"):
        assert (await served.client.get(one("k", query))).status_code == 404


async def test_body_at_the_limit_and_over_it(open_node: OpenNode) -> None:
    served = await open_node(uploads={"key_value_max_bytes": 100})
    exact = json.dumps(written("x")).ljust(100).encode()
    assert (await served.client.put(KEY_VALUE, content=exact)).status_code == 204
    assert (await served.client.put(KEY_VALUE, content=exact + b" ")).status_code == 413


async def test_default_limit_is_8_mb(served: ServedNode) -> None:
    assert served.node.settings.uploads.key_value_max_bytes == 8_000_000
    body = json.dumps(written("x" * 7_999_900)).encode()
    assert (await served.client.put(KEY_VALUE, content=body.ljust(8_000_000))).status_code == 204


# --- cas ---------------------------------------------------------------------------------------------


async def test_cas_post_and_get(served: ServedNode) -> None:
    path = f"/api/cache/cas/abcdef{QUERY}"
    assert (await served.client.get(path)).status_code == 404
    post = await served.client.post(path, content=b"bytes")
    assert (post.status_code, post.content) == (204, b"")
    got = await served.client.get(path)
    assert (got.status_code, got.content) == (200, b"bytes")
    assert (served.folder / "artifacts/acc/proj/xcode/ab/cd/abcdef").read_bytes() == b"bytes"


async def test_cas_that_is_there_is_drained_and_not_compared(served: ServedNode) -> None:
    path = f"/api/cache/cas/abcdef{QUERY}"
    await served.client.post(path, content=b"bytes")
    headers = {"tuist-checksum-sha256": hashlib.sha256(b"bytes").hexdigest()}
    assert (await served.client.post(path, content=b"other", headers=headers)).status_code == 204
    assert (await served.client.get(path)).content == b"bytes"


async def test_damaged_cas_is_healed_by_a_post(served: ServedNode) -> None:
    path = f"/api/cache/cas/abcdef{QUERY}"
    await served.client.post(path, content=b"bytes")
    (served.folder / "artifacts/acc/proj/xcode/ab/cd/abcdef").write_bytes(b"byte")
    assert (await served.client.post(path, content=b"bytes")).status_code == 204
    assert (await served.client.get(path)).content == b"bytes"


# --- gradle ------------------------------------------------------------------------------------------


async def test_gradle_201_when_new_200_when_there(served: ServedNode) -> None:
    path = f"/api/cache/gradle/0123456789abcdef0123456789abcdef{QUERY}"
    assert (await served.client.get(path)).status_code == 404
    assert (await served.client.put(path, content=b"first")).status_code == 201
    assert (await served.client.put(path, content=b"other")).status_code == 200
    got = await served.client.get(path)
    assert (got.status_code, got.content) == (200, b"first")


async def test_gradle_and_cas_do_not_share_artifacts(served: ServedNode) -> None:
    await served.client.put(f"/api/cache/gradle/abcdef{QUERY}", content=b"g")
    assert (await served.client.get(f"/api/cache/cas/abcdef{QUERY}")).status_code == 404


# --- checksums ---------------------------------------------------------------------------------------

CHECKED = [("POST", f"/api/cache/cas/abcdef{QUERY}"), ("PUT", f"/api/cache/gradle/abcdef{QUERY}")]


@pytest.mark.parametrize(("method", "path"), CHECKED)
@pytest.mark.parametrize("upper", [False, True])
async def test_checksum_in_any_case_is_stored_and_echoed_in_lower(
    served: ServedNode, method: str, path: str, upper: bool
) -> None:
    checksum = hashlib.sha256(b"bytes").hexdigest()
    headers = {"Tuist-Checksum-SHA256": checksum.upper() if upper else checksum}
    assert (await served.client.request(method, path, content=b"bytes", headers=headers)).is_success
    for read in ("GET", "HEAD"):
        got = await served.client.request(read, path)
        assert got.headers["tuist-checksum-sha256"] == checksum
    assert served.rows("SELECT content_sha256 FROM cache_artifacts") == [(checksum,)]


@pytest.mark.parametrize(("method", "path"), CHECKED)
async def test_wrong_checksum_is_422(served: ServedNode, method: str, path: str) -> None:
    headers = {"tuist-checksum-sha256": "0" * 64}
    refused = await served.client.request(method, path, content=b"bytes", headers=headers)
    assert refused.status_code == 422
    assert "SHA-256" in refused.json()["message"]
    await served.assert_nothing_stored()


@pytest.mark.parametrize(("method", "path"), CHECKED)
async def test_malformed_checksum_is_400(served: ServedNode, method: str, path: str) -> None:
    for checksum in ("", "0" * 63, "0" * 65, "g" * 64, "0x" + "0" * 62, "é" * 64):
        headers = {b"tuist-checksum-sha256": checksum.encode("latin-1")}
        refused = await served.client.request(method, path, content=b"bytes", headers=headers)
        assert refused.status_code == 400, checksum
        assert refused.json()["message"]
    await served.assert_nothing_stored()
