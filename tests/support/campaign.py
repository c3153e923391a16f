"""Campaigns: tests that try a promise many times over, by chance, and say how often and what they checked."""

import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest


class Campaign:
    """One campaign of a test run. The same seed makes the same choices.

    Threads, disks and other processes add their own chance: a seed repeats the plan, not each moment.
    """

    def __init__(self, name: str, seed: str, *, torture: bool, rounds: int | None) -> None:
        """`rounds` overrides how many there are, in either form."""
        self.name = name
        self.seed = seed
        self.torture = torture
        """Whether this is the long form."""
        self.random = random.Random(f"{seed} {name}")
        self.after_a_round: Callable[[], None] = lambda: None
        self._rounds = rounds
        self._done = 0
        self._checked: Counter[str] = Counter()
        self._took: defaultdict[str, list[float]] = defaultdict(list)

    def rounds(self, short: int, long: int) -> Iterator[int]:
        """Numbers from 0, and counts each as a round once its body has ended."""
        for number in range(self.planned(short, long)):
            yield number
            self.ran()

    def planned(self, short: int, long: int) -> int:
        """How many rounds there are to be, for what counts its own: then it says how many it `ran`."""
        return self._rounds or (long if self.torture else short)

    def is_for_the_long_form(self) -> None:
        """Skips the test in the short form, in which another variant stands for it."""
        if not self.torture and self._rounds is None:
            pytest.skip("in the long form only")

    def ran(self, count: int = 1) -> None:
        """Counts rounds."""
        self._done += count
        self.after_a_round()

    def checked(self, what: str, count: int = 1) -> None:
        """Counts what was compared with what it must be: "acknowledged artifacts", "answers"."""
        self._checked[what] += count

    def took(self, what: str, seconds: float) -> None:
        """Notes a time, for people to read."""
        self._took[what].append(seconds)

    def typical(self, what: str) -> float:
        """The median of the times noted."""
        return statistics.median(self._took[what])

    def __str__(self) -> str:
        """One line for the summary."""
        found = ", ".join(f"{count:,} {what}" for what, count in self._checked.items()) or "nothing"
        times = "".join(
            f", {what} {statistics.median(times):.2f} s (at most {max(times):.2f})"
            for what, times in self._took.items()
        )
        return f"{self.name}: seed {self.seed}, {self._done:,} rounds, checked {found}{times}"
