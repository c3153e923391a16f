"""Reading through: what is not on disk is fetched from the object store, to the client and the disk at once.

The object store can only help: whatever it does, or does not do in time, a client hears "found" or "not
there", never an error, and never waits longer than `first_byte_timeout_ms` for that, under however many
keys it may be served.
"""

import asyncio
import enum
from typing import NamedTuple

import msgspec
import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.errors import DigestMismatchError, ObjectStoreError, UndercroftError
from undercroft.hydration import Hydration, HydrationTimes, Outdated
from undercroft.s3.concurrency import Pauses, StorePace
from undercroft.s3.object_store import ObjectStore, RemoteObject
from undercroft.s3.patience import in_time
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.supervisor import Jobs
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.telemetry.life_metrics import Figures

log = structlog.get_logger(__name__)

# A client that asks for something of at most this size gets it when all of it is here and verified, and
# can be told "not there" until then. A larger one is sent while it comes.
WHOLE_BYTES = 1 << 20

# Keys remembered as misses; some 30 MB at most.
MAX_MISSES = 100_000

# Questions to the store at once, fetches among them, which outlive their clients: each holds a connection,
# two descriptors and room on disk. More than a build asks for at once; what is beyond is a miss.
MOST_AT_ONCE = 64

PRESIGNED_S = 600


class Source(enum.Enum):
    """Where an artifact was found, or what is known of it instead."""

    DISK = "disk"
    OBJECT_STORE = "object_store"
    NOWHERE = "nowhere"
    UNKNOWN = "unknown"
    """It is not on disk, and the object store was not asked or could not answer."""


class Lookup(NamedTuple):
    """An artifact, or None, and why."""

    artifact: OpenArtifact | None
    source: Source


class Miss(msgspec.Struct, frozen=True, gc=False):  # the garbage collector would look at each of them
    """A miss is not asked for again until then (event loop time, seconds)."""

    until: float
    source: Source


class SecondTier(NamedTuple):
    """What reading through needs besides the disk."""

    store: ObjectStore
    transfers: S3Transfers
    times: HydrationTimes
    outdated: Outdated
    redirects: bool


def _is_useless(tier: SecondTier, key: str) -> bool:
    """Whether what the store has under the key is wrong, or may be older than what was stored here."""
    return key in tier.transfers.wrong_objects or tier.outdated.now(key)


