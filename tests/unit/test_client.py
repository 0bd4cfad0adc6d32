"""The client without a service: what it loads, what it refuses, and how it reads strange answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import chandlery
from chandlery.client_http import HttpSource
from market.errors import (
    BadInput,
    ChandleryError,
    NotFound,
    RateLimited,
    Retryable,
    StoreBusy,
    StoreUnusable,
    Terminal,
)
from serve.errors import PROBLEMS, response_for

HEAVY = {"store", "exchange", "ingest", "serve", "trading", "backtest", "ccxt", "fastapi", "duckdb", "sqlite3"}


@pytest.mark.parametrize(
    "code, more",
    [
        ("import chandlery", {"polars", "pyarrow", "httpx", "numpy"}),
        ("import chandlery; chandlery.connect('http://127.0.0.1:1').close()", set()),
    ],
)
def test_importing_the_client_loads_no_other_package(code: str, more: set[str]) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {name.partition(".")[0] for name in loaded} & (HEAVY | more) == set()


def test_the_package_offers_the_client_and_nothing_made_up() -> None:
    assert chandlery.Client.__name__ == "Client"
    with pytest.raises(AttributeError, match="conect"):
        _ = chandlery.conect


def test_a_home_without_a_database_is_named(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFound, match=str(home)) as caught:
            chandlery.connect(home)
        assert caught.value.field == "home"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "market_data.sqlite3").write_text("not a database, but long enough to look like one" * 20)
    with pytest.raises(StoreUnusable):
        chandlery.connect(str(tmp_path))


@pytest.mark.parametrize("target", ["mysql://u:s3cret@localhost/x", "ftp://x", "http://", "http://:80", "ws://x"])
def test_an_address_of_another_kind_is_refused(target: str) -> None:
    with pytest.raises(BadInput) as caught:
        chandlery.connect(target)
    assert caught.value.field == "target"


def answering(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response) -> HttpSource:
    source = HttpSource("http://test")
    monkeypatch.setattr(source._http, "get", lambda *_, **__: answer)
    return source


@pytest.mark.parametrize(
    "error",
    [
        BadInput("limit", 0, "more"),
        NotFound("symbol", "X/Y", ["A/B"]),
        StoreBusy("another process writes"),
        StoreUnusable("full"),
        RateLimited("slow down", 7),
    ],
)
def test_an_error_of_the_service_is_the_same_error_here(
    monkeypatch: pytest.MonkeyPatch, error: ChandleryError
) -> None:
    sent = response_for(error)
    answer = httpx.Response(sent.status_code, content=bytes(sent.body), headers=dict(sent.headers))
    with pytest.raises(type(error)) as caught:
        answering(monkeypatch, answer).records("series", {})
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_every_problem_of_the_service_has_its_class_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, problem in PROBLEMS.items():
        body = {"type": f"/docs#problem-{problem.name}", "title": "t", "status": problem.status, "detail": "d"}
        body |= {"field": "f", "value": "v", "accepted": "a"}
        headers = {"content-type": "application/problem+json"}
        answer = httpx.Response(problem.status, json=body, headers=headers)
        with pytest.raises(kind):
            answering(monkeypatch, answer).records("series", {})


@pytest.mark.parametrize(
    "answer, kind",
    [
        (httpx.Response(502, html="<h1>bad gateway</h1>"), Retryable),
        (httpx.Response(404, html="<h1>nothing</h1>"), Terminal),
        (httpx.Response(200, html="<h1>welcome</h1>"), Terminal),
        (httpx.Response(200, json=[1, 2]), Terminal),
    ],
)
def test_another_service_is_recognised(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, kind: type[ChandleryError]
) -> None:
    with pytest.raises(kind, match="does not look like"):
        answering(monkeypatch, answer).records("series", {})
