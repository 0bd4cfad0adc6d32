"""The parameters of a request, read and refused the way Binance does."""

from __future__ import annotations

import re
from collections.abc import Iterable

import orjson

from market.errors import BadInput
from market.timeframe import Timeframe

_SYMBOL = re.compile(r"[A-Z0-9-_.]{1,20}\Z")
_NUMBER = re.compile(r"[0-9]{1,20}\Z")


class Refused(Exception):
    """An error answer: HTTP status, Binance's code and message."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Query:
    """The parameters of one request.

    :raises Refused: if one is sent twice, or is none of `known`.
    """

    def __init__(self, sent: Iterable[tuple[str, str]], known: tuple[str, ...]) -> None:
        self._values: dict[str, str] = {}
        for name, value in sent:
            if name in self._values:
                raise Refused(-1101, "Duplicate values for a parameter detected.")
            self._values[name] = value
        read = [name for name in self._values if name in known]
        if len(read) == len(self._values):
            return
        if not known:
            raise Refused(-1101, f"Too many parameters; expected '0' and received '{len(self._values)}'.")
        raise Refused(
            -1104,
            f"Not all sent parameters were read; read '{len(read)}' parameter(s) "
            f"but was sent '{len(self._values)}'.",
        )

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str | None:
        """A parameter as text; None if it was not sent."""
        value = self._values.get(name)
        if value == "":
            raise Refused(-1105, f"Parameter '{name}' was empty.")
        return value

    def required(self, name: str) -> str:
        """A parameter that must be there."""
        value = self._values.get(name)
        if not value:
            raise Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
        return value

    def number(self, name: str) -> int | None:
        """A whole number of zero or more."""
        value = self.text(name)
        if value is None:
            return None
        if not _NUMBER.match(value):
            raise Refused(
                -1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'."
            )
        number = int(value)
        if number >= 2**63:
            raise Refused(-1108, f"Parameter '{name}' overflowed.")
        return number

    def limit(self, default: int, most: int) -> int:
        """``limit``; more than `most` counts as `most`, as on Binance."""
        limit = self.number("limit")
        if limit == 0:
            raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(limit or default, most)

    def symbol(self) -> str:
        """``symbol``, which must be there."""
        return _legal(self.required("symbol"), "symbol")

    def symbols(self) -> list[str] | None:
        """The symbols of ``symbol`` or ``symbols``; None if neither was sent."""
        if "symbol" in self and "symbols" in self:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        if "symbol" in self:
            return [self.symbol()]
        text = self.text("symbols")
        if text is None:
            return None
        try:
            symbols = orjson.loads(text)
        except orjson.JSONDecodeError:
            symbols = None
        if not isinstance(symbols, list) or not symbols or not all(isinstance(one, str) for one in symbols):
            raise Refused(
                -1100,
                "Illegal characters found in parameter 'symbols'; legal range is "
                '\'^\\["[A-Z0-9-_.]{1,20}"(,"[A-Z0-9-_.]{1,20}"){0,}\\]$\'.',
            )
        if len(set(symbols)) < len(symbols):
            raise Refused(-1151, "Symbol is present multiple times in the list.")
        return [_legal(one, "symbols") for one in symbols]

    def interval(self) -> Timeframe:
        """``interval``, which must be there."""
        try:
            return Timeframe.parse(self.required("interval"))
        except BadInput:
            raise Refused(-1120, "Invalid interval.") from None


def _legal(symbol: str, name: str) -> str:
    if not _SYMBOL.match(symbol):
        raise Refused(
            -1100, f"Illegal characters found in parameter '{name}'; legal range is '^[A-Z0-9-_.]{{1,20}}$'."
        )
    return symbol
