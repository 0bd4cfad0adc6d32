"""Orders say exactly one size, and a sane one."""

from __future__ import annotations

import pytest

from market.errors import BadInput
from trading.order import Order, Side, buy, sell


def test_buy_and_sell_build_orders() -> None:
    assert buy("BTC/USDT", fraction=1.0) == Order("BTC/USDT", Side.BUY, fraction=1.0)
    assert sell("BTC/USDT", quantity=2, tag="exit") == Order("BTC/USDT", Side.SELL, quantity=2, tag="exit")


@pytest.mark.parametrize("sizes", [{}, {"quantity": 1.0, "fraction": 0.5}, {"notional": 1.0, "quantity": 1.0}])
def test_exactly_one_size(sizes: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="exactly one of quantity, notional and fraction"):
        buy("BTC/USDT", **sizes)


@pytest.mark.parametrize("name", ["quantity", "notional", "fraction"])
@pytest.mark.parametrize("size", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_size_is_a_finite_number_above_zero(name: str, size: object) -> None:
    with pytest.raises(BadInput, match=f"order {name}"):
        sell("BTC/USDT", **{name: size})


def test_a_fraction_is_at_most_one() -> None:
    with pytest.raises(BadInput, match="order fraction"):
        buy("BTC/USDT", fraction=1.01)
