"""A broker on a standalone Redis or Valkey, in juggler's layout.

Connections are a constant, whatever the number of clients: a server process holds one that
pipelines, one for events and one that waits for results; a callee one that pipelines and one that
waits for calls. Blocking pops end by themselves after a short while, so that a silent Redis is told
from an idle one.

The calls of one reactor turn leave as one script a URI, its results as one script a results list;
calls and results come back many at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import CallStored, History, IncomingCall, Position
from pelotontx.broker.redis_store import (
    BATCH_LIMIT,
    LIST_LIFE_MS,
    Store,
    broker_error,
    claim_script,
)
from pelotontx.errors import (
    BrokerError,
    BrokerUnavailable,
    HistoryUnsupported,
    RemoteProtocolError,
)
from pelotontx.net.redis import (
    Argument,
    RedisAddress,
    RedisConnection,
    RedisLink,
    Reply,
    SubscriberConnection,
    client_name,
    ignore_reply,
)
from pelotontx.wire import juggler

_RESULTS_LIMIT: Final = 512


class RedisBroker:
    """Calls, results and events on one Redis: a `pelotontx.broker.interface.Broker`.

    Args:
        reactor: connects and keeps time.
        url: ``redis://`` or ``unix://``, see `pelotontx.net.redis.RedisAddress`.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: a Redis that is silent for so long is unavailable.
        call_cap: most calls that may wait for one URI; 0 = any number.
        result_cap: most results that may wait for one server process; 0 = any number.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
        call_cap: int = 10_000,
        result_cap: int = 0,
    ) -> None:
        self._reactor = reactor
        self._address = RedisAddress(url)
        self._link_options = {
            "connect_timeout_s": connect_timeout_s,
            "reply_timeout_s": reply_timeout_s,
        }
        # Well below reply_timeout_s: each end of a blocking pop is a sign of life.
        self._block_s = min(2.0, reply_timeout_s / 2)
        self._result_cap = result_cap
        self._commands = self._link("commands")
        self.caller = RedisCaller(
            self._commands,
            self._link("results"),
            Store(reactor, self._commands, cap=call_cap),
            block_s=self._block_s,
        )
        self.pubsub = RedisPubSub(self._commands, self._subscriber_link)

    def callee(self) -> RedisCallee:
        """A new callee side, with a connection of its own."""
        store = Store(self._reactor, self._commands, cap=self._result_cap)
        return RedisCallee(
            self._reactor, self._commands, self._link("takes"), store, block_s=self._block_s
        )

    @property
    def available(self) -> bool:
        """Whether it answers at this moment."""
        return self._commands.connection is not None

    def start(self) -> None:
        """Connects what the parts share."""
        self._commands.start()

    def stop(self) -> Deferred[None]:
        """To be called after the parts have stopped."""
        return self._commands.stop()

    def _link(self, role: str, **options: Any) -> RedisLink:
        return RedisLink(
            self._reactor,
            self._address,
            name=client_name(role),
            **{**self._link_options, **options},
        )

    def _subscriber_link(self, **options: Any) -> RedisLink:
        return self._link("events", connection_class=SubscriberConnection, **options)


