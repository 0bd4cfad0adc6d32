"""What is said to a Redis server, and how the answers and errors look to the rest of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from market.errors import Terminal

#: A part of a command. A float is sent with all its digits.
Argument = str | bytes | int | float
#: What a server answers: bytes, a number, None, or a list of such; who asked checks it.
Reply = Any


class RedisRefused(Terminal):
    """The server is well and said no: a wrong type under a key, an error in a script. A mistake, not an outage."""


@dataclass(frozen=True)
class Command:
    """One command.

    :param key: says which node of a cluster is asked.
    """

    name: str
    key: str
    arguments: Sequence[Argument] = ()
    #: Set where the command is a script.
    script: Script | None = None

    def said(self, *, whole: bool = False) -> Sequence[Argument]:
        """What goes over the wire; of a script only its name, unless `whole`."""
        if self.script is None:
            return (self.name, self.key, *self.arguments)
        if whole:
            return ("EVAL", self.script.text, *self.arguments)
        return ("EVALSHA", self.script.sha1, *self.arguments)


def command(name: str, key: str, *arguments: Argument) -> Command:
    """A command whose first argument is its key, as almost all have: ``command("SET", key, value, "PX", 100)``."""
    return Command(name, key, arguments)


@dataclass(frozen=True)
class Script:
    """A Lua script that runs in the server, in one piece: nobody sees it half done."""

    #: What its durations are counted under.
    name: str
    text: str = field(repr=False)
    #: By which the server knows it once it has seen it.
    sha1: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha1", digest)

    def call(self, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Command:
        """The script as a command. In a cluster all `keys`, of which there must be one, must lie in one slot."""
        return Command(self.name, keys[0], (len(keys), *keys, *arguments), self)


def packed(words: Sequence[Argument]) -> bytes:
    r"""A command as it goes over the wire: ``*2\r\n$3\r\nGET\r\n$1\r\na\r\n``."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        said = word if isinstance(word, bytes) else (word if isinstance(word, str) else repr(word)).encode()
        parts += (b"$%d\r\n" % len(said), said, b"\r\n")
    return b"".join(parts)
