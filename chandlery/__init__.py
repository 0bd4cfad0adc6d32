"""Chandlery keeps the candles of crypto exchanges; this package is its front door.

``chandlery.connect(url_or_home)`` gives a :class:`chandlery.client.Client`. Importing the package alone loads none
of the other packages; the client's own libraries (polars, pyarrow, httpx) are loaded when it is first asked for,
because the command line does without them and they take half a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Client", "connect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("chandlery.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
