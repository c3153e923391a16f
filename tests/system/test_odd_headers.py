"""Headers by chance, good ones, bad ones, too many: an answer that is documented, and the node lives on."""

import http.client
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

from tests.support.campaign import Campaign
from tests.support.node_process import node_process
from tests.support.spec_cases import DOCUMENT
from tests.system.client import Client

TIMEOUT_S = 30
TENANT = "account_handle=acc&project_handle=proj"
DIGEST = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
BODY = b"abc"

# Method, path, and where the document describes it.
REQUESTS = [
    ("GET", "/up", "/up"),
    ("PUT", f"/api/cache/keyvalue?{TENANT}", "/api/cache/keyvalue"),
    ("POST", f"/api/cache/cas/{DIGEST}?{TENANT}", "/api/cache/cas/{id}"),
    ("GET", f"/api/cache/cas/{DIGEST}?{TENANT}", "/api/cache/cas/{id}"),
    ("POST", f"/api/cache/module/start?{TENANT}&hash=h&name=n", "/api/cache/module/start"),
    ("PUT", "/gradle/acc/proj/k", "/gradle/{account}/{project}/{key}"),
    ("GET", "/gradle/acc/proj/k", "/gradle/{account}/{project}/{key}"),
    ("PUT", f"/bazel/acc/proj/cas/{DIGEST}", "/bazel/{account}/{project}/{instance_kind_hash}"),
    ("PUT", f"/bazel/acc/proj/ac/{DIGEST}", "/bazel/{account}/{project}/{instance_kind_hash}"),
    ("GET", f"/bazel/acc/proj/ac/{DIGEST}", "/bazel/{account}/{project}/{instance_kind_hash}"),
    ("PUT", "/ccache/acc/proj/k", "/ccache/{account}/{project}/{key}"),
    ("DELETE", "/ccache/acc/proj/none", "/ccache/{account}/{project}/{key}"),
    ("PUT", "/webdav/acc/proj/a/k", "/webdav/{account}/{project}/{path}"),
    ("PROPFIND", "/webdav/acc/proj/a/", "/webdav/{account}/{project}/{path}"),
    ("MKCOL", "/webdav/acc/proj/b/", "/webdav/{account}/{project}/{path}"),
    (
        "PUT",
        f"/turborepo/acc/proj/v8/artifacts/{'0' * 16}",
        "/turborepo/{account}/{project}/v8/artifacts/{hash}",
    ),
    (
        "GET",
        f"/turborepo/acc/proj/v8/artifacts/{'0' * 16}",
        "/turborepo/{account}/{project}/v8/artifacts/{hash}",
    ),
    ("POST", "/turborepo/acc/proj/v8/artifacts/events", "/turborepo/{account}/{project}/v8/artifacts/events"),
    ("PUT", "/nx/acc/proj/v1/cache/1", "/nx/{account}/{project}/v1/cache/{hash}"),
    ("GET", "/nx/acc/proj/v1/cache/1", "/nx/{account}/{project}/v1/cache/{hash}"),
]

BODIES = [
    BODY,
    b"",
    zstandard.compress(BODY),
    zstandard.compress(bytes(4 << 20)),
    b'{"cas_id": "k", "entries": [{"value": "v"}]}',
    b'[{"source": "LOCAL", "event": "HIT", "duration": 1}]',
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "'
    + b"b" * 9
    + b'"><!ENTITY c "'
    + b"&b;" * 99
    + b'">]><a>&c;</a>',
    b"<a>" * 20_000,
    b"[" * 20_000,
    bytes(range(256)) * 300,
]

HEADERS: dict[str, list[str]] = {
    "authorization": ["Bearer x", "Basic dTpw", "Basic !", "Negotiate", "Bearer " + "x" * 4_000],
    "x-request-id": ["an-id", "", "x" * 128, "x" * 129, "a\tb", "\xe9"],
    "tuist-checksum-sha256": [DIGEST, DIGEST.upper(), "0" * 64, "0" * 63, ""],
    "x-artifact-duration": ["12", "-1", "9" * 17, "1e3"],
    "x-artifact-tag": ["t", "t" * 600, "t" * 601, "a b", "\xff"],
    "x-artifact-sha": ["abc", "x" * 257],
    "content-encoding": ["zstd", "identity", "gzip", "zstd, zstd", "ZSTD", ""],
    "content-type": ["application/json", "text/plain; charset=utf-7", "multipart/form-data", ""],
    "accept-encoding": ["zstd, gzip", "*;q=0"],
    "expect": ["100-continue", "200-ok"],
    "depth": ["0", "1", "infinity", "2", "-1", "0, 1"],
    "origin": ["http://evil.example", "null"],
    "range": ["bytes=0-0", "bytes=9-1", "bytes=-99999999999999999999999", "x" * 3_000],
    "if-range": ['"x"', "W/", "Sat, 29 Oct 1994 19:43:31 GMT"],
    "if-none-match": ["*", '"x", "y"', ",,,", '"' * 99],
    "connection": ["keep-alive", "close", "upgrade", "te, x"],
    "upgrade": ["h2c", "websocket"],
    "transfer-encoding": ["chunked", "gzip, chunked", "identity", "chunked, chunked", "x"],
    "content-length": ["0", "3", "4", "+3", "-1", "0x3", "3, 3", "3_0", "99999999999999999999", ""],
    "host": ["x", "", "a b", "x:99999999"],
    "cookie": ["a=b; " * 200],
    "x-other": ["y", "\x80\x9f\xff", "z" * 6_000],
}
FRAMING = {"content-length", "transfer-encoding", "connection", "upgrade", "expect", "host"}
"""Headers that say how a message is to be read; the server may refuse it before the node sees it."""

