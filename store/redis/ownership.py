"""Who writes a symbol's live data to Redis: one writer at a time, its calls in their order.

The rules are in ``lua/ownership.lua``, which every script that writes begins with.
"""

from __future__ import annotations

from enum import IntEnum
from importlib.resources import files
from typing import NamedTuple

from store.redis.command import Argument, Reply, Script


class Call(NamedTuple):
    """Who calls, and when in the order of its calls."""

    #: A run of a writer; no two have the same.
    owner: str
    #: Counts up with every call of this owner for the same symbol and kind.
    number: int
    #: So long after the owner's last call, another may take over; milliseconds of the server's clock.
    lease_ms: int

    def arguments(self, lifetime_ms: int) -> tuple[Argument, ...]:
        """What every script that writes begins with."""
        return self.owner, self.number, self.lease_ms, max(lifetime_ms, 1)


class Outcome(IntEnum):
    """What became of a call."""

    #: Another writer keeps this symbol.
    KEPT_BY_ANOTHER = -1
    #: What is there is not what the call goes on from, or a later call is there already: send all of it.
    REFUSED = 0
    DONE = 1

    @staticmethod
    def of(reply: Reply) -> Outcome:
        """In the answer of a script that writes; an answer that is none counts as refused."""
        if isinstance(reply, list) and reply and reply[0] in (-1, 0, 1):
            return Outcome(reply[0])
        return Outcome.REFUSED


def live_script(file: str, function: str) -> Script:
    """The script that calls `function` of ``lua/<file>.lua``."""
    folder = files(__package__) / "lua"
    texts = [(folder / f"{name}.lua").read_text("utf-8") for name in ("ownership", file)]
    return Script(f"{file}_{function}", "\n".join([*texts, f"return {function}()"]))
