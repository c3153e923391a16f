"""The policy of capacity is arithmetic: tables."""

import os
from pathlib import Path
from typing import Any

import pytest

from undercroft.errors import CapacityError, TooLargeError, UndercroftError
from undercroft.storage.books import OwnBooks
from undercroft.storage.capacity import Capacity, Volume, volume_of

FITS = None


def capacity(used: int = 0, reserved: int = 0, written: int = 0, **limits: Any) -> Capacity:
    """A volume of 1,000 bytes, all free and usable unless told otherwise."""
    volume = Volume(1_000, limits.pop("free", 1_000))
    books = OwnBooks()
    books.used, books.reserved, books.written = used, reserved, written
    made = Capacity(lambda: volume, limits.pop("limit_bytes", None), limits.pop("percent", 100.0), books)
    assert not limits
    return made


@pytest.mark.parametrize(
    ("state", "size", "refusal"),
    [
        ({"limit_bytes": 100}, 100, FITS),
        ({"limit_bytes": 100}, 101, TooLargeError),
        ({"limit_bytes": 100, "used": 40}, 60, FITS),
        ({"limit_bytes": 100, "used": 40}, 61, CapacityError),
        ({"limit_bytes": 100, "used": 40}, 100, CapacityError),
        ({"limit_bytes": 100, "used": 40}, 101, TooLargeError),
        ({"limit_bytes": 100, "reserved": 70}, 30, FITS),
        ({"limit_bytes": 100, "reserved": 70}, 31, CapacityError),
        ({"limit_bytes": 100, "used": 50, "reserved": 50}, 0, FITS),
        ({"limit_bytes": 100, "used": 120}, 0, CapacityError),  # the limit was lowered
        # percent is of the whole volume, whoever fills it
        ({"percent": 90.0}, 900, FITS),
        ({"percent": 90.0}, 901, TooLargeError),
        ({"percent": 90.0, "free": 500}, 400, FITS),
        ({"percent": 90.0, "free": 500}, 401, CapacityError),
        ({"percent": 90.0, "free": 50}, 1, CapacityError),
        ({"percent": 90.0, "free": 500, "reserved": 400}, 1, CapacityError),
        # the tighter limit counts
        ({"percent": 50.0, "limit_bytes": 600}, 501, TooLargeError),
        ({"percent": 50.0, "limit_bytes": 400}, 401, TooLargeError),
        ({"limit_bytes": 5_000}, 1_001, TooLargeError),
        ({"limit_bytes": 5_000, "free": 10}, 11, CapacityError),
    ],
)
def test_reserve(state: dict[str, Any], size: int, refusal: type[UndercroftError] | None) -> None:
    subject = capacity(**state)
    before = subject.reserved
    if refusal is FITS:
        assert subject.reserve(size).size == size
        assert subject.reserved == before + size
    else:
        with pytest.raises(refusal, match=str(size)):
            subject.reserve(size)
        assert subject.reserved == before


@pytest.mark.parametrize(
    ("state", "room"),
    [
        ({"limit_bytes": 100, "used": 40, "reserved": 10}, 50),
        ({"limit_bytes": 100, "used": 120}, -20),
        ({"percent": 90.0, "free": 500}, 400),
        ({"percent": 90.0, "free": 50}, -50),
        ({"percent": 90.0, "free": 500, "reserved": 30, "written": 10}, 380),
        # what the file system is about to give back is none of the artifacts' own bound
        ({"percent": 90.0, "free": 500, "to_come": 100}, 500),
        ({"limit_bytes": 100, "used": 40, "to_come": 50}, 60),
        ({"limit_bytes": 450, "free": 400, "to_come": 100}, 450),
    ],
)
def test_room(state: dict[str, Any], room: int) -> None:
    state = dict(state)
    to_come = state.pop("to_come", 0)
    assert capacity(**state).room_to_come(to_come) == room


@pytest.mark.parametrize(
    ("state", "percent", "excess"),
    [
        ({"limit_bytes": 200, "used": 180}, 90.0, 0),
        ({"limit_bytes": 200, "used": 181}, 90.0, 1),
        ({"limit_bytes": 200, "used": 181}, 80.0, 21),
        ({"limit_bytes": 200, "used": 100, "reserved": 81}, 90.0, 1),
        # what uploads have written is theirs all the same
        ({"limit_bytes": 200, "used": 100, "reserved": 81, "written": 81}, 90.0, 1),
        ({"limit_bytes": 200, "used": 181, "to_come": 100}, 90.0, 1),
        # the volume, whoever fills it
        ({"free": 100}, 90.0, 0),
        ({"free": 99}, 90.0, 1),
        ({"free": 99}, 80.0, 101),
        ({"free": 150, "reserved": 51}, 90.0, 1),
        ({"free": 150, "reserved": 51, "written": 1}, 90.0, 0),
        ({"free": 50, "to_come": 49}, 90.0, 1),
        ({"free": 50, "to_come": 60}, 90.0, 0),
        # the one that is exceeded more
        ({"limit_bytes": 200, "used": 190, "free": 50}, 90.0, 50),
        ({"limit_bytes": 200, "used": 190, "free": 95}, 90.0, 10),
    ],
)
def test_excess(state: dict[str, Any], percent: float, excess: int) -> None:
    state = dict(state)
    to_come = state.pop("to_come", 0)
    assert capacity(**state).excess(percent, to_come) == excess


