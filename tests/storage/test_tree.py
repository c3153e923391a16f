"""The walk through the tree: everything once, in order, from any place on, and nothing that is not ours."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.errors import InvalidKeyError
from undercroft.storage import tree
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.layout import artifact_key, module_key, safe_component, safe_handle, scoped_key
from undercroft.storage.tree import Listing, TreeWalk, is_artifact_key, may_hold_artifacts, remove_if_unused

KEYS = [
    "acc/proj/xcode/ab/cd/abcdef",
    "acc/proj/xcode/ab/cd/abcdeg",
    "acc/proj/xcode/ab/ce/abce",
    "acc/proj/xcode/a_/__/a",
    "acc/proj/bazel_ac/@linux/00/11/0011",
    "acc/proj/bazel_ac/@x/00/11/0011",
    "acc/proj/module/builds/ab/cd/abcdef/A.zip",
    "acc/proj/module/builds/ab/cd/abcdef/B.zip",
    "acc/proj/~forks/module/zz/a_/__/a/ab",
    "acc/other/ccache/zz/zz/zzzz",
    "bcc/proj/gradle/é_/__/é",
]


@pytest.fixture
def threads() -> Iterator[DiskThreads]:
    opened = DiskThreads()
    yield opened
    opened.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for key in KEYS:
        place(tmp_path, key)
    return tmp_path


def place(root: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"bytes")


async def walk(
    root: Path, threads: DiskThreads, after: tuple[str, ...] | None = None
) -> AsyncIterator[Listing]:
    going = TreeWalk(root, threads, after)
    while (listing := await going.next()) is not None:
        yield listing


async def test_everything_once_in_order(root: Path, threads: DiskThreads) -> None:
    seen = [listing async for listing in walk(root, threads)]
    directories = [listing.parts for listing in seen]
    assert directories == sorted(directories)
    assert len(set(directories)) == len(directories)
    assert [key for listing in seen for key in listing.keys] == sorted(KEYS, key=lambda key: key.split("/"))
    assert [path for listing in seen for path in listing.foreign] == []


async def test_it_goes_on_behind_any_directory(root: Path, threads: DiskThreads) -> None:
    seen = [listing async for listing in walk(root, threads)]
    for number, listing in enumerate(seen):
        rest = [later async for later in walk(root, threads, listing.parts)]
        assert rest == seen[number + 1 :], listing.parts


@pytest.mark.parametrize("gone", ["acc/proj/xcode/ab/cc", "acc/proj/xcode/ab/cd", "acc/p", "aaa/b/c/d"])
async def test_it_goes_on_behind_a_directory_that_is_gone(
    root: Path, threads: DiskThreads, gone: str
) -> None:
    after = tuple(gone.split("/"))
    for file in (root / gone).rglob("*"):
        file.unlink()
    if (root / gone).is_dir():
        (root / gone).rmdir()
    expected = [listing async for listing in walk(root, threads) if listing.parts > after]
    assert [listing async for listing in walk(root, threads, after)] == expected
    assert expected


async def test_a_directory_that_cannot_be_read_costs_only_itself(
    root: Path, threads: DiskThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_scan = os.scandir

    def scan(path: Path) -> object:
        if path == root / "acc/proj/xcode/ab":
            raise OSError(errno.EIO, "broken")
        return really_scan(path)

    monkeypatch.setattr("undercroft.storage.tree.os.scandir", scan)
    seen = [listing async for listing in walk(root, threads)]
    (broken,) = (listing for listing in seen if listing.error is not None)
    assert broken.parts == ("acc", "proj", "xcode", "ab")
    assert not broken.empty
    found = {key for listing in seen for key in listing.keys}
    assert found == {key for key in KEYS if not key.startswith("acc/proj/xcode/ab/")}


async def test_a_tree_that_is_gone_is_empty(tmp_path: Path, threads: DiskThreads) -> None:
    (only,) = [listing async for listing in walk(tmp_path / "absent", threads)]
    assert only.empty


# --- what is ours -------------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=8)


@given(NAMES, NAMES, NAMES, NAMES, st.lists(NAMES, max_size=2))
def test_every_key_is_found_again(account: str, project: str, kind: str, name: str, group: list[str]) -> None:
    try:
        account, project = safe_handle(account, "account"), safe_handle(project, "project")
        for part in (kind, name, *group):
            safe_component(part, "part")
    except InvalidKeyError:
        return
    parts = tuple(artifact_key(account, project, kind, name, group=group).split("/"))
    assert is_artifact_key(parts)
    for depth in range(1, len(parts)):
        assert may_hold_artifacts(parts[:depth])


@given(NAMES, NAMES, NAMES, st.sampled_from([None, "forks"]))
def test_every_key_of_a_module_is_found_again(
    category: str, identifier: str, name: str, scope: str | None
) -> None:
    try:
        key = scoped_key(module_key("acc", "proj", category, identifier, name), scope)
    except InvalidKeyError:
        return
    parts = tuple(key.split("/"))
    assert is_artifact_key(parts)
    for depth in range(1, len(parts)):
        assert may_hold_artifacts(parts[:depth])
    assert not may_hold_artifacts(parts)
    assert not is_artifact_key(parts[:-1])
    assert not is_artifact_key((*parts, "more"))


@pytest.mark.parametrize(
    "path",
    [
        "acc/proj/module/ab/cd/abcdef",
        "acc/proj/module/builds/ab/cd/abcdef",
        "acc/proj/module/builds/ab/ce/abcdef/A.zip",
        "acc/proj/module/builds/more/ab/cd/abcdef/A.zip",
        "acc/proj/xcode/abcdef",
        "acc/proj/xcode/cd/abcdef",
        "acc/proj/xcode/ab/ce/abcdef",
        "acc/proj/xcode/cd/ab/abcdef",
        "Acc/proj/xcode/ab/cd/abcdef",
        "acc/Proj/xcode/ab/cd/abcdef",
        "acc/proj/xcode/ab/cd/abcd\x01f",
        "acc/proj/xcode/ab/cd/abcd\udcfff",
        "acc/../xcode/ab/cd/abcdef",
        "/proj/xcode/ab/cd/abcdef",
        "acc/proj/xcode/ab/cd/",
        "",
    ],
)
def test_what_is_no_key(path: str) -> None:
    assert not is_artifact_key(tuple(path.split("/")))


@pytest.mark.parametrize(
    "path",
    [
        "Acc",
        "acc/Proj",
        "acc/proj/ki\x01nd",
        "acc/proj/kind/ab/cd/notes",
        "acc/proj/kind/@group/ab/cd/notes",
        "acc/proj/module/builds/abc",
        "acc/proj/module/builds/ab/cd/other",
        "acc/proj/module/builds/ab/cd/abcdef/folder",
    ],
)
def test_what_cannot_hold_artifacts(path: str) -> None:
    assert not may_hold_artifacts(tuple(path.split("/")))


def test_no_layout_is_so_deep() -> None:
    assert may_hold_artifacts(("deep",) * tree.MAX_DEPTH)
    assert not may_hold_artifacts(("deep",) * (tree.MAX_DEPTH + 1))


# --- empty directories --------------------------------------------------------------------------------


def age(directory: Path) -> None:
    os.utime(directory, (1, 1))


@pytest.mark.parametrize(
    "path",
    [
        "acc/proj/xcode/ab",
        "acc/proj/xcode/ab/cd",
        "acc/proj/bazel_ac/@x/00/11",
        "acc/proj/module/builds/ab/cd",
        "acc/proj/module/builds/ab/cd/abcdef",
    ],
)
def test_an_empty_directory_goes_when_it_is_idle(tmp_path: Path, path: str) -> None:
    (tmp_path / path).mkdir(parents=True)
    parts = tuple(path.split("/"))
    assert not remove_if_unused(tmp_path, parts, 60)  # somebody may have made it for what comes next
    age(tmp_path / path)
    assert remove_if_unused(tmp_path, parts, 60)
    assert not (tmp_path / path).exists()
    assert not remove_if_unused(tmp_path, parts, 60)


@pytest.mark.parametrize(
    "path", ["lost+found", "ab", "acc/ab", "acc/proj/ab", "acc/proj/xcode/abc", "acc/proj/module/abc"]
)
def test_other_directories_stay(tmp_path: Path, path: str) -> None:
    (tmp_path / path).mkdir(parents=True)
    age(tmp_path / path)
    assert not remove_if_unused(tmp_path, tuple(path.split("/")), 60)
    assert (tmp_path / path).is_dir()


def test_a_directory_with_something_in_it_stays(root: Path) -> None:
    age(root / "acc/proj/xcode/ab/cd")
    assert not remove_if_unused(root, ("acc", "proj", "xcode", "ab", "cd"), 60)
    assert (root / KEYS[0]).is_file()
