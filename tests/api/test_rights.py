"""Who may do what: every route of the node, asked by every kind of caller."""

import base64
import time
from typing import NamedTuple

import httpx
import jwt
import pytest
import structlog

from tests.support.served_node import ServedNode
from tests.support.tuist_upstream import tuist_upstream
from undercroft.auth.credentials import new_token
from undercroft.auth.grants import Question
from undercroft.auth.tokens import NewToken, create_token, revoke_token
from undercroft.errors import AccessUnknownError, ClosedError

from .conftest import OpenNode
from .dialects import QUERY

HASH = "ab" * 32

# What each route asks for, and what a caller is told who may only read. A new route is added here by hand:
# who may use it is a decision.
ROUTES = {
    ("GET", "/up"): "nothing",
    ("HEAD", "/up"): "nothing",
    ("GET", "/api/spec"): "nothing",
    ("HEAD", "/api/spec"): "nothing",
    ("GET", "/"): "any",
    ("HEAD", "/"): "any",
    ("GET", "/page/{name}"): "any",
    ("HEAD", "/page/{name}"): "any",
    ("GET", "/api/status"): "any",
    ("GET", "/metrics"): "any",
    ("HEAD", "/metrics"): "any",
    ("PUT", "/api/cache/keyvalue"): "write",
    ("GET", "/api/cache/keyvalue/{cas_id}"): "read",
    ("PUT", "/api/cache/keyvalue/{cas_id}"): "read",
    ("GET", "/api/cache/cas/{id}"): "read",
    ("HEAD", "/api/cache/cas/{id}"): "read",
    ("POST", "/api/cache/cas/{id}"): "write",
    ("GET", "/api/cache/module/{id}"): "read",
    ("HEAD", "/api/cache/module/{id}"): "read",
    ("POST", "/api/cache/module/start"): "write",
    ("POST", "/api/cache/module/part"): "write",
    ("POST", "/api/cache/module/complete"): "write",
    ("GET", "/api/cache/gradle/{key}"): "read",
    ("HEAD", "/api/cache/gradle/{key}"): "read",
    ("PUT", "/api/cache/gradle/{key}"): "write",
    ("DELETE", "/api/cache/clean"): "clean",
    ("GET", "/api/cache/clean"): "read",
    ("GET", "/gradle/{account}/{project}/{key}"): "read",
    ("HEAD", "/gradle/{account}/{project}/{key}"): "read",
    ("PUT", "/gradle/{account}/{project}/{key}"): "write",
    ("GET", "/bazel/{account}/{project}/{instance_kind_hash...}"): "read",
    ("HEAD", "/bazel/{account}/{project}/{instance_kind_hash...}"): "read",
    ("PUT", "/bazel/{account}/{project}/{instance_kind_hash...}"): "write",
    ("GET", "/ccache/{account}/{project}/{key...}"): "read",
    ("HEAD", "/ccache/{account}/{project}/{key...}"): "read",
    ("PUT", "/ccache/{account}/{project}/{key...}"): "write",
    ("DELETE", "/ccache/{account}/{project}/{key...}"): "write",
    ("GET", "/bazel/{account}/{project}"): "nothing",
    ("GET", "/turborepo/{account}/{project}/v8/artifacts/status"): "read",
    ("GET", "/turborepo/{account}/{project}/v8/artifacts/{hash}"): "read",
    ("HEAD", "/turborepo/{account}/{project}/v8/artifacts/{hash}"): "read",
    ("PUT", "/turborepo/{account}/{project}/v8/artifacts/{hash}"): "write",
    ("POST", "/turborepo/{account}/{project}/v8/artifacts"): "read",
    ("POST", "/turborepo/{account}/{project}/v8/artifacts/events"): "read",
    ("OPTIONS", "/turborepo/{account}/{project}/v8/artifacts"): "nothing",
    ("OPTIONS", "/turborepo/{account}/{project}/v8/artifacts/{hash}"): "nothing",
    ("OPTIONS", "/turborepo/{account}/{project}/v8/artifacts/events"): "nothing",
    ("OPTIONS", "/turborepo/{account}/{project}/v8/artifacts/status"): "nothing",
    ("GET", "/nx/{account}/{project}/v1/cache/{hash}"): "read",
    ("HEAD", "/nx/{account}/{project}/v1/cache/{hash}"): "read",
    ("PUT", "/nx/{account}/{project}/v1/cache/{hash}"): "write",
    ("GET", "/webdav/{account}/{project}/{path...}"): "read",
    ("HEAD", "/webdav/{account}/{project}/{path...}"): "read",
    ("OPTIONS", "/webdav/{account}/{project}/{path...}"): "read",
    ("PROPFIND", "/webdav/{account}/{project}/{path...}"): "read",
    ("OPTIONS", "/webdav/{account}/{project}"): "read",
    ("PROPFIND", "/webdav/{account}/{project}"): "read",
    ("MKCOL", "/webdav/{account}/{project}"): "write",
    ("PUT", "/webdav/{account}/{project}/{path...}"): "write",
    ("MKCOL", "/webdav/{account}/{project}/{path...}"): "write",
    ("DELETE", "/webdav/{account}/{project}/{path...}"): "write",
}

