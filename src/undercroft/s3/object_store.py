"""The second tier: objects in S3, GCS, Azure or a directory, behind answers that never guess.

Found, absent, or could not ask: a method answers what it was asked for, None for "the store says that
it is not there", and raises `ObjectStoreError` when nothing is known. Keys are those of artifacts.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from undercroft.telemetry.events import Events


@dataclass(frozen=True, slots=True)
class ObjectStoreSettings:
    """Where the store is and how to be let in. What is None comes from the provider's usual environment.

    `url` is s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory;
    `endpoint` the URL of a service that stands in for the provider's own; `access_key_id` and
    `secret_access_key` are the account and its key for Azure; `credentials_file` is a service account
    of GCS; `ca_file` holds authorities to trust as well, in PEM.
    """

    url: str
    endpoint: str | None = None
    region: str | None = None
    virtual_hosted_style: bool = False
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    credentials_file: Path | None = None
    ca_file: Path | None = None
    connect_timeout_ms: int = 2_000


class RemoteObject(NamedTuple):
    """What the store says of an object.

    `size` is in bytes; `content_sha256` 64 lowercase hex digits, None if the store does not keep it
    (a directory, a listing, an object of another program); `modified_at` in microseconds since the
    epoch by the clock of the store, which may know seconds only.
    """

    key: str
    size: int
    content_sha256: str | None
    modified_at: int


class RemoteBody(Protocol):
    """An object on its way here. Whoever has it reads it to its end or closes it."""

    object: RemoteObject

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes from where they were asked for to the end, at most 1 MiB at a time; once.

        Raises `ObjectStoreError`. Fewer bytes than announced are an error too, never an end.
        """
        ...

    def close(self) -> None:
        """Gives the connection up. Idempotent."""
        ...


class ObjectStore(Protocol):
    """A bucket, or a prefix of one.

    Nothing here blocks the event loop. Every method may be cancelled, and has no deadline of its own
    but that of connecting: the caller knows how long it can wait. Nothing is retried. Every method
    raises `ObjectStoreError` when the store does not do, or say, what it was asked.
    """

    async def head(self, key: str) -> RemoteObject | None:
        """What is stored under the key."""
        ...

    async def get(self, key: str, start: int = 0) -> RemoteBody | None:
        """The bytes under the key from byte `start` on; returns when the store has begun to answer.

        `start` must be less than the size; a store that knows no ranges sends all, and what is before
        `start` is dropped here.
        """
        ...

    async def put(self, key: str, file: BinaryIO, size: int, content_sha256: str | None) -> None:
        """Stores the first `size` bytes of a file; durable on return, replaces what was there.

        The file is open for reading and stays open until this returns or raises; its position
        changes. Nobody ever sees a part of the object. When this raises, nothing is stored; when it is
        cancelled, nothing, or the whole object if the store had all bytes by then. Cancelling takes up
        to a second, in which parts that are already there are taken back; a store that is silent for
        longer keeps them, invisible, until its own rule for incomplete uploads removes them. Raises
        OSError when the file cannot be read or is shorter.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes; keys that are not there do no harm."""
        ...

    def list(self, prefix: str) -> AsyncIterator[list[RemoteObject]]:
        """Every object whose key starts with `prefix`, a whole number of components; page by page.

        What other programs stored under names no key has is left out.
        """
        ...

    async def presigned_url(self, key: str, expires_s: int) -> str | None:
        """A URL under which anybody can GET the object for a while; None where the provider has none."""
        ...

    async def check(self) -> None:
        """Asks for one page. Raises `SettingsError` if settings are to blame: bucket, credentials, rights.

        Raises `ObjectStoreError` when the store cannot be asked now.
        """
        ...


def open_object_store(settings: ObjectStoreSettings, telemetry: Events) -> ObjectStore:
    """Makes the client of a store; asks it nothing yet, so it opens while the store is away.

    Each request is told to `telemetry` as `OBJECT_STORE_REQUEST`; that of a download ends when the
    store begins to answer. Raises `SettingsError` for what cannot be right: the URL, a file that is
    named and cannot be read, half a pair of credentials, a directory that cannot be made.
    """
    from undercroft.s3.obstore_client import ObstoreClient  # noqa: PLC0415  # it imports the contract
    from undercroft.s3.providers import open_provider  # noqa: PLC0415

    return ObstoreClient(open_provider(settings), telemetry)
