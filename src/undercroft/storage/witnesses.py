"""Who vouches for a file: its row, its label, both, or nobody. Rules only; docs/decisions has the reasons."""

import enum
from typing import NamedTuple, Protocol

from undercroft.storage.label import Label


class Row(Protocol):
    """What a row says of its file, whatever else it holds."""

    @property
    def key(self) -> str:
        """The key of the file."""

    @property
    def size_bytes(self) -> int:
        """The size it must have."""

    @property
    def content_sha256(self) -> str | None:
        """The digest it must have, 64 lowercase hex digits; None where that is not known."""


class Witness(enum.Enum):
    """Whose word is taken for what a file is."""

    ROW = "row"
    LABEL = "label"
    NOBODY = "nobody"
    """Nothing is said of it, or not enough to rely on: it is not served, and left as it is."""
    CONTRADICTED = "contradicted"
    """It is not what was said of it: damaged."""


class Witnesses(NamedTuple):
    """What is said of a file of `size` bytes."""

    row: Row | None
    label: Label | None
    size: int

    @property
    def fitting_row(self) -> Row | None:
        """The row if the file has its size."""
        return self.row if self.row is not None and self.row.size_bytes == self.size else None

    @property
    def fitting_label(self) -> Label | None:
        """The label if the file has its size."""
        return self.label if self.label is not None and self.label.size_bytes == self.size else None

    @property
    def can_be_proven(self) -> bool:
        """Whether the digest of the bytes would say more than their number."""
        row = self.fitting_row
        return self.fitting_label is not None or (row is not None and row.content_sha256 is not None)

    @property
    def must_be_proven(self) -> bool:
        """Whether size is too little however large the file: its label is damaged, its row may be right."""
        return self.label is not None and self.fitting_label is None and self.can_be_proven

    def by_digest(self, digest: str) -> Witness:
        """Whom to believe when the bytes are known: who named them. The label first, it came with them."""
        label, row = self.fitting_label, self.fitting_row
        if label is not None and label.content_sha256 == digest:
            return Witness.LABEL
        if row is not None and row.content_sha256 == digest:
            return Witness.ROW
        return Witness.CONTRADICTED

    def by_size(self, boot: bytes) -> Witness:
        """Whom to believe while only the size is known, in this `boot` of the machine.

        A label that no row confirms is enough for a file of this boot: it got both label and name when it
        was whole. What may have been through a loss of power must be proven.
        """
        if self.label is None:
            said = Witness.NOBODY if self.row is None else Witness.CONTRADICTED
            return said if self.fitting_row is None else Witness.ROW
        label, row = self.fitting_label, self.fitting_row
        if label is None:
            return Witness.CONTRADICTED
        confirmed = row is not None and row.content_sha256 in (None, label.content_sha256)
        return Witness.LABEL if confirmed or label.boot == boot else Witness.NOBODY
