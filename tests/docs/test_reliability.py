"""The page of promises names tests that exist, and every campaign."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
NAMED = set(re.findall(r"`(tests/[^`]+\.py)`", PAGE))


def test_every_test_it_names_exists() -> None:
    assert NAMED
    assert [name for name in sorted(NAMED) if not (ROOT / name).is_file()] == []


def test_it_names_every_campaign() -> None:
    """A campaign without its promise is a test nobody can judge."""
    paths = (ROOT / "tests").rglob("test_*.py")
    campaigns = {
        str(path.relative_to(ROOT))
        for path in paths
        if re.search(r"\bcampaign: Campaign\b", path.read_text())
    }
    assert campaigns - NAMED == set()
