"""Redis over TLS: whoever trusts its authority gets in, nobody is spoken to in the clear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.cache.key import CacheKey
from store.cache.shared_values import SharedAway
from tests.support.certificates import Authority
from tests.support.redis_server import PrivateRedis
from tests.support.redis_values import opened_values
from tests.support.server_process import free_port

KEY = CacheKey.of("ticker", "tls", "BTC/USDT")


class TlsRedis(PrivateRedis):
    """A server that also listens for TLS."""

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self._pair = authority.server("127.0.0.1")
        self.tls_port = 0

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}/0"

    def _configure(self) -> None:
        super()._configure()
        self.tls_port = free_port()
        for name, text in (("server.crt", self._pair.certificate), ("server.key", self._pair.key)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o644)
        lines = [
            f"tls-port {self.tls_port}",
            f"tls-cert-file {self.folder}/server.crt",
            f"tls-key-file {self.folder}/server.key",
            f"tls-ca-cert-file {self.folder}/server.crt",
            "tls-auth-clients no",
        ]
        with (self.folder / "redis.conf").open("a") as file:
            file.write("\n".join([*lines, ""]))


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(authority: Authority) -> Iterator[TlsRedis]:
    with TlsRedis(authority) as one:
        yield one


async def test_over_tls(
    server: TlsRedis, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_values(server.url) as stranger:
        with pytest.raises(SharedAway, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.values.get([KEY])
    (tmp_path / "authority.crt").write_text(authority.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.crt"))
    async with opened_values(server.url) as shared:
        await shared.values.put([(KEY, b"x", 60_000)])
        assert await shared.values.get([KEY]) == [b"x"]
    async with opened_values(server.url.replace("rediss", "redis")) as plain:
        with pytest.raises(SharedAway):
            await plain.values.get([KEY])
