"""What a live feed says of itself in its home, read by another process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from market.errors import StoreUnusable

#: In the home.
STATUS_NAME = "ingest_status.json"
#: A feed says how it fares every second; one that has not for this long does not run, milliseconds.
_SILENT_MS = 10_000


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
        if not isinstance(body, dict) or not {"at", "pid", "routes", "series", "writer"} <= set(body):
            raise StoreUnusable(f"{file} is not what a live feed writes; remove it")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnusable(f"{file} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
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
