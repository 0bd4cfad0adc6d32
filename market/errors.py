"""One error tree for the whole house; a leaf says what the caller should do.

::

    ChandleryError
      + BadInput                 the caller must change something: names field, value, what is accepted
      |   - NotFound             ... because the thing named is not there
      + Retryable                the same call may succeed later
      |   - ExchangeUnavailable  no answer, 5xx, half a body, not JSON
      |   - RateLimited          429/418: wait `retry_after` seconds first
      |   - StoreBusy            another process holds the lock, or every connection is in use
      |   - StoreUnavailable     the database does not answer
      |   - StoreReadOnly        an operator has forbidden writing for now
      + Terminal                 the same call will fail again until someone acts
      |   - ExchangeRefused      the exchange understood and said no
      |   - StoreUnusable        read-only, full, corrupt or not ours
      |   - SchemaTooNew         the database was written by a newer release
      |   - StrategyFailed       a strategy raised, or decided something that is no order
      + Mismatch                 two sources that must agree do not

Errors know nothing of HTTP or exit codes; ``serve`` and ``chandlery`` each have one table for that.
"""

from __future__ import annotations

from collections.abc import Iterable


class ChandleryError(Exception):
    """Base of every error this project raises on purpose."""


class BadInput(ChandleryError):
    """The caller sent something that cannot be accepted; nothing was changed.

    :param field: the name the caller knows it by (``timeframe``, ``--since``, a column).
    :param value: what was sent.
    :param accepted: what would be accepted, in words.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{field}: {shown} is not accepted; expected {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted


class NotFound(BadInput):
    """The thing named does not exist here."""

    def __init__(self, field: str, value: object, known: Iterable[object] = (), hint: str = "") -> None:
        listed = [str(one) for one in known]
        shown = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
        accepted = hint or (f"one of: {shown}" if listed else "something that exists (nothing is stored yet)")
        super().__init__(field, value, accepted)


class Retryable(ChandleryError):
    """The same call may succeed later; nothing was lost."""


class ExchangeUnavailable(Retryable):
    """The exchange gave no usable answer (no connection, time-out, 5xx, half a body, not JSON)."""


class RateLimited(Retryable):
    """The exchange said 429 or 418.

    :param retry_after: seconds to wait before any further request to this exchange from this address.
    :param banned: true for 418, when every further request prolongs the ban.
    """

    def __init__(self, message: str, retry_after: float, *, banned: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.banned = banned


class StoreBusy(Retryable):
    """Another process holds the database or a lock, or every connection is in use, for longer than we wait."""


class StoreUnavailable(Retryable):
    """The database does not answer: the server or the way to it is down. Writing the same again later is safe."""


class StoreReadOnly(Retryable):
    """The safety state forbids writing (`chandlery safety`); nothing was written. Reading goes on."""


class Terminal(ChandleryError):
    """The same call will fail again until someone changes something."""


class ExchangeRefused(Terminal):
    """The exchange understood the request and refused it."""


class StoreUnusable(Terminal):
    """The store cannot be used: read-only, full, corrupt, or not one of ours."""


class SchemaTooNew(StoreUnusable):
    """The database was written by a newer release than this one."""


class StrategyFailed(Terminal):
    """A strategy raised, or gave back what is no order; the message has the strategy's own line."""


class Mismatch(ChandleryError):
    """Two sources that must agree do not (a checksum, a fingerprint, a paged answer that did not advance)."""
