"""RPC and pub/sub for one WebSocket peer: the juggler.0 endpoint.

A session reads requests, asks the hub, and answers in this order: ACK (or NACK) before anything
that follows from the request. What a session may do is bounded by `JugglerLimits`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.hub import Event, Hub, PendingCall
from pelotontx.errors import (
    BrokerError,
    PelotonError,
    QueueFull,
    RemoteProtocolError,
    RequestRefused,
)
from pelotontx.net.http import Upgrade
from pelotontx.net.websocket import (
    GOING_AWAY,
    TOO_MANY_MESSAGES,
    UNSUPPORTED_DATA,
    Connection,
    Handshake,
    Refused,
    ServerFactory,
    encode_frame,
)
from pelotontx.web.app import App, Request, Response, text
from pelotontx.wire import juggler

ALLOWED_HEADER: Final = "juggler-allowed-messages"
_ALL_MESSAGES: Final = frozenset((juggler.CALL, juggler.PUB, juggler.SUB, juggler.UNSB))


@dataclass(frozen=True, slots=True, kw_only=True)
class JugglerLimits:
    """What one session may do.

    Attributes:
        call_timeout_s: of a CALL that asks for none.
        call_timeout_limit_s: the most that a CALL gets.
        calls_limit: calls in flight; past it NACK 429.
        subscriptions_limit: past it NACK 429.
        channel_limit_bytes: of a channel's or URI's name; past it NACK 400.
        patterns: whether pattern subscriptions are allowed (one costs work for each event of the
            whole broker); otherwise NACK 403.
        message_rate: messages a second on average, 0 = any number; past it NACK 429.
        message_burst: messages at once; as many again past the rate close the connection.
        result_limit_bytes: a larger result becomes an error.
        close_uri: a CALL of this URI closes the connection; empty = none.
        slow_message_s: a message whose handling took longer is counted and logged: it held up
            everybody else.
    """

    call_timeout_s: float = 60.0
    call_timeout_limit_s: float = 300.0
    calls_limit: int = 64
    subscriptions_limit: int = 128
    channel_limit_bytes: int = 255
    patterns: bool = False
    message_rate: float = 50.0
    message_burst: int = 100
    result_limit_bytes: int = 1024 * 1024
    close_uri: str = ""
    slow_message_s: float = 0.1


def nack_of(error: BaseException) -> tuple[int, str]:
    """The one place that maps errors to a NACK's code and message."""
    if isinstance(error, RequestRefused):
        return error.code, error.message
    if isinstance(error, QueueFull):
        return 500, str(error)
    if isinstance(error, BrokerError):
        return 500, "the broker is unavailable"  # why is for our log: it may name hosts and keys
    return 500, "internal error"


def allowed_messages(header: str | None) -> frozenset[int]:
    """Reads a Juggler-Allowed-Messages header: a comma list of call, pub, sub and unsb, any case.

    ``*``, nothing, or nothing valid allows all.
    """
    by_name = {juggler.NAMES[type_].lower(): type_ for type_ in _ALL_MESSAGES}
    names = {name.strip().lower() for name in (header or "").split(",")}
    allowed = frozenset(by_name[name] for name in names & by_name.keys())
    return _ALL_MESSAGES if "*" in names or not allowed else allowed


class TokenBucket:
    """Lets `rate` a second pass on average and `burst` at once."""

    __slots__ = ("_burst", "_clock", "_filled_at_s", "_rate", "_tokens")

    def __init__(self, clock: IReactorTime, rate: float, burst: int) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at_s = clock.seconds()

    def take(self) -> float:
        """Takes one token; the result is what is left, negative when there was none."""
        now_s = self._clock.seconds()
        tokens = self._tokens + (now_s - self._filled_at_s) * self._rate
        self._filled_at_s = now_s
        self._tokens = tokens = min(tokens, self._burst) - 1
        return tokens


