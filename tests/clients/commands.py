"""Runs a tool with a time limit, so that a tool which hangs never hangs the tests."""

import os
import signal
import subprocess
import tempfile
import time
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


@dataclass(frozen=True)
class Attempt:
    """What a command that ended, in whatever way, left."""

    code: int
    output: Output
    seconds: float


def run(argv: Sequence[str], cwd: Path, env: Mapping[str, str], limit: float) -> Output:
    """Run `argv` for at most `limit` seconds; raise `CommandError` unless it ends with 0."""
    attempt = try_to_run(argv, cwd, env, limit)
    if attempt.code:
        raise CommandError(_report(argv, f"ended with {attempt.code}", attempt.output))
    return attempt.output


def try_to_run(argv: Sequence[str], cwd: Path, env: Mapping[str, str], limit: float) -> Attempt:
    """Run `argv`, which may fail; raise `CommandError` when it does not end within `limit` seconds."""
    began = time.monotonic()
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
            code = _code(process, limit)
        output = Output(_text(stdout), _text(stderr))
    if code is None:
        raise CommandError(_report(argv, f"did not end within {limit} s", output))
    return Attempt(code, output, time.monotonic() - began)


def _report(argv: Sequence[str], ending: str, output: Output) -> str:
    return f"{' '.join(argv)} {ending}\n{output.stdout}\n{output.stderr}"


def _code(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """Wait for the end; None when the command had to be ended."""
    try:
        return process.wait(limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None


def _text(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()
