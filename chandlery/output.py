"""What commands print: tables for people, JSON for programs, one line for an error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

#: People read results on stdout; progress and remarks go to stderr, so that a pipe gets the result alone.
#: A pipe has no width, and a line broken at 80 columns is of no use to `grep`.
console = Console(width=None if sys.stdout.isatty() else 240)
notes = Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table; numbers stand to the right. Without headings, a list of names and values."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(headings))
    listed = [list(row) for row in rows]
    for at, heading in enumerate(headings):
        numeric = bool(listed) and all(isinstance(row[at], int | float) for row in listed)
        last = at == len(headings) - 1
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=not last, overflow="fold")
    for row in listed:
        table.add_row(*[_shown(cell) for cell in row])
    # Columns are filled up with spaces, the last one too; those are of no use at the end of a line.
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return str(cell)


def remark(text: str) -> None:
    """One line on stderr."""
    notes.print(text, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """An error, as one line on stderr."""
    line = " ".join(text.split())
    sys.stderr.write(f"chandlery: {line}\n")
