"""Faults on request: the rules, and when each of them hits. What they do is in `rest_faults` and `stream_faults`.

A faults file is a JSON list of rules, for example::

    [{"path": "/api/v3/klines", "from": 3, "count": 2, "do": "status", "status": 429, "retry_after": 1},
     {"path": "/api/v3/", "probability": 0.05, "seed": 7, "do": "empty"},
     {"stream": "*@trade", "every": 3, "seed": 1, "do": "disconnect"}]

``path``         the requests it is about: those whose path begins so (default ``/api/v3/``)
``stream``       or the stream messages: of the streams whose name begins so or matches a pattern with ``*``
``from``         the first of those it may hit, counted from 1 (default 1)
``count``        how many it hits at most (default 1, or without end where there is a probability or ``every``)
``probability``  the chance of each to be hit, drawn from ``seed`` (default: every one; seed 0)
``every``        not each of them, but the next one whenever so many real seconds have passed, give or take half
``do``           what happens, see :data:`REST_FAULTS` and :data:`STREAM_FAULTS`

Every rule counts everything it is about; the first rule that hits decides, and one with ``every`` that another one
came before hits the next.
"""

from __future__ import annotations

import fnmatch
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from market.errors import BadInput

RestFault = Literal["status", "html", "half_body", "empty", "hang", "partial", "stale"]
StreamFault = Literal["disconnect", "close", "silence", "duplicate", "reorder", "lose", "garbage"]
#: These concern the whole exchange; a request sets them off, or a message of a stream.
CommonFault = Literal["skew", "outage"]
#: What can happen to a request, and to a message of a stream or its connection.
REST_FAULTS = frozenset(get_args(RestFault) + get_args(CommonFault))
STREAM_FAULTS = frozenset(get_args(StreamFault) + get_args(CommonFault))
GarbageKind = Literal["invalid_json", "truncated", "unknown_fields", "missing_field", "absurd_price", "future_time"]
_DEFAULT_PATHS = {"stale": "/api/v3/depth", "skew": "/api/v3/time"}


