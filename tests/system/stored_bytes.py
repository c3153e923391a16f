"""Writes and reads in every dialect while the ground shakes: what was stored is remembered and compared."""

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from tests.api.dialects import DIALECTS, DialectCase
from tests.system.client import TENANT, Answer, Client

# Contents are cut from this block: making all bytes up anew would slow the writers down.
BLOCK = random.Random(1).randbytes(8 << 20)

PIECE = 60_000


def content_of(name: str, size: int) -> bytes:
    """Bytes that no other name has, and that differ at both ends; at least 64."""
    mark = hashlib.sha256(name.encode()).digest()
    start = int.from_bytes(mark[:4], "big") % (len(BLOCK) - size)
    return mark + BLOCK[start : start + max(size, 64) - 2 * len(mark)] + mark[::-1]


def pieces(content: bytes) -> Iterator[bytes]:
    """Sent in chunks: the node does not know how much will come."""
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


def is_stored(dialect: DialectCase, status: int) -> bool:
    """Whether the status promises that the artifact is there."""
    return status in (dialect.created, dialect.again)


def is_soft(dialect: DialectCase, answer: Answer) -> bool:
    """Whether the tool takes it as "not stored, go on": section 8 of the contract."""
    if answer.status == 503:
        return dialect.busy == 503 and "retry-after" in answer.headers
    return answer.status in (dialect.full_now, dialect.busy)


class Stored:
    """What one node was given, by whom it may be found, and what was wrong. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.artifacts: dict[str, tuple[DialectCase, bytes]] = {}
        """Acknowledged: path to content. No path has two contents."""
        self.unknown: dict[str, bytes] = {}
        """Sent and not acknowledged: may be there or not."""
        self.values: dict[str, str] = {}
        self.unknown_values: dict[str, set[str]] = {}
        """What was sent for a key value since the last acknowledgement."""
        self.counts: Counter[str] = Counter()
        self.missing: set[str] = set()
        """Acknowledged artifacts that were not found: evicted, or lost."""

    # --- writing ----------------------------------------------------------------------------------

    def put(
        self,
        client: Client,
        dialect: DialectCase,
        name: str,
        size: int,
        *,
        chunked: bool = False,
        identifier: str | None = None,
    ) -> bool:
        """Stores an artifact; answers whether it is acknowledged. Any other answer must be a soft one."""
        content = content_of(name, size)
        path = dialect.path_for(content) if identifier is None else dialect.path(identifier)
        with self._lock:
            self.unknown[path] = content
        answer = client.request(dialect.method, path, pieces(content) if chunked else content)
        stored = is_stored(dialect, answer.status)
        assert stored or is_soft(dialect, answer), (dialect.name, size, answer)
        with self._lock:
            self.counts["writes stored" if stored else "writes refused softly"] += 1
            if stored:
                del self.unknown[path]
                self.artifacts[path] = dialect, content
        return stored

    def put_value(self, client: Client, cas_id: str, value: str) -> bool:
        """Stores a key value; each key has one writer."""
        with self._lock:
            self.unknown_values.setdefault(cas_id, set()).add(value)
        answer = client.put_value(cas_id, value)
        stored = answer.status == 204
        assert stored or (answer.status == 503 and "retry-after" in answer.headers), answer
        with self._lock:
            self.counts["writes stored" if stored else "writes refused softly"] += 1
            if stored:
                self.values[cas_id] = value
                self.unknown_values[cas_id] = set()
        return stored

    def put_module(self, client: Client, name: str, sizes: list[int]) -> bool:
        """Stores a module in parts; answers whether all of it is acknowledged."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        query = f"{TENANT}&hash={digest}&name=m.zip"
        content = content_of(name, sum(sizes))
        path = f"/api/cache/module/x?{query}"
        begun = client.request("POST", f"/api/cache/module/start?{query}")
        if not self._went_on(begun, 200):
            return False
        upload_id = json.loads(begun.body)["upload_id"]
        parts, start = [], 0
        for number, size in enumerate(sizes, start=1):
            part = content[start : start + size]
            parts.append(number)
            start += size
            where = f"/api/cache/module/part?{TENANT}&upload_id={upload_id}&part_number={number}"
            if not self._went_on(client.request("POST", where, part), 204):
                return False
        with self._lock:
            self.unknown[path] = content
        body = json.dumps({"parts": parts}).encode()
        answer = client.request("POST", f"/api/cache/module/complete?{TENANT}&upload_id={upload_id}", body)
        if not self._went_on(answer, 204):
            return False
        with self._lock:
            del self.unknown[path]
            self.artifacts[path] = MODULE, content
        return True

    def _went_on(self, answer: Answer, well: int) -> bool:
        good = answer.status == well
        assert good or is_soft(MODULE, answer), answer
        with self._lock:
            self.counts["writes stored" if good else "writes refused softly"] += 1
        return good

    # --- reading ----------------------------------------------------------------------------------

    def paths(self) -> list[str]:
        """Everything that was ever sent."""
        with self._lock:
            return [*self.artifacts, *self.unknown]

    def get(self, client: Client, path: str) -> bool:
        """Reads an artifact: whole and right, or not there; answers whether it is there."""
        with self._lock:
            known = self.artifacts.get(path)
            content = known[1] if known else self.unknown[path]
        answer = client.request("GET", path)
        assert answer.status in (200, 404), answer
        found = answer.status == 200
        assert not found or answer.body == content, f"{path}: not the {len(content)} bytes stored"
        with self._lock:
            self.counts["reads compared" if found else "reads missed"] += 1
            if known is not None and not found:
                self.missing.add(path)
        return found

    def get_value(self, client: Client, cas_id: str) -> None:
        """Reads a key value: what was acknowledged, or what was sent since. Not while it is written."""
        found = client.get_value(cas_id)
        with self._lock:
            allowed = {self.values.get(cas_id), *self.unknown_values[cas_id]}
            self.counts["reads compared"] += 1
        assert found in allowed, (cas_id, found, allowed)

    def check_all(self, client: Client) -> None:
        """Reads everything."""
        for path in self.paths():
            self.get(client, path)
        for cas_id in self.unknown_values:
            self.get_value(client, cas_id)


