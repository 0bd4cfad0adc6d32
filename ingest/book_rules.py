"""How an order book is kept right, and how it fares."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.route import Path
from market.order_book import BookState


@dataclass(frozen=True, kw_only=True)
class BookRules:
    """How to keep an order book right. Milliseconds of our clock unless it says seconds."""

    #: Levels of a snapshot to begin with, and of one that is all there is while the stream is silent.
    levels: int = 1000
    poll_levels: int = 100
    #: Without a new change for this long, the stream counts as silent.
    silence_ms: int = 10_000
    #: While it is silent or away, REST is asked this often; what it says is served for so long.
    poll_ms: int = 10_000
    lifetime_ms: int = 30_000
    #: A LIVE book is held against a snapshot this often; a thin one after this long already.
    compare_ms: int = 600_000
    renew_ms: int = 15_000
    #: A comparison that has not come about by then is given up.
    compare_within_ms: int = 10_000
    #: Seconds after which a request is given up.
    request_seconds: float = 10.0
    #: Seconds before the second snapshot in a row; doubled up to the longest, until the book stays LIVE for
    #: `calm_ms`. The wait is between half of that and all of it.
    first_wait: float = 0.5
    longest_wait: float = 30.0
    calm_ms: int = 60_000
    #: After the exchange has refused a request for good, ask again after this long.
    refused_ms: int = 300_000
    #: `on_top` is told of so many levels, this often at most.
    top_levels: int = 20
    top_every_ms: int = 100


@dataclass(frozen=True, kw_only=True)
class BookStatus:
    """How one order book fares. Times are epoch milliseconds of our clock, except `event_time`."""

    #: LIVE if it is served, from whatever path.
    state: BookState
    path: Path
    #: In this state on this path since.
    since: int
    #: Times the book began anew.
    resyncs: int
    #: Comparisons with REST that found a difference, that found none, and that did not come about.
    differences: int
    agreements: int
    missed_comparisons: int
    #: Why it is as it is, in words.
    last_reason: str
    #: The exchange's number of the last change; 0 without one.
    last_id: int
    #: The exchange's time of the last change, where it says.
    event_time: int | None
    received_at: int
