"""A listening socket for each worker, all on one address: the kernel spreads connections over them."""

import socket

# What the first one was given.
OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
)


def listeners(first: socket.socket, count: int, backlog: int) -> list[socket.socket]:
    """So many sockets, the bound one `first` among them. Raises OSError.

    It listens before it lets others have its address: a second node finds it taken, whatever that one does.
    Until a worker accepts from them connections wait.
    """
    first.listen(backlog)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made = [first]
    try:
        while len(made) < count:
            made.append(_another(first))
    except OSError:
        for one in made:
            one.close()
        raise
    return made


def _another(first: socket.socket) -> socket.socket:
    other = socket.socket(first.family, socket.SOCK_STREAM)
    try:
        for level, option in OPTIONS:
            other.setsockopt(level, option, first.getsockopt(level, option))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(first.getsockname())
    except OSError:
        other.close()
        raise
    return other
