"""What is remembered of objects whose bytes were wrong, and for how long."""

import pytest

from undercroft.s3 import wrong_objects
from undercroft.s3.wrong_objects import REMEMBERED_S, WrongObjects


def test_remembered_for_some_minutes_since_it_was_found_last() -> None:
    now = 0.0
    wrong = WrongObjects(lambda: now)
    assert "key" not in wrong
    wrong.found("key")
    now = REMEMBERED_S - 1
    assert "key" in wrong
    wrong.found("key")
    now = 2 * REMEMBERED_S - 2
    assert "key" in wrong
    now = 2 * REMEMBERED_S - 1
    assert "key" not in wrong


def test_forgotten_when_it_is_mended() -> None:
    wrong = WrongObjects()
    wrong.found("key")
    wrong.mended("key")
    wrong.mended("key")
    assert "key" not in wrong


def test_the_oldest_goes_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_objects, "MAX_REMEMBERED", 2)
    wrong = WrongObjects()
    for key in ("a", "b", "a", "c"):
        wrong.found(key)
    assert [key for key in "abc" if key in wrong] == ["a", "c"]
