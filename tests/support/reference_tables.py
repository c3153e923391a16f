"""The tables of docs/configuration.md and docs/metrics.md, made from the code."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from undercroft.config import environment_name, every_setting


def settings_table() -> str:
    """Every setting but the overrides per buffer: name, environment, default, meaning."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    rows += [_row(name, field) for name, field in every_setting() if not is_override(name)]
    return "\n".join(rows)


def is_override(name: str) -> bool:
    """Whether a setting only overrides a general one for a single buffer."""
    return name.startswith("buffers.") and name.count(".") == 2


def _row(name: str, field: FieldInfo) -> str:
    assert field.default is not PydanticUndefined
    default = "" if field.default is None else f"`{field.default}`"
    return f"| `{name}` | `{environment_name(name)}` | {default} | {field.description} |"


def metrics_table(text: str) -> str:
    """Every series of a scrape: name, type, labels, meaning."""
    rows = ["| series | type | labels | meaning |", "|---|---|---|---|"]
    for family in sorted(text_string_to_metric_families(text), key=lambda family: family.name):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = "sum" if family.type in ("unknown", "untyped") else family.type
        rows.append(f"| `{name}` | {shown} | {', '.join(labels)} | {family.documentation} |")
    return "\n".join(rows)


def snippets(path: Path, language: str) -> Iterator[str]:
    """The code blocks of a Markdown file in one language."""
    _, *blocks = path.read_text().split(f"```{language}\n")
    for block in blocks:
        yield block.split("```")[0]
