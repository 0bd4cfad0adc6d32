"""What the system tells about itself: events that an operator, a log or a metric may want to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

#: A server between our processes (Redis, the message bus) does not answer; critical, once per outage.
BROKER_DISCONNECT = "BROKER_DISCONNECT"
#: It answers again; the end of the outage that BROKER_DISCONNECT began.
BROKER_RECONNECT = "BROKER_RECONNECT"
#: Figures of a while: hits and misses of the cache; low.
METRIC_RECORD = "METRIC_RECORD"


class Severity(StrEnum):
    """How soon somebody should look."""

    #: Never: for figures.
    LOW = "low"
    #: When reading the log.
    INFO = "info"
    #: Today.
    HIGH = "high"
    #: Now.
    CRITICAL = "critical"


class SystemEvent(NamedTuple):
    """One thing that happened to the system itself."""

    #: One of the names above.
    name: str
    severity: Severity
    #: Epoch milliseconds of our clock.
    at_ms: int
    #: In plain words and figures; never a secret.
    details: Mapping[str, str | int | float]


#: Who wants to know. It must not wait and must not raise: it is called where the thing happens.
EventSink = Callable[[SystemEvent], None]


def unheard(event: SystemEvent) -> None:
    """The sink of those whom nobody listens to."""