class RedisCaller:
    """Stores calls and pops the results of this process's one list."""

    _log = Logger()

    def __init__(
        self, commands: RedisLink, results: RedisLink, store: Store, *, block_s: float
    ) -> None:
        self.conn_uuid = str(uuid4())
        self.on_result: Callable[[str, bytes], None] = lambda msg_uuid, args: None
        self._commands = commands
        self._results = results
        self._store = store
        results.on_up = self._pop
        self._pop_command = (
            "BLMPOP",
            str(block_s),
            1,
            juggler.results_key(self.conn_uuid),
            "RIGHT",
            "COUNT",
            _RESULTS_LIMIT,
        )

    @property
    def available(self) -> bool:
        """Whether its connection is up at this moment."""
        return self._results.connection is not None

    def start(self) -> None:
        """Begins to wait for results."""
        self._results.start()

    def stop(self) -> Deferred[None]:
        """Waits for results no more; calls that wait to be stored are sent."""
        self._store.stop()
        return self._results.stop()

    def store_call(
        self, uri: str, msg_uuid: str, args: bytes, timeout_ms: int, stored: CallStored
    ) -> None:
        """See `pelotontx.broker.interface.Caller`."""
        self._store.add(
            uri,
            juggler.calls_key(uri),
            juggler.call_timeout_key(uri, msg_uuid),
            timeout_ms,
            juggler.encode_call_payload(self.conn_uuid, msg_uuid, uri, args),
            stored,
        )

    def _pop(self, connection: RedisConnection) -> None:
        connection.send(partial(self._popped, connection), *self._pop_command)

    def _popped(self, connection: RedisConnection, reply: Reply) -> None:
        if isinstance(reply, Exception):
            if not connection.is_lost:
                self._log.error("Results cannot be fetched: {error}", error=reply)
                connection.transport.abortConnection()  # comes back with backoff
            return
        if reply is not None:
            self._deliver(reply[1])
        self._pop(connection)

    def _deliver(self, entries: list[bytes]) -> None:
        timeout_keys = []
        for entry in entries:
            try:
                payload = juggler.decode_call_payload(entry)
            except RemoteProtocolError as error:
                self._log.warn("A result was dropped: {error}", error=error)
                continue
            timeout_keys.append(juggler.result_timeout_key(self.conn_uuid, payload.msg_uuid))
            self.on_result(payload.msg_uuid, bytes(payload.args))
        if timeout_keys:
            self._commands.send(ignore_reply, "UNLINK", *timeout_keys)


