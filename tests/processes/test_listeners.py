"""The sockets that workers accept from."""

import socket
from collections.abc import Iterator

import pytest

from undercroft.errors import ListenError
from undercroft.http.server import bind
from undercroft.processes.listeners import listeners

WORKERS = 4


@pytest.fixture
def made() -> Iterator[list[socket.socket]]:
    found = listeners(bind("127.0.0.1", 0), WORKERS, 64)
    for one in found[1:]:
        one.listen(64)
    yield found
    for one in found:
        one.close()


def accepted(one: socket.socket) -> int:
    """How many connections wait there."""
    one.setblocking(False)
    count = 0
    while True:
        try:
            one.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_connections_are_spread_over_all(made: list[socket.socket]) -> None:
    clients = [socket.create_connection(made[0].getsockname()) for _ in range(64)]
    counts = [accepted(one) for one in made]
    assert sum(counts) == 64
    # The worst of a hundred million throws of 64 is far above that.
    assert min(counts) > 0
    for client in clients:
        client.close()


def test_accepted_connections_are_like_those_of_one(made: list[socket.socket]) -> None:
    assert len({one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for one in made}) == 1
    assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in made)


def test_what_waits_is_kept_while_anybody_has_the_socket(made: list[socket.socket]) -> None:
    # As long as its parent has it, too, a worker that dies resets no connection.
    workers = [one.dup() for one in made]
    clients = [socket.create_connection(made[0].getsockname()) for _ in range(16)]
    for one in workers:
        one.close()
    assert sum(map(accepted, made)) == 16
    for client in clients:
        client.close()


def test_a_second_node_finds_the_address_taken() -> None:
    # Also before any worker accepts.
    first = listeners(bind("127.0.0.1", 0), WORKERS, 64)
    try:
        with pytest.raises(ListenError, match="is another node running"):
            bind("127.0.0.1", first[0].getsockname()[1])
    finally:
        for one in first:
            one.close()
