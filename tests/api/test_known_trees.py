"""What is remembered of trees."""

import pytest

from undercroft.api import known_trees
from undercroft.api.known_trees import KnownTrees, Tree


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> KnownTrees:
    monkeypatch.setattr(known_trees, "MAX_NAMES", 10)
    return KnownTrees()


def tree(names: int) -> Tree:
    return Tree(1_000, ["file"] * (names - 1))


def test_the_one_not_asked_for_the_longest_is_forgotten(trees: KnownTrees) -> None:
    for digest in "abc":
        trees.add(digest, tree(3))
    assert trees.get("a") == tree(3)
    trees.add("d", tree(3))
    assert [digest for digest in "abcd" if trees.get(digest)] == ["a", "c", "d"]


def test_what_names_nothing_counts_too(trees: KnownTrees) -> None:
    for number in range(11):
        trees.add(str(number), tree(1))
    assert [number for number in range(11) if trees.get(str(number)) is None] == [0]


def test_added_again(trees: KnownTrees) -> None:
    for _ in range(5):
        trees.add("a", tree(5))
    trees.add("b", tree(5))
    assert trees.get("a") == tree(5)
    assert trees.get("b") == tree(5)


def test_one_that_is_too_large_is_not_remembered(trees: KnownTrees) -> None:
    assert trees.add("a", tree(11)) == tree(11)
    assert trees.get("a") is None
    trees.add("b", tree(10))
    assert trees.get("b") == tree(10)
