"""What every test gets: hypothesis profiles, campaigns, and no buffer that outlives its test."""

import os
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.campaign import Campaign
from tests.support.s3_endpoint import _s3_process, s3_endpoint
from tests.support.small_volume import occupied
from undercroft.buffers import SQLiteBuffer

__all__ = ["_s3_process", "s3_endpoint"]

# A run may take some gigabytes until it ends.
EVICTS_PERCENT = 85

# Of a round in the long form, or of a test without rounds: far more than any takes, so what is ended hangs.
LONGEST_S = 3_600


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of campaigns (`tests/support/campaign.py`)."""
    group = parser.getgroup("campaigns")
    group.addoption("--torture", action="store_true", help="run campaigns in their long form")
    group.addoption("--rounds", type=int, help="run each campaign for so many rounds")
    group.addoption("--seed", help="repeat the choices of an earlier run")


class ByFileOrTool(LoadScopeScheduling):  # type: ignore[misc]  # it comes without types
    """Of several processes (`-n`) one runs all tests of a file, or of a build tool, that share fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, name = nodeid.partition("::")
        tool = re.search(r"\[(\w+)", name)
        return tool[1] if file.startswith("tests/clients/") and tool else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFileOrTool:
    """Asked by pytest-xdist."""
    return ByFileOrTool(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks campaigns, and gives the long form the time it takes."""
    for item in items:
        is_campaign = "campaign" in getattr(item, "fixturenames", ())
        if is_campaign:
            item.add_marker(pytest.mark.campaign)
        if config.getoption("--torture") or (is_campaign and config.getoption("--rounds")):
            item.add_marker(pytest.mark.timeout(LONGEST_S))


def another_round() -> None:
    """The limit above is for each round: pytest-timeout's alarm, if it is set, starts again."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """Choices, rounds and counts of one campaign; shown with a failure and in the summary."""
    option = request.config.getoption
    explores = option("--torture") or option("--rounds")
    # The short form plans the same for every run of one state: it answers for a change, not for luck.
    seed = option("--seed") or (str(random.SystemRandom().randrange(1 << 32)) if explores else "1")
    found = Campaign(request.node.name, seed, torture=option("--torture"), rounds=option("--rounds"))
    if explores:
        found.after_a_round = another_round
    print(f"repeat with --seed {seed}")  # noqa: T201  # pytest shows it with a failure
    yield found
    # The way to the summary, which may be another process's.
    request.node.user_properties.append(("campaign", str(found)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what each campaign has tried and checked, and whether nodes evicted because the disk is full."""
    full = occupied(Path(tempfile.gettempdir()))
    if full >= EVICTS_PERCENT:
        terminalreporter.section("full disk")
        line = f"{tempfile.gettempdir()} is {full:.0f} % full: from 90 % on nodes evict, and tests miss it"
        terminalreporter.write_line(line)
    reports = [report for some in terminalreporter.stats.values() for report in some]
    ended = [report for report in reports if getattr(report, "when", "") == "teardown"]
    lines = [text for report in ended for name, text in report.user_properties if name == "campaign"]
    if lines:
        terminalreporter.section("campaigns")
        for line in lines:
            terminalreporter.write_line(line)


settings.register_profile(
    "quick",
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    # As with campaigns: new examples are looked for by the long profile.
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long",
    parent=settings.get_profile("quick"),
    derandomize=False,
    max_examples=1_000,
    stateful_step_count=60,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def _reset_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Resets every buffer a test has opened: neither a row nor a timer reaches the next test."""
    opened: list[SQLiteBuffer[Any, Any]] = []
    really_open = SQLiteBuffer.open

    async def open_and_remember(buffer: SQLiteBuffer[Any, Any]) -> None:
        opened.append(buffer)
        await really_open(buffer)

    monkeypatch.setattr(SQLiteBuffer, "open", open_and_remember)
    yield
    for buffer in opened:
        buffer.reset()
