"""Makes a data directory with all that a node may leave: `python -m tests.system.data_dirs.fill FOLDER`.

It goes to `FOLDER/data`, what is known of it to `FOLDER/left.json`. Everything is written by nodes and
commands of the version that the running Python has installed, so this needs nothing but that. What others
do to a node is done here: they lock its databases, have its turn, kill it, change bits of a file.
"""

import fcntl
import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.locks import lock_of_another_process
from tests.support.node_process import node_process
from tests.system.client import Client, eventually
from tests.system.data_dirs.entries import (
    Caller,
    artifact,
    artifact_key,
    content,
    key_value,
    of_every_dialect,
)
from tests.system.data_dirs.left import Left

TOKENS = {
    "main": ("acme/*", "--read", "--write"),
    "reader": ("acme/app", "--read"),
    "elsewhere": ("other/*", "--read", "--write"),
    "pull-requests": ("acme/app", "--read", "--write", "--scope", "pull-requests"),
    "forks": ("acme/app", "--read", "--write", "--scope", "forks", "--expires", "5000w"),
    "revoked": ("acme/*", "--read", "--write"),
}
SCOPES = ("pull-requests", "forks")

# The stage that the request to clean each project is left in.
CLEANED = {"later": "objects", "first": "key_values"}

PARKED = "aa00parked"

# Deleted, which its object still waits for, and then stored again.
AGAIN = artifact("aa09again")

SETTINGS = {"AUTH__MODE": "tokens"}

# Nothing is committed by the clock, and a stop does not insist for long.
SPILLS = {"ACK": "buffered", "BUFFERS__FLUSH_INTERVAL_MS": "600000", "BUFFERS__SHUTDOWN_MS": "300"}


