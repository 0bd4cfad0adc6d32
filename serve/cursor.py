"""Cursors: where a long read goes on, as text that only this service needs to understand."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

import orjson

from market.clock import EARLIEST_MS, LATEST_MS
from market.errors import BadInput
from market.instrument import Series

_VERSION = 1
_ACCEPTED = "`next_cursor` of an answer to this same query, unchanged"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The rest of a range that an earlier answer began."""

    #: First instant still to be read, epoch milliseconds.
    start_ms: int
    #: End of the whole range, exclusive, as the first page was asked for; None: up to what is known.
    end_ms: int | None


def write_cursor(place: Place, series: Series, as_of_ms: int | None, include_forming: bool) -> str:
    """The place as opaque text, bound to the query it belongs to."""
    seal = _seal(series, as_of_ms, include_forming)
    raw = orjson.dumps([_VERSION, place.start_ms, place.end_ms, seal])
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def read_cursor(text: str, series: Series, as_of_ms: int | None, include_forming: bool) -> Place:
    """The place that :func:`write_cursor` wrote.

    :raises BadInput: not a cursor, or one of another series, `as_of` or `include_forming`.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, start_ms, end_ms, seal = orjson.loads(raw)
    except (binascii.Error, ValueError, TypeError):
        raise BadInput("cursor", text, _ACCEPTED) from None
    last = LATEST_MS if end_ms is None else end_ms
    numbers = type(start_ms) is int and type(last) is int
    if version != _VERSION or not numbers or not EARLIEST_MS <= start_ms < last <= LATEST_MS:
        raise BadInput("cursor", text, _ACCEPTED)
    if seal != _seal(series, as_of_ms, include_forming):
        raise BadInput("cursor", text, _ACCEPTED + "; this one belongs to another series, as_of or include_forming")
    return Place(start_ms=start_ms, end_ms=end_ms)


def _seal(series: Series, as_of_ms: int | None, include_forming: bool) -> str:
    text = f"{series.exchange}|{series.symbol}|{series.timeframe}|{as_of_ms}|{include_forming}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
