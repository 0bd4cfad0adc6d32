"""The cache as users meet it: corrections, restarts, damaged files and full disks under a running service."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chandlery.settings import Settings
from chandlery.tiers import FREQUENT_NAME
from tests.acceptance.conftest import Command
from tests.support.made_candles import MINUTE, at
from tests.support.places import mounted
from tests.support.postgres_server import PrivatePostgres
from tests.support.served_home import (
    FIRST,
    LAST,
    SEALED,
    SYMBOLS,
    Service,
    Truth,
    arrow_files,
    fill,
    minutes,
    rows_at,
    serving,
    waited,
    write_csv,
)

BTC, ETH = SYMBOLS
#: In the month that is over, before the newest rows. Each time with another end, so that the answer itself is not
#: kept. What is read of a month for the first time alone comes from the database, and is not kept.
MONTH = at(SEALED - 4000), at(SEALED - 3500)
#: Milliseconds for which PostgreSQL's versions are believed (class `price`).
VERSIONS_MS = 100
#: So little memory that no month fits in, and series still do.
LITTLE_MEMORY = {"CHANDLERY_CACHE_MEMORY_BYTES": str(64 << 10)}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A home to be copied, and what is in it."""
    home = tmp_path_factory.mktemp("filled")
    return home, fill(Settings(home=home))


@pytest.fixture
def home(filled: tuple[Path, Truth], tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled[0], tmp_path / "home"))


@pytest.fixture
def truth(filled: tuple[Path, Truth]) -> Truth:
    return Truth({symbol: dict(rows) for symbol, rows in filled[1].rows.items()})


def month_but(service: Service, truth: Truth, less: int, symbol: str = BTC) -> str:
    """Read the month that is over but for its last minutes; the tier that gave the right answer."""
    start, end = MONTH[0], MONTH[1] - less * MINUTE
    found, tier = service.rows(symbol, start=start, end=end, limit=1000)
    assert found == truth.range(symbol, start, end)
    return tier


def correct(chandlery: Command, home: Path, tmp_path: Path, truth: Truth, version: int, place: int) -> None:
    """Another process corrects two minutes of BTC/USDT."""
    corrected = rows_at(minutes(place, place + 2), version)
    file = write_csv(tmp_path / f"{version}.csv", corrected)
    done = chandlery("import", file, "--exchange", "binance", "--symbol", BTC, "--home", home, "--json")
    assert done.code == 0, done.err
    assert done.json["series"][0]["corrected"] == 2
    truth.put(BTC, corrected)


def test_a_correction_is_in_the_next_answer(chandlery: Command, home: Path, tmp_path: Path, truth: Truth) -> None:
    """Whatever is held of it: encoded answers, tails, months, larger candles, several symbols in one answer."""
    questions: list[Callable[[Service], None]] = [
        lambda service: newest_right(service, truth),
        lambda service: month_right(service, truth),
        lambda service: hours_right(service, truth),
        lambda service: batch_right(service, truth),
    ]
    with serving(home) as service:
        for one in questions * 2:
            one(service)
        assert service.rows(limit=500)[1] == "memory"
        for version, place in enumerate((LAST - 2, SEALED - 3900, LAST - 400, FIRST + 5), 10):
            correct(chandlery, home, tmp_path, truth, version, place)
            # Each question is the next one once.
            questions.append(questions.pop(0))
            for one in questions * 2:
                one(service)
        assert service.rows(limit=500)[1] == "memory"


def newest_right(service: Service, truth: Truth) -> None:
    assert service.rows(limit=500)[0] == truth.newest(BTC, 500)


def month_right(service: Service, truth: Truth) -> None:
    month_but(service, truth, 0)


def hours_right(service: Service, truth: Truth) -> None:
    start, end = at(FIRST), at(LAST)
    found, _ = service.rows(timeframe="1h", start=start, end=end, limit=1000, columns="open,high,low,close")
    assert found == truth.hours(BTC, start, end)


def batch_right(service: Service, truth: Truth) -> None:
    asked = {"exchange": "binance", "symbols": ",".join(SYMBOLS), "timeframe": "1m", "limit": 50}
    answers = service.get("/v1/candles/batch", **asked, columns="open,high,low,close,volume").json()["answers"]
    assert [one["data"] for one in answers] == [truth.newest(symbol, 50) for symbol in SYMBOLS]


@pytest.fixture
def database(postgres: PrivatePostgres) -> Iterator[str]:
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