def command(data_dir: Path, *arguments: str) -> str:
    """What a command of the version prints."""
    whole = [sys.executable, "-m", "undercroft", *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(whole, capture_output=True, text=True, check=True).stdout


def create_tokens(data_dir: Path) -> dict[str, str]:
    tokens = {}
    for name, (project, *options) in TOKENS.items():
        printed = command(data_dir, "token", "create", "--name", name, "--project", project, *options)
        tokens[name] = printed.strip()
    command(data_dir, "token", "revoke", "revoked")
    return tokens


# --- a node whose object store is there -----------------------------------------------------------


def store_everything(folder: Path, left: Left) -> None:
    """Ends with nothing to do but for a parked transfer."""
    objects = folder / "objects"
    # No object can be put where a directory is: this upload fails whenever it is tried.
    (objects / artifact_key(PARKED) / "in the way").mkdir(parents=True)
    store = {
        "OBJECT_STORE__URL": objects.as_uri(),
        "OBJECT_STORE__MAX_ATTEMPTS": "2",
        "OBJECT_STORE__RETRY_BASE_DELAY_MS": "50",
    }
    with node_process(folder / "data", SETTINGS | store) as node, Client(node.url) as client:
        main = Caller(client, left.tokens["main"])
        left.stored |= main.store([*of_every_dialect(), artifact("aa01old")])
        left.stored |= main.store_module("framework.zip")
        for scope in SCOPES:
            own = [key_value(f"of-{scope}"), artifact(f"ab00{scope}")]
            left.scoped[scope] = Caller(client, left.tokens[scope]).store(own)
        for project in CLEANED:
            entries = (key_value("gone", project), artifact("aa02gone", project))
            left.cleaned[project] = main.store(entries)
        left.deleted = list(main.store([artifact("aa03deleted"), artifact("aa04deleted")]))
        main.store([AGAIN])
        damage(folder / "data", left, main)
        park(folder / "data", left, main)
        assert node.stop() == 0


def damage(data_dir: Path, left: Left, main: Caller) -> None:
    """A medium that changes bits: whoever asks for the artifact has its file put into quarantine."""
    (left.damaged,) = main.store([artifact("aa05damaged")])
    # The object store has it soon, and would heal it; and no upload must see the damage first.
    copy = data_dir.parent / "objects" / artifact_key("aa05damaged")
    eventually(copy.exists, "the artifact is uploaded")
    copy.unlink()
    file = data_dir / "artifacts" / artifact_key("aa05damaged")
    file.write_bytes(file.read_bytes().swapcase())
    assert main.get(left.damaged) is None


def transfers(data_dir: Path) -> list[dict[str, str]]:
    lines = command(data_dir, "transfers", "list", "--json").splitlines()
    return [json.loads(line) for line in lines]


def park(data_dir: Path, left: Left, main: Caller) -> None:
    """Waits until nothing but one upload is left, which failed while all others got through."""
    left.stored |= main.store([artifact(PARKED)])
    left.parked = artifact_key(PARKED)
    others = (artifact(f"aa{number:02}others") for number in itertools.count())

    def is_alone() -> bool:
        if [one["state"] for one in transfers(data_dir)] == ["parked"]:
            return True
        left.stored |= main.store([next(others)])
        return False

    eventually(is_alone, "one upload is parked, and all others are made")


# --- nodes whose object store is down -------------------------------------------------------------


@contextmanager
def store_that_is_down() -> Iterator[dict[str, str]]:
    """Settings of an S3 endpoint that refuses connections: a port that is taken, and nobody listens."""
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        yield {
            "OBJECT_STORE__URL": "s3://bucket/",
            "OBJECT_STORE__ENDPOINT": f"http://127.0.0.1:{refusing.getsockname()[1]}",
            "OBJECT_STORE__ACCESS_KEY_ID": "key",
            "OBJECT_STORE__SECRET_ACCESS_KEY": "not a secret",
        }


def stage(main: Caller, project: str) -> str:
    path = f"/api/cache/clean?account_handle=acme&project_handle={project}"
    return str(json.loads(main.request("GET", path).body)["state"])


def clean(main: Caller, project: str) -> None:
    """Asks for it, and waits until the request is where it is to be left."""
    path = f"/api/cache/clean?account_handle=acme&project_handle={project}"
    assert main.request("DELETE", path).status == 204
    eventually(lambda: stage(main, project) == CLEANED[project], f"{project} is cleaned as far as it can be")


def let_transfers_wait(folder: Path, left: Left, down: dict[str, str]) -> None:
    """Ends with transfers that have failed, and a project that is cleaned but for its objects."""
    with node_process(folder / "data", SETTINGS | down) as node, Client(node.url) as client:
        main = Caller(client, left.tokens["main"])
        left.stored |= main.store([artifact("aa06waiting")])
        left.uploads.append(artifact_key("aa06waiting"))
        for path in (left.deleted[0], AGAIN.path):
            assert main.request("DELETE", path).status == 204
        clean(main, "later")
        eventually(
            lambda: any(one["attempts"] for one in transfers(folder / "data")), "a transfer was tried in vain"
        )
        assert node.stop() == 0


@contextmanager
def turn_of_another_process(data_dir: Path) -> Iterator[None]:
    """No node does background work: what is to be done in the background is left to be done."""
    with (data_dir / "background.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def spill(data_dir: Path, left: Left, down: dict[str, str]) -> None:
    """A node that cannot commit ends with a spill file of each buffer: writes, an access, deletes, transfers.

    Another one must run on the directory, or the last connection to close would empty the WAL.
    """
    with ExitStack() as stack:
        node = stack.enter_context(node_process(data_dir, SETTINGS | SPILLS | down))
        main = Caller(stack.enter_context(Client(node.url)), left.tokens["main"])
        for database in ("key_values.sqlite", "node.sqlite"):
            stack.enter_context(lock_of_another_process(data_dir / database))
        left.spilled |= main.store([key_value("spilled"), artifact("aa07spilled"), AGAIN])
        left.uploads += [artifact_key("aa07spilled"), artifact_key("aa09again")]
        assert main.get(artifact("aa01old").read) is not None
        assert main.request("DELETE", left.deleted[1]).status == 204
        assert node.stop() == 0
        assert len(node.logged("rows_spilled")) == 3


def be_killed(folder: Path, left: Left, down: dict[str, str]) -> None:
    """Ends like a node that meets SIGKILL, beside one that could not commit before it ended."""
    data_dir = folder / "data"
    with (
        turn_of_another_process(data_dir),
        node_process(data_dir, SETTINGS | down) as node,
        Client(node.url) as client,
    ):
        spill(data_dir, left, down)
        main = Caller(client, left.tokens["main"])
        left.in_wal |= main.store([key_value("in-wal"), artifact("aa08in-wal")])
        left.uploads.append(artifact_key("aa08in-wal"))
        left.upload_id = main.send_part("unfinished.zip", content("part", 300_000))
        clean(main, "first")
        node.kill()


def fill(folder: Path) -> None:
    """Makes it."""
    left = Left(tokens=create_tokens(folder / "data"))
    store_everything(folder, left)
    with store_that_is_down() as down:
        let_transfers_wait(folder, left, down)
        be_killed(folder, left, down)
    left.write(folder)


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
