"""The table in `docs/clients.md`: which tools were driven, and what that took."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"

_TABLE = re.compile(r"^\| tool \|.*?\n(?!\|)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One tool: what two builds of the same project took, and what the second found."""

    name: str
    version: str
    cold_seconds: float
    warm_seconds: float
    hits: int
    cacheable: int


def write_table(rows: Iterable[Row]) -> None:
    """Replace the rows of the page by these."""
    text = PAGE.read_text()
    if not _TABLE.search(text):
        raise ValueError(f"no table in {PAGE}")
    PAGE.write_text(_TABLE.sub(lambda _: "".join(f"{line}\n" for line in _lines(rows)), text))


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    yield "| tool | version | cold build | warm build | from the node |"
    yield "|---|---|---|---|---|"
    for row in rows:
        seconds = f"{row.cold_seconds:.1f} s | {row.warm_seconds:.1f} s"
        yield f"| {row.name} | {row.version} | {seconds} | {row.hits} of {row.cacheable} |"
