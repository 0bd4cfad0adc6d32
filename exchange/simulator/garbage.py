"""Messages as no client likes them: broken JSON, fields too many or too few, absurd prices, times to come.

Pure functions from a message's bytes to other bytes. A message of a combined stream is spoilt inside its ``data``.
"""

from __future__ import annotations

import random
from typing import Any, get_args

import orjson

from exchange.simulator.faults import GarbageKind

KINDS: tuple[GarbageKind, ...] = get_args(GarbageKind)
#: A price below zero, and one that no market has.
ABSURD_PRICES = ("-1.00000000", "1e30")
FUTURE_MS = 365 * 86_400_000
_PRICES = ("p", "c", "o", "h", "l", "b", "a", "price", "px", "last")
_TIMES = ("E", "T", "ts")


def spoilt(message: bytes, kind: GarbageKind, rng: random.Random) -> bytes:
    """`message`, spoilt in this way; as broken JSON where it has nothing of that kind to spoil."""
    if kind == "truncated":
        return message[: len(message) // 2]
    broken = message[:-1] + b",,}"
    if kind == "invalid_json":
        return broken
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError:
        return broken
    found = _inner(document)
    if found is None or not _spoil(found, kind, rng):
        return broken
    return orjson.dumps(document)


def _inner(document: Any) -> dict[str, Any] | None:
    """The object that the message is about."""
    inner = document.get("data", document) if isinstance(document, dict) else document
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return inner if isinstance(inner, dict) else None


def _spoil(inner: dict[str, Any], kind: GarbageKind, rng: random.Random) -> bool:
    kline = inner["k"] if isinstance(inner.get("k"), dict) else None
    if kind == "unknown_fields":
        inner["newField"] = {"since": "tomorrow", "values": [1, None, "x"]}
    elif kind == "missing_field":
        target = kline or inner
        names = [name for name in target if name not in ("e", "s")]
        if not names:
            return False
        del target[rng.choice(names)]
    elif kind == "absurd_price":
        return _set_absurd_price(kline or inner, rng)
    else:
        return _set_future(inner, kline)
    return True


def _set_absurd_price(target: dict[str, Any], rng: random.Random) -> bool:
    price = rng.choice(ABSURD_PRICES)
    names = [name for name in _PRICES if isinstance(target.get(name), str)]
    if names:
        target[rng.choice(names)] = price
        return True
    sides = [target[name] for name in ("b", "a", "bids", "asks") if target.get(name)]
    if not sides or not isinstance(sides[0], list):
        return False
    rng.choice(sides)[0][0] = price
    return True


def _set_future(inner: dict[str, Any], kline: dict[str, Any] | None) -> bool:
    names = [name for name in _TIMES if isinstance(inner.get(name), int)]
    for name in names:
        inner[name] += FUTURE_MS
    if kline is not None:
        for name in ("t", "T"):
            kline[name] += FUTURE_MS
    return bool(names)
