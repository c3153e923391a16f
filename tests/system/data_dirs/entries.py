"""What is written into a data directory, and how: an entry of each dialect the node knows."""

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from tests.system.client import TENANT, Answer, Client

HASH = "ab12cd34" * 8


class Entry(NamedTuple):
    """A write, and the path that reads it."""

    method: str
    path: str
    body: bytes
    read: str


class Caller:
    """Requests of one who has a token, or needs none."""

    def __init__(self, client: Client, token: str | None) -> None:
        self._client = client
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        return self._client.request(method, path, body, self._headers)

    def get(self, path: str) -> bytes | None:
        """None if there is nothing for this caller."""
        answer = self.request("GET", path)
        assert answer.status in (200, 404), (path, answer)
        return answer.body if answer.status == 200 else None

    def store(self, entries: Iterable[Entry]) -> dict[str, str]:
        """Writes; answers what GET must give from now on. Fails for what is not stored."""
        found = {}
        for entry in entries:
            answer = self.request(entry.method, entry.path, entry.body)
            assert answer.status in (200, 201, 202, 204), (entry.path, answer)
            body = self.get(entry.read)
            assert body is not None, entry.read
            found[entry.read] = body.decode()
        return found

    def send_part(self, name: str, body: bytes) -> str:
        """Begins the upload of a module in parts, and sends the first; answers its id."""
        begun = self.request("POST", f"/api/cache/module/start?{TENANT}&hash={HASH}&name={name}")
        upload_id = str(json.loads(begun.body)["upload_id"])
        assert self.part(upload_id, body).status == 204
        return upload_id

    def part(self, upload_id: str, body: bytes) -> Answer:
        path = f"/api/cache/module/part?{TENANT}&upload_id={upload_id}&part_number=1"
        return self.request("POST", path, body)

    def store_module(self, name: str) -> dict[str, str]:
        """A module, in one part."""
        body = content(name, 2_000)
        path = f"/api/cache/module/complete?{TENANT}&upload_id={self.send_part(name, body)}"
        assert self.request("POST", path, b'{"parts": [1]}').status == 204
        return {f"/api/cache/module/{HASH}?{TENANT}&hash={HASH}&name={name}": body.decode()}


def content(name: str, size: int) -> bytes:
    """Bytes that can be told from any other's, and do not fill a repository."""
    return (hashlib.sha256(name.encode()).hexdigest().encode() * (size // 64 + 1))[:size]


def key_value(name: str, project: str = "app") -> Entry:
    tenant = f"account_handle=acme&project_handle={project}"
    body = json.dumps({"cas_id": name, "entries": [{"value": f"value of {name}"}]}).encode()
    return Entry("PUT", f"/api/cache/keyvalue?{tenant}", body, f"/api/cache/keyvalue/{name}?{tenant}")


def artifact(name: str, project: str = "app") -> Entry:
    """One that may also be deleted; its key is that of `artifact_key`."""
    path = f"/ccache/acme/{project}/{name}"
    return Entry("PUT", path, content(path, 500), path)


def artifact_key(name: str, project: str = "app") -> str:
    return f"acme/{project}/ccache/{name[:2]}/{name[2:4]}/{name}"


def of_every_dialect() -> list[Entry]:
    blob = content("blob", 5_000)
    plain = [
        ("POST", f"/api/cache/cas/0~cas?{TENANT}"),
        ("PUT", f"/api/cache/gradle/{HASH[:32]}?{TENANT}"),
        ("PUT", f"/gradle/acme/app/{HASH[1:33]}"),
        ("PUT", f"/bazel/acme/app/ac/{HASH}"),
        ("PUT", f"/bazel/acme/app/cas/{hashlib.sha256(blob).hexdigest()}"),
        ("PUT", f"/ccache/acme/app/{HASH[:40]}"),
        ("PUT", f"/ccache/acme/app/{HASH[1:3]}/{HASH[3:41]}"),
        ("PUT", f"/webdav/acme/app/a/b/c/{HASH}"),
        ("PUT", f"/turborepo/acme/app/v8/artifacts/{HASH[:16]}"),
        ("PUT", "/nx/acme/app/v1/cache/12345678901234567890"),
        ("PUT", "/gradle/acme/app/gr%C3%BCn%20und%20%25"),
    ]
    found = [
        Entry(method, path, blob if "/bazel/acme/app/cas/" in path else content(path, 3_000), path)
        for method, path in plain
    ]
    return found + [key_value(f"cas{number}") for number in range(50)]
