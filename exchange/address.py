"""Pointing an exchange client at another address: a simulated exchange, a proxy, a regional host."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from market.errors import BadInput

#: Scheme and host of a ccxt URL; hosts may be templates (``https://api.{hostname}/v5``).
_ORIGIN = re.compile(r"^(?P<scheme>[a-z]+)://[^/]*")


def check_address(url: str, field: str = "exchange-url") -> str:
    """`url` without a trailing slash, if it can stand in for the address of an exchange.

    :raises BadInput: naming `field`, unless it is an http or https URL with a host.
    """
    accepted = "an address such as http://127.0.0.1:9900"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadInput(field, url, accepted) from error
    usable = parts.scheme in ("http", "https") and parts.hostname and port != 0
    if not usable or parts.query or parts.fragment:
        raise BadInput(field, url, accepted)
    return url.rstrip("/")


def at_address(urls: Any, address: str) -> Any:
    """A ccxt ``urls['api']`` tree (text, or mappings and lists of it) with every scheme and host replaced.

    Paths are kept and come after the path of `address`, if it has one. Stream URLs (``ws``, ``wss``) get the
    stream scheme that belongs to the scheme of `address`.
    """
    if isinstance(urls, dict):
        return {key: at_address(value, address) for key, value in urls.items()}
    if isinstance(urls, list):
        return [at_address(value, address) for value in urls]
    if not isinstance(urls, str):
        return urls
    stream = address.replace("http", "ws", 1)
    return _ORIGIN.sub(lambda found: stream if found["scheme"].startswith("ws") else address, urls)
