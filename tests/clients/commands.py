"""Runs a tool with a time limit, so that a tool which hangs never hangs the tests."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Output:
    """What a command that succeeded wrote."""

    stdout: str
    stderr: str


class CommandError(Exception):
    """A command ended with an error or had to be ended; says what it wrote."""


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str], limit: float) -> Output:
    """Run `argv` for at most `limit` seconds; raise `CommandError` unless it ends with 0."""
    # Files, not pipes: a daemon that inherits a pipe would keep its reader waiting for ever.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        with subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        ) as process:
            ending = _ending(process, limit)
        output = Output(_text(stdout), _text(stderr))
    if ending:
        raise CommandError(f"{' '.join(argv)} {ending}\n{output.stdout}\n{output.stderr}")
    return output


def _ending(process: subprocess.Popen[bytes], limit: float) -> str:
    """Wait for the end; empty when the command succeeded."""
    try:
        code = process.wait(limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return f"did not end within {limit} s"
    return f"ended with {code}" if code else ""


def _text(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()
