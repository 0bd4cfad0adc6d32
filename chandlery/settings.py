"""Settings from ``chandlery.toml``, ``CHANDLERY_*`` variables and the command line, in rising order of weight."""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from market.channel import Channel
from market.errors import BadInput
from store.bus.address import BusUrl
from store.cache.time_to_live import KINDS, TimesToLive, TtlClass, check_ttl, parsed_times
from store.cache.trading_hours import TradingHours
from store.postgres.address import DatabaseUrl, masked
from store.postgres.maintenance_rules import MaintenanceRules
from store.postgres.mode import Mode
from store.redis.address import RedisUrl
from store.sqlite.store import DATABASE_NAME

FILE = "chandlery.toml"
_SQLITE = "sqlite:///"
#: Variables of the tests begin so.
_NOT_SETTINGS = "CHANDLERY_TEST_"
#: The exchange id under which data of the simulated exchange is kept: made-up candles never stand under a real
#: exchange's name.
SIMULATED = "simulated"


class Settings(BaseSettings):
    """Everything that can be set. Each key is ``key`` in ``chandlery.toml`` and ``CHANDLERY_KEY`` outside."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="CHANDLERY_", toml_file=FILE, extra="forbid", frozen=True, validate_default=True
    )

    home: Path = Field(Path("data"), description="Folder that holds every file the program writes.")
    database_url: str | None = Field(
        None,
        repr=False,
        description="`sqlite:///path` or `postgresql://user:password@host:5432/database`; by default "
        "market_data.sqlite3 in the home.",
    )
    replica_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (), repr=False, description="Streaming replicas of the PostgreSQL database to read from, comma-separated."
    )
    database_mode: Mode | None = Field(
        None,
        description="`plain` or `timescaledb`, for a new PostgreSQL database; by default what the server offers.",
    )
    pool_min: int = Field(5, ge=0, le=1000, description="PostgreSQL connections kept ready, for each server.")
    pool_max: int = Field(20, ge=1, le=1000, description="Most PostgreSQL connections, for each server.")
    database_timeout: float = Field(
        5.0, gt=0, le=3600, description="Seconds a PostgreSQL statement, or the wait for a connection, may take."
    )
    chunk_days: int = Field(1, ge=1, le=31, description="Days in a chunk of candles on TimescaleDB.")
    compress_after_days: int = Field(
        7,
        ge=1,
        le=3650,
        description="Age in days at which candles are compressed, and before which none is dropped.",
    )
    secondary_url: str | None = Field(
        None,
        repr=False,
        description="A second database that holds the same: `sqlite:///path` or `postgresql://…`; by default none.",
    )
    archive_url: str | None = Field(
        None, description="`file:///path` of the Parquet archive; by default the folder archive in the home."
    )
    host: str = Field("127.0.0.1", description="Address the HTTP service listens on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port of the HTTP service; 0 takes a free one.")
    settle_ms: int = Field(
        2000, ge=0, le=600_000, description="Milliseconds after a candle's end before it counts as closed."
    )
    channels: Annotated[tuple[Channel, ...], NoDecode] = Field(
        (Channel.CANDLES,),
        description="What live streams bring, comma-separated: `candles`, `trades`, `tickers`, `order_books`.",
    )
    record_trades: bool = Field(False, description="Keep every live trade in the database (90 days).")
    streams: bool = Field(True, description="Use live streams; without them REST alone keeps candles current.")
    silence: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds without data after which a stream counts as silent and REST is asked instead.",
    )
    bus_url: str | None = Field(
        None,
        repr=False,
        description="Where live messages are published: `redis://host:6379/0` or "
        "`amqp://user:password@host:5672/`; by default inside the process.",
    )
    limits_path: Path | None = Field(
        None,
        description="Folder of the request budgets that all processes of this machine share; by default limits in "
        "the home. Give the same one to all homes whose processes use the same address.",
    )
    journal_bytes: int = Field(
        4 << 30,
        ge=1 << 20,
        description="Bytes that the journal may take on disk while the database is away.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port on 127.0.0.1 for Prometheus metrics of `ingest`; by default none."
    )
    cache_memory_bytes: int = Field(
        256 << 20, ge=0, le=1 << 44, description="Bytes of candles and answers kept in the memory of each process."
    )
    cache_disk_bytes: int = Field(
        4 << 30, ge=0, le=1 << 50, description="Bytes of the disk cache, shared by all processes; 0 for none."
    )
    cache_path: Path | None = Field(None, description="Folder of the disk cache; by default cache in the home.")
    cache_ttl: Annotated[dict[str, int], NoDecode] = Field(
        default_factory=dict,
        description="Milliseconds for which values may be served without asking again, by class or kind: "
        "`price=100,order_book=50`.",
    )
    cache_trading_hours: str | None = Field(
        None,
        description="Windows in UTC outside of which prices may be ten times as old: `mon-fri 08:00-17:00`; "
        "by default the market never closes.",
    )
    cache_preload: int = Field(
        50, ge=0, le=10_000, description="Series, those read most before, that are read ahead at the start."
    )
    redis_url: str | None = Field(
        None,
        repr=False,
        description="Where processes share what is live: `redis://host:6379/0` or "
        "`redis+cluster://host:6379,host2:6379`; by default nowhere.",
    )
    concurrency: int = Field(4, ge=1, le=64, description="Series that a backfill fetches at once.")
    log_level: str = Field("warning", description="`debug`, `info`, `warning` or `error`; logs go to stderr.")

    @field_validator("database_url", "secondary_url")
    @classmethod
    def _database(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not is_sqlite(value):
            setting = _named(str(info.field_name))
            if not value.startswith("postgres"):
                accepted = "sqlite:///data/market_data.sqlite3 or postgresql://user:password@host:5432/database"
                raise BadInput(setting, without_password(value), accepted)
            # Its errors never show the password.
            DatabaseUrl.parse(value, setting)
        return value

    @field_validator("replica_urls", mode="before")
    @classmethod
    def _replicas(cls, value: object, info: ValidationInfo) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(one, str) for one in parts):
            raise ValueError("URLs such as postgresql://user:password@host:5432/database, comma-separated")
        urls = [one.strip() for one in parts if one.strip()]
        for one in urls:
            DatabaseUrl.parse(one, _named(str(info.field_name)))
        return tuple(urls)

    @model_validator(mode="after")
    def _fitting(self) -> Settings:
        if self.replica_urls and (self.database_url is None or is_sqlite(self.database_url)):
            raise BadInput(
                _named("replica_urls"), "...", "none, or a postgresql:// URL in database_url beside them"
            )
        if self.pool_min > self.pool_max:
            raise BadInput(_named("pool_min"), self.pool_min, f"at most pool_max ({self.pool_max})")
        return self

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not parts:
            raise ValueError("some of " + ", ".join(Channel) + ", comma-separated")
        named = _named("channels")
        return tuple(dict.fromkeys(Channel.parse(str(one), named) for one in parts))

    @field_validator("bus_url")
    @classmethod
    def _bus(cls, value: str | None) -> str | None:
        BusUrl.parse(value, _named("bus_url"))
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value is not None:
            RedisUrl.parse(value, _named("redis_url"))
        return value

    @field_validator("cache_ttl", mode="before")
    @classmethod
    def _ttl(cls, value: object) -> object:
        named = _named("cache_ttl")
        times = parsed_times(value, named) if isinstance(value, str) else value
        if not isinstance(times, dict):
            raise ValueError("name=milliseconds, several separated by commas, as in price=100,ticker=250")
        known = dict.fromkeys((*TtlClass, *KINDS))
        for name, milliseconds in times.items():
            if name not in known:
                raise BadInput(named, name, "a class or kind of values, one of: " + ", ".join(known))
            try:
                check_ttl(milliseconds, named)
            except BadInput as error:
                raise BadInput(named, f"{name}={milliseconds}", error.accepted) from error
        return times

    @field_validator("cache_trading_hours")
    @classmethod
    def _hours(cls, value: str | None) -> str | None:
        if value is not None:
            TradingHours(value, field=_named("cache_trading_hours"))
        return value

    @field_validator("archive_url")
    @classmethod
    def _archive(cls, value: str | None) -> str | None:
        if value is not None and not (value.startswith("file://") and urlsplit(value).path):
            raise ValueError("a URL such as file:///srv/archive (buckets are not built yet)")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value not in ("debug", "info", "warning", "error"):
            raise ValueError("one of debug, info, warning, error")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def postgres_url(self) -> DatabaseUrl | None:
        """Where the PostgreSQL database is; None where the first store is an SQLite file."""
        if self.database_url is None or is_sqlite(self.database_url):
            return None
        return DatabaseUrl.parse(self.database_url)

    @property
    def cache_folder(self) -> Path:
        """Where the disk cache is."""
        return self.home / "cache" if self.cache_path is None else self.cache_path

    @property
    def times_to_live(self) -> TimesToLive:
        """How long values may be served without asking again."""
        classes = {name: one for name, one in self.cache_ttl.items() if name in list(TtlClass)}
        kinds = {name: one for name, one in self.cache_ttl.items() if name not in classes}
        hours = self.cache_trading_hours
        return TimesToLive(classes, kinds, trading_hours=None if hours is None else TradingHours(hours))

    @property
    def limits_folder(self) -> Path:
        """Where the request budgets are."""
        return self.home / "limits" if self.limits_path is None else self.limits_path

    @property
    def maintenance_rules(self) -> MaintenanceRules:
        """How candles are kept in a PostgreSQL database."""
        return MaintenanceRules(chunk_days=self.chunk_days, compress_after_days=self.compress_after_days)

    @property
    def database_location(self) -> str:
        """Where the first store is, for people; without a password."""
        return str(self.database_path) if self.postgres_url is None else self.postgres_url.shown

    def shown(self) -> dict[str, str]:
        """Every key that has a value, without passwords."""
        return {
            key: without_password(", ".join(value) if isinstance(value, list) else str(value))
            for key, value in self.model_dump(mode="json").items()
            if value not in (None, [])
        }

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        if self.database_url is None:
            return self.home / DATABASE_NAME
        return sqlite_path(self.database_url)

    @property
    def archive_path(self) -> Path:
        """The archive's folder."""
        return self.home / "archive" if self.archive_url is None else Path(unquote(urlsplit(self.archive_url).path))


