"""What each internal condition becomes for each client: the one table, and the one place that applies it."""

from typing import NamedTuple

from undercroft import errors
from undercroft.api import responses
from undercroft.api.request import Request


class Dialect(NamedTuple):
    """How a build tool wants to hear of things. A cache never turns a green build red.

    The middle ones are statuses for writes that the tool takes as "not stored" and goes on; `broken`
    is for reads that failed, and for a tool that is a miss.
    """

    name: str
    full_now: int
    too_large: int
    refused: int
    busy: int
    broken: int = 404


# full_now: no room on the disk at the moment. too_large: it will never fit. refused: SQLite refuses
# this very row, and will again. busy: a buffer was full or a commit late. Bazel repeats 5xx five times
# with growing pauses, so it gets a 4xx for what will not get better soon; Gradle turns its cache off at
# whatever it does not know, and forgives 413.
TUIST = Dialect("tuist", full_now=507, too_large=413, refused=400, busy=503)
GRADLE = Dialect("gradle", full_now=413, too_large=413, refused=413, busy=413)
BAZEL = Dialect("bazel", full_now=413, too_large=413, refused=413, busy=413)
CCACHE = Dialect("ccache", full_now=413, too_large=413, refused=413, busy=413)

# What belongs to no tool: /up, /metrics, /api/spec. Who watches the node must see that it is broken.
NODE = Dialect("node", full_now=503, too_large=413, refused=503, busy=503, broken=503)

RETRY_AFTER = (b"retry-after", b"1")


def status_of(error: Exception, dialect: Dialect, method: str) -> int:
    """The status for an error. What nobody foresaw is "broken" to a reader and "busy" to a writer."""
    match error:
        case errors.BadRequestError() | errors.InvalidKeyError() | errors.IncompleteBodyError():
            status = 400
        case errors.BodyTimeoutError():
            status = 408
        case errors.DigestMismatchError():
            status = 400 if dialect is BAZEL else 422
        case errors.TooLargeError():
            status = dialect.too_large
        case errors.CapacityError():
            status = dialect.full_now
        case errors.RowRefusedError():
            status = dialect.refused
        case _:
            status = dialect.broken if method in ("GET", "HEAD") else dialect.busy
    return status


def is_foreseen(error: Exception) -> bool:
    """Whether the error needs no trace in the log."""
    return isinstance(error, errors.UndercroftError)


async def answer(request: Request, error: Exception, dialect: Dialect) -> int:
    """Sends the answer to an error; answers its status."""
    status = status_of(error, dialect, request.method)
    text = str(error) if is_foreseen(error) else "the node could not do this; its log says why"
    await responses.message(request, status, text, [RETRY_AFTER] if status == 503 else None)
    return status
