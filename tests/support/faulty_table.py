"""A table whose writes wait at a gate, or fail as told."""

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, cast

import apsw

from undercroft.buffers import Bufferable

# Long enough for the slowest machine; a test that gets here has failed.
PATIENCE_SECONDS = 20


class FaultyTable:
    """Passes everything on to a real `Bufferable`; only `write_batch` can be told to misbehave.

    Faults concern batches with entries: the empty batch, with which the buffer asks whether the
    statement itself is at fault, meets only what `fail(..., even_empty=True)` says.
    """

    def __init__(self, table: Bufferable[Any, Any]) -> None:
        self._table = table
        self.batches: list[tuple[str, int]] = []
        """Operation and size of every batch with entries that was tried."""
        self.refused_keys: set[Hashable] = set()
        """Keys of rows that SQLite is made to refuse."""
        self._errors: deque[BaseException | None] = deque()
        self._always: BaseException | None = None
        self._even_empty = False
        self._gate = threading.Event()
        self._gate.set()
        self._arrived = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    @property
    def as_table(self) -> Bufferable[Any, Any]:
        """Itself, for the type checker."""
        return cast("Bufferable[Any, Any]", self)

    # --- the gate ---

    def shut_gate(self) -> None:
        """The next batch waits in the writer's thread until `open_gate`."""
        self._arrived.clear()
        self._gate.clear()

    def open_gate(self) -> None:
        self._gate.set()

    def wait_until_arrived(self) -> None:
        """Blocks until a batch stands at the gate. Call it in a thread."""
        assert self._arrived.wait(PATIENCE_SECONDS), "no batch came to the gate"

    # --- the errors ---

    def fail(self, *errors: BaseException | int | None) -> None:
        """Each of the next batches raises one of these: a result code of SQLite, None for no error."""
        self._errors += [None if error is None else _exception(error) for error in errors]

    def fail_always(self, error: BaseException | int, *, even_empty: bool = False) -> None:
        """Every batch raises this until `heal`."""
        self._always, self._even_empty = _exception(error), even_empty

    @property
    def will_fail(self) -> bool:
        return bool(self._errors) or self._always is not None

    def heal(self) -> None:
        self._errors.clear()
        self._always, self._even_empty = None, False
        self.refused_keys.clear()

    # --- the contract ---

    def write_batch(self, connection: apsw.Connection, operation: str, entries: Sequence[Any]) -> None:
        if entries:
            self._misbehave(operation, entries)
        elif self._always is not None and self._even_empty:
            raise self._always
        self._table.write_batch(connection, operation, entries)

    def _misbehave(self, operation: str, entries: Sequence[Any]) -> None:
        self.batches.append((operation, len(entries)))
        self._arrived.set()
        assert self._gate.wait(PATIENCE_SECONDS), "nobody opened the gate"
        if self._errors and (error := self._errors.popleft()) is not None:
            raise error
        if self._always is not None:
            raise self._always
        if self.refused_keys & {self._table.entry_key(entry) for entry in entries}:
            raise apsw.exception_for(apsw.SQLITE_CONSTRAINT)


def _exception(error: BaseException | int) -> BaseException:
    return apsw.exception_for(error) if isinstance(error, int) else error