def test_unexplained_is_what_neither_artifacts_nor_uploads_take() -> None:
    assert capacity(used=300, reserved=200, written=50, free=400).unexplained() == 250


def test_growing_holds_more() -> None:
    subject = capacity(limit_bytes=100)
    reservation = subject.reserve(10)
    reservation.grow(90)
    assert (reservation.size, subject.reserved) == (100, 100)


def test_refused_growth_keeps_what_is_held() -> None:
    subject = capacity(limit_bytes=100, used=50)
    reservation = subject.reserve(40)
    with pytest.raises(CapacityError):
        reservation.grow(11)
    assert (reservation.size, subject.reserved) == (40, 40)


def test_growing_beyond_the_limit_is_too_large_ever_however_small_the_steps() -> None:
    reservation = capacity(limit_bytes=100).reserve(0)
    for _ in range(10):
        reservation.grow(10)
    with pytest.raises(TooLargeError, match="101"):
        reservation.grow(1)


def test_published_bytes_are_used_and_nothing_stays_reserved() -> None:
    subject = capacity(limit_bytes=100)
    with subject.reserve(80) as reservation:
        reservation.published(70)
        assert (subject.used, subject.reserved) == (70, 0)
    assert (subject.used, subject.reserved) == (70, 0)


def test_replacing_counts_the_difference() -> None:
    subject = capacity(limit_bytes=100, used=70)
    with subject.reserve(30) as reservation:
        reservation.published(30, replaced=70)
    assert (subject.used, subject.reserved) == (30, 0)


def test_leaving_the_block_gives_back_what_was_not_published() -> None:
    subject = capacity(limit_bytes=100)
    with subject.reserve(80) as reservation:
        reservation.grow(20)
        assert subject.reserved == 100
    assert (subject.used, subject.reserved) == (0, 0)


def test_releasing_twice_gives_back_once() -> None:
    subject = capacity(limit_bytes=100, reserved=5)
    reservation = subject.reserve(10)
    reservation.release()
    reservation.release()
    assert subject.reserved == 5


def test_limit_is_the_tighter_of_the_two() -> None:
    assert capacity(percent=30.0).limit() == 300
    assert capacity(percent=30.0, limit_bytes=200).limit() == 200
    assert capacity(percent=30.0, limit_bytes=400).limit() == 300


def test_volume_is_asked_each_time() -> None:
    answers = iter([Volume(1_000, 100), Volume(1_000, 0), Volume(1_000, 0)])
    subject = Capacity(lambda: next(answers), None, 100.0)
    subject.reserve(50).release()
    with pytest.raises(CapacityError):
        subject.reserve(50)


def test_volume_of_a_real_file_system(tmp_path: Path) -> None:
    volume = volume_of(tmp_path)()
    assert volume.total >= volume.free > 0
    assert volume.total > 1 << 20


def test_what_is_kept_for_the_administrator_is_no_part_of_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 1,000 blocks 300 are taken, 600 kept for the administrator.
    answer = os.statvfs_result((10, 10, 1_000, 700, 100, 500, 200, 200, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: answer)
    assert volume_of(Path("/anywhere"))() == Volume(total=4_000, free=1_000, files=500, free_files=200)


def test_bytes_that_are_written_are_not_held_twice() -> None:
    free = 1_000
    subject = Capacity(lambda: Volume(1_000, free), None, 100.0)
    with subject.reserve(400) as first:
        first.wrote(400)
        free -= 400
        with subject.reserve(600):
            assert (subject.reserved, subject.written) == (1_000, 400)
        with pytest.raises(CapacityError):
            subject.reserve(601)
    assert (subject.reserved, subject.written) == (0, 0)


@pytest.mark.parametrize(("free_files", "excess"), [(1_000, 0), (100, 0), (99, 1), (0, 100)])
def test_excess_of_files(free_files: int, excess: int) -> None:
    volume = Volume(1 << 40, 1 << 40, 1_000, free_files)
    assert Capacity(lambda: volume, None, 95.0).excess_files(90.0) == excess


def test_a_file_system_without_a_bound_on_files_has_no_excess_of_them() -> None:
    assert Capacity(lambda: Volume(1_000, 1_000), None, 95.0).excess_files(90.0) == 0
