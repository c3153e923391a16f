"""SIGKILL at the one moment at which a file has its name and nobody knows its row."""

import hashlib
import http.client
import signal
from pathlib import Path

import pytest

from tests.support import crashing_node
from tests.support.folders import files_under
from tests.support.node_process import node_process
from tests.system.client import TENANT, Client
from tests.system.data_dir import stored_artifacts

DIGEST = hashlib.sha256(b"an action").hexdigest()
OLD, NEW = b"what was there", b"what takes its place, and is longer"

REPLACED = {
    "ccache": "/ccache/acme/app/abcdef",
    "bazel_ac": f"/bazel/acme/app/ac/{DIGEST}",
}


@pytest.mark.parametrize("path", REPLACED.values(), ids=REPLACED)
def test_a_replacement_is_there_whole(data_dir: Path, path: str) -> None:
    with node_process(data_dir, program=("-P", crashing_node.__file__, "name:over")) as node:
        with Client(node.url) as client:
            assert client.request("PUT", path, OLD).status in (200, 201, 202)
            node.signal(signal.SIGUSR1)
            node.wait_for("struck")
            with pytest.raises((http.client.HTTPException, OSError)):
                client.request("PUT", path, NEW)
        assert node.wait() == -signal.SIGKILL
    before = list(stored_artifacts(data_dir).values())
    with node_process(data_dir) as node:
        with Client(node.url) as client:
            assert client.get_bytes(path) == NEW
            assert client.get_bytes(path) == NEW
        assert node.stop() == 0
    assert files_under(data_dir / "quarantine") == []
    ((size, digest),) = stored_artifacts(data_dir).values()
    assert before == [(len(OLD), hashlib.sha256(OLD).hexdigest())]
    assert (size, digest) == (len(NEW), hashlib.sha256(NEW).hexdigest())


def test_what_was_stored_for_the_first_time_is_there_whole(data_dir: Path) -> None:
    path = f"/api/cache/cas/abcdef?{TENANT}"
    with node_process(data_dir, program=("-P", crashing_node.__file__, "name:new")) as node:
        node.signal(signal.SIGUSR1)
        node.wait_for("struck")
        with Client(node.url) as client, pytest.raises((http.client.HTTPException, OSError)):
            client.request("POST", path, NEW)
        assert node.wait() == -signal.SIGKILL
    assert stored_artifacts(data_dir) == {}
    with node_process(data_dir) as node:
        with Client(node.url) as client:
            assert client.get_bytes(path) == NEW
        assert node.stop() == 0
    assert list(stored_artifacts(data_dir).values()) == [(len(NEW), hashlib.sha256(NEW).hexdigest())]
