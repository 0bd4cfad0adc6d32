"""The servers that a test run shares, each started when a test first needs it, gone with the run."""

from __future__ import annotations

import atexit
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import pytest

from tests.support.postgres_server import PrivatePostgres
from tests.support.rabbitmq_server import PrivateRabbitMq
from tests.support.redis_cluster import PrivateCluster
from tests.support.redis_server import PrivateRedis
from tests.support.server_process import NOT_RUN


@functools.cache
def _shared() -> PrivatePostgres:
    server = PrivatePostgres()
    atexit.register(server.close)
    return server


def postgres() -> PrivatePostgres:
    """The running server of this test run; skips the test, loudly, where there can be none.

    Do not stop, kill or reconfigure it: tests that do so start a PrivatePostgres of their own.
    """
    server = _shared()
    server.start()
    return server


def timescaledb() -> PrivatePostgres:
    """The same server, where it offers TimescaleDB; else skips the test, loudly."""
    server = postgres()
    if not server.offers_timescaledb:
        pytest.skip(f"TimescaleDB {NOT_RUN}the server in {server.programs.folder} does not offer the extension")
    return server


def database_from(template: str, make: Callable[[str], Awaitable[object] | object]) -> str:
    """A new database of the shared server, copied from what `make` made at the URL it was given; its name."""
    return postgres().database_from(template, make)


@functools.cache
def _shared_redis() -> PrivateRedis:
    server = PrivateRedis()
    atexit.register(server.close)
    return server


def redis() -> PrivateRedis:
    """The running Redis of this test run, where names must be a test's own; skips, loudly, where there is none."""
    server = _shared_redis()
    server.start()
    return server


@functools.cache
def _shared_cluster() -> PrivateCluster:
    cluster = PrivateCluster()
    atexit.register(cluster.close)
    return cluster


def redis_cluster() -> PrivateCluster:
    """The running Redis Cluster of this test run; a test may kill a server of it, and starts it afterwards."""
    cluster = _shared_cluster()
    cluster.start()
    return cluster


@functools.cache
def _shared_rabbitmq() -> PrivateRabbitMq:
    server = PrivateRabbitMq()
    atexit.register(server.close)
    return server


def rabbitmq() -> PrivateRabbitMq:
    """The same of RabbitMQ. It takes seconds to start, so a test may kill this one, and starts it afterwards."""
    server = _shared_rabbitmq()
    server.start()
    return server


def not_run(reasons: Iterable[str]) -> list[str]:
    """One line for each kind of server whose tests were skipped, given all reasons for skips of a run."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons if NOT_RUN in reason)
    return [f"{reason} (tests: {count})" for reason, count in sorted(counts.items())]
