"""Processes that read and write one home, and whoever does everything else to it: one operation after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from store.control import SafetyState
from store.sqlite.store import DATABASE_NAME
from tests.support.redis_server import PrivateRedis
from tests.support.tiers_model import (
    BEGIN,
    WORKERS,
    Ask,
    Backup,
    Broker,
    Damage,
    Forget,
    Form,
    InProcess,
    Kill,
    Operation,
    Read,
    Reopen,
    Restart,
    Restore,
    Safety,
)
from tests.support.tiers_worker import Place, Reply, main

#: Seconds that one operation may take before the test fails.
DEADLINE = 120.0
CACHE = "cache"
#: Where answers may come from in the safety state LOCKDOWN.
UNCACHED = frozenset({"database", "archive", "router"})
GARBAGE = b"ARROW1\x00\x00" + bytes(range(256)) * 7


class ModelFailed(Exception):
    """The tiers and the database do not agree, or something else is not as it should be."""


@dataclass
class Fleet:
    """The processes. A context manager; one fleet serves many schedules, each with a home of its own."""

    folder: Path
    redis: PrivateRedis | None = None
    #: For each process, what it opens; the home is added.
    places: Sequence[Place] = field(default_factory=lambda: [Place(settings={})] * WORKERS)
    #: A database other than the file of the home, where our clock goes on by itself.
    database_url: str | None = None
    _members: list[Member] = field(default_factory=list)
    _homes: int = 0

    def __enter__(self) -> Fleet:
        context = multiprocessing.get_context("forkserver")
        # What every process needs is imported once.
        context.set_forkserver_preload(["pytest", "tests.support.tiers_worker"])
        self._members = [Member(context, self.folder) for _ in range(WORKERS)]
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._members:
            one.kill()

    def run(self, schedule: Sequence[Operation]) -> Counter[str]:
        """All operations in a new home.

        :return: how many of each kind there were; answers of each tier as ``tier memory`` and so on.
        :raises ModelFailed: naming the operation.
        """
        self._homes += 1
        home = self.folder / f"home{self._homes}"
        home.mkdir()
        run = _Run(self, home)
        for one in self._members:
            if not one.alive:
                one.start()
        try:
            run.open()
            for number, one in enumerate(schedule):
                run.perform(number, one)
            run.close()
        except BaseException:
            # Whatever they hold belongs to a home that is gone.
            for one in self._members:
                one.kill()
            raise
        finally:
            run.tidy()
            shutil.rmtree(home)
        return run.counts


class Member:
    """One process, as seen from outside."""

    def __init__(self, context: Any, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._process: Any = None
        self._connection: Connection | None = None
        self.start()

    @property
    def alive(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=main, args=(theirs, self._folder), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, *command: object) -> None:
        assert self._connection is not None
        self._connection.send(command)

    def ask(self, *command: object) -> Reply:
        """:raises ModelFailed: it ended, or does not answer."""
        self.send(*command)
        return self.hear()

    def hear(self) -> Reply:
        assert self._connection is not None
        try:
            if self._connection.poll(DEADLINE):
                reply: Reply = self._connection.recv()
                return reply
        except EOFError:
            self._process.join(DEADLINE)
            raise ModelFailed(f"the process ended by itself ({self._process.exitcode})") from None
        raise ModelFailed(f"no answer for {DEADLINE:g} s")

    def stop(self) -> None:
        self.ask("stop")
        self._end()

    def kill(self, after: float | None = None) -> bool:
        """SIGKILL, `after` seconds, or as soon as it has answered; whether it had answered."""
        answered = False
        if self._process is not None:
            if after is not None and self._connection is not None:
                answered = self._connection.poll(after)
            self._process.kill()
            self._end()
        return answered

    def _end(self) -> None:
        assert self._connection is not None
        self._process.join(DEADLINE)
        self._process.close()
        self._connection.close()
        self._process = self._connection = None


class _Run:
    """One schedule in one home."""

    def __init__(self, fleet: Fleet, home: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._fleet = fleet
        self._members = fleet._members
        self._home = home
        self._now = BEGIN
        self._started = time.monotonic()
        self._written_at = 0.0
        self._safety = SafetyState.NORMAL
        #: Processes that have read since the safety state was changed.
        self._heard: set[int] = set()
        #: Files of the disk tier when all had heard of FAIL.
        self._files: dict[str, int] | None = None
        self._backup: tuple[Path, SafetyState] | None = None
        self._frozen = False
        settings: dict[str, Any] = {"home": home}
        if fleet.database_url is not None:
            settings["database_url"] = fleet.database_url
        if fleet.redis is not None:
            settings["redis_url"] = fleet.redis.url
        self._places = [
            replace(one, settings=settings | one.settings, may_be_stale=fleet.database_url is not None)
            for one in fleet.places
        ]

    def open(self) -> None:
        for number in range(len(self._members)):
            self._open(number)

    def close(self) -> None:
        self._left(self._safety)
        for one in self._members:
            self._right(one.ask("close"), "closing at the end")

    def tidy(self) -> None:
        """Redis is as it was."""
        if self._fleet.redis is not None:
            self._broker("thawed")
            self._broker("started")
            self._broker("flushed")

    def perform(self, number: int, one: Operation) -> None:
        """:raises ModelFailed: naming the operation."""
        self.counts["operations"] += 1
        self.counts[type(one).__name__] += 1
        self._now += one.pause
        try:
            match one:
                case Restart():
                    self._members[one.worker].stop()
                    self._members[one.worker].start()
                    self._open(one.worker)
                case Kill():
                    self._kill(one)
                case Reopen():
                    self._right(self._members[one.worker].ask("close"), "closing")
                    self._open(one.worker)
                case InProcess():
                    self._in_process(one)
                case Damage():
                    self._damage(one)
                case Broker():
                    self._broker(one.what)
                case Backup():
                    self._put_aside()
                case Restore():
                    self._restore(one.live)
        except ModelFailed as error:
            raise ModelFailed(f"operation {number}, {one}: {error}") from error

    def _clock(self) -> int:
        """Our clock; beside a server, whose answers age, it goes on by itself."""
        passed = 0 if self._fleet.database_url is None else time.monotonic() - self._started
        return self._now + int(passed * 1000)

    def _open(self, number: int) -> None:
        self._right(self._members[number].ask("open", self._places[number], self._clock()), "opening")

    def _right(self, reply: Reply, what: str = "") -> Reply:
        if reply.wrong is not None:
            raise ModelFailed(f"{what} {reply.wrong}")
        return reply

    # Operations in a process.

    def _in_process(self, one: InProcess) -> None:
        reads = isinstance(one, Read | Ask | Form | Forget)
        if not reads:
            self._written_at = time.monotonic()
        if isinstance(one, Safety):
            self._left(SafetyState(one.state))
        reply = self._right(self._members[one.worker].ask("do", one, self._clock(), self._written_at))
        self.counts.update({f"tier {name}": count for name, count in reply.tiers.items()})
        self.counts["stale"] += reply.stale
        self.counts["processor ms"] += int(reply.processor * 1000)
        self.counts["refused"] += reply.refused
        if reads:
            self._read(one, reply)
        elif isinstance(one, Safety):
            self._safety = SafetyState(one.state)
        elif reply.refused == self._safety.writes:
            said = "was refused" if reply.refused else "was not refused"
            raise ModelFailed(f"a write {said} in the safety state {self._safety}")

    def _read(self, one: InProcess, reply: Reply) -> None:
        if self._safety is SafetyState.LOCKDOWN and (cached := set(reply.tiers) - UNCACHED):
            raise ModelFailed(f"an answer from {', '.join(cached)} in lock-down")
        if isinstance(one, Read) and len(self._heard) < len(self._members):
            self._heard.add(one.worker)
            if len(self._heard) == len(self._members):
                self._files = self._cached()

    def _left(self, safety: SafetyState) -> None:
        """Before the safety state changes: whether it was obeyed on disk."""
        if self._files is not None and len(self._heard) == len(self._members):
            if self._safety is SafetyState.LOCKDOWN and (files := self._cached()):
                raise ModelFailed(f"the cache has files in lock-down: {sorted(files)[:5]}")
            if self._safety is SafetyState.FAIL and self._files != self._cached():
                differ = set(self._files.items()) ^ set(self._cached().items())
                raise ModelFailed(f"files of the cache changed in the state fail: {sorted(differ)[:5]}")
        self._files = None
        if safety is not self._safety:
            self._heard.clear()

    def _cached(self) -> dict[str, int]:
        """Files of the disk tier, with their sizes."""
        found = {}
        for path in sorted((self._home / CACHE).rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not foreign(path):
                    found[str(path.relative_to(self._home))] = path.stat().st_size
        return found

    def _kill(self, one: Kill) -> None:
        self._files = None
        member = self._members[one.worker]
        if one.during is not None:
            if not isinstance(one.during, Read | Ask):
                self._written_at = time.monotonic()
            member.send("do", replace(one.during, worker=one.worker), self._clock(), self._written_at)
        self.counts["killed after its answer"] += member.kill(one.after / 1e6)
        if one.during is not None:
            self._written_at = time.monotonic()
        member.start()
        self._open(one.worker)

    # What happens to the home.

    def _damage(self, one: Damage) -> None:
        """Files are replaced whole, as everything that means well does: a mapped file that shrinks is a signal."""
        files = [self._home / name for name in self._cached()]
        if not files:
            return
        self._files = None
        path, other = files[one.which % len(files)], files[(one.which * 7 + 1) % len(files)]
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            if one.how == "deleted":
                path.unlink()
            elif one.how == "folder":
                path.unlink()
                path.mkdir()
                (path / "stray").write_bytes(b"?")
            elif one.how == "foreign":
                put(path.with_name("notes.txt"), b"not ours")
                put(path.with_name("x" + path.name), GARBAGE)
            else:
                put(path, damaged(content, other.read_bytes(), one))

    def _broker(self, what: str) -> None:
        redis = self._fleet.redis
        if redis is None or (redis._process is None and what != "started"):
            return
        process = redis._process
        if what == "killed":
            redis.kill()
            self._frozen = False
        elif what == "started":
            redis.start()
        elif what == "flushed" and not self._frozen:
            with flushing(redis):
                pass
        elif what in ("frozen", "thawed") and process is not None:
            os.kill(process.pid, signal.SIGSTOP if what == "frozen" else signal.SIGCONT)
            self._frozen = what == "frozen"

    def _put_aside(self) -> None:
        if self._fleet.database_url is not None:
            return
        path = self._home / "backup.sqlite3"
        path.unlink(missing_ok=True)
        copy(self._home / DATABASE_NAME, path)
        self._backup = path, self._safety

    def _restore(self, live: bool) -> None:
        if self._backup is None:
            return
        path, safety = self._backup
        database = self._home / DATABASE_NAME
        self._left(safety)
        if live:
            copy(path, database)
        else:
            for one in self._members:
                self._right(one.ask("close"), "closing")
            database.with_name(database.name + "-wal").unlink(missing_ok=True)
            database.with_name(database.name + "-shm").unlink(missing_ok=True)
            shutil.copyfile(path, database)
            self.open()
        self._safety = safety
        self._heard.clear()


def foreign(path: Path) -> bool:
    """Whether we put it there, or it is a lock: nothing that the tier has to take away."""
    return path.name in ("notes.txt", "stray") or path.name.startswith("x") or path.name.endswith(".lock")


def copy(source: Path, target: Path) -> None:
    """All pages of a database in one transaction, as SQLite's own tool does."""
    with contextlib.closing(sqlite3.connect(source)) as one, contextlib.closing(sqlite3.connect(target)) as other:
        one.backup(other)


def put(path: Path, content: bytes) -> None:
    """A file replaced by another one, whoever has it mapped."""
    beside = path.with_name(path.name + ".test")
    beside.write_bytes(content)
    beside.replace(path)


def damaged(content: bytes, other: bytes, one: Damage) -> bytes:
    """What becomes of the content of a file."""
    if one.how == "halved":
        return content[: len(content) // 2]
    if one.how == "flipped":
        if not content:
            return content
        place = one.which * 7919 % len(content)
        return content[:place] + bytes([content[place] ^ (1 << one.which % 8)]) + content[place + 1 :]
    return {"emptied": b"", "swapped": other, "garbage": GARBAGE}[one.how]


@contextlib.contextmanager
def flushing(redis: PrivateRedis) -> Iterator[None]:
    """Everything in Redis is forgotten."""
    with socket.create_connection(("127.0.0.1", redis.port), timeout=5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        connection.recv(64)
        yield
