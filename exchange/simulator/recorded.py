"""Markets from a folder of recorded one-minute candles.

Files are Parquet, named ``binance_spot_<SYMBOL>_1m_<anything>.parquet`` (others are ignored), with the columns
``open_time_ms, open, high, low, close, volume_base`` and, where the recorder had them, ``volume_quote, trades,
taker_buy_base, taker_buy_quote, close_time_ms``; prices and volumes are decimals or floats. Several files of one
symbol are joined by open time; where two hold the same minute the one with all columns wins.

Everything is served as recorded: absent minutes, flat minutes, candles that end early. Columns a file does not have
are made up, so that trades can be: quote volume is volume times the mean of open, high, low and close; trades are
20, or fewer if the volume has fewer lots; takers buy half.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from exchange.simulator.market import FirstIds, Listing
from exchange.simulator.prints import MOST_PRINTS
from market.candle import PRICES, Float64s, candles, floats
from market.errors import BadInput, NotFound
from market.timeframe import MINUTE_MS, Int64s

_NAME = re.compile(r"binance_spot_([A-Z0-9]+)_1m_.*\.parquet\Z")
_FILE_FORM = "a folder with files binance_spot_<SYMBOL>_1m_*.parquet"
_REQUIRED = ("open_time_ms", "open", "high", "low", "close", "volume_base")
_COLUMNS_FORM = "candles with the columns " + ", ".join(_REQUIRED)
#: Our column: theirs.
_RENAMED = {
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "volume": "volume_base",
    "quote_volume": "volume_quote",
    "taker_buy_volume": "taker_buy_base",
    "taker_buy_quote_volume": "taker_buy_quote",
}
#: Quote assets of Binance spot, the ones that end like another one first.
_QUOTES = (
    *(
        "FDUSD",
        "USDT",
        "USDC",
        "BUSD",
        "TUSD",
        "BIDR",
        "BKRW",
        "BVND",
        "IDRT",
        "USDP",
        "USDS",
        "GYEN",
        "BTC",
        "ETH",
    ),
    *(
        "BNB",
        "EUR",
        "GBP",
        "TRY",
        "BRL",
        "AUD",
        "RUB",
        "UAH",
        "NGN",
        "ZAR",
        "JPY",
        "ARS",
        "COP",
        "MXN",
        "PLN",
        "RON",
    ),
    *("CZK", "DAI", "PAX", "VAI", "TRX", "XRP", "DOGE", "SOL", "DOT"),
)
_MADE_UP_TRADES = 20


def recorded_symbols(folder: Path) -> dict[str, list[Path]]:
    """The symbols recorded in `folder` (``BTCUSDT``), each with its files.

    :raises BadInput: if there is no such folder, or no one-minute file of Binance spot in it.
    """
    if not folder.is_dir():
        raise BadInput("--data", str(folder), _FILE_FORM + "; there is no such folder")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if found := _NAME.match(path.name):
            files.setdefault(found[1], []).append(path)
    if not files:
        raise BadInput("--data", str(folder), _FILE_FORM + "; it has none")
    return files


def recorded_range(files: list[Path]) -> tuple[int, int]:
    """From the open of the first recorded minute to the end of the last, from the files' own statistics.

    :raises BadInput: naming a file that cannot be read.
    """
    opens: list[int] = []
    for path in files:
        try:
            metadata = pq.read_metadata(path)
            names = metadata.schema.names
            if missing := [name for name in _REQUIRED if name not in names]:
                raise BadInput("--data", str(path), f"{_COLUMNS_FORM}; it lacks {', '.join(missing)}")
            column = names.index("open_time_ms")
            groups = [metadata.row_group(at).column(column).statistics for at in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as exc:
            raise BadInput("--data", str(path), f"a readable Parquet file ({exc})") from exc
        known = [one for one in groups if one is not None and one.has_min_max]
        if len(known) < len(groups) or not known:
            times = pq.read_table(path, columns=["open_time_ms"]).column(0).to_pylist()
            opens.extend((min(times), max(times)) if times else ())
        else:
            opens.extend((min(one.min for one in known), max(one.max for one in known)))
    if not opens:
        raise BadInput("--data", ", ".join(path.name for path in files), "files with at least one candle")
    return min(opens), max(opens) + MINUTE_MS


def split_symbol(exchange_symbol: str) -> tuple[str, str]:
    """``BTCUSDT`` as base and quote, by the quote assets Binance has.

    :raises BadInput: if it ends in none of them.
    """
    for quote in _QUOTES:
        if exchange_symbol.endswith(quote) and exchange_symbol != quote:
            return exchange_symbol.removesuffix(quote), quote
    raise BadInput("--data", exchange_symbol, "a symbol that ends in a quote asset of Binance spot, such as USDT")


def wanted_symbols(folder: Path, symbols: tuple[str, ...] | None) -> dict[str, list[Path]]:
    """The files of each of `symbols` (``BTC/USDT`` or ``BTCUSDT``); of all recorded ones for None.

    :raises NotFound: naming a symbol that is not recorded, and those that are.
    """
    files = recorded_symbols(folder)
    if symbols is None:
        return files
    wanted = {}
    for symbol in symbols:
        key = symbol.replace("/", "").upper()
        if key not in files:
            raise NotFound("--symbols", symbol, ["/".join(split_symbol(one)) for one in files])
        wanted[key] = files[key]
    return wanted


class RecordedTape:
    """The recorded candles of one symbol, in memory."""

    def __init__(self, exchange_symbol: str, files: list[Path]) -> None:
        base, quote = split_symbol(exchange_symbol)
        parts = [_File.read(path) for path in files]
        self.listing = Listing(
            base=base,
            quote=quote,
            price_decimals=max(part.price_decimals for part in parts),
            lot_decimals=max(part.lot_decimals for part in parts),
        )
        self._table = _joined(parts, self.listing)
        self._opens: Int64s = self._table.column("open_time").cast(pa.int64()).to_numpy()
        trades: Int64s = self._table.column("trades").to_numpy()
        lots = np.rint(floats(self._table, "volume") * 10**self.listing.lot_decimals).astype(np.int64)
        prints = np.minimum(np.minimum(trades, MOST_PRINTS), lots)
        self._first_print = np.concatenate(([0], np.cumsum(prints)))
        self._first_trade = np.concatenate(([0], np.cumsum(np.minimum(trades, lots))))

    @property
    def start_ms(self) -> int:
        """Open time of the first candle."""
        return int(self._opens[0])

    @property
    def end_ms(self) -> int:
        """End of the last candle's minute."""
        return int(self._opens[-1]) + MINUTE_MS

    def candles(self, start_ms: int, end_ms: int) -> pa.Table:
        start, end = np.searchsorted(self._opens, (start_ms, end_ms))
        return self._table.slice(start, max(0, end - start))

    def next_open(self, ms: int) -> int | None:
        row = int(np.searchsorted(self._opens, ms))
        return int(self._opens[row]) if row < len(self._opens) else None

    def previous_open(self, ms: int) -> int | None:
        row = int(np.searchsorted(self._opens, ms)) - 1
        return int(self._opens[row]) if row >= 0 else None

    def first_ids(self, open_ms: int) -> FirstIds:
        row = int(np.searchsorted(self._opens, open_ms))
        return FirstIds(int(self._first_print[row]), int(self._first_trade[row]))

    def minute_of_print(self, print_id: int) -> int | None:
        return self._minute_of(self._first_print, print_id)

    def minute_of_trade(self, trade_id: int) -> int | None:
        return self._minute_of(self._first_trade, trade_id)

    def _minute_of(self, first: Int64s, id_: int) -> int | None:
        row = int(np.searchsorted(first, id_, side="right")) - 1
        return int(self._opens[row]) if row < len(self._opens) else None