class RedisCallee:
    """Takes calls and stores their results."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        commands: RedisLink,
        takes: RedisLink,
        store: Store,
        *,
        block_s: float,
    ) -> None:
        self._clock = clock
        self._commands = commands
        self._takes = takes
        self._store = store
        self._block_s = block_s
        self._turn = 0
        self._client_id: int | None = None
        self._waiting: Deferred[list[IncomingCall]] | None = None
        self._idle: Deferred[None] | None = None
        takes.on_up = self._up

    async def _up(self, connection: RedisConnection) -> None:
        self._client_id = await connection.execute_command("CLIENT", "ID")

    @property
    def available(self) -> bool:
        """Whether its connection is up at this moment."""
        return self._takes.connection is not None

    def start(self) -> None:
        """Connects."""
        self._takes.start()

    def stop(self) -> Deferred[None]:
        """Ends a wait without losing a call; results that wait are sent."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._store.stop()
        if self._waiting is not None:
            self._waiting.cancel()
        if self._idle is not None:
            # Unblocked: answers at once, at the latest when the blocking pop ends.
            await self._idle.addTimeout(self._block_s, self._clock).addErrback(lambda _: None)
        await self._takes.stop()

    def take_calls(self, uris: Sequence[str], limit: int) -> Deferred[list[IncomingCall]]:
        """See `pelotontx.broker.interface.Callee`."""
        connection = self._takes.connection
        if connection is None or self._idle is not None:
            return fail(BrokerUnavailable("no connection to take calls from"))
        waiting: Deferred[list[IncomingCall]] = Deferred(self._unblock)
        self._waiting = waiting
        self._idle = Deferred()
        # Redis serves the first list that has something: taking turns starves no URI.
        self._turn = turn = (self._turn + 1) % len(uris)
        keys = [juggler.calls_key(uri) for uri in (*uris[turn:], *uris[:turn])]
        connection.send(
            partial(self._taken, connection, waiting),
            *("BLMPOP", str(self._block_s), len(keys), *keys, "RIGHT", "COUNT", limit),
        )
        return waiting

    def _unblock(self, waiting: Deferred[list[IncomingCall]]) -> None:
        if self._client_id is not None:
            self._commands.send(ignore_reply, "CLIENT", "UNBLOCK", self._client_id)

    def _taken(
        self,
        connection: RedisConnection,
        waiting: Deferred[list[IncomingCall]],
        reply: Reply,
    ) -> None:
        self._waiting = None
        idle, self._idle = self._idle, None
        if isinstance(reply, Exception):
            self._fail(waiting, reply)
        elif reply is None:
            if not waiting.called:
                waiting.callback([])
        elif waiting.called:  # cancelled, but Redis had already popped
            self._put_back(connection, *reply)
        else:
            self._claim(connection, waiting, reply[1])
        if idle is not None:
            idle.callback(None)

    def _fail(self, waiting: Deferred[list[IncomingCall]], reply: Exception) -> None:
        if not waiting.called:
            waiting.errback(broker_error(reply))

    def _put_back(
        self, connection: RedisConnection | RedisLink, key: Argument, entries: list[bytes]
    ) -> None:
        connection.send(ignore_reply, "RPUSH", key, *reversed(entries))
        connection.send(ignore_reply, "PEXPIRE", key, LIST_LIFE_MS, "NX")

    def _claim(
        self,
        connection: RedisConnection,
        waiting: Deferred[list[IncomingCall]],
        entries: list[bytes],
    ) -> None:
        payloads = []
        for entry in entries:
            try:
                payloads.append(juggler.decode_call_payload(entry))
            except RemoteProtocolError as error:
                self._log.warn("A call was dropped: {error}", error=error)
        keys = [juggler.call_timeout_key(call.uri, call.msg_uuid) for call in payloads]

        def claimed(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._fail(waiting, reply)
            elif not waiting.called:
                waiting.callback(self._incoming(payloads, reply))
            else:  # cancelled meanwhile
                self._unclaim(payloads, reply)

        if keys:
            claim_script.run(self._takes, claimed, len(keys), *keys)
        else:
            claimed([])

    def _unclaim(self, payloads: list[juggler.CallPayload], left_ms: list[int]) -> None:
        for payload, ms in reversed(list(zip(payloads, left_ms, strict=True))):
            if ms > 0:
                key = juggler.call_timeout_key(payload.uri, payload.msg_uuid)
                entry = juggler.encode_call_payload(
                    payload.conn_uuid, payload.msg_uuid, payload.uri, bytes(payload.args)
                )
                self._commands.send(ignore_reply, "SET", key, ms, "PX", ms)
                self._put_back(self._commands, juggler.calls_key(payload.uri), [entry])

    def _incoming(
        self, payloads: list[juggler.CallPayload], left_ms: list[int]
    ) -> list[IncomingCall]:
        now_s = self._clock.seconds()
        calls = []
        for payload, ms in zip(payloads, left_ms, strict=True):
            if ms > 0:
                calls.append(
                    IncomingCall(
                        payload.uri,
                        payload.conn_uuid,
                        payload.msg_uuid,
                        bytes(payload.args),
                        now_s + ms / 1000,
                    )
                )
        return calls

    def store_result(self, call: IncomingCall, args: bytes) -> Deferred[bool]:
        """See `pelotontx.broker.interface.Callee`."""
        left_ms = int((call.expires_at_s - self._clock.seconds()) * 1000)
        if left_ms <= 0:
            return succeed(False)
        result: Deferred[bool] = Deferred()

        def stored(error: BrokerError | None, /) -> None:
            if error is None:
                result.callback(True)
            else:
                result.errback(error)

        self._store.add(
            call.uri,
            juggler.results_key(call.conn_uuid),
            juggler.result_timeout_key(call.conn_uuid, call.msg_uuid),
            left_ms,
            juggler.encode_call_payload(call.conn_uuid, call.msg_uuid, call.uri, args),
            stored,
        )
        return result


_Topic = tuple[str, bool]
"""A channel's name or glob, and whether it is a glob."""


class RedisPubSub:
    """Publishes on the shared connection and keeps one that is subscribed to all that is wanted."""

    _log = Logger()

    def __init__(self, commands: RedisLink, subscriber_link: Callable[..., RedisLink]) -> None:
        self.on_event: Callable[[str, str | None, bytes], None] = lambda *event: None
        self._commands = commands
        self._link = subscriber_link(on_up=self._resubscribe)
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

        self._commands.send(replied, "PUBLISH", channel, payload)
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
        confirmations = []
        for command, is_pattern in (("SUBSCRIBE", False), ("PSUBSCRIBE", True)):
            names = [name.encode() for name, pattern in self._wanted if pattern is is_pattern]
            for start in range(0, len(names), BATCH_LIMIT):
                confirmations.append(
                    connection.subscribe_to(command, names[start : start + BATCH_LIMIT])
                )
        wanted_before = set(self._wanted)
        await gatherResults(confirmations, consumeErrors=True)
        for name, pattern in wanted_before - self._wanted.keys():
            connection.send(ignore_reply, "PUNSUBSCRIBE" if pattern else "UNSUBSCRIBE", name)

    def _event(self, channel: bytes, pattern: bytes | None, payload: bytes) -> None:
        self.on_event(
            channel.decode("utf-8", "replace"),
            None if pattern is None else pattern.decode("utf-8", "replace"),
            payload,
        )
