"""PostgreSQL's URLs: what is taken, what is refused, and that nothing shows a password."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import BadInput
from store.postgres.address import DatabaseUrl, masked

SECRET = "hunter2"


def test_every_part_is_read_and_decoded() -> None:
    url = DatabaseUrl.parse(
        "postgresql://us%40er:p%2Fa%3As%23s@db.example.com:6432/mar%20ket?sslmode=verify-full&sslrootcert=/etc/ca.pem"
    )
    assert (url.host, url.port, url.user, url.password, url.database) == (
        "db.example.com",
        6432,
        "us@er",
        "p/a:s#s",
        "mar ket",
    )
    assert (url.sslmode, url.sslrootcert, url.application_name) == ("verify-full", "/etc/ca.pem", "chandlery")


@pytest.mark.parametrize(
    ("text", "host", "shown"),
    [
        ("postgres://db/market", "db", "postgresql://db:5432/market"),
        ("postgresql://u:x@[::1]:1/m", "::1", "postgresql://u@[::1]:1/m"),
        ("postgresql://u@/m?host=/run/postgresql", "/run/postgresql", "postgresql://u@/m?host=/run/postgresql"),
        ("postgresql://u:x@%2Frun%2FPg:5433/m", "/run/Pg", "postgresql://u@/m?host=/run/Pg"),
    ],
)
def test_hosts_and_sockets(text: str, host: str, shown: str) -> None:
    url = DatabaseUrl.parse(text)
    assert (url.host, url.shown, str(url)) == (host, shown, shown)


def test_a_cloud_sql_instance_has_no_host() -> None:
    url = DatabaseUrl.parse(
        "postgresql+cloudsql://me%40example.com@/market?instance=p:europe-west1:i&iam=true&ip=private"
    )
    assert (url.instance, url.iam, url.ip, url.user) == ("p:europe-west1:i", True, "private", "me@example.com")
    assert url.shown == "postgresql+cloudsql://me%40example.com@/market?instance=p:europe-west1:i"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"mysql://u:{SECRET}@h/m", "a URL that starts with postgresql://"),
        (f"u:{SECRET}@h/m", "a URL that starts with postgresql://"),
        (SECRET, "a URL that starts with postgresql://"),
        (f"postgresql://u:{SECRET}@h:port/m", "its port from 1 to 65535"),
        (f"postgresql://u:{SECRET}@h:0/m", "percent-encoded"),
        (f"postgresql://u:{SECRET}@h:99999/m", "its port from 1 to 65535"),
        (f"postgresql://u:{SECRET}@[h/m", "postgresql://user:password@host:5432/database"),
        (f"postgresql://u:{SECRET}", "its port from 1 to 65535"),
        (f"postgresql://u:{SECRET}/", "its port from 1 to 65535"),
        (f"postgresql://u:{SECRET}@h", "the name of a database after the host"),
        (f"postgresql://u:{SECRET}@h/", "the name of a database after the host"),
        (f"postgresql://u:{SECRET}@h/a/b", "the name of a database after the host"),
        (f"postgresql://u:{SECRET}@/m", "one host"),
        (f"postgresql://u:{SECRET}@a,b/m", "one host"),
        (f"postgresql://u:{SECRET}@h/m?host=/run", "one host"),
        (f"postgresql://u:a/{SECRET}@h/m", "postgresql://user:password@host:5432/database"),
        (f"postgresql://u:a?{SECRET}@h/m", "postgresql://user:password@host:5432/database"),
        (f"postgresql://u:1#{SECRET}@h/m", "percent-encoded"),
        (f"postgresql://u:a@{SECRET}@h:x/m", "its port from 1 to 65535"),
        (f"postgresql://u:a {SECRET}@h/m", "percent-encoded"),
        (f"postgresql://u:{SECRET}%00@h/m", "percent-encoded"),
        (f"postgresql://u@h/m?password={SECRET}", "no option 'password'"),
        (f"postgresql://u@h/m?options=-c%20{SECRET}", "no option 'options'"),
        (f"postgresql://u:{SECRET}@h/m?sslmode=on", "an sslmode out of disable, allow, prefer, require"),
        (f"postgresql://u:{SECRET}@h/m?sslmode=", "the option 'sslmode' once, with a value"),
        (f"postgresql://u:{SECRET}@h/m?sslmode=allow&sslmode=require", "the option 'sslmode' once"),
        (f"postgresql://u:{SECRET}@h/m?instance=p:r:i", "no option 'instance'"),
        (f"postgresql+cloudsql://u:{SECRET}@/m", "an instance of Cloud SQL"),
        (f"postgresql+cloudsql://u:{SECRET}@/m?instance=i", "an instance of Cloud SQL"),
        (f"postgresql+cloudsql://u:{SECRET}@h/m?instance=p:r:i", "an instance of Cloud SQL"),
        (f"postgresql+cloudsql://u:{SECRET}@/m?instance=p:r:i&iam=yes", "iam=true or iam=false"),
        (f"postgresql+cloudsql://u:{SECRET}@/m?instance=p:r:i&iam=true", "no password with iam=true"),
        ("postgresql+cloudsql:///m?instance=p:r:i", "a user"),
        (f"postgresql+cloudsql://u:{SECRET}@/m?instance=p:r:i&ip=v6", "ip=public, ip=private or ip=psc"),
        (f"postgresql+cloudsql://u:{SECRET}@/m?instance=p:r:i&sslmode=require", "no option 'sslmode'"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_secret_is_said(text: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        DatabaseUrl.parse(text, "replica_url")
    said = str(caught.value)
    assert expected in said
    assert caught.value.field == "replica_url"
    assert "\n" not in said
    assert SECRET not in said + repr(caught.value) + repr(caught.value.value) + repr(caught.value.__dict__)
    # Nor in what Python prints of how it came about.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_neither_repr_nor_the_shown_form_has_the_password() -> None:
    url = DatabaseUrl.parse(f"postgresql://u:{SECRET}@h/m?sslmode=require")
    assert SECRET not in f"{url!r} {url} {url.shown} {url.refused('x')}"


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_whatever_is_percent_encoded_comes_back(user: str, password: str, database: str) -> None:
    text = f"postgresql://{_encoded(user)}:{_encoded(password)}@h/{_encoded(database)}"
    if "\x00" in user + password + database:
        with pytest.raises(BadInput):
            DatabaseUrl.parse(text)
        return
    url = DatabaseUrl.parse(text)
    assert (url.user, url.password, url.database) == (user, password, database)


@given(st.text(alphabet="ab1@:/?#[]%&= ", max_size=20), st.text(alphabet="ab1@:/?#[]%&= ", max_size=20))
def test_masking_hides_a_password_with_any_signs_in_it(before: str, after: str) -> None:
    text = f"postgresql://user:{before}{SECRET}{after}@host:1/name"
    assert SECRET not in masked(text)
    assert SECRET not in _said(text)


def _said(text: str) -> str:
    try:
        url = DatabaseUrl.parse(text)
    except BadInput as error:
        return str(error)
    return f"{url!r} {url}"


def _encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")
