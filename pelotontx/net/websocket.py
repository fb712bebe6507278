"""Autobahn glue for WebSocket servers: its protocol with every option set, and a fast path.

Complete, unfragmented text and binary frames of an open connection (nearly all frames) are parsed
in one loop over what was read; anything else goes to Autobahn's own code. Frames are sent as they
are built, without Autobahn's bookkeeping. The measure of this file is that it passes the same
conformance cases as Autobahn (tests/integration/test_conformance.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import uniform
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.logger import Logger
from websockets.frames import apply_mask  # type: ignore[attr-defined]

from pelotontx.errors import SlowConsumer
from pelotontx.net.wheel import Wheel

_OPEN: Final = WebSocketProtocol.STATE_OPEN
_TEXT_FINAL: Final = 0x81
_BINARY_FINAL: Final = 0x82

GOING_AWAY: Final = 1001
UNSUPPORTED_DATA: Final = 1003
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
SLOW_CONSUMER: Final = 4008
TOO_MANY_MESSAGES: Final = 4029


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
        """It is over; 1006 when no close frame came."""
        ...


@dataclass(frozen=True, slots=True)
class Handshake:
    """A client's opening request.

    Attributes:
        headers: by lower-case name.
        subprotocols: as offered, in order.
        peer: the client's address.
    """

    headers: Mapping[str, str]
    subprotocols: list[str]
    peer: str


class Refused(Exception):
    """Raised by an `accept` to answer an opening request with an HTTP error.

    Attributes:
        status: the HTTP status.
        reason: one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


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


class ServerConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """One WebSocket connection of a server."""

    factory: ServerFactory
    data: bytes

    def __init__(self, factory: ServerFactory) -> None:
        super().__init__()
        self.factory = factory
        limits = factory.limits
        self._conversation: Conversation | None = None
        self._open_conversation: Callable[[Connection], Conversation]
        self._is_paused = False
        self._unsent_bytes = 0
        # Jittered, so that a fleet that reconnected together is not pinged together.
        self.autoPingInterval = uniform(0.8, 1.2) * limits.ping_interval_s

    # Opening

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.registerProducer(self, True)
        self.factory.connections[self] = None

    def onConnect(self, request: ConnectionRequest) -> str | None:
        if not origin_allowed(
            request.origin, self.http_headers.get("host", ""), self.factory.origins
        ):
            raise ConnectionDeny(403, "Origin not allowed")
        handshake = Handshake(request.headers, request.protocols, self.peer)
        try:
            subprotocol, self._open_conversation = self.factory.accept(handshake)
        except Refused as refusal:
            raise ConnectionDeny(refusal.status, refusal.reason) from None
        return subprotocol

    def onOpen(self) -> None:
        self._conversation = self._open_conversation(self)

    # Receiving

    def _dataReceived(self, data: bytes) -> None:
        if (
            self.state == _OPEN
            and self.current_frame is None
            and not self.inside_message
            and self._perMessageCompress is None
        ):
            data = self._receive_whole_frames(self.data + data if self.data else data)
            self.data = b""
            if self.autoPingTimeoutCall is not None:
                self._cancelAutoPingTimeoutCall()
            if not data:
                return
        super()._dataReceived(data)

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
        if conversation is None:
            return
        try:
            if isBinary:
                conversation.binary_received(payload)
            else:
                conversation.text_received(payload)
        except Exception:  # the conversation's fault: the peer gets a close frame, we a log
            self.factory.log_failure("A message could not be handled")
            self.close(INTERNAL_ERROR, "internal error")

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        if len(self.message_data) > self.factory.limits.fragments_limit:
            self._max_message_size_exceeded(0, 0, "too many fragments")

    # Sending

    def send_text(self, payload: bytes) -> None:
        """See `Connection`."""
        self.send_frame(encode_frame(payload))

    def send_binary(self, payload: bytes) -> None:
        """Sends one binary message."""
        self.send_frame(encode_frame(payload, binary=True))

    def send_frame(self, frame: bytes) -> None:
        """See `Connection`."""
        if self.state != _OPEN:
            return
        if self._is_paused:
            self._unsent_bytes += len(frame)
            if self._unsent_bytes > self.factory.limits.outbound_limit_bytes:
                error = SlowConsumer(self.factory.limits.outbound_limit_bytes)
                self.factory.slow_consumers += 1
                self.close(SLOW_CONSUMER, f"slow consumer: {error}")
                return
        self.transport.write(frame)

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._unsent_bytes = 0

    def stopProducing(self) -> None:
        self._is_paused = False

    # Closing

    def close(self, code: int, reason: str) -> None:
        """See `Connection`."""
        if self.state == _OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:123])

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.factory.connection_closed(self)
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.connection_lost(1005 if code is None else code)


class ServerFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes the connections of one WebSocket endpoint.

    Args:
        reactor: handed to Autobahn.
        wheel: for handshake, ping and close deadlines.
        accept: decides about each opening request.
        limits: what peers may do.
        origins: further origins (``https://host[:port]``) that browsers may come from, besides the
            server's own; ``*`` allows all.

    Attributes:
        connections: all that are open.
        slow_consumers: how many were closed for not reading.
    """

    _logger = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        wheel: Wheel,
        accept: Accept,
        limits: WebSocketLimits | None = None,
        origins: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reactor=reactor, server="pelotontx")
        self.limits = limits = limits or WebSocketLimits()
        self.accept = accept
        self.origins = origins
        self.connections: dict[ServerConnection, None] = {}
        self.slow_consumers = 0
        self._on_empty: list[Callable[[], None]] = []
        self._batched_timer = wheel
        # Autobahn's defaults are open: each option is set here, or decided by us before the 101.
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            maskServerFrames=False,
            applyMask=True,
            maxFramePayloadSize=limits.message_limit_bytes,
            maxMessagePayloadSize=limits.message_limit_bytes,
            autoFragmentSize=0,
            failByDrop=False,
            echoCloseCodeReason=True,
            openHandshakeTimeout=limits.open_timeout_s,
            closeHandshakeTimeout=limits.close_timeout_s,
            tcpNoDelay=True,
            perMessageCompressionAccept=lambda offers: None,
            autoPingInterval=limits.ping_interval_s,
            autoPingTimeout=limits.pong_timeout_s,
            autoPingSize=12,
            autoPingRestartOnAnyTraffic=True,
            serveFlashSocketPolicy=False,
            allowedOrigins=["*"],
            allowNullOrigin=True,
            maxConnections=0,
            trustXForwardedFor=0,
        )

    def buildProtocol(self, addr: Any) -> ServerConnection:
        return ServerConnection(self)

    def close_all(self, code: int, reason: str, then: Callable[[], None]) -> None:
        """Closes every connection; `then` is called when the last one is gone."""
        if not self.connections:
            then()
            return
        self._on_empty.append(then)
        for connection in tuple(self.connections):
            if connection.state == WebSocketProtocol.STATE_CONNECTING:
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

    def log_failure(self, text: str) -> None:
        """Logs the exception at hand."""
        self._logger.failure(text)


def origin_allowed(origin: str | None, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a browser at `origin` may connect to a server that it reached as `host`.

    No origin at all is fine: it is not a browser. `null` never is.
    """
    if not origin or "*" in allowed or origin in allowed:
        return origin != "null"
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    default_port = 443 if parts.scheme == "https" else 80
    try:
        host_parts = urlsplit("//" + host)
        return (parts.hostname, parts.port or default_port) == (
            host_parts.hostname,
            host_parts.port or default_port,
        )
    except ValueError:
        return False
