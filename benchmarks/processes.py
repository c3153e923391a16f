"""What a server's processes have used: processor time and memory, all of them together."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """The process and everything it has started that still runs."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Processor time a process and its children have used so far, those that ended among them."""
    total = 0.0
    for process in tree(pid):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # its parent has inherited what it used
    return total


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children; what they share counts once (`Pss` of `smaps_rollup`)."""
    total = 0
    for process in tree(pid):
        try:
            total += int(_field(f"/proc/{process.pid}/smaps_rollup", "Pss")) << 10
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
    return total


def forget_peak(pid: int) -> None:
    """From here on `peak_bytes` looks at what comes (man 5 proc, `clear_refs`)."""
    for process in tree(pid):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most that was resident at once since `forget_peak`, summed over the processes."""
    return sum(int(_field(f"/proc/{process.pid}/status", "VmHWM")) << 10 for process in tree(pid))


def _field(path: str, name: str) -> str:
    found = re.search(rf"^{name}:\s+(\d+)", Path(path).read_text(), re.MULTILINE)
    if found is None:
        raise FileNotFoundError(path)  # a process that has just ended has an empty one
    return found.group(1)


@dataclass(frozen=True)
class Usage:
    """Processor time of a server from one moment to another."""

    pid: int
    before: float

    @classmethod
    def since_now(cls, pid: int) -> "Usage":
        """Starts to count."""
        return cls(pid, cpu_seconds(pid))

    def seconds(self) -> float:
        """Processor seconds used since."""
        return cpu_seconds(self.pid) - self.before


def cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
