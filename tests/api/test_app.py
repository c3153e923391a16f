"""What the application does for every request: ids, methods, exact lengths, health, the document."""

import errno
import json
import os
import re
from collections.abc import Callable
from typing import Any

import apsw
import pytest
from openapi_spec_validator import validate

from tests.support.disk_faults import Fault
from tests.support.served_node import ServedNode
from undercroft.api.errors import Answers
from undercroft.api.openapi import openapi
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.buffers import SQLiteBuffer

from .conftest import OpenNode
from .dialects import QUERY, message_of

HASH = "0" * 64
Break = Callable[[ServedNode, pytest.MonkeyPatch], None]
FILLED = {
    "{path...}": "k",
    "{hash}": "k",
    "{cas_id}": "k",
    "{id}": "k",
    "{key}": "k",
    "{account}": "a",
    "{project}": "p",
}


def routes_of(served: ServedNode) -> tuple[Route, ...]:
    return served.node.application._router.routes


def target(route: Route) -> str:
    """A path that leads to the route."""
    path = route.path.replace("{instance_kind_hash...}", f"ac/{HASH}").replace("{key...}", "k")
    for name, value in FILLED.items():
        path = path.replace(name, value)
    return path + (QUERY if route.query else "")


# --- request ids -------------------------------------------------------------------------------------


async def test_request_id_is_returned(served: ServedNode) -> None:
    for path in ("/up", "/nothing", f"/api/cache/cas/k{QUERY}", "/gradle/a/p/.."):
        got = await served.client.get(path, headers={"x-request-id": "my id/1"})
        assert got.headers["x-request-id"] == "my id/1"


