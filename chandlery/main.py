"""The command line: which commands there are, and what becomes of errors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import typer
from typer.core import TyperGroup

from chandlery.output import complain
from market.errors import BadInput, ChandleryError

#: Command -> where it is defined, and its summary. A command is imported when it is called, and none is for the
#: list of all: ccxt alone takes a second to import.
COMMANDS = {
    "up": ("chandlery.commands.up:up", "Fetch the last week, keep it current, archive it and serve it."),
    "simulate": ("chandlery.commands.simulate:simulate", "Run an exchange that speaks Binance's spot protocol."),
    "import": ("chandlery.commands.files:import_file", "Store the candles of a file, or restore an archive."),
    "export": ("chandlery.commands.files:export_file", "Write the candles of a series to a file."),
    "backfill": ("chandlery.commands.backfill:backfill_series", "Fetch what is unknown of some series."),
    "ingest": ("chandlery.commands.ingest:ingest", "Keep series current until Ctrl-C."),
    "status": ("chandlery.commands.status:status", "Show how live ingest fares."),
    "serve": ("chandlery.commands.serve:serve", "Answer HTTP requests over what a home holds."),
    "archive": ("chandlery.commands.archive:archive_series", "Write what changed into the Parquet archive."),
    "series": ("chandlery.commands.series:list_series", "List the stored series."),
    "coverage": ("chandlery.commands.series:show_coverage", "Show what is known of a series over time."),
    "gaps": ("chandlery.commands.series:show_gaps", "List what a backfill would fetch."),
    "check": ("chandlery.commands.check:check", "Prove what is stored, and say what is wrong or missing."),
    "backtest": ("chandlery.commands.backtest:backtest", "Run a strategy over archived candles."),
    "safety": ("chandlery.commands.safety:app", "Show or switch what may be written."),
    "db": ("chandlery.commands.db:app", "Upgrade the database, or show its state."),
    "doctor": ("chandlery.commands.doctor:doctor", "Look at versions, settings, disk, stores and an exchange."),
}

#: Exit codes: 0 done, 1 a finding or incomplete, 2 bad usage.
FINDING = 1
BAD_USAGE = 2
#: What a shell gives for a command that Ctrl-C ended.
STOPPED = 130


class _Commands(TyperGroup):
    """A group that imports a command when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the summary; enough for the list of all commands."""
        del ctx
        return _single(cmd_name, lambda: None, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, to be run."""
        if args and args[0] in COMMANDS:
            return args[0], loaded(args[0]), args[1:]
        return super().resolve_command(ctx, args)


def _single(name: str, function: Callable[..., None], **described: Any) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, **described)(function)
    return typer.main.get_command(single)


def loaded(name: str) -> Any:
    """The command called `name`, imported."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return typer.main.get_command(found) if isinstance(found, typer.Typer) else _single(name, found)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Candles of crypto exchanges, kept for good and provably complete.",
    epilog="Exit codes: 0 done, 1 a finding or something still missing, 2 bad usage.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"chandlery {version('chandlery')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    del show_version


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        # What is wrong with the command line itself is one line too, and an interrupted command says so.
        code = app(args=arguments, standalone_mode=False)
    except typer.TyperException as error:
        # Empty where a group without a command has shown its help instead.
        if message := error.format_message().strip():
            complain(message)
        sys.exit(error.exit_code)
    except BadInput as error:
        complain(str(error))
        sys.exit(BAD_USAGE)
    except ChandleryError as error:
        complain(str(error))
        sys.exit(FINDING)
    if code == STOPPED:
        complain("stopped; what was committed stays")
    sys.exit(code)


if __name__ == "__main__":
    run()
