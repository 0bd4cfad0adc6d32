"""What an operator may switch while everything runs: how safe it is to write, and how fresh values must be.

Both are kept in the database, so that all processes agree, and a write that the state forbids fails in its own
transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from market.errors import BadInput, StoreReadOnly

#: Characters of a reason.
LONGEST_REASON = 500


class SafetyState(StrEnum):
    """How much may still be written (D8)."""

    #: Everything as usual.
    NORMAL = "normal"
    #: Everything as usual; something wants to be looked at.
    WARNING = "warning"
    #: Cache and database are read-only: what is there is served, nothing is added, changed or evicted.
    FAIL = "fail"
    #: The cache is emptied and not used; the database is read-only.
    LOCKDOWN = "lockdown"

    @property
    def reads_cache(self) -> bool:
        """Whether what is cached may be served."""
        return self is not SafetyState.LOCKDOWN

    @property
    def writes(self) -> bool:
        """Whether cache and database may be written."""
        return self in (SafetyState.NORMAL, SafetyState.WARNING)


class OperatingState(StrEnum):
    """How fresh cached values must be (D3)."""

    AGGRESSIVE = "aggressive"
    BALANCED = "balanced"
    DEFENSIVE = "defensive"


@dataclass(frozen=True, kw_only=True)
class Control:
    """Both states, and how they came about."""

    safety: SafetyState = SafetyState.NORMAL
    operating: OperatingState = OperatingState.BALANCED
    #: In the words of whoever changed it last.
    reason: str = ""
    #: Epoch milliseconds of the clock of whoever changed it last; None if nobody has.
    changed_at: int | None = None

    def check_writable(self) -> None:
        """To be called inside each transaction that writes data, before it writes.

        :raises StoreReadOnly: the safety state forbids it.
        """
        if not self.safety.writes:
            raise read_only(self)


def read_only(control: Control) -> StoreReadOnly:
    """What a write is told that the safety state forbids."""
    why = f" ({control.reason})" if control.reason else ""
    return StoreReadOnly(
        f"the safety state is {control.safety.value}{why}: nothing was written; "
        "`chandlery safety set normal` allows writing again"
    )


def checked_reason(reason: str) -> str:
    """A reason as it is stored: one line without spaces around it.

    :raises BadInput: too long, or with characters that cannot be shown.
    """
    shown = reason.strip()
    if len(shown) > LONGEST_REASON or not shown.isprintable():
        raise BadInput("reason", reason, f"one line of at most {LONGEST_REASON} printable characters")
    return shown
