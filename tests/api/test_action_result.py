"""Reading action results and trees, and surviving whatever else comes."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.action_results import (
    EXIT_CODE,
    METADATA,
    SYMLINK,
    digest,
    field,
    output_directory,
    output_file,
    sha256,
    tree,
    varint,
)
from undercroft.api.action_result import UnreadableError, named_by_action_result, named_by_tree

OUT, OTHER, STDOUT, STDERR, TREE = b"out", b"other", b"stdout", b"stderr", b"a tree"


def test_everything_that_is_named() -> None:
    result = b"".join(
        [
            output_file(OUT),
            SYMLINK,
            EXIT_CODE,
            output_directory(TREE),
            field(6, digest(STDOUT)),
            field(8, digest(STDERR)),
            METADATA,
            output_file(OTHER),
        ]
    )
    named = named_by_action_result(result)
    assert sorted(named.blobs) == sorted(map(sha256, (OUT, OTHER, STDOUT, STDERR)))
    assert named.trees == [sha256(TREE)]


@pytest.mark.parametrize(
    "result",
    [
        b"",
        EXIT_CODE + METADATA + SYMLINK,
        output_file(b""),
        output_directory(b""),
        field(6, digest(b"")),
        field(6, b"") + field(8, b""),
        field(2, b""),
        field(2, field(1, b"path")),
        output_file(OUT, contents=OUT),
        field(5, STDOUT) + field(6, digest(STDOUT)),
        field(8, digest(STDERR)) + field(7, STDERR),
        field(2, 7) + field(3, 7) + field(6, 7),
        field(15, digest(OUT)),
    ],
)
def test_nothing_is_named(result: bytes) -> None:
    named = named_by_action_result(result)
    assert (named.blobs, named.trees) == ([], [])


@pytest.mark.parametrize(
    "result",
    [
        output_file(OUT) + field(5, STDOUT),
        field(5, b"") + field(6, digest(OUT)),
        field(7, STDERR) + field(6, digest(OUT)),
        output_file(OUT) + output_file(OUT, path=b"again"),
        output_file(OUT, contents=b"") + field(1 << 28, 1),
    ],
)
def test_one_is_named(result: bytes) -> None:
    assert named_by_action_result(result).blobs == [sha256(OUT)]


def test_tree() -> None:
    assert named_by_tree(tree([OUT, b""], [OTHER], [], [OUT, STDOUT])) == [
        sha256(OUT),
        sha256(OTHER),
        sha256(STDOUT),
    ]
    assert named_by_tree(b"") == []


@pytest.mark.parametrize(
    "bad",
    [
        b'{"json": true}',
        b"cCrS\x01\x02",
        b"\x00",
        b"\x02\x00",
        b"\xff",
        b"\x80" * 9 + b"\x01",
        b"\x80" * 11,
        b"\x12",
        b"\x12\x05abc",
        b"\x12" + varint((1 << 64) - 1),
        b"\x09" + b"x" * 7,
        b"\x0d" + b"x" * 3,
        b"\x0b\x0c",
        b"\x0e",
        varint(1 << 32 | 2) + b"\x00",
        output_file(OUT)[:-1],
        field(2, field(2, field(1, b"no hash"))),
        field(6, field(1, sha256(OUT).upper().encode())),
        field(6, field(1, sha256(OUT).encode() + b"\n")),
        field(6, field(1, b"0" * 63)),
        field(3, field(3, b"\xff")),
    ],
)
def test_what_is_no_action_result(bad: bytes) -> None:
    with pytest.raises(UnreadableError):
        named_by_action_result(bad)


MESSAGES = st.recursive(
    st.binary(max_size=70) | st.sampled_from([digest(OUT), digest(b""), METADATA, b"\x80" * 12]),
    lambda inner: st.lists(
        st.builds(field, st.integers(1, 16), inner | st.integers(0, 1 << 64)), max_size=5
    ).map(b"".join),
    max_leaves=12,
)


@given(st.binary(max_size=300) | MESSAGES)
def test_garbage_is_read_or_refused(data: bytes) -> None:
    for read in (named_by_action_result, named_by_tree):
        with suppress(UnreadableError):
            read(data)


@given(MESSAGES, st.data())
def test_a_cut_message_is_read_or_refused(message: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(message)))
    with suppress(UnreadableError):
        named_by_action_result(message[:end])


@given(st.lists(st.binary(max_size=20)), st.lists(st.lists(st.binary(max_size=20))))
def test_whatever_is_written_is_named_once(files: list[bytes], folders: list[list[bytes]]) -> None:
    result = b"".join(output_file(data) for data in files)
    assert named_by_action_result(result).blobs == [sha256(data) for data in dict.fromkeys(files) if data]
    inside = [data for folder in folders for data in folder]
    found = named_by_tree(tree([], *folders))
    assert found == [sha256(data) for data in dict.fromkeys(inside) if data]


@pytest.mark.parametrize(
    "part", [b"\x08\x00", output_file(OUT), field(2, field(2, b"")), field(2, b""), field(3, field(3, b""))]
)
def test_work_is_linear(part: bytes) -> None:
    def seconds(size: int) -> float:
        data = part * (size // len(part))
        begun = time.process_time()
        named_by_action_result(data)
        return time.process_time() - begun

    small = min(seconds(100_000) for _ in range(3))
    assert seconds(1_000_000) < 40 * small