class _File:
    """One recorded file: our columns, and how many decimals it uses."""

    def __init__(self, columns: dict[str, Any], complete: bool, price_decimals: int, lot_decimals: int) -> None:
        self.columns = columns
        self.complete = complete
        self.price_decimals = price_decimals
        self.lot_decimals = lot_decimals

    @staticmethod
    def read(path: Path) -> _File:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as exc:
            raise BadInput("--data", str(path), f"a readable Parquet file ({exc})") from exc
        if not table.num_rows or not set(_REQUIRED) <= set(table.column_names):
            raise BadInput("--data", str(path), _COLUMNS_FORM)
        columns: dict[str, Any] = {"open_time": table.column("open_time_ms").to_numpy()}
        for ours, theirs in _RENAMED.items():
            if theirs in table.column_names:
                columns[ours] = _exact_floats(table.column(theirs))
        if "trades" in table.column_names:
            columns["trades"] = table.column("trades").to_numpy()
        if "close_time_ms" in table.column_names:
            columns["close_time"] = table.column("close_time_ms").to_numpy()
        return _File(
            columns,
            complete=len(columns) == len(_RENAMED) + 3,
            price_decimals=max(_decimals(table.column(name), columns[name]) for name in PRICES),
            lot_decimals=_decimals(table.column("volume_base"), columns["volume"]),
        )


