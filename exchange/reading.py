"""What reading one message of a stream gives: messages of `market`, answers to requests, refusals.

The wire modules decode with typed structs and hand every failure to :func:`refused`, which names the field, its
value and what would be accepted. Nothing that an exchange sends raises out of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from exchange.stream import RefusedMessage
from market.book_message import BookChange, BookSnapshot
from market.candle_update import CandleUpdate
from market.channel import Topic
from market.errors import BadInput
from market.ticker import Ticker
from market.trade import Trade

#: No price and no quantity of any market is above it; NaN and infinity are not below it either.
LARGEST = 1e18
#: Of a message that is kept as it came, in bytes.
LONGEST_RAW = 4096
#: Numbers as exchanges send them, in text or not, when decoded with ``strict=False``.
Price: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
Quantity: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
#: Of a trade, which is never empty.
Traded: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
#: Epoch milliseconds, up to the year 5138.
Milliseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10**14)]
#: Ids that count, and numbers of trades.
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

Message: TypeAlias = Trade | Ticker | CandleUpdate | BookSnapshot | BookChange


class AnswerKind(StrEnum):
    """What an exchange says of the connection."""

    SUBSCRIBED = "subscribed"
    #: It refuses a request.
    REFUSED = "refused"
    #: It refuses a request for now; the same one may be granted later.
    BUSY = "busy"
    PONG = "pong"
    #: Anything else that is no news of a market.
    NOTICE = "notice"


class Answer(NamedTuple):
    """A message about the connection, not about a market."""

    kind: AnswerKind
    #: What it is about, in the words of the wire: channels, or the id of the request. May be empty.
    names: frozenset[Hashable] = frozenset()
    #: What the exchange says, for people.
    text: str = ""


Reading: TypeAlias = tuple[Topic, Message] | Answer | RefusedMessage

#: What decoding and reading of outside bytes may raise.
UNREADABLE = (msgspec.MsgspecError, BadInput, ValueError, OverflowError, RecursionError)

_FAULT = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_EXPECTED = re.compile(r"Expected (?P<accepted>.*?)(?:, got .*)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<at>\d+)\]|\[\.\.\.\]")
_ABSENT = object()


def refused(
    exchange: str, topic: Topic | None, error: Exception, raw: bytes, received_at: int, part: str = ""
) -> RefusedMessage:
    """`raw` as a message that could not be used.

    :param error: one of :data:`UNREADABLE`.
    :param part: the field that `error` counts from, where only a part of the message was being decoded.
    """
    reason = _why(error, raw, part) if isinstance(error, msgspec.ValidationError) else str(error)
    shown = raw[:LONGEST_RAW].decode("utf-8", "replace")
    return RefusedMessage(
        exchange=exchange,
        topic=topic,
        reason=reason or type(error).__name__,
        raw=shown,
        received_at=received_at,
    )


def not_subscribed(field: str, name: str) -> BadInput:
    """The error for a message of a channel that nobody asked for."""
    return BadInput(field, name, "a channel that was subscribed to")


def one_by_one(raw: bytes, error: Exception, read: Callable[[bytes], list[Reading]]) -> list[Reading]:
    """Read the rows of a message's ``data`` each alone, because the whole of them could not be read.

    One bad row must not cost the good ones beside it.

    :param read: reads a message with one row.
    :raises Exception: `error`, where there are not several rows to be told apart.
    """
    try:
        message = msgspec.json.decode(raw)
    except UNREADABLE:
        raise error from None
    rows = message.get("data") if isinstance(message, dict) else None
    if not isinstance(rows, list) or len(rows) < 2:
        raise error
    return [one for row in rows for one in read(msgspec.json.encode({**message, "data": [row]}))]


def price(field: str, text: str | None) -> float | None:
    """The price that a field has as text; None for one that is absent, empty or zero: there is none yet.

    :raises BadInput: naming `field`, for what is no number from 0 to :data:`LARGEST`.
    """
    return number(field, text) or None


def number(field: str, text: str | None) -> float | None:
    """The number that a field has as text; None for a field that is absent or empty.

    :raises BadInput: naming `field`, for what is no number from 0 to :data:`LARGEST`.
    """
    if text is None or text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= LARGEST:
        raise BadInput(field, text, f"a number from 0 to {LARGEST:g}")
    return value


def _why(error: msgspec.ValidationError, raw: bytes, part: str) -> str:
    """`msgspec`'s message, with the value that it found."""
    found = _FAULT.fullmatch(str(error))
    what, path = (found["what"], found["path"] or "$") if found else (str(error), "$")
    path = "$" + (f".{part}" if part else "") + path.removeprefix("$")
    missing = _MISSING.fullmatch(what)
    if missing:
        return f"{path}.{missing['name']}".removeprefix("$.") + ": is missing"
    value = _at(path, raw)
    expected = _EXPECTED.fullmatch(what)
    accepted = expected["accepted"].replace("`", "") if expected else what
    field = path.removeprefix("$").removeprefix(".") or "message"
    if value is _ABSENT:
        return f"{field}: {what}"
    return str(BadInput(field, value, accepted))


def _at(path: str, raw: bytes) -> Any:
    """The value at a path of msgspec's, such as ``$.data[0].px``."""
    try:
        value = msgspec.json.decode(raw)
    except UNREADABLE:
        return _ABSENT
    for step in _STEP.finditer(path):
        key: Any = step["name"] if step["name"] is not None else int(step["at"] or -1)
        try:
            value = value[key]
        except (LookupError, TypeError):
            return _ABSENT
    return value
