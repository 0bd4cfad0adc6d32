"""Finding strategies: the ones that come along, by name, and anyone's own, by file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from market.errors import BadInput, NotFound, StrategyFailed
from trading import strategies
from trading.strategy import Strategy

#: What an engine calls on a strategy, and the number of arguments it passes.
_METHODS = {"required_subscriptions": 2, "populate_indicators": 1, "on_data": 2}


def bundled() -> list[str]:
    """Names of the strategies that come with Chandlery, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(strategies.__path__))


def parse_parameters(given: Iterable[str]) -> dict[str, str]:
    """``["fast=10", "slow=30"]`` as a mapping.

    :raises BadInput: for text without ``=``, an empty name or a name given twice.
    """
    parameters: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise BadInput("--param", text, "NAME=VALUE, such as fast=10")
        if name in parameters:
            raise BadInput("--param", text, f"each name once; {name} was given before")
        parameters[name] = value.strip()
    return parameters


def load_strategy(name_or_file: str | Path, parameters: Mapping[str, object] | None = None) -> Strategy:
    """A strategy, made with its parameters (text is converted to their types).

    :param name_or_file: a bundled name (``sma_cross``) or a path ending in ``.py``. A file is imported, which
        runs it: load only files you trust.
    :raises BadInput: naming the strategy, with the file's own line where there is one, or the parameter.
    """
    kind = strategy_class(name_or_file)
    try:
        strategy = kind(**(parameters or {}))
    except BadInput:
        raise
    except Exception as error:
        # Its own `start` ran, which is foreign code.
        fault = _own_fault(kind, error)
        if fault is None:
            raise
        raise fault from error
    if not hasattr(strategy, "parameters"):
        raise BadInput(
            "strategy", str(name_or_file), f"a {kind.__name__} that sets itself up in start(), not __init__"
        )
    return strategy


def strategy_class(name_or_file: str | Path) -> type[Strategy]:
    """The one strategy class of a bundled module or of a file; see :func:`load_strategy`."""
    text = str(name_or_file)
    if text.endswith(".py") or "/" in text or "\\" in text:
        path = Path(text).expanduser()
        if not path.is_file():
            raise NotFound("strategy", text, hint="a file that exists, or one of: " + ", ".join(bundled()))
        module = _imported(path.resolve())
    elif text in bundled():
        module = importlib.import_module(f"{strategies.__name__}.{text}")
    else:
        raise NotFound("strategy", text, hint="a path ending in .py, or one of: " + ", ".join(bundled()))
    return _only_class(module, text)


def source_sha256(strategy: Strategy) -> str:
    """SHA-256 (hex) of the file that defines the strategy, so that a report can say which version ran."""
    file = inspect.getsourcefile(type(strategy))
    return sha256(Path(file).read_bytes()).hexdigest() if file is not None else ""


def method_line(strategy: Strategy, method: str) -> str:
    """``sma.py line 40: on_data``: where a method of the strategy begins."""
    code = inspect.unwrap(getattr(type(strategy), method)).__code__
    return f"{Path(code.co_filename).name} line {code.co_firstlineno}: {method}"


@contextmanager
def blamed(strategy: Strategy) -> Iterator[None]:
    """Calls into a strategy: whatever it raises becomes StrategyFailed with the strategy's own line.

    An error that the strategy's file had no part in passes as it is.
    """
    try:
        yield
    except StrategyFailed:
        raise
    except Exception as error:
        # A strategy is foreign code and may raise anything.
        fault = _own_fault(type(strategy), error)
        if fault is None:
            raise
        raise fault from error


def _own_fault(kind: type[Strategy], error: Exception) -> StrategyFailed | None:
    """`error` with the line of the strategy's file that it came through; None where it came through none."""
    file = inspect.getfile(kind)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return StrategyFailed(f"{Path(file).name} line {lines[-1]}: {type(error).__name__}: {error}") if lines else None


def _imported(path: Path) -> ModuleType:
    # The digest in the name lets an edited file be loaded again beside the old one.
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput("strategy", str(path), f"a file that can be read; {error.strerror}") from error
    name = f"_strategy_{path.stem}_{sha256(str(path).encode() + content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput("strategy", str(path), "a Python file")
    module = importlib.util.module_from_spec(spec)
    # Type hints and dataclasses of the file look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        # A foreign file may raise anything while it is imported, or try to leave.
        del sys.modules[name]
        raise BadInput("strategy", path.name, f"a file that imports; {_import_line(path, error)}") from error
    return module


def _import_line(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def _only_class(module: ModuleType, shown: str) -> type[Strategy]:
    found = [
        one
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Strategy) and one.__module__ == module.__name__
    ]
    # A file may hold a base of its own; the class that nothing else in the file extends is meant.
    leaves = [one for one in found if not any(other is not one and issubclass(other, one) for other in found)]
    if not leaves:
        raise BadInput("strategy", shown, "a file with a class that extends trading.strategy.Strategy")
    if len(leaves) > 1:
        names = ", ".join(sorted(one.__name__ for one in leaves))
        raise BadInput("strategy", shown, f"a file with one strategy class; it has {names}")
    _check_methods(leaves[0], shown)
    return leaves[0]


def _check_methods(kind: type[Strategy], shown: str) -> None:
    missing: Any = getattr(kind, "__abstractmethods__", frozenset())
    if missing:
        raise BadInput(
            "strategy", shown, f"a class {kind.__name__} with the method(s) " + ", ".join(sorted(missing))
        )
    for name, count in _METHODS.items():
        method = inspect.getattr_static(kind, name)
        try:
            inspect.signature(method).bind(*([None] * (count + 1)))
        except TypeError:
            line = method.__code__.co_firstlineno
            raise BadInput(
                "strategy",
                shown,
                f"{kind.__name__}.{name} (line {line}) to take {count} argument(s) besides self",
            ) from None
