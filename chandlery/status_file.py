"""What a live feed says of itself in its home, read by another process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson

from market.clock import LATEST_MS
from market.errors import StoreUnusable

#: In the home.
STATUS_NAME = "ingest_status.json"
#: A feed says how it fares every second; one that has not for this long does not run, milliseconds.
_SILENT_MS = 10_000


class _Route(msgspec.Struct):
    topic: str
    path: str
    since: int
    heard_at: int | None
    messages: int
    repeated: int
    refilled: int
    lost: int
    reason: str | None


class _Series(msgspec.Struct):
    series: str
    error: str | None


class _Lag(msgspec.Struct):
    p50: float | None
    p99: float | None


class _Writer(msgspec.Struct):
    state: str
    error: str | None
    waiting_rows: int
    journal_records: int
    written_rows: int
    lag: _Lag


class _Note(msgspec.Struct):
    """What readers rely on in a note."""

    #: Epoch milliseconds of the feed's clock.
    at: Annotated[int, msgspec.Meta(ge=0, lt=LATEST_MS)]
    #: No group of processes, which numbers below 1 stand for.
    pid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    exchange: str
    routes: list[_Route]
    series: list[_Series]
    writer: _Writer


@dataclass(frozen=True, kw_only=True)
class FeedNote:
    """The newest word of a feed."""

    body: dict[str, Any]
    #: Epoch milliseconds of our clock.
    read_at: int

    @property
    def running(self) -> bool:
        """Whether its process is alive, and says something."""
        return self.read_at - int(self.body["at"]) < _SILENT_MS and _alive(int(self.body["pid"]))

    @property
    def troubles(self) -> list[str]:
        """What somebody should look at, in words."""
        found = [f"{one['topic']}: {one['reason']}" for one in self.body["routes"] if one["path"] == "refused"]
        found += [f"{one['topic']}: {one['lost']} trades are lost" for one in self.body["routes"] if one["lost"]]
        found += [f"{one['series']}: {one['error']}" for one in self.body["series"] if one["error"]]
        writer = self.body["writer"]
        if writer["state"] != "direct":
            found.append(f"the writer is {writer['state']}: {writer['error']}")
        return found


def read_note(file: Path, now_ms: int) -> FeedNote | None:
    """The note in `file`; None where there is none.

    :raises StoreUnusable: it cannot be read, or is something else.
    """
    try:
        body = orjson.loads(file.read_bytes())
        msgspec.convert(body, _Note)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnusable(f"{file} cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise StoreUnusable(f"{file} is not what a live feed writes; remove it") from error
    return FeedNote(body=body, read_at=now_ms)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
