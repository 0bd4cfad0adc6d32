"""``status``: how the live feed of a home fares, by what its process says of itself."""

from __future__ import annotations

import typer

from chandlery.options import AsJson, Home, load
from chandlery.output import print_json, print_table, remark
from chandlery.status_file import STATUS_NAME, FeedNote, read_note
from chandlery.wiring import CLOCK
from market.clock import iso
from market.errors import NotFound


def status(as_json: AsJson = False, home: Home = None) -> None:
    """Show where each series comes from, how far behind it is, and how the writer and the request budget fare.

    Exit code 1 where the feed does not run, or something in it is in trouble.
    """
    settings = load(home)
    note = read_note(settings.home / STATUS_NAME, CLOCK.now_ms())
    if note is None:
        raise NotFound(
            "home", str(settings.home), hint="a home in which `chandlery ingest` or `chandlery up` has run"
        )
    if as_json:
        print_json(note.body)
    else:
        _show(note)
    if not note.running or note.troubles:
        raise typer.Exit(1)


def _show(note: FeedNote) -> None:
    body, now = note.body, note.read_at
    state = "running" if note.running else f"not running; this is of {iso(body['at'])}"
    remark(f"{body['exchange']}: {state} (process {body['pid']})")
    print_table(
        ["topic", "path", "for s", "data s ago", "messages", "repeated", "refilled", "lost", "reason"],
        [
            [
                one["topic"],
                one["path"],
                (now - one["since"]) // 1000,
                None if one["heard_at"] is None else (now - one["heard_at"]) // 1000,
                one["messages"],
                one["repeated"],
                one["refilled"],
                one["lost"],
                one["reason"],
            ]
            for one in body["routes"]
        ],
    )
    writer = body["writer"]
    print_table(
        ["writer", "waiting rows", "journal batches", "written rows", "lag p50 ms", "lag p99 ms"],
        [
            [
                writer["state"],
                writer["waiting_rows"],
                writer["journal_records"],
                writer["written_rows"],
                writer["lag"]["p50"],
                writer["lag"]["p99"],
            ]
        ],
    )
    for trouble in note.troubles:
        remark(trouble)
