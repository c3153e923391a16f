"""How each dialect reads and writes an artifact, for tests that hold for all of them."""

import hashlib
import json
from typing import NamedTuple

QUERY = "?account_handle=acc&project_handle=proj"


class DialectCase(NamedTuple):
    """A dialect: where an artifact of 64 hex digits lies, and its statuses."""

    name: str
    template: str
    method: str
    created: int
    again: int
    full_now: int
    busy: int
    mismatch: int = 422
    tool: str = ""
    limit: str = ""
    """The setting that bounds its bodies."""
    too_large: int = 413
    too_slow: int = 408
    malformed: int = 400
    malformed_get: int = 400
    ranges: bool = True
    """Whether it answers conditions and parts of an artifact."""
    preamble: bytes = b""
    """What the node keeps in front of the bytes of an upload without further headers."""
    digits: int = 1_000
    """The longest name it takes."""

    def path(self, identifier: str) -> str:
        return self.template.replace("{id}", identifier[: self.digits])

    def etag(self, data: bytes) -> str:
        return f'"{hashlib.sha256(self.preamble + data).hexdigest()}"'

    def stored_size(self, data: bytes) -> int:
        return len(self.preamble + data)

    def stored_row(self, data: bytes) -> tuple[int, str]:
        """Size and digest of what the node keeps."""
        return self.stored_size(data), hashlib.sha256(self.preamble + data).hexdigest()

    @property
    def names_are_digests(self) -> bool:
        return self.name == "bazel cas"

    def path_for(self, data: bytes) -> str:
        """Where these bytes may be stored."""
        return self.path(hashlib.sha256(data).hexdigest())


TUIST_CAS = DialectCase(
    "tuist cas", f"/api/cache/cas/{{id}}{QUERY}", "POST", 204, 204, 507, 503, 422, "cas", "cas_max_bytes"
)
TUIST_GRADLE = DialectCase(
    "tuist gradle",
    f"/api/cache/gradle/{{id}}{QUERY}",
    "PUT",
    201,
    200,
    507,
    503,
    422,
    "gradle",
    "gradle_max_bytes",
)
GRADLE = DialectCase(
    "gradle", "/gradle/acc/proj/{id}", "PUT", 201, 200, 413, 413, 422, "gradle", "gradle_max_bytes"
)
BAZEL_AC = DialectCase(
    "bazel ac", "/bazel/acc/proj/ac/{id}", "PUT", 200, 200, 413, 413, 400, "bazel", "bazel_max_bytes"
)
BAZEL_CAS = DialectCase(
    "bazel cas", "/bazel/acc/proj/cas/{id}", "PUT", 200, 200, 413, 413, 400, "bazel", "bazel_max_bytes"
)
CCACHE = DialectCase(
    "ccache", "/ccache/acc/proj/{id}", "PUT", 201, 200, 413, 413, 422, "ccache", "ccache_max_bytes"
)
TURBOREPO = DialectCase(
    "turborepo",
    "/turborepo/acc/proj/v8/artifacts/{id}",
    "PUT",
    202,
    202,
    412,
    412,
    tool="turborepo",
    limit="turborepo_max_bytes",
    preamble=b"TURBO\0\0\x01\0\0\0\x02{}",
    digits=16,
)

WEBDAV = DialectCase(
    "webdav", "/webdav/acc/proj/a/b/c/{id}", "PUT", 201, 201, 413, 413, 422, "webdav", "webdav_max_bytes"
)
NX = DialectCase(
    "nx",
    "/nx/acc/proj/v1/cache/{id}",
    "PUT",
    200,
    409,
    403,
    403,
    403,
    "nx",
    "nx_max_bytes",
    too_large=403,
    too_slow=403,
    malformed=403,
    malformed_get=404,
    ranges=False,
)

DIALECTS = (TUIST_CAS, TUIST_GRADLE, GRADLE, BAZEL_AC, BAZEL_CAS, CCACHE, WEBDAV, TURBOREPO, NX)
REPLACING = (GRADLE, BAZEL_AC, CCACHE, WEBDAV)
FREE_NAMES = (TUIST_CAS, TUIST_GRADLE, GRADLE, CCACHE, WEBDAV, NX)
"""Those whose artifacts may have any safe name."""


def malformed(method: str, path: str) -> int:
    """The status of a request whose path is no good."""
    if not path.startswith("/nx/"):
        return 400
    return NX.malformed_get if method in ("GET", "HEAD") else NX.malformed


def message_of(content_type: str, body: bytes) -> str:
    """What an error says: JSON, or for Nx, which shows it to its user, text."""
    if content_type == "text/plain":
        text = body.decode()
    else:
        assert content_type == "application/json"
        decoded = json.loads(body)
        assert set(decoded) == {"message"}
        text = decoded["message"]
    assert text
    return text
