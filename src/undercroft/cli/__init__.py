"""The `undercroft` command, one file per command. Nothing else ends the process."""

import typer

import undercroft
from undercroft.cli import (
    backup,
    check,
    config,
    doctor,
    evict,
    inspect,
    purge,
    scrub,
    serve,
    setup,
    status,
    token,
    transfers,
)

# Pretty exceptions would draw boxes into a log, with the values of local variables in them.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)

RUN, LOOK, CARE = "Run a node", "Look at it", "Take care of its data"

app.command(name="serve", rich_help_panel=RUN)(serve.serve)
app.add_typer(config.app, name="config", rich_help_panel=RUN)
app.add_typer(token.app, name="token", rich_help_panel=RUN)
app.command(name="setup", rich_help_panel=RUN)(setup.setup)
app.command(name="status", rich_help_panel=LOOK)(status.status)
app.command(name="doctor", rich_help_panel=LOOK)(doctor.doctor)
app.command(name="inspect", rich_help_panel=LOOK)(inspect.inspect)
app.add_typer(transfers.app, name="transfers", rich_help_panel=LOOK)
app.command(name="check", rich_help_panel=CARE)(check.check)
app.command(name="scrub", rich_help_panel=CARE)(scrub.scrub)
app.command(name="evict", rich_help_panel=CARE)(evict.evict)
app.command(name="purge", rich_help_panel=CARE)(purge.purge)
app.command(name="backup", rich_help_panel=CARE)(backup.backup)
app.command(name="restore", rich_help_panel=CARE)(backup.restore)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"undercroft {undercroft.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Undercroft: a build cache node for Tuist, Gradle, Bazel, ccache, sccache, Turborepo and Nx."""
    del version


def main() -> None:
    """The entry point of the command."""
    app()
