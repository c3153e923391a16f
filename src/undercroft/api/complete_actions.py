"""Whether everything an action result names is there: one that is not complete fails the build it is for."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from undercroft.api import responses
from undercroft.api.action_result import Named, UnreadableError, named_by_action_result, named_by_tree
from undercroft.api.artifact_routes import Admitted, ArtifactRoutes
from undercroft.api.request import Request
from undercroft.errors import TooLargeError
from undercroft.storage.open_artifact import OpenArtifact

_T = TypeVar("_T")

# An action with so large a result has tens of thousands of outputs; it is served unchecked.
MAX_ACTION_BYTES = 4 << 20

# Of the trees of one action so much is read; of what is left only the tree itself must be there.
MAX_TREE_BYTES = 16 << 20

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

    async def admit(self, request: Request, key_of: KeyOf, found: OpenArtifact) -> Admitted | None:
        """The action result as it is; None if a blob is missing, or might be.

        Where the object store cannot be asked a blob that is not on this disk counts as missing. Bazel 4
        to 7 end a build when a blob that an action result named is not there; for a 404 they run the
        action again, which costs no more than its time.
        """
        if found.size > MAX_ACTION_BYTES:
            return Admitted(found, [])
        try:
            named = await _parsed(named_by_action_result, await responses.beginning(found, found.size))
        except UnreadableError:
            # Of another tool that likes the layout: ccache, or moon with its JSON.
            return Admitted(found, [])
        return Admitted(found, []) if await self._are_there(request, key_of, named) else None

    async def _are_there(self, request: Request, key_of: KeyOf, named: Named) -> bool:
        if not await self._all_there(request, [key_of(one) for one in named.blobs]):
            return False
        left = MAX_TREE_BYTES
        for tree in named.trees:
            try:
                data = await self._blobs.content(request, key_of(tree), left)
                if data is None:
                    return False
                left -= len(data)
                files = await _parsed(named_by_tree, data)
            except (TooLargeError, UnreadableError):
                continue
            if not await self._all_there(request, [key_of(one) for one in files]):
                return False
        return True

    async def _all_there(self, request: Request, keys: Sequence[str]) -> bool:
        for start in range(0, len(keys), BLOBS_AT_ONCE):
            some = keys[start : start + BLOBS_AT_ONCE]
            if not all(await asyncio.gather(*(self._blobs.exists(request, key) for key in some))):
                return False
        return True


async def _parsed(parse: Callable[[bytes], _T], data: bytes) -> _T:
    if len(data) <= PARSED_AT_ONCE_BYTES:
        return parse(data)
    return await asyncio.to_thread(parse, data)
