"""Which bus to use, as a URL, and how it is shown without its password."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

from market.errors import BadInput
from store.postgres.address import masked

_ACCEPTED = "memory://, redis://host:6379/0 or amqp://user:password@host:5672/vhost"
_ENCODED = "with # / ? @ : and spaces in names and passwords percent-encoded (# as %23)"


class BusKind(StrEnum):
    """What hands on the messages."""

    MEMORY = "memory"
    REDIS = "redis"
    RABBITMQ = "amqp"


@dataclass(frozen=True, kw_only=True)
class BusUrl:
    """One bus and who asks. Neither ``repr`` nor :attr:`shown` has the password."""

    kind: BusKind
    host: str = ""
    port: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    #: The number of Redis's database, or the name of RabbitMQ's virtual host.
    place: str = ""
    #: Whether the connection is encrypted (``rediss://``, ``amqps://``).
    tls: bool = False
    #: The setting this came from, which errors name.
    setting: str = field(default="bus_url", compare=False)

    @classmethod
    def parse(cls, text: str | None, setting: str = "bus_url") -> BusUrl:
        """None, an empty text and ``memory://`` are the bus within this process.

        The others are ``redis://[user:password@]host[:6379][/number]`` and
        ``amqp://[user:password@]host[:5672][/vhost]``, with ``rediss`` and ``amqps`` for TLS. User, password and
        virtual host are percent-decoded; without a virtual host it is ``/``.

        :raises BadInput: naming `setting` and showing the URL without its password.
        """
        if not text or text == "memory://":
            return cls(kind=BusKind.MEMORY, setting=setting)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise _refused(text, setting, f"{_ACCEPTED}, its port from 1 to 65535, {_ENCODED}") from None
        if parts.scheme not in _SCHEMES:
            raise _refused(text, setting, _ACCEPTED)
        kind, tls, default_port = _SCHEMES[parts.scheme]
        place = parts.path.removeprefix("/")
        odd = not text.isprintable() or any(sign in text for sign in " #?") or "@" in place or "/" in place
        if odd or port == 0 or not parts.hostname:
            raise _refused(text, setting, f"{_ACCEPTED}, {_ENCODED}")
        if kind is BusKind.REDIS and place and not (place.isascii() and place.isdigit()):
            raise _refused(text, setting, "the number of a database after the host, as in redis://host:6379/0")
        return cls(
            kind=kind,
            host=parts.hostname,
            port=port or default_port,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            place=unquote(place) or ("0" if kind is BusKind.REDIS else "/"),
            tls=tls,
            setting=setting,
        )

    @property
    def shown(self) -> str:
        """For people and logs: ``redis://host:6379/0``."""
        if self.kind is BusKind.MEMORY:
            return "memory://"
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = "" if self.place == "/" else quote(self.place, safe="")
        return f"{self.kind}{'s' if self.tls else ''}://{user}{host}:{self.port}/{place}"

    def __str__(self) -> str:
        return self.shown


#: Scheme -> what it is, whether it is encrypted, its usual port.
_SCHEMES = {
    "redis": (BusKind.REDIS, False, 6379),
    "rediss": (BusKind.REDIS, True, 6379),
    "amqp": (BusKind.RABBITMQ, False, 5672),
    "amqps": (BusKind.RABBITMQ, True, 5671),
}


def _refused(text: str, setting: str, accepted: str) -> BadInput:
    return BadInput(setting, masked(text), accepted)
