"""The caller's side: CALL functions, PUBlish and SUBscribe over one WebSocket.

    async with Client("ws://127.0.0.1:8080/ws", reactor=reactor) as client:
        print(await client.call("test.echo", "hi"))
        await client.subscribe("chat", lambda event: print(event.args))
        await client.publish("chat", {"text": "hi"})

A `Client` keeps one connection. When it is lost, it is made again for ever, with exponential
backoff and full jitter, and every subscription is made again. What is asked for meanwhile waits for
the connection, as long as its own timeout lets it.

What became of a call: its result; `CallFailed`, the function failed; `RequestRefused`, it was not
accepted; `CallExpired`, no result in time (the server says nothing then); `Disconnected`, the
connection was lost after it was sent: it may or may not have run. Calls are never sent twice.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, Self

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import (
    CallExpired,
    CallFailed,
    Disconnected,
    LocalProtocolError,
    PelotonError,
    QueueFull,
    RemoteProtocolError,
    RequestRefused,
)
from pelotontx.net.redial import Connection, Redial, State
from pelotontx.net.websocket import client as websocket_client
from pelotontx.net.wheel import Timer, Wheel
from pelotontx.wire import juggler

__all__ = ["Client", "Event", "Handler", "State", "Subscription"]

# Events that wait for a handler which is still busy with an earlier one.
_EVENTS_WAITING_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """One published event.

    Attributes:
        channel: where it was published.
        args: decoded JSON.
        pattern: the glob that matched, for a pattern subscription.
        uuid: the id of the PUB.
    """

    channel: str
    args: Any
    pattern: str | None
    uuid: str


Handler = Callable[[Event], object]


class Subscription:
    """A handler on a channel or a pattern; made by `Client.subscribe`.

    A handler may be a plain function, a coroutine function or return a Deferred. It gets one event
    after the other: while it is busy up to 1000 events wait, and further ones are dropped, newest
    first, counted and logged.

    Attributes:
        channel: the channel, or the glob.
        pattern: whether it is a glob.
        dropped: how many events were dropped.
    """

    _log = Logger()

    def __init__(self, channel: str, handler: Handler, *, pattern: bool) -> None:
        self.channel = channel
        self.pattern = pattern
        self.dropped = 0
        self.established = False
        self._handler = handler
        self._waiting: deque[Event] = deque()
        self._busy: Deferred[Any] | None = None

    @property
    def key(self) -> tuple[str, bool]:
        """What the server knows it by."""
        return self.channel, self.pattern

    def deliver(self, event: Event) -> None:
        """Runs the handler, now or when it is free again."""
        if self._busy is None:
            self._run(event)
        elif len(self._waiting) < _EVENTS_WAITING_LIMIT:
            self._waiting.append(event)
        else:
            self.dropped += 1
            if self.dropped == 1:
                self._log.warn("The handler of {channel} is too slow", channel=self.channel)

    def stop(self) -> None:
        """Forgets waiting events and cancels a handler that is running."""
        self._waiting.clear()
        if self._busy is not None:
            self._busy.cancel()

    def _run(self, event: Event) -> None:
        try:
            result = self._handler(event)
        except Exception:  # the user's code
            self._log.failure("The handler of {channel} failed", channel=self.channel)
            return
        if isinstance(result, Deferred) or isawaitable(result):
            self._busy = _as_deferred(result)
            self._busy.addErrback(self._failed)
            self._busy.addCallback(self._free)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("The handler of {channel} failed", failure, channel=self.channel)

    def _free(self, _: object) -> None:
        self._busy = None
        while self._waiting and self._busy is None:
            self._run(self._waiting.popleft())


def _as_deferred(result: Any) -> Deferred[Any]:
    if isinstance(result, Deferred):
        return result
    return Deferred.fromCoroutine(_awaited(result))


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


@dataclass(slots=True)
class _Request:
    """Something that the server has to answer; `kept`: sent again after a lost connection."""

    kind: int
    uuid: str
    name: str
    args: bytes
    pattern: bool
    kept: bool
    expires_at: float
    deferred: Deferred[Any]
    timer: Timer | None = None
    sent: bool = False

    def frame(self, now: float) -> bytes:
        if self.kind == juggler.CALL:
            # The callee gets what is left; below 1 ms would mean the server's default.
            left_s = max(self.expires_at - now, 0.001)
            return juggler.encode_call(self.uuid, self.name, self.args, left_s)
        if self.kind == juggler.PUB:
            return juggler.encode_pub(self.uuid, self.name, self.args)
        encode = juggler.encode_sub if self.kind == juggler.SUB else juggler.encode_unsb
        return encode(self.uuid, self.name, pattern=self.pattern)

    def finish(self, result: object) -> None:
        """Ends it with a result, or with an exception."""
        if self.timer is not None:
            self.timer.cancel()
        if self.deferred.called:
            return  # cancelled meanwhile
        if isinstance(result, Exception):
            self.deferred.errback(result)
        else:
            self.deferred.callback(result)


class Client:
    """A connection to a pelotontx (or juggler) server that mends itself.

    Every Deferred of its methods may be cancelled: the request is then forgotten, and its answer is
    dropped. `async with` connects (see `connect`) and closes.

    Args:
        url: of the server's WebSocket, ``ws://`` or ``wss://``.
        reactor: for connections and time.
        headers: more request headers of the opening handshake.
        timeout_s: of calls and other requests that name none.
        backoff_s: the first pause before connecting again is a random time up to this; it doubles.
        backoff_limit_s: the longest pause.
        pending_limit: how many requests may wait for the connection or their answer; a further one
            errbacks with `QueueFull`.
        on_state: called with the new `State` and, for WAITING, and for CLOSED when not asked for,
            the `Disconnected` that led there, else None.
        on_message: gets each text frame from the server as bytes, before it is looked at.
        tls: instead of the platform's trust roots (`twisted.internet.ssl.optionsForClientTLS`).
        options: bounds of the connection.
        connector: `websocket_client.connect`, or what behaves like it.
        jitter: gives random numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        url: str,
        *,
        reactor: Any,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        backoff_s: float = 0.5,
        backoff_limit_s: float = 30.0,
        pending_limit: int = 1000,
        on_state: Callable[[State, Disconnected | None], object] | None = None,
        on_message: Callable[[bytes], object] | None = None,
        tls: IOpenSSLClientConnectionCreator | None = None,
        options: websocket_client.Options | None = None,
        connector: Callable[..., Deferred[Any]] = websocket_client.connect,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        websocket_client.check_request(url, headers or {})
        self.url = url
        self._reactor = reactor
        self._headers = headers
        self._timeout_s = timeout_s
        self._pending_limit = pending_limit
        self._on_state = on_state
        self._on_message = on_message
        self._tls = tls
        self._options = options
        self._connector = connector
        self._wheel = Wheel(reactor)
        self._redial = Redial(
            self._dial,
            self,
            reactor=reactor,
            wheel=self._wheel,
            backoff_s=backoff_s,
            backoff_limit_s=backoff_limit_s,
            jitter=jitter,
        )
        self._ids = juggler.MessageIds(os.urandom(16))
        self._pending: dict[str, _Request] = {}
        self._subscriptions: dict[tuple[str, bool], list[Subscription]] = {}

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._redial.state

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def connect(self, *, retry: bool = True) -> Deferred[None]:
        """Connects, and from then on connects again whenever the connection is lost.

        Args:
            retry: whether the first connection, too, is tried until it succeeds; otherwise its
                failure closes the client.

        Returns:
            a Deferred that fires when the connection is open; `Disconnected` when the client was
            closed before. Cancelling only ends the wait: `close` ends the connecting.
        """
        return self._redial.connect(retry=retry)

    def close(self, *, abort: bool = False) -> Deferred[None]:
        """Ends every request with `Disconnected`, and the connection with code 1000.

        Args:
            abort: drop TCP instead of a closing handshake.

        Returns:
            a Deferred that fires, after 4 s at the latest, when nothing of this client is left in
            the reactor. Closing again is harmless.
        """
        return Deferred.fromCoroutine(self._redial.close(abort=abort))

    def _dial(self, on_close: Callable[[Disconnected], None]) -> Deferred[Any]:
        return self._connector(
            self._reactor,
            self.url,
            wheel=self._wheel,
            on_message=self._received,
            on_close=on_close,
            subprotocols=[juggler.SUBPROTOCOL],
            headers=self._headers,
            tls=self._tls,
            options=self._options,
        )

    def state_changed(self, state: State, cause: Disconnected | None) -> None:
        """For the `Redial`."""
        if self._on_state is not None:
            try:
                self._on_state(state, cause)
            except Exception:  # the user's code
                self._log.failure("on_state failed")

    def connection_opened(self, connection: Connection) -> None:
        """For the `Redial`: subscribes again, and sends what waited."""
        for key in list(self._subscriptions):
            if any(subscription.established for subscription in self._subscriptions[key]):
                self._subscribe_again(key, 0)
        for request in list(self._pending.values()):
            if not request.sent:
                self._send_request(request)

    def connection_lost(self, error: Disconnected) -> None:
        """For the `Redial`: ends what was in flight and must not be sent twice."""
        requests = [request for request in self._pending.values() if request.sent]
        for request in requests:
            if request.kept:
                request.sent = False
            else:
                del self._pending[request.uuid]
        for request in requests:
            if not request.kept:
                request.finish(error)

    def connection_closed(self, error: Disconnected) -> None:
        """For the `Redial`: ends everything."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.stop()
        self._subscriptions.clear()
        requests = list(self._pending.values())
        self._pending.clear()
        for request in requests:
            request.finish(error)

    # Requests.

    def call(self, uri: str, args: Any = None, *, timeout_s: float | None = None) -> Deferred[Any]:
        """Calls a function.

        Args:
            uri: the function's name.
            args: anything that JSON can carry; also dataclasses and msgspec Structs.
            timeout_s: for the whole, with the wait for a connection; at least 1 ms.

        Returns:
            a Deferred of the decoded result. It errbacks with `CallFailed`, `CallExpired`,
            `RequestRefused` or `Disconnected` (what they mean is told at the top of this module),
            and with `QueueFull`, `SlowConsumer` or `LocalProtocolError` when nothing was sent.
        """
        return self._encoded(juggler.CALL, uri, args, timeout_s)

    def publish(
        self, channel: str, args: Any = None, *, timeout_s: float | None = None
    ) -> Deferred[None]:
        """Publishes an event; fires when the broker took it, which says nothing of receivers.

        Errbacks as `call` does; `CallExpired` when no answer came in time.
        """
        return self._encoded(juggler.PUB, channel, args, timeout_s)

    def subscribe(
        self,
        channel: str,
        handler: Handler,
        *,
        pattern: bool = False,
        timeout_s: float | None = None,
    ) -> Deferred[Subscription]:
        """Subscribes to a channel, or to all that match a Redis glob.

        Several handlers may subscribe to one channel. Events published while the connection is down
        are missed.

        Returns:
            a Deferred of the subscription, once the server has confirmed it; an event may come
            before. Errbacks as `publish`, without `Disconnected` for a lost connection: it is asked
            for again.
        """
        objection = self._objection(channel, timeout_s)
        if objection is not None:
            return fail(objection)
        subscription = Subscription(channel, handler, pattern=pattern)
        self._subscriptions.setdefault(subscription.key, []).append(subscription)

        def confirmed(_: object) -> Subscription:
            subscription.established = True
            return subscription

        def refused(failure: Failure) -> Failure:
            if self._remove(subscription) and not isinstance(failure.value, RequestRefused):
                # Cancelled, or too late: the server may have subscribed us.
                self._send_unsubscription(subscription).addErrback(_ignored)
            return failure

        asked = self._request(juggler.SUB, channel, b"", timeout_s, pattern=pattern, kept=True)
        return asked.addCallbacks(confirmed, refused)

    def unsubscribe(self, subscription: Subscription) -> Deferred[None]:
        """Ends a subscription: its handler gets nothing more from now on.

        Returns:
            a Deferred that fires when the server has confirmed it, or the connection is gone.
            Unsubscribing twice is harmless.
        """
        if self._remove(subscription):
            return self._send_unsubscription(subscription)
        return succeed(None)

    def send(self, frame: bytes) -> None:
        """Sends a frame of your own; what the server answers is seen by `on_message` only.

        Raises:
            Disconnected: there is no connection at the moment.
            SlowConsumer: the server does not read.
        """
        if self._redial.connection is None:
            raise Disconnected("not connected")
        self._redial.connection.send(frame)

    def _encoded(self, kind: int, name: str, args: Any, timeout_s: float | None) -> Deferred[Any]:
        try:
            encoded = msgspec.json.encode(args)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            return fail(LocalProtocolError(f"args cannot be sent as JSON: {error}"))
        objection = self._objection(name, timeout_s)
        if objection is not None:
            return fail(objection)
        return self._request(kind, name, encoded, timeout_s)

    def _request(
        self,
        kind: int,
        name: str,
        args: bytes,
        timeout_s: float | None,
        *,
        pattern: bool = False,
        kept: bool = False,
    ) -> Deferred[Any]:
        if timeout_s is None:
            timeout_s = self._timeout_s
        uuid = self._ids.next()
        deferred: Deferred[Any] = Deferred(lambda _: self._forget(uuid))
        expires_at = self._reactor.seconds() + timeout_s
        request = _Request(kind, uuid, name, args, pattern, kept, expires_at, deferred)
        request.timer = self._wheel.call_later(timeout_s, self._expire, uuid)
        self._pending[uuid] = request
        self._send_request(request)
        return deferred

    def _objection(self, name: str, timeout_s: float | None) -> PelotonError | None:
        if self.state is State.CLOSED:
            return Disconnected("the client is closed")
        if self.state is State.NEW:
            return LocalProtocolError("connect first")
        if not name:
            return LocalProtocolError("an empty name")
        if timeout_s is not None and not timeout_s >= 0.001:
            return LocalProtocolError("a timeout below 1 ms")
        if len(self._pending) >= self._pending_limit:
            return QueueFull(name)
        return None

    def _send_request(self, request: _Request) -> None:
        if self._redial.connection is None:
            return
        try:
            self._redial.connection.send(request.frame(self._reactor.seconds()))
        except Disconnected:
            return  # closing; it is sent on the next connection
        except PelotonError as error:
            self._settle(request.uuid, error)
        else:
            request.sent = True

    def _forget(self, uuid: str) -> None:
        request = self._pending.pop(uuid, None)
        if request is not None and request.timer is not None:
            request.timer.cancel()

    def _expire(self, uuid: str) -> None:
        self._settle(uuid, CallExpired(self._pending[uuid].name))

    def _settle(self, uuid: str, result: object) -> None:
        request = self._pending.pop(uuid, None)
        if request is not None:
            request.finish(result)

    # Subscriptions.

    def _remove(self, subscription: Subscription) -> bool:
        """True when it was there and the server may now forget the channel."""
        subscriptions = self._subscriptions.get(subscription.key, [])
        if subscription not in subscriptions:
            return False
        subscription.stop()
        subscriptions.remove(subscription)
        if subscriptions:
            return False
        del self._subscriptions[subscription.key]
        return self._redial.connection is not None

    def _send_unsubscription(self, subscription: Subscription) -> Deferred[None]:
        channel, pattern = subscription.key
        asked = self._request(juggler.UNSB, channel, b"", None, pattern=pattern)
        asked.addErrback(_unless_disconnected)
        return asked

    def _subscribe_again(self, key: tuple[str, bool], attempts: int) -> None:
        if self._redial.connection is None or key not in self._subscriptions:
            return
        asked = self._request(juggler.SUB, key[0], b"", None, pattern=key[1])
        asked.addErrback(self._not_again, key, attempts, self._redial.connection)

    def _not_again(
        self, failure: Failure, key: tuple[str, bool], attempts: int, connection: Connection
    ) -> None:
        if self.state is State.CLOSED or self._redial.connection is not connection:
            return
        # The server is back before its broker, say: silence would look like no events.
        self._log.warn(
            "Subscribing to {channel} again failed: {reason}",
            channel=key[0],
            reason=failure.getErrorMessage(),
        )
        self._wheel.call_later(
            self._redial.pause_s(attempts), self._subscribe_again, key, attempts + 1
        )

    # What the server says.

    def _received(self, frame: bytes) -> None:
        if self._on_message is not None:
            try:
                self._on_message(frame)
            except Exception:  # the user's code
                self._log.failure("on_message failed")
        try:
            message = juggler.decode_response(frame)
        except RemoteProtocolError as error:
            self._log.warn("The server broke the protocol: {reason}", reason=error.reason)
            if self._redial.connection is not None:
                self._redial.connection.close(error.close_code, error.reason)
            return
        self._dispatch(message.meta.type, message.payload)

    def _dispatch(self, kind: int, payload: juggler.Payload) -> None:
        if kind == juggler.EVNT:
            self._event(payload)
            return
        request = self._pending.get(payload.for_)
        if request is None:
            return  # late: it expired or was cancelled
        if kind == juggler.NACK:
            self._settle(request.uuid, RequestRefused(payload.code, payload.message))
        elif kind == juggler.ACK and request.kind != juggler.CALL:
            self._settle(request.uuid, None)
        elif kind == juggler.RES and request.kind == juggler.CALL:
            self._settle(request.uuid, _result(_decoded(payload.args)))

    def _event(self, payload: juggler.Payload) -> None:
        pattern = payload.pattern if isinstance(payload.pattern, str) and payload.pattern else None
        key = (payload.channel, False) if pattern is None else (pattern, True)
        subscriptions = self._subscriptions.get(key)
        if subscriptions is None:
            return
        event = Event(payload.channel, _decoded(payload.args), pattern, payload.for_)
        for subscription in tuple(subscriptions):
            subscription.deliver(event)


def _unless_disconnected(failure: Failure) -> None:
    if not isinstance(failure.value, Disconnected):
        failure.raiseException()


def _ignored(_: Failure) -> None:
    """For a request whose outcome changes nothing."""


def _decoded(args: msgspec.Raw) -> Any:
    return msgspec.json.decode(args) if args else None


def _result(value: Any) -> Any:
    """A callee's failure as an exception; anything else as it is."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("error"), dict):
        return CallFailed(value["error"])
    return value
