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
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.hub import Event
from pelotontx.errors import LocalProtocolError, RequestRefused
from pelotontx.gateway.juggler.gateway import Gateway, Message, Middleware, Next, Session, run_hook
from pelotontx.gateway.juggler.session import EndpointState, JugglerSession
from pelotontx.net.websocket import INTERNAL_ERROR, Connection
from pelotontx.wire import juggler

_TOO_LONG: Final = RequestRefused(500, "it took too long")


class Lane:
    """Lets one message after the other through; those behind wait, at most `limit` of them.

    Args:
        through: what a message goes through; does not fail.
        endpoint: its clock and limits.
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
        self._waiting: list[Message] = []
        self._running: Deferred[None] | None = None
        self.is_busy = False

    def put(self, message: Message) -> bool:
        """Lets it through when those before it are; False when there is no room to wait."""
        if not self.is_busy:
            self._run(message)
        elif len(self._waiting) < self._endpoint.limits.waiting_limit:
            self._waiting.append(message)
        else:
            return False
        return True

    def stop(self) -> None:
        """Forgets what waits, and cancels what is on its way."""
        self._waiting.clear()
        if self._running is not None:
            self._running.cancel()

    def _run(self, message: Message) -> None:
        self.is_busy = True
        while True:
            task = Deferred.fromCoroutine(self._through(message))
            if not task.called:
                self._running = task
                clock, timeout_s = self._endpoint.clock, self._endpoint.limits.hook_timeout_s
                task.addBoth(self._resume, clock.callLater(timeout_s, task.cancel))
                return
            if not self._waiting:
                break
            message = self._waiting.pop(0)
        self.is_busy = False
        self._on_idle()

    def _resume(self, _: object, deadline: IDelayedCall) -> None:
        self._running = None
        if deadline.active():
            deadline.cancel()
        if self._waiting:
            self._run(self._waiting.pop(0))
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
        if not self._inbound.put(Message(request, "in", began_s)):
            self._refuse(request, RequestRefused(429, "too many messages wait"))

    async def _pass_in(self, message: Message) -> None:
        try:
            await self._enter(message)
        except Exception as error:  # the application's code
            if not self._is_closed:
                self._failed_in(message, error)

    async def _admit(self, message: Message) -> None:
        """The end of the chain: hooks, and what the server does."""
        if message.is_done:
            raise LocalProtocolError("a message was passed on twice")
        for hook in self._hooks.get(message.type, ()):
            await run_hook(hook, self.session, message)
        message.is_done = True
        if self._is_closed:
            return
        if message.type >= juggler.APPLICATION:
            error = juggler.unexpected_type(message.type)
            self._connection.close(error.close_code, error.reason)
        else:
            self._perform(message.wire, message.came_s)

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
        if event.msg_uuid in self._publishing:
            self._published(None, event.msg_uuid)
        payload = juggler.Payload(
            channel=event.channel,
            pattern=event.pattern or False,
            args=msgspec.Raw(event.args),
            for_=event.msg_uuid,
        )
        self._put_out(juggler.EVNT, payload)

    def _payload_for(self, request: juggler.Message) -> juggler.Payload:
        asked = request.payload
        return juggler.Payload(
            uri=asked.uri,
            channel=asked.channel,
            for_=request.meta.uuid,
            for_type=request.meta.type,
        )

    def _put_out(self, type_: int, payload: juggler.Payload) -> None:
        if self._is_closed:
            return
        meta = juggler.Meta(type=type_, uuid=self._endpoint.next_id())
        if not self._outbound.put(Message(juggler.Message(meta=meta, payload=payload), "out")):
            self._log.warn(
                "{peer}: too many messages wait for middleware", peer=self._connection.peer
            )
            self._connection.close(INTERNAL_ERROR, "too many messages wait")

    async def _pass_out(self, message: Message) -> None:
        try:
            await self._leave(message)
        except Exception as error:  # the application's code
            if not self._is_closed:
                self._failed_out(message, error)

    async def _emit(self, message: Message) -> None:
        if message.is_done:
            raise LocalProtocolError("a message was passed on twice")
        message.is_done = True
        self._send(message.type, juggler.encode_response(message.wire))

    def _failed_out(self, message: Message, error: Exception) -> None:
        if message.is_done or not isinstance(error, RequestRefused):
            self._endpoint.recover(Failure())
        if message.is_done or message.type == juggler.EVNT:
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
