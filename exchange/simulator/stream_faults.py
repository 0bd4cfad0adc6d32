"""Faults of streams: what one connection's messages go through on their way to the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from exchange.simulator.faults import CountedRule, FaultRule, Faults
from exchange.simulator.garbage import KINDS, spoilt


class Cut(Exception):
    """The connection is to be cut, without a closing frame.

    :param lost: further messages that are lost with it.
    """

    def __init__(self, lost: int = 0) -> None:
        super().__init__("cut")
        self.lost = lost


class Closed(Exception):
    """The connection is to be closed in order, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


@dataclass
class _Held:
    """A message that comes later than its time."""

    stream: str
    message: bytes
    #: After so many more messages of its stream.
    after: int


class ConnectionFaults:
    """What happens to the messages of one connection."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._held: list[_Held] = []
        #: When the connection's silence ends, and rules whose streams are silent until when.
        self._silent_until = 0.0
        #: How many messages the last silence swallows where time stands still (a replay as fast as it goes).
        self.silent_messages = 0
        self._silent_streams: list[tuple[FaultRule, float]] = []

    def passed(self, stream: str, message: bytes) -> list[bytes]:
        """What is sent, now, in place of one message.

        :raises Cut: if the connection ends here. The message is not sent.
        :raises Closed: the same, in order.
        """
        if self._faults.is_out:
            raise Cut
        if self._is_silent(stream):
            return []
        hit = self._faults.hit_of_stream(stream)
        message = self._skewed(message)
        sent = [message] if hit is None else self._changed(hit, stream, message)
        due = []
        for one in [one for one in self._held if one.stream == stream]:
            one.after -= 1
            # The message that was held just now is counted along, see `_changed`.
            if one.after <= 0:
                due.append(one.message)
                self._held.remove(one)
        return sent + due

    def reply(self, message: bytes) -> list[bytes]:
        """The same for the answer to a control message, which no rule is about."""
        return [] if self._faults.monotonic() < self._silent_until else [message]

    @property
    def silent_seconds(self) -> float:
        """How long the connection stays silent yet."""
        return max(0.0, self._silent_until - self._faults.monotonic())

    def _changed(self, hit: CountedRule, stream: str, message: bytes) -> list[bytes]:
        rule = hit.rule
        if rule.do in ("disconnect", "outage"):
            raise Cut(rule.n or 0)
        if rule.do == "close":
            raise Closed(rule.code)
        if rule.do == "silence":
            until = self._faults.monotonic() + rule.seconds
            if rule.scope == "connection":
                self._silent_until, self.silent_messages = until, rule.n or 0
            else:
                self._silent_streams.append((rule, until))
            return []
        if rule.do == "duplicate":
            if not rule.n:
                return [message, message]
            self._held.append(_Held(stream, message, rule.n + 1))
        elif rule.do == "reorder":
            self._held.append(_Held(stream, message, (rule.n or 1) + 1))
            return []
        elif rule.do == "lose":
            return []
        elif rule.do == "garbage":
            # Before the message itself: who takes it for good would take the message for its duplicate.
            kind = hit.rng.choice(KINDS) if rule.kind is None else rule.kind
            bad = spoilt(message, kind, hit.rng)
            return [bad] if rule.instead else [bad, message]
        return [message]

    def _is_silent(self, stream: str) -> bool:
        now = self._faults.monotonic()
        self._silent_streams = [(rule, until) for rule, until in self._silent_streams if until > now]
        return now < self._silent_until or any(rule.is_about_stream(stream) for rule, _ in self._silent_streams)

    def _skewed(self, message: bytes) -> bytes:
        """With the event time that a clock gone wrong would give it."""
        skew_ms = self._faults.skew_ms
        if not skew_ms:
            return message
        try:
            document: Any = orjson.loads(message)
        except orjson.JSONDecodeError:
            return message
        inner = document.get("data", document) if isinstance(document, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("E"), int):
            return message
        inner["E"] += skew_ms
        return orjson.dumps(document)
