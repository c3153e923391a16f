"""The time of rows, whatever becomes of the wall clock."""

import pytest

from undercroft.clock import MOST_AHEAD_US, Clock, now_us

START = 1_700_000_000_000_000
SECOND = 1_000_000
YEAR = 31_536_000 * SECOND


class FakeClocks:
    """A wall clock that can be set, and a clock that only runs."""

    def __init__(self) -> None:
        self.wall = START
        self.monotonic = 7 * SECOND
        self.clock = Clock(lambda: self.wall * 1_000, lambda: self.monotonic * 1_000)

    def run(self, microseconds: int) -> int:
        """Lets time pass; what is answered then."""
        self.wall += microseconds
        self.monotonic += microseconds
        return self.clock.now_us()

    def set_by(self, microseconds: int) -> int:
        """Sets the wall clock; what is answered then."""
        self.wall += microseconds
        return self.clock.now_us()


@pytest.fixture
def clocks() -> FakeClocks:
    clocks = FakeClocks()
    assert clocks.clock.now_us() == START
    return clocks


def test_it_is_the_wall_clock(clocks: FakeClocks) -> None:
    assert clocks.run(5) == START + 5
    assert clocks.set_by(YEAR) == START + 5 + YEAR
    assert Clock().now_us() <= now_us() <= Clock().now_us() + MOST_AHEAD_US


def test_a_step_back_is_made_good_at_half_speed(clocks: FakeClocks) -> None:
    assert clocks.set_by(-10 * SECOND) == START
    assert clocks.run(10 * SECOND) == START + 5 * SECOND
    assert clocks.run(9 * SECOND) == START + 9 * SECOND + SECOND // 2
    assert clocks.run(SECOND) == START + 10 * SECOND
    assert clocks.run(SECOND) == START + 11 * SECOND


def test_time_goes_on_for_whoever_asks_all_the_time(clocks: FakeClocks) -> None:
    clocks.set_by(-10 * SECOND)
    answers = [clocks.run(1) for _ in range(1_000)]
    assert answers == sorted(answers)
    assert answers[-1] == START + 500


def test_a_mistake_of_a_year_is_followed_back(clocks: FakeClocks) -> None:
    assert clocks.set_by(YEAR) == START + YEAR
    assert clocks.set_by(-YEAR) == START
    assert clocks.run(SECOND) == START + SECOND


def test_not_before(clocks: FakeClocks) -> None:
    clocks.clock.not_before(START + YEAR)
    assert clocks.clock.now_us() == START + YEAR
    assert clocks.run(2 * SECOND) == START + YEAR + SECOND
    assert clocks.set_by(-10 * SECOND) == START + YEAR + SECOND
    clocks.clock.not_before(0)
    assert clocks.run(SECOND) == START - 7 * SECOND
