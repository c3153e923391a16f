"""How many transfers at once, by how they end."""

import pytest

from undercroft.s3.concurrency import DOWN_AFTER, TRANSFER_PAUSES, StorePace


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> StorePace:
    return StorePace(8, clock)


def succeed(pace: StorePace, times: int = 1) -> None:
    for _ in range(times):
        pace.succeeded(pace.begin(), "upload")


def fail(pace: StorePace, times: int = 1, *, throttled: bool = False) -> None:
    for _ in range(times):
        pace.failed(pace.begin(), throttled=throttled)


def test_halves_when_throttled_down_to_one(pace: StorePace) -> None:
    limits = []
    for _ in range(5):
        fail(pace, throttled=True)
        limits.append(pace.limit)
        pace.succeeded(-1, None)  # or it would count as down
    assert limits == [4, 2, 1, 1, 1]


def test_halves_once_for_all_that_were_in_flight(pace: StorePace) -> None:
    begun = [pace.begin() for _ in range(8)]
    for one in begun:
        pace.failed(one, throttled=True)
    assert pace.limit == 4
    assert not pace.is_down


def test_recovers_by_one_for_each_limit_of_successes(pace: StorePace) -> None:
    fail(pace, throttled=True)
    succeed(pace, 3)
    assert pace.limit == 4
    succeed(pace)
    assert pace.limit == 5
    succeed(pace, 4)
    assert pace.limit == 5
    succeed(pace)
    assert pace.limit == 6
    succeed(pace, 100)
    assert pace.limit == 8


def test_success_of_before_the_throttling_raises_nothing(pace: StorePace) -> None:
    begun = [pace.begin() for _ in range(8)]
    pace.failed(begun[0], throttled=True)
    for one in begun[1:]:
        pace.succeeded(one, "upload")
    assert pace.limit == 4


def test_other_failures_leave_the_limit(pace: StorePace) -> None:
    fail(pace, DOWN_AFTER - 1)
    assert (pace.limit, pace.pause_s) == (8, 0.0)


def test_down_after_failures_in_a_row(pace: StorePace, clock: Clock) -> None:
    fail(pace, DOWN_AFTER - 1)
    succeed(pace)
    fail(pace, DOWN_AFTER - 1)
    assert pace.limit == 8
    fail(pace)
    assert (pace.is_down, pace.limit, pace.pause_s) == (True, 1, TRANSFER_PAUSES.first)
    clock.now += TRANSFER_PAUSES.first
    assert pace.pause_s == 0.0


def test_pauses_double_up_to_the_longest(pace: StorePace, clock: Clock) -> None:
    fail(pace, DOWN_AFTER)
    pauses = []
    for _ in range(7):
        pauses.append(pace.pause_s)
        clock.now += pace.pause_s
        fail(pace)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, TRANSFER_PAUSES.longest, TRANSFER_PAUSES.longest]


def test_what_was_in_flight_when_it_went_down_does_not_lengthen_the_pause(pace: StorePace) -> None:
    begun = [pace.begin() for _ in range(8)]
    for one in begun:
        pace.failed(one, throttled=False)
    assert pace.pause_s == TRANSFER_PAUSES.first


def test_a_success_ends_the_outage_whenever_it_began(pace: StorePace) -> None:
    before = pace.begin()
    fail(pace, DOWN_AFTER)
    assert pace.succeeded(before, None)
    assert (pace.is_down, pace.limit, pace.pause_s) == (False, 8, 0.0)
    assert not pace.succeeded(pace.begin(), None)


def test_works_only_after_a_while_without_an_outage(pace: StorePace, clock: Clock) -> None:
    assert not pace.works("upload", 300)
    succeed(pace)
    assert not pace.works("upload", 300)  # for how long it did is not known yet
    clock.now += 300
    assert pace.works("upload", 300)
    clock.now += 1
    assert not pace.works("upload", 300)  # the success is too old
    succeed(pace)
    assert pace.works("upload", 300)
    assert not pace.works("download", 300)
    fail(pace, DOWN_AFTER)
    assert not pace.works("upload", 300)
    succeed(pace)
    assert not pace.works("upload", 300)
    clock.now += 300
    assert pace.works("upload", 300)


def test_success_without_a_kind_proves_nothing_of_any(pace: StorePace, clock: Clock) -> None:
    pace.succeeded(pace.begin(), None)
    clock.now += 10
    pace.succeeded(pace.begin(), None)
    assert not pace.works("upload", 10)
