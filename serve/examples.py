"""Example answers for the OpenAPI document: what a reader sees before the first call."""

from __future__ import annotations

from typing import Any

_SERIES = {"exchange": "binance", "symbol": "BTC/USDT", "timeframe": "1m"}
_FINGERPRINT = "6d1c5f8e0b7a4c1f9e3d2b5a8c7f6e1d0b9a8c7d6e5f4a3b2c1d0e9f8a7b6c5d"
_CANDLES = {
    "columns": ["open_time", "open", "high", "low", "close", "volume"],
    "data": [
        [1679661480000, 27989.88, 27991.17, 27981.92, 27983.49, 143.07713],
        [1679661540000, 27983.49, 27994.12, 27983.49, 27991.03, 98.41022],
    ],
    "meta": {
        **_SERIES,
        "start": 1679661480000,
        "end": 1679661600000,
        "rows": 2,
        "complete": True,
        "gaps": [],
        "coverage": [[1679661480000, 1679661600000, "present"]],
        "fingerprint": _FINGERPRINT,
        "next_cursor": None,
        "derived_from": None,
        "as_of": None,
    },
}


def _header(text: str, example: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}, "example": example}


_ETAG = _header("Strong tag of the body; send it back as `If-None-Match` for 304.", '"4c1f9e3d2b5a8c7f6e1d0b9a"')
_READ_HEADERS = {
    "ETag": _ETAG,
    "X-Chandlery-Tier": _header("Where the rows came from: memory, router, disk or database.", "database"),
    "X-Chandlery-Age-Ms": _header("Milliseconds since that tier last agreed with the database.", "0"),
}
_PAGE_HEADERS = {
    **_READ_HEADERS,
    "X-Fingerprint": _header("Fingerprint of the closed candles in the answer.", _FINGERPRINT),
    "X-Next-Cursor": _header(
        "`next_cursor`, for formats whose body has no place for it; absent at the end.", "WzEs"
    ),
    "Link": _header("Address of the next page.", '</v1/candles?cursor=WzEs>; rel="next"'),
}


def _json(description: str, example: Any, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "headers": headers if headers is not None else {"ETag": _ETAG},
        "content": {"application/json": {"schema": {"type": "object"}, "example": example}},
    }


def _binary(example: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "format": "binary"}, "example": example}


CANDLES = _json("The candles, in the format asked for", _CANDLES, _PAGE_HEADERS)
CANDLES["content"].update(
    {
        "text/csv": {
            "schema": {"type": "string"},
            "example": "open_time,close\n1679661480000,27983.49\n1679661540000,27991.03\n",
        },
        "application/vnd.apache.arrow.stream": _binary("Arrow IPC stream; `chandlery.meta` in the schema metadata"),
        "application/vnd.apache.parquet": _binary("Parquet, zstd; `chandlery.meta` in the schema metadata"),
    }
)
BATCH = _json("One answer per symbol, in the order asked", {"answers": [_CANDLES]}, _READ_HEADERS)
SERIES = _json(
    "The stored series",
    {
        "data": [
            {
                **_SERIES,
                "rows": 525520,
                "first_open": 1672531200000,
                "last_open": 1704067140000,
                "last_write": 1704070000000,
                "revision": 526,
                "sources": ["binance rest"],
                "corrections": 0,
                "quarantined": 0,
                "missing": 0,
                "verified_empty": 80,
            }
        ]
    },
)
INSTRUMENTS = _json(
    "The instruments",
    {
        "data": [
            {
                "exchange": "binance",
                "symbol": "BTC/USDT",
                "exchange_symbol": "BTCUSDT",
                "base": "BTC",
                "quote": "USDT",
                "kind": "spot",
                "tick_size": "0.01",
                "lot_size": "0.00001",
                "min_notional": "5",
                "active": True,
                "listed": 1502928000000,
            }
        ]
    },
)
COVERAGE = _json(
    "The ledger entries inside the range, oldest first",
    {
        **_SERIES,
        "start": 1679659200000,
        "end": 1679670000000,
        "data": [
            {
                "start": 1679661600000,
                "end": 1679666400000,
                "state": "verified_empty",
                "source": "binance rest",
                "learned_at": 1704070000000,
                "expires_at": None,
                "evidence": "two reads of /klines agree",
            }
        ],
    },
)
GAPS = _json(
    "The unknown parts of the range",
    {
        **_SERIES,
        "start": 1679659200000,
        "end": 1679670000000,
        "complete": False,
        "missing": 2,
        "data": [[1679659200000, 1679659320000]],
    },
)
ARCHIVE = _json(
    "The archived series",
    {
        "data": [
            {
                **_SERIES,
                "rows": 525520,
                "first_open": 1672531200000,
                "last_open": 1704067140000,
                "files": 12,
                "size_bytes": 19283746,
                "fingerprint": _FINGERPRINT,
            }
        ]
    },
)
_STORE = {"ok": True, "detail": "ok", "schema_version": 1, "series": 2, "rows": 1051040, "size_bytes": 98000000}
HEALTH = _json(
    "The process lives", {"status": "ok", "version": "0.1.0", "now": 1704070000000, "store": _STORE}, headers={}
)
READY = _json("Reads will be answered", {"ready": True, "store": {"ok": True, "detail": "ok"}}, headers={})
PROBLEM = {
    "type": "/docs#problem-bad-input",
    "title": "Not accepted",
    "status": 400,
    "detail": "timeframe: '2m' is not accepted; expected one of 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M",
    "field": "timeframe",
    "value": "2m",
    "accepted": "one of 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M",
}
