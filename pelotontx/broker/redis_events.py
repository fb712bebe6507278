"""Events on Redis: the side of a server process that publishes and listens."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from pelotontx.broker.interface import History, Position
from pelotontx.broker.redis_store import BATCH_LIMIT, broker_error
from pelotontx.errors import HistoryUnsupported
from pelotontx.net.redis.client import RedisClient
from pelotontx.net.redis.connection import Reply, SubscriberConnection, ignore_reply

_Topic = tuple[str, bool]
"""A channel's name or glob, and whether it is a glob."""


class RedisPubSub:
    """Publishes on the shared connection and keeps one that is subscribed to all that is wanted."""

    def __init__(self, client: RedisClient) -> None:
        self.on_event: Callable[[str, str | None, bytes], None] = lambda *event: None
        self._client = client
        self._link = client.link(
            "events", None, connection_class=SubscriberConnection, on_up=self._resubscribe
        )
        self._wanted: dict[_Topic, None] = {}

    @property
    def available(self) -> bool:
        """Whether its connection is up at this moment."""
        return self._link.connection is not None

    def start(self) -> None:
        """Connects."""
        self._link.start()

    def stop(self) -> Deferred[None]:
        """No more events."""
        self._wanted.clear()
        return self._link.stop()

    def publish(self, channel: str, payload: bytes) -> Deferred[None]:
        """See `pelotontx.broker.interface.PubSub`."""
        result: Deferred[None] = Deferred()

        def replied(reply: Reply) -> None:
            if result.called:  # cancelled
                return
            if isinstance(reply, Exception):
                result.errback(broker_error(reply))
            else:
                result.callback(None)

        # On a cluster any node would do; one and the same for a channel keeps its events in order.
        self._client.send(replied, channel, "PUBLISH", channel, payload)
        return result

    def subscribe(self, channel: str, *, pattern: bool) -> Deferred[None]:
        """See `pelotontx.broker.interface.PubSub`."""
        topic = (channel, pattern)
        result: Deferred[None] = Deferred()
        self._wanted[topic] = None

        def replied(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._wanted.pop(topic, None)
                result.errback(broker_error(reply))
            else:
                result.callback(None)

        self._link.send(replied, "PSUBSCRIBE" if pattern else "SUBSCRIBE", channel)
        return result

    def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        """See `pelotontx.broker.interface.PubSub`."""
        self._wanted.pop((channel, pattern), None)
        self._link.send(ignore_reply, "PUNSUBSCRIBE" if pattern else "UNSUBSCRIBE", channel)

    def history(self, channel: str, since: Position | None, limit: int) -> Deferred[History]:
        """Plain Redis channels remember nothing."""
        return fail(HistoryUnsupported(f"{channel}: this broker keeps no history"))

    async def _resubscribe(self, connection: SubscriberConnection) -> None:
        connection.on_event = self._event
        confirmations: list[Deferred[None]] = []
        failures: list[Failure] = []
        for command, is_pattern in (("SUBSCRIBE", False), ("PSUBSCRIBE", True)):
            names = [name.encode() for name, pattern in self._wanted if pattern is is_pattern]
            for start in range(0, len(names), BATCH_LIMIT):
                confirmations.append(
                    connection.subscribe_to(command, names[start : start + BATCH_LIMIT])
                )
        wanted_before = set(self._wanted)
        for confirmation in confirmations:
            confirmation.addErrback(failures.append)
        for confirmation in confirmations:
            await confirmation
        if failures:
            failures[0].raiseException()
        for name, pattern in wanted_before - self._wanted.keys():
            connection.send(ignore_reply, "PUNSUBSCRIBE" if pattern else "UNSUBSCRIBE", name)

    def _event(self, channel: bytes, pattern: bytes | None, payload: bytes) -> None:
        self.on_event(
            channel.decode("utf-8", "replace"),
            None if pattern is None else pattern.decode("utf-8", "replace"),
            payload,
        )
