"""The manifest of an archived series: which files hold it, what is in them, and what is known of the rest.

Layout, under the archive's root::

    binance/BTC-USDT/1m/manifest.json               the only truth about the folder; swapped atomically
    binance/BTC-USDT/1m/2023-01.3f9a0c1d.parquet    candles of one period; the name carries the content's digest

A file is never changed: a period with other rows gets a file with another name, then the manifest names it, then
the old file goes. A file that the manifest does not name is litter of an interrupted run and is swept by the next.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from market.coverage import CoverageState, Covered
from market.errors import BadInput, SchemaTooNew, StoreUnusable
from market.fingerprint import Digest, dataset_fingerprint
from market.instrument import Series
from market.interval import Interval

MANIFEST = "manifest.json"
FORMAT = "chandlery-archive"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ArchiveFile:
    """One Parquet file: the closed candles of one series and period, sorted by open time, zstd."""

    #: ``2023-01`` (month, timeframes under an hour) or ``2023`` (year, the others).
    period: str
    #: File name inside the series' folder.
    name: str
    rows: int
    #: Open time of the first row, epoch milliseconds.
    first_open: int
    #: Open time of the last row, epoch milliseconds.
    last_open: int
    #: Of the file's bytes, hex.
    sha256: str
    #: :attr:`market.fingerprint.Digest.hex` of the rows.
    digest: str
    #: Size in bytes.
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the archive holds of one series."""

    series: Series
    #: Sorted by period.
    files: tuple[ArchiveFile, ...]
    #: The coverage ledger at the time of archiving, sorted.
    coverage: tuple[Covered, ...]

    @property
    def digest(self) -> Digest:
        """Over all rows of all files."""
        total = Digest()
        for one in self.files:
            total += Digest.of_hex(one.rows, one.digest)
        return total

    @property
    def fingerprint(self) -> str:
        """The dataset fingerprint of the whole series."""
        return dataset_fingerprint([(self.series, self.digest)])

    def files_in(self, interval: Interval) -> list[ArchiveFile]:
        """The files that hold rows inside `interval`, oldest first."""
        return [one for one in self.files if one.first_open < interval.end and one.last_open >= interval.start]

    def to_json(self) -> bytes:
        """Readable JSON; equal manifests give equal bytes."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "exchange": self.series.exchange,
                "symbol": self.series.symbol,
                "timeframe": self.series.timeframe.name,
                "fingerprint": self.fingerprint,
                "files": [vars(one) for one in self.files],
                "coverage": [
                    {
                        "start": one.interval.start,
                        "end": one.interval.end,
                        "state": one.state.value,
                        "source": one.source,
                        "learned_at": one.learned_at,
                        "expires_at": one.expires_at,
                        "evidence": one.evidence,
                    }
                    for one in self.coverage
                ],
            },
            indent=1,
        ).encode()

    @staticmethod
    def of_json(data: bytes, where: str) -> Manifest:
        """Read what :meth:`to_json` wrote.

        :param where: the file's path, for the error.
        :raises StoreUnusable: not a manifest, or a damaged one.
        :raises SchemaTooNew: written by a newer release.
        """
        try:
            raw: dict[str, Any] = json.loads(data)
            if raw["format"] != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            if raw["version"] > VERSION:
                raise SchemaTooNew(f"{where} has version {raw['version']}, this release knows {VERSION}")
            return Manifest(
                series=Series.parse(raw["exchange"], raw["symbol"], raw["timeframe"]),
                files=tuple(ArchiveFile(**one) for one in raw["files"]),
                coverage=tuple(
                    Covered(
                        interval=Interval(one["start"], one["end"]),
                        state=CoverageState(one["state"]),
                        source=one["source"],
                        learned_at=one["learned_at"],
                        expires_at=one["expires_at"],
                        evidence=one["evidence"],
                    )
                    for one in raw["coverage"]
                ),
            )
        except (AttributeError, BadInput, KeyError, TypeError, ValueError) as error:
            raise StoreUnusable(
                f"{where} is damaged: {error}; run `chandlery archive` to write it again"
            ) from error


def series_folder(root: Path, series: Series) -> Path:
    """Where a series stands in the archive. ``/`` becomes ``-`` and ``:`` becomes ``_`` in the symbol.

    Two symbols never share a folder: a ``-`` or ``_`` that would read like one of these is written as ``%2D`` or
    ``%5F`` (``A-B/C`` is ``A%2DB-C``, ``A/B-C`` is ``A-B-C``).
    """
    pair, settled, settle = series.symbol.replace("%", "%25").partition(":")
    base, slash, quote = pair.replace("_", "%5F").partition("/")
    symbol = base.replace("-", "%2D") + slash.replace("/", "-") + quote + settled.replace(":", "_") + settle
    return root / series.exchange / symbol / series.timeframe.name


def read_manifest(root: Path, series: Series) -> Manifest | None:
    """The manifest of one series, or None if it is not archived."""
    path = series_folder(root, series) / MANIFEST
    try:
        return Manifest.of_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def read_manifests(root: Path) -> list[Manifest]:
    """Every manifest under `root`, by exchange, symbol and timeframe."""
    found = [Manifest.of_json(path.read_bytes(), str(path)) for path in root.glob(f"*/*/*/{MANIFEST}")]
    return sorted(found, key=lambda one: one.series)
