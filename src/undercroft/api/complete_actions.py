"""Whether everything an action result names is there: one that is not complete fails the build it is for."""

import asyncio
from collections.abc import Callable, Sequence

from undercroft.api import responses
from undercroft.api.action_result import Named, UnreadableError, named_by_action_result, named_by_tree
from undercroft.api.artifact_routes import Admitted, ArtifactRoutes
from undercroft.api.known_trees import KnownTrees, Tree
from undercroft.api.request import Request
from undercroft.errors import TooLargeError
from undercroft.storage.open_artifact import OpenArtifact

# An action with so large a result has tens of thousands of outputs; it is served unchecked.
MAX_ACTION_BYTES = 4 << 20

# Of the trees of one action so much is read, tens of thousands of outputs, which takes a fifth of a second;
# of what is left only the tree itself must be there.
MAX_TREE_BYTES = 4 << 20

# Each may be a question to the object store.
BLOBS_AT_ONCE = 32

# To read one of this size, some 200 outputs, takes a millisecond or two, and if it is garbage some ten;
# larger ones must not hold up the event loop.
PARSED_AT_ONCE_BYTES = 16 << 10

KeyOf = Callable[[str], str]
"""Under which key the blob with a hash lies."""


class CompleteActions:
    """Admits an action result if its blobs could be served now, and whatever is no action result."""

    def __init__(self, blobs: ArtifactRoutes) -> None:
        self._blobs = blobs
        self._trees = KnownTrees()
        # The event loop takes turns with every thread that parses: one may delay it, several must not.
        self._turn = asyncio.Semaphore(1)

    async def admit(self, request: Request, key_of: KeyOf, found: OpenArtifact) -> Admitted | None:
        """The action result as it is; None if a blob is missing, or might be.

        Where the object store cannot be asked a blob that is not on this disk counts as missing. Bazel 4
        to 7 end a build when a blob that an action result named is not there; for a 404 they run the
        action again, which costs no more than its time.
        """
        if found.size > MAX_ACTION_BYTES:
            return Admitted(found, [])
        try:
            named = await self._named(await responses.beginning(found, found.size))
        except UnreadableError:
            # Of another tool that likes the layout: ccache, or moon with its JSON.
            return Admitted(found, [])
        return Admitted(found, []) if await self._are_there(request, key_of, named) else None

    async def _are_there(self, request: Request, key_of: KeyOf, named: Named) -> bool:
        if not await self._all_there(request, [key_of(one) for one in named.blobs]):
            return False
        left = MAX_TREE_BYTES
        for name in named.trees:
            try:
                tree = await self._tree(request, key_of, name, left)
            except TooLargeError:
                continue
            if tree is None or not await self._all_there(request, [key_of(one) for one in tree.files]):
                return False
            left -= tree.size
        return True

    async def _tree(self, request: Request, key_of: KeyOf, name: str, max_bytes: int) -> Tree | None:
        """What is known of a tree that is there, None if it is not; raises `TooLargeError`."""
        tree, key = self._trees.get(name), key_of(name)
        if tree is None:
            data = await self._blobs.content(request, key, max_bytes)
            return None if data is None else await self._read(name, data)
        if not await self._blobs.exists(request, key):
            return None
        if tree.size > max_bytes:
            # As if it had not been known: what an action is checked for must not depend on other requests.
            raise TooLargeError(f"{key} has {tree.size} bytes, more than {max_bytes}")
        return tree

    async def _read(self, name: str, data: bytes) -> Tree:
        if len(data) <= PARSED_AT_ONCE_BYTES:
            return self._trees.get(name) or self._trees.add(name, _tree_of(data))
        async with self._turn:
            # Whose turn it was before may have read the same.
            known = self._trees.get(name)
            return known or self._trees.add(name, await asyncio.to_thread(_tree_of, data))

    async def _named(self, data: bytes) -> Named:
        if len(data) <= PARSED_AT_ONCE_BYTES:
            return named_by_action_result(data)
        async with self._turn:
            return await asyncio.to_thread(named_by_action_result, data)

    async def _all_there(self, request: Request, keys: Sequence[str]) -> bool:
        for start in range(0, len(keys), BLOBS_AT_ONCE):
            some = keys[start : start + BLOBS_AT_ONCE]
            if not all(await asyncio.gather(*(self._blobs.exists(request, key) for key in some))):
                return False
        return True


def _tree_of(data: bytes) -> Tree:
    try:
        return Tree(len(data), named_by_tree(data))
    except UnreadableError:
        return Tree(len(data), [])
