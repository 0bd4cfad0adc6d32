"""Values that all processes share, in Redis, each with its time to live."""

from __future__ import annotations

from collections.abc import Sequence

from redis.crc import key_slot

from store.cache.invalidation import Invalidation
from store.cache.key import CacheKey, pattern_regex
from store.redis.command import command
from store.redis.connection import RedisConnection
from store.redis.invalidations import Invalidations
from store.redis.keys import cache_key, match, redis_key

#: A larger value is not shared: it would keep the others waiting for longer than they wait.
_LARGEST = 8 << 20
#: Names that a server looks at in one step of a search; each step is well under a millisecond.
_STEP = 500


class RedisValues:
    """See :class:`store.cache.shared_values.SharedValues`.

    Every call may raise :class:`store.cache.shared_values.SharedAway`. Then it is not known what was done, and what
    was under way may still be done a moment later, when the server comes to itself.
    """

    def __init__(self, connection: RedisConnection, invalidations: Invalidations) -> None:
        self._connection = connection
        self._invalidations = invalidations
        #: Values not kept because they were too large.
        self.too_large = 0

    async def get(self, keys: Sequence[CacheKey]) -> list[bytes | None]:
        """The bytes in the order of the keys; None where there are none, or something that is no value of ours.

        :raises SharedAway: Redis cannot say. That is not the same as having none.
        """
        names = [redis_key(key) for key in keys]
        groups: dict[int, list[int]] = {}
        for at, name in enumerate(names):
            groups.setdefault(key_slot(name.encode()) if self._connection.url.cluster else 0, []).append(at)
        # MGET, unlike GET, has nothing to say against a value of another type: there is none.
        asked = [command("MGET", *(names[at] for at in group)) for group in groups.values()]
        found: list[bytes | None] = [None] * len(names)
        for group, answer in zip(groups.values(), await self._connection.pipeline(asked), strict=True):
            for at, value in zip(group, answer, strict=True):
                found[at] = value
        return found

    async def put(self, items: Sequence[tuple[CacheKey, bytes, int]]) -> None:
        """Keep bytes, each for so many milliseconds (1 or more).

        What is too large is not kept, and neither is what was there before.
        """
        commands = []
        for key, value, ttl_ms in items:
            if len(value) > _LARGEST:
                self.too_large += 1
                commands.append(command("UNLINK", redis_key(key)))
            else:
                commands.append(command("SET", redis_key(key), value, "PX", ttl_ms))
        await self._connection.pipeline(commands)

    async def delete(self, keys: Sequence[CacheKey]) -> None:
        """Forget these; one that is not there is no error."""
        await self._connection.pipeline([command("UNLINK", redis_key(key)) for key in keys])

    async def delete_matching(self, pattern: str) -> int:
        """Forget all values whose keys match, see :func:`store.cache.key.check_pattern`; how many there were.

        Every server looks through its names in small steps. Values stored meanwhile may or may not be among them.

        :raises BadInput: `pattern` is none.
        """
        matches, wanted = pattern_regex(pattern).match, match(pattern)
        deleted = 0
        for node in await self._connection.primaries():
            cursor = b"0"
            while True:
                cursor, names = await self._connection.execute_on(
                    node, "SCAN", cursor, "MATCH", wanted, "COUNT", _STEP
                )
                keys = ((name, cache_key(name)) for name in names)
                ours = [name.decode() for name, key in keys if key is not None and matches(key.text)]
                answers = await self._connection.pipeline([command("UNLINK", name) for name in ours])
                deleted += sum(answers)
                if cursor == b"0":
                    break
        return deleted

    async def publish(self, invalidation: Invalidation) -> None:
        """Tell the other processes; see :class:`store.redis.invalidations.Invalidations`."""
        await self._invalidations.publish(invalidation)
