"""Routes as data, found by the raw path: decoding comes after splitting, so `%2F` is never a separator."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from undercroft.api.request import Request
from undercroft.auth.grants import Right
from undercroft.errors import InvalidKeyError

Endpoint: TypeAlias = Callable[[Request], Awaitable[None]]

JSON = "application/json"
OCTETS = "application/octet-stream"

Schema: TypeAlias = Mapping[str, Any]
"""A JSON schema."""

# `safe_component` in storage/layout.py, but for the limit, which is in bytes there.
COMPONENT: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[^/\\\u0000-\u001f\u007f-\u009f]+$",
    "not": {"enum": [".", ".."]},
}

READS = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND"})


@dataclass(frozen=True)
class Route:
    """A method and a path with `{parameters}`; the last may be `{name...}` for one or more components.

    The rest is what `/api/spec` says of it: `answers` maps status to meaning.
    """

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    answers: Mapping[int, str]
    query: Sequence[str] = ()
    """The parameters that must be in the query."""
    body: str | None = None
    """The type of the request's body."""
    right: Right | None = None
    """What the caller must be allowed to do in the project; by default what the method says."""

    optional: Sequence[str] = ()
    """The parameters that may be in the query."""
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    """JSON schemas of parameters, by name, that are not just any safe component."""
    headers: Mapping[str, Schema] = field(default_factory=dict)
    """JSON schemas of headers that may be sent, by name; those of downloads go without saying."""
    accepts: Any = None
    """What a JSON body is: a type that msgspec knows."""
    returns: Mapping[int, Any] = field(default_factory=dict)
    """What the answer of a status is: a type that msgspec makes JSON of, or a content type. Artifacts and
    errors go without saying."""

    @property
    def needs(self) -> Right:
        """What the caller must be allowed to do in the project."""
        return self.right or ("read" if self.method in READS else "write")


@dataclass
class _Node:
    literals: dict[bytes, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    rest: dict[str, Route] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)


class Router:
    """Finds the route of a request in time proportional to its path."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        for route in routes:
            self._insert(route)

    def _insert(self, route: Route) -> None:
        node = self._root
        for part in route.path.split("/")[1:]:
            if part.endswith("...}"):
                node.rest[route.method] = route
                return
            node = _child(node, part)
        node.routes[route.method] = route

    def find(self, method: str, raw_path: bytes) -> tuple[Route | None, list[bytes], list[str]]:
        """The route and its raw parameters; without one, the methods that the path does have."""
        parts = raw_path.split(b"/")[1:]
        found, parameters = self._walk(parts)
        route = found.get(method)
        return self._find_beside(method, parts) if route is None else (route, parameters, [])

    def _walk(self, parts: list[bytes]) -> tuple[dict[str, Route], list[bytes]]:
        node = self._root
        parameters: list[bytes] = []
        for index, part in enumerate(parts):
            following = node.literals.get(part)
            if following is None:
                if node.rest:
                    return node.rest, [*parameters, *parts[index:]]
                if node.parameter is None:
                    return {}, []
                following = node.parameter
                parameters.append(part)
            node = following
        return node.routes, parameters

    def _find_beside(self, method: str, parts: list[bytes]) -> tuple[Route | None, list[bytes], list[str]]:
        """Like `find`, also where a parameter happens to be what another route has as a literal."""
        methods: set[str] = set()
        for routes, parameters in _matching(self._root, parts, 0, []):
            if method in routes:
                return routes[method], parameters, []
            methods.update(routes)
        return None, [], sorted(methods)


def _matching(
    node: _Node, parts: list[bytes], at: int, parameters: list[bytes]
) -> Iterator[tuple[dict[str, Route], list[bytes]]]:
    """The routes of every node that the parts lead to, literals first. No deeper than the longest route."""
    if at == len(parts):
        yield node.routes, parameters
        return
    if (literal := node.literals.get(parts[at])) is not None:
        yield from _matching(literal, parts, at + 1, parameters)
    if node.parameter is not None:
        yield from _matching(node.parameter, parts, at + 1, [*parameters, parts[at]])
    if node.rest:
        yield node.rest, [*parameters, *parts[at:]]


def _child(node: _Node, part: str) -> _Node:
    if part.startswith("{"):
        if node.parameter is None:
            node.parameter = _Node()
        return node.parameter
    return node.literals.setdefault(part.encode(), _Node())


def decoded(part: bytes) -> str:
    """A component of the raw path as text; raises `InvalidKeyError` unless it is UTF-8."""
    try:
        return (unquote_to_bytes(part) if b"%" in part else part).decode()
    except UnicodeDecodeError as error:
        raise InvalidKeyError(f"the path component {part[:80]!r} is not percent-encoded UTF-8") from error
