"""What uploads in parts may take of the node: all of them together, and those of one owner."""

from dataclasses import dataclass
from typing import NamedTuple

from undercroft.errors import CapacityError, TooLargeError
from undercroft.storage.capacity import Capacity

# Bytes are bounded by the disk. These bound what takes memory however few bytes there are: some 100 MB,
# and many times what the builds of a day have open at once.
MAX_UPLOADS = 10_000
MAX_PARTS = 100_000

# So that whoever begins uploads without end is refused long before anybody else is. One upload may have
# 10,000 parts.
OWNER_MAX_UPLOADS = 1_000
OWNER_MAX_PARTS = 20_000


class Owner(NamedTuple):
    """Whose an upload is: to everybody else it does not exist."""

    account: str
    project: str
    scope: str | None
    """The trust scope; None is the trusted one."""

    def __str__(self) -> str:
        name = f"{self.account}/{self.project}"
        return name if self.scope is None else f"{name} in the scope {self.scope}"


@dataclass
class Held:
    """What somebody's uploads take."""

    uploads: int = 0
    parts: int = 0
    """Parts that are here or being sent."""
    size: int = 0
    """Bytes of those parts, announced or arrived."""


class MultipartBounds:
    """Counts what uploads in parts take, and refuses what would be more than a bound."""

    def __init__(self, capacity: Capacity, module_max_bytes: int) -> None:
        self._capacity = capacity
        self._module_max_bytes = module_max_bytes
        self._owners: dict[Owner, Held] = {}
        self.total = Held()

    def owner_max_bytes(self) -> int:
        """The most bytes that may wait in parts of one owner.

        Parts are not evicted: artifacts, also those of others, make room for them. So a quarter of what
        the node may keep; but the largest module must fit, as far as it fits in half.
        """
        limit = self._capacity.limit()
        return max(limit // 4, min(self._module_max_bytes, limit // 2))

    def add_upload(self, owner: Owner) -> None:
        """Counts an upload that begins; raises `CapacityError`."""
        if self.total.uploads >= MAX_UPLOADS:
            raise CapacityError(f"{MAX_UPLOADS} uploads in parts are going on: no room for another one now")
        held = self._held(owner)
        if held.uploads >= OWNER_MAX_UPLOADS:
            raise CapacityError(
                f"{OWNER_MAX_UPLOADS} uploads in parts of {owner} are going on, the most for one project: "
                "complete some, or wait until those that nobody goes on with are removed"
            )
        for one in (self.total, self._owners.setdefault(owner, held)):
            one.uploads += 1

    def drop_upload(self, owner: Owner) -> None:
        """Counts an upload that ended."""
        self._take_off(owner, uploads=1)

    def add_part(self, owner: Owner) -> None:
        """Counts a part that is about to be sent; raises `CapacityError`."""
        if self.total.parts >= MAX_PARTS:
            raise CapacityError(f"{MAX_PARTS} parts are waiting: no room for another one now")
        held = self._held(owner)
        if held.parts >= OWNER_MAX_PARTS:
            raise CapacityError(
                f"{OWNER_MAX_PARTS} parts of {owner} are waiting, the most for one project: complete uploads"
            )
        for one in (self.total, self._owners.setdefault(owner, held)):
            one.parts += 1

    def add_bytes(self, owner: Owner, size: int) -> None:
        """Counts bytes of a part that was added, before there is room for them on the disk.

        Raises `CapacityError`, and `TooLargeError` if they can never fit.
        """
        if size > self._capacity.limit():
            raise TooLargeError(
                f"{size} bytes can never fit: the node keeps {self._capacity.limit()} at most"
            )
        held, most = self._held(owner), self.owner_max_bytes()
        if held.size + size > most:
            raise CapacityError(
                f"no room for {size} bytes more: parts of {owner} hold {held.size} bytes, and {most} are the "
                "most for one project: complete uploads"
            )
        for one in (self.total, self._owners.setdefault(owner, held)):
            one.size += size

    def drop_part(self, owner: Owner, size: int) -> None:
        """Counts a part that is gone, with all bytes that were added for it."""
        self._take_off(owner, parts=1, size=size)

    def _held(self, owner: Owner) -> Held:
        return self._owners.get(owner) or Held()

    def _take_off(self, owner: Owner, *, uploads: int = 0, parts: int = 0, size: int = 0) -> None:
        held = self._owners[owner]
        for one in (self.total, held):
            one.uploads -= uploads
            one.parts -= parts
            one.size -= size
        if held == Held():
            del self._owners[owner]
