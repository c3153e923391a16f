"""Collections: every directory has a group of its own, and a listing says what was stored."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.errors import InvalidKeyError
from undercroft.storage import collections
from undercroft.storage.collections import Name, collection_exists, group_of, list_collection
from undercroft.storage.layout import artifact_key, safe_component
from undercroft.storage.tree import is_artifact_key, may_hold_artifacts

# Few characters, and those that the group gives a meaning to, so that directories are alike.
NAMES = st.text("a+@%2B._~é/".replace("/", ""), min_size=1, max_size=4).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(NAMES, max_size=4)


def key_of(path: list[str]) -> str:
    *directories, name = path
    return artifact_key("acc", "proj", "webdav", name, group=[group_of(directories)])


@given(PATHS, PATHS)
def test_no_two_directories_share_a_group(one: list[str], other: list[str]) -> None:
    assert (group_of(one) == group_of(other)) == (one == other)


@given(st.lists(st.lists(NAMES, min_size=1, max_size=5), min_size=1, max_size=8))
def test_keys_meet_neither_each_other_nor_the_directories_of_others(paths: list[list[str]]) -> None:
    keys = {tuple(path): key_of(path) for path in paths}
    assert len(set(keys.values())) == len(keys)
    parents = {key[:end] for key in keys.values() for end in range(len(key)) if key[end] == "/"}
    assert not parents & set(keys.values())
    for key in keys.values():
        parts = tuple(key.split("/"))
        assert is_artifact_key(parts)
        assert all(may_hold_artifacts(parts[:depth]) for depth in range(1, len(parts)))
        assert all(safe_component(part, "part") for part in parts)


def test_a_group_is_one_file_name() -> None:
    assert len(group_of(["a" * 254])) == 255
    for directories in (["a" * 255], ["a" * 127, "b" * 127], ["é" * 50]):
        with pytest.raises(InvalidKeyError, match="percent-encoded"):
            group_of(directories)


def store(place: Path, *path: str, size: int = 3) -> None:
    file = place.parent.parent.parent / key_of(list(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    os.utime(file, (1_000, 1_000))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "acc" / "proj" / "webdav"


def listed(place: Path, *directories: str) -> list[Name] | None:
    names = list_collection(place, directories)
    return None if names is None else sorted(names, key=lambda name: (name.name, name.size is None))


def test_listing_has_files_and_collections_directly_inside(place: Path) -> None:
    for path in (["x"], ["a", "x"], ["a", "b+c", "y"], ["a", "b+c", "d", "z"], ["ab", "x"], ["a b", "x"]):
        store(place, *path)
    assert listed(place) == [Name("a"), Name("a b"), Name("ab"), Name("x", 3, 1_000)]
    assert listed(place, "a") == [Name("b+c"), Name("x", 3, 1_000)]
    assert listed(place, "a", "b+c") == [Name("d"), Name("y", 3, 1_000)]
    assert listed(place, "nothing") == []


def test_file_and_collection_of_one_name_are_both_listed(place: Path) -> None:
    store(place, "a")
    store(place, "a", "b")
    assert listed(place) == [Name("a", 3, 1_000), Name("a")]


@given(path=st.lists(NAMES, min_size=1, max_size=4))
def test_what_is_stored_is_listed(path: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("listed") / "acc" / "proj" / "webdav"
    store(place, *path)
    for depth in range(len(path)):
        whole = depth == len(path) - 1
        assert listed(place, *path[:depth]) == [Name(path[depth], 3, 1_000) if whole else Name(path[depth])]
        assert collection_exists(place, path[:depth])
    assert not collection_exists(place, path)


def test_listing_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        store(place, name, "x")
    monkeypatch.setattr(collections, "MAX_NAMES", 3)
    assert len(listed(place) or ()) == 3
    monkeypatch.setattr(collections, "MAX_NAMES", 2)
    assert listed(place) is None


@pytest.mark.parametrize("directories", [[], ["many", "a"], ["elsewhere"]], ids=str)
def test_looking_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch, directories: list[str]) -> None:
    for name in ("a", "b", "c"):
        store(place, "many", name, "x")
    monkeypatch.setattr(collections, "MAX_SEEN", 1)
    assert listed(place, *directories) is None
    monkeypatch.setattr(collections, "MAX_SEEN", 0)
    assert collection_exists(place, directories) == (directories == ["many", "a"])


@pytest.mark.parametrize("levels", ["aa", "aa/bb"])
def test_looking_into_empty_directories_is_bounded(
    place: Path, monkeypatch: pytest.MonkeyPatch, levels: str
) -> None:
    for number in range(3):
        (place / "@a" / levels / f"{number:02}").mkdir(parents=True)
    monkeypatch.setattr(collections, "MAX_SEEN", 3)
    assert listed(place, "a") is None


def test_file_that_goes_while_it_is_listed_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        name = "gone"
        path = str(place)

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise FileNotFoundError

    monkeypatch.setattr(collections, "_entries", lambda _directory: iter([Gone()]))
    assert listed(place, "a") == []
