"""The journal for the event loop: batches in and out, on one thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from ingest.journal import MOST_BYTES, SEGMENT_BYTES, Journal
from ingest.journal_record import Batch, decode, encode
from ingest.journal_segment import Place
from ingest.waiting import Held
from market.errors import BadInput

_T = TypeVar("_T")


class Oldest(NamedTuple):
    """The oldest batches of the journal."""

    #: Where they end.
    place: Place
    #: Records, and the batches that could be read from them.
    records: int
    held: list[Held]


class Spill:
    """Open with :meth:`opened`."""

    def __init__(self, journal: Journal, thread: ThreadPoolExecutor) -> None:
        self._journal = journal
        self._thread = thread

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls, folder: Path, *, most_bytes: int = MOST_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> AsyncIterator[Spill]:
        """The journal in `folder`; see :meth:`ingest.journal.Journal.opened` for the rest and the errors."""
        # One thread: the journal is no matter for two at once, and its syncs must not hold up the loop.
        thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        keep = contextlib.ExitStack()
        try:
            opening = Journal.opened(folder, most_bytes=most_bytes, segment_bytes=segment_bytes)
            journal = await asyncio.get_running_loop().run_in_executor(thread, keep.enter_context, opening)
            yield cls(journal, thread)
        finally:
            # What is under way there ends first. Waited for here, as there may be no more threads to wait on.
            thread.shutdown()
            keep.close()

    @property
    def records(self) -> int:
        """Batches in it."""
        return self._journal.records

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return self._journal.bytes

    async def append(self, held: Sequence[Held]) -> tuple[list[Held], list[Held]]:
        """Which of these are on the disk now, and which could not even be written down and were set aside.

        :raises StoreUnusable: none of them is.
        """
        return await self._run(partial(self._append, held))

    async def oldest(self) -> Oldest | None:
        """The oldest batches; None where the journal is empty. What cannot be read as a batch is set aside.

        :raises StoreUnusable: the disk fails.
        """
        return await self._run(self._oldest)

    async def done(self, place: Place) -> None:
        """Everything up to this place is in the store."""
        await self._run(partial(self._journal.done, place))

    async def set_aside(self, batch: Batch, reason: str) -> None:
        """Keep a batch that the store refuses.

        :raises StoreUnusable: it could not be written.
        """
        await self._run(partial(self._set_aside, batch, reason))

    def _append(self, held: Sequence[Held]) -> tuple[list[Held], list[Held]]:
        kept: list[Held] = []
        aside: list[Held] = []
        payloads = []
        for one in held:
            try:
                payloads.append(encode(one.batch))
                kept.append(one)
            except BadInput as error:
                self._set_aside(one.batch, str(error))
                aside.append(one)
        if payloads:
            self._journal.append(payloads)
        return kept, aside

    def _oldest(self) -> Oldest | None:
        entries = self._journal.read()
        if not entries:
            return None
        held = []
        for entry in entries:
            try:
                held.append(Held(decode(entry.payload)))
            except BadInput as error:
                self._journal.set_aside(entry.payload, str(error))
        return Oldest(entries[-1].place, len(entries), held)

    def _set_aside(self, batch: Batch, reason: str) -> None:
        try:
            payload = encode(batch)
        except BadInput:
            # For people to read, at least.
            payload = repr(batch).encode("utf-8", "backslashreplace")
        self._journal.set_aside(payload, reason)

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
