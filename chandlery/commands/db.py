"""``db``: the database's schema, its state, and keeping it in order."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chandlery.options import AsJson, Home, instant, load, run
from chandlery.output import print_json, print_table, remark
from chandlery.settings import Settings
from chandlery.upkeep import maintained, postgres_status
from chandlery.wiring import opened_store, upgraded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The database: its schema version, upgrading it, keeping it in order.",
)
#: The parts of a status that are tables of their own.
_TABLES = ("hypertables", "jobs", "due", "partitions", "drops")


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
    """Show schema version, size and content of the database; of PostgreSQL also chunks, jobs and partitions."""
    facts = run(_facts(load(home)))
    if as_json:
        print_json(facts)
        return
    print_table(["", ""], [(key, value) for key, value in facts.items() if key not in _TABLES])
    for name in _TABLES:
        if rows := facts.get(name):
            typer.echo(f"\n{name}")
            print_table(list(rows[0]), [list(row.values()) for row in rows])


@app.command()
def maintain(
    drop_before: Annotated[
        str | None,
        typer.Option(
            "--drop-before", help="Also drop candles that are older, once the archive is proven to have them."
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Do what is due: partitions, aggregates, compression. Safe at any time, from several processes at once.

    With --drop-before a month (2023-01-01) candles that open before it leave the database, if each of them is in
    the archive and in the aggregates; else nothing is dropped, what forbids it is listed, and the exit code is 1.
    Readers then take them from the archive. Exit code 1 also where somebody held something for too long.
    """
    report = run(maintained(load(home), instant(drop_before, "--drop-before")))
    if as_json:
        print_json(report or {})
    elif report is None:
        remark("an SQLite file needs no maintenance")
    else:
        _tell(report)
    if report is not None and (report["busy"] or report.get("dropped", {}).get("obstacles")):
        raise typer.Exit(1)


def _tell(report: dict[str, Any]) -> None:
    for line in report["settings"]:
        remark(line)
    made = [f"{count} partitions ({table})" for table, count in report["partitions"].items()]
    refreshed = [f"{one['start'][:10]} to {one['end'][:10]}" for one in report["refreshed"]]
    for what, found in (("made", made), ("refreshed the aggregates of", refreshed)):
        if found:
            remark(f"{what} {', '.join(found)}")
    for what in ("compressed", "dropped_partitions"):
        if report[what]:
            remark(f"{what.replace('_', ' ')}: {report[what]}")
    for line in report["busy"]:
        remark(f"left to the next run: {line}")
    dropped = report.get("dropped")
    if dropped is None:
        remark(f"{report['database']} is in order" if not report["busy"] else f"{report['database']}: not all done")
    elif dropped["obstacles"]:
        keys = ["series", "kind", "start", "end", "detail"]
        print_table(keys, [[one[key] for key in keys] for one in dropped["obstacles"]])
        remark(f"nothing was dropped: {len(dropped['obstacles'])} obstacles")
    else:
        remark(
            f"dropped {dropped['candles']:,} candles of {dropped['series']} series before {dropped['before']}; "
            "the archive has them"
        )


async def _facts(settings: Settings) -> dict[str, Any]:
    async with opened_store(settings, read_only=True) as store:
        series = await store.series()
        size, free = await store.size()
        facts: dict[str, Any] = {
            "database": store.location,
            "schema_version": await store.schema_version(),
            "series": len(series),
            "candles": sum(one.rows for one in series),
            "bytes": size,
            "free_bytes": free,
        }
    return facts | (await postgres_status(settings) or {})
