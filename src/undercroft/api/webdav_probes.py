"""`.sccache_check`: what sccache writes at each start to find out whether it may write."""

PROBE = ".sccache_check"

# sccache writes 13 bytes.
PROBE_BYTES = 4_096

# One for each project and key prefix; a few megabytes at most.
MAX_PROBES = 1_000


class Probes:
    """The probes of all projects, held in memory.

    An sccache server whose probe is refused writes nothing for the rest of its life, long after the disk
    had room again. So a probe is no artifact: it takes no room on the disk, waits for no commit, and
    overwriting it cannot fail. Nobody relies on reading one back: a restart loses them, another process
    has its own, and a probe that is not there is what the first sccache of all meets.
    """

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """What was written last, if it is still known."""
        return self._bodies.get(key)

    def put(self, key: str, body: bytes) -> None:
        """Remembers it; forgets the one written least recently when there are too many."""
        self._bodies.pop(key, None)
        self._bodies[key] = body
        if len(self._bodies) > MAX_PROBES:
            del self._bodies[next(iter(self._bodies))]

    def forget(self, key: str) -> bool:
        """Answers whether there was one."""
        return self._bodies.pop(key, None) is not None
