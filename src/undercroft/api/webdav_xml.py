"""The XML of WebDAV's answers (RFC 4918, 14)."""

from collections.abc import Sequence
from email.utils import formatdate
from typing import NamedTuple

XML = b"application/xml; charset=utf-8"

# The first second of the year 10000, which no HTTP date can name.
_END_OF_DATES = 253_402_300_800

_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'

# RFC 4918, 9.1.1: how a server refuses to list everything below a path.
INFINITE = f'{_HEAD}<D:error xmlns:D="DAV:"><D:propfind-finite-depth/></D:error>'.encode()


class Resource(NamedTuple):
    """A file, or without a `size` a collection.

    `href` is percent-encoded, so it has no character that means anything to XML; no name is written in
    any other form. `size` is in bytes. `modified` is in seconds since the epoch, and the epoch itself
    where that is not known: sccache's client insists on a date, for collections as well.
    """

    href: str
    size: int | None = None
    modified: float = 0.0


def multistatus(resources: Sequence[Resource]) -> bytes:
    """The body of an answer 207."""
    described = "".join(_response(resource) for resource in resources)
    return f'{_HEAD}<D:multistatus xmlns:D="DAV:">{described}</D:multistatus>'.encode()


def _response(resource: Resource) -> str:
    if resource.size is None:
        kind = "<D:resourcetype><D:collection/></D:resourcetype>"
    else:
        kind = f"<D:resourcetype/><D:getcontentlength>{resource.size}</D:getcontentlength>"
    # Whoever can write the file can give it any time.
    known = 0 <= resource.modified < _END_OF_DATES
    modified = formatdate(resource.modified if known else 0.0, usegmt=True)
    return (
        f"<D:response><D:href>{resource.href}</D:href><D:propstat><D:prop>{kind}"
        f"<D:getlastmodified>{modified}</D:getlastmodified></D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )
