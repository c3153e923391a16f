"""SIGKILL under load: nothing acknowledged is lost, nothing partial is served.

`UNDERCROFT_TEST_KILL_ROUNDS` sets how often, `UNDERCROFT_TEST_KILL_SEED` repeats a plan. A plan says
who writes what, and after how many answers the node is killed; threads and disks add their own chance.
"""

import os
import random
import shutil
from pathlib import Path

from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client
from tests.system.data_dir import files_under, query, stored_artifacts
from tests.system.kill_load import ArtifactWriter, KeyValueWriter, Load, Writer

ROUNDS = int(os.environ.get("UNDERCROFT_TEST_KILL_ROUNDS", "5"))


def test_kill_under_load(data_dir: Path) -> None:
    seed = os.environ.get("UNDERCROFT_TEST_KILL_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"UNDERCROFT_TEST_KILL_SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    generator = random.Random(seed)
    writers: list[Writer] = [KeyValueWriter(f"k{n}") for n in range(4)]
    writers += [ArtifactWriter(f"a{n}") for n in range(4)]
    load = Load(writers, readers=2)
    for number in range(ROUNDS):
        with node_process(data_dir) as node:
            # Often while the first rows and files come into being, now and then when the WAL is long.
            answers = int(10 ** generator.uniform(0.5, 3.2))
            load.run(node.url, f"{seed} {number}", answers, node.kill)
            assert node.process.returncode == -9
            assert node.printed == []
        (left,) = (data_dir / "temporary").iterdir()
        with node_process(data_dir) as node:
            (mine,) = (data_dir / "temporary").iterdir()
            assert mine != left
            assert list(mine.iterdir()) == []
            with Client(node.url) as client:
                check(client, writers)
            check_rows(node)
            assert node.stop() == 0
        assert query(data_dir / "key_values.sqlite", "PRAGMA integrity_check") == [("ok",)]
        assert query(data_dir / "node.sqlite", "PRAGMA integrity_check") == [("ok",)]
    shutil.rmtree(data_dir)


def check(client: Client, writers: list[Writer]) -> None:
    """Reads everything twice, and takes over what became of the writes that were cut off."""
    for writer in writers:
        for entry, known in writer.known.items():
            found = entry.get(client)
            assert found in known.allowed(), f"{entry}: {describe(found)}"
            again = entry.get(client)
            # Reconcile may have adopted the whole file of a write that was never answered.
            assert again == found or (found is None and again in known.allowed())
            known.settle(again)


def describe(found: bytes | None) -> str:
    return "not there" if found is None else f"{len(found)} bytes, {found[:32].hex()}"


def check_rows(node: NodeProcess) -> None:
    """No row contradicts its file."""
    artifacts = node.data_dir / "artifacts"
    sizes = {str(path.relative_to(artifacts)): path.stat().st_size for path in files_under(artifacts)}
    for key, (size, _) in stored_artifacts(node.data_dir).items():
        assert key not in sizes or sizes[key] == size
