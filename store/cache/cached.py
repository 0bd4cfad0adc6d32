"""What the cache answers."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class Cached(NamedTuple, Generic[V]):
    """A value, which tier gave it, and how old it is."""

    #: Shared by all who read it: not to be changed.
    value: V
    #: ``memory``, ``router`` or ``database``.
    tier: str
    #: Milliseconds since it was known to be true (since its load began), never negative.
    age_ms: int


class CacheHealth(NamedTuple):
    """Whether the shared tier answers; reads go on without it."""

    healthy: bool
    #: The furthest tier of the cache that answers: ``router`` or ``memory``; ``database`` if none is in use.
    source: str
    latency_ms: float
    #: In words; empty if healthy.
    error: str