class JugglerSession:
    """One peer: a `pelotontx.net.websocket.Conversation`."""

    def __init__(
        self, endpoint: JugglerEndpoint, connection: Connection, allowed: frozenset[int]
    ) -> None:
        limits = endpoint.limits
        self._endpoint = endpoint
        self._connection = connection
        self._allowed = allowed
        self._calls: dict[PendingCall, None] = {}
        self._publishing: dict[str, list[juggler.Message]] = {}
        self._topics: dict[tuple[str, bool], None] = {}
        self._bucket: TokenBucket | None = None
        if limits.message_rate:
            self._bucket = TokenBucket(endpoint.clock, limits.message_rate, limits.message_burst)
        self._is_closed = False

    # What the connection tells

    def text_received(self, payload: bytes) -> None:
        """One frame of the peer."""
        endpoint = self._endpoint
        began_s = endpoint.clock.seconds()
        self._handle(payload)
        if endpoint.clock.seconds() - began_s > endpoint.limits.slow_message_s:
            endpoint.slow_messages += 1
            endpoint.log_slow_message(self._connection.peer, endpoint.clock.seconds() - began_s)

    def _handle(self, payload: bytes) -> None:
        try:
            request = juggler.decode_request(payload)
        except RemoteProtocolError as error:
            self._connection.close(error.close_code, error.reason)
            return
        type_ = request.meta.type
        self._endpoint.messages_read[type_] += 1
        refusal = self._refusal(request)
        if refusal is not None:
            if refusal.code != 403:
                self._endpoint.limits_exceeded += 1
            self._nack(request, refusal)
        elif type_ == juggler.CALL:
            self._call(request)
        elif type_ == juggler.PUB:
            self._publish(request)
        elif type_ == juggler.SUB:
            self._subscribe(request)
        else:
            self._unsubscribe(request)

    def binary_received(self, payload: bytes) -> None:
        """Juggler is JSON text."""
        self._connection.close(UNSUPPORTED_DATA, "juggler.0 has text messages only")

    def connection_lost(self, code: int) -> None:
        """Nothing of the session stays behind."""
        self._is_closed = True
        hub = self._endpoint.hub
        for call in self._calls:
            hub.forget(call)
        self._calls.clear()
        for channel, pattern in self._topics:
            hub.unsubscribe(self, channel, pattern=pattern)
        self._topics.clear()
        self._endpoint.session_ended(self)

    def _refusal(self, request: juggler.Message) -> RequestRefused | None:
        limits = self._endpoint.limits
        if self._bucket is not None and (left := self._bucket.take()) < 0:
            if left < -limits.message_burst:
                self._connection.close(TOO_MANY_MESSAGES, "too many messages")
            return RequestRefused(429, "too many messages")
        payload, type_ = request.payload, request.meta.type
        if type_ not in self._allowed:
            return RequestRefused(403, f"{juggler.NAMES[type_]} is not allowed here")
        if len((payload.uri or payload.channel).encode()) > limits.channel_limit_bytes:
            return RequestRefused(400, f"a name of over {limits.channel_limit_bytes} bytes")
        if type_ == juggler.CALL:
            if len(self._calls) >= limits.calls_limit:
                return RequestRefused(429, f"{limits.calls_limit} calls are in flight")
        elif type_ == juggler.SUB:
            if payload.pattern and not limits.patterns:
                return RequestRefused(403, "pattern subscriptions are not allowed here")
            is_new = (payload.channel, payload.pattern) not in self._topics
            if is_new and len(self._topics) >= limits.subscriptions_limit:
                return RequestRefused(429, f"{limits.subscriptions_limit} subscriptions are held")
        return None

    # Calls

    def _call(self, request: juggler.Message) -> None:
        endpoint = self._endpoint
        limits = endpoint.limits
        if limits.close_uri and request.payload.uri == limits.close_uri:
            self._connection.close(1000, "bye")
            return
        if endpoint.is_draining:
            self._nack(request, RequestRefused(503, "the server is stopping"))
            return
        timeout_s = juggler.timeout_s(
            request, default_s=limits.call_timeout_s, limit_s=limits.call_timeout_limit_s
        )
        call = endpoint.hub.call(
            self,
            request,
            uri=request.payload.uri,
            args=bytes(request.payload.args),
            timeout_s=timeout_s,
        )
        if call.is_pending:
            self._calls[call] = None

    def call_stored(self, call: PendingCall) -> None:
        """See `pelotontx.broker.hub.CallOwner`."""
        self._ack(call.request)

    def call_refused(self, call: PendingCall, error: BrokerError) -> None:
        """See `pelotontx.broker.hub.CallOwner`."""
        self._nack(call.request, error)
        self._call_ended(call)

    def call_answered(self, call: PendingCall, args: bytes) -> None:
        """See `pelotontx.broker.hub.CallOwner`."""
        endpoint = self._endpoint
        if len(args) > endpoint.limits.result_limit_bytes:
            endpoint.limits_exceeded += 1
            args = juggler.encode_error(
                f"the result has over {endpoint.limits.result_limit_bytes} bytes"
            )
        request: juggler.Message = call.request
        self._send(
            juggler.RES,
            juggler.encode_res(endpoint.next_id(), request.meta.uuid, request.payload.uri, args),
        )
        self._call_ended(call)

    def call_expired(self, call: PendingCall) -> None:
        """The client notices by itself; nothing is sent."""
        self._endpoint.calls_expired += 1
        self._call_ended(call)

    def _call_ended(self, call: PendingCall) -> None:
        self._calls.pop(call, None)
        if self._endpoint.is_draining:
            self.close_when_idle()

    # Events

    def _publish(self, request: juggler.Message) -> None:
        uuid = request.meta.uuid
        self._publishing.setdefault(uuid, []).append(request)
        done = self._endpoint.hub.publish(
            request.payload.channel, uuid, bytes(request.payload.args)
        )
        done.addCallbacks(
            self._published, self._not_published, callbackArgs=(uuid,), errbackArgs=(uuid,)
        )

    def _published(self, result: None, uuid: str) -> None:
        request = self._take_publishing(uuid)
        if request is not None:
            self._ack(request)

    def _not_published(self, failure: Failure, uuid: str) -> None:
        request = self._take_publishing(uuid)
        if request is not None:
            self._nack(request, failure)

    def _take_publishing(self, uuid: str) -> juggler.Message | None:
        """The oldest PUB of this id that has no answer yet."""
        requests = self._publishing.get(uuid)
        if not requests:
            return None
        if len(requests) == 1:
            del self._publishing[uuid]
        return requests.pop(0)

    def _subscribe(self, request: juggler.Message) -> None:
        topic = (request.payload.channel, bool(request.payload.pattern))
        self._topics[topic] = None
        done = self._endpoint.hub.subscribe(self, topic[0], pattern=topic[1])
        done.addCallbacks(
            lambda _: self._ack(request), self._not_subscribed, errbackArgs=(request, topic)
        )

    def _not_subscribed(
        self, failure: Failure, request: juggler.Message, topic: tuple[str, bool]
    ) -> None:
        self._topics.pop(topic, None)
        self._nack(request, failure)

    def _unsubscribe(self, request: juggler.Message) -> None:
        channel, pattern = request.payload.channel, bool(request.payload.pattern)
        if self._topics.pop((channel, pattern), 0) is None:
            self._endpoint.hub.unsubscribe(self, channel, pattern=pattern)
        self._ack(request)

    def event(self, event: Event) -> None:
        """See `pelotontx.broker.hub.Listener`."""
        # An event that is back before the broker's word: it proves that the broker took it.
        if event.msg_uuid in self._publishing:
            self._published(None, event.msg_uuid)
        frame = event.encodings.get(juggler.SUBPROTOCOL)
        if frame is None:
            frame = event.encodings[juggler.SUBPROTOCOL] = encode_frame(
                juggler.encode_evnt(
                    self._endpoint.next_id(),
                    event.msg_uuid,
                    event.channel,
                    event.args,
                    event.pattern,
                )
            )
        self._endpoint.messages_written[juggler.EVNT] += 1
        self._connection.send_frame(frame)

    # Answers

    def close_when_idle(self) -> None:
        """Says goodbye as soon as no call is in flight."""
        if not self._calls:
            self._connection.close(GOING_AWAY, "the server is stopping")

    def _ack(self, request: juggler.Message) -> None:
        self._send(juggler.ACK, juggler.encode_ack(self._endpoint.next_id(), request))

    def _nack(self, request: juggler.Message, error: BaseException | Failure) -> None:
        if isinstance(error, Failure):
            if error.check(PelotonError) is None:
                self._endpoint.log_failure(error)
            error = error.value or PelotonError()
        code, text = nack_of(error)
        self._send(juggler.NACK, juggler.encode_nack(self._endpoint.next_id(), request, code, text))

    def _send(self, type_: int, message: bytes) -> None:
        if not self._is_closed:
            self._endpoint.messages_written[type_] += 1
            self._connection.send_text(message)


