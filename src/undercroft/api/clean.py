"""Cleaning a project, with the handles in the query as in Tuist's API."""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from undercroft.api import responses
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.api.tuist_project import HANDLES, project_in
from undercroft.workers.clean_jobs import CleanJob
from undercroft.workers.clean_project import CleanProject

PATH = "/api/cache/clean"


class Progress(msgspec.Struct, frozen=True):
    """How far the removal of a project has come."""

    state: str
    requested_at: str
    finished_at: str | None
    key_values: int
    artifacts: int
    transfers: int
    objects: int
    last_error: str | None


@dataclass(frozen=True)
class CleanApi:
    """Takes requests, and tells how far they have come."""

    clean: CleanProject

    def routes(self) -> list[Route]:
        """The routes."""
        taken = {
            204: "everything written before this is being removed",
            400: "bad parameters",
            503: "not taken, try again",
        }
        progress = {200: "the newest request", 400: "bad parameters", 404: "there was no request"}
        return [
            Route(
                "DELETE", PATH, self.delete, "Remove everything of a project", taken, HANDLES, right="clean"
            ),
            Route(
                "GET",
                PATH,
                self.get,
                "How far the removal has come",
                progress,
                HANDLES,
                returns={200: Progress},
            ),
        ]

    async def delete(self, request: Request) -> None:
        """204 as soon as the request cannot be lost any more."""
        await self.clean.request(*project_in(request))
        await responses.empty(request, 204)

    async def get(self, request: Request) -> None:
        """The progress of the project's newest request."""
        job = self.clean.newest_job(*project_in(request))
        if job is None:
            await responses.message(request, 404, "nobody asked for this project to be cleaned")
        else:
            await responses.json(request, 200, _progress(job))


def _progress(job: CleanJob) -> Progress:
    return Progress(
        state=job.stage,
        requested_at=_iso(job.requested_at),
        finished_at=None if job.finished_at is None else _iso(job.finished_at),
        key_values=job.key_values,
        artifacts=job.artifacts,
        transfers=job.transfers,
        objects=job.objects,
        last_error=job.last_error,
    )


def _iso(at: int) -> str:
    """A time in microseconds since the epoch as people and parsers read it, in UTC."""
    seconds, microseconds = divmod(at, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds).isoformat()
