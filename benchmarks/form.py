"""The arguments that all benchmarks share, and what the short form makes of them."""

import argparse
from dataclasses import dataclass

from benchmarks.servers import workers_wanted


@dataclass(frozen=True)
class Form:
    """How much a benchmark does. The short form shows that it runs, and measures nothing worth keeping."""

    quick: bool
    rounds: int
    seconds: float
    workers: tuple[int, ...]

    def parameters(self, **more: object) -> dict[str, object]:
        """What stands in the result file."""
        return {"rounds": self.rounds, "seconds": self.seconds, **more}


def arguments(name: str) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take; see `form_of`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="a second or so, only to see that it runs")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each single measurement")
    parser.add_argument("--workers", default="1,2,4", help="numbers of the node's processes [1,2,4]")
    return parser


def form_of(given: argparse.Namespace, *, rounds: int, seconds: float, quick_seconds: float = 0.3) -> Form:
    """What the arguments say; else the defaults, those of the short form where it is asked for."""
    workers = workers_wanted(given.workers)
    if given.quick:
        rounds, seconds, workers = 1, quick_seconds, workers[:1]
    return Form(given.quick, given.rounds or rounds, given.seconds or seconds, workers)
