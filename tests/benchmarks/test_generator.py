"""The load generator against a server that does what a test tells it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.connection import _Chunks
from benchmarks.generator import Generator
from benchmarks.loading import place_of
from benchmarks.traffic import MODULE, SMALL, Action, Entry, Place, Step

Answer = Callable[[bytes], bytes]


def head_and_body(stream: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    """The next request on a connection; empty when the client is gone."""
    while b"\r\n\r\n" not in data:
        more = stream.recv(1 << 16)
        if not more:
            return b"", b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.startswith(b"Content-Length: "):
            length = int(line[16:])
    while len(body) < length:
        body += stream.recv(1 << 16)
    return head, body


@contextmanager
def serving(answer: Answer) -> Iterator[Place]:
    """A server that answers each request with what `answer` makes of its head."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(stream: socket.socket) -> None:
        with stream:
            while True:
                head, _ = head_and_body(stream, b"")
                if not head:
                    return
                stream.sendall(answer(head))

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(stream,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield place_of(f"http://127.0.0.1:{listener.getsockname()[1]}", "static")
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def entry_of(place: Place, size: int = 1_000) -> Entry:
    return place.entry(SMALL, "ab" * 32, size)


def whole(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def fetched(answer: Callable[[Entry], bytes], *, count: int = 20, connections: int = 2) -> Generator:
    """A closed loop of so many fetches of one entry, answered like this."""
    entries: list[Entry] = []
    with serving(lambda _head: answer(entries[0])) as place:
        entries.append(entry_of(place))
        generator = Generator(place, connections)
        generator.closed(iter([Step(0, entries[0], Action.FETCH)] * count), 60, 1e9)
        generator.close()
    return generator


def test_a_good_answer_counts() -> None:
    tally = fetched(lambda entry: whole(entry.body().tobytes())).tally
    assert not tally.errors
    assert len(tally.seconds["fetch artifact"]) == 20
    assert tally.bodies["fetch artifact"] == 20 * 1_000
    assert tally.compared > 0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda _entry: whole(b"", 404), "fetch answered 404"),
        (lambda entry: whole(entry.body().tobytes()[:-1]), "wrong length"),
        (lambda entry: whole(entry.body().tobytes()[::-1]), "wrong body"),
        (lambda _entry: b"gibberish\r\n\r\n", "connection broken"),
    ],
)
def test_a_wrong_answer_is_an_error_and_no_latency(answer: Callable[[Entry], bytes], problem: str) -> None:
    tally = fetched(answer).tally
    assert dict(tally.errors) == {problem: 20}
    assert not tally.seconds


def test_a_fault_far_inside_a_body_is_found_in_the_sample() -> None:
    def damaged(entry: Entry) -> bytes:
        body = bytearray(entry.body())
        body[500] ^= 1
        return whole(bytes(body))

    tally = fetched(damaged, count=32).tally
    assert tally.compared == 2
    assert dict(tally.errors) == {"wrong body": 2}


def test_a_chunked_answer_is_put_together() -> None:
    def chunked(entry: Entry) -> bytes:
        body = entry.body().tobytes()
        pieces = (body[:1], body[1:700], body[700:])
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        return b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    tally = fetched(chunked).tally
    assert not tally.errors
    assert tally.bodies["fetch artifact"] == 20 * 1_000


@pytest.mark.parametrize("width", [1, 2, 3, 7, 1_000])
def test_chunks_may_be_cut_anywhere(width: int) -> None:
    data = b"4\r\nabcd\r\na;x=y\r\n0123456789\r\n0\r\n\r\n"
    chunks, found = _Chunks(), b""
    for start in range(0, len(data), width):
        found += b"".join(map(bytes, chunks.feed(memoryview(data)[start : start + width])))
    assert found == b"abcd0123456789"
    assert chunks.ended


def test_a_closed_connection_is_opened_again() -> None:
    closing = b"HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
    tally = fetched(lambda entry: closing + entry.body().tobytes(), connections=1).tally
    assert not tally.errors
    assert len(tally.seconds["fetch artifact"]) == 20


def test_a_miss_is_followed_by_its_write_and_the_write_by_reads_of_it() -> None:
    seen: list[bytes] = []
    entries: list[Entry] = []

    def answer(head: bytes) -> bytes:
        method = head.split(b" ", 1)[0]
        seen.append(method)
        if method == b"PUT":
            return whole(b"", 201)
        return whole(b"", 404) if len(seen) == 1 else whole(entries[0].body().tobytes())

    with serving(answer) as place:
        entries += [entry_of(place), place.entry(SMALL, "cd" * 32, 1_000)]
        generator = Generator(place, 1, recent_share=1)
        # The second fetch goes to what has just been stored instead: with another body it would be wrong.
        steps = [Step(0, entries[0], Action.FETCH_AND_STORE), Step(0, entries[1], Action.FETCH)]
        generator.closed(iter(steps), 60, 1e9)
        generator.close()
    assert seen == [b"GET", b"PUT", b"GET"]
    assert not generator.tally.errors
    assert {kind: len(found) for kind, found in generator.tally.seconds.items()} == {
        "miss": 1,
        "store artifact": 1,
        "fetch artifact": 1,
    }


def test_something_served_that_nobody_stored_is_an_error() -> None:
    with serving(lambda _head: whole(b"what?")) as place:
        generator = Generator(place, 1)
        generator.closed(iter([Step(0, entry_of(place), Action.FETCH_AND_STORE)]), 60, 1e9)
        generator.close()
    assert dict(generator.tally.errors) == {"fetch of what nobody stored answered 200": 1}


def test_a_large_body_is_sent_in_pieces() -> None:
    with serving(lambda _head: whole(b"", 201)) as place:
        generator = Generator(place, 2)
        entry = place.entry(MODULE, "ab" * 32, 8 << 20)
        generator.closed(iter([Step(0, entry, Action.STORE)] * 4), 60, 1e9)
        generator.close()
    assert not generator.tally.errors
    assert len(generator.tally.seconds["store module"]) == 4


def test_a_closed_loop_ends_after_so_many_bytes() -> None:
    with serving(lambda _head: whole(b"", 201)) as place:
        generator = Generator(place, 1)
        generator.closed(iter([Step(0, entry_of(place), Action.STORE)] * 50), 60, 5_000)
        generator.close()
    assert len(generator.tally.seconds["store artifact"]) == 5


SLOW_S = 0.005


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    """Ten requests are due at once; a server that needs 5 ms for each keeps the last one waiting for 50."""

    def slowly(_head: bytes) -> bytes:
        time.sleep(SLOW_S)
        return whole(b"", 201)

    with serving(slowly) as place:
        generator = Generator(place, 1)
        generator.open([Step(0, entry_of(place), Action.STORE)] * 10)
        generator.close()
    found = sorted(generator.tally.seconds["store artifact"])
    assert len(found) == 10
    assert found[0] >= SLOW_S
    assert found[-1] >= 10 * SLOW_S
    # From sending to answer each took about the same.
    assert found[-1] - found[-2] >= SLOW_S


def test_an_open_loop_waits_for_its_times_and_leaves_the_warm_up_out() -> None:
    with serving(lambda _head: whole(b"", 201)) as place:
        generator = Generator(place, 4, warmup=0.025)
        took = generator.open([Step(n / 100, entry_of(place), Action.STORE) for n in range(6)])
        generator.close()
    assert took >= 0.05
    assert len(generator.tally.seconds["store artifact"]) == 3
    assert 1 <= len(generator.tally.late) <= 3
    assert all(late >= 0 for late in generator.tally.late)