def test_a_correction_in_postgresql_is_read_when_its_time_is_over(
    chandlery: Command, monkeypatch: pytest.MonkeyPatch, database: str, tmp_path: Path
) -> None:
    """Within 100 ms an answer may be of before, and says so; after them, never."""
    env = {"CHANDLERY_DATABASE_URL": database, "CHANDLERY_DATABASE_MODE": "plain"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    assert chandlery("db", "upgrade", "--home", home).code == 0
    truth = fill(Settings(home=home))
    with serving(home, env) as service:
        newest_right(service, truth)
        newest_right(service, truth)
        for version in (10, 11):
            before, asked = truth.newest(BTC, 500), 0.0
            correct(chandlery, home, tmp_path, truth, version, LAST - 2)
            committed = time.monotonic()
            # A question that was asked later than that has no excuse.
            while asked <= committed + VERSIONS_MS / 1000:
                asked = time.monotonic()
                found, _ = service.rows(limit=500)
                assert found == truth.newest(BTC, 500) or (
                    found == before and asked <= committed + VERSIONS_MS / 1000
                )
            newest_right(service, truth)


def test_what_is_read_most_is_in_memory_after_a_restart(home: Path, truth: Truth) -> None:
    with serving(home) as service:
        assert [month_but(service, truth, less) for less in range(3)] == ["database", "database", "memory"]
        for _ in range(3):
            newest_right(service, truth)
        waited(lambda: len(arrow_files(home / "cache")) == 1, "the month is on disk")
        assert "Traceback" not in service.ended()
    assert (home / FREQUENT_NAME).exists()
    (file,) = arrow_files(home / "cache")
    size = file.stat().st_size
    with serving(home) as service:
        waited(lambda: service.cache()["memory_bytes"] > 0, "it is read ahead")
        waited(lambda: service.counted("memory", "candles", "bytes") > 50_000, "all of it")
        before = service.counted("memory", "candles", "hits")
        # The first reads ever: of the series that was read most, and of one that nobody had read.
        assert service.rows(limit=500) == (truth.newest(BTC, 500), "memory")
        assert service.counted("memory", "candles", "hits") == before + 1
        assert service.rows(ETH, limit=500) == (truth.newest(ETH, 500), "database")
        assert [month_but(service, truth, less) for less in range(3)] == ["database", "disk", "memory"]
        assert service.counted("disk", "candles", "hits") == 1
        assert service.counted("disk", "candles", "bytes") >= size
        status = service.cache()
        assert status["memory_bytes"] <= status["memory_limit_bytes"] == 256 << 20
        assert (status["safety"], status["operating"]) == ("normal", "balanced")
        assert 0 < status["hit_rate"] <= 1


def garbage(file: Path, other: Path) -> None:
    del other
    file.write_bytes(os.urandom(file.stat().st_size))


def truncated(file: Path, other: Path) -> None:
    del other
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path, other: Path) -> None:
    del other
    os.truncate(file, 0)


def one_bit(file: Path, other: Path) -> None:
    """In the middle of the numbers."""
    del other
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def of_another_symbol(file: Path, other: Path) -> None:
    """A file of ours, whole and under a wrong name."""
    shutil.copyfile(other, file)


def a_link(file: Path, other: Path) -> None:
    file.unlink()
    file.symlink_to(other)


def a_pipe(file: Path, other: Path) -> None:
    """Whoever opens it without care waits for ever."""
    del other
    file.unlink()
    os.mkfifo(file)


def test_a_damaged_file_under_a_running_service(home: Path, truth: Truth) -> None:
    """It is dropped, the answer is right and comes from the database, and the file is made again."""
    harm = [garbage, truncated, emptied, one_bit, of_another_symbol, a_link, a_pipe]
    with serving(home, LITTLE_MEMORY) as service:
        less = iter(range(1000))

        def on_disk(symbol: str) -> None:
            """Read until the disk answers."""
            waited(lambda: month_but(service, truth, next(less), symbol) == "disk", f"{symbol} is on disk")

        for symbol in SYMBOLS:
            on_disk(symbol)
        file, other = arrow_files(home / "cache")
        assert "BTC" in str(file)
        whole = file.read_bytes(), other.read_bytes()
        for harmed in harm:
            harmed(file, other)
            assert month_but(service, truth, next(less)) == "database", harmed.__name__
            on_disk(BTC)
            assert arrow_files(home / "cache") == [file, other], harmed.__name__
            assert not file.is_symlink()
            assert len(file.read_bytes()) == len(whole[0])
            assert other.read_bytes() == whole[1]
        # Somebody clears away the whole of it.
        shutil.rmtree(home / "cache")
        assert month_but(service, truth, next(less)) == "database"
        on_disk(BTC)
        assert service.cache()["memory_bytes"] <= 64 << 10
        said = service.ended()
    assert said.count("a damaged file in the disk cache is not used") == 1
    assert "Traceback" not in said


def full(folder: Path) -> None:
    """Take all room of its disk."""
    try:
        with (folder / "ballast").open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def test_a_disk_cache_that_is_full_read_only_or_gone(
    chandlery: Command, home: Path, tmp_path: Path, truth: Truth
) -> None:
    """Reads go on; what is there is used as long as it can be read."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as folder:
        with serving(home, LITTLE_MEMORY | {"CHANDLERY_CACHE_PATH": str(folder)}) as service:
            less = iter(range(1000))
            waited(lambda: month_but(service, truth, next(less)) == "disk", "it is on disk")
            full(folder)
            # No room for another: it is read from the database as often as it is asked for.
            assert {month_but(service, truth, next(less), ETH) for _ in range(4)} == {"database"}
            assert month_but(service, truth, next(less)) in ("disk", "database")
            (folder / "ballast").unlink()
            for symbol in SYMBOLS:
                waited(
                    lambda symbol=symbol: month_but(service, truth, next(less), symbol) == "disk",  # type: ignore[misc]
                    f"{symbol} is on disk",
                )
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            assert [month_but(service, truth, next(less), symbol) for symbol in SYMBOLS] == ["disk", "disk"]
            correct(chandlery, home, tmp_path, truth, 10, SEALED - 3900)
            assert {month_but(service, truth, next(less)) for _ in range(3)} == {"database"}
            assert month_but(service, truth, next(less), ETH) == "disk"
            subprocess.run(["umount", "--lazy", folder], check=True)
            folder.chmod(0o700)
            assert month_but(service, truth, next(less), ETH) == "database"
            newest_right(service, truth)
            hours_right(service, truth)
            said = service.ended()
        assert "Traceback" not in said