class FaultRule(BaseModel):
    """One rule of a faults file (see the module's docstring, and `docs/simulated-exchange.md` for each fault)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    stream: Annotated[str | None, Field(min_length=1)] = None
    first: Annotated[int, Field(alias="from", ge=1)] = 1
    count: Annotated[int | None, Field(ge=1)] = None
    probability: Annotated[float | None, Field(gt=0, le=1)] = None
    #: Real seconds.
    every: Annotated[float | None, Field(gt=0)] = None
    seed: int = 0
    do: RestFault | StreamFault | CommonFault
    status: Annotated[int, Field(ge=400, le=599)] = 500
    retry_after: Annotated[int | None, Field(ge=0)] = None
    #: Real seconds that it lasts; with ``stale`` seconds of the exchange.
    seconds: Annotated[float, Field(ge=0)] = 30.0
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5
    #: Of ``close``.
    code: Literal[1001, 1008, 1011, 1012, 1013] = 1008
    #: Messages: how many later a duplicate or a reordered one comes, or how many are lost besides.
    n: Annotated[int | None, Field(ge=0)] = None
    #: Of ``silence``: everything on the connection, or only the streams the rule is about.
    scope: Literal["connection", "stream"] = "connection"
    #: Of ``garbage``; None draws one for each hit.
    kind: GarbageKind | None = None
    #: Of ``garbage``: the message itself is not sent.
    instead: bool = False
    #: Of ``skew``: by how much the exchange's clock is ahead.
    milliseconds: int = 5000

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if self.path is not None and self.stream is not None:
            raise ValueError("a rule is about a path or about a stream, not both")
        known = REST_FAULTS if self.stream is None else STREAM_FAULTS
        if self.do not in known:
            what = "requests" if self.stream is None else "streams"
            raise ValueError(
                f"{self.do} is nothing that happens to {what}; expected one of {', '.join(sorted(known))}"
            )
        return self

    def is_about_path(self, path: str) -> bool:
        """Whether it concerns a request."""
        own = _DEFAULT_PATHS.get(self.do, "/api/v3/") if self.path is None else self.path
        return self.stream is None and path.startswith(own)

    def is_about_stream(self, name: str) -> bool:
        """Whether it concerns the messages of a stream."""
        if self.stream is None:
            return False
        return fnmatch.fnmatchcase(name, self.stream if "*" in self.stream else self.stream + "*")


def read_faults(path: Path) -> list[FaultRule]:
    """The rules of a faults file.

    :raises BadInput: naming the file, the rule and the field that is wrong.
    """
    try:
        rules = json.loads(path.read_bytes())
    except OSError as exc:
        raise BadInput("--faults", str(path), f"a readable file ({exc.strerror})") from exc
    except ValueError as exc:
        raise BadInput("--faults", str(path), f"a JSON list of rules ({exc})") from exc
    return parse_faults(rules)


def parse_faults(rules: object) -> list[FaultRule]:
    """Rules from decoded JSON.

    :raises BadInput: naming the rule and the field that is wrong.
    """
    try:
        return TypeAdapter(list[FaultRule]).validate_python(rules)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"--faults rule {where}", first["input"], first["msg"]) from exc


class CountedRule:
    """A rule, what it was asked about and how often it hit."""

    def __init__(self, rule: FaultRule, monotonic: Callable[[], float]) -> None:
        self.rule = rule
        self.hits = 0
        self.rng = random.Random(rule.seed)
        self._monotonic = monotonic
        self._asked = 0
        endless = rule.probability is not None or rule.every is not None
        self._most = rule.count or (None if endless else 1)
        self._due = self._next_due()

    def hit(self, *, taken: bool = False) -> bool:
        """Count one more that the rule is about, and say whether it is hit.

        :param taken: another rule has hit it. One with ``every`` then waits for the next.
        """
        self._asked += 1
        if self._asked < self.rule.first or (self._most is not None and self.hits >= self._most):
            return False
        if self.rule.every is not None:
            if taken or self._monotonic() < self._due:
                return False
            self._due = self._next_due()
        if self.rule.probability is not None and self.rng.random() >= self.rule.probability:
            return False
        self.hits += 1
        return True

    def _next_due(self) -> float:
        every = self.rule.every
        return 0.0 if every is None else self._monotonic() + every * (0.5 + self.rng.random())


class Faults:
    """The rules of a running exchange, and what of them concerns all of it.

    :param monotonic: real seconds from any origin, never going back.
    """

    def __init__(self, rules: list[FaultRule], monotonic: Callable[[], float] = time.monotonic) -> None:
        self.rules = [CountedRule(rule, monotonic) for rule in rules]
        self.monotonic = monotonic
        #: Called when an outage begins.
        self.on_outage: Callable[[], None] = lambda: None
        self._out_until = 0.0
        self._skew = (0.0, 0)

    @property
    def has_stream_rules(self) -> bool:
        """Whether anything may happen to streams."""
        return any(one.rule.stream is not None or one.rule.do in ("skew", "outage") for one in self.rules)

    def hit_of_path(self, path: str) -> CountedRule | None:
        """The rule that hits a request, if any; every rule about it has counted it."""
        return self._hit([one for one in self.rules if one.rule.is_about_path(path)])

    def hit_of_stream(self, name: str) -> CountedRule | None:
        """The same of a message of a stream."""
        return self._hit([one for one in self.rules if one.rule.is_about_stream(name)])

    def _hit(self, about: list[CountedRule]) -> CountedRule | None:
        first: CountedRule | None = None
        for one in about:
            if one.hit(taken=first is not None) and first is None:
                first = one
        found = None if first is None else first.rule
        if found is not None and found.do == "outage":
            self._out_until = self.monotonic() + found.seconds
            self.on_outage()
        elif found is not None and found.do == "skew":
            self._skew = (self.monotonic() + found.seconds, found.milliseconds)
        return first

    @property
    def is_out(self) -> bool:
        """Whether the exchange is away at all."""
        return self.monotonic() < self._out_until

    @property
    def skew_ms(self) -> int:
        """By how much the exchange's clock is ahead of what it should be."""
        until, milliseconds = self._skew
        return milliseconds if self.monotonic() < until else 0

    def counts(self) -> dict[str, int]:
        """How often each rule has hit, by its place in the file, counted from 0."""
        return {str(at): one.hits for at, one in enumerate(self.rules)}
