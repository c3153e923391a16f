"""Fills a node with an entry of each dialect it knows: `python fill.py URL` prints what GET must answer.

Only the standard library: it runs beside nodes of versions whose own tests are another matter.
"""

import hashlib
import http.client
import json
import sys
from urllib.parse import urlsplit

TENANT = "account_handle=acme&project_handle=app"
HASH = "ab12cd34" * 8


def content(name: str, size: int) -> bytes:
    """Bytes that can be told from any other's, and do not fill a repository."""
    return (hashlib.sha256(name.encode()).hexdigest().encode() * (size // 64 + 1))[:size]


def writes() -> list[tuple[str, str, bytes, str]]:
    """Method, path and body of each write, and the path that reads it."""
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
        (method, path, blob if "/cas/" in path and "bazel" in path else content(path, 3_000), path)
        for method, path in plain
    ]
    for number in range(50):
        body = json.dumps({"cas_id": f"cas{number}", "entries": [{"value": f"value {number}"}]}).encode()
        found.append(
            ("PUT", f"/api/cache/keyvalue?{TENANT}", body, f"/api/cache/keyvalue/cas{number}?{TENANT}")
        )
    return found


def main() -> None:
    """Writes, then reads: what is read back is what is to be there later."""
    connection = http.client.HTTPConnection(urlsplit(sys.argv[1]).netloc, timeout=30)
    found = {}
    for method, path, body, read in writes():
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        if answer.status in (200, 201, 202, 204):
            connection.request("GET", read)
            got = connection.getresponse()
            found[read] = got.read().decode()
    print(json.dumps(found, indent=1))  # noqa: T201  # what it is for


if __name__ == "__main__":
    main()
