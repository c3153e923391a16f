"""What the node offers to its dialects."""

from dataclasses import dataclass

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
    multipart: MultipartUploads

    def entries(self, tool: str, max_bytes: int, *, replace: bool, redirects: bool = False) -> ArtifactRoutes:
        """The artifacts as one tool uses them, counted under `tool`.

        With `replace` a write heals whatever is there. `redirects`: whether its clients can be sent to
        the object store.
        """
        return ArtifactRoutes(
            self.artifacts,
            self.lookup,
            self.telemetry,
            tool,
            replace,
            max_bytes,
            self.uploads.read_timeout_ms,
            redirects,
        )
