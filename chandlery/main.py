"""The command line: which commands there are, and what becomes of errors."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Any

import typer
from typer.core import TyperGroup

from chandlery.output import complain
from market.errors import BadInput, ChandleryError

#: Command -> where it is defined. Imported when called: ccxt alone takes a second to import.
COMMANDS = {
    "up": "chandlery.commands.up:up",
    "simulate": "chandlery.commands.simulate:simulate",
    "import": "chandlery.commands.files:import_file",
    "export": "chandlery.commands.files:export_file",
    "backfill": "chandlery.commands.backfill:backfill_series",
    "ingest": "chandlery.commands.ingest:ingest",
    "serve": "chandlery.commands.serve:serve",
    "archive": "chandlery.commands.archive:archive_series",
    "series": "chandlery.commands.series:list_series",
    "coverage": "chandlery.commands.series:show_coverage",
    "gaps": "chandlery.commands.series:show_gaps",
    "check": "chandlery.commands.check:check",
    "backtest": "chandlery.commands.backtest:backtest",
    "db": "chandlery.commands.db:app",
    "doctor": "chandlery.commands.doctor:doctor",
}

#: Exit codes: 0 done, 1 a finding or incomplete, 2 bad usage.
FINDING = 1
BAD_USAGE = 2


class _Commands(TyperGroup):
    """A group that imports a command when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name, no_args_is_help=False)(found)
        return typer.main.get_command(single)


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
        app(args=arguments)
    except BadInput as error:
        complain(str(error))
        sys.exit(BAD_USAGE)
    except ChandleryError as error:
        complain(str(error))
        sys.exit(FINDING)
    except KeyboardInterrupt:
        complain("stopped; what was committed stays")
        sys.exit(130)


if __name__ == "__main__":
    run()
