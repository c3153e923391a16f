"""The last warnings and errors of the log, for the status page."""

from collections import deque
from collections.abc import MutableMapping
from typing import Any

import msgspec

KEPT = 50

LEVELS = frozenset({"warning", "error", "critical"})

# Of each value: a line is looked at, not searched. The log has all of it.
VALUE_CHARACTERS = 300


class Warned(msgspec.Struct, frozen=True):
    """A warning or an error."""

    at: str
    """ISO 8601, UTC."""
    level: str
    event: str
    values: dict[str, str]


class RecentWarnings:
    """A processor of structlog, before the one that renders; threads may log at once."""

    def __init__(self) -> None:
        self._kept: deque[Warned] = deque(maxlen=KEPT)

    def __call__(
        self, _logger: Any, _method: str, record: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Keeps it if it is one, and hands the record on as it is."""
        if record.get("level") in LEVELS:
            values = {
                name: str(value)[:VALUE_CHARACTERS]
                for name, value in record.items()
                if name not in ("event", "level", "timestamp", "exc_info")
            }
            if isinstance(error := record.get("exc_info"), BaseException):
                values["error"] = repr(error)[:VALUE_CHARACTERS]
            kept = Warned(
                str(record.get("timestamp", "")), str(record["level"]), str(record["event"]), values
            )
            self._kept.append(kept)
        return record

    def newest_first(self) -> list[Warned]:
        """All that are kept."""
        return list(reversed(self._kept))


RECENT = RecentWarnings()
"""Those of this process: logging, too, is set up once for all of it."""
