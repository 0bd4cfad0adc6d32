"""Hit rate, reads a second and memory of the tiers under a mix of reads and writes, beside reading the database.

python -m bench.tier_mix [--json] [--candles N] [--rounds N]

At `--candles` 1,000,000: first 5,000 series of 2,000 minutes read at random, all alike; then 500 series of 100,000
minutes by the mix (`bench.tier_series`), with the memory and disk of the default settings, 256 MiB and 4 GiB: a
twentieth of what is stored, and most of it. With fewer all of it shrinks. The database alone is asked in turn with
the tiers, in blocks of the same mix. After every read what is held is compared with its limit, and the run ends
where it is more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import structlog
import uvloop

from bench.figures import Figures
from bench.paired import Measured, Result, run
from bench.tier_places import CLOCK, MIB, Tiers, opened_tiers, untiered
from bench.tier_series import Mix, make
from bench.turns import milliseconds
from market.errors import Mismatch
from store.market_data import MarketData
from store.sqlite.store import SqliteStore

#: Of 100 questions to process memory and the disk, more than so many are answered there.
BUDGET = 95.0
#: As they are set by default.
_MEMORY, _DISK = 256 * MIB, 4096 * MIB
_SERIES, _ROWS = 500, 100_000
#: Series read at random, and minutes of each.
_MANY, _FEW_ROWS = 5_000, 2_000
#: Operations in a block, of ours and of the database alone; and blocks in a round.
_BLOCK, _BARE_BLOCK = 1_000, 25
_BLOCKS = 4


class Watched:
    """Reads, how long they took, and that the limits were kept."""

    def __init__(self, tiers: Tiers | None, market_data: MarketData, folder: Path | None, disk_bytes: int) -> None:
        self._tiers = tiers
        self._market_data = market_data
        self._folder = folder
        self._disk_bytes = disk_bytes
        #: By kind of read, and by the tier that answered.
        self.seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.most_memory = self.most_disk = 0

    async def run(self, mix: Mix, store: SqliteStore, operations: int) -> None:
        """So many of the mix."""
        for _ in range(operations):
            asked = mix.next()
            if asked.ask is None:
                await mix.write(store, asked.number)
                continue
            began = time.perf_counter()
            found = await asked.ask(self._market_data)
            self.seconds[asked.kind, found.tier].append(time.perf_counter() - began)
            self._look()
        self._look_at_disk()

    def _look(self) -> None:
        if self._tiers is None:
            return
        used, limit = self._tiers.views.used_bytes, self._tiers.memory_bytes
        self.most_memory = max(self.most_memory, used)
        if used > limit:
            raise Mismatch(f"process memory holds {used:,} bytes of {limit:,}")

    def _look_at_disk(self) -> None:
        if self._folder is None or not self._folder.exists():
            return
        used = sum(_size(one) for one in self._folder.rglob("*"))
        self.most_disk = max(self.most_disk, used)
        if used > self._disk_bytes:
            raise Mismatch(f"the disk cache has {used:,} bytes of {self._disk_bytes:,}")

    @property
    def reads(self) -> int:
        return sum(map(len, self.seconds.values()))

    @property
    def spent(self) -> float:
        """Seconds, of all reads."""
        return sum(map(sum, self.seconds.values()))

    def of(self, *, kind: str | None = None, tier: str | None = None) -> list[float]:
        """Seconds of the reads of a kind, a tier, or both."""
        return [
            one
            for (its_kind, its_tier), found in self.seconds.items()
            for one in found
            if kind in (None, its_kind) and tier in (None, its_tier)
        ]


def _size(path: Path) -> int:
    """Of a file that may be deleted just now."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_blocks * 512 if path.is_file() else 0
    return 0


