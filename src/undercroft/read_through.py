"""Reading through: what is not on disk is fetched from the object store, to the client and the disk at once.

The object store can only help: whatever it does, or does not do in time, a client hears "found" or "not
there", never an error, and never waits longer than `first_byte_timeout_ms` for that.
"""

import asyncio
import enum
from typing import NamedTuple

import structlog

from undercroft.artifacts import CacheArtifacts, OpenArtifact
from undercroft.errors import ObjectStoreError, UndercroftError
from undercroft.hydration import Cleaning, Hydration, HydrationTimes
from undercroft.s3.object_store import ObjectStore, RemoteObject
from undercroft.s3.transfers import S3Transfers
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

# After so many failures in a row the store counts as down: one request in `negative_ttl_ms` finds out
# whether it still is, all others are misses at once.
DOWN_AFTER = 3

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


class Miss(NamedTuple):
    """A miss is not asked for again until then (event loop time, seconds)."""

    until: float
    source: Source


class SecondTier(NamedTuple):
    """What reading through needs besides the disk."""

    store: ObjectStore
    transfers: S3Transfers
    times: HydrationTimes
    cleaning: Cleaning
    redirects: bool


class ReadThrough:
    """Finds artifacts on disk, then in the object store if there is one."""

    def __init__(self, artifacts: CacheArtifacts, telemetry: Events, tier: SecondTier | None) -> None:
        self._artifacts = artifacts
        self._telemetry = telemetry
        self._tier = tier
        self._jobs = Jobs()
        self._running: dict[str, Hydration] = {}
        self._misses: dict[str, Miss] = {}
        self._failures = 0
        self._down_until = 0.0
        artifacts.on_stored = self._forget_miss

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

    async def open(self, key: str, surely: bool = False) -> Lookup:
        """The artifact, open for reading; counts as an access. Raises OSError when the disk fails.

        `surely`: nothing is handed out before all of it is here and its digest was right. What takes longer
        to fetch than a client may be kept waiting is a miss for this one, and there for the next.
        """
        found = await self._artifacts.read(key, surely)
        if found is not None:
            return Lookup(found, Source.DISK)
        if self._tier is None or not self._may_ask(self._tier, key):
            return self._not_asked(key)
        return await self._fetched(self._tier, key, surely)

    async def head(self, key: str, surely: bool = False) -> Lookup:
        """Size and digest of the artifact; nothing is fetched. `surely` is for what is on disk."""
        found = await self._artifacts.read(key, surely)
        if found is not None:
            return Lookup(found, Source.DISK)
        if self._tier is None or not self._may_ask(self._tier, key):
            return self._not_asked(key)
        try:
            remote = await self._head(self._tier, key)
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
        if tier is None or not tier.redirects or self._artifacts.find(key) or not self._may_ask(tier, key):
            return None
        try:
            if await self._head(tier, key) is None:
                return None
            url = await tier.store.presigned_url(key, PRESIGNED_S)
            if url is not None:
                await tier.transfers.enqueue_download(key)
        except UndercroftError as error:
            log.info("no_redirect", key=key, reason=str(error))
            return None
        return url

    def _not_asked(self, key: str) -> Lookup:
        miss = self._misses.get(key)
        return Lookup(None, miss.source if miss is not None else Source.UNKNOWN)

    async def _head(self, tier: SecondTier, key: str) -> RemoteObject | None:
        """What the store says; it is remembered. Raises `ObjectStoreError`, also when it is late."""
        try:
            async with asyncio.timeout(tier.times.first_byte_s):
                remote = await tier.store.head(key)
        except ObjectStoreError:
            self._store_failed(key)
            raise
        except TimeoutError:
            self._store_failed(key)
            raise ObjectStoreError(f"head {key}: no answer in time", throttled=True) from None
        self._store_answered()
        if remote is None:
            self._remember_miss(key, Source.NOWHERE)
        return remote

    # --- fetching ---------------------------------------------------------------------------------

    async def _fetched(self, tier: SecondTier, key: str, surely: bool) -> Lookup:
        """Waits for the one fetch of the key, as long as a client may be kept waiting."""
        hydration = self._running.get(key) or self._start(tier, key)
        try:
            # Shielded by being a job of its own: it goes on when this client has gone.
            async with asyncio.timeout(tier.times.first_byte_s):
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
        cleanings = tier.cleaning.cleanings(key)

        def unwanted() -> bool:
            return self._unwanted(tier, key) or tier.cleaning.cleanings(key) != cleanings

        hydration = Hydration(key, tier.store, self._artifacts, tier.times, unwanted)
        self._running[key] = hydration
        self._jobs.start(f"hydrate {key}", self._hydrate(hydration))
        return hydration

    async def _hydrate(self, hydration: Hydration) -> None:
        result = "failed"
        try:
            result = await hydration.run()
        finally:
            del self._running[hydration.key]
            self._telemetry.emit(events.HYDRATION, {"bytes": hydration.received}, {"result": result})
        if result == "failed":
            self._store_failed(hydration.key)
        elif result == "absent":
            self._store_answered()
            self._remember_miss(hydration.key, Source.NOWHERE)
        elif result == "stored":
            self._store_answered()

    @staticmethod
    def _unwanted(tier: SecondTier, key: str) -> bool:
        """Whether the object is about to go: what was deleted here must not come back from there."""
        return tier.cleaning.is_being_cleaned(key) or tier.transfers.is_queued("delete", key)

    # --- when not to ask --------------------------------------------------------------------------

    def _may_ask(self, tier: SecondTier, key: str) -> bool:
        now = asyncio.get_running_loop().time()
        if key in self._running:
            return True
        miss = self._misses.get(key)
        if (miss is not None and now < miss.until) or self._unwanted(tier, key):
            return False
        if self._failures >= DOWN_AFTER:
            if now < self._down_until:
                return False
            # This one finds out for all the others.
            self._down_until = now + tier.times.negative_s
        self._misses.pop(key, None)
        return True

    def _remember_miss(self, key: str, source: Source) -> None:
        if self._tier is None or self._artifacts.find(key) is not None:
            return  # stored here while the store was asked
        self._misses[key] = Miss(asyncio.get_running_loop().time() + self._tier.times.negative_s, source)
        if len(self._misses) > MAX_MISSES:
            del self._misses[next(iter(self._misses))]

    def _forget_miss(self, key: str) -> None:
        self._misses.pop(key, None)

    def _store_failed(self, key: str) -> None:
        self._remember_miss(key, Source.UNKNOWN)
        self._failures += 1
        if self._failures == DOWN_AFTER and self._tier is not None:
            log.warning("object_store_down", failures=self._failures)
            self._down_until = asyncio.get_running_loop().time() + self._tier.times.negative_s

    def _store_answered(self) -> None:
        if self._failures >= DOWN_AFTER:
            log.info("object_store_up")
        self._failures = 0