READ_ONLY = {"gradle": 413}
"""What who may only read is told of a write, by the first part of the path; 403 elsewhere."""

OTHERS_READ = {"nx": 404, "webdav": 404}
"""What is told who asks for an artifact that is not theirs; 403 elsewhere."""

UNKNOWN_READ = {"nx": 404, "webdav": 404}
"""What is told who asks for an artifact and is not known; 401 elsewhere. Nx fails at any other status, and
sccache does not start."""

DOWNLOADS = ("GET", "HEAD")

EXAMPLES = {"{account}": "acc", "{project}": "proj", "{instance_kind_hash...}": f"ac/{HASH}"}

BAD_CREDENTIALS = {
    "nothing": None,
    "nonsense": "Bearer nonsense",
    "another scheme": "Digest username=x",
    "no base64": "Basic %%%",
    "unknown": f"Bearer {new_token().text}",
}


class Callers(NamedTuple):
    """Authorization headers of tokens for `acc/*`."""

    reads: str
    writes: str
    both: str
    scoped: str
    stranger: str
    expired: str
    revoked: str


def path_of(template: str) -> str:
    parts = (EXAMPLES.get(part, HASH if part.startswith("{") else part) for part in template.split("/"))
    path = "/".join(parts)
    return path + QUERY if path.startswith("/api/cache/") else path


async def callers(served: ServedNode) -> Callers:
    database = served.node.node_database

    async def token(name: str, *, scope: str | None = None, project: str = "acc/*", **other: int) -> str:
        reads, writes = name != "writes", name != "reads"
        made = await create_token(
            database, NewToken(name, (project,), reads, writes, scope, other.get("expires_at"))
        )
        return f"Bearer {made.text}"

    found = Callers(
        reads=await token("reads"),
        writes=await token("writes"),
        both=await token("both"),
        scoped=await token("scoped", scope="pr"),
        stranger=await token("stranger", project="other/*"),
        expired=await token("expired", expires_at=1),
        revoked=await token("revoked"),
    )
    assert await revoke_token(database, "revoked")
    return found


async def status(served: ServedNode, method: str, path: str, authorization: str | None) -> httpx.Response:
    headers = {"depth": "0"}  # else PROPFIND asks for all there is
    if authorization is not None:
        headers["authorization"] = authorization
    content = b"bytes" if method in ("PUT", "POST") else None
    return await served.client.request(method, path, headers=headers, content=content)


def refusal(method: str, right: str, caller: str, tool: str) -> int | None:
    """The status a caller with a good token is refused with; None if they are let in."""
    if right in ("nothing", "any") or caller == "both" or (caller == "scoped" and right != "clean"):
        return None
    if caller == "stranger":
        return OTHERS_READ.get(tool, 403) if method in DOWNLOADS else 403
    if caller == "reads":
        return None if right == "read" else READ_ONLY.get(tool, 403)
    if caller == "writes":
        if right == "read":
            return OTHERS_READ.get(tool, 403) if method in DOWNLOADS else 403
        return None
    return 403


async def test_every_route_is_decided_on(served: ServedNode) -> None:
    assert set(ROUTES) == {(route.method, route.path) for route in served.node.application._router.routes}


