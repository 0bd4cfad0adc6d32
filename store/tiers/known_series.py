"""What process memory holds of a series, and when that was last known to be what the database says."""

from __future__ import annotations

from dataclasses import dataclass

from store.tiers.held_series import HeldSeries

#: Mark, clock, writes and turn; see :class:`KnownSeries`.
Now = tuple[int | None, int, int, int]


@dataclass
class KnownSeries:
    """A series, which never changes in here, and when that was last known to be so."""

    #: None: not stored.
    held: HeldSeries | None
    #: The database's mark from before it was asked; None where it has none.
    mark: int | None
    #: Our clock when it was asked, milliseconds.
    at: int
    #: How many writes of this process had ended by then.
    writes: int
    #: The latest question that had begun by then: it and all before it are answered by this.
    turn: int
    #: All of it was just read, and nobody has been given it yet.
    anew: bool = False
    #: Since when the database has answered with an older revision; None while it has not.
    behind_since: int | None = None

    def given(self) -> bool:
        """Somebody is given rows of it: whether he is the first since they were read."""
        first, self.anew = self.anew, False
        return first
