"""Brokers by the URLs of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pelotontx.broker.interface import Broker
from pelotontx.broker.memory import MemoryBroker
from pelotontx.broker.redis import RedisBroker
from pelotontx.config import BrokerConfig


def open_broker(
    reactor: Any,
    url: str,
    config: BrokerConfig,
    call_cap_of: Callable[[str], int] | None = None,
) -> Broker:
    """The broker behind a URL, not started.

    Args:
        reactor: it lives on it.
        url: ``memory:``, or what `pelotontx.net.redis_client.redis_client` takes.
        config: timeouts and caps.
        call_cap_of: the cap of a URI's calls, if not the same for all.
    """
    call_cap = call_cap_of or (lambda uri: config.call_cap)
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
