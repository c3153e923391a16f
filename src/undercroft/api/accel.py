"""Leaving the bytes of an artifact to a proxy in front: nginx's `X-Accel-Redirect`.

https://nginx.org/en/docs/http/ngx_http_proxy_module.html
"""

import os
from pathlib import Path
from urllib.parse import quote

from undercroft.storage.open_artifact import OpenArtifact


class Accel:
    """Knows under which location the proxy has which file."""

    def __init__(self, artifacts_root: Path, prefix: str) -> None:
        """`prefix` is the proxy's location for the directory of artifacts, with slashes at both ends."""
        self._root = f"{os.path.realpath(artifacts_root)}/"
        self._prefix = prefix

    def location(self, found: OpenArtifact) -> bytes | None:
        """Where the proxy finds the very file that is open here; None if these bytes must be sent by us.

        That is one that is still coming or not proven yet, one behind labels in its file, and one whose name
        is another's or nobody's by now.
        """
        if found.descriptor < 0 or found.reached is not None or found.start:
            return None
        # The name it has now, by the kernel's word; one that is gone ends with "(deleted)".
        path = str(Path(f"/proc/self/fd/{found.descriptor}").readlink())
        if not path.startswith(self._root) or path.endswith(" (deleted)"):
            return None
        return (self._prefix + quote(path.removeprefix(self._root), safe="/")).encode()
