"""What the node must reach, and why where it does not."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Goal:
    """A figure of one benchmark and the limit it must keep. `why` is printed only when it does not."""

    benchmark: str
    figure: str
    title: str
    sense: Literal[">=", "<="]
    limit: float
    unit: str
    why: str

    def reached(self, value: float) -> bool:
        """Whether the value keeps the limit."""
        return value >= self.limit if self.sense == ">=" else value <= self.limit

    def miss(self, value: float) -> str:
        """By how much the limit is missed, as a share of it."""
        return f"{abs(value / self.limit - 1):.0%}"


LONGEST_GAP = (
    "the longest of some thousand gaps is mostly the machine itself: see the baseline, and `busy thread`, "
    "the same loop with nobody writing"
)

GOALS = (
    Goal(
        "buffers",
        "ours_to_best_peer_busy",
        "buffer, enqueue to commit next to a busy event loop, against the best peer",
        ">=",
        10,
        "x",
        "executemany gives up the GIL once a row, and what that costs next to a busy loop depends on "
        "how quickly the machine wakes a waiting thread: from one run to another the same peer commits "
        "hundreds of rows/s or ten thousand. Ours depends on it less, a batch being one statement, and "
        "reaches 20,000 to 30,000, for the rows are handed over in turns of the busy loop",
    ),
    Goal(
        "growth",
        "growth_cost",
        "flush cost at 10 million rows against 100 thousand",
        "<=",
        3,
        "x",
        "keys are hashes: each row touches another page of an index larger than the page cache",
    ),
    Goal(
        "loop_stall",
        "stall_p99_ms",
        "event loop stall while a buffer is saturated, p99, at Python's own switch interval",
        "<=",
        2,
        "ms",
        "the loop and the writer have a processor each as long as nothing else runs; where more threads "
        "meet, the kernel lets each run for some 3 ms (docs/decisions/0021-niceness.md). A batch is encoded "
        "with the global lock held, some 0.8 ms",
    ),
    Goal(
        "loop_stall",
        "stall_max_ms",
        "the longest such stall in two seconds",
        "<=",
        10,
        "ms",
        LONGEST_GAP,
    ),
    Goal(
        "loop_stall",
        "node_stall_p99_ms",
        "the same, p99, at the switch interval of the node",
        "<=",
        2,
        "ms",
        "the node lets threads change places each millisecond, so that writes get on beside reads "
        "(docs/decisions/0011-switch-interval.md), and the loop is interrupted more often",
    ),
    Goal(
        "loop_stall",
        "node_stall_max_ms",
        "the longest such stall in two seconds, at the switch interval of the node",
        "<=",
        10,
        "ms",
        LONGEST_GAP,
    ),
    Goal(
        "http_node",
        "put_to_bare_handler",
        "key value PUT over HTTP, committed, against a handler that only parses",
        ">=",
        0.6,
        "x",
        "a committed write is handed to the writer thread and back, and both threads share one GIL, and two "
        "processors with the load generator; `buffered` in the table shows what is left without the wait for "
        "the commit, `new words` what routing, access and parsing cost, which the bare handler has none of",
    ),
    Goal(
        "http_node",
        "get_to_bare_handler",
        "key value GET from SQLite against a handler that answers a constant",
        ">=",
        0.8,
        "x",
        "the point query alone costs the distance between `query` and `bare` in the table; without parsing "
        "what came before in the same words, the node is nearer to `bare` than `query` is",
    ),
    Goal(
        "http_node",
        "artifact_16k_to_nginx",
        "artifact GET of 16 KiB against nginx on the same file",
        ">=",
        0.35,
        "x",
        "nginx sends from the page cache without Python; here one thread looks the entry up, opens and reads "
        "the file and sends it, each step in Python",
    ),
    Goal(
        "http_node",
        "artifact_1m_to_nginx",
        "artifact GET of 1 MiB against nginx on the same file",
        ">=",
        0.9,
        "x",
        "nginx sends from the page cache without a copy; here the bytes are copied into Python and from "
        "there to the socket. `http.accel_redirect` lets nginx send what the node found",
    ),
    Goal(
        "start",
        "start_excess",
        "start with 5 million artifacts, against 1.5 times the start of an empty node and a second",
        "<=",
        1,
        "x",
        "something at the start grows with the number of rows",
    ),
    Goal(
        "memory",
        "long_run_growth",
        "memory in the last quarter of a long mixed run, against the second quarter",
        "<=",
        1.1,
        "x",
        "what grows is bounded and had not reached its bound: in one run half of it was page cache of SQLite "
        "(sqlite3_status); what is remembered of requests may take up to 30 MB",
    ),
    Goal(
        "memory",
        "events_left",
        "resident memory after a million pending and flushed events, against that before",
        "<=",
        1.1,
        "x",
        "what is given back after a burst (docs/decisions/0023-memory-after-bursts.md) is not all: some lies "
        "between objects that live on",
    ),
    Goal(
        "memory",
        "events_growth",
        "memory after three million pending and flushed events, against that after the first million",
        "<=",
        1.1,
        "x",
        "something of each million stays",
    ),
    Goal(
        "memory",
        "upload_mib",
        "memory that eight uploads at once, of 2 or of 32 MiB, take more than before, at most",
        "<=",
        32,
        "MiB",
        "chunks in flight of each upload, and what the allocator keeps of them",
    ),
    Goal(
        "turborepo",
        "lowest_ratio_to_peer",
        "Turborepo's routes against turborepo-remote-cache, the lowest ratio of all cases",
        ">=",
        1,
        "x",
        "the peer acknowledges a write without a database, a digest or a promise",
    ),
)