@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a\tb", b"\xc3\xa9"])
async def test_request_id_is_made_when_none_fits(served: ServedNode, given: bytes | None) -> None:
    headers = {} if given is None else {b"x-request-id": given}
    ids = [(await served.client.get("/up", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", one) for one in ids)


async def test_refused_request_is_logged_with_its_id(
    served: ServedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    await served.client.get("/gradle/a/p/..", headers={"x-request-id": "find-me"})
    assert "request_id=find-me" in capsys.readouterr().out


# --- methods and lengths -----------------------------------------------------------------------------


def is_of(route: Route, path: str) -> bool:
    """Whether the route has the path, if with another parameter than `target` gives it."""
    shapes = zip(route.path.split("/"), path.partition("?")[0].split("/"), strict=False)
    same_length = route.path.count("/") == path.partition("?")[0].count("/")
    fits = all(name == given or name.startswith("{") for name, given in shapes)
    return target(route) == path or (same_length and fits)


async def test_method_that_a_path_does_not_have(served: ServedNode) -> None:
    routes = routes_of(served)
    for path in dict.fromkeys(map(target, routes)):
        methods = {route.method for route in routes if is_of(route, path)}
        for method in {"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"} - methods:
            got = await served.client.request(method, path)
            # Nx would fail the run at a 405.
            assert got.status_code == (403 if path.startswith("/nx/") else 405), (method, path)
            assert set(got.headers["allow"].split(", ")) == methods
            assert method == "HEAD" or message_of(got.headers["content-type"], got.content)


async def test_unknown_path(served: ServedNode) -> None:
    for path in ("/page", "/nothing", "/api/cache/cas/a/b", "/up/", "/UP", "/gradle/a/p", "/gradle/a/p/k/x"):
        got = await served.client.get(path)
        assert got.status_code == 404, path
        assert got.json()["message"]


@pytest.mark.parametrize("filled", [False, True])
async def test_every_answer_has_exactly_its_length_and_is_documented(
    served: ServedNode, filled: bool
) -> None:
    body = json.dumps({"cas_id": "k", "entries": [{"value": "v"}]}).encode()
    routes = routes_of(served)
    for route in routes:
        if filled and route.body:
            await served.client.request(route.method, target(route), content=body)
    for route in routes:
        sent = body if route.body else b""
        request = f"{route.method} {target(route)} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n\r\n"
        # A byte too many or too few, and the next answer would not parse.
        answer, usable = await served.raw(request.encode(), sent, method=route.method)
        assert usable, route
        assert answer.status in route.answers, route
        assert ("content-length" in answer.headers) == (answer.status not in (204, 304)), route
        assert answer.headers["server"] == "undercroft"


async def test_pipelined_requests_are_answered_in_order(served: ServedNode) -> None:
    async with served.connection() as connection:
        await connection.send(
            b"PUT /ccache/a/p/k HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
            b"GET /ccache/a/p/k HTTP/1.1\r\nhost: x\r\n\r\n"
            b"DELETE /ccache/a/p/k HTTP/1.1\r\nhost: x\r\n\r\n"
        )
        answers = [await connection.answer() for _ in range(3)]
    assert [(answer.status, answer.body) for answer in answers] == [(201, b""), (200, b"abc"), (204, b"")]


# --- health ------------------------------------------------------------------------------------------


async def test_up(served: ServedNode) -> None:
    got = await served.client.get("/up")
    assert (got.status_code, got.json()) == (200, {"message": "up"})


def _close_disk(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.node.disk, "_lock", None)


def _fill_disk(_served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", Fault("write", errno.ENOSPC, 0))


def _close_database(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise apsw.IOError("gone")

    monkeypatch.setattr(served.node.node_database, "find", fail)


def _stall_buffer(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SQLiteBuffer, "stalled", "FullError: database or disk is full")
    monkeypatch.setattr(SQLiteBuffer, "oldest_age", 1_000.0)


@pytest.mark.parametrize(
    ("break_it", "what"),
    [
        (_close_disk, "disk"),
        (_fill_disk, "disk.*No space"),
        (_close_database, "node.sqlite"),
        (_stall_buffer, "key_values.*disk is full"),
    ],
)
async def test_up_says_what_is_wrong(
    served: ServedNode, break_it: Break, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(served, monkeypatch)
    got = await served.client.get("/up")
    monkeypatch.undo()
    assert got.status_code == 503
    assert re.search(what, got.json()["message"])
    assert (await served.client.get("/up")).status_code == 200


async def test_lock_of_a_moment_does_not_make_the_node_unhealthy(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SQLiteBuffer, "stalled", "BusyError: database is locked")
    monkeypatch.setattr(SQLiteBuffer, "oldest_age", 1.0)
    assert (await served.client.get("/up")).status_code == 200


@pytest.mark.parametrize("path", ["/up", "/metrics", "/api/spec"])
async def test_head_of_what_the_node_says_of_itself(served: ServedNode, path: str) -> None:
    async with served.connection() as connection:
        await connection.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = await connection.answer("HEAD")
        assert await connection.is_usable()  # not a byte of a body came
    got = await served.client.get(path)
    assert head.status == got.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_the_node_cannot_say_of_itself_is_no_miss(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(served.node.prometheus, "render", fail)
    monkeypatch.setattr("undercroft.api.health.openapi", fail)
    monkeypatch.setattr(served.node.node_database, "find", fail)
    for path in ("/up", "/metrics", "/api/spec"):
        got = await served.client.request(method, path)
        assert got.status_code == 503
        assert got.headers["retry-after"]
        assert method == "HEAD" or got.json()["message"]


async def test_metrics_can_be_switched_off(open_node: OpenNode) -> None:
    served = await open_node(http={"metrics": False})
    assert (await served.client.get("/metrics")).status_code == 404
    assert "/metrics" not in (await served.client.get("/api/spec")).json()["paths"]


# --- the document ------------------------------------------------------------------------------------


async def test_document_is_valid_openapi_and_lists_exactly_the_routes(served: ServedNode) -> None:
    document: dict[str, Any] = (await served.client.get("/api/spec")).json()
    validate(document)
    listed = {
        (method.removeprefix("x-").upper(), path)
        for path, item in document["paths"].items()
        for method in item
    }
    assert listed == {(route.method, route.path.replace("...}", "}")) for route in routes_of(served)}
    assert document["info"]["title"] == "Undercroft"


async def test_document_names_parameters_and_answers(served: ServedNode) -> None:
    paths = (await served.client.get("/api/spec")).json()["paths"]
    post = paths["/api/cache/cas/{id}"]["post"]
    places = {(one["name"], one["in"], one["required"]) for one in post["parameters"]}
    assert places == {
        ("id", "path", True),
        ("account_handle", "query", True),
        ("project_handle", "query", True),
        ("tuist-checksum-sha256", "header", False),
    }
    assert set(post["responses"]) == {"204", "400", "401", "403", "408", "413", "422", "503", "507"}
    assert "application/octet-stream" in post["requestBody"]["content"]
    message = {"schema": {"$ref": "#/components/schemas/Message"}}
    assert post["responses"]["413"]["content"] == {"application/json": message}
    assert "content" not in post["responses"]["204"]
    head = paths["/api/cache/module/{id}"]["head"]
    assert {one["name"]: one["required"] for one in head["parameters"]} == {
        "id": True,
        "account_handle": True,
        "project_handle": True,
        "hash": True,
        "name": True,
        "cache_category": False,
    }
    put = paths["/api/cache/keyvalue"]["put"]["requestBody"]
    assert put["required"]
    assert put["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/KeyValuePut"}


async def test_operations_have_names_of_their_own(served: ServedNode) -> None:
    paths = (await served.client.get("/api/spec")).json()["paths"]
    names = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert paths["/api/cache/cas/{id}"]["post"]["operationId"] == "post_api_cache_cas_id"


async def test_a_tool_with_errors_of_its_own_form_has_them_documented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(_request: Request) -> None:
        pass

    def documented(render: Callable[[int, str], tuple[bytes, bytes]]) -> Any:
        answers = Answers(full_now=412, too_large=413, refused=412, busy=412, render=render)
        monkeypatch.setattr("undercroft.api.openapi.answers_for", lambda _path: answers)
        document = openapi([Route("PUT", "/x/{key}", nothing, "Store", {200: "stored", 412: "no room"})])
        validate(document)
        return document["paths"]["/x/{key}"]["put"]["responses"]["412"]["content"]

    text = documented(lambda _status, why: (why.encode(), b"text/plain; charset=utf-8"))
    assert set(text) == {"application/json", "text/plain"}
    json = documented(
        lambda _status, why: (b'{"error":{"code":"full","message":"%s"}}' % why.encode(), b"application/json")
    )
    (_, own) = json["application/json"]["schema"]["anyOf"]
    assert own["properties"]["error"]["required"] == ["code", "message"]


async def test_a_page_in_a_browser_may_read_and_not_write(served: ServedNode) -> None:
    """A POST of text is sent to any address without asking it, loopback included."""
    headers = {"origin": "https://page.example", "content-type": "text/plain"}
    path = "/api/cache/cas/abcdef?account_handle=acc&project_handle=proj"
    assert (await served.client.post(path, content=b"bytes", headers=headers)).status_code == 403
    assert (await served.client.get(path, headers=headers)).status_code == 404
    await served.assert_nothing_stored()
