"""What is known of a data directory that nodes have left, beside the directory itself."""

from pathlib import Path

import msgspec

Bodies = dict[str, str]
"""What GET answers, by its path."""


class Left(msgspec.Struct):
    """Everything that is to be found again, whatever version opens the directory."""

    stored: Bodies = {}
    """Committed and copied into the databases' files by a stop."""
    in_wal: Bodies = {}
    """Committed by the node that was killed, and in the WAL only."""
    spilled: Bodies = {}
    """Accepted by a node that could not commit them before it ended."""
    tokens: dict[str, str] = {}
    """By name; `revoked` is no good any more."""
    scoped: dict[str, Bodies] = {}
    """By the trust scope that alone reads them; a token has its name."""
    cleaned: dict[str, Bodies] = {}
    """By project: what was asked to be removed, and is there still, or its objects are."""
    uploads: list[str] = []
    """Keys whose upload to the object store waits."""
    deleted: list[str] = []
    """Paths of artifacts that were deleted; their objects are still to be removed."""
    parked: str = ""
    """Key of an upload that waits for a person."""
    upload_id: str = ""
    """An upload in parts that has one and was not completed."""
    damaged: str = ""
    """Path of an artifact whose file is in quarantine."""

    @property
    def readable(self) -> Bodies:
        """Everything a trusted caller is served."""
        return self.stored | self.in_wal | self.spilled

    def write(self, folder: Path) -> None:
        (folder / "left.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))

    @staticmethod
    def read(folder: Path) -> "Left":
        return msgspec.json.decode((folder / "left.json").read_bytes(), type=Left)
