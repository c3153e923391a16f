"""Counts whom a gate does not let in, and why."""

from collections.abc import Iterable

from undercroft.auth.grants import Caller, Gate, Question, Standing
from undercroft.errors import AccessUnknownError, ForbiddenError, ReadOnlyError, UnauthenticatedError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

# The first that fits counts.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (UnauthenticatedError, "unauthenticated"),
    (ReadOnlyError, "read_only"),
    (ForbiddenError, "forbidden"),
    (AccessUnknownError, "unknown"),
)


class CountedGate:
    """Another gate, with an event for each refusal."""

    def __init__(self, gate: Gate, telemetry: Events) -> None:
        self._gate = gate
        self._telemetry = telemetry

    async def admit(self, asked: Question) -> Caller:
        """See `Gate`."""
        try:
            return await self._gate.admit(asked)
        except tuple(error for error, _ in REASONS) as error:
            reason = next(reason for kind, reason in REASONS if isinstance(error, kind))
            if asked.authorization is None:
                # Most tools ask without a credential only when nobody has given them one.
                reason = "missing"
            self._telemetry.emit(events.AUTH_REFUSED, {"count": 1}, {"reason": reason})
            raise

    def standing(self, authorization: bytes | None, caller: Caller) -> Standing | None:
        """See `Gate`."""
        return self._gate.standing(authorization, caller)

    async def readable(self, authorization: bytes, projects: Iterable[str]) -> set[str]:
        """See `Gate`."""
        return await self._gate.readable(authorization, projects)
