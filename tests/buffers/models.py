"""What the tables must hold, said without buffers: the state machine compares with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class LastWins:
    """Rows of which the last event counts. A version is a number, None for no row."""

    histories: dict[str, list[int | None]] = field(default_factory=dict)
    """For each key what may be in the table after a crash: what was committed last, and all since."""
    vague: set[str] = field(default_factory=set)
    """Keys of which the table says nothing certain before a flush."""
    unsure: set[str] = field(default_factory=set)
    """Keys whose delete may have been cancelled, if it was not committed yet: then an older row is back."""

    def newest(self, key: str) -> int | None:
        return self.histories.get(key, [None])[-1]

    def accept(self, key: str, version: int | None, *, vague: bool = False) -> None:
        self.histories.setdefault(key, [None]).append(version)
        (self.vague.add if vague else self.vague.discard)(key)
        self.unsure.discard(key)

    def commit(self, key: str) -> None:
        """What was accepted last for this key is in the table from now on."""
        self.histories[key] = [self.newest(key)]
        self.vague.discard(key)

    def settle(self, rows: dict[str, int]) -> None:
        """Everything was committed, and so the table must be."""
        for key, history in self.histories.items():
            if key in self.unsure:
                assert rows.get(key) in history, (key, rows.get(key), history)
                history.append(rows.get(key))
            self.commit(key)
        self.unsure.clear()
        assert rows == {key: h[-1] for key, h in self.histories.items() if h[-1] is not None}

    def crash(self, rows: dict[str, int]) -> None:
        """What was not committed may be lost, from its end on."""
        assert rows.keys() <= self.histories.keys()
        for key, history in self.histories.items():
            assert rows.get(key) in history, (key, rows.get(key), history)
            self.histories[key] = [rows.get(key)]
        self.vague.clear()
        self.unsure.clear()


class Transfer(NamedTuple):
    id: str
    key: str
    claimed: bool


@dataclass
class Queue:
    """Transfers: what was queued last and not done since is there, what is done is not."""

    key_of_id: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    done_for_sure: set[str] = field(default_factory=set)
    wanted: dict[str, bool] = field(default_factory=dict)
    """Whether nothing was done or claimed for the key since it was queued last."""
    wanted_for_sure: dict[str, bool] = field(default_factory=dict)

    def insert(self, name: str, key: str) -> None:
        self.key_of_id[name] = key
        self.wanted[key] = True

    def commit(self, key: str) -> None:
        """What was queued last for this key is in the table from now on."""
        self.wanted_for_sure[key] = self.wanted[key]

    def delete(self, name: str) -> None:
        self.done.add(name)
        self.claim(name)

    def claim(self, name: str) -> None:
        key = self.key_of_id[name]
        self.wanted[key] = self.wanted_for_sure[key] = False

    def settle(self, rows: Iterable[Transfer]) -> None:
        self.done_for_sure = set(self.done)
        self.wanted_for_sure = dict(self.wanted)
        self._check(list(rows))

    def crash(self, rows: Iterable[Transfer]) -> None:
        found = list(rows)
        self._check(found)
        self.done = set(self.done_for_sure)
        self.wanted = dict.fromkeys((row.key for row in found if not row.claimed), True)
        self.wanted_for_sure = dict(self.wanted)

    def _check(self, rows: list[Transfer]) -> None:
        for row in rows:
            assert self.key_of_id[row.id] == row.key
            assert row.id not in self.done_for_sure, row
        queued = [row.key for row in rows if not row.claimed]
        assert len(queued) == len(set(queued)), queued
        missing = {key for key, wanted in self.wanted_for_sure.items() if wanted} - set(queued)
        assert not missing, missing
