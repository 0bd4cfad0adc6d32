"""Which server has which key: one has all, or a cluster's have a part of the 16,384 slots each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog
from redis.crc import key_slot
from redis.exceptions import ResponseError

from store.redis.address import Place, RedisUrl
from store.redis.command import Reply
from store.redis.node import NoAnswer, Node, RedisRules

log = structlog.get_logger(__name__)

SLOTS = 16_384


class Slots:
    """The servers, and who has what. In a cluster it is asked for again whenever an answer says that it changed."""

    def __init__(self, url: RedisUrl, rules: RedisRules) -> None:
        self._url = url
        self._rules = rules
        self._nodes = {place: Node(place, url, rules) for place in url.places}
        #: Of each slot; empty until a cluster has been asked.
        self._owners: list[Place | None] = [] if url.cluster else [url.places[0]] * SLOTS
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._first = 0

    async def owner(self, key: str) -> Node:
        """The server that has `key`.

        :raises NoAnswer: nobody says who has it.
        """
        if not self._owners:
            # Together with others that wait for the same; one that is given up does not end it for them.
            await self.find()
        place = self._owners[key_slot(key.encode())] if self._owners else None
        if place is None:
            self.doubt()
            raise NoAnswer(f"{self._url.shown}: no server has the slot of {key!r}")
        return self.node(place)

    @property
    def known(self) -> bool:
        """Whether it has been said who has what."""
        return bool(self._owners)

    async def find(self) -> None:
        """Ask who has what.

        :raises NoAnswer: nobody says it.
        """
        await asyncio.shield(self._ask())

    def primaries(self) -> list[Node]:
        """Every server that has slots, in order."""
        return [self.node(place) for place in sorted({place for place in self._owners if place is not None})]

    def node(self, place: Place) -> Node:
        if place not in self._nodes:
            self._nodes[place] = Node(place, self._url, self._rules)
        return self._nodes[place]

    def nodes(self) -> list[Node]:
        """Every server known, replicas too, in order."""
        return [self._nodes[place] for place in sorted(self._nodes)]

    def moved(self, slot: int, place: Place) -> Node:
        """A server said that another has this slot."""
        if self._owners:
            self._owners[slot] = place
        self.doubt()
        return self.node(place)

    def doubt(self) -> None:
        """Ask the cluster again, in the background and not too often; meanwhile what is known stands."""
        loop = asyncio.get_running_loop()
        if self._url.cluster and loop.time() - self._asked_at >= self._rules.refresh_seconds:
            self._ask()

    def _ask(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._refresh())
            # Perhaps nobody waits for it any more when it fails.
            self._asking.add_done_callback(_noted)
        return self._asking

    async def _refresh(self) -> None:
        """Ask one server after the other until one answers; the next time begin with the next."""
        self._asked_at = asyncio.get_running_loop().time()
        nodes = self.nodes()
        said = "no server"
        # The places of the URL may be all that ever answers from here: they are among the nodes for good.
        for turn in range(len(nodes)):
            node = nodes[(self._first + turn) % len(nodes)]
            try:
                (reply,) = await node.converse([("CLUSTER", "SLOTS")])
                if isinstance(reply, ResponseError):
                    said = f"{node.place} says: {reply}"
                    continue
                await self._take(owners_in(reply, node.place))
            except NoAnswer as failure:
                said = str(failure)
            else:
                self._first = (self._first + turn) % len(nodes)
                return
            finally:
                self._asked_at = asyncio.get_running_loop().time()
        self._first += 1
        raise NoAnswer(f"{self._url.shown}: nobody says which server has what; {said}")

    async def _take(self, owned: dict[Place, list[tuple[int, int]]]) -> None:
        owners: list[Place | None] = [None] * SLOTS
        for place, ranges in owned.items():
            self.node(place)
            for first, last in ranges:
                owners[first : last + 1] = [place] * (last + 1 - first)
        if owners != self._owners:
            log.info("the slots of the cluster", redis=self._url.shown, servers=len({*owners} - {None}))
        self._owners = owners
        for place in self._nodes.keys() - owned.keys() - {*self._url.places}:
            await self._nodes.pop(place).close()

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError, NoAnswer):
                await self._asking
        for node in self._nodes.values():
            await node.close()


def _noted(asked: asyncio.Task[None]) -> None:
    if not asked.cancelled() and (failure := asked.exception()) is not None:
        log.debug("the slots of the cluster are not known", error=str(failure))


def owners_in(reply: Sequence[Reply], asked: Place) -> dict[Place, list[tuple[int, int]]]:
    """What ``CLUSTER SLOTS`` says; replicas are listed without slots.

    ``[[0, 5460, [b"127.0.0.1", 30001, b"09dbe9…", []], [b"127.0.0.1", 30004, …]], …]``; without a name of its own
    (an empty host) a server is where we asked.
    """
    owned: dict[Place, list[tuple[int, int]]] = {}
    for first, last, *servers in reply:
        for number, (host, port, *_) in enumerate(servers):
            place = Place(host.decode() if host else asked.host, port)
            ranges = owned.setdefault(place, [])
            if number == 0:
                ranges.append((first, last))
    return owned
