"""What a flush costs when the table is large: our buffer at 100 thousand and at 10 million rows."""

import asyncio
import time

import apsw

from benchmarks.contestants import FILE, Ours
from benchmarks.load import make_rows, workspace
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES

SMALL, LARGE = 100_000, 10_000_000
ROWS = 50_000

# Keys in order, so that this takes minutes and not hours, but spread over all there are: the rows that
# follow land anywhere between them.
FILL = """
WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)
INSERT INTO key_value_entries (key, json_payload, last_accessed_at, inserted_at, updated_at)
SELECT 'keyvalue:acme:app:' || printf('%08x', n * :step) || lower(hex(randomblob(28))),
    :payload, n, n, n FROM numbers
"""


def fill(connection: apsw.Connection, count: int) -> None:
    """Puts `count` rows into the empty table."""
    payload = make_rows(1)[0].json_payload
    connection.execute(FILL, {"count": count, "step": (1 << 32) // count, "payload": payload})


async def rows_per_s(existing: int) -> float:
    """How fast our buffer commits new rows beside so many existing ones, the loop otherwise idle."""
    with workspace() as folder:
        database = Database(folder / FILE, KEY_VALUES)
        await asyncio.to_thread(database.open)
        await database.write(lambda connection: fill(connection, existing))
        await database.close()
        ours = Ours(folder)
        await ours.open()
        started = time.perf_counter()
        await ours.write(make_rows(ROWS), float("inf"))
        rate = ROWS / (time.perf_counter() - started)
        await ours.close()
    return rate


async def growth_cost() -> float:
    """How many times as much a row costs in the large table as in the small one."""
    small, large = await rows_per_s(SMALL), await rows_per_s(LARGE)
    print(f"buffers: {small:,.0f} rows/s at {SMALL:,} rows, {large:,.0f} rows/s at {LARGE:,}", flush=True)
    return small / large
