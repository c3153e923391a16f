"""What the node offers to its dialects."""

from dataclasses import dataclass
from pathlib import Path

from undercroft.api.accel import Accel
from undercroft.api.artifact_routes import ArtifactRoutes
from undercroft.artifacts import CacheArtifacts
from undercroft.key_values import KeyValueStore
from undercroft.multipart import MultipartUploads
from undercroft.read_through import ReadThrough
from undercroft.settings_sections import UploadsSection
from undercroft.telemetry.events import Events


@dataclass(frozen=True)
class Services:
    """Artifacts, key values, uploads in parts, and the limits of what may be uploaded."""

    artifacts: CacheArtifacts
    lookup: ReadThrough
    key_values: KeyValueStore
    telemetry: Events
    uploads: UploadsSection
    artifacts_root: Path
    """The directory of all artifacts, for a dialect that lists names."""
    multipart: MultipartUploads

    asks_callers: bool
    """Whether who asks decides what they are served."""
    accel: Accel | None = None
    """Where a proxy in front sends what is on disk."""

    def entries(
        self, tool: str, max_bytes: int, *, replace: bool, redirects: bool = False, surely: bool = False
    ) -> ArtifactRoutes:
        """The artifacts as one tool uses them, counted under `tool`.

        With `replace` a write heals whatever is there, unless entries are set to be immutable: then it
        only heals what is damaged. `redirects`: whether its clients can be sent to the object store.
        `surely`: nothing is sent that is not known to be whole.
        """
        return ArtifactRoutes(
            self.artifacts,
            self.lookup,
            self.telemetry,
            tool,
            replace and not self.uploads.immutable,
            max_bytes,
            self.uploads.read_timeout_ms,
            redirects,
            _caching(replaceable=replace, private=self.asks_callers),
            surely,
            self.accel,
        )


def _caching(*, replaceable: bool, private: bool) -> tuple[tuple[bytes, bytes], ...]:
    """What a cache on the way may do (RFC 9111): nothing that rights or a later write would forbid."""
    lifetime = b"no-cache" if replaceable else b"max-age=31536000, immutable"
    if not private:
        return ((b"cache-control", lifetime if replaceable else b"public, " + lifetime),)
    # The same path is another artifact to a caller of another trust scope, or none at all.
    return ((b"cache-control", b"private, " + lifetime), (b"vary", b"authorization"))
