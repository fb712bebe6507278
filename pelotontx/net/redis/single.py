"""A Redis that is one server at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from twisted.internet.defer import Deferred

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.connection import Argument, OnReply, RedisConnection
from pelotontx.net.redis.link import Locator, RedisLink, client_name
from pelotontx.net.redis.script import Script, run_script


class SingleRedis:
    """A `RedisClient` of one server.

    Args:
        reactor: connects and keeps time.
        locator: knows where the server is.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: a server that is silent for so long is unavailable.
        backoff_limit_s: attempts to connect are not further apart.
    """

    spread = 1

    def __init__(
        self,
        reactor: Any,
        locator: Locator,
        *,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
        backoff_limit_s: float = 5.0,
    ) -> None:
        self._reactor = reactor
        self._locator = locator
        self._link_options: dict[str, Any] = {
            "connect_timeout_s": connect_timeout_s,
            "reply_timeout_s": reply_timeout_s,
            "backoff_limit_s": backoff_limit_s,
        }
        self._links: WeakSet[RedisLink] = WeakSet()
        self._commands = self.link("commands", None)

    @property
    def available(self) -> bool:
        """Whether it answers at this moment."""
        return self._commands.connection is not None

    def start(self) -> None:
        """See `RedisClient`."""
        self._commands.start()

    def stop(self) -> Deferred[None]:
        """See `RedisClient`."""
        return self._commands.stop()

    def slot(self, key: str) -> int:
        """All keys are in one place."""
        return 0

    def part(self, key: str) -> int:
        """See `RedisClient`."""
        return 0

    def is_up(self, key: str) -> bool:
        """See `RedisClient`."""
        return self._commands.connection is not None

    def ahead_s(self, key: str) -> float | None:
        """See `RedisClient`."""
        connection = self._commands.connection
        return None if connection is None else connection.ahead_s

    def send(self, on_reply: OnReply, key: str, *command: Argument) -> None:
        """See `RedisClient`."""
        self._commands.send(on_reply, *command)

    def run(
        self, on_reply: OnReply, script: Script, keys: Sequence[str], *arguments: Argument
    ) -> None:
        """See `RedisClient`."""
        connection = self._commands.connection
        if connection is None:
            on_reply(BrokerUnavailable(f"no connection to {self._locator}"))
        else:
            run_script(connection, on_reply, script, keys, arguments)

    def link(
        self,
        role: str,
        key: str | None,
        *,
        connection_class: type[RedisConnection] = RedisConnection,
        on_up: Callable[[Any], Any] = lambda connection: None,
    ) -> RedisLink:
        """See `RedisClient`."""
        link = RedisLink(
            self._reactor,
            self._locator,
            name=client_name(role),
            connection_class=connection_class,
            on_up=on_up,
            **self._link_options,
        )
        self._links.add(link)
        return link
