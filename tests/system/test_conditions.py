"""Ranges and conditions over HTTP, in any combination: what RFC 9110 says, as a model has it."""

import hashlib
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

from tests.api.dialects import DIALECTS, DialectCase
from tests.support.campaign import Campaign
from tests.support.node_process import node_process
from tests.support.properties import for_examples
from tests.support.range_model import asked_by, tags_in
from tests.system.client import Answer, in_turns

# The last does not fit into one piece of an answer.
SIZES = (0, 1, 16, 1_000, (1 << 20) + 10)
BLOBS = [random.Random(size).randbytes(size) for size in SIZES]
STORED = [
    (dialect, data)
    for dialect in DIALECTS
    for data in BLOBS
    # The empty blob is none that was stored, and has neither ranges nor conditions.
    if dialect.ranges and (data or not dialect.names_are_digests)
]

near = st.sampled_from([size + by for size in SIZES for by in (-1, 0, 1) if size + by >= 0])
numbers = near | st.integers(0, 20) | st.integers(0, 10**20)
bounds = numbers.map(str) | st.just("")
in_order = st.lists(numbers, min_size=2, max_size=2).map(sorted)
ranges = st.one_of(
    in_order.map(lambda pair: f"bytes={pair[0]}-{pair[1]}"),
    st.builds(
        "{}{}-{}".format,
        st.sampled_from(["bytes=", "bytes=", "BYTES=", "lines=", " bytes= "]),
        bounds,
        bounds,
    ),
    st.builds(
        "{}{}".format,
        in_order.map(lambda pair: f"bytes={pair[0]}-{pair[1]}"),
        st.sampled_from([",1-2", " ", "x"]),
    ),
    st.text("bytes=-0123456789, ", max_size=12),
)
# TAG stands for the tag of the artifact.
others = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"'), max_size=5)
tags = st.sampled_from(["TAG", "W/TAG", '"a,b"', '""']) | others.map('"{}"'.format)
conditions = st.one_of(
    st.sampled_from(["TAG", "*", "W/TAG", "TAGx", "unquoted", "", "Sat, 29 Oct 1994 19:43:31 GMT"]),
    st.builds(str.join, st.sampled_from([",", " , ", ",,"]), st.lists(tags, min_size=1, max_size=3)),
)
rarely = st.integers(0, 4)


class Asked(NamedTuple):
    """A question about one of the artifacts."""

    number: int
    method: str
    range: str | None
    if_range: str | None
    if_none_match: str | None


questions = st.builds(
    Asked,
    st.integers(0, len(STORED) - 1),
    st.sampled_from(["GET", "GET", "GET", "HEAD"]),
    ranges | st.none(),
    rarely.flatmap(lambda chance: conditions if chance == 0 else st.none()),
    rarely.flatmap(lambda chance: conditions if chance == 0 else st.none()),
)


@pytest.mark.parametrize("workers", [1, 4])
def test_ranges_and_conditions(campaign: Campaign, data_dir: Path, workers: int) -> None:
    arguments = ("--workers", str(workers))
    with node_process(data_dir, arguments=arguments) as node, in_turns(node.url, workers) as clients:
        for dialect, data in STORED:
            stored = next(clients).request(dialect.method, dialect.path_for(data), data)
            # Both ways to Gradle's entries lead to the same ones.
            assert stored.status in (dialect.created, dialect.again)

        @for_examples(campaign, questions, short=150, long=10_000)
        def answers_by_the_book(asked: Asked) -> None:
            dialect, data = STORED[asked.number]
            fields = {"range": asked.range, "if-range": asked.if_range, "if-none-match": asked.if_none_match}
            tag = dialect.etag(data)
            headers = {name: value.replace("TAG", tag) for name, value in fields.items() if value is not None}
            answer = next(clients).request(asked.method, dialect.path_for(data), headers=headers)
            check(answer, asked.method, dialect, data, headers)
            campaign.checked("answers")
            campaign.checked(f"of {answer.status}")

        assert node.stop() == 0
        assert node.logged("request_failed") == []


def check(answer: Answer, method: str, dialect: DialectCase, data: bytes, headers: dict[str, str]) -> None:
    """Compares an answer with what the headers ask for."""
    tag = dialect.etag(data).encode()
    assert answer.headers["etag"].encode() == tag
    assert answer.headers["cache-control"]
    if_none_match = headers.get("if-none-match", "").encode()
    if if_none_match.strip() == b"*" or tag in (tags_in(if_none_match) or []):
        assert (answer.status, answer.body) == (304, b"")
        return
    positions = range(len(data))
    asked = asked_by(headers["range"].encode()) if "range" in headers and method == "GET" else None
    if asked is not None and headers.get("if-range", tag.decode()).strip().encode() == tag:
        positions = asked.positions(len(data))
        status = 206 if positions else 416
        shown = f"{positions.start}-{positions.stop - 1}" if positions else "*"
        assert answer.headers["content-range"] == f"bytes {shown}/{len(data)}"
    else:
        status = 200
        assert "content-range" not in answer.headers
    assert answer.status == status
    assert int(answer.headers["content-length"]) == len(positions)
    expected = data[positions.start : positions.stop] if method == "GET" and positions else b""
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(expected).digest()
