"""What the servers say of themselves: how long commands take, the way to them left out, and memory used."""

from __future__ import annotations

from dataclasses import dataclass

from store.redis.connection import RedisConnection
from store.redis.node import Node


@dataclass(frozen=True, kw_only=True)
class CommandLatency:
    """One command since the servers started, or since their statistics were reset. Milliseconds."""

    calls: int
    mean: float
    #: Of a cluster, those of its slowest server. None where no server knows them: they do since Redis 7.
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None


async def command_latency(connection: RedisConnection) -> dict[str, CommandLatency]:
    """By command, as the servers' own clocks see it: ``{"get": CommandLatency(calls=…, p99=0.003, …), …}``.

    :raises SharedAway: a server does not answer.
    """
    calls: dict[str, int] = {}
    spent: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for node in await connection.primaries():
        for name, value in (await _info(connection, node, "commandstats")).items():
            command = name.removeprefix("cmdstat_")
            calls[command] = calls.get(command, 0) + int(value["calls"])
            spent[command] = spent.get(command, 0.0) + value["usec"] / 1000
        # An older server has no such section, and then says nothing.
        for name, value in (await _info(connection, node, "latencystats")).items():
            known = shares.setdefault(name.removeprefix("latency_percentiles_usec_"), {})
            for share, microseconds in value.items():
                known[share] = max(known.get(share, 0.0), microseconds / 1000)
    return {
        command: CommandLatency(
            calls=count,
            mean=spent[command] / count if count else 0.0,
            p50=shares.get(command, {}).get("p50"),
            p99=shares.get(command, {}).get("p99"),
            p999=shares.get(command, {}).get("p99.9"),
        )
        for command, count in calls.items()
    }


async def reset_command_latency(connection: RedisConnection) -> None:
    """Begin to count anew, on all servers, for everybody.

    :raises SharedAway: a server does not answer; others may have begun anew.
    """
    for node in await connection.primaries():
        await connection.execute_on(node, "CONFIG", "RESETSTAT")


async def memory_usage(connection: RedisConnection) -> int:
    """Bytes that the servers which have keys use together.

    :raises SharedAway: a server does not answer.
    """
    used = 0
    for node in await connection.primaries():
        text = (await connection.execute_on(node, "INFO", "memory")).decode()
        used += next(int(line[12:]) for line in text.splitlines() if line.startswith("used_memory:"))
    return used


async def _info(connection: RedisConnection, node: Node, section: str) -> dict[str, dict[str, float]]:
    """Lines such as ``cmdstat_get:calls=4,usec=20,usec_per_call=5.00,rejected_calls=0,failed_calls=0``."""
    text = (await connection.execute_on(node, "INFO", section)).decode()
    found = {}
    for line in text.splitlines():
        name, mark, rest = line.partition(":")
        if mark and "=" in rest:
            pairs = (one.partition("=") for one in rest.split(","))
            found[name] = {key: float(value) for key, _, value in pairs}
    return found
