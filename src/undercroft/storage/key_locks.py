"""Who changes what is under a key: one task at a time."""

import asyncio
from weakref import WeakValueDictionary


class KeyLocks:
    """A lock for each key somebody works on. It lives as long as somebody has it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        """The lock of a key."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def is_taken(self, key: str) -> bool:
        """Whether somebody changes what is under the key now."""
        lock = self._locks.get(key)
        return lock is not None and lock.locked()

    async def at_rest(self, prefix: str) -> None:
        """Returns when every change under keys with this prefix that goes on now is over."""
        for key, lock in list(self._locks.items()):
            if key.startswith(prefix):
                async with lock:
                    pass
