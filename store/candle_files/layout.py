"""Layouts: what the columns of a candle file mean, by the program that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from market.candle import CANDLE_SCHEMA, COLUMNS
from market.errors import BadInput
from store.candle_files.container import Container


@dataclass(frozen=True, kw_only=True)
class CandleFileFormat:
    """Which layout a file has."""

    #: ``binance archive``, ``ohlcv``, ``recorded`` or ``chandlery``.
    name: str
    #: One line: the layout, the container, and the columns that are left aside.
    description: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each candle column stands in the rows of one file."""

    format: CandleFileFormat
    #: Candle column -> position in the file. The open time is always there.
    columns: Mapping[str, int]
    #: Candle column -> what the file calls it, for messages.
    names: Mapping[str, str]
    #: Position of the last millisecond or the end of the bucket, from which an early close shows.
    close_time: int | None = None
    #: Position of the column that names each row's timeframe.
    timeframe: int | None = None
    #: Positions of the columns of our own answers that say a row is no whole candle.
    missing: int | None = None
    closed: int | None = None


@dataclass(frozen=True)
class _Known:
    """A layout as programs write it; a name may have spellings, separated by ``|``."""

    name: str
    description: str
    #: Candle column -> names in the file.
    columns: Mapping[str, str]
    close_time: str = ""
    timeframe: str = ""


_OHLC = {name: name for name in ("open", "high", "low", "close")}
_REQUIRED = tuple(field.name for field in CANDLE_SCHEMA if not field.nullable)

_RECORDED = _Known(
    name="recorded",
    description="recorded candles (open_time_ms, open, high, low, close, volume_base, ...)",
    columns={
        "open_time": "open_time_ms",
        **_OHLC,
        "volume": "volume_base",
        "quote_volume": "volume_quote",
        "trades": "trades",
        "taker_buy_volume": "taker_buy_base",
        "taker_buy_quote_volume": "taker_buy_quote",
    },
    close_time="close_time_ms",
    timeframe="interval",
)
_BINANCE = _Known(
    name="binance archive",
    description="Binance public archive (open_time, open, high, low, close, volume, close_time, quote_volume, "
    "count, taker_buy_volume, taker_buy_quote_volume, ignore; with or without header)",
    columns={
        "open_time": "open_time",
        **_OHLC,
        "volume": "volume",
        "quote_volume": "quote_volume|quote_asset_volume",
        "trades": "count|number_of_trades|trades",
        "taker_buy_volume": "taker_buy_volume|taker_buy_base_asset_volume|taker_buy_base_volume",
        "taker_buy_quote_volume": "taker_buy_quote_volume|taker_buy_quote_asset_volume",
    },
    close_time="close_time",
)
_CHANDLERY = _Known(
    name="chandlery",
    description="an export of Chandlery (" + ", ".join(COLUMNS[:6]) + ", ...)",
    columns={name: name for name in COLUMNS},
)
_OHLCV = _Known(
    name="ohlcv",
    description="OHLCV of ccxt or freqtrade (timestamp or date, open, high, low, close, volume; "
    "with or without header)",
    columns={"open_time": "timestamp|date|datetime|time", **_OHLC, "volume": "volume"},
)
#: In the order they are tried; the first whose required columns are all there wins.
_LAYOUTS = (_RECORDED, _BINANCE, _CHANDLERY, _OHLCV)
#: A Binance row without header, by position; the last column means nothing.
_BINANCE_ROW = (
    "open_time", "open", "high", "low", "close", "volume", "close_time",
    "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip
_OHLCV_ROW = ("timestamp", "open", "high", "low", "close", "volume")


def layout_of(container: Container, path: Path) -> Layout:
    """The layout of an open file.

    :raises BadInput: naming ``file``, the columns found, those missing from the nearest layout, and all layouts.
    """
    names = container.names
    if names is None:
        known, names = _by_width(container, path)
        return _placed(known, names, names, container, path)
    plain = [name.strip().lower().replace(" ", "_") for name in names]
    for known in _LAYOUTS:
        if not _missing(known, plain):
            return _placed(known, plain, names, container, path)
    nearest = min(_LAYOUTS, key=lambda one: len(_missing(one, plain)))
    missing = ", ".join(one.replace("|", " or ") for one in _missing(nearest, plain))
    raise BadInput(
        "file",
        str(path),
        f"a known layout; its columns are {', '.join(names)[:300]}; for {nearest.name} it lacks {missing}. "
        + _all_layouts(),
    )


def _by_width(container: Container, path: Path) -> tuple[_Known, tuple[str, ...]]:
    if container.width == len(_BINANCE_ROW):
        return _BINANCE, _BINANCE_ROW
    if container.width == len(_OHLCV_ROW):
        return _OHLCV, _OHLCV_ROW
    raise BadInput(
        "file",
        str(path),
        f"a known layout; its {container.kind} rows have no header and {container.width} columns, known are 6 "
        f"(open time, open, high, low, close, volume) and 12 (Binance). " + _all_layouts(),
    )


def _all_layouts() -> str:
    return "Known layouts: " + "; ".join(one.description for one in _LAYOUTS)


def _missing(known: _Known, plain: list[str]) -> list[str]:
    """The required columns that are not there; the close time is what tells Binance's layout from ours."""
    wanted = [known.columns[name] for name in _REQUIRED]
    if known is _BINANCE:
        wanted.append(known.close_time)
    return [one for one in wanted if not set(one.split("|")) & set(plain)]


def _placed(
    known: _Known, plain: list[str] | tuple[str, ...], names: tuple[str, ...], container: Container, path: Path
) -> Layout:
    columns: dict[str, int] = {}
    for target, spellings in known.columns.items():
        found = _position(plain, spellings, path)
        if found is not None:
            columns[target] = found
    close_time = _position(plain, known.close_time, path)
    timeframe = _position(plain, known.timeframe, path)
    ours = known is _CHANDLERY
    missing, closed = (_position(plain, name, path) if ours else None for name in ("missing", "closed"))
    used = {*columns.values(), close_time, timeframe, missing, closed}
    aside = [name for index, name in enumerate(names) if index not in used and plain[index] != "ignore"]
    description = f"{known.description}, {container.kind}"
    if aside:
        description += "; left aside: " + ", ".join(aside)
    return Layout(
        format=CandleFileFormat(name=known.name, description=description),
        columns=columns,
        names={target: names[index] for target, index in columns.items()},
        close_time=close_time,
        timeframe=timeframe,
        missing=missing,
        closed=closed,
    )


def _position(plain: list[str] | tuple[str, ...], spellings: str, path: Path) -> int | None:
    found = [index for index, name in enumerate(plain) if name in spellings.split("|")]
    if len(found) > 1:
        twice = ", ".join(plain[index] for index in found)
        raise BadInput("file", str(path), f"one column for each meaning; it has {twice}")
    return found[0] if found else None