def _exact_floats(column: pa.ChunkedArray) -> Float64s:
    """A decimal column as the floats nearest to its values: by way of text, for Arrow's direct cast from decimal
    to float is off by one ulp at times."""
    through = column.cast(pa.string()) if pa.types.is_decimal(column.type) else column
    values: Float64s = through.cast(pa.float64()).to_numpy()
    return values


def _decimals(column: pa.ChunkedArray, values: Float64s) -> int:
    """How many decimals a column uses, at most eight."""
    if pa.types.is_decimal(column.type):
        return int(min(8, column.type.scale))
    for decimals in range(8):
        scale = 10.0**decimals
        if bool((np.rint(values * scale) / scale == values).all()):
            return decimals
    return 8


def _joined(parts: list[_File], listing: Listing) -> pa.Table:
    """The candles of all files by open time; of two for one minute, the complete one."""
    filled = [_filled(part, listing) for part in sorted(parts, key=lambda part: not part.complete)]
    columns = {name: np.concatenate([one[name] for one in filled]) for name in filled[0]}
    # A stable sort keeps rows of one minute in order of preference; the first one stays.
    order = np.argsort(columns["open_time"], kind="stable")
    times = columns["open_time"][order]
    order = order[np.concatenate(([True], times[1:] != times[:-1]))]
    columns = {name: values[order] for name, values in columns.items()}
    close_times = columns.pop("close_time")
    full = close_times == columns["open_time"] + MINUTE_MS - 1
    return candles({**columns, "early_close_time": pa.array(close_times, mask=full)}).combine_chunks()


def _filled(part: _File, listing: Listing) -> dict[str, npt.NDArray[Any]]:
    """All columns of a file, the absent ones made up (see the module's docstring)."""
    columns = dict(part.columns)
    tick, lot = 10**listing.price_decimals, 10**listing.lot_decimals
    lots = np.rint(columns["volume"] * lot)
    mean = np.rint(sum(np.rint(columns[name] * tick) for name in PRICES) / 4)
    columns.setdefault("trades", np.minimum(lots, _MADE_UP_TRADES).astype(np.int64))
    columns.setdefault("quote_volume", lots * mean / (tick * lot))
    if "taker_buy_volume" not in columns:
        half = np.floor(lots / 2)
        columns["taker_buy_volume"] = half / lot
        columns["taker_buy_quote_volume"] = half * mean / (tick * lot)
    columns.setdefault("close_time", columns["open_time"] + MINUTE_MS - 1)
    return columns