# Any client and any proxy has fewer.
MOST_HEADERS = 80

BY_THE_SERVER = {400, 411, 413, 417, 431, 501}


class Asked(NamedTuple):
    """A request, and what describes it."""

    method: str
    path: str
    described: str
    headers: list[tuple[str, str]]
    body: bytes

    def __bytes__(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body

    @property
    def statuses(self) -> set[int]:
        """What may be answered."""
        item: dict[str, Any] = DOCUMENT["paths"][self.described]
        described = item.get(self.method.lower()) or item[f"x-{self.method.lower()}"]
        documented = {int(status) for status in described["responses"]}
        return documented | (BY_THE_SERVER if self.is_odd else set())

    @property
    def is_odd(self) -> bool:
        """Whether there are too many headers, or one that makes it unclear where the message ends."""
        usual = {("host", "x"), ("content-length", str(len(self.body)))}
        framing = [header for header in self.headers if header[0] in FRAMING]
        return len(self.headers) > MOST_HEADERS or not usual >= set(framing) or len(framing) > 2


def chosen(chance: random.Random) -> Asked:
    method, path, described = chance.choice(REQUESTS)
    body = b"" if method == "GET" else chance.choice(BODIES)
    headers = [("host", "x"), ("content-length", str(len(body)))]
    for name in chance.sample(sorted(HEADERS), chance.choice([0, 1, 1, 2, 2, 3, 6])):
        if name in ("host", "content-length") and chance.random() < 0.7:
            headers = [header for header in headers if header[0] != name]
        headers.append((name, chance.choice(HEADERS[name])))
    if chance.random() < 0.02:
        headers += [(f"x-{number}", "y") for number in range(chance.choice([90, 500]))]
    chance.shuffle(headers)
    return Asked(method, path, described, headers, body)


@contextmanager
def answered(url: str, asked: Asked) -> Iterator[http.client.HTTPResponse | None]:
    """The answer to a request on a connection of its own; None if the node closed it without one."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        try:
            connection.sendall(bytes(asked))
            response = http.client.HTTPResponse(connection, method=asked.method)
            response.begin()
        except (ConnectionError, http.client.RemoteDisconnected):
            yield None
            return
        yield response


@pytest.mark.parametrize("workers", [1, 4])
def test_odd_headers(campaign: Campaign, data_dir: Path, workers: int) -> None:
    arguments = ("--workers", str(workers))
    with node_process(data_dir, {"UPLOADS__READ_TIMEOUT_MS": "100"}, arguments=arguments) as node:
        with Client(node.url) as client:
            assert client.request("PUT", "/ccache/acc/proj/kept", b"kept").status == 201
        for _ in campaign.rounds(short=250, long=5_000):
            asked = chosen(campaign.random)
            with answered(node.url, asked) as answer:
                if answer is None:
                    # Whose message has no clear end is owed no answer; every other one is.
                    assert asked.is_odd, asked
                    campaign.checked("connections closed")
                    continue
                check(answer, asked)
                campaign.checked("answers")
                campaign.checked(f"of {answer.status // 100}xx")
        with Client(node.url) as client:
            assert client.request("GET", "/ccache/acc/proj/kept").body == b"kept"
        assert node.stop() == 0
        assert node.logged("request_failed") == []
        assert node.printed == []


def check(answer: http.client.HTTPResponse, asked: Asked) -> None:
    """It is one of those that the document names, it is whole, and it says which request it is for."""
    assert answer.status in asked.statuses, (answer.status, asked)
    body = answer.read()
    if answer.length is not None:
        assert answer.length == 0, asked
    given = [value for name, value in asked.headers if name == "x-request-id"]
    if not asked.is_odd:
        shown = answer.getheader("x-request-id")
        assert shown
        assert shown.isascii()
        assert shown.isprintable()
        good = [value for value in given if 0 < len(value) <= 128 and value.isascii() and value.isprintable()]
        assert not good or shown == good[-1]
    if answer.status >= 400 and body and not asked.is_odd:
        assert (answer.getheader("content-type") or "").startswith(
            ("application/json", "text/plain", "application/xml")
        )
