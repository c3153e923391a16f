"""Routes as an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0).

Parameters, bodies and answers are those the node has: a test asks a running one whether they are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

import undercroft
from undercroft.api.dialects import answers_for
from undercroft.api.errors import DOWNLOADS, READS
from undercroft.api.responses import Message
from undercroft.api.routing import COMPONENT, JSON, OCTETS, Route, Schema

# What every download understands.
DOWNLOAD_HEADERS: Mapping[str, Schema] = {
    "Range": {"type": "string", "pattern": "^bytes=([0-9]{1,19}-[0-9]{0,19}|-[0-9]{1,19})$"},
    "If-Range": {"type": "string", "pattern": '^"[!-~]*"$'},
    "If-None-Match": {"type": "string", "pattern": '^(\\*|"[!-~]*")$'},
}

# Of every route that needs a right, where the node asks who its clients are.
UNAUTHENTICATED, FORBIDDEN = "nobody who is known", "not allowed in this project"

OPENAPI_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "the token is the password"},
}

EMPTY = {204, 304, 307, 416}


def openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """The document."""
    types = [kind for route in routes for kind in _types_of(route)]
    _, components = msgspec.json.schema_components(
        [Message, *types], ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        method = route.method.lower()
        # WebDAV's methods have no place in OpenAPI 3.1 but that of an extension.
        field = method if method in OPENAPI_METHODS else f"x-{method}"
        paths.setdefault(shown_path(route), {})[field] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Undercroft",
            "version": undercroft.__version__,
            "description": "A build cache node. Credentials are needed where the node asks for them.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SECURITY_SCHEMES},
    }


def shown_path(route: Route) -> str:
    """The path as OpenAPI writes it, which knows no parameter with slashes: its description tells."""
    return route.path.replace("...}", "}")


def _types_of(route: Route) -> Iterator[Any]:
    if route.accepts is not None:
        yield route.accepts
    yield from (kind for kind in route.returns.values() if not isinstance(kind, str))


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{shown_path(route)}").strip("_"),
        "summary": route.summary,
        "tags": [_tag(route)],
        "security": [{}] if route.needs == "nothing" else [{"bearer": []}, {"basic": []}],
        "parameters": list(_parameters(route)),
        "responses": {
            str(status): {"description": text, **_content(route, status)}
            for status, text in sorted(_answers(route).items())
        },
    }
    if route.body is not None:
        # No body is an empty body, wherever one may be empty.
        operation["requestBody"] = {
            "required": route.accepts is not None,
            "content": {route.body: _media(route.accepts)},
        }
    return operation


def _tag(route: Route) -> str:
    """The tool, by which viewers group."""
    first = route.path.split("/")[1]
    return (
        {"api": "tuist", "up": "node", "metrics": "node"}.get(first, first)
        if route.path != "/api/spec"
        else "node"
    )


# --- what is asked ------------------------------------------------------------------------------------


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for part in route.path.split("/"):
        if part.startswith("{"):
            name = part.strip("{}").removesuffix("...")
            several = part.endswith("...}")
            schema = route.schemas.get(name, COMPONENT)
            note = {"description": "one or more components; the slashes between them are not encoded"}
            yield _parameter(name, "path", schema) | (note if several else {})
    for name in route.query:
        yield _parameter(name, "query", route.schemas.get(name, COMPONENT))
    for name in route.optional:
        yield _parameter(name, "query", route.schemas.get(name, COMPONENT), required=False)
    headers = {**(DOWNLOAD_HEADERS if 206 in route.answers else {}), **route.headers}
    for name, schema in headers.items():
        yield _parameter(name, "header", schema, required=False)


def _parameter(name: str, place: str, schema: Schema, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema}


# --- what is answered ---------------------------------------------------------------------------------


def _answers(route: Route) -> dict[int, str]:
    answers = answers_for(route.path.encode())
    if route.needs == "nothing" or (answers.strict and route.method in READS):
        return dict(route.answers)
    reads = route.method in DOWNLOADS
    unknown = {answers.unauthenticated_read if reads else answers.unauthenticated: UNAUTHENTICATED}
    forbidden = {answers.forbidden_read if reads else answers.forbidden: FORBIDDEN}
    if route.needs == "any":
        return {**unknown, **route.answers}
    # Whose project it is must be known before it can be said who may do what in it.
    return {answers.malformed: "bad parameters", **unknown, **forbidden, **route.answers}


def _content(route: Route, status: int) -> dict[str, Any]:
    """The bodies of an answer by their type; none where there is none."""
    # After HEAD there is no body; some answers are empty by what they mean.
    if route.method == "HEAD" or (status in EMPTY and status not in route.returns):
        return {}
    if status in route.returns:
        kind = route.returns[status]
        return {"content": {kind: {}} if isinstance(kind, str) else {JSON: _media(kind)}}
    if status >= 400:
        return {"content": _error(route, status)}
    return {"content": {OCTETS: {}}} if 206 in route.answers else {}


def _error(route: Route, status: int) -> dict[str, Any]:
    """The message of an error; a tool may want some in a form of its own."""
    body, content_type = answers_for(route.path.encode()).render(status, "why")
    own_type = content_type.decode().partition(";")[0]
    if own_type != JSON:
        return {JSON: _media(Message), own_type: {}}
    own = _shape(msgspec.json.decode(body))
    message = _shape({"message": "why"})
    return {
        JSON: _media(Message) if own == message else {"schema": {"anyOf": [_media(Message)["schema"], own]}}
    }


def _shape(example: Any) -> dict[str, Any]:
    """The schema of everything that looks like the example, a tree of objects with texts."""
    if not isinstance(example, dict):
        return {"type": "string"}
    properties = {name: _shape(value) for name, value in example.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _media(kind: Any) -> dict[str, Any]:
    if kind is None:
        return {}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return {"schema": schema}
