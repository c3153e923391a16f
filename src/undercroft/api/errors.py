"""What an internal condition becomes for a client; the table of all clients is in `dialects.py`."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from undercroft import errors
from undercroft.api import responses
from undercroft.api.request import Request


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
    broken: int = 404
    """A read failed; for a tool that is a miss."""
    render: Callable[[int, str], tuple[bytes, bytes]] = _json_message
    """The body that says `text` with a status, and its content type."""


READS = ("GET", "HEAD")

RETRY_AFTER = (b"retry-after", b"1")


def status_of(error: Exception, answers: Answers, method: str) -> int:
    """The status for an error. What nobody foresaw is "broken" to a reader and "busy" to a writer."""
    match error:
        case errors.BadRequestError() | errors.InvalidKeyError() | errors.IncompleteBodyError():
            status = answers.malformed
        case errors.BodyTimeoutError():
            status = answers.too_slow
        case errors.DigestMismatchError():
            status = answers.mismatch
        case errors.UnknownUploadError():
            status = 404
        case errors.PartsTooLargeError():
            # Only Tuist sends parts. 413 is its answer to one that is too large by itself.
            status = 422
        case errors.TooLargeError():
            status = answers.too_large
        case errors.CapacityError():
            status = answers.full_now
        case errors.RowRefusedError():
            status = answers.refused
        case _:
            status = answers.broken if method in READS else answers.busy
    return status


def is_foreseen(error: Exception) -> bool:
    """Whether the error needs no trace in the log."""
    return isinstance(error, errors.UndercroftError)


async def answer(request: Request, error: Exception, answers: Answers) -> int:
    """Sends the answer to an error; answers its status."""
    status = status_of(error, answers, request.method)
    text = str(error) if is_foreseen(error) else "the node could not do this; its log says why"
    body, content_type = answers.render(status, text)
    headers = [RETRY_AFTER] if status == 503 else None
    await responses.content(request, status, body, content_type, headers)
    return status
