"""How far a recorded session has been played, and the order books that are asked for in it.

The recorder asked for an order book while messages came in; a client must get it at the same place. So a request
waits until the playback reaches the recorded answer, and the playback waits there, for a while, for the request.
Who asks again later gets the recorded book with the changes since.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import orjson

from exchange.simulator.session import Line, Session

#: Real seconds that either side waits for the other.
PATIENCE = 5.0


class Playback:
    """A position in a session, and when each line is due.

    :param speed: recorded seconds per real second; infinite for as fast as the client reads.
    """

    def __init__(self, session: Session, speed: float) -> None:
        self.session = session
        #: The place of the next line.
        self.position = 0
        #: Whether time passes only as lines are played.
        self.stands_still = math.isinf(speed)
        self._speed = speed
        self._began: float | None = None
        self._asked: dict[str, asyncio.Event] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def line(self) -> Line | None:
        """The next line; None at the end."""
        lines = self.session.lines
        return lines[self.position] if self.position < len(lines) else None

    @property
    def now_ms(self) -> int:
        """The recorded time: when the line that was played last was received."""
        lines = self.session.lines
        return lines[max(0, min(self.position, len(lines)) - 1)].time_ns // 1_000_000

    def begin(self) -> None:
        """Begin, or go on after an interruption: what was due meanwhile is lost, unless time stands still."""
        if self._began is None:
            self._began = time.monotonic()
            return
        while not self.stands_still and (line := self.line) is not None and self.delay(line) < 0:
            self.position += 1

    def delay(self, line: Line) -> float:
        """Real seconds until a line is due; zero or less if it is."""
        assert self._began is not None
        after = (line.time_ns - self.session.lines[0].time_ns) / 1e9 / self._speed
        return self._began + after - time.monotonic()

    async def meet_request(self, line: Line) -> None:
        """Wait, at a recorded answer, for the client's request (:data:`PATIENCE` at most); put off what follows."""
        if self.session.answers[line.symbol][0] == self.position:
            asked, began = self._asked.setdefault(line.symbol, asyncio.Event()), time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    await asked.wait()
            except TimeoutError:
                pass
            assert self._began is not None
            self._began += time.monotonic() - began
        for one in self._waiting.pop(line.symbol, []):
            if not one.done():
                one.set_result(None)

    async def order_book(self, symbol: str, levels: int, stale_seconds: float) -> dict[str, Any] | None:
        """The answer to a request for an order book; None for a symbol of which none was recorded.

        :param stale_seconds: by how much it is to be behind, in recorded time.
        """
        places = self.session.answers.get(symbol)
        if places is None:
            return None
        if self.position <= places[0]:
            self._asked.setdefault(symbol, asyncio.Event()).set()
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(symbol, []).append(reached)
            await asyncio.wait([reached], timeout=PATIENCE)
            upto = places[0]
        else:
            upto = self._place_at(self.now_ms - round(stale_seconds * 1000)) if stale_seconds else self.position
        return book_at(self.session, symbol, upto, levels)

    def _place_at(self, ms: int) -> int:
        """The first place not before a recorded time, going back from here."""
        place = min(self.position, len(self.session.lines))
        while place and self.session.lines[place - 1].time_ns // 1_000_000 >= ms:
            place -= 1
        return place


def book_at(session: Session, symbol: str, upto: int, levels: int) -> dict[str, Any]:
    """The order book of a symbol after the lines before `upto`: as recorded, or with the changes since.

    Never older than the first one recorded.
    """
    places = session.answers[symbol]
    place = max((at for at in places if at < upto), default=places[0])
    answer: dict[str, Any] = orjson.loads(session.lines[place].text)
    sides = {key: dict(answer[side]) for key, side in (("b", "bids"), ("a", "asks"))}
    for at, event in session.events("depthUpdate") if upto > place else []:
        # Changes that came before the answer may be newer than it.
        if at < upto and event["s"] == symbol and event["u"] > answer["lastUpdateId"]:
            answer["lastUpdateId"] = event["u"]
            for key, side in sides.items():
                side.update(event[key])
    for key, name in (("b", "bids"), ("a", "asks")):
        kept = [[price, quantity] for price, quantity in sides[key].items() if float(quantity)]
        answer[name] = sorted(kept, key=lambda level: float(level[0]), reverse=key == "b")[:levels]
    return answer
