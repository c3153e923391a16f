"""Writers and readers at full speed that know what may be found after the node was killed under them."""

import hashlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tests.system.client import TENANT, Answer, Client

# Contents are cut from this block: making all bytes up anew would slow the writers down.
BLOCK = random.Random(1).randbytes(4_000_000)

SIZES = ((100, 20_000), (20_000, 400_000), (400_000, 3_000_000))
WEIGHTS = (80, 15, 5)

# A project that is cleaned now and then.
CLEANED = "account_handle=acme&project_handle=cleaned"


class Entry(Protocol):
    """A key in one dialect."""

    def put(self, client: Client, content: bytes) -> None: ...
    def get(self, client: Client) -> bytes | None: ...


@dataclass(frozen=True)
class KeyValue:
    cas_id: str
    tenant: str = TENANT

    def put(self, client: Client, content: bytes) -> None:
        answer = client.put_value(self.cas_id, content.hex(), self.tenant)
        assert answer.status == 204, answer

    def get(self, client: Client) -> bytes | None:
        value = client.get_value(self.cas_id, self.tenant)
        return None if value is None else bytes.fromhex(value)


@dataclass(frozen=True)
class Artifact:
    method: str
    path: str
    replace: bool
    """Whether a second write puts other bytes under the same name."""

    def put(self, client: Client, content: bytes) -> None:
        answer = client.request(self.method, self.path, content)
        assert answer.status in (200, 201, 202, 204), answer

    def get(self, client: Client) -> bytes | None:
        return client.get_bytes(self.path)

    def delete(self, client: Client) -> None:
        answer = client.request("DELETE", self.path)
        assert answer.status in (204, 404), answer


class CutOffError(http.client.HTTPException):
    """An upload in parts ended with the worker that had it: before a kill, that is a failure."""


@dataclass(frozen=True)
class Module:
    """What Tuist sends in parts."""

    hash: str

    @property
    def query(self) -> str:
        return f"{TENANT}&hash={self.hash}&name=m.zip"

    def put(self, client: Client, content: bytes) -> None:
        base = "/api/cache/module"
        upload = json.loads(self._step(client, f"{base}/start?{self.query}", b"", 200).body)["upload_id"]
        assert upload is not None
        half = len(content) // 2
        for number, part in ((1, content[:half]), (2, content[half:])):
            path = f"{base}/part?{TENANT}&upload_id={upload}&part_number={number}"
            self._step(client, path, part, 204)
        self._step(client, f"{base}/complete?{TENANT}&upload_id={upload}", b'{"parts": [1, 2]}', 204)

    def _step(self, client: Client, path: str, body: bytes, status: int) -> Answer:
        answer = client.request("POST", path, body)
        # The worker that had the upload is not there, or its successor does not know it.
        if answer.status in (404, 503):
            raise CutOffError(answer.status)
        assert answer.status == status, answer
        return answer

    def get(self, client: Client) -> bytes | None:
        return client.get_bytes(f"/api/cache/module/x?{self.query}")


def content_of(name: str, size: int) -> bytes:
    """Bytes that no other name has, and that differ at both ends."""
    mark = hashlib.sha256(name.encode()).digest()
    start = int.from_bytes(mark[:4], "big") % (len(BLOCK) - size)
    return mark + BLOCK[start : start + size - 2 * len(mark)] + mark[::-1]


