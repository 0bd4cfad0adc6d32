"""The account of a simulation: hand-worked numbers, and what must hold for any sequence of orders."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.order import Order, Side, buy, sell
from trading.portfolio import Fill, Portfolio, RefusedOrder


def fill(portfolio: Portfolio, order: Order, price: float, fee_rate: float = 0.001) -> Fill | RefusedOrder:
    return portfolio.fill(order, price=price, fee_rate=fee_rate, decided_at=1, filled_at=2)


def test_buying_by_quantity_pays_the_notional_and_the_fee() -> None:
    portfolio = Portfolio(1_000.0, lambda symbol: 110.0)
    done = fill(portfolio, buy("BTC/USDT", quantity=5), 100.0)
    assert isinstance(done, Fill)
    assert (done.quantity, done.price, done.fee) == (5, 100.0, pytest.approx(0.5))
    assert portfolio.cash == pytest.approx(499.5)
    assert portfolio.positions["BTC/USDT"].entry_price == 100.0
    assert portfolio.equity == pytest.approx(499.5 + 5 * 110.0)


def test_a_second_buy_averages_the_entry_price() -> None:
    portfolio = Portfolio(1_000.0, lambda symbol: 0.0)
    fill(portfolio, buy("BTC/USDT", quantity=1), 100.0)
    fill(portfolio, buy("BTC/USDT", quantity=3), 120.0)
    assert portfolio.positions["BTC/USDT"].entry_price == pytest.approx(115.0)
    assert portfolio.positions["BTC/USDT"].opened_at == 2


def test_spending_everything_leaves_exactly_nothing_and_selling_everything_is_exactly_flat() -> None:
    portfolio = Portfolio(1_000.0, lambda symbol: 0.0)
    fill(portfolio, buy("BTC/USDT", fraction=1.0), 33.3)
    assert portfolio.cash == 0.0
    fill(portfolio, sell("BTC/USDT", fraction=1.0), 33.3)
    position = portfolio.positions["BTC/USDT"]
    assert (position.quantity, position.entry_price, position.opened_at) == (0.0, 0.0, None)
    # 1000 / 1.001 bought, 0.1 % of that taken again: 998.002 remain.
    assert portfolio.cash == pytest.approx(1_000 / 1.001 * 0.999)


def test_a_notional_is_paid_fee_included_and_sold_before_the_fee() -> None:
    portfolio = Portfolio(1_000.0, lambda symbol: 0.0)
    done = fill(portfolio, buy("BTC/USDT", notional=100.1), 10.0)
    assert isinstance(done, Fill)
    assert done.quantity == pytest.approx(10.0)
    assert portfolio.cash == pytest.approx(899.9)
    done = fill(portfolio, sell("BTC/USDT", notional=50.0), 10.0)
    assert isinstance(done, Fill)
    assert (done.quantity, done.fee) == (5.0, pytest.approx(0.05))


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (buy("BTC/USDT", quantity=10), "costs 1001 with fee, and 1000 is free"),
        (sell("BTC/USDT", quantity=1), "needs more than the 0 held"),
        (sell("BTC/USDT", fraction=1.0), "there is no BTC/USDT to sell"),
    ],
)
def test_what_a_spot_account_cannot_do_is_refused_and_changes_nothing(order: Order, reason: str) -> None:
    portfolio = Portfolio(1_000.0, lambda symbol: 0.0)
    refused = fill(portfolio, order, 100.0)
    assert isinstance(refused, RefusedOrder)
    assert reason in refused.reason
    assert (portfolio.cash, portfolio.positions["BTC/USDT"].quantity, portfolio.fees) == (1_000.0, 0.0, 0.0)


sizes = st.one_of(
    st.fixed_dictionaries({"quantity": st.floats(0.001, 50)}),
    st.fixed_dictionaries({"notional": st.floats(0.01, 2_000)}),
    st.fixed_dictionaries({"fraction": st.floats(0.01, 1)}),
)
orders = st.builds(
    lambda symbol, side, size: Order(symbol, side, **size),
    st.sampled_from(["BTC/USDT", "ETH/USDT"]),
    st.sampled_from(list(Side)),
    sizes,
)


@given(st.lists(st.tuples(orders, st.floats(0.5, 500)), max_size=30), st.floats(0, 0.05))
def test_cash_and_positions_are_conserved(steps: list[tuple[Order, float]], fee_rate: float) -> None:
    """A fill at a price changes the worth at that price by its fee only; nothing is ever negative."""
    prices = {"BTC/USDT": 1.0, "ETH/USDT": 1.0}
    portfolio = Portfolio(1_000.0, prices.__getitem__)
    fees = 0.0
    for order, price in steps:
        prices[order.symbol] = price
        before = portfolio.equity
        done = fill(portfolio, order, price, fee_rate)
        fee = done.fee if isinstance(done, Fill) else 0.0
        fees += fee
        assert math.isclose(portfolio.equity, before - fee, rel_tol=1e-9, abs_tol=1e-6)
        assert portfolio.cash >= 0
        assert all(one.quantity >= 0 for one in portfolio.positions.values())
    assert math.isclose(portfolio.fees, fees, abs_tol=1e-9)
