"""``safety``: what may be written, and how fresh cached values must be, for all processes of a database."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import typer

from chandlery.options import AsJson, Home, load, run
from chandlery.output import print_json, print_table
from chandlery.settings import Settings
from chandlery.wiring import opened_store
from market.clock import iso
from market.errors import BadInput
from store.control import Control, OperatingState, SafetyState

_State = TypeVar("_State", SafetyState, OperatingState)

app = typer.Typer(
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, home: Home = None, as_json: AsJson = False) -> None:
    """Show or switch what may be written, for all processes of a database.

    normal and warning: everything may be written. fail: nothing is written to database and cache; what is there is
    served. lockdown: nor is anything cached. Processes that fetch keep what they get in their journals meanwhile.
    """
    if context.invoked_subcommand is not None:
        # What stands before the word `set` holds for it, too.
        context.obj = home, as_json
    else:
        _tell(run(_read(load(home))), as_json)


@app.command("set")
def switch(
    context: typer.Context,
    safety: Annotated[
        str | None, typer.Argument(help="normal, warning, fail or lockdown.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; everybody who is refused is told.")] = "",
    operating: Annotated[
        str | None,
        typer.Option("--operating", help="How fresh cached values must be: aggressive, balanced or defensive."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Switch the safety state, how fresh cached values must be, or both.

    When this has ended with fail or lockdown, no process writes any more. Exit code 1 where a write that began
    before has not ended yet. Without --reason, --operating alone leaves the reason as it is.
    """
    home_before, json_before = context.obj
    if safety is None and operating is None:
        raise BadInput("state", "", f"one of: {_values(SafetyState)}; or --operating")
    wanted = None if safety is None else _parsed(SafetyState, "state", safety)
    freshness = None if operating is None else _parsed(OperatingState, "--operating", operating)
    _tell(run(_switched(load(home or home_before), wanted, freshness, reason)), as_json or json_before)


def record(control: Control) -> dict[str, Any]:
    """Both states as scripts read them."""
    return {
        "safety": control.safety.value,
        "operating": control.operating.value,
        "reason": control.reason,
        "changed_at": None if control.changed_at is None else iso(control.changed_at),
    }


def _tell(control: Control, as_json: bool) -> None:
    if as_json:
        print_json(record(control))
    else:
        print_table(["", ""], [(name, value or None) for name, value in record(control).items()])


async def _read(settings: Settings) -> Control:
    async with opened_store(settings, read_only=True) as store:
        return await store.control()


async def _switched(
    settings: Settings, safety: SafetyState | None, operating: OperatingState | None, reason: str
) -> Control:
    async with opened_store(settings) as store:
        return await store.set_control(safety=safety, operating=operating, reason=reason)


def _parsed(states: type[_State], field: str, text: str) -> _State:
    try:
        return states(text)
    except ValueError as error:
        raise BadInput(field, text, f"one of: {_values(states)}") from error


def _values(states: type[SafetyState] | type[OperatingState]) -> str:
    return ", ".join(one.value for one in states)
