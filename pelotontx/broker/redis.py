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

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.interface import CallStored, History, IncomingCall, Position
from pelotontx.broker.redis_store import (
    BATCH_LIMIT,
    LIST_LIFE_MS,
    Store,
    broker_error,
    claim_script,
    restore_script,
)
from pelotontx.errors import (
    BrokerError,
    BrokerUnavailable,
    HistoryUnsupported,
    RemoteProtocolError,
)
from pelotontx.net.process import Moment
from pelotontx.net.redis import (
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
            self._reactor,
            self._commands,
            self._link("takes"),
            store,
            block_s=self._block_s,
            settle_s=self._link_options["reply_timeout_s"],
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
            try:
                self.on_result(payload.msg_uuid, bytes(payload.args))
            except Exception:  # one result's fault must not take the others along
                self._log.failure("A result could not be delivered")
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
        settle_s: float,
    ) -> None:
        self._clock = clock
        self._commands = commands
        self._takes = takes
        self._store = store
        self._block_s = block_s
        self._settle_s = settle_s
        self._turn = 0
        self._client_id: int | None = None
        self._waiting: Deferred[list[IncomingCall]] | None = None
        self._settled: Moment[None] | None = None
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
        if self._settled is not None:
            # What Redis had popped by then is put back first.
            settled = self._settled.wait().addTimeout(self._settle_s, self._clock)
            await settled.addErrback(lambda _: None)
        await self._takes.stop()

    def take_calls(self, uris: Sequence[str], limit: int) -> Deferred[list[IncomingCall]]:
        """See `pelotontx.broker.interface.Callee`."""
        connection = self._takes.connection
        if connection is None or self._settled is not None:
            return fail(BrokerUnavailable("no connection to take calls from"))
        waiting: Deferred[list[IncomingCall]] = Deferred(self._unblock)
        self._waiting = waiting
        self._settled = Moment()
        # Redis serves the first list that has something: taking turns starves no URI.
        self._turn = turn = (self._turn + 1) % len(uris)
        keys = [juggler.calls_key(uri) for uri in (*uris[turn:], *uris[:turn])]
        connection.send(
            partial(self._taken, waiting),
            *("BLMPOP", str(self._block_s), len(keys), *keys, "RIGHT", "COUNT", limit),
        )
        return waiting

    def _unblock(self, waiting: Deferred[list[IncomingCall]]) -> None:
        if self._client_id is not None:
            self._commands.send(ignore_reply, "CLIENT", "UNBLOCK", self._client_id)

    def _taken(self, waiting: Deferred[list[IncomingCall]], reply: Reply) -> None:
        if isinstance(reply, Exception) or reply is None:
            self._settle(waiting, reply or [])
        elif waiting.called:  # cancelled, but Redis had popped
            key, entries = reply
            self._restore(waiting, key, entries, {})
        else:
            self._claim(waiting, *reply)

    def _settle(
        self, waiting: Deferred[list[IncomingCall]], outcome: list[IncomingCall] | Exception
    ) -> None:
        """The end of one take, before anybody is told: the next may follow at once."""
        settled, self._settled, self._waiting = self._settled, None, None
        if not waiting.called:
            if isinstance(outcome, Exception):
                waiting.errback(broker_error(outcome))
            else:
                waiting.callback(outcome)
        if settled is not None:
            settled.happen(None)

    def _restore(
        self,
        waiting: Deferred[list[IncomingCall]],
        key: bytes,
        entries: list[bytes],
        timeouts_ms: dict[str, int],
    ) -> None:
        """Puts entries back, in the order in which they were popped, and their timeouts."""
        restore_script.run(
            self._takes,
            lambda reply: self._settle(waiting, []),
            1 + len(timeouts_ms),
            key,
            *timeouts_ms,
            LIST_LIFE_MS,
            *timeouts_ms.values(),
            *entries,
        )

    def _claim(
        self, waiting: Deferred[list[IncomingCall]], key: bytes, entries: list[bytes]
    ) -> None:
        payloads: list[juggler.CallPayload] = []
        kept: list[bytes] = []
        for entry in entries:
            try:
                payloads.append(juggler.decode_call_payload(entry))
                kept.append(entry)
            except RemoteProtocolError as error:
                self._log.warn("A call was dropped: {error}", error=error)
        keys = [juggler.call_timeout_key(call.uri, call.msg_uuid) for call in payloads]

        def claimed(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._settle(waiting, reply)
            elif waiting.called:  # cancelled meanwhile
                fresh = [n for n, ms in enumerate(reply) if ms > 0]
                self._restore(
                    waiting, key, [kept[n] for n in fresh], {keys[n]: reply[n] for n in fresh}
                )
            else:
                self._settle(waiting, self._incoming(payloads, reply))

        if keys:
            claim_script.run(self._takes, claimed, len(keys), *keys)
        else:
            claimed([])

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
