"""Tags of candle answers: equal tags mean equal bytes."""

from __future__ import annotations

import pyarrow as pa

from market.instrument import Series
from market.interval import Interval, IntervalSet
from market.timeframe import ONE_MINUTE
from serve.candle_query import CandleQuery
from serve.candles import _etag
from serve.formats import Format
from store.answer import CandleAnswer
from tests.support.made_candles import made

BTC = Series("binance", "BTC/USDT", ONE_MINUTE)
QUERY = CandleQuery(
    series=(BTC,),
    start_ms=None,
    end_ms=None,
    limit=10,
    as_of_ms=None,
    include_forming=False,
    columns=("open_time", "missing"),
    format=Format.JSON,
)


def tag(*missing: int) -> str:
    """Of an answer whose rows lack so many minutes, and which is in all else the same."""
    answer = CandleAnswer(
        series=BTC,
        interval=Interval(0, 1),
        table=made(range(len(missing))).append_column("missing", pa.array(missing, pa.int32())),
        coverage=(),
        gaps=IntervalSet(),
        next_start=None,
        tier="database",
    )
    return _etag(QUERY, [answer], [{"fingerprint": answer.fingerprint}])


def test_a_minute_without_trades_that_arrives_changes_the_tag_with_the_missing_count() -> None:
    # Such a minute changes no price and no quantity, and the ledger may have been read after it came.
    tags = [tag(0, 0), tag(1, 0), tag(0, 1), tag(0, 2), tag(1, 1)]
    assert len(set(tags)) == len(tags)
    assert tag(1, 0) == tag(1, 0)
