"""Query parameters: text from a URL becomes a type of the field, or is refused by name.

Every parameter reaches its route as text and is read here, so that all refusals have one form; the types that the
OpenAPI document shows stand beside each parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import WithJsonSchema

from market.clock import to_ms
from market.errors import BadInput
from market.timeframe import TIMEFRAMES
from serve.words import close_match

_INTEGER = re.compile(r"-?[0-9]{1,18}\Z")
#: Longest text of one parameter, in characters; a hundred symbols fit.
_LONGEST = 8_000
#: Parameters that may be given more than once.
_LISTS = frozenset({"symbols"})
_INSTANT = "ISO 8601 with a zone, a UTC date, or epoch milliseconds"


def _shown(example: object, **schema: object) -> WithJsonSchema:
    """What the OpenAPI document says of a parameter that reaches us as text."""
    return WithJsonSchema({"type": "string", **schema, "examples": [example]})


_TIMEFRAMES = list(TIMEFRAMES)

Exchange = Annotated[str, Query(description="ccxt exchange id."), _shown("binance")]
SomeExchange = Annotated[str | None, Query(description="Only this exchange."), _shown("binance")]
Symbol = Annotated[str, Query(description="ccxt unified symbol."), _shown("BTC/USDT")]
SomeSymbol = Annotated[str | None, Query(description="Only this symbol."), _shown("BTC/USDT")]
Symbols = Annotated[
    list[str],
    Query(description="Symbols as a comma list, or the parameter repeated; at most 100."),
    _shown(["BTC/USDT"], type="array", items={"type": "string"}),
]
TimeframeName = Annotated[
    str, Query(description="Candle length; `m` is minutes, `M` months."), _shown("1m", enum=_TIMEFRAMES)
]
SomeTimeframe = Annotated[str | None, Query(description="Only this timeframe."), _shown("1m", enum=_TIMEFRAMES)]
Start = Annotated[
    str | None, Query(description=f"First instant, inclusive: {_INSTANT}."), _shown("2023-03-24T12:00:00Z")
]
End = Annotated[
    str | None,
    Query(description=f"Last instant, exclusive: {_INSTANT}. Default: the last known instant."),
    _shown("2023-03-24T15:00:00Z"),
]
AsOf = Annotated[
    str | None,
    Query(description=f"Answer as the data was known at this instant: {_INSTANT}."),
    _shown("2023-06-01"),
]
Limit = Annotated[
    str | None,
    Query(
        description="Most rows in one answer. With `start` the first ones, without it the newest. "
        "JSON and CSV take up to 50,000, Arrow and Parquet up to 1,000,000."
    ),
    _shown(500, type="integer", minimum=1, maximum=1_000_000, default=1000),
]
BatchLimit = Annotated[
    str | None,
    Query(description="Most rows per symbol. With `start` the first ones, without it the newest."),
    _shown(500, type="integer", minimum=1, maximum=5_000, default=1000),
]
Cursor = Annotated[
    str | None,
    Query(description="`next_cursor` of the answer before, in place of `start`; the rest stays the same."),
    _shown("WzEsMTY3OTY2MjgwMDAwMCwxNjc5NjcwMDAwMDAwLCI3YzFhIl0"),
]
IncludeForming = Annotated[
    str | None,
    Query(description="Also give the candle that has not closed; adds a column `closed`."),
    _shown(False, type="boolean", default=False),
]
ColumnNames = Annotated[
    str | None,
    Query(description="Comma list of columns; `open_time` always comes first. Default: all."),
    _shown("close,volume"),
]
FormatName = Annotated[
    str | None,
    Query(description="Form of the answer."),
    _shown("json", enum=["json", "csv", "arrow", "parquet"], default="json"),
]


class StrictRoute(APIRoute):
    """A route that refuses query parameters it does not know, repeated ones, and ones too long to be meant."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        known = frozenset(_names(self.dependant))

        async def checked(request: Request) -> Response:
            _check_names(request, known)
            return await answer(request)

        return checked


def _names(dependant: Dependant) -> Iterator[str]:
    for one in dependant.query_params:
        yield one.alias
    for inner in dependant.dependencies:
        yield from _names(inner)


def _check_names(request: Request, known: frozenset[str]) -> None:
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        if name not in known:
            listed = f"one of the parameters {', '.join(sorted(known))}" if known else "no parameters"
            raise BadInput(name[:80], value, listed + close_match(name, known))
        if name in seen and name not in _LISTS:
            raise BadInput(name, value, "the parameter once; it was given more than once")
        if len(value) > _LONGEST:
            raise BadInput(name, value, f"at most {_LONGEST} characters")
        seen.add(name)


def whole_number(value: str | None, field: str, default: int, least: int, most: int) -> int:
    """`value` as an integer in ``[least, most]``, `default` where it was not given."""
    if value is None:
        return default
    accepted = f"a whole number from {least} to {most}"
    if not _INTEGER.match(value):
        raise BadInput(field, value, accepted)
    number = int(value)
    if not least <= number <= most:
        raise BadInput(field, number, accepted)
    return number


def yes_or_no(value: str | None, field: str) -> bool:
    """``true`` or ``false`` (also 1, 0); absent means no."""
    known = {None: False, "true": True, "1": True, "false": False, "0": False}
    try:
        return known[value.lower() if value is not None else None]
    except KeyError:
        raise BadInput(field, value, "true or false") from None


def instant(value: str | None, field: str) -> int | None:
    """An instant in epoch milliseconds."""
    return None if value is None else to_ms(value, field)
