"""``db``: the database's schema."""

from __future__ import annotations

import typer

from chandlery.options import AsJson, Home, load, run
from chandlery.output import print_json, print_table, remark
from chandlery.settings import Settings
from chandlery.wiring import opened_store, upgraded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The database: its schema version, and upgrading it.",
)


@app.command()
def upgrade(home: Home = None, as_json: AsJson = False) -> None:
    """Make the database, or bring it to this release's schema. Safe to run from several processes at once."""
    applied, version = run(upgraded(load(home)))
    if as_json:
        print_json({"applied": applied, "version": version})
    else:
        remark(f"schema version {version}; applied {', '.join(map(str, applied)) or 'nothing'}")


@app.command()
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Show schema version, size and content of the database."""
    facts = run(_facts(load(home)))
    if as_json:
        print_json(facts)
    else:
        print_table(["", ""], facts.items())


async def _facts(settings: Settings) -> dict[str, object]:
    async with opened_store(settings, read_only=True) as store:
        series = await store.series()
        size, free = await store.size()
        return {
            "database": store.location,
            "schema_version": await store.schema_version(),
            "series": len(series),
            "candles": sum(one.rows for one in series),
            "bytes": size,
            "free_bytes": free,
        }
