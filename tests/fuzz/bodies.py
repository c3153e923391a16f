"""Bodies that the node looks into."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec
import zstandard

from tests.fuzz.target import Target
from tests.support import remote_execution
from tests.support.action_results import (
    EXIT_CODE,
    METADATA,
    SYMLINK,
    digest,
    field,
    output_directory,
    output_file,
    tree,
)
from undercroft.api import tuist, tuist_module, turborepo, turborepo_labels
from undercroft.api.action_result import UnreadableError, named_by_action_result, named_by_tree
from undercroft.api.artifact_routes import Admitted
from undercroft.api.turborepo_labels import MAX_DURATION_MS, Labels, preamble
from undercroft.api.zstd_bodies import MAX_WINDOW_BYTES, ZstdBodies
from undercroft.errors import BadRequestError, IncompleteBodyError, TooLargeError
from undercroft.storage.open_artifact import OpenArtifact

HEX = set(b"0123456789abcdef")


# --- protobuf -----------------------------------------------------------------------------------------


def action_result(data: bytes) -> None:
    """What a reader by the book finds is found, once, and nothing else."""
    try:
        blobs, trees = remote_execution.needed_by_action_result(data)
    except remote_execution.NoMessageError:
        with suppress(UnreadableError):
            named_by_action_result(data)
        return
    if all(len(name) == 64 and set(name) <= HEX for name in blobs | trees):
        named = named_by_action_result(data)
        _check_same(named.blobs, blobs)
        _check_same(named.trees, trees)


def tree_message(data: bytes) -> None:
    """The same of a tree."""
    try:
        names = remote_execution.needed_by_tree(data)
    except remote_execution.NoMessageError:
        with suppress(UnreadableError):
            named_by_tree(data)
        return
    if all(len(name) == 64 and set(name) <= HEX for name in names):
        _check_same(named_by_tree(data), names)


def _check_same(found: list[str], names: set[bytes]) -> None:
    assert len(found) == len(set(found))
    assert {name.encode() for name in found} == names


# --- JSON ---------------------------------------------------------------------------------------------


def key_values(data: bytes) -> None:
    """What is taken means the same to Python's own reader, and is kept as it came."""
    with suppress(BadRequestError):
        written = tuist._parse(data)
        assert written.entries
        payload = tuist._encoder.encode(tuist.Payload(written.entries))
        understood = _understood(data)
        assert understood["cas_id"] == written.cas_id
        given = [entry["value"] for entry in understood["entries"]]
        assert [entry["value"] for entry in json.loads(payload)["entries"]] == given


def module_parts(data: bytes) -> None:
    """The same of the body that completes an upload in parts."""
    with suppress(BadRequestError):
        asked = tuist_module._parse(data)
        understood = _understood(data)
        assert understood["parts"] == asked.parts
        assert understood.get("checksum_sha256") == asked.checksum_sha256


def turborepo_query(data: bytes) -> None:
    """The same of what turbo asks and tells."""
    with suppress(BadRequestError):
        hashes = turborepo._parsed(turborepo._question, data).hashes
        assert _understood(data)["hashes"] == hashes
        assert len(hashes) <= turborepo.MAX_HASHES
        assert all(len(one) == 16 and set(one.encode()) <= HEX for one in hashes)
    with suppress(BadRequestError):
        reports = turborepo._parsed(turborepo._reports, data)
        assert [report["event"] for report in _understood(data)] == [report.event for report in reports]
        assert all(0 <= report.duration <= MAX_DURATION_MS for report in reports)


def _understood(data: bytes) -> Any:
    return json.loads(data.decode())


# --- Turborepo's labels -------------------------------------------------------------------------------

_RUNNER = asyncio.Runner()


def labels(data: bytes) -> None:
    """An object is served from behind its labels, or is a miss; labels written again are the same."""
    for stored in (data, turborepo_labels._HEAD.pack(turborepo_labels.MAGIC, len(data)) + data):
        admitted = _admitted(stored)
        if admitted is None:
            continue
        artifact, headers = admitted
        assert artifact.start + artifact.size == len(stored)
        assert 0 <= artifact.size <= len(stored) - 12
        assert all(0x21 <= byte <= 0x7E for _, value in headers for byte in value)
        names = {header: name for name, header in turborepo_labels.HEADERS.items()}
        same = Labels(**{names[header]: value.decode() for header, value in headers})
        again = _admitted(preamble(same) + b"bytes")
        assert again is not None
        assert again.headers == headers
        assert again.artifact.size == 5


