"""Opening the live streams of an exchange by its id."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from exchange.address import check_address
from exchange.binance.history import BINANCE_IDS
from exchange.binance.streams import BinanceStreams
from exchange.bybit.streams import BybitStreams
from exchange.ccxt_streams import CcxtStreams
from exchange.coinbase.streams import CoinbaseStreams
from exchange.names import check_known
from exchange.okx.streams import OkxStreams
from exchange.stream import StreamClient

#: From ccxt's id, unified symbols to the exchange's, and another address, to a client of our own.
Open = Callable[[str, Mapping[str, str], str | None], StreamClient]

#: Exchanges with a client of their own, by ccxt's id.
NATIVE: dict[str, Open] = {
    **dict.fromkeys(BINANCE_IDS, BinanceStreams),
    "bybit": BybitStreams,
    "coinbase": CoinbaseStreams,
    "coinbaseexchange": CoinbaseStreams,
    "okx": OkxStreams,
}


def open_streams(exchange: str, url: str | None, symbols: Mapping[str, str]) -> StreamClient:
    """The live streams of the exchange with ccxt id `exchange`; nothing is connected yet.

    :param url: another address for all of it (a simulated exchange, a proxy), for example
        ``http://127.0.0.1:9900``. Only scheme and host change; the paths are the exchange's own.
    :param symbols: unified symbol to the exchange's, of all instruments that may be asked for.
    :raises NotFound: for an id that ccxt does not know, with the nearest ones, or one without streams there.
    :raises BadInput: for an address that is not one.
    """
    address = None if url is None else check_address(url)
    check_known(exchange)
    opened = NATIVE.get(exchange)
    return CcxtStreams(exchange, address) if opened is None else opened(exchange, symbols, address)
