"""`python -m benchmarks [NAME...]`: run benchmarks, each in a process of its own, then write the page."""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time

from benchmarks.page import write_page
from benchmarks.report import commit, results_folder
from benchmarks.servers import TURBOREPO_PEER

# What each needs from outside; a benchmark that lacks something is named and left out.
NEEDS: dict[str, tuple[str, ...]] = {
    "mixed": ("nginx", "wrk"),
    "uploads": ("nginx",),
    "connections": ("wrk", "nginx"),
    "turborepo": ("node", "nginx", str(TURBOREPO_PEER)),
    "http_node": ("wrk", "nginx"),
    "artifacts": (),
    "growth": (),
    "start": (),
    "memory": (),
    "buffers": ("aiosqlite", "diskcache", "playhouse", "sqlalchemy"),
    "loop_stall": (),
    "http_servers": ("wrk",),
}


def missing(name: str) -> list[str]:
    """The programs and modules a benchmark lacks, itself included."""
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        return [f"benchmarks/{name}.py"]
    return [
        need
        for need in NEEDS[name]
        if shutil.which(need) is None and ("/" in need or importlib.util.find_spec(need) is None)
    ]


def run(name: str, arguments: list[str]) -> bool:
    """Runs one benchmark and says how it went."""
    lacking = missing(name)
    if lacking:
        print(f"{name}: skipped, missing: {', '.join(lacking)}", flush=True)
        return False
    print(f"{name}: running", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    code = subprocess.run(command, check=False).returncode
    ended = "done" if code == 0 else f"failed with exit code {code}"
    print(f"{name}: {ended} after {time.monotonic() - started:.0f} s", flush=True)
    return code == 0


def done_already(name: str) -> bool:
    """Whether there is a result of this very code; of code that has been changed nobody knows."""
    path = results_folder() / f"{name}.json"
    now = commit()
    return (
        path.exists()
        and now != ""
        and not now.endswith("+")
        and json.loads(path.read_text()).get("commit") == now
    )


def main() -> None:
    """Exits with 1 if a benchmark failed or was left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NEEDS)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="see that they run; results go to .benchmark-quick"
    )
    parser.add_argument("--resume", action="store_true", help="leave out those with a result of this commit")
    given = parser.parse_args()
    names = given.names or list(NEEDS)
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NEEDS)}")
    if given.resume:
        names = [name for name in names if not done_already(name)]
    started = time.monotonic()
    results = [run(name, ["--quick"] if given.quick else []) for name in names]
    print(f"written: {write_page(quick=given.quick)}; {time.monotonic() - started:.0f} s in all")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
