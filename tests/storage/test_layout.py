"""Keys and paths: nothing unsafe gets in, nothing safe is bent, nothing meets what it should not."""

import os
import tempfile
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.errors import InvalidKeyError
from undercroft.storage.layout import (
    artifact_key,
    artifact_path,
    key_value_key,
    module_key,
    safe_component,
    safe_handle,
)

SAFE = (
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1)
    .map(lambda text: text.encode()[:255].decode(errors="ignore"))
    .filter(lambda text: text not in ("", ".", ".."))
)
ODD_NAMES = [
    "a b",
    "grün",
    "日本",
    "100%",
    "%2F",
    "a?b",
    "a+b",
    "~",
    "a:b",
    "...",
    ".a",
    "-",
    "*",
    "#",
    "é" * 127,
]

# Few characters, so that ids are short, alike and full of dots.
SHORT_IDS = st.text(".ab_@%", min_size=1, max_size=6).filter(lambda text: text not in (".", ".."))

UNSAFE = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "a/b",
    "absolute": "/etc/passwd",
    "traversal": "../../etc/passwd",
    "backslash": "a\\b",
    "backslash traversal": "..\\..\\x",
    "NUL": "a\x00",
    "newline": "a\n",
    "first control": "\x01",
    "last C0": "\x1f",
    "DEL": "\x7f",
    "first C1": "\x80",
    "last C1": "\x9f",
    "256 bytes": "a" * 256,
    "256 bytes of unicode": "é" * 128,
    "half a surrogate pair": "\ud800",
    "many halves": "\udfff" * 300,
}


@pytest.mark.parametrize("value", UNSAFE.values(), ids=UNSAFE)
def test_unsafe_component_is_refused(value: str) -> None:
    with pytest.raises(InvalidKeyError, match="name of it"):
        safe_component(value, "name of it")


@given(st.text(), st.sampled_from(["/", "\\", "\x00", "\x1f", "\x7f", "\x85", "\ud900"]), st.text())
def test_forbidden_character_is_refused_wherever_it_stands(head: str, forbidden: str, tail: str) -> None:
    with pytest.raises(InvalidKeyError):
        safe_component(head + forbidden + tail, "id")


@pytest.mark.parametrize("value", [*ODD_NAMES, "a" * 63, "a" * 64, "a" * 255])
def test_odd_but_safe_component_stays_as_it_is(value: str) -> None:
    assert safe_component(value, "id") == value


@given(st.text(st.characters(categories=("L", "N")), min_size=60, max_size=260))
def test_length_is_counted_in_bytes(value: str) -> None:
    if len(value.encode()) <= 255:
        assert safe_component(value, "id") == value
    else:
        with pytest.raises(InvalidKeyError, match="bytes"):
            safe_component(value, "id")


@given(SAFE)
def test_safe_component_is_a_file_name(value: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / safe_component(value, "id")).touch()
        assert os.listdir(folder) == [value]  # noqa: PTH208  # the name itself, not a path


@given(SAFE)
def test_handles_are_lower_case_and_stay_safe(value: str) -> None:
    try:
        handle = safe_handle(value, "account")
    except InvalidKeyError:
        # A few letters take more bytes as lower case ones.
        assert len(value.lower().encode()) > 255
    else:
        assert handle == value.lower()
        assert safe_handle(value.upper().lower(), "account") == value.upper().lower().lower()


def test_handle_is_refused_like_any_component() -> None:
    with pytest.raises(InvalidKeyError):
        safe_handle("..", "account")


def test_shape_of_the_key() -> None:
    assert artifact_key("acc", "proj", "xcode", "0123456789") == "acc/proj/xcode/01/23/0123456789"
    assert (
        artifact_key("acc", "proj", "bazel_ac", "abcdef", group=["@i"]) == "acc/proj/bazel_ac/@i/ab/cd/abcdef"
    )


