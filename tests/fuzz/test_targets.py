"""Every target with the inputs it begins with, and with those that once broke it."""

from pathlib import Path

import pytest

from tests.fuzz.every_target import TARGETS
from tests.fuzz.target import Target

FOUND = Path(__file__).parent / "found"
"""Inputs that broke a promise, in a folder for each target. They stay: what was mended stays mended."""

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@every_target
def test_seeds(target: Target) -> None:
    assert target.seeds
    for seed in target.seeds:
        target.check(seed)
        target.check(seed[: len(seed) // 2])


@every_target
def test_what_was_found(target: Target) -> None:
    for file in sorted((FOUND / target.name).glob("*")):
        target.check(file.read_bytes())


def test_every_input_has_a_target() -> None:
    assert {folder.name for folder in FOUND.glob("*")} <= {target.name for target in TARGETS}
    assert len({target.name for target in TARGETS}) == len(TARGETS)
