"""Names of every kind in every dialect: each has its own bytes, however a URL writes it, and keeps them."""

import random
import unicodedata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from tests.api.dialects import FREE_NAMES, REPLACING, DialectCase
from tests.support.campaign import Campaign
from tests.support.node_process import node_process
from tests.system.client import Client, in_turns

# What file systems, shells, URLs and SQL give a meaning to; what is alike but not the same; what is long.
ODD = """
a A b 0 . .. ... ~ @ + % %2F %00 - -- * ? # & = : ; , ' " < > | $ ` _ __ ab cd tmp CON null .part .spill
é e\u0301 \u00c5 \u212b ß ẞ \u017f ﬁ İ \u0131 Σ ς 日本 \u200b \ufeff \u202e 😀 \ufffd \uffff \U0010ffff
"""
PIECES = [*ODD.split(), " ", "\u00a0", "\u2028", "x" * 200, "é" * 100]


class Name(NamedTuple):
    """Where an artifact lies, as the node is to understand it."""

    dialect: DialectCase
    account: str
    project: str
    identifier: str
    folder: str = "c"
    """Where a dialect has folders."""

    def where(self) -> tuple[str, str, str, str]:
        """What the names of one artifact have in common: Tuist's and Gradle's own way lead to the same."""
        kind = self.dialect.name.removeprefix("tuist ")
        kind = f"{kind} {self.folder}" if kind == "webdav" else kind
        return kind, self.account.lower(), self.project.lower(), self.identifier

    def path(self, chance: random.Random) -> str:
        """A path of a request for it; of the many ways to write it one by chance."""
        account, project, identifier = (
            written(part, chance) for part in (self.account, self.project, self.identifier)
        )
        path = self.dialect.path("{}").replace("/acc/proj/", f"/{account}/{project}/")
        path = path.replace(
            "account_handle=acc&project_handle=proj", f"account_handle={account}&project_handle={project}"
        )
        return path.replace("/c/{}", f"/{written(self.folder, chance)}/{{}}").replace("{}", identifier, 1)


def written(part: str, chance: random.Random) -> str:
    """Percent-encoded where it must be, or everywhere, in small or large digits."""
    if chance.random() < 0.3:
        encoded = "".join(f"%{byte:02x}" for byte in part.encode())
        return encoded if chance.random() < 0.5 else encoded.upper()
    return quote(part, safe="")


def chosen(chance: random.Random, known: list[Name]) -> Name:
    """A name of its own, or one that is much like another."""
    if known and chance.random() < 0.5:
        other = chance.choice(known)
        changes = [
            {"identifier": unicodedata.normalize(chance.choice(["NFC", "NFD", "NFKC"]), other.identifier)},
            {"identifier": other.identifier.swapcase()},
            {"identifier": other.identifier + chance.choice([".", " ", "_", "a", "A"])},
            {"account": other.project, "project": other.account},
            {"account": other.account.upper()},
            {"folder": chance.choice(["c", "C", "c+", "+", "%2B", "@", "a", "c.", "grün"])},
            {"dialect": chance.choice(FREE_NAMES)},
        ]
        return other._replace(**chance.choice(changes))  # type: ignore[arg-type]
    return Name(chance.choice(FREE_NAMES), *(_joined(chance) for _ in range(3)))


def _joined(chance: random.Random) -> str:
    return "".join(chance.choices(PIECES, k=chance.randint(1, 4)))


def is_good(name: Name) -> bool:
    """Whether the contract allows it."""
    parts = [name.account, name.account.lower(), name.project, name.project.lower(), name.identifier]
    return all(part not in {"", ".", ".."} and len(part.encode()) <= 255 for part in parts)


@pytest.mark.parametrize("workers", [1, 4])
def test_names(campaign: Campaign, data_dir: Path, workers: int) -> None:
    chance = campaign.random
    known: list[Name] = []
    stored: dict[tuple[str, str, str, str], bytes] = {}
    arguments = ("--workers", str(workers))
    with node_process(data_dir, arguments=arguments) as node, in_turns(node.url, workers) as clients:
        for number in campaign.rounds(short=150, long=5_000):
            name, data = chosen(chance, known), b"%d" % number
            answer = next(clients).request(name.dialect.method, name.path(chance), data)
            if not is_good(name):
                assert answer.status == name.dialect.malformed, name
                campaign.checked("names refused")
                continue
            is_new = name.where() not in stored
            assert answer.status == (name.dialect.created if is_new else name.dialect.again), name
            if is_new or name.dialect in REPLACING:
                stored[name.where()] = data
            known.append(name)
            check(next(clients), chance.choice(known), stored, chance)
        assert node.stop() == 0
        assert node.logged("request_failed") == []
    with node_process(data_dir) as node, Client(node.url) as client:
        for name in known:
            check(client, name, stored, chance)
            campaign.checked("names read after a restart")
        assert len([path for path in (data_dir / "artifacts").rglob("*") if path.is_file()]) == len(stored)
        campaign.checked("files", len(stored))


def check(
    client: Client, name: Name, stored: dict[tuple[str, str, str, str], bytes], chance: random.Random
) -> None:
    """It has its bytes and no other's."""
    found = client.request("GET", name.path(chance))
    assert (found.status, found.body) == (200, stored[name.where()]), name
