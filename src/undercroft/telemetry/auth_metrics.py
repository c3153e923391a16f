"""The series of who is let in."""

from collections.abc import Iterable

from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata
from undercroft.telemetry.prometheus import Prometheus
from undercroft.telemetry.tallies import Tally

METHODS = ("jwt", "server", "token")
REASONS = ("missing", "unauthenticated", "forbidden", "read_only", "unknown")


class AuthMetrics:
    """Counts what the gate tells."""

    def __init__(self, prometheus: Prometheus, telemetry: Events) -> None:
        self._tallies = prometheus.tallies
        self._cache = {
            result: self._tallies.declare(f"cache_auth_cache_{result}", text)
            for result, text in {
                "hit": "Credentials that were remembered",
                "miss": "Credentials that had to be looked at",
            }.items()
        }
        self._requests = self._tallies.declare(
            "cache_auth_server_request", "Requests to the Tuist server that says who may do what"
        )
        self._authorized = self._by(
            "cache_auth_authorized", "Requests let in for their credential", "method", METHODS
        )
        self._refused = self._by("undercroft_auth_refused", "Requests not let in", "reason", REASONS)
        telemetry.attach(events.AUTH_CACHE, self._on_cache)
        telemetry.attach(events.AUTH_SERVER_REQUEST, self._on_server_request)
        telemetry.attach(events.AUTHORIZED, self._on_authorized)
        telemetry.attach(events.AUTH_REFUSED, self._on_refused)

    def _by(self, name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Tally]:
        return {value: self._tallies.declare(name, text, (label,), (value,)) for value in values}

    def _on_cache(self, measurements: Measurements, metadata: Metadata) -> None:
        self._cache[metadata["result"]].add(measurements["count"])

    def _on_server_request(self, measurements: Measurements, _metadata: Metadata) -> None:
        self._requests.add(measurements["count"])

    def _on_authorized(self, measurements: Measurements, metadata: Metadata) -> None:
        self._authorized[metadata["method"]].add(measurements["count"])

    def _on_refused(self, measurements: Measurements, metadata: Metadata) -> None:
        self._refused[metadata["reason"]].add(measurements["count"])