def _admitted(stored: bytes) -> Admitted | None:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(stored)
        return _RUNNER.run(turborepo_labels.admit(OpenArtifact(file.fileno(), len(stored), None)))


# --- zstd ---------------------------------------------------------------------------------------------

MOST_CONTENT = 64 << 10


def zstd(data: bytes) -> None:
    """In whatever pieces a body comes it has the content the library's own reader finds, within bounds."""
    # Of what is wrong in two ways either may be told first, and the library compares the size that a frame
    # announces with its content only if the frame comes in one piece, or its last block is not empty.
    outcomes = {_content(data, size) for size in (1, 7, max(len(data), 1))}
    assert len({outcome for outcome in outcomes if isinstance(outcome, bytes)}) <= 1
    for whole in (data, data + zstandard.compress(data[:100]), zstandard.compress(data) + data):
        content = _content(whole, len(whole))
        if isinstance(content, bytes):
            assert len(content) <= MOST_CONTENT
            assert content == _by_the_library(whole)


def _content(data: bytes, size: int) -> bytes | type[Exception]:
    """The content of a body that arrives in pieces of this size, or how it was refused."""

    async def arriving() -> AsyncIterator[bytes]:
        for at in range(0, len(data), max(size, 1)):
            yield data[at : at + size]

    async def read() -> bytes:
        return b"".join([piece async for piece in ZstdBodies(MOST_CONTENT).content(arriving())])

    try:
        return _RUNNER.run(read())
    except (BadRequestError, IncompleteBodyError, TooLargeError) as error:
        return type(error)


def _by_the_library(data: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with decompressor.stream_reader(data, read_across_frames=True) as reader:
        return reader.read(MOST_CONTENT + 1)


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


_BOMB = zstandard.compress(bytes(1 << 20))
_JSON_CHECKS: tuple[tuple[str, Callable[[bytes], None], list[bytes]], ...] = (
    (
        "key_values",
        key_values,
        [
            b'{"cas_id": "0~abc", "entries": [{"value": "hello"}, {"value": ""}]}',
            b'{"cas_id": "k", "cas_id": "l", "entries": [{"value": "\\ud83d\\ude00\\u0000"}], "x": [{}]}',
            b'{"cas_id": "\\ud800", "entries": [{"value": 1e999}]}',
            b'{"x": ' + b"[" * 2_000,
        ],
    ),
    (
        "module_parts",
        module_parts,
        [
            b'{"parts": [1, 2, 3]}',
            b'{"parts": [10000000000000000000000, -1, 1.0], "checksum_sha256": null}',
            b'{"checksum_sha256": "' + b"0" * 64 + b'", "parts": []}',
        ],
    ),
    (
        "turborepo_query",
        turborepo_query,
        [
            b'{"hashes": ["0123456789abcdef"]}',
            b'[{"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "x", "duration": 1.5}]',
            b'[{"source": "", "event": "MISS", "duration": 1e308}, {"source": "a", "event": "b"}]',
        ],
    ),
)

TARGETS = (
    Target(
        "action_result",
        action_result,
        [
            output_file(b"out") + SYMLINK + EXIT_CODE + output_directory(b"tree") + METADATA,
            field(5, b"raw") + field(6, digest(b"out")) + field(8, digest(b"err")) + field(6, b""),
            field(2, field(2, digest(b"a")) + field(2, field(2, 7)) + field(5, b"") + field(1, b"p")),
            output_file(b"", contents=b"x") + field(6, field(1, b"no hash")),
            b"\x0b\x0c\x12\x05abc",
            b"\x80" * 12,
        ],
        2_048,
    ),
    Target(
        "tree",
        tree_message,
        [tree([b"a"], [b"b", b""], []), field(1, b"") + field(2, b"\x0a\x00"), b""],
        2_048,
    ),
    *(Target(name, check, seeds, 8_192) for name, check, seeds in _JSON_CHECKS),
    Target(
        "labels",
        labels,
        [
            b"TURBO\x00\x00\x01\x00\x00\x00\x02{}bytes",
            _json({"duration": "1234", "tag": "t==", "sha": "0" * 40, "dirty_hash": "d"}),
            _json({"duration": "9999999999999999", "tag": "a\r\nb"}),
            b'{"x":' + b"[" * 2_000,
        ],
        4_200,
    ),
    Target(
        "zstd",
        zstd,
        [
            zstandard.compress(b"content" * 20),
            zstandard.compress(b"a") + zstandard.compress(b""),
            _BOMB,
            _BOMB[:-3],
            b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstandard.compress(b"x"),
            b"\x28\xb5\x2f\xfd\x00\x98\x01\x00\x00",
        ],
        1_024,
    ),
)
