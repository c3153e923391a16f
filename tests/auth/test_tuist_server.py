"""The gate that asks a Tuist server, with a real one on loopback."""

import asyncio
import gzip
import json
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.installed import require
from tests.support.node_process import node_process
from tests.support.tuist_upstream import ACCESS, PROJECTS, TuistUpstream, tuist_upstream
from undercroft.auth import tuist_client, tuist_server
from undercroft.auth.grants import ANYBODY
from undercroft.errors import (
    AccessUnknownError,
    BadRequestError,
    ClosedError,
    ForbiddenError,
    ReadOnlyError,
    SettingsError,
    UnauthenticatedError,
)

from .conftest import GateRig, OpenGate, asked

LIB = ("acme", "lib")
OTHER = ("other", "app")


@pytest.fixture
def rig(open_gate: OpenGate) -> GateRig:
    return open_gate()


# --- what is asked --------------------------------------------------------------------------------


async def test_the_credential_and_the_request_id_are_handed_on(rig: GateRig, upstream: TuistUpstream) -> None:
    assert await rig.admit() == "tuist"
    (request,) = upstream.requests
    assert request.path == ACCESS
    assert request.headers["authorization"] == "Bearer secret-1"
    assert request.headers["x-request-id"] == "request-1"
    # What is packed could be of any size unpacked.
    assert request.headers["accept-encoding"] == "identity"


async def test_basic_is_handed_on_as_it_is(rig: GateRig, upstream: TuistUpstream) -> None:
    question = asked()._replace(authorization=b"Basic dXNlcjpzZWNyZXQ=")
    assert (await rig.gate.admit(question)).name == "tuist"
    assert upstream.requests[0].headers["authorization"] == "Basic dXNlcjpzZWNyZXQ="


