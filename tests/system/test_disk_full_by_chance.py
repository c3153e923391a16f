"""A volume that somebody fills at any moment: soft answers, nothing lost, no restart needed."""

import random
import time
from pathlib import Path

import pytest

from tests.support.campaign import Campaign
from tests.support.node_process import node_process
from tests.support.small_volume import Filler, small_volume
from tests.system.client import Client
from tests.system.stored_bytes import Shaking, Stored
from tests.system.test_disk_full import NO_MARGIN, VOLUME_MB, assert_sound, wait_until_well


def hold(load: Shaking, filler: Filler, chance: random.Random) -> None:
    """Takes what is free, and what eviction frees, for a while."""
    # Now and then a little is left: the refusal comes in the middle of something.
    leave = chance.choice((0, 0, 4_096, 100_000, 1_000_000))
    until = time.monotonic() + chance.uniform(0, 0.6)
    while time.monotonic() < until and load.wait(0.002):
        filler.fill(leave)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_somebody_fills_the_volume_at_any_moment(
    tmp_path: Path, campaign: Campaign, kind: str, workers: int
) -> None:
    if (kind, workers) in {("tmpfs", 4), ("ext4", 1)}:
        campaign.is_for_the_long_form()
    chance, more = campaign.random, ("--workers", str(workers))
    with (
        small_volume(kind, tmp_path, VOLUME_MB) as root,
        node_process(root / "node", NO_MARGIN, arguments=more) as node,
    ):
        filler, stored = Filler(root), Stored()
        for number in campaign.rounds(short=1, long=40):
            load = Shaking(stored, node.url, f"{campaign.seed}-{number}")
            try:
                load.wait(chance.uniform(0, 0.5))
                for _ in range(chance.randint(1, 12)):
                    hold(load, filler, chance)
                    filler.free()
                    load.wait(chance.uniform(0, 0.2))
            finally:
                filler.free()
                load.end()
            with Client(node.url) as client:
                wait_until_well(client)
                stored.check_all(client)
                evicted = client.metric("undercroft_disk_evicted_artifacts_total")
                # What is missing made room, in the bounds of what a cache may do.
                assert len(stored.missing) <= evicted
            assert_sound(root / "node")
        for what, count in stored.counts.items():
            campaign.checked(what, count)
        campaign.checked("key values kept", len(stored.values))
        assert node.stop() == 0
        assert node.printed == []
        assert [record for record in node.log if "exception" in record] == []
        assert list((root / "node" / "temporary").iterdir()) == []
        assert list((root / "node").glob("*.spill")) == []
