"""The house keeps its own rules: imports point down, a file is one noun of the field, functions stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("backtest", "chandlery", "exchange", "ingest", "market", "serve", "sql", "store", "trading")

LONGEST_FILE = 400
#: Lines without the docstring: explaining a function is not what makes it long.
LONGEST_FUNCTION = 60
#: Files that are longer, each with the reason why they are not two.
LONGER_FILES: dict[str, str] = {}
#: Functions that are longer, as ``file:name``, each with the reason.
LONGER_FUNCTIONS: dict[str, str] = {}

#: Names that do not say what is inside.
EMPTY_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "base",
    "manager",
    "managers",
    "core",
    "misc",
    "tools",
}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_point_down() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    ran = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert " 0 broken" in ran.stdout


def test_the_packages_are_those_of_the_design() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "bench"}
    assert found == set(PACKAGES)


def test_names_say_what_is_inside() -> None:
    parts = {part for path in sources() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not {part for part in parts if part in EMPTY_NAMES or part.endswith(("_utils", "_helpers", "_manager"))}


def test_files_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in sources()}
    long = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    assert set(long) == set(LONGER_FILES), long


def test_functions_are_short() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                said = node.body[0] if ast.get_docstring(node, clean=False) else None
                described = said.end_lineno - said.lineno + 1 if said and said.end_lineno else 0
                length = node.end_lineno - node.lineno + 1 - described
                if length > LONGEST_FUNCTION:
                    long[f"{name_of(path)}:{node.name}"] = length
    assert set(long) == set(LONGER_FUNCTIONS), long


def test_every_module_says_what_it_is() -> None:
    filled = [path for path in sources() if path.stat().st_size]
    silent = [name_of(path) for path in filled if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


@pytest.mark.parametrize("mark", ["# type: ignore", "TYPE_CHECKING", "except Exception:"])
def test_no_way_around_the_tools(mark: str) -> None:
    assert [name_of(path) for path in sources() if mark in path.read_text()] == []


def test_queries_live_in_one_folder() -> None:
    stray = [
        name_of(path)
        for path in ROOT.rglob("*.sql")
        if not path.is_relative_to(ROOT / "sql") and not set(path.relative_to(ROOT).parts) & {".venv", "data"}
    ]
    assert stray == []


def test_the_client_alone_pulls_in_nothing_else() -> None:
    """`import chandlery` must stay light: no other package of ours, and no ccxt."""
    code = "import sys, chandlery; print(*{name.split('.')[0] for name in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(ran.stdout.split()) & ((set(PACKAGES) - {"chandlery"}) | {"ccxt"})
