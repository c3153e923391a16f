"""A wall clock that jumps under a running node: nothing is lost, use counts, tokens mean what they say."""

import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from undercroft.cli import app

PROGRAM = ("-m", "tests.support.jumping_node")
HOUR, DAY = 3_600, 86_400
# None that is ahead by less than a minute: for that long nobody can say what is newer.
JUMPS = (-DAY, -HOUR, -600, -30, 600, HOUR, DAY)

SIZE = 10_000
SETTINGS = {"DISK__LIMIT_BYTES": str(40 * SIZE), "DISK__EVICTION_INTERVAL_MS": "50"}

# Of one processor, over a moment in which nobody asks for anything.
IDLE_CPU = 0.5

PENDING = "tuist_cache_sqlite_writer_pending_cas_artifacts"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the seconds into it that the node's clock is to be off."""
    found = tmp_path / "clock"
    found.write_text("0")
    monkeypatch.setenv("JUMPING_CLOCK", str(found))
    return found


def busy(node: NodeProcess) -> float:
    """The processors that the node and its workers take up, over a second."""
    parent = psutil.Process(node.process.pid)
    processes = [parent, *parent.children()]
    for process in processes:
        process.cpu_percent()
    time.sleep(1)
    return sum(process.cpu_percent() for process in processes) / 100


def put(client: Client, number: int) -> None:
    assert client.put_ccache(f"{number:040x}", bytes([number % 256]) * SIZE).status in (200, 201)


@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_is_lost_and_what_was_used_last_stays(
    data_dir: Path, clock: Path, campaign: Campaign, workers: int
) -> None:
    more = ("--workers", str(workers))
    with (
        node_process(data_dir, SETTINGS, program=PROGRAM, arguments=more) as node,
        Client(node.url) as client,
    ):
        number = 0
        offs: set[int] = set()
        for _ in campaign.rounds(short=4, long=60):
            off = campaign.random.choice(JUMPS)
            clock.write_text(str(off))
            used = campaign.random.randrange(max(number - 10, 0), number) if number else None
            # Those that are used after the jump are used last, whatever the clock says of it.
            if used is not None:
                found = client.get_ccache(f"{used:040x}")
                assert found in (None, bytes([used % 256]) * SIZE)
                used = used if found is not None else None
                # Eviction is one worker's; what another one served it knows once that is committed.
                eventually(lambda: client.metric(PENDING) == 0, "the use is committed")
            for _ in range(8):
                put(client, number)
                assert client.put_value(f"k{number}", str(number)).status == 204
                number += 1
            # Eviction takes the oldest: the newest of a round are there, and so is what was used in it. After
            # the clock was set back by more than a minute they look older than what was there.
            if off >= max(offs, default=0):
                for recent in range(number - 8, number):
                    assert client.get_ccache(f"{recent:040x}") == bytes([recent % 256]) * SIZE
                    campaign.checked("artifacts")
                assert used is None or client.get_ccache(f"{used:040x}") is not None
            offs.add(off)
            clock.write_text("0")
        # What a clock that was ahead has left goes first, or nothing that is stored from now on would stay.
        for late in range(number, number + 60):
            put(client, late)
        eventually(lambda: client.metric("undercroft_disk_used_bytes") <= 36 * SIZE, "eviction is done")
        for late in range(number + 40, number + 60):
            assert client.get_ccache(f"{late:040x}") == bytes([late % 256]) * SIZE
        for known in range(number):
            assert client.get_value(f"k{known}") == str(known)
            campaign.checked("key values")
        eventually(lambda: client.metric("undercroft_disk_used_bytes") <= 40 * SIZE, "the limit holds")
        assert busy(node) < IDLE_CPU
        assert node.stop() == 0
        assert node.logged("request_failed") == node.logged("artifact_damaged") == []


@pytest.mark.parametrize("workers", [1, 4])
def test_a_token_expires_by_the_clock(data_dir: Path, clock: Path, workers: int) -> None:
    options = ("--data-dir", str(data_dir), "--project", "*/*", "--read", "--write", "--expires", "2h")
    token = CliRunner().invoke(app, ["token", "create", *options]).output.strip()
    headers, more = {"authorization": f"Bearer {token}"}, ("--workers", str(workers))
    with (
        node_process(data_dir, {"AUTH__MODE": "tokens"}, program=PROGRAM, arguments=more) as node,
        Client(node.url) as client,
    ):

        def is_now(expected: int) -> bool:
            return client.request("GET", "/ccache/acme/app/x", headers=headers).status == expected

        for off, expected in ((0, 404), (HOUR, 404), (DAY, 401), (0, 404), (-DAY, 404)):
            clock.write_text(str(off))
            eventually(partial(is_now, expected), f"{expected} at {off:+} s")
        assert node.stop() == 0
