"""Which exchanges there are, told without importing ccxt: that takes a second."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from market.errors import NotFound


def known_exchanges() -> list[str]:
    """The ids of ccxt's exchanges, sorted."""
    found = find_spec("ccxt")
    folders = found.submodule_search_locations or [] if found is not None else []
    # ccxt has one module for each exchange, called by its id.
    return sorted(path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py"))


def check_known(exchange: str, field: str = "exchange") -> None:
    """Make sure that ccxt knows the exchange with this id.

    :raises NotFound: naming `field`, with the nearest ids.
    """
    ids = known_exchanges()
    if exchange not in ids:
        near = get_close_matches(exchange.lower(), ids, 5, 0.6)
        hint = "a ccxt exchange id" + (", such as " + ", ".join(near) if near else " such as binance, kraken, okx")
        raise NotFound(field, exchange, hint=hint)
