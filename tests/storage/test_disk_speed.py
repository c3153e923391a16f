"""How long the event loop waits for a disk before threads do."""

import random

import pytest

from tests.support.set_clock import SetClock
from undercroft.storage.disk_speed import LONGEST_PAUSE_S, PAUSE_S, PAUSE_TIMES, SLOW_S, DiskSpeed


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def calls_until_slow(speed: DiskSpeed, seconds: float, most: int = 1_000) -> int:
    for number in range(1, most + 1):
        speed.took(seconds)
        if not speed.is_quick:
            return number
    return 0


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [(0.0001, 0), (SLOW_S, 0), (0.002, 11), (0.005, 4), (0.0159, 2), (0.017, 1), (10.0, 1)],
)
def test_calls_until_the_disk_is_slow(clock: SetClock, seconds: float, calls: int) -> None:
    assert calls_until_slow(DiskSpeed(clock), seconds) == calls


def test_one_call_that_was_made_wait_is_forgiven(clock: SetClock) -> None:
    speed = DiskSpeed(clock)
    for _ in range(100):
        speed.took(0.010)
        assert calls_until_slow(speed, 0.0001, most=50) == 0


@pytest.mark.parametrize(
    ("seconds", "pause"), [(0.005, PAUSE_S), (0.017, 1.7), (2.0, 2 * PAUSE_TIMES), (3_600.0, LONGEST_PAUSE_S)]
)
def test_a_slow_disk_is_tried_again_after_a_pause(clock: SetClock, seconds: float, pause: float) -> None:
    speed = DiskSpeed(clock)
    calls = calls_until_slow(speed, seconds)
    slow = []
    for share in (0.999, 0.002):
        clock.now += pause * share
        slow.append(not speed.is_quick)
    assert slow == [True, False]
    assert calls_until_slow(speed, seconds) == calls  # what was is forgotten


def test_a_disk_that_stays_slow_holds_the_loop_up_for_a_fiftieth_at_most(clock: SetClock) -> None:
    choices = random.Random(1)
    speed, began, waited = DiskSpeed(clock), clock.now, 0.0
    # Each call takes 2 to 500 ms.
    for _ in range(10_000):
        if speed.is_quick:
            took = choices.uniform(0.002, 0.5)
            clock.now += took
            waited += took
            speed.took(took)
        else:
            clock.now += 0.01
    assert waited < (clock.now - began) / 50
