"""Round trips told from fills: hand-worked numbers."""

from __future__ import annotations

import pytest

from backtest.round_trip import round_trips
from trading.order import Side
from trading.portfolio import Fill


def fill(side: Side, quantity: float, price: float, at: int, fee: float = 0.0, symbol: str = "BTC/USDT") -> Fill:
    return Fill(symbol=symbol, side=side, quantity=quantity, price=price, fee=fee, decided_at=at, filled_at=at)


def test_several_fills_make_one_round_trip() -> None:
    (trip,) = round_trips(
        [
            fill(Side.BUY, 1, 100, at=1, fee=0.1),
            fill(Side.BUY, 3, 120, at=2, fee=0.36),
            fill(Side.SELL, 2, 130, at=3, fee=0.26),
            fill(Side.SELL, 2, 110, at=4, fee=0.22),
        ]
    )
    assert (trip.entered_at, trip.exited_at, trip.quantity) == (1, 4, 4)
    assert (trip.entry_price, trip.exit_price) == (115, 120)
    assert trip.fees == pytest.approx(0.94)
    assert trip.profit == pytest.approx(480 - 460 - 0.94)
    assert trip.return_percent == pytest.approx(100 * 19.06 / 460.46)


def test_symbols_are_apart_and_an_open_holding_is_no_round_trip() -> None:
    trips = round_trips(
        [
            fill(Side.BUY, 1, 100, at=1),
            fill(Side.BUY, 1, 10, at=2, symbol="ETH/USDT"),
            fill(Side.SELL, 1, 12, at=3, symbol="ETH/USDT"),
            fill(Side.BUY, 1, 11, at=4, symbol="ETH/USDT"),
        ]
    )
    assert [(one.symbol, one.profit) for one in trips] == [("ETH/USDT", 2)]
