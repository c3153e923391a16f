"""`python -m benchmarks [NAME...]`: run benchmarks, each in a process of its own, then write the README."""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import time

from benchmarks.report import write_readme

# What each needs from outside; a benchmark that lacks something is named and left out.
NEEDS: dict[str, tuple[str, ...]] = {
    "buffers": ("aiosqlite", "diskcache", "playhouse", "sqlalchemy"),
    "loop_stall": (),
    "http_servers": ("wrk",),
    "http_node": ("wrk",),
}


def missing(name: str) -> list[str]:
    """The programs and modules a benchmark lacks, itself included."""
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        return [f"benchmarks/{name}.py"]
    return [
        need for need in NEEDS[name] if shutil.which(need) is None and importlib.util.find_spec(need) is None
    ]


def run(name: str) -> bool:
    """Runs one benchmark and says how it went."""
    lacking = missing(name)
    if lacking:
        print(f"{name}: skipped, missing: {', '.join(lacking)}", flush=True)
        return False
    print(f"{name}: running", flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
    ended = "done" if code == 0 else f"failed with exit code {code}"
    print(f"{name}: {ended} after {time.monotonic() - started:.0f} s", flush=True)
    return code == 0


def main() -> None:
    """Exits with 1 if a benchmark failed or was left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NEEDS)}; all by default")
    names = parser.parse_args().names or list(NEEDS)
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NEEDS)}")
    results = [run(name) for name in names]
    print(f"written: {write_readme().name}")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
