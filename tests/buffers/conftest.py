"""The contract suite runs for every table."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from undercroft.database import Database

from .drivers import DRIVERS, Driver
from .rig import Rig

OpenRig = Callable[..., Awaitable[Rig]]


@pytest.fixture(params=DRIVERS, ids=repr)
def driver(request: pytest.FixtureRequest) -> Driver:
    found: Driver = request.param
    return found


@pytest.fixture
async def open_rig(driver: Driver, tmp_path: Path) -> AsyncIterator[OpenRig]:
    """Opens a buffer, with settings; may be called again for the next life of the same file."""
    rigs: list[Rig] = []

    async def open_one(**settings: int) -> Rig:
        rig = Rig(driver, tmp_path, **settings)
        rigs.append(rig)
        return await rig.open()

    yield open_one
    for rig in rigs:
        await rig.crash()


@pytest.fixture
def database(driver: Driver, tmp_path: Path) -> Database:
    """The database of the table, not opened."""
    return Database(tmp_path / f"{driver.schema.name}.sqlite", driver.schema)
