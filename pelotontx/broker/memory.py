"""A broker inside one process, for tests and for servers whose callees live with them.

It keeps what Redis keeps (caps, timeouts, first in first out) and loses it with the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pelotontx.broker.interface import CallStored, History, IncomingCall, Position, ResultStored
from pelotontx.broker.memory_sessions import MemorySessions
from pelotontx.errors import BrokerUnavailable, CallExpired, HistoryUnsupported, QueueFull
from pelotontx.wire.glob import glob_match

_SWEEP_S: Final = 10.0
_CAP_SWEEP_S: Final = 1.0


class MemoryBroker:
    """Calls, results, events and sessions in this process: a `pelotontx.broker.interface.Broker`.

    Args:
        clock: keeps time, and delivers results and events in a later turn, as a network does.
        call_cap: most calls that may wait for a URI; 0 = any number.
    """

    available = True

    def __init__(
        self, clock: IReactorTime, *, call_cap: Callable[[str], int] = lambda uri: 10_000
    ) -> None:
        self._clock = clock
        self._sweep_call: IDelayedCall | None = None
        self._calls: dict[str, deque[IncomingCall]] = {}
        self._served: dict[str, None] = {}
        self._swept_s = 0.0
        self._takers: list[_Taker] = []
        self._call_cap = call_cap
        self._callers: dict[str, MemoryCaller] = {}
        self._channels: dict[str, dict[MemoryPubSub, None]] = {}
        self._globs: dict[str, dict[MemoryPubSub, None]] = {}
        self.caller = MemoryCaller(self, clock)
        self.pubsub = MemoryPubSub(self)
        self.sessions = MemorySessions(clock)

    @property
    def waiting_calls(self) -> int:
        """How many calls nobody has taken."""
        return sum(map(len, self._calls.values()))

    def queue_lengths(self) -> dict[str, int]:
        """How many calls wait for each URI that is served, and for all others under ``""``."""
        lengths = {uri: len(calls) for uri, calls in self._calls.items()}
        shown = {uri: lengths.get(uri, 0) for uri in self._served}
        return {"": sum(lengths.values()) - sum(shown.values()), **shown}

    def start(self) -> None:
        """Nothing to connect."""

    def stop(self) -> Deferred[None]:
        """Forgets everything."""
        self._calls.clear()
        self.sessions.stop()
        if self._sweep_call is not None:
            self._sweep_call.cancel()
            self._sweep_call = None
        return succeed(None)

    def another_caller(self) -> MemoryCaller:
        """The calling side of a further server on the same broker."""
        return MemoryCaller(self, self._clock)

    def another_pubsub(self) -> MemoryPubSub:
        """The event side of a further server on the same broker."""
        return MemoryPubSub(self)

    def callee(self) -> MemoryCallee:
        """A new callee side."""
        return MemoryCallee(self, self._clock)

    # What follows is for the parts below.

    def put_call(self, call: IncomingCall) -> bool:
        """Stores a call; False when there is no room."""
        waiting = self._calls.setdefault(call.uri, deque())
        cap = self._call_cap(call.uri)
        if cap and not self._has_room(waiting, cap):
            return False
        waiting.append(call)
        self._clock.callLater(0, self.serve)
        if self._sweep_call is None:
            self._sweep_call = self._clock.callLater(_SWEEP_S, self._sweep)
        return True

    def _sweep(self) -> None:
        """Forgets expired calls of URIs that nobody serves."""
        self._sweep_call = None
        for uri, waiting in tuple(self._calls.items()):
            self._drop_expired(waiting)
            if not waiting:
                del self._calls[uri]
        if self._calls:
            self._sweep_call = self._clock.callLater(_SWEEP_S, self._sweep)

    def _has_room(self, waiting: deque[IncomingCall], cap: int) -> bool:
        """Expired calls make room; they are looked for once a second at most."""
        if len(waiting) < cap:
            return True
        now_s = self._clock.seconds()
        if now_s >= self._swept_s + _CAP_SWEEP_S:
            self._swept_s = now_s
            self._drop_expired(waiting)
        return len(waiting) < cap

    def _drop_expired(self, waiting: deque[IncomingCall]) -> None:
        now_s = self._clock.seconds()
        fresh = [call for call in waiting if call.expires_at_s > now_s]
        waiting.clear()
        waiting.extend(fresh)

    def add_taker(self, taker: _Taker) -> None:
        """Gives the taker calls as soon as there are any."""
        self._takers.append(taker)
        self.serve()

    def remove_taker(self, taker: _Taker) -> None:
        """The taker waits no more."""
        self._takers.remove(taker)

    def serve(self) -> None:
        """Hands waiting calls to those who wait for them, the longest waiting first."""
        for taker in tuple(self._takers):
            if taker not in self._takers:
                continue  # served meanwhile: who is given calls may ask for more at once
            calls = self._pop(taker.uris, taker.limit)
            if calls:
                self._takers.remove(taker)
                taker.result.callback(calls)

    def _pop(self, uris: Sequence[str], limit: int) -> list[IncomingCall]:
        now_s = self._clock.seconds()
        calls: list[IncomingCall] = []
        self._served.update(dict.fromkeys(uris))
        for uri in uris:
            waiting = self._calls.get(uri)
            while waiting and len(calls) < limit:
                call = waiting.popleft()
                if call.expires_at_s > now_s:
                    calls.append(call)
            if waiting is not None and not waiting:
                del self._calls[uri]
        return calls

    def put_result(self, call: IncomingCall, args: bytes) -> bool:
        """Hands a result to the caller that waits for it."""
        caller = self._callers.get(call.conn_uuid)
        if caller is None:
            return False
        self._clock.callLater(0, caller.deliver, call.msg_uuid, args)
        return True

    def add_caller(self, caller: MemoryCaller) -> None:
        """Results of the caller's calls are delivered from now on."""
        self._callers[caller.conn_uuid] = caller

    def remove_caller(self, caller: MemoryCaller) -> None:
        """Nobody waits for the caller's results any more."""
        self._callers.pop(caller.conn_uuid, None)

    def emit(self, channel: str, payload: bytes) -> None:
        """Delivers an event: to plain subscriptions first, then to globs."""
        for listener in tuple(self._channels.get(channel, ())):
            listener.on_event(channel, None, payload)
        for glob, listeners in tuple(self._globs.items()):
            if glob_match(glob, channel):
                for listener in tuple(listeners):
                    listener.on_event(channel, glob, payload)

    def publish(self, channel: str, payload: bytes) -> None:
        """Emits in a later turn."""
        self._clock.callLater(0, self.emit, channel, payload)

    def listen(self, pubsub: MemoryPubSub, channel: str, pattern: bool) -> None:
        """Events of the topic go to `pubsub` too."""
        topics = self._globs if pattern else self._channels
        topics.setdefault(channel, {})[pubsub] = None

    def unlisten(self, pubsub: MemoryPubSub, channel: str, pattern: bool) -> None:
        """The reverse of `listen`."""
        topics = self._globs if pattern else self._channels
        listeners = topics.get(channel)
        if listeners is not None:
            listeners.pop(pubsub, None)
            if not listeners:
                del topics[channel]


