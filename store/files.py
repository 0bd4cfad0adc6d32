"""Writing files so that a reader, or the next start after a power cut, sees all of a file or none of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from market.errors import StoreBusy, StoreUnusable

#: Suffix of a file that is still being written.
UNFINISHED = ".unfinished"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; at the end it is fsynced and renamed to `path`, or removed on an error.

    :raises StoreUnusable: the folder cannot be written, or the disk is full; `path` is as it was.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreUnusable(
            f"{path} cannot be written: {error.strerror or error}; the old state is untouched"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock file; it is freed by the kernel when the process ends, however it ends.

    :param what: who holds it, for the message another process gets: ``up``, ``archive``.
    :raises StoreBusy: another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreUnusable(f"{path} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise StoreBusy(f"{path.parent} is in use by {holder}; stop it, or choose another folder") from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"chandlery {what} (process {os.getpid()})\n".encode(), 0)
        except OSError as error:
            raise StoreUnusable(f"{path} cannot be written: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)
