"""Which files the trees of output directories name, remembered: to read a large one takes long."""

from typing import NamedTuple

# Of all trees together; some 25 MB at most.
MAX_NAMES = 200_000


class Tree(NamedTuple):
    """What is known of a tree, for ever: its name is the digest of its bytes."""

    size: int
    """Bytes."""
    files: list[str]
    """Hashes of the blobs it names, each once; none if it is no tree."""

    @property
    def names(self) -> int:
        """How many it takes to remember it, its own among them."""
        return 1 + len(self.files)


class KnownTrees:
    """The trees that were asked for last, as many as name `MAX_NAMES` blobs or fewer."""

    def __init__(self) -> None:
        self._trees: dict[str, Tree] = {}
        self._names = 0

    def get(self, digest: str) -> Tree | None:
        """The tree of this digest, if it is still known."""
        tree = self._trees.pop(digest, None)
        if tree is not None:
            self._trees[digest] = tree
        return tree

    def add(self, digest: str, tree: Tree) -> Tree:
        """Remembers the tree, and answers it; forgets those not asked for the longest."""
        if digest not in self._trees:
            self._trees[digest] = tree
            self._names += tree.names
        while self._names > MAX_NAMES:
            oldest = next(iter(self._trees))
            self._names -= self._trees.pop(oldest).names
        return tree
