"""`undercroft scrub`: reads every artifact and compares it with what it must be, now and at full speed."""

import typer

from undercroft.cli.data_directory import with_data
from undercroft.cli.node_database import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    database_path,
    existing,
    settings_of,
)
from undercroft.cli.output import print_json, print_table, progress, told
from undercroft.database.backup import artifact_count
from undercroft.database.schema import NODE
from undercroft.node import Node
from undercroft.telemetry import events
from undercroft.workers.reconcile import Reconcile

EXIT_DAMAGED = 1
"""Something was damaged, or could not be looked at."""

# No disk is faster.
NO_LIMIT = {"files_per_second": 1_000_000_000, "bytes_per_second": 1 << 50}


def scrub(data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Read every artifact and compare it with its digest; mend what disagrees.

    The node may be running or stopped. It does the same by itself, slowly (reconcile.*); this is for after a
    power cut or a failing disk. What is damaged is put into quarantine/, and fetched again by the node if the
    object store has it. The status is 0 if nothing was damaged, 1 if something was or could not be looked at.
    """
    found: dict[str, float] = {}
    with told():
        settings = settings_of(data_dir, config)
        faster = settings.reconcile.model_copy(update=NO_LIMIT)
        settings = settings.model_copy(update={"reconcile": faster})
        total = artifact_count(existing(database_path(settings, NODE)))

        async def act(node: Node) -> None:
            reconcile = node.background.reconcile
            with progress("scrubbing", total) as tell:
                node.telemetry.attach(events.RECONCILED, lambda *_: tell(_rows_of(reconcile)))
                complete = await reconcile.run_once()
            if reconcile.round is not None:
                found.update(reconcile.round.figures(), complete=complete)

        with_data(settings, act)
    if as_json:
        print_json(found)
    else:
        print_table(("found", "number"), ((TEXTS[name], f"{found[name]:,.0f}") for name in TEXTS))
    if found["damaged"] or found["errors"] or not found["complete"]:
        raise typer.Exit(EXIT_DAMAGED)


def _rows_of(reconcile: Reconcile) -> int:
    return 0 if reconcile.round is None else reconcile.round.rows


TEXTS = {
    "agree": "artifacts that are whole",
    "damaged": "damaged ones, put into quarantine",
    "rows_mended": "rows that were not of their file, made anew",
    "rows_without_file": "rows whose file is gone, removed",
    "adopted": "files without a row that are whole, taken in",
    "removed": "files without a row that nobody vouches for, removed",
    "foreign": "files that are not the node's, left alone",
    "left": "files that another process may be about to take in, left for it",
    "errors": "failures",
}
