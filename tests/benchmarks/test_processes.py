"""What a server has used is counted with its children."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.processes import Usage, cpu_seconds, forget_peak, peak_bytes, resident_bytes, tree

# A parent that only waits for a child that works, as a server's first process may.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""
WORK = "while True: pass"
HOLD = "import sys; held = bytearray(b'x') * (64 << 20); print(flush=True); sys.stdin.read()"


@pytest.fixture
def working() -> Iterator[int]:
    command = [sys.executable, "-c", PARENT, WORK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_a_child_belongs_to_the_tree_and_its_work_counts(working: int) -> None:
    assert len(tree(working)) == 2
    usage = Usage.since_now(working)
    while usage.seconds() < 0.1:  # ends, for the child works on
        pass
    assert cpu_seconds(working) >= usage.before + 0.1


def test_memory_is_what_is_resident() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 64 << 20 < resident_bytes(process.pid) < 128 << 20
        forget_peak(process.pid)
        assert 64 << 20 < peak_bytes(process.pid) < 128 << 20
        process.communicate()
