"""The third tier: sealed chunks on a local disk, as memory-mapped Arrow files that several processes share.

A chunk's name carries its revision and digest, so nothing on the disk is ever out of date: what changed has another
name. A file is written under another name and renamed, and what it holds is checked when a process first opens it.
The worst that can happen to the cache is that it has to be made again; no trouble with it fails a read.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import structlog

from market.clock import Clock
from market.errors import BadInput, Mismatch
from market.instrument import Series
from store.cache.statistics import TierStatistics
from store.tiers.disk_file import ChunkName, check_seal, encode, mapped, revision_of
from store.tiers.disk_folder import DiskFolder, Found, delete, opened, room_of, write
from store.tiers.process_memory import CANDLES_KIND

__all__ = ["DISK_TIER", "ChunkName", "DiskCounts", "DiskTier", "Swept"]

log = structlog.get_logger(__name__)

DISK_TIER = "disk"

_GIB = 1 << 30
_MS_NS = 1_000_000
#: The time of use of a file is noted at most this often; milliseconds.
_TOUCH_MS = 60_000
#: The same trouble is logged at most this often; milliseconds.
_SAY_MS = 3_600_000
#: On a disk that is nearly full, room is made by eviction at most this often; milliseconds.
_YIELD_MS = 60_000
#: A put whose folder was swept away under it begins again, so often.
_ATTEMPTS = 3
#: Files are remembered as checked up to this number.
_MOST_CHECKED = 100_000
#: Not the file's fault: too many open files or mappings, no memory.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


@dataclass
class DiskCounts:
    """What hits and misses do not tell, since the start."""

    #: Files that were not, or no longer, what their name says; each deleted, if it could be.
    damaged: int = 0
    #: Chunks written.
    put: int = 0
    #: Chunks not written: no room, not writable, or not what their name says.
    refused: int = 0
    #: Half-written files of killed processes, deleted.
    leftovers: int = 0


@dataclass(frozen=True)
class Swept:
    """What a sweep found and did."""

    #: Files that are left.
    files: int = 0
    #: Bytes they take on the disk.
    bytes: int = 0
    #: Files deleted to make room.
    evicted: int = 0
    #: Half-written files of killed processes, deleted.
    leftovers: int = 0
    #: Nothing was deleted because another process was at it.
    busy: bool = False


class DiskTier:
    """Chunks on disk. Safe between threads and processes; every method may wait for the disk.

    The size stays under the limit by a sixteenth, so that several processes that write at once do not exceed it:
    each counts what it writes itself, and looks at the folder again after every 64th part of the limit. What is
    used least recently goes first.

    Where the disk itself is nearly full, the cache gives way: it evicts to leave `keep_free_bytes` to others, and
    takes nothing new until there is room.

    :param folder: made when first written to.
    :param limit_bytes: of all files together; 0 turns the tier off.
    :param keep_free_bytes: left free on the disk; by default 5 % of it or 1 GiB, whichever is smaller.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        statistics: TierStatistics,
        clock: Clock,
        *,
        keep_free_bytes: int | None = None,
    ) -> None:
        if limit_bytes < 0:
            raise BadInput("limit_bytes", limit_bytes, "a number of bytes, 0 for none")
        #: In safety state FAIL: what is there is served, nothing is added, touched or deleted but by :meth:`drop`.
        self.frozen = False
        self.counts = DiskCounts()
        self._folder = DiskFolder(folder)
        self._limit = limit_bytes
        self._keep_free = keep_free_bytes
        self._statistics = statistics
        self._clock = clock
        self._lock = threading.Lock()
        #: Held while a file is written, so that after :meth:`drop` none comes of a put that began before.
        self._writing = threading.Lock()
        #: At the last look, and what this process has put since. Never less than that, also where a thread puts
        #: while another looks.
        self._files = self._bytes = 0
        #: Bytes put by this process, ever, and before the last look; None before the first.
        self._written = 0
        self._looked: int | None = None
        #: Of puts that are under way.
        self._reserved = 0
        #: What the statistics were told.
        self._told = 0
        self._yielded_ms: int | None = None
        #: By inode: size and times of change of files whose content was found right.
        self._checked: dict[int, tuple[int, int, int]] = {}
        #: When a trouble was last logged.
        self._said: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """Room the files take: at the last look, with what this process has put since. :meth:`sweep` looks."""
        return self._bytes

    @property
    def files(self) -> int:
        """How many files there are, as :attr:`bytes`."""
        return self._files

    def get(self, name: ChunkName) -> pa.Table | None:
        """The chunk, over a memory mapping, in the candle schema and one piece; None if it is not here.

        A file that is not exactly what the name says is deleted and not served.
        """
        if not self._limit:
            return None
        try:
            with self._folder.series(name.series) as folder:
                table = self._read(name, folder)
        except OSError as error:
            if error.errno in _NO_FILE:
                table = None
            else:
                self._statistics.error(DISK_TIER, CANDLES_KIND)
                self._say("the disk cache cannot be read", error=str(error))
                return None
        if table is None:
            self._statistics.miss(DISK_TIER, CANDLES_KIND)
        else:
            self._statistics.hit(DISK_TIER, CANDLES_KIND)
        return table

    def _read(self, name: ChunkName, folder: int) -> pa.Table | None:
        file = name.file
        try:
            with opened(file, folder) as descriptor:
                return self._checked_table(name, descriptor)
        except Mismatch as error:
            reason = str(error)
        except OSError as error:
            if error.errno in _PASSING or error.errno in _NO_FILE:
                raise
            reason = error.strerror or str(error)
        self.counts.damaged += 1
        gone = not self.frozen and delete(file, folder)
        self._say("a damaged file in the disk cache is not used", file=file, reason=reason, deleted=gone)
        return None

    def _checked_table(self, name: ChunkName, descriptor: int) -> pa.Table:
        said = os.fstat(descriptor)
        if not stat.S_ISREG(said.st_mode):
            raise Mismatch("it is no file")
        if said.st_uid != os.geteuid():
            raise Mismatch(f"it belongs to user {said.st_uid}")
        known = self._checked.get(said.st_ino) == _identity(said)
        if not known:
            check_seal(descriptor, said.st_size)
        table = mapped(descriptor, name, thoroughly=not known)
        now_ms = self._clock.now_ms()
        if abs(now_ms - said.st_mtime_ns // _MS_NS) >= _TOUCH_MS and not self.frozen:
            said = _touched(descriptor, now_ms, said)
            known = False
        if not known:
            with self._lock:
                if len(self._checked) >= _MOST_CHECKED:
                    self._checked.clear()
                self._checked[said.st_ino] = _identity(said)
        return table

    def put(self, name: ChunkName, table: pa.Table) -> bool:
        """Keep a chunk, and delete those of the same period that it takes the place of; False where it cannot be.

        :param table: in the candle schema, sorted, all inside the period.
        """
        if not self._limit or self.frozen:
            return False
        try:
            pieces = encode(name, table)
        except Mismatch as error:
            return self._refused("a chunk is not what its name says", error=str(error))
        size = room_of(sum(len(piece) for piece in pieces))
        try:
            self._folder.make()
            if not self._reserve(size):
                return False
            try:
                return self._write(name, pieces, size)
            finally:
                with self._lock:
                    self._reserved -= size
        except OSError as error:
            return self._refused("the disk cache cannot be written", error=error.strerror or str(error))

    def _write(self, name: ChunkName, pieces: list[memoryview], size: int) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                with self._writing:
                    if self.frozen:
                        return False
                    with self._folder.made(name.series) as folder:
                        write(name.file, pieces, folder, self._clock.now_ms() * _MS_NS)
                        _delete_older(name, folder)
            except (FileNotFoundError, BlockingIOError):
                # A sweep of another process took the empty folder, or the file before it was locked.
                if attempt + 1 == _ATTEMPTS:
                    raise
                continue
            break
        with self._lock:
            self._files += 1
            self._bytes += size
            self._written += size
            self.counts.put += 1
            self._tell()
        return True

    def drop(self, series: Series | None = None) -> int:
        """Delete all files of a series, or of all, whoever made them, also while frozen; how many went.

        Where it was frozen before, this process adds nothing afterwards.
        """
        try:
            with self._writing:
                removed = self._folder.remove_all(series)
            self._look(0, 0, evict=False)
        except OSError as error:
            self._say("the disk cache cannot be emptied", error=error.strerror or str(error))
            return 0
        return removed

    def sweep(self) -> Swept:
        """Delete what is over the limit and what killed processes left half-written. While frozen: only look."""
        try:
            return self._look(0, 0, evict=not self.frozen)
        except OSError as error:
            self._say("the disk cache cannot be swept", error=error.strerror or str(error))
            return Swept()

    def _reserve(self, size: int) -> bool:
        """Make room for a file; False if there is none."""
        if size > self._limit:
            return self._refused("a chunk is larger than the disk cache", bytes=size)
        with self._lock:
            since = None if self._looked is None else self._written - self._looked
            due = since is None or since + size > self._limit // 64 or not self._fits(size)
        if due:
            self._look(size, 0, evict=True)
        with self._lock:
            if not self._fits(size):
                # Another process is just evicting, or what there is cannot be deleted.
                return self._refused("the disk cache has no room", bytes=self._bytes)
            self._reserved += size
        if not self._leaves_free(size):
            with self._lock:
                self._reserved -= size
            return self._refused("the disk is nearly full: the cache takes nothing new")
        return True

    def _fits(self, size: int) -> bool:
        return self._bytes + self._reserved + size <= max(self._full, size)

    @property
    def _full(self) -> int:
        return self._limit - self._limit // 16

    def _leaves_free(self, size: int) -> bool:
        short = self._short(size)
        now_ms = self._clock.now_ms()
        if short > 0 and (self._yielded_ms is None or now_ms - self._yielded_ms >= _YIELD_MS):
            # What is mapped by a reader becomes free when he is done with it: do not go on deleting meanwhile.
            self._yielded_ms = now_ms
            self._look(size, short, evict=True)
            short = self._short(size)
        return short <= 0

    def _short(self, size: int) -> int:
        """Bytes that lack for what is to be left free, after a file of this size."""
        free, whole = self._folder.room()
        keep = min(whole // 20, _GIB) if self._keep_free is None else self._keep_free
        return keep + size - free

    def _look(self, size: int, short: int, *, evict: bool) -> Swept:
        """Look at all files; delete leftovers, and the least recently used to make room for `size`, or of `short`.

        :raises OSError: the folder cannot be read.
        """
        with self._lock:
            before = self._written
        try:
            with self._folder.evicting() as mine:
                found = self._folder.scan()
                leftovers: list[Found] = []
                evicted: list[Found] = []
                if mine and evict and not self.frozen:
                    leftovers = self._folder.remove(self._folder.leftovers(found))
                    found = [one for one in found if one not in leftovers] if leftovers else found
                    evicted = self._folder.remove(self._oldest(found, size, short))
        except FileNotFoundError:
            mine, found, leftovers, evicted = True, [], [], []
        with self._lock:
            self._files = len(found) - len(evicted)
            self._bytes = sum(one.room for one in found) - sum(one.room for one in evicted)
            self._bytes += self._written - before
            self._looked = before
            self.counts.leftovers += len(leftovers)
            self._tell()
        if evicted:
            self._statistics.evicted(DISK_TIER, CANDLES_KIND, len(evicted))
        return Swept(self._files, self._bytes, len(evicted), len(leftovers), busy=evict and not mine)

    def _oldest(self, found: list[Found], size: int, short: int) -> list[Found]:
        """What has to go, so that `size` fits and a little more: not every put is to evict."""
        total = sum(one.room for one in found) + size
        excess = max(total - (self._limit - self._limit // 8) if total > self._full else 0, short)
        now_ns = self._clock.now_ms() * _MS_NS
        chosen = []
        if excess > 0:
            # A time in the future (a clock was wrong) must not keep a file for ever.
            for one in sorted(found, key=lambda file: min(file.used_ns, now_ns)):
                if excess <= 0:
                    break
                chosen.append(one)
                excess -= one.room
        return chosen

    def _tell(self) -> None:
        self._statistics.bytes_changed(DISK_TIER, CANDLES_KIND, self._bytes - self._told)
        self._told = self._bytes

    def _refused(self, what: str, **details: object) -> bool:
        self.counts.refused += 1
        self._say(what, **details)
        return False

    def _say(self, what: str, **details: object) -> None:
        """Log it, if that was not done of late: the same is going to happen at each read."""
        now_ms = self._clock.now_ms()
        said = self._said.get(what)
        if said is None or now_ms - said >= _SAY_MS:
            self._said[what] = now_ms
            log.warning(what, folder=str(self._folder.root), **details)


def _identity(said: os.stat_result) -> tuple[int, int, int]:
    return said.st_size, said.st_mtime_ns, said.st_ctime_ns


def _touched(descriptor: int, now_ms: int, said: os.stat_result) -> os.stat_result:
    """Note that the file was made use of; what the file system then says of it."""
    try:
        os.utime(descriptor, ns=(now_ms * _MS_NS, now_ms * _MS_NS))
        return os.fstat(descriptor)
    except OSError:
        return said


def _delete_older(name: ChunkName, folder: int) -> None:
    """Other revisions of a chunk up to its own: nobody asks for them again. Newer ones may be asked for."""
    kept = name.file
    for file in os.listdir(folder):
        if file != kept and file.startswith(name.stem):
            revision = revision_of(file, name.stem)
            if revision is not None and revision <= name.revision:
                delete(file, folder)
