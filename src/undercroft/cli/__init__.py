"""The `undercroft` command, one file per command. Nothing else ends the process."""

import typer

import undercroft
from undercroft.cli import backup, check, config, doctor, inspect, serve, setup, token, transfers

# Pretty exceptions would draw boxes into a log, with the values of local variables in them.
app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.command(name="serve")(serve.serve)
app.command(name="check")(check.check)
app.command(name="backup")(backup.backup)
app.command(name="restore")(backup.restore)
app.command(name="doctor")(doctor.doctor)
app.command(name="inspect")(inspect.inspect)
app.command(name="setup")(setup.setup)
app.add_typer(config.app, name="config")
app.add_typer(token.app, name="token")
app.add_typer(transfers.app, name="transfers")


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