@dataclass(eq=False, slots=True)
class _Taker:
    """Somebody who waits for calls."""

    uris: Sequence[str]
    limit: int
    result: Deferred[list[IncomingCall]]


class MemoryCaller:
    """See `pelotontx.broker.interface.Caller`."""

    available = True

    def __init__(self, broker: MemoryBroker, clock: IReactorTime) -> None:
        self.conn_uuid = str(uuid4())
        self.on_result: Callable[[str, bytes], None] = lambda msg_uuid, args: None
        self.payloads_failed = 0
        self._broker = broker
        self._clock = clock

    def start(self) -> None:
        """Begins to receive results."""
        self._broker.add_caller(self)

    def stop(self) -> Deferred[None]:
        """No more results."""
        self._broker.remove_caller(self)
        return succeed(None)

    def deliver(self, msg_uuid: str, args: bytes) -> None:
        """A result has come."""
        self.on_result(msg_uuid, args)

    def store_call(
        self, uri: str, msg_uuid: str, args: bytes, timeout_ms: int, stored: CallStored
    ) -> None:
        """See `pelotontx.broker.interface.Caller`."""
        expires_at_s = self._clock.seconds() + timeout_ms / 1000
        call = IncomingCall(uri, self.conn_uuid, msg_uuid, args, expires_at_s)
        stored(None if self._broker.put_call(call) else QueueFull(uri))

    def queue_lengths(self) -> Deferred[dict[str, int]]:
        """See `pelotontx.broker.interface.Caller`."""
        return succeed(self._broker.queue_lengths())


