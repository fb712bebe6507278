"""Commands to Redis, whatever stands behind a URL: `RedisClient` is what brokers see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from pelotontx.net.redis.address import (
    ClusterAddress,
    RedisAddress,
    SentinelAddress,
    parse_redis_url,
)
from pelotontx.net.redis.cluster import RedisCluster
from pelotontx.net.redis.connection import Argument, OnReply, RedisConnection
from pelotontx.net.redis.link import Fixed, RedisLink
from pelotontx.net.redis.script import Script
from pelotontx.net.redis.sentinel import SentinelRedis
from pelotontx.net.redis.single import SingleRedis


class RedisClient(Protocol):
    """One connection for commands to each server behind a URL, and further ones on request.

    Every command names a key, which tells where it goes; where there is one server only, the key
    is not looked at.
    """

    spread: int
    """On how many lists results should be spread: 1 where there is one server only."""

    @property
    def available(self) -> bool:
        """Whether every server answers at this moment."""
        ...

    def start(self) -> None:
        """Connects, and from then on reconnects for ever. Never fails."""
        ...

    def stop(self) -> Deferred[None]:
        """Fires when nothing is left in the reactor; links are stopped by those who asked."""
        ...

    def slot(self, key: str) -> int:
        """A number; what one command or script names must all have the same."""
        ...

    def part(self, key: str) -> int:
        """Which of the `spread` parts of all slots `key` lies in, from 0."""
        ...

    def is_up(self, key: str) -> bool:
        """Whether the server that holds `key` answers at this moment."""
        ...

    def ahead_s(self, key: str) -> float | None:
        """How far the clock of the server that holds `key` is ahead of ours; None: unknown."""
        ...

    def send(self, on_reply: OnReply, key: str, *command: Argument) -> None:
        """Sends one command; `on_reply` is called once, with the reply or an exception."""
        ...

    def run(
        self, on_reply: OnReply, script: Script, keys: Sequence[str], *arguments: Argument
    ) -> None:
        """Runs a script; its first key tells where."""
        ...

    def link(
        self,
        role: str,
        key: str | None,
        *,
        connection_class: type[RedisConnection] = RedisConnection,
        on_up: Callable[[Any], Any] = lambda connection: None,
    ) -> RedisLink:
        """A further connection to the server that holds `key`, or to any; not started.

        An error reply which says that this is not the right server, or not now (MOVED, ASK,
        READONLY, UNBLOCKED, LOADING ...), needs no care: `on_reply` gets `BrokerUnavailable`
        instead, the connection is lost from that moment on (`connection.is_lost`), and the next
        one goes, at once, to the right server. `BrokerUnavailable` is no cause for a log line.

        Args:
            role: for CLIENT LIST.
            key: where it goes, and follows when the key moves.
            connection_class: of the connection.
            on_up: see `RedisLink`.
        """
        ...


def redis_client(
    reactor: Any, url: str, *, connect_timeout_s: float = 5.0, reply_timeout_s: float = 5.0
) -> RedisClient:
    """The client for a URL; not started.

    Args:
        reactor: connects and keeps time.
        url: see `pelotontx.net.redis.address`.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: a server that is silent for so long is unavailable.

    Raises:
        ConfigError: the URL, or a file for TLS that it names, cannot be used; the text shows no
            secret.
    """
    address = parse_redis_url(url)
    timeouts = {"connect_timeout_s": connect_timeout_s, "reply_timeout_s": reply_timeout_s}
    if isinstance(address, ClusterAddress):
        _check_files(address.seeds[0])
        return RedisCluster(reactor, address, **timeouts)
    if isinstance(address, SentinelAddress):
        _check_files(address.server)
        return SentinelRedis(reactor, address, **timeouts)
    _check_files(address)
    return SingleRedis(reactor, Fixed(address), **timeouts)


def _check_files(address: RedisAddress) -> None:
    """What TLS needs is read anew for each connection; a mistake shows before the first."""
    if address.tls is not None:
        address.tls.options("localhost")
