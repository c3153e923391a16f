"""What Turborepo says about an artifact, kept in front of its bytes in the same file.

So it is never without them, nor they with the labels of another upload, on disk, in the object store and
after a crash (docs/decisions/0012-turborepo-labels.md).
"""

import struct
from typing import Annotated, TypeAlias

import msgspec

from undercroft.api import responses
from undercroft.api.artifact_routes import Admitted
from undercroft.api.request import Request
from undercroft.errors import BadRequestError
from undercroft.storage.open_artifact import OpenArtifact

MAGIC = b"TURBO\x00\x00\x01"

# Magic and length of the JSON that follows. The longest labels are well below `MOST_BYTES`.
_HEAD = struct.Struct(">8sI")
MOST_BYTES = 4_096

# What a double holds exactly: turbo's clients are not all written in Rust.
MAX_DURATION_MS = 1 << 53

# Visible ASCII and nothing else: what is stored is sent again as a header. `$` would let a newline pass.
Duration: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,16}\Z")]
Tag: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,600}\Z")]
Revision: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,256}\Z")]


class Labels(msgspec.Struct, frozen=True, omit_defaults=True):
    """The headers of an upload that a download must carry again, as they came."""

    duration: Duration | None = None
    """How long the task ran, in milliseconds."""
    tag: Tag | None = None
    """The client's signature of the artifact."""
    sha: Revision | None = None
    """The commit it was built from."""
    dirty_hash: Revision | None = None
    """What stood for the changes that were not committed."""

    def __post_init__(self) -> None:
        if self.duration is not None and int(self.duration) > MAX_DURATION_MS:
            raise ValueError(f"at most {MAX_DURATION_MS} ms can be told")


HEADERS = {name: b"x-artifact-" + name.replace("_", "-").encode() for name in Labels.__struct_fields__}

_decoder = msgspec.json.Decoder(Labels)


def labels_of(request: Request) -> Labels:
    """What an upload says of itself; raises `BadRequestError`."""
    given = {name: request.headers[header] for name, header in HEADERS.items() if header in request.headers}
    try:
        return msgspec.convert({name: value.decode("latin-1") for name, value in given.items()}, Labels)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"x-artifact-... is malformed: {error}") from error


def preamble(labels: Labels) -> bytes:
    """The labels as they are stored."""
    encoded = msgspec.json.encode(labels)
    return _HEAD.pack(MAGIC, len(encoded)) + encoded


async def admit(found: OpenArtifact, signed: Labels | None = None) -> Admitted | None:
    """The artifact behind its labels, and these as headers; None for a file that has none.

    With `signed` only an artifact of the same signature. Labels are checked again: another program may
    have put the object where the node found it.
    """
    start = await responses.beginning(found, MOST_BYTES)
    if len(start) < _HEAD.size:
        return None
    magic, length = _HEAD.unpack_from(start)
    encoded = start[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or len(encoded) != length:
        return None
    try:
        labels = _decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if signed is not None and signed.tag != labels.tag:
        return None
    behind = _HEAD.size + length
    artifact = found._replace(size=found.size - behind, start=found.start + behind)
    return Admitted(artifact, _as_headers(labels))


def _as_headers(labels: Labels) -> list[tuple[bytes, bytes]]:
    pairs = ((header, getattr(labels, name)) for name, header in HEADERS.items())
    return [(header, value.encode()) for header, value in pairs if value is not None]
