"""URLs of Redis: what they mean, what is refused, and that the password is never shown."""

from __future__ import annotations

import pytest

from market.errors import BadInput
from store.redis.address import Place, RedisUrl

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("redis://h", RedisUrl(places=(Place("h", 6379),)), "redis://h:6379/0"),
        ("redis://h:1/", RedisUrl(places=(Place("h", 1),)), "redis://h:1/0"),
        ("redis://h:1/12", RedisUrl(places=(Place("h", 1),), database=12), "redis://h:1/12"),
        ("rediss://h", RedisUrl(places=(Place("h", 6379),), tls=True), "rediss://h:6379/0"),
        ("redis://[::1]:7", RedisUrl(places=(Place("::1", 7),)), "redis://[::1]:7/0"),
        (
            f"redis://:{SECRET}@h",
            RedisUrl(places=(Place("h", 6379),), password=SECRET),
            "redis://h:6379/0",
        ),
        (
            f"redis://a%40b:{SECRET}%2F@h/3",
            RedisUrl(places=(Place("h", 6379),), user="a@b", password=f"{SECRET}/", database=3),
            "redis://a%40b@h:6379/3",
        ),
        (
            "redis+cluster://h:1,i",
            RedisUrl(places=(Place("h", 1), Place("i", 6379)), cluster=True),
            "redis+cluster://h:1,i:6379",
        ),
        (
            f"rediss+cluster://u:{SECRET}@h:1,[::1]:2",
            RedisUrl(places=(Place("h", 1), Place("::1", 2)), cluster=True, tls=True, user="u", password=SECRET),
            "rediss+cluster://u@h:1,[::1]:2",
        ),
    ],
)
def test_what_a_url_means(text: str, expected: RedisUrl, shown: str) -> None:
    url = RedisUrl.parse(text)
    assert url == expected
    assert url.shown == str(url) == shown
    assert SECRET not in repr(url)
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", "redis://"),
        ("h:6379", "redis://"),
        (SECRET, "redis://"),
        (f"http://u:{SECRET}@h", "redis://"),
        (f"redis://u:{SECRET}@", "redis://"),
        (f"redis://u:{SECRET}@h:0", "redis://"),
        (f"redis://u:{SECRET}@h:99999", "port from 1 to 65535"),
        (f"redis://u:{SECRET}@h:x", "port from 1 to 65535"),
        (f"redis://u:{SECRET}@h/x", "number of a database"),
        (f"redis://u:{SECRET}@h/-1", "number of a database"),
        (f"redis://u:{SECRET}@h/1/2", "number of a database"),
        (f"redis://u:{SECRET}@h,i", "redis+cluster://"),
        (f"redis+cluster://u:{SECRET}@h:1/0", "no number of a database in a cluster"),
        (f"redis+cluster://u:{SECRET}@h:1,", "percent-encoded"),
        (f"redis+cluster://u:{SECRET}@h:1,,i:2", "percent-encoded"),
        (f"redis://u:{SECRET}@a@h", "percent-encoded"),
        (f"redis://u:{SECRET}/x@h", "percent-encoded"),
        (f"redis://u:{SECRET}@h?ssl=no", "percent-encoded"),
        (f"redis://u:{SECRET}#@h", "percent-encoded"),
        (f"redis://u:{SECRET}@h ", "percent-encoded"),
        (f"redis://u:{SECRET}@h\n", "percent-encoded"),
    ],
)
def test_a_wrong_url_is_refused_by_name_without_its_password(text: str, accepted: str) -> None:
    with pytest.raises(BadInput) as caught:
        RedisUrl.parse(text, "cache_url")
    assert caught.value.field == "cache_url"
    assert accepted in str(caught.value)
    assert SECRET not in str(caught.value)