class ReadThrough:
    """Finds artifacts on disk, then in the object store if there is one."""

    def __init__(self, artifacts: CacheArtifacts, telemetry: Events, tier: SecondTier | None) -> None:
        self._artifacts = artifacts
        self._telemetry = telemetry
        self._tier = tier
        self._jobs = Jobs()
        self._running: dict[str, Hydration] = {}
        self._misses: dict[str, Miss] = {}
        self._asking = 0
        negative_s = tier.times.negative_s if tier is not None else 0.0
        # While the store is down one request in `negative_ttl_ms` finds out whether it still is, all
        # others are misses at once.
        self._pace = StorePace(MOST_AT_ONCE, pauses=Pauses(negative_s, negative_s))
        artifacts.on_stored = self._on_stored

    @property
    def in_flight(self) -> int:
        """Artifacts that are being fetched from the object store."""
        return len(self._running)

    def figures(self) -> Figures:
        """What is asked at each scrape."""
        text = "Artifacts being fetched from the object store because somebody asked"
        return {"undercroft_hydrations_in_flight": (text, lambda: self.in_flight)}

    async def stop(self) -> None:
        """Ends the fetching; nothing is left of what was not complete. Idempotent."""
        await self._jobs.stop()

    # --- asking -----------------------------------------------------------------------------------

    def deadline(self) -> float:
        """Until when a client that asks now may be kept waiting for the object store (event loop time, s)."""
        first_byte_s = self._tier.times.first_byte_s if self._tier is not None else 0.0
        return asyncio.get_running_loop().time() + first_byte_s

    async def on_disk(self, key: str, surely: bool = False) -> OpenArtifact | None:
        """The artifact, open for reading; counts as an access. Raises OSError when the disk fails.

        `surely`: nothing is handed out before its digest was right, however large it is.
        """
        return await self._artifacts.read(key, surely)

    async def fetch(self, key: str, surely: bool, deadline: float) -> Lookup:
        """The artifact from the object store, by way of the disk, where it was not; by then or not at all.

        `surely`: nothing is handed out before all of it is here. What takes longer than that to fetch is a
        miss for this client, and there for the next. Raises OSError when the disk fails.
        """
        if self._tier is None or not self._may_ask(key):
            return self._not_asked(key)
        return await self._fetched(self._tier, key, surely, deadline)

    async def ask(self, key: str, _surely: bool, deadline: float) -> Lookup:
        """Size and digest of what is in the object store and not on disk; nothing is fetched."""
        loop = asyncio.get_running_loop()
        if self._tier is None or not self._may_ask(key) or loop.time() >= deadline:
            return self._not_asked(key)
        try:
            remote = await self._head(self._tier, key, deadline)
        except ObjectStoreError:
            return Lookup(None, Source.UNKNOWN)
        if remote is None:
            return Lookup(None, Source.NOWHERE)
        return Lookup(OpenArtifact(-1, remote.size, remote.content_sha256), Source.OBJECT_STORE)

    async def delete(self, key: str) -> None:
        """Deletes the artifact here and, maybe later, in the object store. Idempotent.

        What is being fetched right now does not bring it back.
        """
        hydration = self._running.get(key)
        if hydration is not None:
            hydration.forbid()
        await self._artifacts.delete(key)

    async def redirect_url(self, key: str) -> str | None:
        """Where a client can fetch for itself what is in the object store and not on disk.

        It is fetched to the disk later, as a transfer. None: there is no such place, or redirects are
        not wanted.
        """
        tier = self._tier
        if tier is None or not tier.redirects or self._artifacts.find(key) or not self._may_ask(key):
            return None
        try:
            if await self._head(tier, key, self.deadline()) is None:
                return None
            url = await tier.store.presigned_url(key, PRESIGNED_S)
            if url is not None:
                await tier.transfers.enqueue_download(key)
        except UndercroftError as error:
            log.info("no_redirect", key=key, reason=str(error))
            return None
        return url

    def _not_asked(self, key: str) -> Lookup:
        miss = self._known_miss(key)
        return Lookup(None, miss.source if miss is not None else Source.UNKNOWN)

    async def _head(self, tier: SecondTier, key: str, deadline: float) -> RemoteObject | None:
        """What the store says; it is remembered. Raises `ObjectStoreError`, also when it is late."""
        begun, left_s = self._pace.begin(), deadline - asyncio.get_running_loop().time()
        self._asking += 1
        try:
            remote = await in_time(tier.store.head(key), left_s, f"the head of {key}")
        except ObjectStoreError as error:
            self._store_failed(key, begun, throttled=error.throttled)
            raise
        finally:
            self._asking -= 1
        self._store_answered(begun)
        if remote is None:
            self._remember_miss(key, Source.NOWHERE)
        return remote

    # --- fetching ---------------------------------------------------------------------------------

    async def _fetched(self, tier: SecondTier, key: str, surely: bool, deadline: float) -> Lookup:
        """Waits for the one fetch of the key until then."""
        hydration = self._running.get(key) or self._start(tier, key)
        try:
            # Shielded by being a job of its own: it goes on when this client has gone.
            async with asyncio.timeout_at(deadline):
                remote = await hydration.begun()
                if remote is None:
                    return Lookup(None, Source.NOWHERE)
                if remote.size > WHOLE_BYTES and not surely:
                    return Lookup(await hydration.reader(), Source.OBJECT_STORE)
                await hydration.finished()
        except (TimeoutError, UndercroftError, OSError):
            return Lookup(None, Source.UNKNOWN)
        found = await self._artifacts.read(key, surely)
        return Lookup(found, Source.OBJECT_STORE if found is not None else Source.UNKNOWN)

    def _start(self, tier: SecondTier, key: str) -> Hydration:
        hydration = Hydration(key, tier.store, self._artifacts, tier.times, tier.outdated)
        self._running[key] = hydration
        self._asking += 1
        self._jobs.start(f"hydrate {key}", self._hydrate(tier, hydration, self._pace.begin()))
        return hydration

    async def _hydrate(self, tier: SecondTier, hydration: Hydration, begun: int) -> None:
        key, result, error = hydration.key, "failed", None
        try:
            result = await in_time(hydration.run(), tier.times.whole_s, f"all of {key}")
            error = hydration.error
        except ObjectStoreError as late:
            error = late
        finally:
            del self._running[key]
            self._asking -= 1
            self._telemetry.emit(events.HYDRATION, {"bytes": hydration.received}, {"result": result})
        if result == "failed":
            throttled = isinstance(error, ObjectStoreError) and error.throttled
            self._store_failed(key, begun, throttled=throttled)
            return
        self._store_answered(begun)
        if result != "stored":
            # Fetched again for every client, what is damaged or does not fit would cost all of its bytes.
            self._remember_miss(key, Source.NOWHERE if result == "absent" else Source.UNKNOWN)
        if isinstance(error, DigestMismatchError):
            tier.transfers.wrong_objects.found(key)
            # A transfer tries again: that may have happened on the way.
            await tier.transfers.enqueue_download(key)

    # --- when not to ask --------------------------------------------------------------------------

    def _may_ask(self, key: str) -> bool:
        """Whether the store can be of help now; changes nothing."""
        running = self._running.get(key)
        if running is not None:
            return not running.unwanted
        if self._known_miss(key) is not None or (self._tier is not None and _is_useless(self._tier, key)):
            return False
        return self._asking < self._pace.limit and not self._pace.pause_s

    def _known_miss(self, key: str) -> Miss | None:
        miss = self._misses.get(key)
        return miss if miss is not None and asyncio.get_running_loop().time() < miss.until else None

    def _remember_miss(self, key: str, source: Source) -> None:
        if self._tier is None or self._artifacts.find(key) is not None:
            return  # stored here while the store was asked
        self._misses.pop(key, None)
        self._misses[key] = Miss(asyncio.get_running_loop().time() + self._tier.times.negative_s, source)
        if len(self._misses) > MAX_MISSES:
            del self._misses[next(iter(self._misses))]

    def _on_stored(self, key: str) -> None:
        self._misses.pop(key, None)
        running = self._running.get(key)
        if running is not None:
            # What it fetches is older now, also when this artifact has been uploaded and evicted again.
            running.forbid()

    def _store_failed(self, key: str, begun: int, *, throttled: bool) -> None:
        self._remember_miss(key, Source.UNKNOWN)
        was_down = self._pace.is_down
        self._pace.failed(begun, key, throttled=throttled)
        if self._pace.is_down and not was_down:
            log.warning("object_store_down", key=key)

    def _store_answered(self, begun: int) -> None:
        if self._pace.succeeded(begun, None):
            log.info("object_store_up")
