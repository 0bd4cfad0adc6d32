"""How long a value may be served without asking again, by what it is."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from market.errors import BadInput
from store.cache.trading_hours import TradingHours
from store.control import OperatingState

#: No value is served for longer without asking: milliseconds.
LONGEST_MS = 86_400_000


class TtlClass(StrEnum):
    """The classes of values that age alike (D3)."""

    PRICE = "price"
    ORDER_BOOK = "order_book"
    POSITION = "position"
    RISK = "risk"
    ORDER = "order"
    STRATEGY = "strategy"
    QUERY_RESULT = "query_result"


#: Milliseconds.
DEFAULTS: Mapping[TtlClass, int] = MappingProxyType(
    {
        TtlClass.PRICE: 100,
        TtlClass.ORDER_BOOK: 50,
        TtlClass.POSITION: 1_000,
        TtlClass.RISK: 5_000,
        TtlClass.ORDER: 60_000,
        TtlClass.STRATEGY: 60_000,
        TtlClass.QUERY_RESULT: 300_000,
    }
)

#: What an operating state has different, in milliseconds.
BY_STATE: Mapping[OperatingState, Mapping[TtlClass, int]] = MappingProxyType(
    {
        OperatingState.AGGRESSIVE: MappingProxyType({TtlClass.PRICE: 50}),
        OperatingState.BALANCED: MappingProxyType({}),
        OperatingState.DEFENSIVE: MappingProxyType({TtlClass.POSITION: 5_000}),
    }
)

#: All kinds of values there are, and how they age.
KINDS: Mapping[str, TtlClass] = MappingProxyType(
    {
        "ticker": TtlClass.PRICE,
        "trades": TtlClass.PRICE,
        "forming_candle": TtlClass.PRICE,
        "candle_version": TtlClass.PRICE,
        "order_book": TtlClass.ORDER_BOOK,
        "position": TtlClass.POSITION,
        "balance": TtlClass.POSITION,
        "risk": TtlClass.RISK,
        "order": TtlClass.ORDER,
        "fill": TtlClass.ORDER,
        "strategy": TtlClass.STRATEGY,
        "candles": TtlClass.QUERY_RESULT,
        "series": TtlClass.QUERY_RESULT,
        "instruments": TtlClass.QUERY_RESULT,
        "statistics": TtlClass.QUERY_RESULT,
        "query": TtlClass.QUERY_RESULT,
    }
)


def class_of(kind: str, field: str = "kind") -> TtlClass:
    """How values of this kind age; raises BadInput naming `field` if there is no such kind."""
    found = KINDS.get(kind)
    if found is None:
        raise BadInput(field, kind, "one of: " + ", ".join(sorted(KINDS)))
    return found


class TimesToLive:
    """The time to live of each kind of value.

    A time of the kind's own wins over everything; else a class has its own time if given one, else what the
    operating state says, else the default. Times of classes (never those of kinds) are longer while the market
    is closed, if `trading_hours` says so.

    :param classes: milliseconds by class (``price``), 1 to LONGEST_MS. It stands in place of the default: an
        operating state still makes prices at most 50 ms old, and positions at least 5 s.
    :param kinds: milliseconds by kind (``ticker``), 1 to LONGEST_MS.
    :raises BadInput: naming ``cache.ttl``, ``cache.ttl.<class or kind>`` or ``cache.trading_hours.classes``.
    """

    def __init__(
        self,
        classes: Mapping[TtlClass, int] | Mapping[str, int] = MappingProxyType({}),
        kinds: Mapping[str, int] = MappingProxyType({}),
        operating: OperatingState = OperatingState.BALANCED,
        trading_hours: TradingHours | None = None,
    ) -> None:
        named = [one.value for one in TtlClass]
        for name in classes:
            if str(name) not in named:
                raise BadInput("cache.ttl", str(name), "a class of values, one of: " + ", ".join(named))
        for name in kinds:
            class_of(name, "cache.ttl")
        for name in sorted(trading_hours.classes if trading_hours else ()):
            if name not in named:
                raise BadInput("cache.trading_hours.classes", name, "one of: " + ", ".join(named))
        self._classes = {TtlClass(name): check_ttl(value, f"cache.ttl.{name}") for name, value in classes.items()}
        self._kinds = {name: check_ttl(value, f"cache.ttl.{name}") for name, value in kinds.items()}
        self._trading_hours = trading_hours
        self._by_state = {state: self._times(state) for state in OperatingState}
        #: Which state is in force; may be set at any time.
        self.operating = operating

    def milliseconds(self, kind: str, now_ms: int | None = None) -> int:
        """How long a value of this kind may be served, counted from when it was true.

        :param now_ms: epoch milliseconds, for the trading hours; None: as in trading hours.
        :raises BadInput: there is no such kind.
        """
        try:
            time = self._by_state[self.operating][kind]
        except KeyError:
            class_of(kind)
            raise
        hours = self._trading_hours
        if hours is None or now_ms is None or kind in self._kinds:
            return time
        # The longest time there is stays the longest.
        return min(int(time * hours.factor(KINDS[kind].value, now_ms)), LONGEST_MS)

    def _times(self, state: OperatingState) -> dict[str, int]:
        return {kind: self._kinds.get(kind) or self._of_class(name, state) for kind, name in KINDS.items()}

    def _of_class(self, name: TtlClass, state: OperatingState) -> int:
        own, said = self._classes.get(name), BY_STATE[state].get(name)
        if own is None:
            return DEFAULTS[name] if said is None else said
        if said is None:
            return own
        return min(own, said) if said < DEFAULTS[name] else max(own, said)


def check_ttl(milliseconds: object, field: str) -> int:
    """`milliseconds` if a value may live that long; raises BadInput naming `field`."""
    accepted = f"whole milliseconds from 1 to {LONGEST_MS} (one day)"
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int) or not 1 <= milliseconds <= LONGEST_MS:
        raise BadInput(field, milliseconds, accepted)
    return milliseconds


def parsed_times(text: str, field: str) -> dict[str, int]:
    """``price=100, ticker=250`` as milliseconds by class or kind.

    :raises BadInput: naming `field`.
    """
    found: dict[str, int] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, milliseconds = (one.strip() for one in part.partition("="))
        if not name or not (milliseconds.isascii() and milliseconds.isdigit()):
            raise BadInput(field, part, "name=milliseconds, separated by commas, as in price=100,ticker=250")
        if name in found:
            raise BadInput(field, part, "each name once")
        found[name] = int(milliseconds)
    return found
