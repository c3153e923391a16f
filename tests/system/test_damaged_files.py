"""Artifacts that are damaged, and foreign things in their tree: never a wrong byte, healed where possible."""

import http.client
import os
import random
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.api.dialects import DIALECTS
from tests.support.campaign import Campaign
from tests.support.node_process import node_process
from tests.support.s3_endpoint import S3Endpoint
from tests.system.client import Client, eventually
from tests.system.data_dir import files_under, query
from tests.system.stored_bytes import BLOCK, Shaking, Stored, is_soft, is_stored
from tests.system.test_object_store import settings

QUICK = {"RECONCILE__PAUSE_MS": "1000", "BUFFERS__COMMIT_TIMEOUT_MS": "20000"}

Damage = Callable[[Path, random.Random], None]


def flip(file: Path, chance: random.Random) -> None:
    """One bit, where it lies."""
    with file.open("r+b") as opened:
        at = chance.randrange(file.stat().st_size)
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ (1 << chance.randrange(8))]))


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def extend(file: Path, chance: random.Random) -> None:
    with file.open("ab") as opened:
        opened.write(chance.randbytes(chance.randint(1, 5_000)))


def take_away(file: Path, _chance: random.Random) -> None:
    file.unlink()


def put_in_place(make: Damage) -> Damage:
    """Something else gets the file's name."""

    def put(file: Path, chance: random.Random) -> None:
        file.unlink()
        make(file, chance)

    return put


def write_other_bytes(file: Path, chance: random.Random) -> None:
    file.write_bytes(chance.randbytes(chance.randint(0, 3_000)))


def make_folder(file: Path, chance: random.Random) -> None:
    file.mkdir()
    if chance.random() < 0.3:
        (file / "somebody's").write_text("dear to them")


def change_label(file: Path, chance: random.Random) -> None:
    os.setxattr(file, "user.undercroft", chance.randbytes(59))


def remove_label(file: Path, _chance: random.Random) -> None:
    os.removexattr(file, "user.undercroft")


DAMAGES: dict[str, Damage] = {
    "flipped": flip,
    "cut": cut,
    "extended": extend,
    "deleted": take_away,
    "other bytes": put_in_place(write_other_bytes),
    "symlink": put_in_place(lambda file, _: file.symlink_to("/etc/hostname")),
    "symlink to nothing": put_in_place(lambda file, _: file.symlink_to("/nowhere")),
    "fifo": put_in_place(lambda file, _: os.mkfifo(file)),
    "device": put_in_place(lambda file, _: os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 5))),
    "folder": put_in_place(make_folder),
    "damaged label": change_label,
    "no label": remove_label,
}


def damage(file: Path, chance: random.Random, campaign: Campaign) -> None:
    """Does one of these to a file, unless the node moves it away at that moment."""
    what = chance.choice(list(DAMAGES))
    with suppress(OSError, ValueError):
        DAMAGES[what](file, chance)
        campaign.checked(f"{what}")


def store_again(stored: Stored, client: Client, path: str) -> bool:
    """What a build tool does after a miss; answers whether it is there afterwards."""
    dialect, content = stored.artifacts[path]
    answer = client.request(dialect.method, path, content)
    assert is_stored(dialect, answer.status) or is_soft(dialect, answer), answer
    return stored.get(client, path)


def check_and_heal(stored: Stored, client: Client, tree: Path) -> None:
    """Nothing wrong is served, and what is a miss can be stored again."""
    stored.missing.clear()
    stored.check_all(client)
    for path in sorted(stored.missing):
        if path.startswith("/api/cache/module/"):
            del stored.artifacts[path]  # it takes several requests; others stand for it
        elif not store_again(stored, client, path):
            # Only what is in the way and may be dear to somebody stays.
            assert any(folder.is_dir() for folder in tree.rglob(path.rsplit("/", 1)[1].split("?")[0]))
            del stored.artifacts[path]
    stored.check_all(client)


@pytest.mark.parametrize("workers", [1, 4])
def test_files_damaged_under_load(data_dir: Path, campaign: Campaign, workers: int) -> None:
    """Each round has a node of its own: what it is compared with would fill the memory of a long run."""
    for number in campaign.rounds(short=1, long=40):
        root = data_dir / str(number)
        damage_under_load(root, campaign, f"{campaign.seed}-{number}", workers)
        shutil.rmtree(root)


