"""Forgetting everything that this project has in a Redis: cached values and what is live."""

from __future__ import annotations

from store.redis.command import command
from store.redis.connection import RedisConnection
from store.redis.keys import PREFIX

#: Names looked at in one step of a server.
_STEP = 500


async def flush(connection: RedisConnection) -> int:
    """Delete every key of ours, whatever it holds, and no other; how many there were.

    What is written meanwhile may stay.

    :raises SharedAway: Redis does not answer; some may be deleted already.
    """
    deleted = 0
    for node in await connection.primaries():
        cursor = b"0"
        while True:
            cursor, names = await connection.execute_on(node, "SCAN", cursor, "MATCH", f"{PREFIX}*", "COUNT", _STEP)
            deleted += sum(await connection.pipeline([command("UNLINK", name.decode()) for name in names]))
            if cursor == b"0":
                break
    return deleted
