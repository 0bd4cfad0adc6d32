"""URLs of buses: what they mean, and that none of them shows its password."""

from __future__ import annotations

import sys

import pytest

from market.errors import BadInput
from store.bus.address import BusKind, BusUrl
from store.bus.opening import opened_bus
from store.bus.topic import Patterns


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, (BusKind.MEMORY, "", 0, None, None, "", False)),
        ("", (BusKind.MEMORY, "", 0, None, None, "", False)),
        ("memory://", (BusKind.MEMORY, "", 0, None, None, "", False)),
        ("redis://host", (BusKind.REDIS, "host", 6379, None, None, "0", False)),
        ("redis://host:7000/3", (BusKind.REDIS, "host", 7000, None, None, "3", False)),
        ("rediss://:s3c%2Fret@host/", (BusKind.REDIS, "host", 6379, None, "s3c/ret", "0", True)),
        ("redis://[::1]:7000", (BusKind.REDIS, "::1", 7000, None, None, "0", False)),
        ("amqp://host", (BusKind.RABBITMQ, "host", 5672, None, None, "/", False)),
        (
            "amqp://me:s3cret@host:5673/my%2Fhost",
            (BusKind.RABBITMQ, "host", 5673, "me", "s3cret", "my/host", False),
        ),
        ("amqps://me:s3cret@host/v", (BusKind.RABBITMQ, "host", 5671, "me", "s3cret", "v", True)),
    ],
)
def test_what_a_url_means(text: str | None, expected: tuple[object, ...]) -> None:
    url = BusUrl.parse(text)
    assert (url.kind, url.host, url.port, url.user, url.password, url.place, url.tls) == expected
    assert "s3c" not in repr(url) + str(url)
    if url.password is None:
        assert BusUrl.parse(url.shown) == url


@pytest.mark.parametrize(
    "text",
    [
        "host",
        "memory://host",
        "http://host",
        "redis://",
        "redis://host:99999",
        "redis://host:0",
        "redis://host/name",
        "redis://:s3cret@host/1?socket_timeout=5",
        "redis://:s3cret/@host/1",
        "redis://:s3#cret@host/1",
        "amqp://me:s3@cret@host/a/b",
        "amqp://me:s3cret@host/v h",
        "amqp://me:s3cret@/v",
        "me:s3cret@host",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="bus_url") as error:
        BusUrl.parse(text)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "url, module, extra",
    [("redis://host", "redis", "redis"), ("amqp://me:s3cret@host", "aio_pika", "rabbitmq")],
)
async def test_a_missing_driver_is_named(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] == module or loaded.startswith("store.bus.r"):
            monkeypatch.delitem(sys.modules, loaded)
    # A module that is None cannot be imported: as if it were not installed.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=rf"pip install 'chandlery\[{extra}\]'") as error:
        async with opened_bus(url):
            pass
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "pattern, topic, wanted",
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.*.BTC/USDT", "market_data.binance.BTC/USDT", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c.d", True),
        ("a.#", "b", False),
        ("a.*.#", "a", False),
        ("a.*.#", "a.b", True),
        ("#", "a.b", True),
    ],
)
def test_what_patterns_stand_for(pattern: str, topic: str, wanted: bool) -> None:
    assert Patterns([pattern]).match(topic) is wanted
    assert Patterns(["else.where", pattern]).match(topic) is wanted
