"""What an internal condition becomes for a client; the table of all clients is in `dialects.py`."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from undercroft import errors
from undercroft.api import responses
from undercroft.api.request import Request
from undercroft.auth.credentials import CHALLENGES
from undercroft.http.repeats import Answer


def _json_message(_status: int, text: str) -> tuple[bytes, bytes]:
    return msgspec.json.encode({"message": text}), b"application/json"


class Answers(NamedTuple):
    """How a build tool wants to hear of things: statuses. A cache never turns a green build red.

    The first ones are for writes; the tool takes them as "not stored" and goes on.
    """

    full_now: int
    """No room on the disk at the moment."""
    too_large: int
    """It will never fit."""
    refused: int
    """SQLite refuses this very row, and will again."""
    busy: int
    """A buffer was full, a commit late, or nobody foresaw it."""
    malformed: int = 400
    """Bad parameters, or a body that is not whole."""
    too_slow: int = 408
    """The body stopped coming."""
    mismatch: int = 422
    """The body is not what its digest says."""
    unauthenticated: int = 401
    """Nobody knows who asks."""
    unauthenticated_read: int = 401
    """Nobody knows who asks for an artifact."""
    forbidden: int = 403
    """A caller writes, or removes, what is not theirs."""
    read_only: int = 403
    """A caller who may only read writes."""
    forbidden_read: int = 403
    """A caller asks for an artifact that is not theirs to read."""
    access_unknown: int | None = None
    """Nobody could say what the caller may do; None: as for what is `busy` or `broken`."""
    unknown_upload: int = 404
    """There is no such upload in parts."""
    parts_too_large: int = 422
    """The parts of an upload are too large together; 413 is for one that is by itself."""
    broken: int = 404
    """A read failed; for a tool that is a miss."""
    strict: bool = False
    """Whether the tool fails at any status it does not know: whatever is wrong with a read is `broken`, and
    what has no route is `broken` to a reader and `malformed` to a writer."""
    render: Callable[[int, str], tuple[bytes, bytes]] = _json_message
    """The body that says `text` with a status, and its content type."""


DOWNLOADS = ("GET", "HEAD")

READS = (*DOWNLOADS, "PROPFIND")

RETRY_AFTER = (b"retry-after", b"1")


# Which answer an error gets. The first that fits counts; any other is "broken" to a reader and "busy" to a
# writer.
KINDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((errors.BadRequestError, errors.InvalidKeyError, errors.IncompleteBodyError), "malformed"),
    (errors.UnauthenticatedError, "unauthenticated"),
    (errors.ReadOnlyError, "read_only"),
    (errors.ForbiddenError, "forbidden"),
    (errors.BodyTimeoutError, "too_slow"),
    (errors.DigestMismatchError, "mismatch"),
    (errors.UnknownUploadError, "unknown_upload"),
    (errors.PartsTooLargeError, "parts_too_large"),
    (errors.TooLargeError, "too_large"),
    (errors.CapacityError, "full_now"),
    (errors.RowRefusedError, "refused"),
    (errors.AccessUnknownError, "access_unknown"),
)


def status_of(error: Exception, answers: Answers, method: str) -> int:
    """The status for an error. What nobody foresaw is "broken" to a reader and "busy" to a writer."""
    if answers.strict and method in READS:
        return answers.broken
    kind = next((kind for types, kind in KINDS if isinstance(error, types)), "")
    if method in DOWNLOADS and kind in ("forbidden", "unauthenticated"):
        kind += "_read"
    elif method in READS:
        kind = kind or "broken"
    status = getattr(answers, kind or "busy")
    if status is None:
        status = answers.broken if method in READS else answers.busy
    return int(status)


def is_foreseen(error: Exception) -> bool:
    """Whether the error needs no trace in the log."""
    return isinstance(error, errors.UndercroftError)


def answer_to(error: Exception, method: str, answers: Answers) -> Answer:
    """The answer to an error."""
    status = status_of(error, answers, method)
    text = str(error) if is_foreseen(error) else "the node could not do this; its log says why"
    body, content_type = answers.render(status, text)
    more = {401: CHALLENGES, 503: [RETRY_AFTER]}.get(status, ())
    length = (b"content-length", b"%d" % len(body))
    return Answer(status, ((b"content-type", content_type), length, *more), body)


async def answer(request: Request, error: Exception, answers: Answers) -> None:
    """Sends the answer to an error."""
    await responses.whole(request, answer_to(error, request.method, answers))


async def no_route(request: Request, methods: list[str], answers: Answers) -> None:
    """Answers a request that has no route; `methods` are those its path does have."""
    status, text = (405, f"{request.method} is not for this path") if methods else (404, "no such path")
    if answers.strict:
        status = answers.broken if request.method in READS else answers.malformed
    headers = [(b"allow", ", ".join(methods).encode())] if methods else None
    body, content_type = answers.render(status, text)
    await responses.content(request, status, body, content_type, headers)
