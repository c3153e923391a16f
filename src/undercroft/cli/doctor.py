"""`undercroft doctor`: looks at everything a node needs and says what to do about what is wrong."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from undercroft.cli import examinations
from undercroft.cli.examinations import Finding, problem
from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, settings_of
from undercroft.cli.output import print_json, print_table
from undercroft.config import Settings
from undercroft.errors import WrongSettingsError

EXIT_TROUBLE = 1
"""Something would keep the node from working."""

SIGNS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}

EXAMINATIONS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    examinations.of_settings,
    examinations.of_data_directory,
    examinations.of_room,
    examinations.of_databases,
    examinations.of_leftovers,
    examinations.of_clock,
    examinations.of_address,
    examinations.of_limits,
)


def doctor(
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    no_bucket: Annotated[bool, typer.Option("--no-bucket", help="Do not ask the object store")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at settings, disk, permissions, clock, object store and address, and say what to do.

    For a node that runs, or before its first start; nothing is changed but a file of a moment in the data
    directory. The status is 0 if a node would work, with or without warnings, else 1.
    """
    findings: list[Finding] = []
    try:
        settings = settings_of(data_dir, config)
    except WrongSettingsError as error:
        findings = [
            problem("settings", one, "mend it: Configuration in the documentation has them all")
            for one in error.problems
        ]
    else:
        for examine in EXAMINATIONS:
            findings += examine(settings)
        if not no_bucket:
            findings += asyncio.run(examinations.of_object_store(settings))
    if as_json:
        for finding in findings:
            print_json(finding)
    else:
        headings = ("", "what", "found", "what to do")
        print_table(headings, ((SIGNS[one.state], one.what, one.found, one.advice) for one in findings))
    if any(one.state == "problem" for one in findings):
        raise typer.Exit(EXIT_TROUBLE)
