"""How many transfers at once, by how they end."""

import itertools

import pytest

from tests.support.set_clock import SetClock
from undercroft.s3 import concurrency
from undercroft.s3.concurrency import DOWN_AFTER, TRANSFER_PAUSES, Blame, StorePace, Verdict

numbers = itertools.count()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def pace(clock: SetClock) -> StorePace:
    return StorePace(8, clock)


def succeed(pace: StorePace, times: int = 1) -> None:
    for _ in range(times):
        pace.succeeded(pace.begin(), "upload")


def fail(pace: StorePace, times: int = 1, *, throttled: bool = False) -> None:
    """One key after the other."""
    for _ in range(times):
        pace.failed(pace.begin(), f"key {next(numbers)}", throttled=throttled)


def test_halves_when_throttled_down_to_one(pace: StorePace) -> None:
    limits = []
    for _ in range(5):
        fail(pace, throttled=True)
        limits.append(pace.limit)
        pace.succeeded(-1, None)  # or it would count as down
    assert limits == [4, 2, 1, 1, 1]


def test_halves_once_for_all_that_were_in_flight(pace: StorePace) -> None:
    begun = [pace.begin() for _ in range(8)]
    for number, one in enumerate(begun):
        pace.failed(one, f"key {number}", throttled=True)
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
    pace.failed(begun[0], "key", throttled=True)
    for one in begun[1:]:
        pace.succeeded(one, "upload")
    assert pace.limit == 4


def test_other_failures_leave_the_limit(pace: StorePace) -> None:
    fail(pace, DOWN_AFTER - 1)
    assert (pace.limit, pace.pause_s) == (8, 0.0)


def test_down_after_failures_in_a_row(pace: StorePace, clock: SetClock) -> None:
    fail(pace, DOWN_AFTER - 1)
    succeed(pace)
    fail(pace, DOWN_AFTER - 1)
    assert pace.limit == 8
    fail(pace)
    assert (pace.is_down, pace.limit, pace.pause_s) == (True, 1, TRANSFER_PAUSES.first)
    clock.now += TRANSFER_PAUSES.first
    assert pace.pause_s == 0.0


def test_pauses_double_up_to_the_longest(pace: StorePace, clock: SetClock) -> None:
    fail(pace, DOWN_AFTER)
    pauses = []
    for _ in range(7):
        pauses.append(pace.pause_s)
        clock.now += pace.pause_s
        fail(pace)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, TRANSFER_PAUSES.longest, TRANSFER_PAUSES.longest]


def test_what_was_in_flight_when_it_went_down_does_not_lengthen_the_pause(pace: StorePace) -> None:
    begun = [pace.begin() for _ in range(8)]
    for number, one in enumerate(begun):
        pace.failed(one, f"key {number}", throttled=False)
    assert pace.pause_s == TRANSFER_PAUSES.first


def test_a_success_ends_the_outage_whenever_it_began(pace: StorePace) -> None:
    before = pace.begin()
    fail(pace, DOWN_AFTER)
    assert pace.succeeded(before, None)
    assert (pace.is_down, pace.limit, pace.pause_s) == (False, 8, 0.0)
    assert not pace.succeeded(pace.begin(), None)


def test_one_key_alone_is_no_outage(pace: StorePace) -> None:
    for _ in range(DOWN_AFTER * 3):
        pace.failed(pace.begin(), "the same", throttled=False)
        pace.failed(pace.begin(), None, throttled=False)
    assert (pace.is_down, pace.limit, pace.pause_s, pace.outages) == (False, 8, 0.0, 0)


def test_counts_outages_once_each(pace: StorePace) -> None:
    for outages in (1, 2):
        fail(pace, DOWN_AFTER + 5)
        assert pace.outages == outages
        succeed(pace)


OF_THE_STORE, OF_ITS_OWN, FOR_GOOD = Verdict(False, False), Verdict(True, False), Verdict(True, True)


def test_who_fails_while_others_succeed_is_to_blame(pace: StorePace) -> None:
    blame = Blame(pace)
    succeed(pace)
    assert blame.judge("bad", "upload") == OF_THE_STORE  # it may have begun just now
    assert blame.judge("bad", "upload") == OF_THE_STORE
    succeed(pace)
    assert blame.judge("bad", "upload") == FOR_GOOD
    assert blame.judge("bad", "upload") == OF_THE_STORE
    succeed(pace)
    blame.forget("bad")
    assert blame.judge("bad", "upload") == OF_THE_STORE


def test_success_of_another_kind_or_of_none_proves_nothing(pace: StorePace) -> None:
    blame = Blame(pace)
    blame.judge("bad", "download")
    succeed(pace)
    pace.succeeded(pace.begin(), None)
    assert blame.judge("bad", "download") == OF_THE_STORE


def test_nothing_is_given_up_right_after_an_outage(pace: StorePace) -> None:
    blame = Blame(pace)
    blame.judge("unlucky", "upload")
    fail(pace, DOWN_AFTER)
    succeed(pace)
    assert blame.judge("unlucky", "upload") == OF_ITS_OWN
    succeed(pace)
    assert blame.judge("unlucky", "upload") == FOR_GOOD
    succeed(pace)
    fail(pace, DOWN_AFTER)
    assert blame.judge("unlucky", "upload") == OF_ITS_OWN


def test_only_so_many_failures_are_remembered(pace: StorePace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "MOST_BLAMED", 2)
    blame = Blame(pace)
    for transfer in ("1", "2", "1", "3"):
        blame.judge(transfer, "upload")
    succeed(pace, 2)
    assert blame.judge("1", "upload").is_own
    assert not blame.judge("2", "upload").is_own


def test_a_store_that_breaks_off_most_requests_is_to_blame_itself(pace: StorePace) -> None:
    blame = Blame(pace)
    for number in range(1, 20):
        blame.judge("unlucky", "upload")
        succeed(pace)
        # What others met in between, so that now and then only a success was seen.
        if number % 3:
            verdict = blame.judge(f"other{number}", "upload")
            assert verdict == OF_THE_STORE
            assert blame.judge(f"another{number}", "upload") == OF_THE_STORE
        assert not blame.judge("unlucky", "upload").is_hopeless


def test_one_of_several_bad_ones_is_blamed_while_most_others_succeed(pace: StorePace) -> None:
    blame = Blame(pace)
    for bad in ("1", "2", "3"):
        assert blame.judge(bad, "upload") == OF_THE_STORE
    succeed(pace, 3)
    assert [blame.judge(bad, "upload") for bad in ("1", "2", "3")] == [FOR_GOOD] * 3