MODULE = DialectCase("module", "", "POST", 204, 204, 507, 503)


class Shaking:
    """Threads that write and read until they are told to end; the first failure is raised by `end`."""

    def __init__(
        self,
        stored: Stored,
        url: str,
        seed: str,
        *,
        writers: int = 4,
        large: int = 2_000_000,
        client: Callable[[str], Client] = Client,
    ) -> None:
        self._stored = stored
        self._client = client
        self._url = url
        self._large = large
        self._over = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(f"{seed}-{number}",)) for number in range(writers)
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, name: str) -> None:
        try:
            self._run(name, random.Random(name))
        except BaseException as error:  # noqa: BLE001  # for the main thread to raise
            self._failures.append(error)
            self._over.set()

    def _run(self, name: str, chance: random.Random) -> None:
        number = 0
        with self._client(self._url) as client:
            while not self._over.is_set():
                number += 1
                self._step(client, chance, f"{name}-{number}", name)

    def _step(self, client: Client, chance: random.Random, entry: str, writer: str) -> None:
        what = chance.random()
        if what < 0.25:
            paths = self._stored.paths()
            if paths:
                self._stored.get(client, chance.choice(paths))
        elif what < 0.45:
            cas_id = f"{writer}-{chance.randrange(30)}"
            self._stored.put_value(client, cas_id, entry)
            self._stored.get_value(client, cas_id)
        elif what < 0.5:
            sizes = [chance.randrange(1_000, 400_000) for _ in range(chance.randint(1, 3))]
            self._stored.put_module(client, entry, sizes)
        else:
            smallest, largest = (100, 20_000) if chance.random() < 0.7 else (300_000, self._large)
            size = chance.randrange(smallest, largest)
            self._stored.put(client, chance.choice(DIALECTS), entry, size, chunked=chance.random() < 0.3)

    def wait(self, seconds: float) -> bool:
        """Lets them go on for so long; answers whether they still do."""
        return not self._over.wait(seconds)

    def end(self) -> None:
        """Ends them. Raises what went wrong."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
