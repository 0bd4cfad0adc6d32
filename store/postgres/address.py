"""Where a PostgreSQL database is: its URL taken apart, and shown without its secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from market.errors import BadInput

#: How libpq names the ways to use TLS, weakest first.
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OPTIONS = ("host", "sslmode", "sslrootcert", "sslcert", "sslkey", "application_name")
_ACCEPTED = "postgresql://user:password@host:5432/database"
_ENCODED = "with # / ? @ : and spaces in names and passwords percent-encoded (# as %23)"
_PORT = 5432
#: Google Cloud SQL, through Google's connector: no host, but the name of an instance.
_CLOUD_SQL = "postgresql+cloudsql"
_CLOUD_OPTIONS = ("instance", "iam", "ip", "application_name")
_CLOUD_ACCEPTED = "postgresql+cloudsql://user@/database?instance=project:region:name&iam=true"
#: Which of the instance's addresses to use.
_CLOUD_ADDRESSES = ("public", "private", "psc")


@dataclass(frozen=True, kw_only=True)
class DatabaseUrl:
    """One PostgreSQL database and who asks. Neither ``repr`` nor :attr:`shown` has the password."""

    #: Name or address of the server, or the folder of its Unix socket (starts with ``/``); empty for `instance`.
    host: str = ""
    port: int = _PORT
    #: None: the driver takes PGUSER or the name of the operating system's user.
    user: str | None = None
    #: None: the driver looks into PGPASSWORD and the password file (PGPASSFILE, ~/.pgpass).
    password: str | None = field(default=None, repr=False)
    database: str
    sslmode: str | None = None
    #: Files with the server's authority, and with our own certificate and key.
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    #: A Cloud SQL instance, ``project:region:name``.
    instance: str | None = None
    #: Log in to it as the Google account we run as, without a password.
    iam: bool = False
    #: ``public``, ``private`` or ``psc``: which of its addresses to use.
    ip: str = "public"
    #: What the server's lists of sessions call us.
    application_name: str = "chandlery"
    #: The setting this came from, which errors name.
    setting: str = field(default="database_url", compare=False)

    @classmethod
    def parse(cls, text: str, setting: str = "database_url") -> DatabaseUrl:
        """A URL such as ``postgresql://user:password@host:5432/database?sslmode=require``.

        User, password and database are percent-decoded. A socket is given as ``?host=/run/postgresql``. An instance
        of Google Cloud SQL is ``postgresql+cloudsql://user@/database?instance=project:region:name``, with
        ``&iam=true`` to log in as the Google account we run as, and ``&ip=private`` or ``psc`` for another address.

        :raises BadInput: naming `setting` and showing the URL without its password.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise _refused(text, setting, f"{_ACCEPTED}, its port from 1 to 65535, {_ENCODED}") from None
        if parts.scheme not in ("postgresql", "postgres", _CLOUD_SQL):
            raise _refused(text, setting, f"a URL that starts with postgresql://, such as {_ACCEPTED}")
        odd = re.search(r"[\x00-\x20#]|%00", text) or "@" in parts.path + parts.query
        if odd or port == 0:
            raise _refused(text, setting, f"{_ACCEPTED}, {_ENCODED}")
        cloud = parts.scheme == _CLOUD_SQL
        options: dict[str, Any] = _options(parts, text, setting, _CLOUD_OPTIONS if cloud else _OPTIONS)
        database = unquote(parts.path.removeprefix("/"))
        if not database or "/" in parts.path.removeprefix("/"):
            raise _refused(text, setting, f"the name of a database after the host, as in {_ACCEPTED}")
        account: dict[str, Any] = {
            "user": unquote(parts.username) if parts.username else None,
            "password": unquote(parts.password) if parts.password else None,
        }
        if cloud:
            return cls(database=database, setting=setting, **account, **_instance(parts, options, text, setting))
        host = _host(parts) or options.pop("host", "")
        if not host or "," in host or "host" in options:
            raise _refused(text, setting, f"one host, as in {_ACCEPTED}, or a socket as ?host=/run/postgresql")
        return cls(host=host, port=port or _PORT, database=database, setting=setting, **account, **options)

    @property
    def shown(self) -> str:
        """For people and logs: ``postgresql://user@host:5432/database``."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        if self.instance:
            return f"{_CLOUD_SQL}://{user}/{quote(self.database)}?instance={self.instance}"
        if self.host.startswith("/"):
            return f"postgresql://{user}/{quote(self.database)}?host={self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{user}{host}:{self.port}/{quote(self.database)}"

    def refused(self, accepted: str) -> BadInput:
        """An error that names the setting, shows the URL and says what would be accepted."""
        return BadInput(self.setting, self.shown, accepted)

    def __str__(self) -> str:
        return self.shown


def _host(parts: SplitResult) -> str:
    written = parts.netloc.rpartition("@")[2].partition(":")[0]
    # A folder in the place of the host keeps its capitals, which names of hosts do not have.
    return unquote(written) if written[:3].upper() == "%2F" else parts.hostname or ""


def _options(parts: SplitResult, text: str, setting: str, known: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise _refused(text, setting, f"no option {name[:40]!r}; the options are {', '.join(known)}")
        if not value or name in options:
            raise _refused(text, setting, f"the option {name!r} once, with a value")
        options[name] = value
    if options.get("sslmode", SSL_MODES[0]) not in SSL_MODES:
        raise _refused(text, setting, f"an sslmode out of {', '.join(SSL_MODES)}")
    return options


def _instance(parts: SplitResult, options: dict[str, str], text: str, setting: str) -> dict[str, Any]:
    """What the URL of a Cloud SQL instance says besides account and database."""
    # Old projects are named domain:project, so there may be a fourth part.
    if parts.hostname or not re.fullmatch(r"([^:]+:)?[^:]+:[^:]+:[^:]+", options.get("instance", "")):
        raise _refused(text, setting, f"an instance of Cloud SQL and no host, as in {_CLOUD_ACCEPTED}")
    if options.get("iam", "true") not in ("true", "false"):
        raise _refused(text, setting, f"iam=true or iam=false, as in {_CLOUD_ACCEPTED}")
    if options.get("ip", "public") not in _CLOUD_ADDRESSES:
        raise _refused(text, setting, "ip=public, ip=private or ip=psc")
    if not parts.username:
        raise _refused(text, setting, f"a user, as in {_CLOUD_ACCEPTED}")
    iam = options.pop("iam", "false") == "true"
    if iam and parts.password:
        raise _refused(text, setting, "no password with iam=true")
    return {**options, "iam": iam}


def masked(text: str) -> str:
    """A URL as it was written, without anything that may be a password: also where it is no proper URL."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        # Perhaps only the password, pasted into the wrong place.
        return "***"
    # A password may have unescaped signs, so it ends at the last @ and not at the first / or ?.
    account, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = account.partition(":")
        rest = f"{user}:***@{place}" if colon else f"{user}@{place}"
    elif re.match(r"[^/?#]*:(?!\d*(?:[/?#]|$))", rest):
        rest = f"{rest.partition(':')[0]}:***"
    place, question, query = rest.partition("?")
    if question:
        shown = {*_OPTIONS, *_CLOUD_OPTIONS}
        query = "&".join(
            one if one.partition("=")[0] in shown else f"{one.partition('=')[0]}=***" for one in query.split("&")
        )
    return f"{scheme}://{place}{question}{query}"


def _refused(text: str, setting: str, accepted: str) -> BadInput:
    return BadInput(setting, masked(text), accepted)
