"""Places that are not an ordinary folder: other file systems, mounted for a test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(folder: Path, *options: str) -> None:
    """Mount another file system at `folder`; skips the test where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    ran = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"mounting is not allowed here: {ran.stderr.strip()}")


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Another file system at `folder`; skips the test where mounting is not allowed."""
    mount(folder, *options)
    try:
        yield folder
    finally:
        # Lazy: what a failed test still holds open must not keep the mount. A remount leaves with the first mount.
        subprocess.run(["umount", "--lazy", str(folder)], check=False, stderr=subprocess.DEVNULL)
