"""WebSocket servers: the opening handshake, Autobahn's protocol with every option set, a fast path.

`net.http` hands a judged request over (`Upgrade`), and `ServerFactory` answers it. Complete,
unfragmented text and binary frames of an open connection (nearly all frames) are parsed in one loop
over what was read; anything else goes to Autobahn's own code, frame by frame. Frames are sent as
they are built, without Autobahn's bookkeeping. The measure of this file is that it passes the same
conformance cases as Autobahn (tests/integration/test_conformance.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import uniform
from typing import Any, Final, Protocol, TypeAlias, cast

from autobahn.twisted.util import peer2str
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.util import encode_truncate
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from websockets.frames import apply_mask  # type: ignore[attr-defined]

from pelotontx.errors import LocalProtocolError, SlowConsumer
from pelotontx.net.tcp import Corked, unsent_bytes
from pelotontx.net.websocket_handshake import (
    Handshake,
    Refused,
    error_response,
    origin_allowed,
    read_handshake,
    switching_protocols,
)
from pelotontx.net.wheel import Timer, Wheel

_CONNECTING: Final = WebSocketProtocol.STATE_CONNECTING
_OPEN: Final = WebSocketProtocol.STATE_OPEN
_CLOSED: Final = WebSocketProtocol.STATE_CLOSED
_TEXT_FINAL: Final = 0x81
_BINARY_FINAL: Final = 0x82
_PONG: Final = 0x8A

GOING_AWAY: Final = 1001
UNSUPPORTED_DATA: Final = 1003
POLICY_VIOLATION: Final = 1008
MESSAGE_TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SLOW_CONSUMER: Final = 4008
TOO_MANY_MESSAGES: Final = 4029

_NO_CODE: Final = 1005
_ABNORMAL: Final = 1006

# `net.http` hands over whole heads and has its own limit; this one is for whoever does not.
_HEAD_LIMIT_BYTES: Final = 16 * 1024

# Pieces of a frame that are kept apart: one-byte reads would cost sixty times their size.
_PIECES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketLimits:
    """What a peer may do; each default is explained in docs/operations.md."""

    message_limit_bytes: int = 64 * 1024
    fragments_limit: int = 1024
    outbound_limit_bytes: int = 1024 * 1024
    open_timeout_s: float = 5.0
    close_timeout_s: float = 2.0
    ping_interval_s: float = 25.0
    pong_timeout_s: float = 10.0


class Connection(Protocol):
    """An open WebSocket, as the code above sees it."""

    peer: str

    def send_text(self, payload: bytes) -> None:
        """Sends one text message (UTF-8); does nothing once the connection is closing."""
        ...

    def send_frame(self, frame: bytes) -> None:
        """Sends what `encode_frame` has made, the same for any number of connections."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame; the connection is dropped if the peer does not answer in time."""
        ...


class Conversation(Protocol):
    """What a connection talks to."""

    def text_received(self, payload: bytes) -> None:
        """One whole text message, valid UTF-8."""
        ...

    def binary_received(self, payload: bytes) -> None:
        """One whole binary message."""
        ...

    def connection_lost(self, code: int) -> None:
        """It is over.

        Args:
            code: the close frame's: the peer's, or ours if the peer broke the protocol; 1005 when
                it had none, 1006 when the connection ended without one.
        """
        ...


Accept: TypeAlias = Callable[[Handshake], tuple[str | None, Callable[[Connection], Conversation]]]
"""Chooses the subprotocol and who will talk; raises `Refused`."""


def encode_frame(payload: bytes, *, binary: bool = False) -> bytes:
    """One unmasked, final frame (RFC 6455, 5.2)."""
    first = _BINARY_FINAL if binary else _TEXT_FINAL
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65536:
        return bytes((first, 126, length >> 8, length & 0xFF)) + payload
    return bytes((first, 127)) + length.to_bytes(8, "big") + payload


class _Silent:
    """Takes Autobahn's log calls: what matters of them is logged here, once and in our words."""

    def debug(self, *_: object, **__: object) -> None: ...

    info = warn = error = failure = debug


class ServerConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """One WebSocket connection of a server; made by `ServerFactory.buildProtocol`.

    What is not set in an instance is in the class that the factory makes: see `_connection_class`.
    """

    log = _Silent()
    factory: ServerFactory
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

    _log = Logger()
    _conversation: Conversation | None = None
    _is_paused = False  # the transport holds more than it likes
    _abort_timer: Timer | None = None

    def __init__(self, factory: ServerFactory) -> None:
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
        factory.connections[self] = None
        self.openHandshakeTimeoutCall = factory.wheel.call_later(
            factory.limits.open_timeout_s, self.onOpenHandshakeTimeout
        )

    def _receive_head(self, data: bytes) -> None:
        """Answers the opening request when all of it is there; leaves the rest in `data`."""
        data = self.data + data
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
        try:
            subprotocol, open_conversation = factory.accept(handshake)
            if subprotocol is not None and subprotocol not in handshake.subprotocols:
                raise LocalProtocolError(f"{subprotocol!r} was not offered")
        except Refused:
            raise
        except Exception:  # foreign code
            self._log.failure("An opening handshake could not be decided")
            raise Refused(500, "internal error") from None
        self.transport.write(switching_protocols(key, subprotocol))
        self.state = _OPEN
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
        if self.state == _CONNECTING:
            self._receive_head(data)
            if self.state == _CONNECTING:
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
        if self.state == _OPEN and self.current_frame is None and not self.inside_message:
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
                (first != _TEXT_FINAL and first != _BINARY_FINAL)
                or not 0 <= length <= limit
                or data[position + 1] == 0xFF
                or stop > end
            ):
                break
            payload = apply_mask(data[start:stop], data[start - 4 : start])
            if first == _TEXT_FINAL and not payload.isascii():
                try:
                    payload.decode()
                except UnicodeDecodeError:
                    break
            position = stop
            self.onMessage(payload, first == _BINARY_FINAL)
            if self.state != _OPEN:
                break
        return data[position:] if position else data

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        conversation = self._conversation
        if conversation is None or self.state != _OPEN:
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
        if self.state != _OPEN or (self._is_paused and self._is_too_much(len(frame))):
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

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""

    # Closing

    def close(self, code: int, reason: str) -> None:
        """See `Connection`."""
        if self.state == _OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=encode_truncate(reason, 123))

    def _fail_connection(self, code: int = GOING_AWAY, reason: str = "") -> None:
        """The peer broke the protocol: says so once, then waits for its close frame."""
        if self.failedByMe:
            return
        self._log.warn(
            "{peer} fails with {code}: {reason}", peer=self.peer, code=code, reason=reason
        )
        self.failedByMe = True
        if self.state == _OPEN:
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


class ServerFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes the connections of one WebSocket endpoint.

    Args:
        reactor: handed to Autobahn.
        wheel: for handshake, ping and close deadlines.
        accept: decides about each opening request.
        limits: what peers may do.
        origins: further origins (``https://host[:port]``) that browsers may come from, besides the
            server's own; ``*`` allows all but `null`.

    Attributes:
        connections: all that are there, from the opening request to the end of TCP.
        slow_consumers: how many were closed for not reading.

    Raises:
        RuntimeError: this Autobahn does not take an option as it was set.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        wheel: Wheel,
        accept: Accept,
        limits: WebSocketLimits | None = None,
        origins: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reactor=reactor)
        self.wheel = self._batched_timer = wheel  # the latter is Autobahn's name for such a thing
        self.limits = limits or WebSocketLimits()
        self.accept = accept
        self.origins = origins
        self.connections: dict[ServerConnection, None] = {}
        self.slow_consumers = 0
        self._on_empty: list[Callable[[], None]] = []
        options = _protocol_options(self.limits)
        self.setProtocolOptions(**options)
        for name, value in options.items():
            if getattr(self, name) != value:
                raise RuntimeError(f"Autobahn's {name} is {getattr(self, name)!r}, not {value!r}")
        self.protocol = _connection_class(self)

    def buildProtocol(self, addr: Any) -> ServerConnection:
        return self.protocol(self)

    def close_all(self, code: int, reason: str, then: Callable[[], None]) -> None:
        """Closes every connection; `then` is called when the last one is gone."""
        if not self.connections:
            then()
            return
        self._on_empty.append(then)
        for connection in tuple(self.connections):
            if connection.state == _CONNECTING:
                connection.dropConnection(abort=True)
            else:
                connection.close(code, reason)

    def connection_closed(self, connection: ServerConnection) -> None:
        """Told by a connection that it is gone."""
        self.connections.pop(connection, None)
        if not self.connections:
            waiting, self._on_empty = self._on_empty, []
            for then in waiting:
                then()


def _protocol_options(limits: WebSocketLimits) -> dict[str, Any]:
    """Every option of Autobahn that is about frames; the opening handshake is not its business.

    Autobahn's defaults are open: no size limit, no ping, and TCP dropped without a close frame.
    """
    return {
        "utf8validateIncoming": True,
        "requireMaskedClientFrames": True,
        "maskServerFrames": False,
        "applyMask": True,
        "maxFramePayloadSize": limits.message_limit_bytes,
        "maxMessagePayloadSize": limits.message_limit_bytes,
        "autoFragmentSize": 0,
        "failByDrop": False,
        "echoCloseCodeReason": True,
        "openHandshakeTimeout": limits.open_timeout_s,
        "closeHandshakeTimeout": limits.close_timeout_s,
        "autoPingInterval": limits.ping_interval_s,
        "autoPingTimeout": limits.pong_timeout_s,
        "autoPingSize": 12,
        "autoPingRestartOnAnyTraffic": True,
    }


def _connection_class(factory: ServerFactory) -> type[ServerConnection]:
    """`ServerConnection` with the factory's options and Autobahn's initial state in the class.

    Autobahn stores some seventy attributes in each connection, the same in nearly all of them.
    """
    model = ServerConnection(factory)
    model.openHandshakeTimeout = 0  # nobody is waited for
    WebSocketProtocol._connectionMade(model)
    options = {name: getattr(factory, name) for name in model.CONFIG_ATTRS}
    own = (*options, "factory", "utf8validator")
    # Statistics, which nobody reads, are shared; so is the queue of `sendData`, which stays empty.
    state = {name: value for name, value in vars(model).items() if name not in own}
    shared = {
        name: staticmethod(value) if callable(value) else value
        for name, value in (options | state).items()
    }
    return cast("type[ServerConnection]", type("ServerConnection", (ServerConnection,), shared))


__all__ = [
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "MESSAGE_TOO_BIG",
    "POLICY_VIOLATION",
    "SLOW_CONSUMER",
    "TOO_MANY_MESSAGES",
    "UNSUPPORTED_DATA",
    "Accept",
    "Connection",
    "Conversation",
    "Handshake",
    "Refused",
    "ServerConnection",
    "ServerFactory",
    "WebSocketLimits",
    "encode_frame",
    "origin_allowed",
]
