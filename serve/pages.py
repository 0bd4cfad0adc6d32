"""Two plain pages that need no network and no script: a welcome at ``/`` and the reference at ``/docs``."""

from __future__ import annotations

import re
from html import escape
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from serve.errors import all_problems

router = APIRouter(include_in_schema=False)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;
color:#1c2330;background:#fff}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f2f4f7;border-radius:4px}
code{padding:.1em .3em}pre{padding:.7rem;overflow:auto}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;
border-bottom:1px solid #dde2e9}h2{margin-top:2.2rem;border-top:1px solid #dde2e9;padding-top:1rem}
@media(prefers-color-scheme:dark){body{color:#e3e7ee;background:#12161d}code,pre{background:#1e2530}
td,th,h2{border-color:#2c3543}a{color:#7db4ff}}
"""


@router.get("/", response_class=HTMLResponse)
async def welcome(request: Request) -> HTMLResponse:
    """Where to go from here."""
    links = "".join(
        f'<li><a href="{escape(path)}">{escape(path)}</a>: {text}</li>'
        for path, text in (
            ("/docs", "every route, parameter and error"),
            ("/openapi.json", "the same for programs"),
            ("/v1/health", "is the store well"),
            ("/v1/series", "what is stored"),
            ("/v1/instruments", "what can be traded"),
        )
    )
    example = escape(
        f"{str(request.base_url).rstrip('/')}/v1/candles?exchange=binance&symbol=BTC/USDT&timeframe=1h"
    )
    return _page(
        "Chandlery",
        f"<h1>Chandlery</h1><p>Candles kept for good and provably complete. Version {escape(request.app.version)}."
        f"</p><ul>{links}</ul><p>The newest hourly candles of one symbol:</p><pre>curl '{example}'</pre>",
    )


@router.get("/docs", response_class=HTMLResponse)
async def reference(request: Request) -> HTMLResponse:
    """The OpenAPI document as a page."""
    document = request.app.openapi()
    parts = [f"<h1>{escape(document['info']['title'])}</h1><p>{_prose(document['info']['description'])}</p>"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(path, method, operation))
    rows = "".join(
        f'<tr id="problem-{one.name}"><td><code>{one.name}</code></td><td>{one.status.value}</td>'
        f"<td>{escape(one.title)}</td></tr>"
        for one in all_problems()
    )
    parts.append(f"<h2>Problems</h2><table><tr><th>type</th><th>status</th><th>title</th></tr>{rows}</table>")
    return _page("Chandlery HTTP API", "".join(parts))


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parameters = operation.get("parameters", [])
    rows = "".join(_parameter(one) for one in parameters)
    required = {one["name"]: _example(one) for one in parameters if one.get("required")}
    address = escape(path + (f"?{urlencode(required, safe='/')}" if required else ""))
    table = f"<table><tr><th>parameter</th><th>type</th><th>meaning</th></tr>{rows}</table>" if rows else ""
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{_prose(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f'<h2 id="{escape(operation["operationId"])}">{method.upper()} <code>{escape(path)}</code></h2>'
        f"<p>{_prose(operation.get('description', ''))}</p>{table}"
        f'<p>Example: <a href="{address}"><code>{address}</code></a></p>'
        f"<table><tr><th>status</th><th>answer</th></tr>{answers}</table>"
    )


def _parameter(one: dict[str, Any]) -> str:
    schema = one["schema"]
    kind = " | ".join(map(str, schema["enum"])) if "enum" in schema else schema.get("type", "string")
    need = " (required)" if one.get("required") else ""
    return (
        f"<tr><td><code>{escape(one['name'])}</code>{need}</td><td>{escape(str(kind))}</td>"
        f"<td>{_prose(one.get('description', ''))} <i>e.g. {escape(str(_example(one)))}</i></td></tr>"
    )


def _example(parameter: dict[str, Any]) -> Any:
    example = parameter["schema"]["examples"][0]
    if isinstance(example, bool):
        return str(example).lower()
    return ",".join(example) if isinstance(example, list) else example


def _prose(text: str) -> str:
    """A description as HTML: `this` is code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _page(title: str, body: str) -> HTMLResponse:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body>{body}</body></html>"
    )
