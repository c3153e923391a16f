"""What build tools ask a node for: sizes, popularity, hits, and the writes that follow misses.

The assumptions, so that they can be argued with, are the fields of `Mix`.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

from benchmarks import dialects
from benchmarks.dialects import DIALECTS, Dialect

KIB, MIB = 1 << 10, 1 << 20
SMALL_BYTES = (4 * KIB, 64 * KIB)
MODULE_BYTES = (256 * KIB, 32 * MIB)
VALUES = 4
"""Values in a key value; together they have its size."""

SMALL, KEY_VALUE, MODULE = "artifact", "key value", "module"


@dataclass(frozen=True)
class Mix:
    """The shape of the traffic. Shares are of look-ups; each miss is followed by a write."""

    small: int = 8_000
    """Compile-cache artifacts and key values, half each, that are there at the beginning."""
    modules: int = 300
    small_share: float = 0.8
    small_hits: float = 0.97
    module_hits: float = 0.48
    zipf: float = 0.9
    """The entry of rank r is asked for in proportion to r ** -zipf."""
    recent_share: float = 0.2
    """Of hits, those of something written a moment before: one machine builds, the others fetch."""


@cache
def block() -> bytes:
    """Random bytes; every body is a piece of them. Nothing compresses, and nothing is equal."""
    return hashlib.shake_128(b"block").digest(MODULE_BYTES[1] + 8 * MIB)


@cache
def text() -> bytes:
    """The same for what must be text."""
    return block()[: 4 * MIB].hex().encode()


class Entry:
    """Something a cache holds: its requests, prepared, and what it must answer."""

    __slots__ = ("dialect", "fetch", "kind", "length", "name", "offset", "size", "store")

    def __init__(self, place: "Place", kind: str, dialect: Dialect, name: str, size: int) -> None:
        self.kind, self.dialect, self.size = kind, dialect, size
        self.offset = int(name[:12], 16) % (len(text() if self._is_text else block()) - size)
        self.name = hashlib.sha256(self.body()).hexdigest() if dialect.by_content else name
        self.length = ANSWER_OVERHEAD + size // VALUES * VALUES if self._is_text else size
        self.fetch = place.request("GET", dialect, dialect.path(self.name))
        stored = (dialect.store_path or dialect.path)(self.name)
        length = self.length + len(self._named()) - 1 if self._is_text else size
        self.store = place.request(dialect.method, dialect, stored, length)

    @property
    def _is_text(self) -> bool:
        return self.dialect.name == "key_values"

    def body(self) -> memoryview:
        """What is sent to store it."""
        if self._is_text:
            return memoryview(self._named() + self.answer()[1:])
        return memoryview(block())[self.offset : self.offset + self.size]

    def _named(self) -> bytes:
        return b'{"cas_id":"%s",' % self.name.encode()

    def answer(self) -> memoryview:
        """What must come when it is fetched."""
        if not self._is_text:
            return self.body()
        step, source = self.size // VALUES, text()
        values = (source[self.offset + n * step : self.offset + (n + 1) * step] for n in range(VALUES))
        return memoryview(_answer(values))


def _answer(values: Iterable[bytes]) -> bytes:
    return b'{"entries":[' + b",".join(b'{"value":"%s"}' % value for value in values) + b"]}"


ANSWER_OVERHEAD = len(_answer([b""] * VALUES))


class Action(Enum):
    """What is to be done with an entry."""

    FETCH = "fetch"
    """It is there."""
    FETCH_AND_STORE = "fetch and store"
    """Nobody has stored it yet."""
    STORE = "store"


class Step(NamedTuple):
    """One thing to do, `due` seconds after the start; a closed loop ignores that."""

    due: float
    entry: Entry
    action: Action


@dataclass(frozen=True)
class Place:
    """Where a server is, and which dialects it is asked in."""

    host: str
    port: int
    prefix: str
    dialect: str
    """A name of `DIALECTS`, or `NODE`."""
    headers: str = ""
    """More of them, each with its line end."""

    def request(self, method: str, dialect: Dialect, path: str, length: int | None = None) -> bytes:
        """The head of a request."""
        home = dialect.home if self.dialect == dialects.NODE else self.prefix
        more = "" if length is None else f"{dialect.headers}Content-Length: {length}\r\n"
        lines = f"{method} {home}{path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{self.headers}{more}\r\n"
        return lines.encode("latin-1")

    def entry(self, kind: str, name: str, size: int) -> Entry:
        """An entry in the dialect that this kind has here; which of several the name decides."""
        return Entry(self, kind, self._dialect_of(kind, name), name, size)

    def _dialect_of(self, kind: str, name: str) -> Dialect:
        if self.dialect != dialects.NODE:
            return DIALECTS[self.dialect]
        if kind == KEY_VALUE:
            return DIALECTS["key_values"]
        names = dialects.MODULES_OF_NODE if kind == MODULE else dialects.SMALL_OF_NODE
        return DIALECTS[names[int(name[-4:], 16) % len(names)]]


class Traffic:
    """Steps by chance; the same seed and place have the same ones."""

    def __init__(self, place: Place, mix: Mix, seed: str) -> None:
        self._place, self._mix, self._seed = place, mix, seed
        self._random = random.Random(seed)
        self._fresh = itertools.count()
        there = random.Random("there")
        counts = {SMALL: mix.small // 2, KEY_VALUE: mix.small // 2, MODULE: mix.modules}
        self._there = {
            kind: [self._made(kind, f"there {n} {kind}", there) for n in range(count)]
            for kind, count in counts.items()
        }
        self._ranks = {
            kind: list(itertools.accumulate(rank**-mix.zipf for rank in range(1, count + 1)))
            for kind, count in counts.items()
        }

    def _made(self, kind: str, named: str, chance: random.Random) -> Entry:
        name = hashlib.sha256(named.encode()).hexdigest()
        size = module_size(chance) if kind == MODULE else small_size(chance)
        return self._place.entry(kind, name, size)

    def filling(self) -> Iterator[Step]:
        """Stores what is there at the beginning."""
        return (Step(0, entry, Action.STORE) for entry in itertools.chain(*self._there.values()))

    def closed(self) -> Iterator[Step]:
        """Look-ups without end."""
        while True:
            yield self._look_up(0)

    def open(self, rate: float, seconds: float) -> list[Step]:
        """Look-ups that arrive at random, `rate` a second on the average (a Poisson process)."""
        return [self._look_up(due) for due in arrivals(self._random, rate, seconds)]

    def _look_up(self, due: float) -> Step:
        kind, hits = self._chosen()
        if self._random.random() < hits:
            entry = self._random.choices(self._there[kind], cum_weights=self._ranks[kind])[0]
            return Step(due, entry, Action.FETCH)
        fresh = self._made(kind, f"fresh {self._seed} {next(self._fresh)}", self._random)
        return Step(due, fresh, Action.FETCH_AND_STORE)

    def _chosen(self) -> tuple[str, float]:
        """A kind, and how often it is hit."""
        mix, chance = self._mix, self._random.random()
        if chance >= mix.small_share:
            return MODULE, mix.module_hits
        return SMALL if chance < mix.small_share / 2 else KEY_VALUE, mix.small_hits


def arrivals(chance: random.Random, rate: float, seconds: float) -> Iterator[float]:
    """Times of a Poisson process of so many a second, before `seconds`."""
    now = chance.expovariate(rate)
    while now < seconds:
        yield now
        now += chance.expovariate(rate)


def small_size(chance: random.Random) -> int:
    """Bytes, each doubling as likely as any other."""
    low, high = SMALL_BYTES
    return int(low * math.exp(chance.random() * math.log(high / low)))


def module_size(chance: random.Random) -> int:
    """Bytes, from a Pareto distribution (alpha 1) cut at both ends: half below 512 KiB, the mean 1.2 MiB."""
    low, high = MODULE_BYTES
    return int(low / (1 - chance.random() * (1 - low / high)))


def uploads(place: Place, size: int, seed: str) -> Iterator[Step]:
    """New entries of one size without end."""
    for number in itertools.count():
        yield Step(
            0,
            place.entry(MODULE, hashlib.sha256(f"{seed} {number}".encode()).hexdigest(), size),
            Action.STORE,
        )


def equal(place: Place, size: int, count: int) -> list[Entry]:
    """So many entries of one size, the same each time."""
    names = (hashlib.sha256(f"equal {size} {n}".encode()).hexdigest() for n in range(count))
    return [place.entry(MODULE, name, size) for name in names]


def steps_of(spec: dict[str, Any], place: Place) -> Iterator[Step] | list[Step]:
    """The steps a generator's order asks for."""
    seed, size, count = str(spec["seed"]), int(spec["size"]), int(spec["count"])
    match spec["what"]:
        case "uploads":
            return uploads(place, size, seed)
        case "store equal":
            return (Step(0, entry, Action.STORE) for entry in equal(place, size, count))
        case "fetch equal":
            entries, chance = equal(place, size, count), random.Random(seed)
            return (Step(0, chance.choice(entries), Action.FETCH) for _ in itertools.count())
    traffic = Traffic(place, Mix(**spec["mix"]), seed)
    match spec["what"]:
        case "fill":
            return traffic.filling()
        case "closed":
            return traffic.closed()
        case "open":
            return traffic.open(float(spec["rate"]), float(spec["seconds"]))
    raise ValueError(f"no traffic is called {spec['what']}")
