"""Plain SQL: forward migrations, and queries that each have a name and a sentence.

A query file holds entries of the form::

    -- name: newest_candles
    -- The last `limit` candles before `end`.
    SELECT ...;
"""

from __future__ import annotations

import re
from importlib.resources import files

_ENTRY = re.compile(r"^-- name: (\w+)\n((?:--.*\n)*)", re.MULTILINE)


def queries(name: str) -> dict[str, str]:
    """The queries of ``queries/<name>.sql`` by their names."""
    text = (files(__name__) / "queries" / f"{name}.sql").read_text("utf-8")
    heads = list(_ENTRY.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {
        head.group(1): text[head.end() : end].strip().rstrip(";") for head, end in zip(heads, ends, strict=True)
    }


def migrations(dialect: str, mode: str = "") -> list[tuple[int, str, str]]:
    """``(version, name, sql)`` of every migration of a dialect, in order.

    :param mode: ``NNNN_name.mode.sql`` runs after ``NNNN_name.sql``; files of other modes are left out.
    """
    found = []
    folder = files(__name__) / "migrations" / dialect
    for path in folder.iterdir():
        if path.name.endswith(".sql") and path.name.count(".") == 1:
            version, _, name = path.name.removesuffix(".sql").partition("_")
            text = path.read_text("utf-8")
            beside = folder / f"{version}_{name}.{mode}.sql"
            if mode and beside.is_file():
                text += "\n" + beside.read_text("utf-8")
            found.append((int(version), name, text))
    return sorted(found)
