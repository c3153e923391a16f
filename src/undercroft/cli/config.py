"""`undercroft config`: what the settings are, where each comes from, and whether they are right."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer

from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, settings_of
from undercroft.cli.output import EXIT_UNUSABLE, failure, print_json, print_table, told
from undercroft.config import Settings, Source, environment_name, shown, sources, without_effect
from undercroft.errors import WrongSettingsError

app = typer.Typer(no_args_is_help=True, help="Show and check the settings. No node is needed.")


class Setting(msgspec.Struct, frozen=True):
    """One setting as it would be used; `value` is a secret's mask for a secret."""

    name: str
    value: str | None
    source: Source
    environment: str


@app.command()
def show(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show every setting, its value, and whether that is given by a flag, the environment or the file.

    A node that runs has the settings of its own start.
    """
    with told():
        settings = settings_of(data_dir, config)
        found = list(_every(settings, data_dir, config))
    if as_json:
        for one in found:
            print_json(one)
    else:
        print_table(("setting", "value", "from"), ((one.name, one.value or "", one.source) for one in found))


def _every(settings: Settings, data_dir: Path | None, config: Path | None) -> Iterator[Setting]:
    flags = {} if data_dir is None else {"data_dir": data_dir}
    for name, source in sources(flags, config).items():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        yield Setting(name, shown(value), source, environment_name(name))


@app.command()
def check(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the settings without starting anything. The status is 0 if they are right, else 2.

    Settings without effect are named, too; they are no error.
    """
    problems: list[str] = []
    in_vain: list[str] = []
    try:
        in_vain = without_effect(settings_of(data_dir, config))
    except WrongSettingsError as error:
        problems = error.problems
    if as_json:
        print_json({"problems": problems, "without_effect": in_vain})
    else:
        for name in in_vain:
            typer.echo(f"{name} has no effect with these settings")
    if problems and not as_json:
        raise failure("\n".join(problems))
    if problems:
        raise typer.Exit(EXIT_UNUSABLE)
    if not as_json:
        given = [name for name in os.environ if name.startswith("UNDERCROFT_")]
        typer.echo(f"the settings are right ({len(given)} from the environment)")
