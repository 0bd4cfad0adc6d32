"""The folder of the disk tier: one folder per exchange, symbol and timeframe, one file per chunk.

::

    cache/binance/BTC%2FUSDT/1m/stored-2024-03.r17.0f3a9c5d11e2b407.arrow

Everything below the folder is reached by way of open folders and never through a symbolic link, so that nothing
outside it can be read, written or deleted. Only files of ours (``.arrow``, ``.unfinished``) are looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from market.instrument import Series
from store.files import UNFINISHED
from store.tiers.disk_file import SUFFIX, series_folders

#: File systems give out room in blocks of this many bytes, nearly all of them.
_BLOCK = 4096
#: Folders that lead to a file.
_DEPTH = 3
_AS_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: Not blocking: a pipe of that name must not hold us up.
_AS_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_AS_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Found:
    """One file of the folder."""

    #: Folders that lead to it, from the cache's folder on.
    folders: tuple[str, ...]
    name: str
    #: Bytes it takes on the disk.
    room: int
    #: When it was last made use of; epoch nanoseconds.
    used_ns: int


class DiskFolder:
    """The files below one folder. Nothing is made before the first file is.

    All methods raise OSError where the file system does.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = False

    def make(self) -> None:
        """Make the cache's own folder if need be.

        The first time with all that lead to it; later, only itself: where those are gone too, a disk is, and its
        cache must not be written somewhere else.
        """
        self.root.mkdir(parents=not self._made, exist_ok=True)
        self._made = True

    @contextlib.contextmanager
    def series(self, series: Series) -> Iterator[int]:
        """The open folder of a series; FileNotFoundError if it has none."""
        with self._down(series_folders(series)) as way:
            yield way[-1]

    @contextlib.contextmanager
    def made(self, series: Series) -> Iterator[int]:
        """The open folder of a series, made if need be; the cache's own is there."""
        with self._down(series_folders(series), make=True) as way:
            yield way[-1]

    def scan(self) -> list[Found]:
        """Every file there is, also half-written and foreign ones with such names. 20,000 take 0.15 to 0.5 s."""
        found: list[Found] = []
        with contextlib.suppress(FileNotFoundError), self._root() as root:
            _scan(root, (), found)
        return found

    def remove(self, files: Iterable[Found]) -> list[Found]:
        """Delete files, and folders that are empty then; which ones went. Those that cannot be are left."""
        removed: list[Found] = []
        for folders, group in groupby(sorted(files, key=_folders), key=_folders):
            with contextlib.suppress(OSError), self._down(folders) as way:
                removed.extend(one for one in group if delete(one.name, way[-1]))
                _remove_empty(folders, way)
        return removed

    def remove_all(self, series: Series | None = None) -> int:
        """Delete every file of a series, or of all, with the folders they were in; how many files went."""
        folders = () if series is None else series_folders(series)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._down(folders) as way:
            removed = _clear(way[-1], len(folders))
            _remove_empty(folders, way)
            return removed
        return 0

    def leftovers(self, files: Iterable[Found]) -> list[Found]:
        """Those of `files` that nobody is going to finish: their writer, who would hold a lock, has died."""
        return [one for one in files if one.name.endswith(UNFINISHED) and self._abandoned(one)]

    def _abandoned(self, file: Found) -> bool:
        try:
            with self._down(file.folders) as way, opened(file.name, way[-1]) as descriptor:
                return lock(descriptor)
        except OSError:
            return False

    def room(self) -> tuple[int, int]:
        """Bytes that are free on the disk, and bytes it has in all."""
        with self._root() as root:
            said = os.fstatvfs(root)
        return said.f_bavail * said.f_frsize, said.f_blocks * said.f_frsize

    @contextlib.contextmanager
    def evicting(self) -> Iterator[bool]:
        """Whether this is the one thread of all processes that may evict now; the others do not wait for it."""
        with self._root() as root:
            yield lock(root)

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        # Where the cache's own folder is a link, somebody has put it on another disk on purpose.
        descriptor = os.open(self.root, _AS_FOLDER)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _down(self, folders: Iterable[str], *, make: bool = False) -> Iterator[list[int]]:
        """Open folders, each in the one before it, from the cache's own on."""
        with self._root() as root, contextlib.ExitStack() as stack:
            way = [root]
            for name in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=way[-1])
                way.append(os.open(name, _AS_FOLDER | os.O_NOFOLLOW, dir_fd=way[-1]))
                stack.callback(os.close, way[-1])
            yield way


@contextlib.contextmanager
def opened(name: str, folder: int) -> Iterator[int]:
    """A file of an open folder, to be read."""
    descriptor = os.open(name, _AS_FILE, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(name: str, pieces: Iterable[memoryview], folder: int, used_ns: int) -> None:
    """Put a file in an open folder, in one step: readers see what was there before, or all of it.

    It is not forced to the disk: what a power cut leaves of it fails its checksum, and is made again.

    :raises BlockingIOError | FileNotFoundError: somebody swept the file or the folder away meanwhile.
    """
    temporary = f".{name}.{secrets.token_hex(6)}{UNFINISHED}"
    descriptor = os.open(temporary, _AS_NEW, 0o644, dir_fd=folder)
    try:
        # Tells others that it is being written; the kernel frees it when we die.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for piece in pieces:
            left = piece
            while left:
                left = left[os.write(descriptor, left) :]
        os.utime(descriptor, ns=(used_ns, used_ns))
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def delete(name: str, folder: int) -> bool:
    """Delete a file, a link or an empty folder in an open folder, where that can be done."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return _remove_folder(name, folder)
    except OSError:
        return False
    return True


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, unless somebody else has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def room_of(size: int) -> int:
    """Bytes that a file of this size takes on the disk."""
    return -(-size // _BLOCK) * _BLOCK


def _remove_folder(name: str, folder: int) -> bool:
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _remove_empty(folders: Sequence[str], way: Sequence[int]) -> None:
    """Remove the last of `folders` if it is empty, then the one it was in, and so on."""
    for name, above in zip(reversed(folders), reversed(way[:-1]), strict=True):
        if not _remove_folder(name, above):
            return


def _folders(file: Found) -> tuple[str, ...]:
    return file.folders


def _scan(folder: int, folders: tuple[str, ...], found: list[Found]) -> None:
    for name, is_folder, entry in _entries(folder, len(folders)):
        # What is gone meanwhile, or closed to us, is left out.
        with contextlib.suppress(OSError):
            if is_folder:
                with _below(name, folder) as below:
                    _scan(below, (*folders, name), found)
            else:
                said = entry.stat(follow_symlinks=False)
                found.append(Found(folders, name, room_of(said.st_size), said.st_mtime_ns))


def _clear(folder: int, depth: int) -> int:
    """Delete the files of a folder and all below it, and the folders below it; how many files went."""
    removed = 0
    for name, is_folder, _ in list(_entries(folder, depth)):
        if is_folder:
            with contextlib.suppress(OSError), _below(name, folder) as below:
                removed += _clear(below, depth + 1)
            _remove_folder(name, folder)
        else:
            removed += delete(name, folder)
    return removed


def _entries(folder: int, depth: int) -> Iterator[tuple[str, bool, os.DirEntry[str]]]:
    """What is ours in a folder: the folders down to those of the timeframes, and in these the files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if depth < _DEPTH:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, True, entry
            elif entry.name.endswith((SUFFIX, UNFINISHED)):
                yield entry.name, False, entry


@contextlib.contextmanager
def _below(name: str, folder: int) -> Iterator[int]:
    descriptor = os.open(name, _AS_FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