async def test_the_matrix(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens"})
    tokens = await callers(served)
    for (method, template), right in ROUTES.items():
        path, tool = path_of(template), template.split("/")[1]
        for name, credential in BAD_CREDENTIALS.items() | {
            ("expired", tokens.expired),
            ("revoked", tokens.revoked),
        }:
            answer = await status(served, method, path, credential)
            unknown = UNKNOWN_READ.get(tool, 401) if method in DOWNLOADS else 401
            assert (answer.status_code == unknown) is (right != "nothing"), (method, path, name)
            if answer.status_code == 401:
                challenges = answer.headers.get_list("www-authenticate")
                assert [challenge.split()[0] for challenge in challenges] == ["Bearer", "Basic"]
        for caller in ("reads", "writes", "both", "scoped", "stranger"):
            answer = await status(served, method, path, getattr(tokens, caller))
            expected = refusal(method, right, caller, tool)
            if expected is None:
                assert answer.status_code not in (401, 403), (method, path, caller, answer.text)
            else:
                assert answer.status_code == expected, (method, path, caller, answer.text)


async def test_without_authentication_nobody_is_asked(served: ServedNode) -> None:
    for (method, template), right in ROUTES.items():
        if right != "clean":
            answer = await status(served, method, path_of(template), "Bearer nonsense")
            assert answer.status_code not in (401, 403)


async def test_anonymous_readers(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens", "anonymous_read": True})
    for (method, template), right in ROUTES.items():
        answer = await status(served, method, path_of(template), None)
        expected = 401 if right == "any" else refusal(method, right, "reads", template.split("/")[1])
        if expected is None:
            assert answer.status_code not in (401, 403), (method, template)
        else:
            assert answer.status_code == expected, (method, template)


async def test_metrics_may_be_open(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens", "open_metrics": True})
    assert (await served.client.get("/metrics")).status_code == 200


async def test_a_tuist_server_decides(open_node: OpenNode) -> None:
    async with tuist_upstream() as upstream:
        served = await open_node(auth={"mode": "tuist", "tuist_server_url": upstream.url})
        for (method, template), right in ROUTES.items():
            path, tool = path_of(template), template.split("/")[1]
            upstream.lists("Acc/Proj")
            answer = await status(served, method, path, "Bearer owner")
            assert answer.status_code not in (401, 403, 503), (method, path, answer.text)
            upstream.lists("other/proj")
            answer = await status(served, method, path, "Bearer stranger")
            expected = refusal(method, right, "stranger", tool)
            assert (expected or answer.status_code) == answer.status_code, (method, path)
            upstream.answers(401)
            answer = await status(served, method, path, "Bearer nonsense")
            unknown = UNKNOWN_READ.get(tool, 401) if method in DOWNLOADS else 401
            assert (answer.status_code == unknown) is (right != "nothing"), (method, path)
            upstream.answers(500)
            answer = await status(served, method, path, "Bearer whoever")
            if right != "nothing":
                assert answer.status_code == access_unknown(method, tool), (method, path)


def access_unknown(method: str, tool: str) -> int:
    """What is told who could not be decided on."""
    if tool in ("", "api", "metrics", "page"):
        return 503
    if method in ("GET", "HEAD", "PROPFIND"):
        return 404
    return {"nx": 403, "turborepo": 412}.get(tool, 413)


async def test_the_name_in_a_jwt_is_kept_with_the_artifact(open_node: OpenNode) -> None:
    secret = "0123456789abcdef" * 4
    auth = {"mode": "tuist", "tuist_server_url": "http://127.0.0.1:1", "tuist_jwt_secret": secret}
    served = await open_node(auth=auth)
    claims = {"iss": "tuist", "exp": time.time() + 60, "sub": "user-7", "projects": ["acc/proj"]}
    headers = {"authorization": f"Bearer {jwt.encode(claims, secret, algorithm='HS512')}"}
    answer = await served.client.put(f"/ccache/acc/proj/{HASH}", content=b"bytes", headers=headers)
    assert answer.status_code == 201
    await served.node.artifacts.flush()
    assert served.rows("SELECT written_by FROM cache_artifacts") == [("user-7",)]


@pytest.mark.parametrize(("mode", "told"), [("tokens", 1), ("tuist", 0)])
async def test_settings_of_a_server_that_is_not_asked_are_told(
    open_node: OpenNode, mode: str, told: int
) -> None:
    with structlog.testing.capture_logs() as logs:
        await open_node(auth={"mode": mode, "tuist_server_url": "http://127.0.0.1:1"})
    found = [entry["without_effect"] for entry in logs if entry["event"] == "tuist_settings_without_mode"]
    assert found == [["auth.tuist_server_url"]] * told


async def test_a_node_that_has_stopped_asks_no_server(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tuist", "tuist_server_url": "http://127.0.0.1:1"})
    gate = served.node.tuist_gate
    assert gate is not None
    question = Question(b"Bearer secret", "any", lambda: ("acc", "proj"))
    with pytest.raises(AccessUnknownError):
        await gate.admit(question)
    await served.node.stop()
    with pytest.raises(ClosedError):
        await gate.admit(question)


async def test_basic_with_the_token_as_password(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens"})
    token = (await callers(served)).both.removeprefix("Bearer ")
    path = f"/ccache/acc/proj/{HASH}"
    sent = await served.client.put(path, content=b"bytes", auth=("anybody", token))
    assert sent.status_code == 201
    assert (await served.client.get(path, auth=(token, ""))).content == b"bytes"


async def test_the_credential_comes_before_the_parameters(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens"})
    token = (await callers(served)).both
    assert (await served.client.get("/api/cache/cas/x")).status_code == 401
    assert (await status(served, "GET", "/api/cache/cas/x", token)).status_code == 400
    assert (await status(served, "GET", "/gradle/acc/%2e%2e/x", token)).status_code == 400


async def test_a_refused_upload_is_not_stored_and_the_connection_goes_on(open_node: OpenNode) -> None:
    served = await open_node(auth={"mode": "tokens"})
    token = base64.b64encode(f":{(await callers(served)).reads.removeprefix('Bearer ')}".encode())
    head = b"PUT /ccache/acc/proj/%s HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n" % HASH.encode()
    for authorization, expected in ((b"", 401), (b"authorization: Basic %s\r\n" % token, 403)):
        answer, usable = await served.raw(head + authorization + b"\r\n", b"bytes")
        assert (answer.status, usable) == (expected, True)
    await served.assert_nothing_stored()


async def test_nothing_of_a_credential_is_logged(
    open_node: OpenNode, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    served = await open_node(auth={"mode": "tokens"}, log={"level": "debug"})
    for name, authorization in (await callers(served))._asdict().items():
        secret = authorization.split("_", 2)[2]
        assert len(secret) > 20
        answer = await status(served, "GET", f"/gradle/acc/proj/{HASH}?token={secret}", authorization)
        shown = answer.text + caplog.text + "".join(capsys.readouterr())
        assert secret not in shown, name