def new_artifact(name: str, content: bytes, generator: random.Random) -> Entry:
    """A key that nothing is stored under yet, in one of the dialects."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    blob = hashlib.sha256(content).hexdigest()
    return generator.choice(
        (
            Artifact("POST", f"/api/cache/cas/{name}?{TENANT}", replace=False),
            Artifact("PUT", f"/api/cache/gradle/{name}?{TENANT}", replace=False),
            Artifact("PUT", f"/bazel/acme/app/cas/{blob}", replace=False),
            Artifact("PUT", f"/bazel/acme/app/ac/{digest}", replace=True),
            Artifact("PUT", f"/gradle/acme/app/{digest[:32]}", replace=True),
            Artifact("PUT", f"/ccache/acme/app/{digest[:2]}/{digest[2:40]}", replace=True),
            Artifact("PUT", f"/webdav/acme/app/{digest[:2]}/{digest}", replace=True),
            Artifact("PUT", f"/turborepo/acme/app/v8/artifacts/{digest[:16]}", replace=False),
            Artifact("PUT", f"/nx/acme/app/v1/cache/{int(digest[:12], 16)}", replace=False),
            Module(digest),
        )
    )


@dataclass
class Known:
    """What is known of one key. None stands for "nothing"."""

    acknowledged: bytes | None = None
    unanswered: bytes | None = None
    """What was sent after that and never answered."""
    adoptable: list[bytes] = field(default_factory=list)
    """What was never answered nor found since: reconcile may still find its whole file."""
    sent: dict[bytes, int] = field(default_factory=dict)
    """Digests of all that was ever sent, with their number."""
    newest: int = 0
    """The number of what was acknowledged last."""
    deleting: bool = False
    """It was asked to go, and nobody has said that it has."""
    deleted: bool = False
    """Whether it was ever asked to go."""

    def allowed(self) -> list[bytes | None]:
        """What may be found after a kill: what was acknowledged, or what came after it and was cut off."""
        found: list[bytes | None] = [self.acknowledged, *self.adoptable]
        if self.unanswered is not None:
            found.append(self.unanswered)
        if self.deleting:
            found.append(None)
        return found

    def delete(self) -> None:
        """It was answered that this is gone."""
        self.acknowledged, self.deleting = None, False
        self.adoptable.clear()

    def acknowledge(self, content: bytes) -> None:
        """It was answered that this is stored."""
        self.acknowledged, self.unanswered = content, None
        self.newest = self.sent[digest_of(content)]
        self.adoptable.clear()

    def send(self, content: bytes) -> None:
        """It is asked to store this."""
        self.sent[digest_of(content)] = len(self.sent)
        self.unanswered = content

    def settle(self, found: bytes | None) -> None:
        """This is what is there after a kill."""
        self.deleting = False
        if found is not None:
            self.acknowledge(found)
            return
        if self.unanswered is not None:
            self.adoptable.append(self.unanswered)
        self.acknowledged = self.unanswered = None


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class Writer:
    """One of several; each has keys of its own, so that the order of the writes of a key is known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known: dict[Entry, Known] = {}
        self.acknowledged = 0
        self._number = 0

    def step(self, client: Client, generator: random.Random) -> None:
        raise NotImplementedError

    def _write(self, client: Client, entry: Entry, content: bytes) -> None:
        known = self.known.setdefault(entry, Known())
        known.send(content)
        entry.put(client, content)
        known.acknowledge(content)
        self.acknowledged += 1

    def _delete(self, client: Client, entry: Artifact) -> None:
        known = self.known[entry]
        known.deleting = known.deleted = True
        entry.delete(client)
        known.delete()
        self.acknowledged += 1

    def _next_name(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"


class KeyValueWriter(Writer):
    def step(self, client: Client, generator: random.Random) -> None:
        # So few keys that most writes replace a value.
        entry = KeyValue(f"{self.name}-{generator.randrange(50)}")
        self._write(client, entry, content_of(self._next_name(), generator.choice((64, 100, 2_000))))


class ArtifactWriter(Writer):
    def step(self, client: Client, generator: random.Random) -> None:
        name = self._next_name()
        (sizes,) = generator.choices(SIZES, WEIGHTS)
        content = content_of(name, generator.randint(*sizes))
        replaceable = [e for e in self.known if isinstance(e, Artifact) and e.replace]
        deletable = [e for e in replaceable if e.path.startswith(("/ccache/", "/webdav/"))]
        if replaceable and generator.random() < 0.3:
            self._write(client, generator.choice(replaceable), content)
        elif deletable and generator.random() < 0.05:
            self._delete(client, generator.choice(deletable))
        else:
            self._write(client, new_artifact(name, content, generator), content)


class CleaningWriter(Writer):
    """Has a project of its own, and asks now and then that all of it goes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.cleaned: set[Entry] = set()
        """What was written before a request to clean that was answered."""

    def step(self, client: Client, generator: random.Random) -> None:
        if self.known and generator.random() < 0.03:
            self.clean(client)
        else:
            self.write(client, generator)

    def write(self, client: Client, generator: random.Random) -> None:
        name = self._next_name()
        value, artifact = KeyValue(name, CLEANED), Artifact("POST", f"/api/cache/cas/{name}?{CLEANED}", False)
        self._write(
            client, generator.choice((value, artifact)), content_of(name, generator.randint(64, 2_000))
        )

    def clean(self, client: Client) -> None:
        for known in self.known.values():
            known.deleting = known.deleted = True
        answer = client.request("DELETE", f"/api/cache/clean?{CLEANED}")
        assert answer.status == 204, answer
        self.cleaned |= self.known.keys()
        self.acknowledged += 1


def is_clean(client: Client) -> bool:
    """Whether what was asked to go from the project that is cleaned has gone."""
    answer = client.request("GET", f"/api/cache/clean?{CLEANED}")
    assert answer.status in (200, 404), answer
    return answer.status == 404 or json.loads(answer.body)["state"] == "done"


class Reader:
    """Reads what others write: it must be whole, there once it was acknowledged, and no older than that."""

    def __init__(self, name: str, writers: list[Writer], *, evicts: bool) -> None:
        self.name = name
        self._writers = writers
        self._evicts = evicts

    def step(self, client: Client, generator: random.Random) -> None:
        writer = generator.choice(self._writers)
        entries = list(writer.known)
        if not entries:
            time.sleep(0.001)
            return
        entry = generator.choice(entries)
        known = writer.known[entry]
        expected, newest = known.acknowledged is not None, known.newest
        content = entry.get(client)
        if content is None:
            may_go = known.deleted or (self._evicts and not isinstance(entry, KeyValue))
            assert not expected or may_go, f"{entry} was acknowledged and is not there"
        else:
            number = known.sent.get(digest_of(content))
            assert number is not None, f"{entry} is none of what was written"
            assert number >= newest or known.deleted, f"{entry} is {number}, and {newest} was acknowledged"


class Load:
    """Runs writers and readers until the node under them is killed."""

    def __init__(self, writers: list[Writer], readers: int, *, evicts: bool = False) -> None:
        self.writers = writers
        self.evicts = evicts
        """Whether artifacts may make room for others."""
        self._steps: dict[str, Callable[[Client, random.Random], None]] = {w.name: w.step for w in writers}
        self._steps |= {f"r{n}": Reader(f"r{n}", writers, evicts=evicts).step for n in range(readers)}
        self._killed = self._enough = False
        self._failures: list[BaseException] = []

    def run(
        self,
        url: str,
        seed: str,
        acknowledgements: int,
        kill: Callable[[], None],
        *,
        more: int = 0,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Kills once the node has acknowledged so many writes and is `ready`. Raises what went wrong before.

        What is still served then goes on until it has acknowledged `more`.
        """
        self._killed = self._enough = False
        target = acknowledgements + self._acknowledged()
        threads = [
            threading.Thread(target=self._repeat, args=(url, step, random.Random(f"{seed} {name}")))
            for name, step in self._steps.items()
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        in_time = False
        while not self._failures and time.monotonic() < deadline:
            if in_time := self._acknowledged() >= target and ready():
                break
            time.sleep(0.0005)
        self._killed = True
        kill()
        target += more
        while self._acknowledged() < target and any(thread.is_alive() for thread in threads):
            time.sleep(0.0005)
        self._enough = True
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
        assert in_time, (
            "too few writes were acknowledged before the kill, or what it was to meet did not begin"
        )
        assert self._acknowledged() >= target, "too few writes were acknowledged after the kill"

    def _acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)

    def _repeat(
        self, url: str, step: Callable[[Client, random.Random], None], generator: random.Random
    ) -> None:
        with Client(url) as client:
            try:
                while not self._enough:
                    step(client, generator)
            except (OSError, http.client.HTTPException) as error:
                # The kill, unless it comes before.
                if not self._killed:
                    self._failures.append(error)
            except BaseException as error:  # noqa: BLE001  # for the main thread to raise
                self._failures.append(error)
