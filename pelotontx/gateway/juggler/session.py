"""One juggler peer: reads requests, asks the hub, answers.

ACK (or NACK) goes out before anything that follows from the request. PUBs and SUBs of one session
take effect in the order in which they came, although they go to the broker over two connections: a
PUB waits for the SUBs before it to be confirmed, a SUB for the PUBs before it to be acknowledged.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final, TypeAlias

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.broker.hub import Event, Hub, Observer, PendingCall
from pelotontx.errors import BrokerError, PelotonError, RemoteProtocolError, RequestRefused
from pelotontx.gateway.juggler.limits import Backlog, JugglerLimits, TokenBucket, nack_of
from pelotontx.net.websocket import (
    GOING_AWAY,
    INTERNAL_ERROR,
    TOO_MANY_MESSAGES,
    UNSUPPORTED_DATA,
    Connection,
    encode_frame,
)
from pelotontx.net.wheel import Wheel
from pelotontx.wire import juggler
from pelotontx.wire.glob import GlobTable

_CallOrigin: TypeAlias = tuple[juggler.Message, float, JugglerLimits]
"""The CALL, when it came, and the limits that it counts against: middleware may change its URI."""

_Publication: TypeAlias = tuple[juggler.Message, str]
"""The PUB, and the channel that it went to."""

_APPLICATION: Final = juggler.APPLICATION


class EndpointState:
    """What the sessions of one endpoint share: whom they ask, what they may, what they did.

    Args:
        hub: where calls and events go.
        clock: for rates and durations.
        wheel: for deadlines.
        limits: of each session.
        uri_limits: those of some URIs.
        channel_limits: those of some channels.
        json_limits: of the JSON in messages.

    Attributes:
        sessions: those that are open.
        sessions_total: those that there have been.
        is_draining: no more calls are taken, those in flight are waited for.
        messages_read, messages_written: by type; those of applications are all under
            `pelotontx.wire.juggler.APPLICATION`.
        slow_messages: by type.
        nacks: by code.
        limits_exceeded: requests past a limit, and results too large to send.
        panics_recovered: exceptions that a request has survived: of middleware, hooks, ours.
        call_latency: told of the seconds from CALL to RES.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        hub: Hub,
        clock: IReactorTime,
        wheel: Wheel,
        limits: JugglerLimits | None = None,
        uri_limits: GlobTable[JugglerLimits] | None = None,
        channel_limits: GlobTable[JugglerLimits] | None = None,
        json_limits: juggler.JsonLimits = juggler.JSON_LIMITS,
    ) -> None:
        self.hub = hub
        self.clock = clock
        self.wheel = wheel
        self.limits = limits or JugglerLimits()
        self.uri_limits = uri_limits
        self.channel_limits = channel_limits
        self.json_limits = json_limits
        self.next_id = juggler.MessageIds(os.urandom(16)).next
        self.sessions: dict[JugglerSession, None] = {}
        self.sessions_total = 0
        self.is_draining = False
        self.messages_read: Counter[int] = Counter()
        self.messages_written: Counter[int] = Counter()
        self.slow_messages: Counter[int] = Counter()
        self.nacks: Counter[int] = Counter()
        self.limits_exceeded = 0
        self.panics_recovered = 0
        self.call_latency: Observer | None = None

    def session_ended(self, session: JugglerSession, code: int) -> None:
        """Told by the session."""
        self.sessions.pop(session, None)

    def message_was_slow(self, type_: int, peer: str, took_s: float) -> None:
        """Counts and logs that handling a message took long."""
        self.slow_messages[type_] += 1
        self._log.warn("{peer}: a message took {ms:.0f} ms", peer=peer, ms=took_s * 1000)

    def recover(self, failure: Failure) -> None:
        """Counts and logs an error that is ours or the application's, not the client's."""
        self.panics_recovered += 1
        self._log.failure("A message failed", failure)


