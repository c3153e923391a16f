"""Routes are found by the raw path; decoding comes after splitting."""

import pytest

from undercroft.api.request import Request
from undercroft.api.routing import Route, Router, decoded
from undercroft.errors import InvalidKeyError


async def nothing(_request: Request) -> None:
    return


def route(method: str, path: str) -> Route:
    return Route(method, path, nothing, "summary", {})


ROUTER = Router(
    [
        route("GET", "/up"),
        route("GET", "/a/{x}"),
        route("PUT", "/a/{x}"),
        route("GET", "/a/fixed"),
        route("POST", "/a/fixed"),
        route("GET", "/b/{x}/{rest...}"),
    ]
)


@pytest.mark.parametrize(
    ("path", "found", "parameters"),
    [
        (b"/up", "/up", []),
        (b"/a/1", "/a/{x}", [b"1"]),
        (b"/a/%2F", "/a/{x}", [b"%2F"]),
        (b"/a/fixed", "/a/fixed", []),
        (b"/a/", "/a/{x}", [b""]),
        (b"/b/1/2", "/b/{x}/{rest...}", [b"1", b"2"]),
        (b"/b/1/2/3/", "/b/{x}/{rest...}", [b"1", b"2", b"3", b""]),
    ],
)
def test_found(path: bytes, found: str, parameters: list[bytes]) -> None:
    there, values, methods = ROUTER.find("GET", path)
    assert there is not None
    assert (there.path, values, methods) == (found, parameters, [])


@pytest.mark.parametrize("path", [b"", b"*", b"/", b"/a", b"/up/", b"/a/1/2", b"/b/1", b"//up", b"/UP"])
def test_not_found(path: bytes) -> None:
    there, _, methods = ROUTER.find("GET", path)
    assert (there, methods) == (None, [])


def test_methods_of_a_path_that_lacks_the_one_asked_for() -> None:
    assert ROUTER.find("DELETE", b"/a/1")[2] == ["GET", "PUT"]
    assert ROUTER.find("DELETE", b"/a/fixed")[2] == ["GET", "POST", "PUT"]


def test_a_parameter_may_be_what_another_route_has_as_a_literal() -> None:
    there, values, _ = ROUTER.find("PUT", b"/a/fixed")
    assert there is not None
    assert (there.path, values) == ("/a/{x}", [b"fixed"])


@pytest.mark.parametrize(
    ("raw", "text"), [(b"a%20b", "a b"), (b"%C3%A9", "é"), ("é".encode(), "é"), (b"a+b", "a+b"), (b"%", "%")]
)
def test_decoded(raw: bytes, text: str) -> None:
    assert decoded(raw) == text


@pytest.mark.parametrize("raw", [b"%ff", b"\xff", b"%c0%af", b"%ed%a0%80"])
def test_not_utf8(raw: bytes) -> None:
    with pytest.raises(InvalidKeyError, match="UTF-8"):
        decoded(raw)
