"""Where a PostgreSQL database is: its URL taken apart, and shown without its secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from market.errors import BadInput

#: How libpq names the ways to use TLS, weakest first.
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OPTIONS = ("host", "sslmode", "sslrootcert", "sslcert", "sslkey", "application_name")
_ACCEPTED = "postgresql://user:password@host:5432/database"
_PORT = 5432


@dataclass(frozen=True, kw_only=True)
class DatabaseUrl:
    """One PostgreSQL database and who asks. Neither ``repr`` nor :attr:`shown` has the password."""

    #: Name or address of the server, or the folder of its Unix socket (starts with ``/``).
    host: str
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
    #: What the server's lists of sessions call us.
    application_name: str = "chandlery"
    #: The setting this came from, which errors name.
    setting: str = field(default="database_url", compare=False)

    @classmethod
    def parse(cls, text: str, setting: str = "database_url") -> DatabaseUrl:
        """A URL such as ``postgresql://user:password@host:5432/database?sslmode=require``.

        User, password and database are percent-decoded. A socket is given as ``?host=/run/postgresql``.

        :raises BadInput: naming `setting` and showing the URL without its password.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise _refused(text, setting, f"{_ACCEPTED} with a port from 1 to 65535") from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise _refused(text, setting, f"a URL that starts with postgresql://, such as {_ACCEPTED}")
        if "#" in text or port == 0 or re.search(r"[\x00-\x20]|%00", text):
            hint = "with # / ? @ : and spaces in names and passwords percent-encoded (# as %23)"
            raise _refused(text, setting, f"{_ACCEPTED} {hint}")
        options = _options(parts, text, setting)
        host = _host(parts) or options.pop("host", "")
        if not host or "," in host or "host" in options:
            raise _refused(
                text, setting, f"one host, as in {_ACCEPTED}, or a socket's folder as ?host=/run/postgresql"
            )
        database = unquote(parts.path.removeprefix("/"))
        if not database or "/" in parts.path.removeprefix("/"):
            raise _refused(text, setting, f"the name of a database after the host, as in {_ACCEPTED}")
        return cls(
            host=host,
            port=port or _PORT,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            database=database,
            setting=setting,
            **options,
        )

    @property
    def shown(self) -> str:
        """For people and logs: ``postgresql://user@host:5432/database``."""
        user = f"{quote(self.user)}@" if self.user else ""
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


def _options(parts: SplitResult, text: str, setting: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise _refused(text, setting, f"no option {name[:40]!r}; the options are {', '.join(_OPTIONS)}")
        if not value or name in options:
            raise _refused(text, setting, f"the option {name!r} once, with a value")
        options[name] = value
    if options.get("sslmode", SSL_MODES[0]) not in SSL_MODES:
        raise _refused(text, setting, f"an sslmode out of {', '.join(SSL_MODES)}")
    return options


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
        query = "&".join(
            one if one.partition("=")[0] in _OPTIONS else f"{one.partition('=')[0]}=***" for one in query.split("&")
        )
    return f"{scheme}://{place}{question}{query}"


def _refused(text: str, setting: str, accepted: str) -> BadInput:
    return BadInput(setting, masked(text), accepted)
