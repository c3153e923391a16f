"""The application of one of several workers: what only one of them can answer is answered by that one."""

import hashlib
from collections.abc import Sequence

import structlog

from undercroft.api import errors
from undercroft.api.app import Application
from undercroft.api.dialects import answers_for
from undercroft.api.request import Receive, Request, Scope, Send
from undercroft.api.routing import Route
from undercroft.api.tuist_project import project_in
from undercroft.auth.grants import Gate
from undercroft.errors import SiblingError, UndercroftError
from undercroft.processes.siblings import Siblings

log = structlog.get_logger(__name__)

# What is known of uploads in parts, and what bounds them, is in the memory of one process.
IN_PARTS = frozenset(b"/api/cache/module/" + step for step in (b"start", b"part", b"complete"))


class WorkerApplication(Application):
    """Hands uploads in parts on to the worker that has those of the project, before anything is asked."""

    def __init__(self, routes: Sequence[Route], gate: Gate | None) -> None:
        """Without siblings, until it is told."""
        super().__init__(routes, gate)
        self.siblings: Siblings | None = None

    async def answer_here(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that a sibling hands on, or that nobody else need answer."""
        await super().__call__(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, by the rules of ASGI."""
        if self.siblings is not None and scope["raw_path"] in IN_PARTS and scope["method"] == "POST":
            owner = owner_of(scope, self.siblings.count)
            if owner is not None and owner != self.siblings.number:
                await self._hand_on(self.siblings, owner, scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    async def _hand_on(
        self, siblings: Siblings, owner: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            begun = await siblings.hand_on(owner, scope, receive, send)
        except SiblingError as broken:
            # The client sees a connection that ends too soon; nobody else would tell of it.
            log.warning(
                "answer_broke_off",
                worker=owner,
                method=scope["method"],
                path=scope["path"],
                error=str(broken),
            )
            raise
        if not begun:
            error = SiblingError(
                f"worker {owner}, which has the uploads in parts of this project, is not there: try again"
            )
            request = Request(scope, receive, send)
            request.request_id = self._request_id(request)
            await errors.answer(request, error, answers_for(scope["raw_path"]))


def owner_of(scope: Scope, workers: int) -> int | None:
    """The worker that has the uploads in parts of the project; None for a request without one.

    Of all scopes of it, so that bounds per project hold; by a hash that all workers agree on.
    """

    async def nothing(*_: object) -> dict[str, object]:
        raise AssertionError

    try:
        project = project_in(Request(scope, nothing, nothing))  # type: ignore[arg-type]
    except UndercroftError:
        return None
    digest = hashlib.blake2b("/".join(project).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % workers