def damage_under_load(root: Path, campaign: Campaign, seed: str, workers: int) -> None:
    chance, stored, tree = campaign.random, Stored(), root / "artifacts"
    with node_process(root, QUICK, arguments=("--workers", str(workers))) as node:
        load = Shaking(stored, node.url, seed, large=800_000)
        try:
            going = load.wait(0.5)
            for _ in range(15):
                files = list(files_under(tree))
                for file in chance.sample(files, min(len(files), 5)):
                    damage(file, chance, campaign)
                going = going and load.wait(0.05)
        finally:
            load.end()
        with Client(node.url) as client:
            check_and_heal(stored, client, tree)
            assert client.request("GET", "/up").status == 200
        assert node.stop() == 0
        assert node.printed == []
        assert node.logged("artifact_damaged")
        assert [record for record in node.log if "exception" in record] == []
    for name in ("key_values.sqlite", "node.sqlite"):
        assert query(root / name, "PRAGMA integrity_check") == [("ok",)]
    for what, count in stored.counts.items():
        campaign.checked(what, count)


@pytest.mark.parametrize("workers", [1, 4])
def test_damaged_files_are_healed_from_the_bucket(
    data_dir: Path, s3_endpoint: S3Endpoint, campaign: Campaign, workers: int
) -> None:
    chance, environment = campaign.random, settings(s3_endpoint, **QUICK)
    more = ("--workers", str(workers))
    for number in campaign.rounds(short=1, long=30):
        stored, root = Stored(), data_dir / str(number)
        tree = root / "artifacts"
        with node_process(root, environment, arguments=more) as node, Client(node.url) as client:
            for index in range(36):
                size = chance.choice((100, 5_000, 400_000, 1_500_000))
                name = f"{campaign.seed} {number} {index}"
                assert stored.put(client, DIALECTS[index % len(DIALECTS)], name, size)
            eventually(
                lambda: client.metric("tuist_cache_s3_transfers_pending_total") == 0, "all are uploaded", 60
            )
            while_it_runs = chance.random() < 0.5
            if not while_it_runs:
                assert node.stop() == 0
            for file in list(files_under(tree)):
                damage(file, chance, campaign)
            if while_it_runs:
                heal(stored, client, tree)
                assert node.stop() == 0
        with node_process(root, environment, arguments=more) as node, Client(node.url) as client:
            heal(stored, client, tree)
            assert node.stop() == 0
            assert [record for record in node.log if "exception" in record] == []
        campaign.checked("artifacts healed", len(stored.artifacts))
        shutil.rmtree(root)


def heal(stored: Stored, client: Client, tree: Path) -> None:
    """Every one is served, with the right bytes; but for what cannot be put on disk, which may be a miss."""
    for path in stored.paths():
        if not stored.get(client, path):
            name = path.rsplit("/", 1)[1].split("?")[0]
            assert any(any(folder.iterdir()) for folder in tree.rglob(name) if folder.is_dir()), path


@pytest.mark.parametrize("workers", [1, 4])
def test_a_bit_of_a_large_artifact(data_dir: Path, workers: int) -> None:
    """Beyond 64 MiB it is proven while it is sent: its end never comes if it is damaged."""
    content, path = BLOCK * 9, f"/ccache/acme/app/{'a' * 40}"
    more = ("--workers", str(workers))
    with node_process(data_dir, arguments=more) as node, Client(node.url) as client:
        assert client.request("PUT", path, content).status == 201
        assert node.stop() == 0
    (file,) = files_under(data_dir / "artifacts")
    with file.open("r+b") as opened:
        opened.seek(len(content) // 2)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
    with node_process(data_dir, arguments=more) as node:
        with Client(node.url) as client, pytest.raises(http.client.IncompleteRead):
            client.get_bytes(path)
        with Client(node.url) as client:
            assert client.get_bytes(path) is None
            assert client.request("PUT", path, content).status in (200, 201)
            assert client.get_bytes(path) == content
            # From here on it is known to be right.
            assert client.request("GET", path, headers={"range": "bytes=5-9"}).body == content[5:10]
        assert node.logged("artifact_damaged")
        assert node.stop() == 0
    shutil.rmtree(data_dir)
