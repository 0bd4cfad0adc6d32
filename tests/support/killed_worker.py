"""A worker that kills itself with SIGKILL just before its KILL_AT-th change to the disk."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any

from tests.support import store_worker

_left = int(os.environ["KILL_AT"])


def _counted(change: Any) -> Any:
    def changed(*arguments: Any, **named: Any) -> Any:
        global _left
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **named)

    return changed


os.replace = _counted(os.replace)
os.rename = _counted(os.rename)
os.fsync = _counted(os.fsync)
os.unlink = _counted(os.unlink)
os.mkdir = _counted(os.mkdir)
pathlib.Path.write_bytes = _counted(pathlib.Path.write_bytes)  # type: ignore[method-assign]
store_worker.Archive._write_file = _counted(store_worker.Archive._write_file)  # type: ignore[method-assign]

store_worker.main()
