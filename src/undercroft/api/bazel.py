"""Bazel's HTTP cache protocol (https://bazel.build/remote/caching#http-caching)."""

import re
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from undercroft.api import responses
from undercroft.api.action_result import EMPTY_SHA256
from undercroft.api.artifact_routes import FOUND, NOT_STORED, Admit, Decode
from undercroft.api.complete_actions import CompleteActions
from undercroft.api.request import Request
from undercroft.api.routing import OCTETS, Route
from undercroft.api.services import Services
from undercroft.api.zstd_bodies import ZstdBodies
from undercroft.errors import InvalidKeyError
from undercroft.storage.layout import artifact_key, safe_component, safe_handle

_HASH = re.compile(r"[0-9a-f]{64}")


class BazelApi:
    """`/bazel/{account}/{project}/[instance/]ac/{hash}` and `.../cas/{hash}`.

    A blob is stored only under its own SHA-256. Action results are whatever the client sends; one that
    names a blob which is not there is not served.
    """

    def __init__(self, services: Services) -> None:
        self._actions = services.entries("bazel", services.uploads.bazel_max_bytes, replace=True)
        self._blobs = services.entries("bazel", services.uploads.bazel_max_bytes, replace=False)
        self._complete = CompleteActions(self._blobs)
        zstd = ZstdBodies(services.uploads.bazel_max_bytes)
        self._decode: dict[bytes, Decode | None] = {b"": None, b"identity": None, b"zstd": zstd.content}

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        path = "/bazel/{account}/{project}/{instance_kind_hash...}"
        stored = {
            200: "stored",
            **NOT_STORED,
            400: "not a hash, or the body is not what the hash says",
            415: "a Content-Encoding other than zstd",
        }
        there = {200: "`status` was asked for: the node is there", 404: "anything else was"}
        what = "a blob (cas) or an action result (ac)"
        named = {"instance_kind_hash": {"type": "string", "pattern": "^([^/]+/)*(ac|cas)/[0-9a-f]{64}$"}}
        return [
            Route("GET", path, self.get, f"Fetch {what}", FOUND, schemas=named),
            Route("HEAD", path, self.get, f"Ask for {what}", FOUND, schemas=named),
            Route("PUT", path, self.put, f"Store {what}", stored, body=OCTETS, schemas=named),
            # Not `/bazel/{account}/status`: that would hide a project of this name.
            Route(
                "GET",
                "/bazel/{account}/{project}",
                self.status,
                "Whether the node is there",
                there,
                right="nothing",
                schemas={"project": {"const": "status"}},
            ),
        ]

    async def status(self, request: Request) -> None:
        """What moon asks for first, as `/bazel/{account}/status`, and without authentication."""
        if request.parameters[1] == "status":
            await responses.empty(request, 200)
        else:
            await responses.message(request, 404, "no such path")

    async def get(self, request: Request) -> None:
        """Serves an entry. The empty blob is always there."""
        kind, digest, key = _entry(request)
        if kind == "ac":
            await self._actions.serve(request, key, admit=self._admit(request))
        elif digest == EMPTY_SHA256:
            await responses.content(request, 200, b"", b"application/octet-stream")
        else:
            await self._blobs.serve(request, key)

    async def put(self, request: Request) -> None:
        """Stores an entry. Bazel sends blobs again without asking: they are checked, and kept as they are."""
        kind, digest, key = _entry(request)
        encoding = request.headers.get(b"content-encoding", b"").strip().lower()
        if encoding not in self._decode:
            # Nobody would know how to read it, and to Bazel any 4xx is "not stored".
            await responses.message(request, 415, "of content encodings only zstd is known")
            return
        decode = self._decode[encoding]
        if kind == "ac":
            await self._actions.store(request, key, decode=decode, admit=self._admit(request))
        else:
            await self._blobs.store(request, key, expected_sha256=digest, decode=decode)
        await responses.empty(request, 200)

    def _admit(self, request: Request) -> Admit:
        return partial(self._complete.admit, request, _blob_keys(request))


def _entry(request: Request) -> tuple[str, str, str]:
    """Kind (`ac` or `cas`), hash and key of the artifact a path means."""
    account, project, *instance, kind, digest = _checked(request.parameters)
    if kind not in ("ac", "cas") or _HASH.fullmatch(digest) is None:
        raise InvalidKeyError(f"{kind}/{digest} is not ac/ or cas/ and 64 lowercase hex digits")
    # Blobs are named by what they contain, so instances share them; actions are an instance's own.
    group = [f"@{'+'.join(quote(part, safe='') for part in instance)}"] if instance and kind == "ac" else []
    for part in group:
        safe_component(part, "instance name")
    return kind, digest, artifact_key(account, project, f"bazel_{kind}", digest, group=group)


def _blob_keys(request: Request) -> Callable[[str], str]:
    """Where the blobs lie that an action result of this request's project names."""
    account, project, *_ = _checked(request.parameters)
    return partial(artifact_key, account, project, "bazel_cas")


def _checked(parameters: list[str]) -> list[str]:
    account, project, *rest = parameters
    if len(rest) < 2:
        raise InvalidKeyError(f"{'/'.join(rest)} is not ac/{{hash}} or cas/{{hash}}")
    for part in rest:
        safe_component(part, "path component")
    return [safe_handle(account, "account"), safe_handle(project, "project"), *rest]
