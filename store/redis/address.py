"""Which Redis to use, one server or a cluster, as a URL, and how it is shown without its password."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from market.errors import BadInput
from store.postgres.address import masked

_ONE = "redis://[user:password@]host[:6379][/number]"
_CLUSTER = "redis+cluster://[user:password@]host:port,host:port"
_ACCEPTED = f"{_ONE} or {_CLUSTER} (rediss for TLS)"
_ENCODED = "with # / ? @ : and spaces in names and passwords percent-encoded (# as %23)"
_PORT = 6379
#: Scheme -> whether the connection is encrypted, whether it is a cluster.
_SCHEMES = {
    "redis": (False, False),
    "rediss": (True, False),
    "redis+cluster": (False, True),
    "rediss+cluster": (True, True),
}


@dataclass(frozen=True, order=True)
class Place:
    """Where one server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class RedisUrl:
    """One Redis and who asks. Neither ``repr`` nor :attr:`shown` has the password."""

    #: One server; or some of a cluster's, of which any can tell us the others.
    places: tuple[Place, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    #: The number of the database; always 0 in a cluster.
    database: int = 0
    cluster: bool = False
    #: Whether the connection is encrypted (``rediss://``).
    tls: bool = False
    #: The setting this came from, which errors name.
    setting: str = field(default="redis_url", compare=False)

    @classmethod
    def parse(cls, text: str, setting: str = "redis_url") -> RedisUrl:
        """``redis://[user:password@]host[:6379][/number]``, ``redis+cluster://host:port,host2:port2``.

        With ``rediss`` in place of ``redis`` for TLS. User and password are percent-decoded.

        :raises BadInput: naming `setting` and showing the URL without its password.
        """
        scheme, mark, rest = text.partition("://")
        if not mark or scheme not in _SCHEMES:
            raise _refused(text, setting, _ACCEPTED)
        tls, cluster = _SCHEMES[scheme]
        account, _, hosts = rest.rpartition("@")
        hosts, slash, number = hosts.partition("/")
        user, _, password = account.partition(":")
        odd = not text.isprintable() or any(sign in text for sign in " #?") or any(s in account for s in "@/")
        if odd or not hosts:
            raise _refused(text, setting, f"{_ACCEPTED}, {_ENCODED}")
        if cluster and slash:
            raise _refused(text, setting, f"no number of a database in a cluster: {_CLUSTER}")
        if number and not (number.isascii() and number.isdigit()):
            raise _refused(text, setting, "the number of a database after the host, as in redis://host:6379/0")
        if not cluster and "," in hosts:
            raise _refused(text, setting, f"one server, or for a cluster {_CLUSTER}")
        return cls(
            places=tuple(_place(one, text, setting) for one in hosts.split(",")),
            user=unquote(user) or None,
            password=unquote(password) or None,
            database=int(number or 0),
            cluster=cluster,
            tls=tls,
            setting=setting,
        )

    @property
    def shown(self) -> str:
        """For people and logs: ``redis://host:6379/0``."""
        scheme = f"redis{'s' if self.tls else ''}{'+cluster' if self.cluster else ''}"
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        places = ",".join(str(place) for place in self.places)
        return f"{scheme}://{user}{places}{'' if self.cluster else f'/{self.database}'}"

    def __str__(self) -> str:
        return self.shown


def _place(text: str, url: str, setting: str) -> Place:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        raise _refused(url, setting, f"{_ACCEPTED}, its port from 1 to 65535") from None
    if not parts.hostname or port == 0 or parts.path or "%" in text:
        raise _refused(url, setting, f"{_ACCEPTED}, {_ENCODED}")
    return Place(parts.hostname, port or _PORT)


def _refused(text: str, setting: str, accepted: str) -> BadInput:
    return BadInput(setting, masked(text), accepted)
