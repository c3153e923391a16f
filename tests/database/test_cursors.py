"""Positions survive the process; so does the time of the first start in a boot."""

from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.database.boots import first_start
from undercroft.database.cursors import Cursors
from undercroft.database.schema import NODE

YEAR_US = 365 * 86_400_000_000


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "node.sqlite", NODE)
    opened.open()
    yield opened
    await opened.close()


async def test_no_position_at_first(database: Database) -> None:
    assert await Cursors(database).load("walk") is None


@pytest.mark.parametrize("position", ["", "files:acc/proj/é~#", "rows:x"])
async def test_the_last_position_is_kept(database: Database, position: str) -> None:
    cursors = Cursors(database)
    await cursors.save("walk", "first")
    await cursors.save("other", "elsewhere")
    await cursors.save("walk", position)
    again = Database(database.path, NODE)
    again.open()
    try:
        assert await Cursors(again).load("walk") == position
        assert await Cursors(again).load("other") == "elsewhere"
    finally:
        await again.close()


async def test_clear(database: Database) -> None:
    cursors = Cursors(database)
    for name in ("walk", "other"):
        await cursors.save(name, "somewhere")
    await cursors.clear("walk")
    await cursors.clear("walk")
    assert await cursors.load("walk") is None
    assert await cursors.load("other") == "somewhere"


# --- boots --------------------------------------------------------------------------------------------


async def test_the_first_start_in_a_boot_is_kept(database: Database) -> None:
    assert await first_start(database, "one", 100) == 100
    assert await first_start(database, "one", 200) == 100
    assert await first_start(database, "two", 300) == 300
    assert await first_start(database, "two", 400) == 300
    # Not the boot it was: what was written then has been without power.
    now = now_us()
    assert await first_start(database, "one", now) == now


async def test_a_restart_in_the_same_boot_writes_nothing(database: Database) -> None:
    await first_start(database, "one", 100)
    other = apsw.Connection(str(database.path))
    try:
        other.execute("BEGIN IMMEDIATE")  # nobody else can write
        assert await first_start(database, "one", 200) == 100
        with pytest.raises(apsw.BusyError):
            await first_start(database, "two", 200)
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert await first_start(database, "two", 200) == 200


async def test_a_clock_that_comes_up_in_the_past_makes_no_file_young(database: Database) -> None:
    before = now_us()
    await first_start(database, "one", before)
    assert await first_start(database, "two", before - YEAR_US) > before


async def test_what_cursors_know_of_the_time_counts_as_well(database: Database) -> None:
    await Cursors(database).save("walk", "somewhere")
    saved_at = database.find("SELECT updated_at FROM cursors")
    assert saved_at is not None
    assert await first_start(database, "one", saved_at[0] - YEAR_US) > saved_at[0]


async def test_a_clock_that_was_ahead_is_not_believed_less(database: Database) -> None:
    ahead = now_us() + YEAR_US
    await first_start(database, "one", ahead)
    assert await first_start(database, "two", now_us()) > ahead
