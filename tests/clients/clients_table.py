"""The table in `docs/clients.md`: which tools were driven, and what that took."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"

_ROWS = re.compile(r"(?<=^\|---\|---\|---\|---\|---\|\n)(?:\|.*\n)*", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One tool: what two builds of the same project took, and what the second found."""

    name: str
    version: str
    cold_seconds: float
    warm_seconds: float
    hits: int
    cacheable: int

    def __str__(self) -> str:
        seconds = f"{self.cold_seconds:.1f} s | {self.warm_seconds:.1f} s"
        return f"| {self.name} | {self.version} | {seconds} | {self.hits} of {self.cacheable} |"


def write_table(rows: Iterable[Row]) -> None:
    """Put these rows into the page; those of tools that were not driven stay."""
    text = PAGE.read_text()
    (old,) = _ROWS.findall(text)
    lines = {line.split("|")[1].strip(): line for line in old.splitlines()}
    lines |= {row.name: str(row) for row in rows}
    new = "".join(f"{lines[name]}\n" for name in sorted(lines))
    PAGE.write_text(_ROWS.sub(lambda _: new, text))