def is_sqlite(url: str) -> bool:
    """Whether a URL names an SQLite file."""
    return url.startswith(_SQLITE) and len(url) > len(_SQLITE)


def sqlite_path(url: str) -> Path:
    """The file that an SQLite URL names, as SQLAlchemy reads it: three slashes and a relative path, four and an
    absolute one."""
    return Path(unquote(url.removeprefix(_SQLITE)))


def without_password(text: str) -> str:
    """Text in which the password of a URL, if there is one, is left out."""
    return ", ".join(masked(one) if "://" in one else one for one in text.split(", "))


def _named(key: str) -> str:
    return f"{key} (CHANDLERY_{key.upper()})"


def _told(value: object) -> object:
    """What was given, as errors may show it: anywhere in a list or a table there may be a password."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    return without_password(value) if isinstance(value, str) else value


def load(**given: Any) -> Settings:
    """The settings, with what the command line gave.

    :raises BadInput: naming the key, its value and what would be accepted.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            raise BadInput(
                f"{FILE}: {key}", _told(first["input"]), "one of " + ", ".join(Settings.model_fields)
            ) from error
        accepted = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise BadInput(_named(key), _told(first["input"]), accepted) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(FILE, str(Path(FILE).absolute()), f"valid TOML ({error})") from error


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be the default, in silence."""
    known = {f"CHANDLERY_{key.upper()}" for key in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith("CHANDLERY_") and name not in known and not name.startswith(_NOT_SETTINGS):
            near = get_close_matches(name, known, 1)
            raise BadInput(
                name, without_password(os.environ[name]), near[0] if near else "one of " + ", ".join(sorted(known))
            )
