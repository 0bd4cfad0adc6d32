"""Reading from a Chandlery service over HTTP: pages joined, problems turned into our errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pyarrow as pa

from market.clock import EARLIEST_MS
from market.errors import (
    BadInput,
    ChandleryError,
    ExchangeRefused,
    ExchangeUnavailable,
    Mismatch,
    NotFound,
    RateLimited,
    Retryable,
    SchemaTooNew,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnusable,
    Terminal,
)

#: Most rows of one Arrow answer of the service.
MOST_ROWS = 1_000_000
_PROBLEM = "application/problem+json"
_ERRORS: dict[str, type[ChandleryError]] = {
    "store-busy": StoreBusy,
    "store-unavailable": StoreUnavailable,
    "store-read-only": StoreReadOnly,
    "exchange-unavailable": ExchangeUnavailable,
    "exchange-refused": ExchangeRefused,
    "schema-too-new": SchemaTooNew,
    "store-unusable": StoreUnusable,
    "mismatch": Mismatch,
}


class HttpSource:
    """A service at `url`.

    :param page_rows: rows asked for at a time.
    """

    def __init__(self, url: str, page_rows: int = MOST_ROWS) -> None:
        try:
            self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(60, connect=10))
        except httpx.InvalidURL as error:
            raise BadInput("target", url, f"an address such as http://127.0.0.1:8000 ({error})") from error
        if not self._http.base_url.host:
            raise BadInput("target", url, "an address with a host, such as http://127.0.0.1:8000")
        self._url = url
        self._page_rows = page_rows

    def candles(self, question: Mapping[str, Any]) -> pa.Table:
        """Every row of a question, page by page."""
        wanted: int | None = question["limit"]
        asked = {name: value for name, value in question.items() if value is not None} | {"format": "arrow"}
        if "columns" in asked:
            asked["columns"] = ",".join(["open_time", *asked["columns"]])
        asked["include_forming"] = "true" if asked["include_forming"] else "false"
        if "start" not in asked and wanted is None:
            # Without a start the service gives the newest rows only.
            asked["start"] = EARLIEST_MS
        pages: list[pa.Table] = []
        rows = 0
        while True:
            left = self._page_rows if wanted is None else wanted - rows
            answer = self._get("/v1/candles", {**asked, "limit": min(left, self._page_rows)})
            page = _table(answer, self._url)
            pages.append(page)
            rows += page.num_rows
            cursor = answer.headers.get("x-next-cursor")
            if cursor is None or (wanted is not None and rows >= wanted):
                return pa.concat_tables(pages)
            if not page.num_rows and asked.get("cursor") == cursor:
                raise Mismatch(f"{self._url}: two pages with the same cursor and no rows")
            asked.pop("start", None)
            asked["cursor"] = cursor

    def records(self, noun: str, question: Mapping[str, Any]) -> list[Any]:
        """What ``/v1/<noun>`` gives under ``data``."""
        asked = {name: value for name, value in question.items() if value is not None}
        answer = self._get(f"/v1/{noun}", asked)
        try:
            found: list[Any] = answer.json()["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise Terminal(_foreign(self._url, answer)) from error
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _get(self, path: str, asked: Mapping[str, Any]) -> httpx.Response:
        try:
            answer = self._http.get(path, params=dict(asked))
        except httpx.TransportError as error:
            raise Retryable(f"{self._url} did not answer: {error or type(error).__name__}") from error
        if answer.status_code != httpx.codes.OK:
            raise _error(self._url, answer)
        return answer


def _table(answer: httpx.Response, url: str) -> pa.Table:
    try:
        table = pa.ipc.open_stream(answer.content).read_all()
    except pa.ArrowInvalid as error:
        raise Terminal(_foreign(url, answer)) from error
    # What the service says of each page differs; the frames must not.
    return table.replace_schema_metadata(None)


def _error(url: str, answer: httpx.Response) -> ChandleryError:
    """The error that the service met, as the class it had there."""
    if not answer.headers.get("content-type", "").startswith(_PROBLEM):
        message = _foreign(url, answer)
        return Retryable(message) if answer.is_server_error else Terminal(message)
    problem = answer.json()
    name = str(problem["type"]).rpartition("problem-")[2]
    detail = str(problem["detail"])
    if name == "bad-input":
        return BadInput(problem["field"], problem["value"], problem["accepted"])
    if name == "not-found":
        return NotFound(problem["field"], problem["value"], hint=problem["accepted"])
    if name == "rate-limited":
        return RateLimited(detail, float(answer.headers.get("retry-after", 1)))
    return _ERRORS.get(name, Terminal)(detail)


def _foreign(url: str, answer: httpx.Response) -> str:
    kind = answer.headers.get("content-type", "no content type")
    return f"{url} answered {answer.status_code} ({kind}); this does not look like a Chandlery service"
