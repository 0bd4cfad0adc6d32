"""Opening the bus that a URL names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from market.errors import BadInput
from store.bus.address import BusKind, BusUrl
from store.bus.bus import Bus, BusRules
from store.bus.memory import MemoryBus


@asynccontextmanager
async def opened_bus(url: BusUrl | str | None, rules: BusRules | None = None) -> AsyncIterator[Bus]:
    """The bus at `url` until the context is left; what was published is sent before, if the server answers soon.

    A server that does not answer is no error here: messages wait for it, and the status says so.

    :param url: see :meth:`store.bus.address.BusUrl.parse`.
    :raises BadInput: a malformed URL, or the driver for it is not installed.
    """
    address = url if isinstance(url, BusUrl) else BusUrl.parse(url)
    rules = rules or BusRules()
    if address.kind is BusKind.MEMORY:
        yield MemoryBus(rules)
        return
    async with _server(address, rules) as bus:
        yield bus


def _server(address: BusUrl, rules: BusRules) -> AbstractAsyncContextManager[Bus]:
    # The drivers are extras: a program without them must be able to import this module.
    try:
        if address.kind is BusKind.REDIS:
            from store.bus.redis import RedisBus  # noqa: PLC0415 - optional driver

            return RedisBus.opened(address, rules)
        from store.bus.rabbitmq import RabbitBus  # noqa: PLC0415 - optional driver
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise BadInput(
            address.setting, address.shown, f"the driver for it; install it with: pip install 'chandlery[{extra}]'"
        ) from error
    return RabbitBus.opened(address, rules)


#: Module of a driver -> the extra that installs it.
_EXTRAS = {"redis": "redis", "aio_pika": "rabbitmq", "aiormq": "rabbitmq"}
