"""Counts by tier and kind, and their reports as events."""

from __future__ import annotations

import pytest

from market.system_event import METRIC_RECORD, Severity, SystemEvent
from store.cache.statistics import TierStatistics


def test_counts_and_rates() -> None:
    statistics = TierStatistics(lambda: 5)
    assert (statistics.hit_rate(), statistics.snapshot()) == (None, [])
    for _ in range(3):
        statistics.hit("memory", "ticker")
    statistics.miss("memory", "ticker")
    statistics.miss("router", "ticker", 2)
    statistics.error("router", "order")
    statistics.evicted("memory", "ticker")
    statistics.bytes_changed("memory", "ticker", 100)
    statistics.bytes_changed("memory", "ticker", -30)
    memory, order, ticker = statistics.snapshot()
    assert (memory.tier, memory.kind, memory.hits, memory.misses, memory.errors) == ("memory", "ticker", 3, 1, 0)
    assert (memory.evictions, memory.bytes, memory.hit_rate) == (1, 70, 0.75)
    assert (order.kind, order.errors, order.hit_rate) == ("order", 1, None)
    assert (ticker.tier, ticker.misses, ticker.hit_rate) == ("router", 2, 0.0)
    assert statistics.hit_rate() == pytest.approx(0.5)
    assert (statistics.hit_rate("memory"), statistics.hit_rate("disk")) == (0.75, None)


def test_a_report_tells_what_is_new_since_the_last() -> None:
    told: list[SystemEvent] = []
    statistics = TierStatistics(lambda: 5)
    statistics.hit("memory", "ticker", 3)
    statistics.miss("memory", "ticker")
    statistics.error("router", "order")
    assert statistics.report(told.append) == 2
    counts = {"hits": 3, "misses": 1, "errors": 0, "evictions": 0, "bytes": 0}
    assert told[0] == SystemEvent(
        METRIC_RECORD, Severity.LOW, 5, {"tier": "memory", "kind": "ticker", **counts, "hit_rate": 0.75}
    )
    assert "hit_rate" not in told[1].details
    assert statistics.report(told.append) == 0
    statistics.hit("memory", "ticker")
    assert (statistics.report(told.append), told[2].details["hits"], told[2].details["hit_rate"]) == (1, 1, 1.0)