class JugglerEndpoint:
    """Opens sessions, and counts what they do.

    Args:
        hub: where calls and events go.
        clock: for rates.
        limits: of each session.
        allow_empty_subprotocol: whether a client that offers no subprotocol at all is taken for one
            that speaks juggler.0.

    Attributes:
        sessions: those that are open.
        is_draining: no more calls are taken, those in flight are waited for.
        messages_read, messages_written: by type.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        hub: Hub,
        clock: IReactorTime,
        limits: JugglerLimits | None = None,
        allow_empty_subprotocol: bool = False,
    ) -> None:
        self.hub = hub
        self.clock = clock
        self.limits = limits or JugglerLimits()
        self.next_id = juggler.MessageIds(os.urandom(16)).next
        self.sessions: dict[JugglerSession, None] = {}
        self.is_draining = False
        self.messages_read: Counter[int] = Counter()
        self.messages_written: Counter[int] = Counter()
        self.sessions_total = 0
        self.calls_expired = 0
        self.limits_exceeded = 0
        self.slow_messages = 0
        self._allow_empty_subprotocol = allow_empty_subprotocol
        self._all_ended: Deferred[None] | None = None

    def accept(
        self, handshake: Handshake
    ) -> tuple[str | None, Callable[[Connection], JugglerSession]]:
        """Decides about an opening request: a `pelotontx.net.websocket.Accept`."""
        subprotocol = None
        if juggler.SUBPROTOCOL in handshake.subprotocols:
            subprotocol = juggler.SUBPROTOCOL
        elif handshake.subprotocols or not self._allow_empty_subprotocol:
            raise Refused(400, f"The subprotocol {juggler.SUBPROTOCOL} is needed")
        if self.is_draining:
            raise Refused(503, "The server is stopping")
        allowed = self._allowed(handshake.headers)

        def open_session(connection: Connection) -> JugglerSession:
            session = JugglerSession(self, connection, allowed)
            self.sessions[session] = None
            self.sessions_total += 1
            return session

        return subprotocol, open_session

    def _allowed(self, headers: Mapping[str, str]) -> frozenset[int]:
        return allowed_messages(headers.get(ALLOWED_HEADER))

    def session_ended(self, session: JugglerSession) -> None:
        """Told by the session."""
        self.sessions.pop(session, None)
        if self._all_ended is not None and not self.sessions:
            ended, self._all_ended = self._all_ended, None
            ended.callback(None)

    async def drain(self, timeout_s: float) -> None:
        """Takes no more calls; each session is closed with 1001 when its last call has ended.

        A call that has not ended within `timeout_s` is answered with an error. Ends when the last
        session is gone; the WebSocket's close timeout sees to that.
        """
        self.is_draining = True
        for session in tuple(self.sessions):
            session.close_when_idle()
        drained = self.hub.drained().addTimeout(timeout_s, self.clock)
        await drained.addErrback(lambda _: self.hub.give_up("the server is stopping"))
        if self.sessions:
            self._all_ended = Deferred()
            await self._all_ended

    def log_slow_message(self, peer: str, took_s: float) -> None:
        """Logs that handling a message took long."""
        self._log.warn("{peer}: a message took {ms:.0f} ms", peer=peer, ms=took_s * 1000)

    def log_failure(self, failure: Failure) -> None:
        """Logs an error that is ours."""
        self._log.failure("A request failed", failure)


def routes(path: str, factory: ServerFactory) -> App:
    """``GET path``: the WebSocket; a plain request is told what it found."""
    app = App()

    @app.get(f"^{re.escape(path)}$")
    def open_websocket(request: Request) -> Response | Upgrade:
        if "websocket" not in request.headers.get("upgrade").lower():
            return text("This is a WebSocket endpoint; its subprotocol is juggler.0.\n", 400)
        return Upgrade(factory.buildProtocol(request.peer))

    return app


def client_routes(path: str) -> App:
    """``GET path``: the client for browsers, an ES module."""
    app = App()
    module = files(__package__).joinpath("peloton.js").read_bytes()

    @app.get(f"^{re.escape(path)}$")
    def client(request: Request) -> Response:
        return Response(
            200,
            module,
            {"Cache-Control": "no-cache"},
            content_type="text/javascript; charset=utf-8",
        )

    return app
