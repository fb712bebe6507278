"""Brokers by the URLs of the configuration, and the embedded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pelotontx.broker.interface import Broker
from pelotontx.broker.memory import MemoryBroker
from pelotontx.broker.redis import RedisBroker
from pelotontx.config import BrokerConfig, Config
from pelotontx.net.embedded import EmbeddedValkey
from pelotontx.services.limits import call_cap_of


def open_broker(
    reactor: Any,
    url: str,
    config: BrokerConfig,
    call_cap: Callable[[str], int] | None = None,
) -> Broker:
    """The broker behind a URL, not started.

    Args:
        reactor: it lives on it.
        url: ``memory:``, or what `pelotontx.net.redis.client.redis_client` takes.
        config: timeouts and caps.
        call_cap: the cap of a URI's calls, if not the same for all.
    """
    call_cap = call_cap or (lambda uri: config.call_cap)
    if url == "memory:":
        return MemoryBroker(reactor, call_cap=call_cap)
    return RedisBroker(
        reactor,
        url,
        connect_timeout_s=config.connect_timeout_s,
        reply_timeout_s=config.reply_timeout_s,
        call_cap=call_cap,
        result_cap=config.result_cap,
    )


class Brokers:
    """What a server has of them.

    Attributes:
        main: for calls, their results and sessions.
        events: for publishing and subscribing; `main`, if the configuration names no other.
        url: where `main` is.
        valkey: the embedded one, if that is `main`.
    """

    def __init__(self, reactor: Any, config: Config) -> None:
        own = config.broker
        self.url = own.url
        self.valkey: EmbeddedValkey | None = None
        if own.url == "embedded:":
            self.valkey = EmbeddedValkey(reactor)
            self.url = self.valkey.url
        call_cap = call_cap_of(own.call_cap, config.uri)
        self.main = self.events = open_broker(reactor, self.url, own, call_cap)
        if own.pubsub_url:
            self.events = open_broker(reactor, own.pubsub_url, own)

    async def start(self) -> None:
        """Connects; the embedded one runs before."""
        if self.valkey is not None:
            self.valkey.startService()
            await self.valkey.ready
        for broker in self._all():
            broker.start()

    async def stop(self) -> None:
        """Disconnects; the embedded one ends after that."""
        for broker in self._all():
            await broker.stop()
        if self.valkey is not None:
            await self.valkey.stopService()

    def _all(self) -> tuple[Broker, ...]:
        return (self.main,) if self.events is self.main else (self.main, self.events)
