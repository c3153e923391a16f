"""One upload in parts, and those that are finished: they are remembered for who asks again."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from undercroft.artifact_rows import Taken
from undercroft.errors import BadRequestError
from undercroft.multipart.bounds import MAX_UPLOADS, OWNER_MAX_UPLOADS, Owner
from undercroft.storage.capacity import Reservation
from undercroft.storage.upload import Origin, Stored, Upload


@dataclass
class Part:
    """A part that is here or being sent."""

    upload: Upload
    room: Reservation
    order: int
    """Counted up over all parts: of two with the same number the one that began later counts."""
    counted: int = 0
    """Bytes for which it counts among those of its owner."""


@dataclass
class Session:
    """An upload from its beginning until it is forgotten."""

    owner: Owner
    key: str
    origin: Origin
    used_at: float
    """When a part was taken last, or all of them became an artifact."""
    parts: dict[int, Part] = field(default_factory=dict)
    size: int = 0
    """Bytes of all parts."""
    requests: int = 0
    """Parts being sent right now."""
    completion: "asyncio.Task[Stored] | None" = None
    asked: bytes | None = None
    """`fingerprint` of what it is being completed with, or was; from then on it takes no parts."""
    moved: bool = False
    """Whether parts were moved to the end of the first."""
    late: Taken | None = None
    """What the parts became, if that was not committed in time."""
    trouble: str = ""
    """The error that kept the last part from being taken, or all of them from becoming an artifact."""

    def size_with(self, number: int, size: int) -> int:
        """Bytes in all if part `number` had `size` bytes."""
        older = self.parts.get(number)
        return self.size + size - (0 if older is None else older.upload.size)

    def check(self, numbers: Sequence[int]) -> None:
        """Raises `BadRequestError` unless these are exactly the parts that are here."""
        if not numbers:
            raise BadRequestError("parts is empty: at least one part makes an artifact")
        if len(set(numbers)) != len(numbers):
            raise BadRequestError("a part is listed twice")
        missing = sorted(set(numbers) - self.parts.keys())
        unlisted = sorted(self.parts.keys() - set(numbers))
        wrong = []
        if missing:
            wrong.append(f"{len(missing)} of the parts listed did not arrive: {_first(missing)}")
        if unlisted:
            wrong.append(f"{len(unlisted)} of the parts that arrived are not listed: {_first(unlisted)}")
        if wrong:
            raise BadRequestError("; ".join(wrong))

    def reopen(self, trouble: str) -> None:
        """Lets it be completed again after `trouble`; it takes parts again if all are where they were."""
        self.completion, self.trouble = None, trouble
        if not self.moved:
            self.asked = None


def fingerprint(numbers: Sequence[int], expected_sha256: str | None) -> bytes:
    """Stands for parts and digest: the list of them would be most of what is remembered of an upload."""
    return hashlib.sha256(f"{sorted(numbers)} {expected_sha256}".encode()).digest()


def _first(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


class FinishedUploads:
    """Uploads whose parts are an artifact. They hold no bytes; who asks again gets the same answer.

    They are not among those that are going on: a project may finish many in a short time. So of each
    owner, and in all, only so many are remembered, and an owner's own oldest one goes for a new one.
    """

    def __init__(self) -> None:
        self._owners: dict[Owner, dict[str, Session]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, owner: Owner, upload_id: str) -> Session | None:
        """The upload, if it is remembered and this owner's."""
        return self._owners.get(owner, {}).get(upload_id)

    def add(self, upload_id: str, session: Session) -> None:
        """Remembers an upload that was finished just now."""
        own = self._owners.setdefault(session.owner, {})
        own[upload_id] = session
        self._count += 1
        if len(own) > OWNER_MAX_UPLOADS or self._count > MAX_UPLOADS:
            self._forget(session.owner, next(iter(own)))

    def forget_until(self, bound: float) -> None:
        """Forgets those that were finished at `bound` or before."""
        for owner, own in list(self._owners.items()):
            for upload_id, session in list(own.items()):
                if session.used_at > bound:
                    break  # the later ones are younger
                if session.completion is None or session.completion.done():
                    self._forget(owner, upload_id)

    def clear(self) -> None:
        """Forgets all."""
        self._owners.clear()
        self._count = 0

    def _forget(self, owner: Owner, upload_id: str) -> None:
        own = self._owners[owner]
        del own[upload_id]
        self._count -= 1
        if not own:
            del self._owners[owner]
