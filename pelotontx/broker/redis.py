"""A broker on Redis or Valkey, in juggler's layout: what its parts share, and the caller's side.

Connections are a constant, whatever the number of clients: a server process holds one that
pipelines, one for events and one that waits for results; a callee one that pipelines and one that
waits for calls. On a cluster it is one that pipelines for each master, a few that wait for results
and one for each slot with calls. Blocking pops end by themselves after a short while, so that a
silent Redis is told from an idle one.

The calls of one reactor turn leave as one script a URI, its results as one script a results list;
calls and results come back many at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import uuid4

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import CallStored
from pelotontx.broker.redis_callee import RedisCallee
from pelotontx.broker.redis_events import RedisPubSub
from pelotontx.broker.redis_sessions import RedisSessions
from pelotontx.broker.redis_store import Store
from pelotontx.errors import RemoteProtocolError
from pelotontx.net.redis.client import RedisClient, redis_client
from pelotontx.net.redis.connection import RedisConnection, Reply, ignore_reply
from pelotontx.wire import juggler

_RESULTS_LIMIT: Final = 512
# Callees name what they serve; in a fleet these are few.
_SERVED_LIMIT: Final = 1000


class RedisBroker:
    """Calls, results, events and sessions on one Redis: a `pelotontx.broker.interface.Broker`.

    Args:
        reactor: connects and keeps time.
        url: see `pelotontx.net.redis.client.redis_client`.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: a Redis that is silent for so long is unavailable.
        call_cap: most calls that may wait for a URI; 0 = any number.
        result_cap: most results that may wait on one list of a server process; 0 = any number.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        connect_timeout_s: float = 5.0,
        reply_timeout_s: float = 5.0,
        call_cap: Callable[[str], int] = lambda uri: 10_000,
        result_cap: int = 0,
    ) -> None:
        self._reactor = reactor
        self._client = redis_client(
            reactor, url, connect_timeout_s=connect_timeout_s, reply_timeout_s=reply_timeout_s
        )
        self._reply_timeout_s = reply_timeout_s
        # Well below reply_timeout_s: each end of a blocking pop is a sign of life.
        self._block_s = min(2.0, reply_timeout_s / 2)
        self._result_cap = result_cap
        store = Store(reactor, self._client, cap=call_cap)
        self.caller = RedisCaller(reactor, self._client, store, block_s=self._block_s)
        self.pubsub = RedisPubSub(self._client)
        self.sessions = RedisSessions(self._client)

    def callee(self) -> RedisCallee:
        """A new callee side, with connections of its own."""
        return RedisCallee(
            self._reactor,
            self._client,
            Store(self._reactor, self._client, cap=lambda uri: self._result_cap),
            block_s=self._block_s,
            settle_s=self._reply_timeout_s,
        )

    @property
    def available(self) -> bool:
        """Whether it answers at this moment."""
        return self._client.available

    def start(self) -> None:
        """Connects what the parts share."""
        self._client.start()

    def stop(self) -> Deferred[None]:
        """To be called after the parts have stopped."""
        return self._client.stop()


class RedisCaller:
    """Stores calls and pops their results off this process's lists.

    Every call names the list that its result goes to. There is one; on a cluster there are a few,
    on different masters, and a call takes the one that lies near its URI.

    Attributes:
        served_uris: those that results came from; of each batch one is noted.
    """

    def __init__(
        self, clock: IReactorTime, client: RedisClient, store: Store, *, block_s: float
    ) -> None:
        self.on_result: Callable[[str, bytes], None] = lambda msg_uuid, args: None
        self.payloads_failed = 0
        self.served_uris: dict[str, None] = {}
        self._clock = clock
        self._client = client
        self._store = store
        self._lists = [_ResultsList(self, client, part, block_s) for part in range(client.spread)]

    @property
    def conn_uuids(self) -> tuple[str, ...]:
        """What its lists are called by."""
        return tuple(results.conn_uuid for results in self._lists)

    @property
    def available(self) -> bool:
        """Whether results come in at this moment."""
        return all(results.link.connection is not None for results in self._lists)

    def start(self) -> None:
        """Begins to wait for results."""
        for results in self._lists:
            results.link.start()

    def stop(self) -> Deferred[Any]:
        """Waits for results no more; calls that wait to be stored are sent."""
        self._store.stop()
        return gatherResults([results.link.stop() for results in self._lists])

    def store_call(
        self, uri: str, msg_uuid: str, args: bytes, timeout_ms: int, stored: CallStored
    ) -> None:
        """See `pelotontx.broker.interface.Caller`."""
        key = juggler.calls_key(uri)
        results = self._lists[0]
        if len(self._lists) > 1:
            results = self._lists[self._client.part(key)]
        ahead_s = self._client.ahead_s(key)
        deadline_ms = 0
        if ahead_s is not None:
            deadline_ms = int((self._clock.seconds() + ahead_s) * 1000) + timeout_ms
        self._store.add(
            uri,
            key,
            juggler.call_timeout_key(uri, msg_uuid),
            timeout_ms,
            juggler.encode_call_payload(results.conn_uuid, msg_uuid, uri, args, deadline_ms),
            stored,
        )

    def queue_lengths(self) -> Deferred[dict[str, int]]:
        """See `pelotontx.broker.interface.Caller`."""
        return self._store.lengths().addCallback(self._by_served_uri)

    def _by_served_uri(self, lengths: dict[str, int]) -> dict[str, int]:
        shown = {uri: length for uri, length in lengths.items() if uri in self.served_uris}
        return {"": sum(lengths.values()) - sum(shown.values()), **shown}


class _ResultsList:
    """One list of results, and the connection that waits for them."""

    _log = Logger()

    def __init__(self, caller: RedisCaller, client: RedisClient, part: int, block_s: float) -> None:
        self.conn_uuid = str(uuid4())
        while client.part(juggler.results_key(self.conn_uuid)) != part:
            self.conn_uuid = str(uuid4())
        self._key = juggler.results_key(self.conn_uuid)
        self._caller = caller
        self._client = client
        self.link = client.link("results", self._key, on_up=self._pop)
        self._pop_command = (
            *("BLMPOP", str(block_s), 1, self._key),
            *("RIGHT", "COUNT", _RESULTS_LIMIT),
        )

    def _pop(self, connection: RedisConnection) -> None:
        connection.send(partial(self._popped, connection), *self._pop_command)

    def _popped(self, connection: RedisConnection, reply: Reply) -> None:
        if isinstance(reply, Exception):
            if not connection.is_lost:
                self._log.warn("Results cannot be fetched: {error}", error=reply)
                self.link.reconnect()
            return
        if reply is not None:
            self._deliver(reply[1])
        self._pop(connection)

    def _deliver(self, entries: list[bytes]) -> None:
        caller, timeout_keys = self._caller, []
        payload = None
        for entry in entries:
            try:
                payload = juggler.decode_call_payload(entry)
            except RemoteProtocolError as error:
                caller.payloads_failed += 1
                self._log.warn("A result was dropped: {error}", error=error)
                continue
            if payload.dl != juggler.NO_TIMEOUT_KEY:
                timeout_keys.append(juggler.result_timeout_key(self.conn_uuid, payload.msg_uuid))
            try:
                caller.on_result(payload.msg_uuid, bytes(payload.args))
            except Exception:  # one result's fault must not take the others along
                self._log.failure("A result could not be delivered")
        if payload is not None and len(caller.served_uris) < _SERVED_LIMIT:
            caller.served_uris[payload.uri] = None
        if timeout_keys:
            self._client.send(ignore_reply, self._key, "UNLINK", *timeout_keys)
