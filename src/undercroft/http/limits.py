"""What one client may take of the node, and for how long."""

from dataclasses import dataclass

# Between two requests on a connection. Bazel and Gradle lose their cache with servers that close idle
# connections early.
IDLE_S = 75.0

# From the first byte of a request to the end of its headers, however they trickle in.
HEADERS_S = 30.0

# Of the request line and headers together, kept to within one read of the socket.
HEADER_BYTES = 64 << 10
HEADER_COUNT = 256

# Of a body that waits for the application. Above it nothing more is read of the connection.
BODY_BYTES = 256 << 10

# Parsed at once, beside the rest of a body of known length.
SLICE_BYTES = 8 << 10

# With all connections taken, a body that was waited for so long in all makes way if it comes more slowly than
# this, the slowest first. Whoever is quicker keeps their connection: another would take it in its turn.
BODY_GRACE_S = 5.0
SLOW_BYTES_PER_S = 10_000

# Of an answer that waits for the client to read. Above it the application waits.
ANSWER_BYTES = 256 << 10

# A client that is still sending what nobody will read gets so much time, and so many bytes, to see its
# answer: whoever closes with bytes unread resets the connection, and the answer is lost with it.
LINGER_S = 2.0
LINGER_BYTES = 4 << 20

# How often the times above are looked at, for all connections together: a timer for each request would cost
# more than the request.
SWEEP_S = 0.5


@dataclass(frozen=True)
class Limits:
    """The times and numbers that tests shorten, or settings set."""

    max_connections: int = 8_192
    idle_s: float = IDLE_S
    headers_s: float = HEADERS_S
    body_grace_s: float = BODY_GRACE_S
    slow_bytes_per_s: float = SLOW_BYTES_PER_S
    linger_s: float = LINGER_S
    sweep_s: float = SWEEP_S
