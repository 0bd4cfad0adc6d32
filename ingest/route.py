"""What the router knows of every route, whatever flows on it: which path it is on, since when, and how it fares."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import structlog

from market.channel import Topic
from market.clock import Clock

log = structlog.get_logger(__name__)


class Path(StrEnum):
    """Where the messages of a topic come from just now."""

    #: Nothing has come yet.
    STARTING = "starting"
    #: The stream.
    STREAM = "stream"
    #: Messages were missed and are being asked for over REST; what the stream sends meanwhile waits.
    REFILL = "refill"
    #: The stream is silent or away: REST is asked from time to time.
    REST = "rest"
    #: The exchange no longer has the symbol, or refuses to tell of it.
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class RouteStatus:
    """How one topic fares. Times are epoch milliseconds of our clock."""

    topic: Topic
    path: Path
    #: On this path since.
    since: int
    #: When data last came, on whatever path; None before the first.
    heard_at: int | None = None
    #: Messages of the stream so far, and those of them that were known already.
    messages: int = 0
    repeated: int = 0
    #: Times that REST had to help out, and messages that came that way.
    refills: int = 0
    refilled: int = 0
    #: Messages that nobody has any more.
    lost: int = 0
    #: What is wrong, or was last; in words.
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SilenceRules:
    """When a stream counts as silent, and what then. Milliseconds of our clock."""

    #: No data for this long, and for `usual` times its usual pause, means silent.
    silent_after: int = 10_000
    usual: float = 20.0
    #: First pause between two looks over REST; doubled while they bring nothing new, up to the longest.
    look_every: int = 2_000
    look_at_least_every: int = 60_000


class Silence:
    """Tells whether a topic has been silent for too long, by its own usual pace. Ticked about once a second."""

    def __init__(self, rules: SilenceRules, now_ms: int) -> None:
        self._rules = rules
        self._last = now_ms
        self._counted = 0
        self._usual_ms = 0.0
        self._pause = rules.look_every
        self._next_look = 0

    def heard(self, messages: int, now_ms: int) -> bool:
        """True if messages came since the last call; `messages` is how many there have been in all."""
        new = messages - self._counted
        if new <= 0:
            return False
        # Until the first one came there may have been no connection yet.
        if self._counted:
            pause = (now_ms - self._last) / new
            self._usual_ms = pause if not self._usual_ms else self._usual_ms * 0.9 + pause * 0.1
        self._counted, self._last = messages, now_ms
        self._pause, self._next_look = self._rules.look_every, 0
        return True

    def silent(self, now_ms: int, still_ms: int = 0) -> bool:
        """True if nothing has come for too long.

        :param still_ms: for how long nothing has come of anything else on the same connection either, if that is
            unusual: then the topic's own pace says nothing.
        """
        rules, own = self._rules, now_ms - self._last
        return still_ms >= rules.silent_after or own >= max(rules.silent_after, rules.usual * self._usual_ms)

    def look(self, now_ms: int) -> bool:
        """True if it is time to look over REST."""
        if now_ms < self._next_look:
            return False
        self._next_look = now_ms + self._pause
        return True

    def looked(self, now_ms: int, *, found: bool) -> None:
        """A look is over: go on at the same pace if it found something, else more seldom."""
        self._pause = self._rules.look_every if found else min(self._pause * 2, self._rules.look_at_least_every)
        self._next_look = now_ms + self._pause


class Standing:
    """Which path a topic is on, since when and why."""

    def __init__(self, topic: Topic, clock: Clock) -> None:
        self._topic = topic
        self._clock = clock
        self.path = Path.STARTING
        #: Epoch milliseconds of our clock.
        self.since = clock.now_ms()
        #: When data last came; None before the first.
        self.heard_at: int | None = None
        self.reason: str | None = None

    def on(self, path: Path, reason: str | None) -> bool:
        """Be on `path` from now on; true if that is another one. A reason that is not given stays."""
        if reason is not None:
            self.reason = reason
        if path is self.path:
            return False
        log.info(
            "data comes another way", topic=str(self._topic), path=str(path), before=str(self.path), reason=reason
        )
        self.path, self.since = path, self._clock.now_ms()
        return True

    def answered(self) -> None:
        """REST has answered: a topic that it had refused is on the path over REST, until its stream is heard."""
        if self.path is Path.REFUSED:
            self.on(Path.REST, "REST answers again")

    def silent(self, now_ms: int) -> bool:
        """Be on the path over REST, because the stream is silent."""
        return self.on(Path.REST, f"the stream has been silent for {now_ms - (self.heard_at or self.since)} ms")


class Spawn(Protocol):
    """Starts work in the background, in the router's task group."""

    def __call__(self, work: Coroutine[Any, Any, None]) -> None: ...


class Route(Protocol):
    """One topic: takes the messages of its stream, and helps itself over REST where that fails."""

    @property
    def topic(self) -> Topic: ...

    @property
    def missing_out(self) -> bool:
        """True where REST brings what the stream should have brought, and does not."""
        ...

    def on_message(self, message: Any) -> None:
        """A message of the stream. Returns at once and never raises."""
        ...

    def connected(self) -> None:
        """A connection with this topic is open; another one may still be."""
        ...

    def disconnected(self, reason: str) -> None:
        """No connection has this topic any more."""
        ...

    def refused(self, reason: str) -> None:
        """A message of this topic, or one that may have been of it, could not be used. Returns at once."""
        ...

    def check(self, now_ms: int, still_ms: int = 0) -> None:
        """Called about once a second: look whether the stream is silent, and do what has to be done then.

        :param still_ms: for how long nothing at all has come on the topic's connection; 0 where that is usual.
        """
        ...

    def status(self) -> RouteStatus: ...
