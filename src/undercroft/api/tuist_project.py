"""Account and project as Tuist's API has them: handles in the query."""

from functools import lru_cache

from undercroft.api.request import Request, parse_query
from undercroft.errors import BadRequestError
from undercroft.storage.layout import safe_handle

HANDLES = ("account_handle", "project_handle")

CACHED_QUERY_BYTES = 1_024


def project_in(request: Request) -> tuple[str, str]:
    """The handles of account and project, checked and in lower case.

    Raises `BadRequestError` for one that is missing, `InvalidKeyError` for one that is no name.
    """
    query = request.query_string
    # Longer ones are not kept, or somebody could fill the memory with them.
    return _project_of(query) if len(query) <= CACHED_QUERY_BYTES else _project_of.__wrapped__(query)


# A build asks thousands of times with the same two handles in its query.
@lru_cache(maxsize=4096)
def _project_of(query_string: bytes) -> tuple[str, str]:
    query = parse_query(query_string)
    missing = [name for name in HANDLES if name not in query]
    if missing:
        raise BadRequestError(f"missing in the query: {' and '.join(missing)}")
    return safe_handle(query[HANDLES[0]], HANDLES[0]), safe_handle(query[HANDLES[1]], HANDLES[1])