class JugglerSession:
    """One peer: a `pelotontx.net.websocket.Conversation`.

    Args:
        endpoint: what it shares with others.
        connection: to the peer.
        allowed: the types of messages that the peer may send.
    """

    _takes_applications = False

    def __init__(
        self, endpoint: EndpointState, connection: Connection, allowed: frozenset[int]
    ) -> None:
        limits = endpoint.limits
        self._endpoint = endpoint
        self._connection = connection
        self._allowed = allowed
        self._calls: dict[PendingCall, None] = {}
        self._ruled: Counter[JugglerLimits] = _NONE  # calls in flight by their URI's own limits
        self._publishing: dict[str, list[_Publication]] = {}  # by id
        self._topics: dict[tuple[str, bool], None] = {}
        self._subscribing = 0
        self._waiting: Backlog[juggler.Message] = Backlog(limits)
        self._turn: juggler.Message | None = None  # what has waited, while it is performed
        self._bucket: TokenBucket | None = None
        if limits.message_rate:
            now_s = endpoint.clock.seconds()
            self._bucket = TokenBucket(limits.message_rate, limits.message_burst, now_s)
        self._is_closed = False

    # What the connection tells

    def text_received(self, payload: bytes) -> None:
        """One frame of the peer."""
        endpoint = self._endpoint
        began_s = endpoint.clock.seconds()
        try:
            request = juggler.decode_request(
                payload, endpoint.json_limits, applications=self._takes_applications
            )
        except RemoteProtocolError as error:
            self._connection.close(error.close_code, error.reason)
            return
        type_ = request.meta.type
        if type_ > _APPLICATION:
            type_ = _APPLICATION
        endpoint.messages_read[type_] += 1
        if self._bucket is not None and (left := self._bucket.take(began_s)) < 0:
            self._flooded(request, left)
        else:
            self._take(request, began_s)
        took_s = endpoint.clock.seconds() - began_s
        if took_s > endpoint.limits.slow_message_s:
            endpoint.message_was_slow(type_, self._connection.peer, took_s)

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
        self._waiting.clear()
        for channel, pattern in self._topics:
            hub.unsubscribe(self, channel, pattern=pattern)
        self._topics.clear()
        self._endpoint.session_ended(self, code)

    # Requests

    def _flooded(self, request: juggler.Message, left: float) -> None:
        if left < -self._endpoint.limits.message_burst:
            self._connection.close(TOO_MANY_MESSAGES, "too many messages")
        self._refuse(request, RequestRefused(429, "too many messages"))

    def _perform(self, request: juggler.Message, began_s: float) -> None:
        """Performs a request when it is its turn; CALLs need not wait for the others."""
        type_ = request.meta.type
        if (
            type_ != juggler.CALL
            and (self._waiting.items or self._must_wait(type_))
            and request is not self._turn
        ):
            if not self._waiting.put(request, request.payload):
                self._refuse(request, RequestRefused(429, "too many messages wait"))
            return
        refusal = self._refusal(request)
        if refusal is not None:
            self._refuse(request, refusal)
        elif type_ == juggler.CALL:
            self._call(request, began_s)
        elif type_ == juggler.PUB:
            self._publish(request)
        elif type_ == juggler.SUB:
            self._subscribe(request)
        else:
            self._unsubscribe(request)

    _take = _perform  # a subclass may have something to do before

    def _must_wait(self, type_: int) -> bool:
        if type_ == juggler.PUB:
            return self._subscribing > 0
        return type_ == juggler.SUB and bool(self._publishing)

    def _go_on(self) -> None:
        """A PUB or SUB is done with: performs what has waited, as far as it may go by now."""
        if self._turn is not None:
            return  # what is performed at once calls this again, ever deeper
        waiting = self._waiting
        try:
            while waiting.items and not self._must_wait(waiting.items[0][0].meta.type):
                self._turn = waiting.take()
                self._perform(self._turn, 0.0)
        except Exception:  # an error of ours, and the broker is who calls
            self._fail()
        finally:
            self._turn = None
        if self._endpoint.is_draining:
            self.close_when_idle()

    def _fail(self) -> None:
        """A request is lost by an error of ours: the client gets a close frame, we a log."""
        self._endpoint.recover(Failure())
        self._connection.close(INTERNAL_ERROR, "internal error")

    def _refuse(self, request: juggler.Message, refusal: RequestRefused) -> None:
        if refusal.code != 403:
            self._endpoint.limits_exceeded += 1
        self._nack(request, refusal)

    def _refusal(self, request: juggler.Message) -> RequestRefused | None:
        endpoint = self._endpoint
        limits = endpoint.limits
        payload, type_ = request.payload, request.meta.type
        if type_ not in self._allowed:
            return RequestRefused(403, f"{juggler.NAMES[type_]} is not allowed here")
        name, limit = payload.uri or payload.channel, limits.channel_limit_bytes
        if len(name) * 4 > limit and len(name.encode()) > limit:  # UTF-8 has 4 bytes at most
            return RequestRefused(400, f"a name of over {limit} bytes")
        if type_ == juggler.CALL:
            if len(self._calls) >= limits.calls_limit:
                return RequestRefused(429, f"{limits.calls_limit} calls are in flight")
            if endpoint.uri_limits is not None:
                limits = endpoint.uri_limits.find(payload.uri)
                if self._ruled[limits] >= limits.calls_limit:
                    return RequestRefused(429, f"{limits.calls_limit} such calls are in flight")
        elif type_ == juggler.PUB:
            if endpoint.channel_limits is not None:
                limits = endpoint.channel_limits.find(payload.channel)
        elif type_ == juggler.SUB:
            if payload.pattern and not limits.patterns:
                return RequestRefused(403, "pattern subscriptions are not allowed here")
            is_new = (payload.channel, payload.pattern) not in self._topics
            if is_new and len(self._topics) >= limits.subscriptions_limit:
                return RequestRefused(429, f"{limits.subscriptions_limit} subscriptions are held")
        limit = limits.args_limit_bytes
        if limit and len(bytes(payload.args)) > limit:
            return RequestRefused(413, f"args of over {limit} bytes")
        return None

    # Calls

    def _call(self, request: juggler.Message, began_s: float) -> None:
        endpoint = self._endpoint
        limits, uri = endpoint.limits, request.payload.uri
        if limits.close_uri and uri == limits.close_uri:
            self._connection.close(1000, "bye")
            return
        if endpoint.is_draining:
            self._nack(request, RequestRefused(503, "the server is stopping"))
            return
        if endpoint.uri_limits is not None:
            limits = endpoint.uri_limits.find(uri)
        timeout_s = juggler.timeout_s(
            request, default_s=limits.call_timeout_s, limit_s=limits.call_timeout_limit_s
        )
        origin: _CallOrigin = (request, began_s, limits)
        call = endpoint.hub.call(
            self, origin, uri=uri, args=bytes(request.payload.args), timeout_s=timeout_s
        )
        if call.is_pending:
            self._calls[call] = None
            if limits is not endpoint.limits:
                if self._ruled is _NONE:
                    self._ruled = Counter()
                self._ruled[limits] += 1

    def call_stored(self, call: PendingCall) -> None:
        """See `pelotontx.broker.hub.CallOwner`."""
        self._ack(call.request[0])

    def call_refused(self, call: PendingCall, error: BrokerError) -> None:
        """See `pelotontx.broker.hub.CallOwner`."""
        self._nack(call.request[0], error)
        self._call_ended(call)

    def call_answered(self, call: PendingCall, args: bytes) -> None:
        """See `pelotontx.broker.hub.CallOwner`."""
        endpoint = self._endpoint
        origin: _CallOrigin = call.request
        request, began_s, limits = origin
        if len(args) > limits.result_limit_bytes:
            endpoint.limits_exceeded += 1
            args = juggler.encode_error(f"the result has over {limits.result_limit_bytes} bytes")
        if endpoint.call_latency is not None:
            endpoint.call_latency.observe(endpoint.clock.seconds() - began_s)
        self._res(request, args)
        self._call_ended(call)

    def call_expired(self, call: PendingCall) -> None:
        """The client notices by itself; nothing is sent."""
        self._call_ended(call)

    def _call_ended(self, call: PendingCall) -> None:
        endpoint = self._endpoint
        if self._calls.pop(call, 0) is None:
            limits = call.request[2]
            if limits is not endpoint.limits:
                self._ruled[limits] -= 1
        if endpoint.is_draining:
            self.close_when_idle()

    # Events

    def _publish(self, request: juggler.Message) -> None:
        uuid, channel = request.meta.uuid, request.payload.channel
        publication: _Publication = (request, channel)
        self._publishing.setdefault(uuid, []).append(publication)
        done = self._endpoint.hub.publish(channel, uuid, bytes(request.payload.args))
        arguments = (uuid, publication)
        done.addCallbacks(
            self._published, self._not_published, callbackArgs=arguments, errbackArgs=arguments
        )

    def _published(self, result: None, uuid: str, publication: _Publication) -> None:
        if self._end_publishing(uuid, publication):
            self._ack(publication[0])
            if self._waiting.items or self._endpoint.is_draining:
                self._go_on()

    def _not_published(self, failure: Failure, uuid: str, publication: _Publication) -> None:
        if self._end_publishing(uuid, publication):
            self._nack(publication[0], failure)
            self._go_on()

    def _end_publishing(self, uuid: str, publication: _Publication) -> bool:
        """Whether the PUB had no answer yet."""
        same_id = self._publishing.get(uuid)
        if same_id is None:
            return False
        for index, one in enumerate(same_id):
            if one is publication:  # others may be equal
                del same_id[index]
                if not same_id:
                    del self._publishing[uuid]
                return True
        return False

    def _subscribe(self, request: juggler.Message) -> None:
        topic = (request.payload.channel, bool(request.payload.pattern))
        is_new = topic not in self._topics
        self._topics[topic] = None
        self._subscribing += 1
        done = self._endpoint.hub.subscribe(self, topic[0], pattern=topic[1])
        done.addCallbacks(
            self._subscribed,
            self._not_subscribed,
            callbackArgs=(request,),
            errbackArgs=(request, topic if is_new else None),
        )

    def _subscribed(self, result: None, request: juggler.Message) -> None:
        self._subscribing -= 1
        self._ack(request)
        self._go_on()

    def _not_subscribed(
        self, failure: Failure, request: juggler.Message, new_topic: tuple[str, bool] | None
    ) -> None:
        self._subscribing -= 1
        if new_topic is not None:  # else it was, and is, subscribed to
            self._topics.pop(new_topic, None)
        self._nack(request, failure)
        self._go_on()

    def _unsubscribe(self, request: juggler.Message) -> None:
        channel, pattern = request.payload.channel, bool(request.payload.pattern)
        if self._topics.pop((channel, pattern), 0) is None:
            self._endpoint.hub.unsubscribe(self, channel, pattern=pattern)
        self._ack(request)

    def event(self, event: Event) -> None:
        """See `pelotontx.broker.hub.Listener`."""
        is_word = event.msg_uuid in self._publishing and self._is_brokers_word(event)
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
        if is_word:
            self._go_on()

    def _is_brokers_word(self, event: Event) -> bool:
        """Whether it is back before the broker's word, and so has acknowledged its PUB.

        It proves that the broker took it. `_go_on` is for after the event: a UNSB may wait.
        """
        for publication in self._publishing[event.msg_uuid]:
            request, channel = publication
            if channel == event.channel:
                self._end_publishing(event.msg_uuid, publication)
                self._ack(request)
                return True
        return False

    # Answers

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight that a client is owed an answer for."""
        return not (self._calls or self._publishing or self._subscribing or self._waiting.items)

    def close_when_idle(self) -> None:
        """Says goodbye if nothing is in flight; else, while the endpoint drains, as soon as so."""
        if self.is_idle:
            self.say_goodbye()

    def say_goodbye(self) -> None:
        """Closes the connection, whatever is in flight."""
        self._connection.close(GOING_AWAY, "the server is stopping")

    def _ack(self, request: juggler.Message) -> None:
        self._send(juggler.ACK, juggler.encode_ack(self._endpoint.next_id(), request))

    def _nack(self, request: juggler.Message, error: BaseException | Failure) -> None:
        if isinstance(error, Failure):
            if error.check(PelotonError) is None:
                self._endpoint.recover(error)
            error = error.value or PelotonError()
        code, text = nack_of(error)
        self._endpoint.nacks[code] += 1
        self._refused(request, code, text)

    def _refused(self, request: juggler.Message, code: int, text: str) -> None:
        uuid = self._endpoint.next_id()
        self._send(juggler.NACK, juggler.encode_nack(uuid, request, code, text))

    def _res(self, request: juggler.Message, args: bytes) -> None:
        uuid, for_uuid = self._endpoint.next_id(), request.meta.uuid
        self._send(juggler.RES, juggler.encode_res(uuid, for_uuid, request.payload.uri, args))

    def _send(self, type_: int, message: bytes) -> None:
        if not self._is_closed:
            self._endpoint.messages_written[type_] += 1
            self._connection.send_text(message)


# Most sessions never get one of their own.
_NONE: Final[Counter[JugglerLimits]] = Counter()