@pytest.mark.parametrize(
    ("identifier", "pairs"),
    [
        ("a", "a_/__"),
        ("ab", "ab/__"),
        ("abc", "ab/c_"),
        ("...", "__/__"),
        ("....", "__/__"),
        (".a.b", "_a/_b"),
        ("a..b", "a_/_b"),
        ("日本語", "日本/語_"),
    ],
)
def test_pairs_of_short_and_dotted_ids(identifier: str, pairs: str) -> None:
    assert artifact_key("a", "p", "k", identifier) == f"a/p/k/{pairs}/{identifier}"


@pytest.mark.parametrize(
    ("identifier", "pairs"), [("abcdef", "ab/cd"), ("a", "a_/__"), ("abc", "ab/c_"), ("...", "__/__")]
)
def test_key_of_a_module(identifier: str, pairs: str) -> None:
    key = module_key("acc", "proj", "builds", identifier, "A B.zip")
    assert key == f"acc/proj/module/builds/{pairs}/{identifier}/A B.zip"


@pytest.mark.parametrize("value", UNSAFE.values(), ids=UNSAFE)
def test_unsafe_component_of_a_module_is_refused(value: str) -> None:
    with pytest.raises(InvalidKeyError, match="cache_category"):
        module_key("acc", "proj", value, "hash", "name")
    with pytest.raises(InvalidKeyError, match="hash"):
        module_key("acc", "proj", "builds", value, "name")
    with pytest.raises(InvalidKeyError, match="name"):
        module_key("acc", "proj", "builds", "hash", value)


@given(SHORT_IDS, SHORT_IDS, SHORT_IDS, SHORT_IDS)
def test_modules_never_share_a_path_or_stand_in_each_others_way(a: str, b: str, c: str, d: str) -> None:
    first, second = module_key("a", "p", a, b, c), module_key("a", "p", b, a, d)
    assert (first == second) == ((a, b, c) == (b, a, d))
    assert not second.startswith(first + "/")
    assert len(first.split("/")) == 8


@given(SAFE, SAFE, SAFE)
def test_path_stays_below_the_root_and_gives_the_key_back(
    account: str, project: str, identifier: str
) -> None:
    root = Path("/data/artifacts")
    key = artifact_key(account, project, "xcode", identifier)
    path = artifact_path(root, key)
    assert os.path.normpath(path) == path
    assert PurePosixPath(path).relative_to(root).as_posix() == key
    parts = key.split("/")
    assert (parts[0], parts[1], parts[-1], len(parts)) == (account, project, identifier, 6)


@given(SHORT_IDS, SHORT_IDS)
def test_ids_never_share_a_path_or_stand_in_each_others_way(one: str, other: str) -> None:
    first, second = (artifact_key("a", "p", "k", identifier) for identifier in (one, other))
    assert (first == second) == (one == other)
    # A file where another needs a directory would make one of them impossible.
    assert not second.startswith(first + "/")
    for key in (first, second):
        assert all(part not in ("", ".", "..") for part in key.split("/"))


HANDLES = st.text(":%3ab", min_size=1, max_size=4)


@given(st.lists(st.tuples(HANDLES, HANDLES, HANDLES), min_size=2, max_size=30, unique=True))
def test_key_value_keys_are_unambiguous(names: list[tuple[str, str, str]]) -> None:
    distinct = sorted({(safe_handle(a, "account"), safe_handle(p, "project"), c) for a, p, c in names})
    keys = sorted(key_value_key(*name) for name in distinct)
    assert all(one != other for one, other in pairwise(keys))


def test_key_value_key_of_ordinary_names() -> None:
    assert key_value_key("acc", "my proj", "a:b") == "keyvalue:acc:my proj:a:b"


def test_colon_in_a_handle_does_not_move_the_border() -> None:
    assert key_value_key("a:b", "c", "d") != key_value_key("a", "b:c", "d")
    assert key_value_key("a", "b", "c:d") != key_value_key("a", "b:c", "d")
