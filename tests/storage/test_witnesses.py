"""Who is believed, for each combination of what row, label and bytes say."""

import pytest

from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.storage.label import VOID, Label
from undercroft.storage.witnesses import Witness, Witnesses

SIZE = 10
RIGHT, WRONG = "a" * 64, "b" * 64
THIS_BOOT, OTHER_BOOT = b"now.....", b"before.."

ROW, LABEL, NOBODY, CONTRADICTED = Witness.ROW, Witness.LABEL, Witness.NOBODY, Witness.CONTRADICTED


def row(size: int = SIZE, digest: str | None = RIGHT) -> ArtifactAccess:
    return ArtifactAccess("k", size, 1, digest)


def label(size: int = SIZE, digest: str = RIGHT, boot: bytes = THIS_BOOT) -> Label:
    return Label(size, digest, 1, boot)


@pytest.mark.parametrize(
    ("said_by_row", "said_by_label", "believed"),
    [
        (row(), None, ROW),
        (row(), label(), LABEL),
        (None, label(), LABEL),
        (None, label(boot=OTHER_BOOT), LABEL),
        (row(size=9), label(), LABEL),  # replaced by whoever was killed, or is yet to commit
        (row(digest=WRONG), label(), LABEL),
        (row(), label(digest=WRONG), ROW),  # two of three agree
        (row(), VOID, ROW),
        (row(), label(size=9), ROW),
        (row(digest=WRONG), None, CONTRADICTED),
        (row(digest=WRONG), label(digest=WRONG), CONTRADICTED),
        (None, label(digest=WRONG), CONTRADICTED),
        (row(digest=None), label(digest=WRONG), CONTRADICTED),
    ],
)
def test_by_the_bytes(
    said_by_row: ArtifactAccess | None, said_by_label: Label | None, believed: Witness
) -> None:
    said = Witnesses(said_by_row, said_by_label, SIZE)
    assert said.can_be_proven
    assert said.by_digest(RIGHT) is believed


@pytest.mark.parametrize(
    ("said_by_row", "said_by_label", "believed"),
    [
        (None, None, NOBODY),
        (row(), None, ROW),
        (row(digest=None), None, ROW),
        (row(size=9), None, CONTRADICTED),
        (None, VOID, CONTRADICTED),
        (row(size=9), VOID, CONTRADICTED),
        (row(digest=None), VOID, CONTRADICTED),
        (None, label(size=9), CONTRADICTED),
        (row(), label(), LABEL),
        (row(), label(boot=OTHER_BOOT), LABEL),
        (row(digest=None), label(boot=OTHER_BOOT), LABEL),
        (None, label(), LABEL),
        (row(size=9), label(), LABEL),
        (row(digest=WRONG), label(), LABEL),
        # What may have been through a loss of power must be proven; until then nothing is known of it.
        (None, label(boot=OTHER_BOOT), NOBODY),
        (row(size=9), label(boot=OTHER_BOOT), NOBODY),
        (row(digest=WRONG), label(boot=OTHER_BOOT), NOBODY),
    ],
)
def test_by_the_size(
    said_by_row: ArtifactAccess | None, said_by_label: Label | None, believed: Witness
) -> None:
    said = Witnesses(said_by_row, said_by_label, SIZE)
    assert not said.must_be_proven
    assert said.by_size(THIS_BOOT) is believed


@pytest.mark.parametrize("said_by_label", [VOID, label(size=9)])
def test_a_damaged_label_leaves_it_to_the_row_to_prove_the_bytes(said_by_label: Label) -> None:
    assert Witnesses(row(), said_by_label, SIZE).must_be_proven
    assert not Witnesses(row(size=9), said_by_label, SIZE).can_be_proven


@pytest.mark.parametrize("said_by_row", [None, row(size=9), row(digest=None)])
def test_without_a_digest_nothing_can_be_proven(said_by_row: ArtifactAccess | None) -> None:
    assert not Witnesses(said_by_row, None, SIZE).can_be_proven