class Rates:
    """Of 100 questions to a tier, how many it answered, since this was made."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._before = self._counts()

    def _counts(self) -> dict[str, tuple[int, int]]:
        found: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for one in self._tiers.statistics.snapshot():
            hits, misses = found[one.tier]
            found[one.tier] = hits + one.hits, misses + one.misses
        return found

    def now(self) -> dict[str, float]:
        """Of process memory alone; of it and the disk, which is asked for what memory lacks."""
        after = self._counts()
        hits, misses = (after["memory"][at] - self._before.get("memory", (0, 0))[at] for at in (0, 1))
        disk = after["disk"][0] - self._before.get("disk", (0, 0))[0]
        asked = max(hits + misses, 1)
        return {"memory": 100 * hits / asked, "memory and disk": 100 * (hits + disk) / asked}


async def _mixed(folder: Path, series: int, rows: int, blocks: int, share: float) -> list[Result]:
    memory_bytes, disk_bytes = max(int(_MEMORY * share), 2 * MIB), max(int(_DISK * share), 32 * MIB)
    path, cache = folder / "mix.sqlite3", folder / "cache"
    make(path, series, rows)
    async with SqliteStore.opened(path, CLOCK) as store:
        with opened_tiers(store, cache, memory_bytes=memory_bytes, disk_bytes=disk_bytes) as tiers:
            ours = Watched(tiers, tiers.market_data, cache, disk_bytes)
            bare = Watched(None, untiered(store), None, 0)
            # Ours alone writes, to what both read.
            mix, bare_mix = Mix(series, rows, 1), Mix(series, rows, 2, writes=0.0)
            whole = Rates(tiers)
            later = whole
            for block in range(blocks):
                if block == blocks // 4:
                    later = Rates(tiers)
                await ours.run(mix, store, _BLOCK)
                await bare.run(bare_mix, store, _BARE_BLOCK)
            return _report(ours, bare, whole.now(), later.now(), memory_bytes, disk_bytes, series)


def _report(
    ours: Watched,
    bare: Watched,
    whole: dict[str, float],
    later: dict[str, float],
    memory_bytes: int,
    disk_bytes: int,
    series: int,
) -> list[Result]:
    name = f"mix over {series:,} series"
    found: list[Result] = [
        Figures(
            name=f"{name}: hit rate (budget: more than {BUDGET:g})",
            unit="%",
            values={one: round(value, 3) for one, value in whole.items()},
            more={f"after the first quarter: {one}": round(value, 3) for one, value in later.items()},
        ),
        Figures(
            name=f"{name}: answers",
            unit="%",
            values={
                tier: 100 * len(ours.of(tier=tier)) / ours.reads
                for tier in sorted({one for _, one in ours.seconds})
            },
            more={"reads": ours.reads},
        ),
        Figures(
            name=f"{name}: the most held",
            unit="MiB",
            values={"memory": ours.most_memory / MIB, "disk": ours.most_disk / MIB},
            more={"memory limit": memory_bytes / MIB, "disk limit": disk_bytes / MIB},
        ),
        Measured(
            name=f"{name}: reads, on average",
            units=1,
            baseline="the database each time",
            ours_seconds=ours.spent / ours.reads,
            baseline_seconds=bare.spent / bare.reads,
            rounds=bare.reads,
        ),
    ]
    found += _lines(name, ours, "")
    found += _lines(name, bare, "no tiers, ")
    return found


def _lines(name: str, watched: Watched, prefix: str) -> Iterable[Figures]:
    tiers = sorted({tier for _, tier in watched.seconds})
    kinds = sorted({kind for kind, _ in watched.seconds})
    parts = {f"{prefix}from {tier}": watched.of(tier=tier) for tier in tiers}
    parts |= {f"{prefix}{kind} from {tier}": watched.of(kind=kind, tier=tier) for kind in kinds for tier in tiers}
    for what, seconds in parts.items():
        if seconds:
            yield Figures(
                name=f"{name}: {what}", unit="ms", values=milliseconds(seconds), more={"reads": len(seconds)}
            )


async def _memory(folder: Path, series: int, rows: int, reads: int, share: float) -> list[Result]:
    """Growth of this process by what it reads; before anything else is measured in it."""
    limit = max(int(_MEMORY * share), 2 * MIB)
    path = folder / "many.sqlite3"
    make(path, series, rows)
    async with SqliteStore.opened(path, CLOCK) as store:
        # What the database, Arrow and Python themselves take: once all of it has been in use.
        bare = Watched(None, untiered(store), None, 0)
        await bare.run(Mix(series, rows, 3, writes=0.0, flat=True), store, reads // 10)
        before = _resident()
        with opened_tiers(store, None, memory_bytes=limit) as tiers:
            ours, mix = Watched(tiers, tiers.market_data, None, 0), Mix(series, rows, 4, flat=True)
            most, rates = before, Rates(tiers)
            growth = []
            for _ in range(4):
                await ours.run(mix, store, reads // 4)
                growth.append(_resident() - before)
                most = max(most, before + growth[-1])
            name = f"{series:,} series at random"
            return [
                Figures(
                    name=f"{name}: growth of resident memory",
                    unit="MiB",
                    values={f"{25 * (at + 1)} %": one / MIB for at, one in enumerate(growth)},
                    more={
                        "limit": limit / MIB,
                        "most held": ours.most_memory / MIB,
                        "resident before": before / MIB,
                        "reads": ours.reads,
                        "hit rate %": rates.now()["memory"],
                    },
                ),
                *_lines(name, ours, ""),
            ]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(count: int, rounds: int) -> list[Result]:
    """Memory first, since the mix leaves its own behind."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    share = min(count / 1_000_000, 1.0)
    series, rows = max(int(_SERIES * share), 10), max(min(_ROWS, count), 5_000)
    many, few = max(int(_MANY * share), 50), _FEW_ROWS
    found: list[Result] = []
    for work, arguments in (
        (_memory, (many, few, max(int(2_000 * rounds * share), 400), share)),
        (_mixed, (series, rows, max(int(_BLOCKS * rounds * share), 4), share)),
    ):
        with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found += runner.run(work(Path(folder), *arguments))
    return found


if __name__ == "__main__":
    run(measure, __doc__)
