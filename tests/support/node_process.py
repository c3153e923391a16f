"""A real node in a process of its own, on a free loopback port."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 60


class NodeProcess:
    """`undercroft serve`, with its log read line by line."""

    def __init__(
        self,
        data_dir: Path,
        settings: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        arguments: Sequence[str] = (),
        program: Sequence[str] = ("-m", "undercroft"),
        wrapper: Sequence[str] = (),
    ) -> None:
        """`settings` by their name in the environment; `arguments` go after the usual ones.

        `program` is what Python runs; `wrapper` a command that runs Python.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UNDERCROFT_")}
        environment |= {f"UNDERCROFT_{name}": value for name, value in (settings or {}).items()}
        environment["UNDERCROFT_LOG__FORMAT"] = "json"
        usual = ("serve", "--data-dir", str(data_dir), "--port", str(port))
        self.data_dir = data_dir
        self._started = time.monotonic()
        self.ready_s = 0.0
        """Seconds it took to listen."""
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, *program, *usual, *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self.printed: list[str] = []
        """Lines on standard error that are no log records."""
        self._news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        self.url = ""
        self._signalled = self._silent = 0.0

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                self.printed.append(line.rstrip("\n"))
            else:
                self.log.append(record)
                self._news.put(record)
        self._silent = time.monotonic()
        self._news.put(None)

    def wait_for(self, event: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """The next log record of that name; fails if the process ends or stays silent before."""
        while (record := self._news.get(timeout=timeout_s)) is not None:
            if record["event"] == event:
                return record
        self._news.put(None)
        raise AssertionError(f"the node ended before it logged {event!r}: {self.printed} {self.log[-3:]}")

    def wait_until_ready(self) -> "NodeProcess":
        """Returns when the node listens, with `url` set."""
        self.url = self.wait_for("listening")["url"]
        self.ready_s = time.monotonic() - self._started
        return self

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The records of that name so far."""
        return [record for record in self.log if record["event"] == event]

    def signal(self, number: signal.Signals) -> None:
        self._signalled = time.monotonic()
        self.process.send_signal(number)

    def stop_reading(self) -> None:
        """Closes the end of the pipe at which its log arrives. What it writes after the next line breaks."""
        assert self.process.stderr is not None
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), self.process.stderr.fileno())

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit status, once the process has ended and its log is read to the end."""
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    @property
    def stop_s(self) -> float:
        """Seconds from the last signal to the end of the log, which is the end of all its processes.

        After `wait`, which may have been called long after that.
        """
        return self._silent - self._signalled

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, whatever state it is in. Idempotent."""
        self.process.kill()
        self.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def node_process(
    data_dir: Path,
    settings: Mapping[str, str] | None = None,
    *,
    port: int = 0,
    arguments: Sequence[str] = (),
    program: Sequence[str] = ("-m", "undercroft"),
    wrapper: Sequence[str] = (),
) -> Iterator[NodeProcess]:
    """A node that listens; it is killed on leaving if it still runs."""
    node = NodeProcess(data_dir, settings, port=port, arguments=arguments, program=program, wrapper=wrapper)
    try:
        yield node.wait_until_ready()
    finally:
        node.kill()
