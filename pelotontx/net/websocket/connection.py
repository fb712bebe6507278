"""One WebSocket connection of a server: frames in, frames out, and its end.

Made by `net.websocket.ServerFactory`; that module tells what is Autobahn's here and what is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from random import uniform
from typing import Any, Final, Protocol, TypeAlias, cast

from autobahn.twisted.util import peer2str
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.util import encode_truncate
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from websockets.frames import apply_mask  # type: ignore[attr-defined]

from pelotontx.errors import LocalProtocolError, SlowConsumer
from pelotontx.net.tcp import Corked, unsent_bytes
from pelotontx.net.websocket.deflate import Deflater, Inflater, MalformedOffer, agree
from pelotontx.net.websocket.handshake import (
    Handshake,
    Refused,
    error_response,
    origin_allowed,
    read_handshake,
    switching_protocols,
)
from pelotontx.net.websocket.message import (
    BINARY_FINAL,
    GOING_AWAY,
    INTERNAL_ERROR,
    MESSAGE_TOO_BIG,
    POLICY_VIOLATION,
    SLOW_CONSUMER,
    TEXT_FINAL,
    Connection,
    Conversation,
    WebSocketLimits,
    encode_frame,
)
from pelotontx.net.wheel import Timer, Wheel

CONNECTING: Final = WebSocketProtocol.STATE_CONNECTING
OPEN: Final = WebSocketProtocol.STATE_OPEN
_CLOSED: Final = WebSocketProtocol.STATE_CLOSED
_PONG: Final = 0x8A
_NO_CODE: Final = 1005
_ABNORMAL: Final = 1006

# `net.http` hands over whole heads and has its own limit; this one is for whoever does not.
_HEAD_LIMIT_BYTES: Final = 16 * 1024

# Pieces of a frame that are kept apart: one-byte reads would cost sixty times their size.
_PIECES: Final = 256

Accepted: TypeAlias = tuple[str | None, Callable[[Connection], Conversation]]
"""The subprotocol, and who will talk."""

Accept: TypeAlias = Callable[[Handshake], Accepted | Deferred[Accepted]]
"""Decides about an opening request; raises or fails with `Refused`."""


class Owner(Protocol):
    """The factory, as its connections see it; `ServerFactory` tells what the attributes are."""

    limits: WebSocketLimits
    wheel: Wheel
    accept: Accept
    origins: tuple[str, ...]
    deflater: Deflater
    slow_consumers: int

    def connection_made(self, connection: ServerConnection) -> None:
        """A connection is there."""

    def connection_closed(self, connection: ServerConnection) -> None:
        """It is gone."""

    def has_too_many_frames(self, connection: ServerConnection) -> bool:
        """Counts a frame that is no message, or comes after a close, within this second."""


class _Silent:
    """Takes Autobahn's log calls: what matters of them is logged here, once and in our words."""

    def debug(self, *_: object, **__: object) -> None: ...

    info = warn = error = failure = debug


class ServerConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """One WebSocket connection of a server; made by `ServerFactory.buildProtocol`.

    What is not set in an instance is in the class that the factory makes.
    """

    log = _Silent()
    factory: Owner
    transport: Any
    state: int
    data: bytes
    failedByMe: bool
    websocket_version = 13
    # Autobahn sets these when a connection opens.
    current_frame: Any = None
    inside_message = False
    message_data: list[bytes]
    frame_data: list[bytes]

    #: Decides about this one opening request, instead of the factory's.
    accept: Accept | None = None
    #: Further header lines of the 101.
    fields = b""

    _log = Logger()
    _conversation: Conversation | None = None
    _is_reading = True
    _senders: tuple[Deferred[None], ...] = ()  # who waits to send more
    _deciding: Deferred[None] | None = None  # while an `accept` takes its time
    _is_paused = False  # the transport holds more than it likes
    _abort_timer: Timer | None = None
    _window_bits = 0  # of what is sent compressed; 0: nothing is

    def __init__(self, factory: Owner) -> None:
        # Not Autobahn's: it makes two Deferreds and a registry of listeners that nobody asks for.
        self.factory = factory
        # Jittered, so that a fleet that reconnected together is not pinged together.
        self.autoPingInterval = uniform(0.8, 1.2) * factory.limits.ping_interval_s

    @property
    def peer(self) -> str:
        """The client's address: ``tcp4:127.0.0.1:52914``, ``unix``."""
        return str(peer2str(self.transport))

    @cached_property
    def utf8validator(self) -> Any:
        """Autobahn's; made when a text comes that is not whole."""
        return Utf8Validator()

    # Opening

    def connectionMade(self) -> None:
        factory, transport = self.factory, self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)  # not every transport is one of `net.tcp`
        transport.registerProducer(self, True)
        factory.connection_made(self)
        self.openHandshakeTimeoutCall = factory.wheel.call_later(
            factory.limits.open_timeout_s, self.onOpenHandshakeTimeout
        )

    def _receive_head(self, data: bytes) -> None:
        """Answers the opening request when all of it is there; leaves the rest in `data`."""
        data = self.data + data
        if self._deciding is not None:
            self.data = data
            if len(data) > _HEAD_LIMIT_BYTES:
                self.dropConnection(abort=True)  # a client has to wait for its 101
            return
        end = data.find(b"\r\n\r\n") + 4
        self.data = data[end:] if end >= 4 else data
        try:
            if end >= 4:
                self._shake_hands(data[:end])
            elif len(data) > _HEAD_LIMIT_BYTES:
                raise Refused(431, "header fields too large")
        except Refused as refusal:
            self._refuse(refusal)

    def _shake_hands(self, head: bytes) -> None:
        factory = self.factory
        handshake, key = read_handshake(head, self.peer)
        origin, host = handshake.headers.get("origin"), handshake.headers.get("host", "")
        is_secure = ISSLTransport.providedBy(self.transport)
        if not origin_allowed(origin, host, factory.origins, is_secure=is_secure):
            raise Refused(403, f"origin {origin!a} is not allowed at {host!a}")
        accepted: Deferred[Accepted] = maybeDeferred(
            cast(Any, self.accept or factory.accept), handshake
        )
        decided = accepted.addCallback(self._begin, handshake, key)
        decided.addErrback(self._not_accepted)
        if not decided.called:
            self._deciding = decided.addCallback(lambda _: self.dataReceived(b""))

    def _not_accepted(self, failure: Failure) -> None:
        if self.state != CONNECTING:
            return  # the client did not wait
        refusal = failure.value
        if not isinstance(refusal, Refused):  # foreign code
            self._log.failure("An opening handshake could not be decided", failure)
            refusal = Refused(500, "internal error")
        self._refuse(refusal)

    def _begin(self, accepted: Accepted, handshake: Handshake, key: str) -> None:
        if self.state != CONNECTING:
            return
        self._deciding = None
        factory, (subprotocol, open_conversation) = self.factory, accepted
        if subprotocol is not None and subprotocol not in handshake.subprotocols:
            raise LocalProtocolError(f"{subprotocol!r} was not offered")
        extension = self._agree_on_extension(handshake) if factory.limits.deflate else None
        self.transport.write(switching_protocols(key, subprotocol, extension, self.fields))
        self.state = OPEN
        self.openHandshakeTimeoutCall.cancel()
        del self.openHandshakeTimeoutCall
        if self.autoPingInterval:
            self.autoPingPendingCall = factory.wheel.call_later(
                self.autoPingInterval, self._sendAutoPing
            )
        try:
            self._conversation = open_conversation(self)
        except Exception:  # foreign code
            self._log.failure("A conversation could not begin")
            self.close(INTERNAL_ERROR, "internal error")

    def _agree_on_extension(self, handshake: Handshake) -> str | None:
        try:
            agreed = agree(handshake.headers.get("sec-websocket-extensions", ""))
        except MalformedOffer:
            raise Refused(400, "malformed Sec-WebSocket-Extensions") from None
        if agreed is None:
            return None
        self._perMessageCompress = Inflater()
        self._window_bits, answer = agreed
        return answer

    def _refuse(self, refusal: Refused) -> None:
        self._log.warn(
            "{peer} was refused: {status} {reason}",
            peer=self.peer,
            status=refusal.status,
            reason=refusal.reason,
        )
        self.transport.write(error_response(refusal))
        self.dropConnection()

    # Receiving

    def dataReceived(self, data: bytes) -> None:
        if self.state == CONNECTING:
            self._receive_head(data)
            if self.state == CONNECTING:
                return
        else:
            self.data = self.data + data if self.data else data
            if self.autoPingTimeoutCall is not None:
                self._cancelAutoPingTimeoutCall()  # whoever sends is alive
        while self.state != _CLOSED:
            if not self.processData():
                return
        self.data = b""

    def processData(self) -> bool:
        """Handles frames at the head of `data`; tells whether there may be more of them."""
        if self.state == OPEN and self.current_frame is None and not self.inside_message:
            self.data = self._receive_whole_frames(self.data)
            if not self.data:
                return False
        more: bool = super().processData()
        return more

    def _receive_whole_frames(self, data: bytes) -> bytes:
        """Handles the plain frames at the head of `data` and returns the rest."""
        position = 0
        end = len(data)
        limit = self.maxMessagePayloadSize
        while end - position > 5:
            first = data[position]
            length = data[position + 1] - 0x80  # negative: not masked
            start = position + 6
            if length == 126:
                start = position + 8
                length = data[position + 2] << 8 | data[position + 3]
                if length < 126:
                    break
            stop = start + length
            if (
                (first != TEXT_FINAL and first != BINARY_FINAL)
                or not 0 <= length <= limit
                or data[position + 1] == 0xFF
                or stop > end
            ):
                break
            payload = apply_mask(data[start:stop], data[start - 4 : start])
            if first == TEXT_FINAL and not payload.isascii():
                try:
                    payload.decode()
                except UnicodeDecodeError:
                    break
            position = stop
            self.onMessage(payload, first == BINARY_FINAL)
            if self.state != OPEN:
                break
        return data[position:] if position else data

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        conversation = self._conversation
        if conversation is None or self.state != OPEN:
            return
        try:
            if isBinary:
                conversation.binary_received(payload)
            else:
                conversation.text_received(payload)
        except Exception:  # the conversation's fault: the peer gets a close frame, we a log
            self._log.failure("A message could not be handled")
            self.close(INTERNAL_ERROR, "internal error")

    # Autobahn's frames, bounded

    def onFrameBegin(self) -> None:
        super().onFrameBegin()
        frame = self.current_frame
        is_message = frame.fin and 0 < frame.opcode < 8 and self.state == OPEN
        if not is_message and self.factory.has_too_many_frames(self):
            if self.state == OPEN:
                self._fail_connection(POLICY_VIOLATION, "too many frames")
            else:
                self.dropConnection()  # it was told, and goes on

    def onFrameData(self, payload: bytes) -> bool | None:
        # After a failure only the peer's close frame is waited for. Autobahn would go on to judge
        # data, and collect control frames of any length.
        if self.failedByMe and (self.current_frame.opcode < 8 or self.current_frame.length > 125):
            return None
        is_fine: bool | None = super().onFrameData(payload)
        return is_fine

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        if len(self.message_data) >= self.factory.limits.fragments_limit:
            self._fail_connection(MESSAGE_TOO_BIG, "too many fragments")

    def onMessageFrameData(self, payload: bytes) -> None:
        self.frame_data.append(payload)
        if len(self.frame_data) >= _PIECES:
            self.frame_data = [b"".join(self.frame_data)]

    def onMessageFrame(self, payload: list[bytes]) -> None:
        self.message_data.append(b"".join(payload))  # one piece a fragment: they are counted

    def onMessageEnd(self) -> None:
        pieces, self.message_data = self.message_data, []
        if not self.failedByMe:
            self.onMessage(b"".join(pieces), self.message_is_binary)

    def onPing(self, payload: bytes) -> None:
        # A message like any other: whoever pings and does not read is a slow consumer.
        self.send_frame(bytes((_PONG, len(payload))) + payload)

    # Sending

    def send_text(self, payload: bytes) -> None:
        """See `Connection`."""
        self.send_frame(encode_frame(payload))

    def send_binary(self, payload: bytes) -> None:
        """Sends one binary message."""
        self.send_frame(encode_frame(payload, binary=True))

    def send_frame(self, frame: bytes) -> None:
        """See `Connection`."""
        if self.state != OPEN:
            return
        if self._window_bits:
            frame = self.factory.deflater.compressed(frame, self._window_bits)
        if self._is_paused and self._is_too_much(len(frame)):
            return
        self.transport.write(frame)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """What Autobahn sends by itself: pings and close frames."""
        self.transport.write(data)

    def _is_too_much(self, size: int) -> bool:
        """Whether so much more would pass the limit; then the connection is closed."""
        limit = self.factory.limits.outbound_limit_bytes
        if unsent_bytes(self.transport) + size <= limit:
            return False
        if isinstance(self.transport, Corked):
            # Perhaps it all only waits for the end of this turn. (Under TLS that cannot be helped.)
            self.transport.flush()
            if unsent_bytes(self.transport) + size <= limit:
                return False
        self.factory.slow_consumers += 1
        self._log.warn("{peer} does not read: {limit} bytes wait", peer=self.peer, limit=limit)
        self.close(SLOW_CONSUMER, f"slow consumer: {SlowConsumer(limit)}")
        return True

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._make_room()

    def drained(self) -> Deferred[None]:
        """Fires when more may be sent, or nothing any more; cancelling is safe."""
        waiting: Deferred[None] = Deferred(self._forget_sender)
        if self._is_paused and self.state == OPEN:
            self._senders += (waiting,)
        else:
            waiting.callback(None)
        return waiting

    def _forget_sender(self, waiting: Deferred[None]) -> None:
        self._senders = tuple(sender for sender in self._senders if sender is not waiting)

    def _make_room(self) -> None:
        senders, self._senders = self._senders, ()
        for waiting in senders:
            waiting.callback(None)

    def pause_reading(self) -> None:
        """Too much is unhandled: reads no more, and so expects no pongs either."""
        self._is_reading = False
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """The end of `pause_reading`."""
        self._is_reading = True
        self.transport.resumeProducing()

    def onAutoPingTimeout(self) -> None:
        if self._is_reading:
            super().onAutoPingTimeout()
        else:  # the pong may have come; as long as nothing is read, TCP alone watches the peer
            self.autoPingTimeoutCall = None
            self._sendAutoPing()

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""

    # Closing

    def close(self, code: int, reason: str) -> None:
        """See `Connection`."""
        if self.state == OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=encode_truncate(reason, 123))

    def _fail_connection(self, code: int = GOING_AWAY, reason: str = "") -> None:
        """The peer broke the protocol: says so once, then waits for its close frame."""
        if self.failedByMe:
            return
        self._log.warn(
            "{peer} fails with {code}: {reason}", peer=self.peer, code=code, reason=reason
        )
        self.failedByMe = True
        if self.state == OPEN:
            self.close(code, reason)
        else:
            self.dropConnection()

    def dropConnection(self, abort: bool = False) -> None:
        """Ends TCP: at once when the peer is at fault, else after what was written has left."""
        if self.state == _CLOSED:
            return
        self.state = _CLOSED
        transport = self.transport
        transport.unregisterProducer()
        if abort and not self.wasClean:
            transport.abortConnection()
            return
        transport.loseConnection()
        # Behind a backlog that the peer does not read, that would wait for ever.
        self._abort_timer = self.factory.wheel.call_later(
            self.factory.limits.close_timeout_s, transport.abortConnection
        )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.state = _CLOSED
        self.data = b""
        self._make_room()
        if self._deciding is not None:
            self._deciding.cancel()
        for timer in (
            self.openHandshakeTimeoutCall,
            self.closeHandshakeTimeoutCall,
            self.autoPingPendingCall,
            self.autoPingTimeoutCall,
            self._abort_timer,
        ):
            if timer is not None:
                timer.cancel()
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            try:
                conversation.connection_lost(self._close_code())
            except Exception:  # foreign code
                self._log.failure("A conversation could not end")
        self.factory.connection_closed(self)

    def _close_code(self) -> int:
        if not self.wasClean:
            return _ABNORMAL
        code: int | None = self.localCloseCode if self.failedByMe else self.remoteCloseCode
        return _NO_CODE if code is None else code
