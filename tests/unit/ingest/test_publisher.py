"""Batches of market messages: how large, how late, and with which numbers."""

from __future__ import annotations

import asyncio

import pytest

from ingest.publisher import Publisher
from market.book_message import BookSnapshot
from market.channel import Channel, Topic
from market.errors import BadInput
from market.timeframe import Timeframe
from market.trade import Trade
from store.bus.memory import MemoryBus
from store.bus.message import MarketBatch, MarketMessage

TRADES = Topic(Channel.TRADES, "BTC/USDT")
BOOKS = Topic(Channel.ORDER_BOOKS, "BTC/USDT")


def trade(number: int) -> Trade:
    return Trade(number, 57000.5, 0.25, 1_700_000_000_000 + number, True, 1_700_000_000_050 + number)


class KeptBus(MemoryBus):
    """A bus that also keeps what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, MarketBatch]] = []

    def publish(self, topic: str, payload: bytes) -> None:
        self.batches.append((topic, MarketBatch.unpacked(payload)))
        super().publish(topic, payload)

    def messages(self) -> list[MarketMessage]:
        return [message for _, batch in self.batches for message in batch.messages]


async def test_fifty_messages_are_sent_at_once() -> None:
    bus = KeptBus()
    async with Publisher(bus, "binance", seconds=3600) as publisher:
        outlet = publisher.outlet(TRADES)
        for number in range(49):
            outlet.add(trade(number))
        assert bus.batches == []
        outlet.add(trade(49))
        ((topic, batch),) = bus.batches
        assert topic == "market_data.binance.BTC/USDT"
        assert batch.messages == [trade(number) for number in range(50)]
        outlet.add(trade(50))
    # Closing sends the rest.
    assert bus.messages() == [trade(number) for number in range(51)]
    assert (publisher.batches, publisher.published) == (2, 51)


async def test_fewer_are_sent_when_their_time_has_come() -> None:
    bus = KeptBus()
    loop = asyncio.get_running_loop()
    async with Publisher(bus, "binance") as publisher, bus.subscribe("market_data.#") as subscription:
        for at in range(3):
            began = loop.time()
            publisher.add(TRADES, trade(at))
            async with asyncio.timeout(10):
                await anext(subscription)
            # The timer rings each 100 ms; the rest is for a busy machine.
            assert loop.time() - began < 1.0
        assert [len(batch.messages) for _, batch in bus.batches] == [1, 1, 1]


async def test_channels_of_an_instrument_share_a_topic_and_its_numbers_but_no_batch() -> None:
    bus = KeptBus()
    book = BookSnapshot(1, [(1.0, 2.0)], [(1.5, 2.0)], None, 1_700_000_000_000)
    async with Publisher(bus, "binance", messages=2, seconds=3600) as publisher:
        for number in range(4):
            publisher.add(TRADES, trade(number))
            publisher.add(BOOKS, book)
        publisher.add(Topic(Channel.TRADES, "ETH/USDT"), trade(9))
    of_btc = [batch for topic, batch in bus.batches if topic.endswith("BTC/USDT")]
    assert [(batch.channel, batch.sequence) for batch in of_btc] == [
        (Channel.TRADES, 1),
        (Channel.ORDER_BOOKS, 2),
        (Channel.TRADES, 3),
        (Channel.ORDER_BOOKS, 4),
    ]
    assert [batch.sequence for topic, batch in bus.batches if topic.endswith("ETH/USDT")] == [1]
    assert len({batch.run for _, batch in bus.batches}) == 1


async def test_timeframes_are_batches_of_their_own() -> None:
    publisher = Publisher(KeptBus(), "binance")
    minute = Topic(Channel.CANDLES, "BTC/USDT", Timeframe.parse("1m"))
    hour = Topic(Channel.CANDLES, "BTC/USDT", Timeframe.parse("1h"))
    assert publisher.outlet(minute) is publisher.outlet(minute)
    assert publisher.outlet(minute) is not publisher.outlet(hour)


async def test_two_runs_are_told_apart() -> None:
    bus = KeptBus()
    for _ in range(2):
        async with Publisher(bus, "binance") as publisher:
            publisher.add(TRADES, trade(1))
    (_, one), (_, other) = bus.batches
    assert (one.sequence, other.sequence) == (1, 1)
    assert one.run != other.run


async def test_a_symbol_that_is_no_topic_is_refused_before_the_first_message() -> None:
    with pytest.raises(BadInput, match="topic"):
        Publisher(KeptBus(), "binance").outlet(Topic(Channel.TRADES, "BTC/#"))
