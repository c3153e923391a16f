"""The spill file: whole or not at all, and read back as it was written."""

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.buffers import Batch
from undercroft.buffers.cache_artifacts import ACCESSES, ArtifactAccess, ArtifactDelete, CacheArtifactsBuffer
from undercroft.buffers.key_values import WRITES, KeyValueBuffer, KeyValueWrite
from undercroft.buffers.s3_transfers import S3TransfersBuffer, TransferDelete, TransferInsert
from undercroft.buffers.spill import append_refused, read_spill, spills_of, write_spill
from undercroft.errors import UndercroftError

BATCHES = [Batch(WRITES, [KeyValueWrite("k", "[1]"), KeyValueWrite("l", "")])]
TYPES: dict[str, type[msgspec.Struct]] = {
    **KeyValueBuffer.entry_types,
    **CacheArtifactsBuffer.entry_types,
    **S3TransfersBuffer.entry_types,
}

# Any text at all, lone surrogates among it.
text = st.text(st.characters(codec=None))
entries: dict[str, st.SearchStrategy[Any]] = {
    "key_values": st.builds(KeyValueWrite, key=text, json_payload=text),
    "cas_accesses": st.builds(
        ArtifactAccess,
        key=text,
        size_bytes=st.integers(0, 2**62),
        accessed_at=st.integers(0, 2**62),
        content_sha256=st.none() | text,
        stored=st.booleans(),
    ),
    "cas_deletes": st.builds(ArtifactDelete, key=text),
    "s3_inserts": st.builds(
        TransferInsert,
        id=text,
        type=st.sampled_from(["upload", "download"]),
        account_handle=text,
        project_handle=text,
        artifact_type=text,
        key=text,
        inserted_at=st.integers(0, 2**62),
    ),
    "s3_deletes": st.builds(TransferDelete, id=text),
}
batches = st.sampled_from(sorted(entries)).flatmap(
    lambda operation: st.builds(Batch, st.just(operation), st.lists(entries[operation], max_size=3))
)


@given(st.lists(batches, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, written: list[Batch]) -> None:
    path = tmp_path_factory.mktemp("spill") / "b.spill"
    write_spill(path, written)
    assert read_spill(path, TYPES) == written
    assert [file.name for file in path.parent.iterdir()] == ["b.spill"]


def test_what_an_older_version_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.spill"
    path.write_bytes(b'"undercroft-spill-1"\n["key_values",[["k","[1]"],["l",""]]]\n')
    assert read_spill(path, TYPES) == BATCHES


def test_a_file_that_was_cut_or_changed_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.spill"
    write_spill(path, [*BATCHES, *BATCHES])
    whole = path.read_bytes()
    cut = [whole[:end] for end in range(len(whole))]
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in (*cut, *changed, whole + b"\n", whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UndercroftError, match="move it away"):
            read_spill(path, TYPES)


def fail_with(code: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", ["open", "fsync", "replace"])
def test_a_failing_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    path = tmp_path / "b.spill"
    write_spill(path, BATCHES)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os if operation == "fsync" else Path, operation, fail_with(code))
        with pytest.raises(OSError, match=os.strerror(code)):
            write_spill(path, [Batch(WRITES, [KeyValueWrite("newer", "[]")])])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["b.spill"]


def test_the_bytes_and_the_name_are_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    really = os.fsync

    def remember(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    write_spill(tmp_path / "b.spill", BATCHES)
    assert synced == ["b.spill.tmp", tmp_path.name]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UndercroftError, match="move it away"):
        read_spill(tmp_path, TYPES)  # a folder


def test_an_entry_of_another_shape_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "b.spill"
    write_spill(path, [Batch(ACCESSES, [KeyValueWrite("k", "not a size")])])
    with pytest.raises(UndercroftError, match=r"b\.spill cannot be read"):
        read_spill(path, TYPES)


def test_refused_rows_are_appended_one_to_a_line(tmp_path: Path) -> None:
    path = tmp_path / "b.refused.jsonl"
    append_refused(path, [(WRITES, KeyValueWrite("a", "1\n2"), "bad")])
    append_refused(path, [(WRITES, KeyValueWrite("b", "3"), "worse"), (WRITES, KeyValueWrite("c", ""), "")])
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert lines == [
        ["key_values", ["a", "1\n2"], "bad"],
        ["key_values", ["b", "3"], "worse"],
        ["key_values", ["c", ""], ""],
    ]


def test_files_of_a_buffer_are_not_those_of_another_whose_name_begins_like_it(tmp_path: Path) -> None:
    own = ["visits.spill", "visits.0.spill", "visits.12.spill"]
    for number, name in enumerate([*own, "visits_daily.spill", "visits.daily.spill", "visits.spill.tmp"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    assert [path.name for path in spills_of(tmp_path, "visits")] == own
