"""The documents name every command, option value and setting, and their links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from enum import StrEnum
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from chandlery.main import COMMANDS
from chandlery.settings import Settings
from exchange.live import NATIVE
from ingest.metrics import WriterMetrics
from ingest.route import Path as RoutePath
from ingest.writer_status import WriterState
from market.candle import COLUMNS
from market.channel import Channel
from market.coverage import CoverageState
from market.order_book import BookState
from market.timeframe import TIMEFRAMES
from store.trade_batch import RunState
from trading.catalogue import bundled

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"| `chandlery {command}` |" in text("docs/operations.md")


@pytest.mark.parametrize("key", Settings.model_fields)
def test_every_setting_is_documented(key: str) -> None:
    assert f"| `{key}` | `CHANDLERY_{key.upper()}` |" in text("docs/operations.md")


def test_no_setting_is_documented_that_does_not_exist() -> None:
    named = set(re.findall(r"`CHANDLERY_([A-Z_]+)`", text("docs/operations.md")))
    assert {name.lower() for name in named} <= set(Settings.model_fields)


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_is_documented(column: str) -> None:
    assert f"`{column}`" in text("docs/data-model.md")


def test_timeframes_and_states_are_documented() -> None:
    assert " ".join(TIMEFRAMES) in text("docs/glossary.md")
    for state in CoverageState:
        assert f"`{state.value}`" in text("docs/data-model.md")


@pytest.mark.parametrize("states", [RoutePath, WriterState, BookState, Channel], ids=lambda one: one.__name__)
def test_every_state_of_live_ingest_is_documented(states: type[StrEnum]) -> None:
    for state in states:
        assert f"| `{state.value}`" in text("docs/live-ingest.md"), state


def test_every_state_of_a_run_of_trades_is_documented() -> None:
    for state in RunState:
        assert f"`{state.value}`" in text("docs/live-ingest.md"), state


def test_every_metric_is_documented_and_no_other() -> None:
    registry = CollectorRegistry()
    WriterMetrics(registry)
    counted = {"counter": "_total"}
    there = {one.name + counted.get(one.type, "") for one in registry.collect()}
    assert set(re.findall(r"`(chandlery_ingest_[a-z_]+)", text("docs/live-ingest.md"))) == there


@pytest.mark.parametrize("exchange", NATIVE)
def test_every_exchange_with_streams_of_its_own_is_documented(exchange: str) -> None:
    assert re.search(rf"^\|[^|]*`{exchange}`", text("docs/live-ingest.md"), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_headings_lead_somewhere(document: Path) -> None:
    for link, heading in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", document.read_text("utf-8")):
        target = document.parent / link if link else document
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
        assert heading in anchors, f"{link}#{heading}"


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_strategy_is_documented(name: str) -> None:
    assert f"`{name}`" in text("docs/backtesting.md")


def test_every_make_target_has_help_and_is_documented() -> None:
    makefile = text("Makefile")
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    helped = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == helped
    for target in targets - {"help"}:
        assert target in text("docs/operations.md"), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text("utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (document.parent / link).exists(), link


def test_the_changelog_has_the_version() -> None:
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert "## Unreleased" in text("CHANGELOG.md") or f"## {version}" in text("CHANGELOG.md")
