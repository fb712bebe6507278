"""Calls on Redis as a callee takes them: popped many at a time, their results stored together.

A call of ours tells by itself when its time is over. One of another program has a timeout key: that
is read and deleted by a script before the call is run, and its result gets one as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import IncomingCall, ResultStored
from pelotontx.broker.redis_store import (
    LIST_LIFE_MS,
    Store,
    broker_error,
    claim_script,
    restore_script,
)
from pelotontx.errors import BrokerError, BrokerUnavailable, CallExpired, RemoteProtocolError
from pelotontx.net.process import Moment
from pelotontx.net.redis.client import RedisClient
from pelotontx.net.redis.connection import RedisConnection, Reply, ignore_reply
from pelotontx.wire import juggler

# Milliseconds past which a double cannot tell them apart: no deadline of ours.
_DEADLINE_LIMIT_MS: Final = 1 << 53


class RedisCallee:
    """Takes calls and stores their results.

    Redis waits on several lists at a time where they lie in one slot of a cluster; where there is
    one server only, all do. So there is a taker, with a connection of its own, for each slot. One
    is asked for at least one call, so up to as many calls as there are further slots may be held
    here beyond what was asked for; they are handed over first.

    Args:
        clock: keeps time.
        client: the Redis.
        store: for results.
        block_s: how long a pop waits.
        settle_s: how long a stop waits until what was popped by then is put back.
    """

    def __init__(
        self,
        clock: IReactorTime,
        client: RedisClient,
        store: Store,
        *,
        block_s: float,
        settle_s: float,
    ) -> None:
        self.clock = clock
        self.client = client
        self.block_s = block_s
        self.calls_expired = 0
        self._store = store
        self._settle_s = settle_s
        self._uris: Sequence[str] = ()
        self._takers: dict[int, _Taker] = {}
        self._restoring = 0
        self._settled: Moment[None] | None = None
        self._taken: deque[IncomingCall] = deque()
        self._waiting: Deferred[list[IncomingCall]] | None = None
        self._limit = 0

    @property
    def available(self) -> bool:
        """Whether calls can be taken and results stored at this moment."""
        return self.client.available and all(taker.is_up for taker in self._takers.values())

    def start(self) -> None:
        """Connections are made when it is known what to take."""

    def stop(self) -> Deferred[None]:
        """Ends a wait without losing a call; results that wait are sent."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._store.stop()
        self._cancel()
        if self._is_busy():
            # What Redis had popped by then is put back first.
            self._settled = Moment()
            settled = self._settled.wait().addTimeout(self._settle_s, self.clock)
            await settled.addErrback(lambda _: None)
        takers, self._takers = self._takers, {}
        self._uris = ()
        await DeferredList([taker.link.stop() for taker in takers.values()])

    def _is_busy(self) -> bool:
        return self._restoring > 0 or any(taker.asked for taker in self._takers.values())

    # Taking

    def take_calls(self, uris: Sequence[str], limit: int) -> Deferred[list[IncomingCall]]:
        """See `pelotontx.broker.interface.Callee`."""
        if self._waiting is not None:
            return fail(BrokerUnavailable("already waiting for calls"))
        if uris != self._uris:
            self._serve(uris)
        self._limit = limit
        if self._taken:
            return succeed(self._first_taken())
        if not self._ask():
            return fail(BrokerUnavailable("no connection to take calls from"))
        self._waiting = Deferred(lambda _: self._cancel())
        return self._waiting

    def _serve(self, uris: Sequence[str]) -> None:
        self._uris = uris
        for uri in uris:
            slot = self.client.slot(juggler.calls_key(uri))
            taker = self._takers.get(slot)
            if taker is None:
                taker = self._takers[slot] = _Taker(self, uri)
                taker.link.start()
            else:
                taker.add(uri)

    def _ask(self) -> bool:
        """Asks takers that are idle; whether any is asked then."""
        for taker in self._takers.values():
            if taker.is_up:
                self._ask_one(taker, taker.link.connection)
        return any(taker.asked for taker in self._takers.values())

    def _ask_one(self, taker: _Taker, connection: RedisConnection) -> None:
        if not taker.asked:
            takers = self._takers.values()
            left = self._limit - sum(each.asked for each in takers)
            share = -(-self._limit // len(takers))
            taker.ask(connection, max(1, min(share, left)))

    def came_up(self, taker: _Taker, connection: RedisConnection) -> None:
        """Told by a taker that is connected: it shares the wait that is under way."""
        if self._waiting is not None and self.client.is_up(taker.key):
            self._ask_one(taker, connection)

    def _first_taken(self) -> list[IncomingCall]:
        taken = self._taken
        return [taken.popleft() for _ in range(min(self._limit, len(taken)))]

    def taken(self, calls: list[IncomingCall] | BrokerError) -> None:
        """Told by a taker: what it has popped."""
        waiting = self._waiting
        if isinstance(calls, list):
            self._taken.extend(calls)
            if waiting is not None:
                self._waiting = None
                waiting.callback(self._first_taken())
        elif waiting is not None and not any(taker.asked for taker in self._takers.values()):
            self._waiting = None
            waiting.errback(calls)
        self._settle()

    def _settle(self) -> None:
        if self._settled is not None and not self._is_busy():
            settled, self._settled = self._settled, None
            settled.happen(None)

    def _cancel(self) -> None:
        """Nobody wants calls: what has been popped, and what will be, is put back."""
        self._waiting = None
        for taker in self._takers.values():
            taker.cancel()
        taken, self._taken = self._taken, deque()
        self.put_back(taken, lambda: None)

    def put_back(self, calls: Iterable[IncomingCall], done: Callable[[], None]) -> None:
        """Puts calls back in front of those that wait, with the time they have left."""
        now_s = self.clock.seconds()
        by_uri: dict[str, list[IncomingCall]] = {}
        for call in calls:
            if _left_ms(call, now_s) > 0:
                by_uri.setdefault(call.uri, []).append(call)
        for uri, some in by_uri.items():
            self.restore(
                juggler.calls_key(uri),
                [
                    juggler.encode_call_payload(
                        call.conn_uuid, call.msg_uuid, uri, call.args, call.ticket
                    )
                    for call in some
                ],
                {
                    juggler.call_timeout_key(uri, call.msg_uuid): _left_ms(call, now_s)
                    for call in some
                },
                done,
            )
        if not by_uri:
            done()

    def restore(
        self,
        key: str,
        entries: Sequence[bytes],
        timeouts_ms: Mapping[str, int],
        done: Callable[[], None],
    ) -> None:
        """Puts entries back, in the order in which they were popped, and timeouts."""

        def restored(reply: Reply) -> None:
            if isinstance(reply, Exception):
                broker_error(reply)
            self._restoring -= 1
            done()
            self._settle()

        # A list that another server fills gets no expiry: it would never be renewed.
        is_ours = all(b',"dl":' in entry for entry in entries)
        self._restoring += 1
        self.client.run(
            restored,
            restore_script,
            (key, *timeouts_ms),
            LIST_LIFE_MS if is_ours else 0,
            *timeouts_ms.values(),
            *entries,
        )

    # Results

    def store_result(self, call: IncomingCall, args: bytes, stored: ResultStored) -> None:
        """See `pelotontx.broker.interface.Callee`."""
        left_ms = _left_ms(call, self.clock.seconds())
        if left_ms <= 0:
            stored(CallExpired(call.uri))
            return
        self._store.add(
            call.uri,
            juggler.results_key(call.conn_uuid),
            # The server of a call that knows its own deadline knows it too.
            "" if call.ticket else juggler.result_timeout_key(call.conn_uuid, call.msg_uuid),
            left_ms,
            juggler.encode_call_payload(
                call.conn_uuid,
                call.msg_uuid,
                call.uri,
                args,
                juggler.NO_TIMEOUT_KEY if call.ticket else 0,
            ),
            stored,
        )


def _left_ms(call: IncomingCall, now_s: float) -> int:
    return int((call.expires_at_s - now_s) * 1000)


class _Taker:
    """Pops calls off lists that lie in one slot, one pop at a time.

    Attributes:
        link: its connection.
        key: of one of the lists.
        asked: how many calls the pop under way may bring; 0: none is under way.
    """

    _log = Logger()

    def __init__(self, callee: RedisCallee, uri: str) -> None:
        key = juggler.calls_key(uri)
        self.link = callee.client.link("takes", key, on_up=self._up)
        self.asked = 0
        self.key = key
        self._callee = callee
        self._keys = deque((key,))
        self._client_id: int | None = None
        self._ahead_s: float | None = None
        self._is_cancelled = False

    async def _up(self, connection: RedisConnection) -> None:
        self._client_id = await connection.execute_command("CLIENT", "ID")
        self._callee.came_up(self, connection)

    @property
    def is_up(self) -> bool:
        """Whether it can take calls, and their results could be stored."""
        return self.link.connection is not None and self._callee.client.is_up(self.key)

    def add(self, uri: str) -> None:
        """A further URI of the same slot."""
        key = juggler.calls_key(uri)
        if key not in self._keys:
            self._keys.append(key)

    def ask(self, connection: RedisConnection, count: int) -> None:
        """Begins to wait for up to `count` calls; the callee is told how it ends."""
        self.asked = count
        # Redis serves the first list that has something: taking turns starves no URI.
        self._keys.rotate(-1)
        connection.send(
            self._popped,
            "BLMPOP",
            str(self._callee.block_s),
            len(self._keys),
            *self._keys,
            *("RIGHT", "COUNT", count),
        )

    def cancel(self) -> None:
        """Ends the wait; what has been popped is put back."""
        if self.asked and not self._is_cancelled:
            self._is_cancelled = True
            if self._client_id is not None:
                self._callee.client.send(
                    ignore_reply, self.key, "CLIENT", "UNBLOCK", self._client_id
                )

    def _end(self, outcome: list[IncomingCall] | BrokerError) -> None:
        self.asked = 0
        self._is_cancelled = False
        self._callee.taken(outcome)

    def _popped(self, reply: Reply) -> None:
        if isinstance(reply, Exception):
            error = broker_error(reply)
            if error is not reply:  # what was asked is wrong, or asked in the wrong place
                self.link.reconnect()
            self._end(error)
        elif reply is None:
            self._end([])
        elif self._is_cancelled:  # but Redis had popped
            key, entries = reply
            self._callee.restore(key.decode(), entries, {}, lambda: self._end([]))
        else:
            self._claim(reply[1])

    def _claim(self, entries: list[bytes]) -> None:
        """Finds out which calls have time left, and takes their timeout keys away."""
        callee = self._callee
        payloads: list[juggler.CallPayload] = []
        for entry in entries:
            try:
                payloads.append(juggler.decode_call_payload(entry))
            except RemoteProtocolError as error:
                self._log.warn("A call was dropped: {error}", error=error)
        if not payloads:
            self._end([])
            return
        ahead_s = callee.client.ahead_s(self.key)
        if ahead_s is None:  # the connection that tells it is away
            ahead_s = self._ahead_s
        self._ahead_s = ahead_s
        keys = [juggler.call_timeout_key(call.uri, call.msg_uuid) for call in payloads]
        if ahead_s is not None and all(map(_tells_its_deadline, payloads)):
            calls = [_incoming(call, call.dl / 1000 - ahead_s) for call in payloads]
            callee.client.send(ignore_reply, self.key, "UNLINK", *keys)
            self._end(self._fresh(calls))
        else:
            callee.client.run(partial(self._claimed, payloads), claim_script, keys)

    def _claimed(self, payloads: list[juggler.CallPayload], reply: Reply) -> None:
        if isinstance(reply, Exception):
            self._log.warn("{count} calls are lost: {error}", count=len(payloads), error=reply)
            self._end(broker_error(reply))
            return
        now_s = self._callee.clock.seconds()
        calls = [
            _incoming(call, now_s + left_ms / 1000)
            for call, left_ms in zip(payloads, reply, strict=True)
        ]
        if self._is_cancelled:  # meanwhile
            self._callee.put_back(calls, lambda: self._end([]))
        else:
            self._end(self._fresh(calls))

    def _fresh(self, calls: list[IncomingCall]) -> list[IncomingCall]:
        now_s = self._callee.clock.seconds()
        fresh = [call for call in calls if call.expires_at_s > now_s]
        self._callee.calls_expired += len(calls) - len(fresh)
        return fresh


def _tells_its_deadline(call: juggler.CallPayload) -> bool:
    return type(call.dl) is int and 0 < call.dl < _DEADLINE_LIMIT_MS


def _incoming(call: juggler.CallPayload, expires_at_s: float) -> IncomingCall:
    return IncomingCall(
        call.uri,
        call.conn_uuid,
        call.msg_uuid,
        bytes(call.args),
        expires_at_s,
        call.dl if _tells_its_deadline(call) else 0,
    )
