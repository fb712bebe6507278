"""Brokers by the URLs of the configuration."""

from __future__ import annotations

from typing import Any

from pelotontx.broker.interface import Broker
from pelotontx.broker.memory import MemoryBroker
from pelotontx.broker.redis import RedisBroker
from pelotontx.config import BrokerConfig


def open_broker(reactor: Any, url: str, config: BrokerConfig) -> Broker:
    """The broker behind a ``redis://``, ``unix://`` or ``memory:`` URL, not started."""
    if url == "memory:":
        return MemoryBroker(reactor, call_cap=config.call_cap)
    return RedisBroker(
        reactor,
        url,
        connect_timeout_s=config.connect_timeout_s,
        reply_timeout_s=config.reply_timeout_s,
        call_cap=config.call_cap,
        result_cap=config.result_cap,
    )
