"""Messages of exchanges that could not be used, kept so that somebody can find out why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from market.channel import Channel

#: Of each exchange, the newest so many are kept.
KEPT_MESSAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class QuarantinedMessage:
    """A message that could not be used, and why."""

    exchange: str
    #: None where the message does not tell, as with the symbol.
    channel: Channel | None = None
    #: ccxt unified.
    symbol: str | None = None
    #: In words.
    reason: str
    #: As received; long ones are cut.
    raw: str
    #: When it was last received, epoch milliseconds of our clock.
    received_at: int
    #: How often it was received.
    times: int = 1

    @property
    def digest(self) -> str:
        """Alike for the same message and reason."""
        text = f"{len(self.reason)} {self.reason}{self.raw}"
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]

    def storable(self) -> QuarantinedMessage:
        """The same in characters that every database takes; the others are written out."""
        return replace(self, reason=_plain(self.reason), raw=_plain(self.raw))


def _plain(text: str) -> str:
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
