"""Fuzzes parsers guided by coverage (libFuzzer, through Atheris), each in a process of its own.

    python -m tests.fuzz --runs 100000 --seed 7 --folder /tmp/fuzz [TARGET ...]

One line of JSON for each target says how it went. `--folder` gets a folder for each target: its corpus, its
log, and what broke it (`crash-...`, `timeout-...`, `oom-...`). The same seed on the same
inputs tries the same.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import atheris

# Before anything of the node is imported: from now on its branches are counted.
with atheris.instrument_imports(include=["undercroft", "tomllib"]):
    from tests.fuzz.every_target import TARGETS
    from tests.fuzz.target import Target

# No input within the bounds of a target takes a hundredth of it; a machine may be busy.
TIMEOUT_S = 10

# What Python and the node themselves take is some 100 MiB.
MEMORY_MIB = 600


def main() -> None:
    """Fuzzes the targets one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    for target in TARGETS:
        if not options.targets or target.name in options.targets:
            folder = options.folder / target.name
            (folder / "corpus").mkdir(parents=True)
            for number, seed in enumerate(target.seeds):
                (folder / "corpus" / str(number)).write_bytes(seed)
            status = _in_a_process(target, folder, options.runs, options.seed)
            print(json.dumps(_outcome(target, folder, status)), flush=True)  # noqa: T201  # what it is for


def _in_a_process(target: Target, folder: Path, runs: int, seed: int) -> int:
    """Forks, which is a second faster than to import everything anew; the exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # libFuzzer ends the process without Python's tidying up: what is temporary goes with the folder.
    tempfile.tempdir = str(folder)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    arguments = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={target.longest}",
        f"-timeout={TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        str(folder / "corpus"),
    ]
    atheris.Setup([sys.argv[0], *arguments], target.check)
    atheris.Fuzz()  # ends the process
    raise AssertionError


def _outcome(target: Target, folder: Path, status: int) -> dict[str, object]:
    log = (folder / "log").read_text(errors="replace")
    figures = {name: int(value) for name, value in re.findall(r"stat::(\w+): +(\d+)", log)}
    return {
        "target": target.name,
        "status": status,
        "inputs": figures.get("number_of_executed_units", 0),
        "peak_mib": figures.get("peak_rss_mb", 0),
        "kept": len(list((folder / "corpus").iterdir())),
        "broke": [
            str(path) for kind in ("crash", "timeout", "oom", "leak") for path in folder.glob(f"{kind}-*")
        ],
    }


if __name__ == "__main__":
    main()
