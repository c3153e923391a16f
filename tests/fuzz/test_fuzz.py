"""Parsers get what libFuzzer makes of their seeds, and keep their promises in bounded time and memory."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.every_target import TARGETS
from tests.support.campaign import Campaign

from .test_targets import FOUND

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    find_spec("atheris") is None and sys.platform + os.uname().machine != "linuxx86_64",
    reason="there is no Atheris for this system",
)
def test_parsers(campaign: Campaign, tmp_path: Path) -> None:
    runs, seed = campaign.planned(1_000, 20_000), campaign.random.randrange(1, 1 << 31)
    command = [sys.executable, "-m", "tests.fuzz", f"--runs={runs}", f"--seed={seed}", f"--folder={tmp_path}"]
    # Else the order of sets, and so what is tried, would differ from run to run of the same seed.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert [outcome["target"] for outcome in outcomes] == [target.name for target in TARGETS]
    for outcome in outcomes:
        campaign.ran()
        campaign.checked("inputs", outcome["inputs"])
        campaign.checked("inputs kept for what they reached", outcome["kept"])
    broken = [_kept_for_good(outcome, tmp_path) for outcome in outcomes if outcome["status"]]
    assert not broken, "\n".join(broken)
    # Each was tried as often as it was to be.
    assert min(outcome["inputs"] for outcome in outcomes) >= runs
    shutil.rmtree(tmp_path)


def _kept_for_good(outcome: dict[str, Any], folder: Path) -> str:
    """What broke the promise goes where `test_targets.py` tries it from now on; says what it was."""
    place = FOUND / outcome["target"]
    place.mkdir(parents=True, exist_ok=True)
    kept = [shutil.copy(path, place) for path in outcome["broke"]]
    log = (folder / outcome["target"] / "log").read_text(errors="replace")
    return f"{outcome['target']} with {kept}:\n{log[-3_000:]}"