class MemoryCallee:
    """See `pelotontx.broker.interface.Callee`."""

    available = True

    def __init__(self, broker: MemoryBroker, clock: IReactorTime) -> None:
        self._broker = broker
        self._clock = clock
        self._taker: _Taker | None = None

    def start(self) -> None:
        """Nothing to connect."""

    def stop(self) -> Deferred[None]:
        """Ends a wait."""
        if self._taker is not None:
            self._taker.result.cancel()
        return succeed(None)

    def take_calls(self, uris: Sequence[str], limit: int) -> Deferred[list[IncomingCall]]:
        """See `pelotontx.broker.interface.Callee`."""
        if self._taker is not None:
            return fail(BrokerUnavailable("already waiting for calls"))
        result: Deferred[list[IncomingCall]] = Deferred(self._cancelled)
        taker = self._taker = _Taker(uris, limit, result)
        result.addCallback(self._taken)
        self._broker.add_taker(taker)
        return result

    def _taken(self, calls: list[IncomingCall]) -> list[IncomingCall]:
        self._taker = None
        return calls

    def _cancelled(self, result: Deferred[list[IncomingCall]]) -> None:
        if self._taker is not None:
            self._broker.remove_taker(self._taker)
            self._taker = None

    def store_result(self, call: IncomingCall, args: bytes, stored: ResultStored) -> None:
        """See `pelotontx.broker.interface.Callee`."""
        in_time = call.expires_at_s > self._clock.seconds()
        if in_time and self._broker.put_result(call, args):
            stored(None)
        else:
            stored(CallExpired(call.uri))


class MemoryPubSub:
    """See `pelotontx.broker.interface.PubSub`."""

    available = True

    def __init__(self, broker: MemoryBroker) -> None:
        self.on_event: Callable[[str, str | None, bytes], None] = lambda *event: None
        self._broker = broker
        self._topics: set[tuple[str, bool]] = set()

    def start(self) -> None:
        """Nothing to connect."""

    def stop(self) -> Deferred[None]:
        """No more events."""
        for channel, pattern in self._topics:
            self._broker.unlisten(self, channel, pattern)
        self._topics.clear()
        return succeed(None)

    def publish(self, channel: str, payload: bytes) -> Deferred[None]:
        """See `pelotontx.broker.interface.PubSub`."""
        self._broker.publish(channel, payload)
        return succeed(None)

    def subscribe(self, channel: str, *, pattern: bool) -> Deferred[None]:
        """See `pelotontx.broker.interface.PubSub`."""
        self._topics.add((channel, pattern))
        self._broker.listen(self, channel, pattern)
        return succeed(None)

    def unsubscribe(self, channel: str, *, pattern: bool) -> None:
        """See `pelotontx.broker.interface.PubSub`."""
        self._topics.discard((channel, pattern))
        self._broker.unlisten(self, channel, pattern)

    def history(self, channel: str, since: Position | None, limit: int) -> Deferred[History]:
        """Nothing is remembered."""
        return fail(HistoryUnsupported(f"{channel}: this broker keeps no history"))
