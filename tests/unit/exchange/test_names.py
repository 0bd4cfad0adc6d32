"""The ids that are told without importing ccxt are ccxt's own."""

from __future__ import annotations

import ccxt.async_support as ccxt
import pytest

from exchange.names import check_known, known_exchanges
from market.errors import NotFound


def test_the_ids_are_those_of_ccxt() -> None:
    assert known_exchanges() == sorted(ccxt.exchanges)


def test_an_unknown_id_is_refused_with_the_nearest() -> None:
    check_known("binance")
    with pytest.raises(NotFound, match=r"--exchange: 'binanec'.*binance"):
        check_known("binanec", "--exchange")
