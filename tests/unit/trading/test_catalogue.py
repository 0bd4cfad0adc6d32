"""Finding strategies: every way it can go wrong has one clear message."""

from __future__ import annotations

from pathlib import Path

import pytest

from market.errors import BadInput, NotFound, StrategyFailed
from trading.catalogue import bundled, load_strategy, parse_parameters, source_sha256, strategy_class
from trading.strategies.sma_cross import SmaCross

GOOD = """
from __future__ import annotations
from trading.strategy import Strategy, Subscription, parameter

class Mine(Strategy):
    length: int = parameter(5, at_least=1)

    def required_subscriptions(self, symbols, timeframe):
        return [Subscription(symbol, timeframe) for symbol in symbols]

    def on_data(self, candle, portfolio):
        return None
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_bundled_strategy_by_name() -> None:
    assert "sma_cross" in bundled()
    assert strategy_class("sma_cross") is SmaCross
    assert load_strategy("sma_cross", {"fast": "3"}).parameters["fast"] == 3


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_strategy_loads_with_its_defaults(name: str) -> None:
    assert len(source_sha256(load_strategy(name))) == 64


def test_a_file(tmp_path: Path) -> None:
    strategy = load_strategy(written(tmp_path, GOOD), {"length": "7"})
    assert type(strategy).__name__ == "Mine"
    assert dict(strategy.parameters) == {"length": 7}


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    first = load_strategy(written(tmp_path, GOOD))
    second = load_strategy(written(tmp_path, GOOD.replace("parameter(5", "parameter(6")))
    assert (first.parameters["length"], second.parameters["length"]) == (5, 6)


@pytest.mark.parametrize("name", ["macd", "missing/mine.py", "mine.py"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(NotFound, match="sma_cross"):
        load_strategy(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = 1 / 0\n", "line 2: ZeroDivisionError"),
        ("import no_such_module_here\n", "line 1: ModuleNotFoundError"),
        ("def broken(:\n", "line 1: invalid syntax"),
        ("x = 1\n", "a class that extends"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        (GOOD + GOOD[GOOD.index("class") :].replace("Mine", "Other"), "one strategy class; it has Mine, Other"),
        (GOOD.replace("def on_data", "def on_date"), "Mine with the method.s. on_data"),
        (GOOD.replace("candle, portfolio", "candle"), r"on_data \(line 11\) to take 2 argument"),
    ],
)
def test_a_file_that_is_no_strategy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_strategy(written(tmp_path, text))


def test_a_strategy_that_fails_while_it_is_set_up(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "\n    def start(self):\n        self.rate = 1 / 0\n")
    with pytest.raises(StrategyFailed, match=r"mine.py line 15: ZeroDivisionError"):
        load_strategy(path)


def test_a_strategy_that_forgets_the_constructor(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "\n    def __init__(self, **parameters):\n        self.state = 1\n")
    with pytest.raises(BadInput, match="sets itself up in start"):
        load_strategy(path)


def test_a_base_class_in_the_file_is_not_the_strategy(tmp_path: Path) -> None:
    text = GOOD + "\nclass Child(Mine):\n    depth: float = 1.5\n"
    strategy = load_strategy(written(tmp_path, text), {"depth": "2"})
    assert dict(strategy.parameters) == {"length": 5, "depth": 2.0}


def test_parameters_from_text() -> None:
    assert parse_parameters(["fast=10", "note=a=b"]) == {"fast": "10", "note": "a=b"}


@pytest.mark.parametrize("given", [["fast"], ["=1"], ["fast=1", "fast=2"]])
def test_parameters_that_cannot_be_read(given: list[str]) -> None:
    with pytest.raises(BadInput, match="--param"):
        parse_parameters(given)
