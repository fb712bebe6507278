"""Juggler sessions in which an application has a say, by hooks or by middlewares too.

Hooks alone leave what goes to the client as fast as without: an event is encoded once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from inspect import isawaitable
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.hub import Event
from pelotontx.errors import LocalProtocolError, RequestRefused
from pelotontx.gateway.juggler.gateway import Gateway, Message, Middleware, Next, Session, run_hook
from pelotontx.gateway.juggler.limits import Backlog
from pelotontx.gateway.juggler.session import EndpointState, JugglerSession
from pelotontx.net.websocket import SLOW_CONSUMER, Connection
from pelotontx.net.wheel import Timer
from pelotontx.wire import juggler

_TOO_LONG: Final = RequestRefused(500, "it took too long")


class Lane:
    """Lets one message after the other through; those behind wait in a `Backlog`.

    Args:
        through: what a message goes through; does not fail.
        endpoint: its wheel and limits.
        on_idle: called when nothing is on its way any more.
    """

    __slots__ = ("_endpoint", "_on_idle", "_running", "_through", "_waiting", "is_busy")

    def __init__(
        self,
        through: Callable[[Message], Coroutine[Deferred[Any], Any, None]],
        endpoint: EndpointState,
        on_idle: Callable[[], None],
    ) -> None:
        self._through = through
        self._endpoint = endpoint
        self._on_idle = on_idle
        self._waiting: Backlog[Message] = Backlog(endpoint.limits)
        self._running: Deferred[None] | None = None
        self.is_busy = False

    def put(self, message: Message) -> bool:
        """Lets it through when those before it are; False when there is no room to wait."""
        if self.is_busy:
            return self._waiting.put(message, message.wire.payload)
        self._run(message)
        return True

    def clear(self) -> None:
        """Forgets what waits."""
        self._waiting.clear()

    def stop(self) -> None:
        """Forgets what waits, and cancels what is on its way."""
        self.clear()
        if self._running is not None:
            self._running.cancel()

    def _run(self, message: Message) -> None:
        self.is_busy = True
        while True:
            task = Deferred.fromCoroutine(self._through(message))
            if not task.called:
                self._running = task
                wheel, timeout_s = self._endpoint.wheel, self._endpoint.limits.hook_timeout_s
                task.addBoth(self._resume, wheel.call_later(timeout_s, task.cancel))
                return
            if not self._waiting.items:
                break
            message = self._waiting.take()
        self.is_busy = False
        self._on_idle()

    def _resume(self, _: object, deadline: Timer) -> None:
        self._running = None
        deadline.cancel()
        if self._waiting.items:
            self._run(self._waiting.take())
        else:
            self.is_busy = False
            self._on_idle()


class HookedSession(JugglerSession):
    """A session whose requests an application may refuse.

    Args:
        endpoint: what it shares with others.
        connection: to the peer.
        allowed: the types of messages that the peer may send.
        session: what the application knows it by.
        gateway: the application's.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: EndpointState,
        connection: Connection,
        allowed: frozenset[int],
        *,
        session: Session,
        gateway: Gateway,
    ) -> None:
        super().__init__(endpoint, connection, allowed)
        self.session = session
        self._hooks = gateway.request_hooks
        self._enter = _compose(gateway.middlewares, session, self._admit)
        self._inbound = Lane(self._pass_in, endpoint, self._lane_is_idle)
        session.begin(self)

    # From the client

    def _take(self, request: juggler.Message, began_s: float) -> None:
        if self._endpoint.is_draining:
            self._nack(request, RequestRefused(503, "the server is stopping"))
        elif not self._inbound.put(Message(request, "in", began_s)):
            self._refuse(request, RequestRefused(429, "too many messages wait"))

    async def _pass_in(self, message: Message) -> None:
        try:
            await self._enter(message)
        except Exception as error:  # the application's code
            if not self._is_closed:
                self._failed_in(message, error)

    async def _admit(self, message: Message) -> None:
        """The end of the chain: hooks, and what the server does."""
        _check_is_new(message)
        for hook in self._hooks.get(message.type, ()):
            await run_hook(hook, self.session, message)
            _check_is_new(message)  # it may have been passed on again meanwhile, or refused
        message.is_done = True
        if self._is_closed:
            return
        if message.type >= juggler.APPLICATION:
            error = juggler.unexpected_type(message.type)
            self._connection.close(error.close_code, error.reason)
        else:
            try:
                self._perform(message.wire, message.came_s)
            except Exception:  # an error of ours: nobody in between may hide it
                self._fail()

    def _failed_in(self, message: Message, error: Exception) -> None:
        if isinstance(error, CancelledError):
            self._log.warn("{name}: middleware or hooks took too long", name=message.name)
            error = _TOO_LONG
        elif message.is_done or not isinstance(error, RequestRefused):
            self._endpoint.recover(Failure())
        if not message.is_done:
            message.is_done = True
            self._nack(message.wire, error)

    # See `pelotontx.gateway.juggler.gateway.Talk`

    def close(self, code: int, reason: str) -> None:
        """Closes the connection."""
        self._connection.close(code, reason)

    def acknowledge(self, message: Message) -> None:
        """Sends an ACK."""
        self._ack(message.wire)

    def answer(self, message: Message, args: bytes) -> None:
        """Sends a RES."""
        self._res(message.wire, args)

    # The end

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight that a client is owed an answer for."""
        return super().is_idle and not self._inbound.is_busy

    def _lane_is_idle(self) -> None:
        if self._endpoint.is_draining:
            self.close_when_idle()

    def connection_lost(self, code: int) -> None:
        """Nothing of the session stays behind."""
        super().connection_lost(code)
        self._inbound.stop()


class ChainedSession(HookedSession):
    """A session whose messages of both directions go through middlewares."""

    _takes_applications = True

    def __init__(
        self,
        endpoint: EndpointState,
        connection: Connection,
        allowed: frozenset[int],
        *,
        session: Session,
        gateway: Gateway,
    ) -> None:
        super().__init__(endpoint, connection, allowed, session=session, gateway=gateway)
        self._leave = _compose(gateway.middlewares, session, self._emit)
        self._outbound = Lane(self._pass_out, endpoint, self._lane_is_idle)
        self._has_overflowed = False

    def _ack(self, request: juggler.Message) -> None:
        self._put_out(juggler.ACK, self._payload_for(request))

    def _refused(self, request: juggler.Message, code: int, text: str) -> None:
        payload = self._payload_for(request)
        payload.code = code
        payload.message = text
        self._put_out(juggler.NACK, payload)

    def _res(self, request: juggler.Message, args: bytes) -> None:
        payload = self._payload_for(request)
        payload.args = msgspec.Raw(args)
        self._put_out(juggler.RES, payload)

    def event(self, event: Event) -> None:
        """See `pelotontx.broker.hub.Listener`; here each listener's EVNT is encoded by itself."""
        is_word = event.msg_uuid in self._publishing and self._is_brokers_word(event)
        payload = juggler.Payload(
            channel=event.channel,
            pattern=event.pattern or False,
            args=msgspec.Raw(event.args),
            for_=event.msg_uuid,
        )
        self._put_out(juggler.EVNT, payload)
        if is_word:
            self._go_on()

    def _payload_for(self, request: juggler.Message) -> juggler.Payload:
        asked = request.payload
        return juggler.Payload(
            uri=asked.uri,
            channel=asked.channel,
            for_=request.meta.uuid,
            for_type=request.meta.type,
        )

    def _put_out(self, type_: int, payload: juggler.Payload) -> None:
        if self._is_closed or self._has_overflowed:
            return
        meta = juggler.Meta(type=type_, uuid=self._endpoint.next_id())
        if not self._outbound.put(Message(juggler.Message(meta=meta, payload=payload), "out")):
            self._overflow()

    def _overflow(self) -> None:
        self._has_overflowed = True
        self._outbound.clear()
        self._log.warn("{peer}: too many messages wait for middleware", peer=self._connection.peer)
        self._connection.close(SLOW_CONSUMER, "slow consumer: too many messages wait")

    async def _pass_out(self, message: Message) -> None:
        try:
            await self._leave(message)
        except Exception as error:  # the application's code
            if not self._is_closed:
                self._failed_out(message, error)

    async def _emit(self, message: Message) -> None:
        _check_is_new(message)
        message.is_done = True
        self._send(message.type, juggler.encode_response(message.wire))

    def _failed_out(self, message: Message, error: Exception) -> None:
        if message.is_done or not isinstance(error, RequestRefused):
            self._endpoint.recover(Failure())
        if message.is_done:
            return
        message.is_done = True
        if message.type == juggler.EVNT:
            return
        if message.type == juggler.RES:
            text = error.message if isinstance(error, RequestRefused) else "internal error"
            message.wire.payload.args = msgspec.Raw(juggler.encode_error(text))
        self._send(message.type, juggler.encode_response(message.wire))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight that a client is owed an answer for."""
        return super().is_idle and not self._outbound.is_busy

    def connection_lost(self, code: int) -> None:
        """Nothing of the session stays behind."""
        super().connection_lost(code)
        self._outbound.stop()


def _check_is_new(message: Message) -> None:
    if message.is_done:
        raise LocalProtocolError("a message was passed on twice")


def _compose(middlewares: list[Middleware], session: Session, end: Next) -> Next:
    """One after the other, the first outermost."""
    following = end
    for middleware in reversed(middlewares):
        following = partial(_through, middleware, session, following)
    return following


async def _through(
    middleware: Middleware, session: Session, following: Next, message: Message
) -> None:
    result = middleware(session, message, following)
    if isawaitable(result):
        await result