async def test_an_older_server_is_asked_for_its_projects(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.answers(404)
    upstream.lists("acme/app", {"id": 7, "full_name": "Acme/Lib"}, path=PROJECTS)
    assert await rig.admit() == "tuist"
    assert await rig.admit(project=LIB) == "tuist"
    with pytest.raises(ForbiddenError):
        await rig.admit(project=OTHER)
    assert [request.path for request in upstream.requests] == [ACCESS, PROJECTS] * 3
    assert rig.told["server_request"] == 6


async def test_no_connection_is_used_again(rig: GateRig, upstream: TuistUpstream) -> None:
    for name in ("one", "two"):
        await rig.admit(name)
    assert upstream.connections == 2


async def test_a_path_in_the_url_is_kept(open_gate: OpenGate, upstream: TuistUpstream) -> None:
    upstream.lists("acme/app", path=f"/tuist{ACCESS}")
    assert await open_gate(url=f"{upstream.url}/tuist/").admit() == "tuist"


@pytest.mark.parametrize("header", [b"", b"Bearer", b"Bearer ", b"Digest x", b"secret", b"Basic %%%"])
async def test_what_is_no_credential_is_refused_without_asking(
    rig: GateRig, upstream: TuistUpstream, header: bytes
) -> None:
    with pytest.raises(UnauthenticatedError):
        await rig.gate.admit(asked()._replace(authorization=header))
    assert upstream.requests == []


async def test_a_credential_may_not_be_endless(rig: GateRig, upstream: TuistUpstream) -> None:
    with pytest.raises(UnauthenticatedError, match="more than"):
        await rig.admit("x" * tuist_server.MAX_AUTHORIZATION_BYTES)
    assert upstream.requests == []


async def test_nobody_is_sent_the_cookies_of_another(rig: GateRig, upstream: TuistUpstream) -> None:
    body = json.dumps({"projects": ["acme/app"]}).encode()
    upstream.answers(200, body, ["set-cookie: session=of-the-first; path=/"])
    await rig.admit("first")
    await rig.admit("second")
    assert [request.headers.get("cookie") for request in upstream.requests] == [None, None]


async def test_no_proxy_of_the_environment_sees_the_credential(
    upstream: TuistUpstream, open_gate: OpenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tuist_upstream() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        await open_gate().admit()
        assert (len(upstream.requests), len(proxy.requests)) == (1, 0)


async def test_a_server_has_to_prove_who_it_is(
    open_gate: OpenGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("openssl", "openssl")
    tls, certificate = self_signed(tmp_path)
    async with tuist_upstream(tls) as upstream:
        with pytest.raises(AccessUnknownError, match="ConnectError"):
            await open_gate(url=upstream.url).admit()
        assert upstream.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert await open_gate(url=upstream.url).admit() == "tuist"


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate for 127.0.0.1 that nobody has signed."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return tls, certificate


# --- what follows ---------------------------------------------------------------------------------


async def test_listed_is_allowed_in_whatever_case(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.lists("ACME/App", "acme/straße")
    for right in ("read", "write", "clean"):
        assert await rig.admit(right=right) == "tuist"
    assert await rig.admit(project=("acme", "straße")) == "tuist"
    with pytest.raises(ForbiddenError, match="no access to the project other/app"):
        await rig.admit(project=OTHER)
    assert rig.told["authorized server"] == 4
    assert rig.told["refused forbidden"] == 1


async def test_nobody_who_writes_for_a_server_has_a_scope(rig: GateRig) -> None:
    assert (await rig.gate.admit(asked(right="clean"))).scope is None


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [(401, UnauthenticatedError, "unauthenticated"), (403, ForbiddenError, "forbidden")],
)
async def test_the_servers_refusal_is_passed_on(
    rig: GateRig, upstream: TuistUpstream, status: int, error: type[Exception], reason: str
) -> None:
    upstream.answers(status, b"nonsense")
    for _ in range(2):
        with pytest.raises(error) as caught:
            await rig.admit()
        assert "secret-1" not in str(caught.value)
    assert len(upstream.requests) == 1
    assert rig.told[f"refused {reason}"] == 2


async def test_no_credential_is_no_question(rig: GateRig, upstream: TuistUpstream) -> None:
    with pytest.raises(UnauthenticatedError):
        await rig.admit(None)
    assert upstream.requests == []
    assert rig.told == {"refused missing": 1}


async def test_anonymous_readers(open_gate: OpenGate, upstream: TuistUpstream) -> None:
    rig = open_gate(anonymous_read=True)
    assert await rig.gate.admit(asked(None, "read")) == ANYBODY
    for right in ("write", "clean"):
        with pytest.raises(ReadOnlyError):
            await rig.admit(None, right)
    with pytest.raises(UnauthenticatedError):
        await rig.admit(None, "any")
    upstream.answers(401)
    with pytest.raises(UnauthenticatedError):
        await rig.admit()


async def test_any_credential_the_server_knows(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.lists()
    assert await rig.admit("known", "any") == "tuist"
    upstream.answers(401)
    assert await rig.admit("known", "any") == "tuist"
    with pytest.raises(UnauthenticatedError):
        await rig.admit("unknown", "any")


async def test_the_credential_is_looked_at_before_the_project(rig: GateRig, upstream: TuistUpstream) -> None:
    with pytest.raises(BadRequestError):
        await rig.admit(project=BadRequestError("no project"))
    upstream.answers(401)
    with pytest.raises(UnauthenticatedError):
        await rig.admit("unknown", project=BadRequestError("no project"))


# --- a server that does not do its work -----------------------------------------------------------

NONSENSE: dict[str, tuple[int, bytes, list[str]]] = {
    "html": (200, b"<html>Log in</html>", []),
    "nothing": (200, b"", []),
    "half": (200, b'{"projects": ["acme/app"', []),
    "no object": (200, b'["acme/app"]', []),
    "no projects": (200, b'{"project": "acme/app"}', []),
    "null": (200, b'{"projects": null}', []),
    "text": (200, b'{"projects": "acme/app"}', []),
    "numbers": (200, b'{"projects": ["acme/app", 1]}', []),
    "nameless": (200, b'{"projects": [{"id": 1}]}', []),
    "no text": (200, b'{"projects": ["\xff\xfe", "acme/app"]}', []),
    "packed": (200, gzip.compress(b'{"projects": ["acme/app"]}'), ["content-encoding: gzip"]),
    "10 MB": (200, b'{"projects": ["acme/app"]' + b" " * 10_000_000 + b"}", []),
    "created": (201, b'{"projects": ["acme/app"]}', []),
    "bad request": (400, b"", []),
    "slow down": (429, b"", ["retry-after: 60"]),
    "broken": (500, b'{"projects": ["acme/app"]}', []),
    "unavailable": (503, b"", []),
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_what_cannot_be_understood_is_not_remembered(
    rig: GateRig, upstream: TuistUpstream, kind: str
) -> None:
    status, body, headers = NONSENSE[kind]
    upstream.answers(status, body, headers)
    for asked_before in range(2):
        with pytest.raises(AccessUnknownError):
            await rig.admit()
        assert len(upstream.requests) == asked_before + 1
    upstream.lists("acme/app")
    assert await rig.admit() == "tuist"
    assert rig.told["refused unknown"] == 2
    assert rig.told["cache hit"] == 0


async def test_a_server_that_knows_neither_path(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.answers(404)
    with pytest.raises(AccessUnknownError, match="404 for"):
        await rig.admit()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_the_credential_follows_no_redirect(rig: GateRig, upstream: TuistUpstream, status: int) -> None:
    async with tuist_upstream() as thief:
        upstream.answers(status, b"", [f"location: {thief.url}{ACCESS}"])
        with pytest.raises(AccessUnknownError, match=f"status {status}"):
            await rig.admit()
        upstream.answers(status, b"", [f"location: {PROJECTS}"])
        with pytest.raises(AccessUnknownError):
            await rig.admit()
        assert thief.requests == []
    assert [request.path for request in upstream.requests] == [ACCESS, ACCESS]


async def test_a_server_that_is_down(open_gate: OpenGate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    rig = open_gate(url=f"http://127.0.0.1:{port}")
    for _ in range(2):
        with pytest.raises(AccessUnknownError, match="ConnectError"):
            await rig.admit()
    assert rig.told["server_request"] == 2


async def test_a_server_that_is_slow(open_gate: OpenGate, upstream: TuistUpstream) -> None:
    rig = open_gate(timeout_ms=50)
    upstream.close_gate()
    with pytest.raises(AccessUnknownError, match=r"no answer within 0\.05 s"):
        await rig.admit()
    upstream.open_gate()
    await upstream.arrived(1)


async def test_a_server_that_stops_in_the_middle(open_gate: OpenGate, upstream: TuistUpstream) -> None:
    rig = open_gate(timeout_ms=50)
    upstream.breaks_off()
    upstream.close_gate()
    with pytest.raises(AccessUnknownError, match="no answer within"):
        await rig.admit()


async def test_who_waits_for_a_slot_does_not_wait_for_longer(
    open_gate: OpenGate, upstream: TuistUpstream
) -> None:
    rig = open_gate(timeout_ms=50)
    for _ in range(tuist_client.CONCURRENCY):
        await rig.tuist._client._slots.acquire()
    with pytest.raises(AccessUnknownError, match="no answer within"):
        await rig.admit()
    assert upstream.requests == []


async def test_nothing_of_a_credential_is_shown(
    open_gate: OpenGate,
    upstream: TuistUpstream,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("DEBUG")
    upstream.answers(500, b"secret-1")
    with pytest.raises(AccessUnknownError) as caught:
        await open_gate().admit()
    with pytest.raises(AccessUnknownError) as of_another:
        await open_gate(url="http://127.0.0.1:1").admit()
    shown = "".join(capsys.readouterr())
    assert "tuist_server_not_understood" in shown
    assert "secret-1" not in shown + caplog.text + str(caught.value) + str(of_another.value)


# --- remembering ----------------------------------------------------------------------------------


async def test_yes_is_remembered_for_ten_minutes(rig: GateRig, upstream: TuistUpstream) -> None:
    await rig.admit()
    upstream.answers(401)
    rig.times.pass_by(599.9)
    assert await rig.admit() == "tuist"
    assert rig.told["cache hit"] == rig.told["cache miss"] == 1
    rig.times.pass_by(0.1)
    with pytest.raises(UnauthenticatedError):
        await rig.admit()


async def test_no_is_remembered_for_three_seconds(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.lists()
    for seconds in (0, 2.9):
        rig.times.pass_by(seconds)
        with pytest.raises(ForbiddenError):
            await rig.admit()
    assert len(upstream.requests) == 1
    upstream.lists("acme/app")
    rig.times.pass_by(0.1)
    assert await rig.admit() == "tuist"


async def test_a_wall_clock_that_is_set_changes_nothing(rig: GateRig, upstream: TuistUpstream) -> None:
    await rig.admit()
    rig.times.wall += 1_000_000
    await rig.admit()
    rig.times.wall -= 2_000_000
    await rig.admit()
    assert len(upstream.requests) == 1


async def test_an_answer_is_for_one_credential_one_project_reading_or_writing(
    rig: GateRig, upstream: TuistUpstream
) -> None:
    questions: list[dict[str, Any]] = [
        {},
        {"credential": "secret-2"},
        {"project": LIB},
        {"right": "write"},
        {"right": "any"},
    ]
    for count, question in enumerate(questions, 1):
        for _ in range(2):
            assert await rig.admit(**question) == "tuist"
        assert len(upstream.requests) == count
    # To clean is to write.
    await rig.admit(right="clean")
    assert len(upstream.requests) == len(questions)


async def test_what_is_remembered_is_bounded_and_bad_credentials_displace_no_good_ones(
    open_gate: OpenGate, upstream: TuistUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuist_server, "REMEMBERED", 3)
    rig = open_gate()
    for name in "abcd":
        await rig.admit(name)
    upstream.answers(401)
    for name in "efghij":
        with pytest.raises(UnauthenticatedError):
            await rig.admit(name)
    assert (len(rig.tuist._yes), len(rig.tuist._no)) == (3, 3)
    for name in "bcd":
        assert await rig.admit(name) == "tuist"
    with pytest.raises(UnauthenticatedError):
        await rig.admit("a")


async def test_secrets_are_not_kept(rig: GateRig) -> None:
    await rig.admit()
    assert "secret-1" not in repr(rig.tuist._yes._decisions)


# --- several at once ------------------------------------------------------------------------------


async def test_who_asks_the_same_meanwhile_shares_one_request(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.close_gate()
    askers = [asyncio.create_task(rig.admit()) for _ in range(20)]
    await upstream.arrived(1)
    upstream.open_gate()
    assert await asyncio.gather(*askers) == ["tuist"] * 20
    assert len(upstream.requests) == 1
    assert rig.tuist._in_flight == {}


async def test_a_request_is_shared_whatever_project_it_is_about(
    rig: GateRig, upstream: TuistUpstream
) -> None:
    upstream.close_gate()
    other = asyncio.create_task(rig.admit(project=OTHER))
    askers = [asyncio.create_task(rig.admit(right="write")), asyncio.create_task(rig.admit(project=LIB))]
    await upstream.arrived(1)
    upstream.open_gate()
    assert await asyncio.gather(*askers) == ["tuist"] * 2
    with pytest.raises(ForbiddenError):
        await other
    assert len(upstream.requests) == 1


async def test_other_credentials_never_share(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.close_gate()
    askers = [asyncio.create_task(rig.admit(name)) for name in ("one", "two")]
    await upstream.arrived(2)
    upstream.open_gate()
    await asyncio.gather(*askers)
    assert {request.headers["authorization"] for request in upstream.requests} == {"Bearer one", "Bearer two"}


@pytest.mark.parametrize("leaving", [0, 1])
async def test_who_goes_away_takes_the_answer_from_nobody(
    rig: GateRig, upstream: TuistUpstream, leaving: int
) -> None:
    upstream.close_gate()
    askers = [asyncio.create_task(rig.admit()) for _ in range(3)]
    await upstream.arrived(1)
    askers[leaving].cancel()
    with pytest.raises(asyncio.CancelledError):
        await askers.pop(leaving)
    upstream.open_gate()
    assert await asyncio.gather(*askers) == ["tuist"] * 2
    assert len(upstream.requests) == 1


async def test_a_failure_is_for_all_who_waited(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.answers(500)
    upstream.close_gate()
    askers = [asyncio.create_task(rig.admit()) for _ in range(3)]
    await upstream.arrived(1)
    upstream.open_gate()
    answers = await asyncio.gather(*askers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [AccessUnknownError] * 3
    assert len(upstream.requests) == 1


async def test_the_server_is_not_drowned(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.close_gate()
    askers = [asyncio.create_task(rig.admit(f"secret-{n}")) for n in range(3 * tuist_client.CONCURRENCY)]
    await upstream.arrived(tuist_client.CONCURRENCY)
    upstream.open_gate()
    assert await asyncio.gather(*askers) == ["tuist"] * len(askers)
    assert len(upstream.requests) == len(askers)
    assert upstream.most_at_once <= tuist_client.CONCURRENCY


async def test_only_so_many_may_wait(
    rig: GateRig, upstream: TuistUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuist_server, "WAITING", 2)
    upstream.close_gate()
    askers = [asyncio.create_task(rig.admit(name)) for name in ("one", "two")]
    await upstream.arrived(2)
    with pytest.raises(AccessUnknownError, match="2 callers wait"):
        await rig.admit("three")
    upstream.open_gate()
    assert await asyncio.gather(*askers) == ["tuist"] * 2


# --- life -----------------------------------------------------------------------------------------


async def test_a_gate_that_is_closed_asks_nobody(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.close_gate()
    asker = asyncio.create_task(rig.admit())
    await upstream.arrived(1)
    await rig.tuist.close()
    await rig.tuist.close()
    with pytest.raises(asyncio.CancelledError):
        await asker
    with pytest.raises(ClosedError):
        await rig.admit()


def test_a_url_that_is_none_is_a_problem_of_the_settings() -> None:
    with pytest.raises(SettingsError, match=r"auth\.tuist_server_url"):
        GateRig("http://[::1", timeout_ms=1, anonymous_read=False)


# --- the whole node -------------------------------------------------------------------------------

TUIST_QUERY = "?account_handle=Acme&project_handle=App"


async def test_a_node_that_asks_a_tuist_server(tmp_path: Path, upstream: TuistUpstream) -> None:
    settings = {
        "AUTH__MODE": "tuist",
        "AUTH__TUIST_SERVER_URL": upstream.url,
        "AUTH__TUIST_TIMEOUT_MS": "20000",
        "HOST": "0.0.0.0",
        "LOG__LEVEL": "debug",
    }
    cas, ccache = f"/api/cache/cas/0~abc{TUIST_QUERY}", "/ccache/acme/app/" + "0" * 40
    with node_process(tmp_path, settings) as node:
        url = node.url.replace("0.0.0.0", "127.0.0.1")
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            assert (await client.get(cas)).status_code == 401
            client.headers["authorization"] = "Bearer secret-1"
            assert (await client.post(cas, content=b"bytes")).status_code == 204
            assert (await client.get(cas)).content == b"bytes"
            assert (await client.put(ccache, content=b"bytes")).status_code == 201
            assert (await client.get("/nx/other/app/v1/cache/1")).status_code == 404
            assert (await client.get("/ccache/other/app/x")).status_code == 403
            assert (await client.delete(f"/api/cache/clean{TUIST_QUERY}")).status_code == 204
            upstream.answers(500)
            unknown = await client.get(cas, headers={"authorization": "Bearer secret-2"})
            assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "1")
            missed = await client.get("/gradle/acme/app/1", headers={"authorization": "Bearer secret-2"})
            assert missed.status_code == 404
            metrics = (await client.get("/metrics", headers={"authorization": "Bearer secret-2"})).status_code
            upstream.lists()
            text = (await client.get("/metrics")).text
        assert node.stop() == 0
        assert metrics == 503
        assert 'cache_auth_authorized_total{method="server"} 5.0' in text
        assert 'undercroft_auth_refused_total{reason="unknown"} 3.0' in text
        assert 'undercroft_auth_refused_total{reason="missing"} 1.0' in text
        assert "secret-" not in "\n".join([*node.printed, *map(str, node.log)])


# --- which projects are shown ---------------------------------------------------------------------


async def test_readable_projects_are_those_the_server_lists(rig: GateRig, upstream: TuistUpstream) -> None:
    upstream.lists("Acme/App", "acme/lib")
    assert await rig.gate.readable(b"Bearer x", {"acme/app", "other/app"}) == {"acme/app"}
    upstream.answers(403)
    assert await rig.gate.readable(b"Bearer y", {"acme/app"}) == set()
    upstream.answers(500)
    with pytest.raises(AccessUnknownError):
        await rig.gate.readable(b"Bearer z", {"acme/app"})
