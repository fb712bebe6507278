"""The switchboard of one server process: which calls are pending, and who listens to what.

Gateways (WebSocket sessions, event streams) talk to the hub, the hub to the broker. A call gets a
fresh id of the hub's own on the broker, so that clients with the same message id cannot cross.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.interface import Caller, PubSub
from pelotontx.errors import BrokerError, BrokerUnavailable, QueueFull, RemoteProtocolError
from pelotontx.net.wheel import Timer, Wheel
from pelotontx.wire import juggler


class CallOwner(Protocol):
    """Whoever made a call: told that it is refused, or stored and then answered or expired."""

    def call_stored(self, call: PendingCall) -> None:
        """The broker has it."""
        ...

    def call_refused(self, call: PendingCall, error: BrokerError) -> None:
        """The broker did not take it."""
        ...

    def call_answered(self, call: PendingCall, args: bytes) -> None:
        """The result: encoded JSON."""
        ...

    def call_expired(self, call: PendingCall) -> None:
        """Its time is over; a late result is dropped."""
        ...


class Listener(Protocol):
    """Whoever subscribes."""

    def event(self, event: Event) -> None:
        """An event of a channel that was subscribed to."""
        ...


class Observer(Protocol):
    """Something like a histogram."""

    def observe(self, value: float, /) -> None:
        """One more value."""
        ...


class PendingCall:
    """A call that waits for its result; `request` is whatever its owner knows it by."""

    __slots__ = ("is_pending", "is_stored", "msg_uuid", "owner", "request", "timer")

    def __init__(self, owner: CallOwner, request: Any, msg_uuid: str) -> None:
        self.owner = owner
        self.request = request
        self.msg_uuid = msg_uuid
        self.is_pending = True
        self.is_stored = False
        self.timer: Timer | None = None


class Event:
    """One event on its way to all who listen.

    Attributes:
        channel: where it was published.
        pattern: the glob that matched, None for plain subscriptions.
        msg_uuid: of the PUB.
        args: encoded JSON, empty for none.
        encodings: what gateways have made of it, by a name of theirs, so that each form is made
            once whatever the number of listeners.
    """

    __slots__ = ("args", "channel", "encodings", "msg_uuid", "pattern")

    def __init__(self, channel: str, pattern: str | None, msg_uuid: str, args: bytes) -> None:
        self.channel = channel
        self.pattern = pattern
        self.msg_uuid = msg_uuid
        self.args = args
        self.encodings: dict[str, Any] = {}


class _Topic:
    """A channel or glob that somebody listens to, or waits to."""

    __slots__ = ("is_ready", "listeners", "waiting")

    def __init__(self) -> None:
        self.is_ready = False
        self.listeners: dict[Listener, None] = {}
        self.waiting: dict[Listener, list[Deferred[None]]] = {}


class Hub:
    """Pending calls with their deadlines, subscriptions and fan-out of one process.

    Args:
        caller: the broker's side for calls.
        pubsub: the broker's side for events; may be another broker.
        wheel: for deadlines.
        pending_limit: calls that wait for a result; past it a call is refused, so that results
            never outnumber what the broker keeps for us. 0 = any number.
        json_limits: of results and events that other programs made.

    Attributes:
        calls_stored, calls_refused, calls_expired: by the broker; without a result in time.
        results_delivered, results_late: to whoever called; after its time or its owner was gone.
        events_published, events_received, events_delivered: to the broker; from it; to listeners.
        payloads_failed: results and events of other programs that cannot be passed on.
        fan_out: told of the number of listeners that each event reached, if anybody wants to know.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        caller: Caller,
        pubsub: PubSub,
        wheel: Wheel,
        pending_limit: int = 0,
        json_limits: juggler.JsonLimits = juggler.JSON_LIMITS,
    ) -> None:
        self._caller = caller
        self._pubsub = pubsub
        self._wheel = wheel
        self._pending_limit = pending_limit or sys.maxsize
        self._json_limits = json_limits
        self._next_id = juggler.MessageIds(os.urandom(16)).next
        self._pending: dict[str, PendingCall] = {}
        self._topics: dict[tuple[str, bool], _Topic] = {}
        self.calls_stored = 0
        self.calls_refused = 0
        self.calls_expired = 0
        self.results_delivered = 0
        self.results_late = 0
        self.events_published = 0
        self.events_received = 0
        self.events_delivered = 0
        self.payloads_failed = 0
        self.fan_out: Observer | None = None
        caller.on_result = self._result
        pubsub.on_event = self._event

    @property
    def available(self) -> bool:
        """Whether results and events come in at this moment."""
        return self._caller.available and self._pubsub.available

    @property
    def pending_calls(self) -> int:
        """How many calls wait for their result."""
        return len(self._pending)

    @property
    def topics(self) -> int:
        """How many channels and globs are subscribed to on the broker."""
        return len(self._topics)

    def start(self) -> None:
        """Connects."""
        self._caller.start()
        self._pubsub.start()

    async def stop(self) -> None:
        """Forgets calls and listeners, and lets go of the broker."""
        for call in tuple(self._pending.values()):
            self.forget(call)
        self._topics.clear()
        await self._caller.stop()
        await self._pubsub.stop()

    # Calls

    def call(
        self, owner: CallOwner, request: Any, *, uri: str, args: bytes, timeout_s: float
    ) -> PendingCall:
        """Stores a call; the owner is told what becomes of it, maybe before this returns."""
        msg_uuid = self._next_id()
        call = PendingCall(owner, request, msg_uuid)
        self._pending[msg_uuid] = call
        call.timer = self._wheel.call_later(timeout_s, self._expire, call)
        if len(self._pending) > self._pending_limit:
            self._stored(call, QueueFull(uri))
            return call
        stored = partial(self._stored, call)
        self._caller.store_call(uri, msg_uuid, args, int(timeout_s * 1000) or 1, stored)
        return call

    def forget(self, call: PendingCall) -> None:
        """Its owner has gone: a result is dropped."""
        if self._pending.pop(call.msg_uuid, None) is not None:
            call.is_pending = False
            assert call.timer is not None
            call.timer.cancel()

    def give_up(self, reason: str) -> None:
        """Ends every pending call with an error; whether a stored one was run is not known."""
        for call in tuple(self._pending.values()):
            if call.is_stored:
                self._result(call.msg_uuid, juggler.encode_error(reason))
            else:
                self._stored(call, BrokerUnavailable(reason))

    def _stored(self, call: PendingCall, error: BrokerError | None, /) -> None:
        if call.is_stored or not call.is_pending:
            return
        if error is None:
            self._is_stored(call)
        else:
            self._refuse(call, error)

    def _is_stored(self, call: PendingCall) -> None:
        call.is_stored = True
        self.calls_stored += 1
        call.owner.call_stored(call)

    def _refuse(self, call: PendingCall, error: BrokerError) -> None:
        self.forget(call)
        self.calls_refused += 1
        call.owner.call_refused(call, error)

    def _result(self, msg_uuid: str, args: bytes) -> None:
        call = self._pending.get(msg_uuid)
        if call is None:
            self.results_late += 1
            return
        # A fast callee's result may overtake the broker's word that the call is stored.
        if not call.is_stored:
            self._is_stored(call)
        self.forget(call)
        self.results_delivered += 1
        try:
            juggler.check_json(args, self._json_limits)
        except RemoteProtocolError as error:  # another program's
            self.payloads_failed += 1
            args = juggler.encode_error(f"the result cannot be sent: {error}")
        call.owner.call_answered(call, args)

    def _expire(self, call: PendingCall) -> None:
        if not call.is_stored:
            self._refuse(call, BrokerUnavailable("the broker did not answer in time"))
            return
        self.forget(call)
        self.calls_expired += 1
        call.owner.call_expired(call)

    # Events

    def publish(self, channel: str, msg_uuid: str, args: bytes) -> Deferred[None]:
        """Fires when the broker took the event; fails with `BrokerError`."""
        self.events_published += 1
        return self._pubsub.publish(channel, juggler.encode_event_payload(msg_uuid, args))

    def subscribe(self, listener: Listener, channel: str, *, pattern: bool) -> Deferred[None]:
        """Fires when the listener gets events from now on, none before; fails with `BrokerError`.

        Subscribing twice is the same as once.
        """
        topic = self._topics.get((channel, pattern))
        if topic is not None and topic.is_ready:
            if not self._pubsub.available:
                return fail(BrokerUnavailable("no events come in at this moment"))
            topic.listeners[listener] = None
            return succeed(None)
        result: Deferred[None] = Deferred()
        if topic is not None:
            topic.waiting.setdefault(listener, []).append(result)
            return result
        topic = self._topics[channel, pattern] = _Topic()
        topic.waiting[listener] = [result]
        confirmed = self._pubsub.subscribe(channel, pattern=pattern)
        confirmed.addBoth(self._confirmed, channel, pattern, topic)
        confirmed.addErrback(lambda failure: self._log.failure("Subscribing", failure))
        return result

    def _confirmed(
        self, outcome: Failure | None, channel: str, pattern: bool, topic: _Topic
    ) -> None:
        is_confirmed = topic.is_ready = not isinstance(outcome, Failure)
        if not is_confirmed and self._topics.get((channel, pattern)) is topic:
            del self._topics[channel, pattern]
        # Whoever is told may unsubscribe: those who still wait must be seen as waiting meanwhile.
        while topic.waiting:
            listener = next(iter(topic.waiting))
            results = topic.waiting.pop(listener)
            if is_confirmed:
                topic.listeners[listener] = None
            for result in results:
                result.callback(outcome)  # a Failure makes it an errback

    def unsubscribe(self, listener: Listener, channel: str, *, pattern: bool) -> None:
        """The listener gets no events of the channel from now on; fine if it never did."""
        topic = self._topics.get((channel, pattern))
        if topic is None:
            return
        topic.listeners.pop(listener, None)
        for result in topic.waiting.pop(listener, ()):
            result.callback(None)  # subscribed and, right after, unsubscribed
        if not topic.listeners and not topic.waiting:
            del self._topics[channel, pattern]
            self._pubsub.unsubscribe(channel, pattern=pattern)

    def _event(self, channel: str, pattern: str | None, payload: bytes) -> None:
        if pattern is None:
            topic = self._topics.get((channel, False))
        else:
            topic = self._topics.get((pattern, True))
        if topic is None:
            return
        self.events_received += 1
        try:
            decoded = juggler.decode_event_payload(payload)
            juggler.check_json(decoded.args, self._json_limits)
        except RemoteProtocolError as error:
            self.payloads_failed += 1
            self._log.warn(
                "An event on {channel} was dropped: {error}", channel=channel, error=error
            )
            return
        event = Event(channel, pattern, decoded.msg_uuid, bytes(decoded.args))
        listeners = tuple(topic.listeners)
        self.events_delivered += len(listeners)
        if self.fan_out is not None:
            self.fan_out.observe(len(listeners))
        for listener in listeners:
            listener.event(event)
