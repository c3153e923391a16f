"""What the parser found, as ASGI has it; and what is no request."""

import re
from typing import Any
from urllib.parse import unquote

import httptools

from undercroft.http.exchange import Headers
from undercroft.http.limits import HEADER_COUNT

VERSIONS = ("1.0", "1.1")

BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})

_UPGRADE = re.compile(rb"(?i)\r\nupgrade:")


class RefusedRequestError(Exception):
    """What came is no request that is answered by the application."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Scope(dict[str, Any]):
    """The scope of a request. Credentials are among its headers, so it shows itself without them."""

    def __repr__(self) -> str:
        return f"<{self['method']} {self['path']}>"


def scope_of(
    parser: "httptools.HttpRequestParser", target: bytes, headers: Headers, client: tuple[str, int] | None
) -> Scope:
    """The scope of a request whose headers are complete. Raises `RefusedRequestError`."""
    if len(headers) > HEADER_COUNT:
        raise RefusedRequestError(431, f"there are more than {HEADER_COUNT} headers")
    version = parser.get_http_version()
    if version not in VERSIONS:
        raise RefusedRequestError(505, f"HTTP {version} is not spoken here: 1.0 and 1.1 are")
    if parser.should_upgrade() and any(name in BODY_HEADERS for name, _ in headers):
        raise RefusedRequestError(400, "nothing else than HTTP/1.1 is spoken here: send no Upgrade")
    hosts = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            _check_coding(value, version)
        elif name == b"host":
            hosts += 1
    if hosts != 1 and (hosts or version == "1.1"):
        raise RefusedRequestError(400, f"a request has one Host header, this has {hosts}")  # RFC 9112, 3.2
    raw_path, query = _split(target)
    return Scope(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": _text(raw_path),
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "client": client,
        }
    )


def _check_coding(value: bytes, version: str) -> None:
    """Refuse what would be kept still encoded, or framed as the version has it not (RFC 9112, 6.1)."""
    if version == "1.0":
        raise RefusedRequestError(400, "HTTP/1.0 has no Transfer-Encoding: send a Content-Length")
    if value.strip().lower() != b"chunked":
        coding = value.decode("latin-1")
        raise RefusedRequestError(501, f"Transfer-Encoding {coding!r} is not understood: only chunked is")


def without_upgrade(data: bytes) -> bytes:
    """What begins with a head, without its wish for another protocol, which a server may ignore.

    The parser takes a request that has one for the last of its kind and drops its body. One in a later head,
    or cut in two, is left: with a body it is refused.
    """
    if b"pgrade" not in data:
        return data
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-grade:", head) + end + rest


def _split(target: bytes) -> tuple[bytes, bytes]:
    """Raw path and query of a target in any of its forms (RFC 9112, 3.2)."""
    if not target.startswith(b"/") and b"://" in target:
        parsed = httptools.parse_url(target)
        return parsed.path or b"/", parsed.query or b""
    path, _, query = target.partition(b"?")
    return path, query


def _text(raw_path: bytes) -> str:
    return unquote(raw_path.decode("latin-1")) if b"%" in raw_path else raw_path.decode("latin-1")


def refusal_of(error: httptools.HttpParserError) -> RefusedRequestError:
    """What is answered to what the parser does not take."""
    cause = error.__context__
    if isinstance(cause, RefusedRequestError):
        return cause
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return RefusedRequestError(400, f"{error}: percent-encode what a URL cannot have")
    return RefusedRequestError(400, f"this is no HTTP request: {error}")
