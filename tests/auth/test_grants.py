"""What a grant allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.auth.grants import Caller, Grant, Right, checked_pattern, checked_scope, matches
from undercroft.errors import ForbiddenError, InvalidKeyError, ReadOnlyError, SettingsError

APP = ("acme", "app")


@pytest.mark.parametrize(
    ("pattern", "project", "covers"),
    [
        ("acme/app", APP, True),
        ("acme/*", APP, True),
        ("*/*", APP, True),
        ("acme/a*", APP, True),
        ("acme/app2", APP, False),
        ("acme/ap", APP, False),
        ("other/*", APP, False),
        ("*/app", ("other", "app"), True),
        ("acme/*", ("acme", "a/b"), True),
        ("acme/lib[ab]", ("acme", "liba"), False),
        ("acme/lib[ab]", ("acme", "lib[ab]"), True),
        ("acme/a?", ("acme", "ab"), False),
        ("acme/a.p", APP, False),
        ("acme/*-ci", ("acme", "ios-ci"), True),
        ("acme/*-ci", ("acme", "ios-ci-2"), False),
        ("acme/*", ("acme", "two\nlines"), True),
        ("acme/*", ("acme/x", "b"), False),
    ],
)
def test_patterns(pattern: str, project: tuple[str, str], covers: bool) -> None:
    assert matches(pattern, project) is covers


def covers_slowly(half: str, handle: str) -> bool:
    """A star takes nothing, or one character and then what it takes."""
    if not half:
        return not handle
    if half[0] == "*":
        return covers_slowly(half[1:], handle) or (handle != "" and covers_slowly(half, handle[1:]))
    return handle[:1] == half[0] and covers_slowly(half[1:], handle[1:])


FEW = st.text("ab*", max_size=7)


@given(FEW, FEW)
def test_stars_take_any_characters(half: str, handle: str) -> None:
    assert matches(f"acme/{half}", ("acme", handle)) is covers_slowly(half, handle)


def test_no_handle_takes_long_to_compare() -> None:
    """Trying every way to share it out among the stars would take longer than there are suns."""
    assert not matches("acme/" + "*a" * 60 + "*b", ("acme", "a" * 255))


@pytest.mark.parametrize("pattern", ["acme", "acme/app/x"])
def test_what_is_no_pattern_covers_nothing(pattern: str) -> None:
    with pytest.raises(ValueError, match="zip"):
        matches(pattern, APP)


@pytest.mark.parametrize(
    ("reads", "writes", "right", "error"),
    [
        (True, False, "read", None),
        (True, False, "write", ReadOnlyError),
        (True, False, "clean", ReadOnlyError),
        (False, True, "read", ForbiddenError),
        (False, True, "write", None),
        (True, True, "clean", None),
    ],
)
def test_rights(reads: bool, writes: bool, right: Right, error: type[Exception] | None) -> None:
    grant = Grant(Caller("ci"), ("acme/*",), reads, writes)
    if error is None:
        grant.check(right, APP)
        return
    with pytest.raises(error, match="token ci") as caught:
        grant.check(right, APP)
    assert type(caught.value) is error
    assert "acme/app" in str(caught.value)


@pytest.mark.parametrize("right", ["read", "write", "clean"])
def test_another_project_is_forbidden_and_not_only_read_only(right: Right) -> None:
    with pytest.raises(ForbiddenError, match="no access to the project other/app") as caught:
        Grant(Caller("ci"), ("acme/*",), True, True).check(right, ("other", "app"))
    assert type(caught.value) is ForbiddenError


def test_who_writes_into_a_scope_cannot_remove_the_project() -> None:
    grant = Grant(Caller("ci", "pr"), ("acme/*",), True, True)
    grant.check("write", APP)
    with pytest.raises(ForbiddenError, match="scope pr"):
        grant.check("clean", APP)


@pytest.mark.parametrize("text", ["acme", "a/b/c", "", "acme/", "/app"])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises((SettingsError, InvalidKeyError)):
        checked_pattern(text)


def test_patterns_are_kept_in_lower_case() -> None:
    assert checked_pattern("Acme/*") == "acme/*"


@pytest.mark.parametrize("text", ["", "PR", "a:b", "a/b", "~", "x" * 64, ".."])
def test_scopes_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError):
        checked_scope(text)


def test_scopes() -> None:
    assert [checked_scope(text) for text in ("pr", "pr-1.2_x", "x" * 63)] == ["pr", "pr-1.2_x", "x" * 63]
