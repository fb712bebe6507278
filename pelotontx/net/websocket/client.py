"""The client's end of a WebSocket, on Autobahn: `connect` gives a `Connection` for text messages.

Autobahn's own defaults are not ours: every option is set here, its timers run on our `Wheel`
instead of the global reactor, and what it would log is told by the `Disconnected` that the caller
gets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.types import ConnectingRequest
from autobahn.websocket.util import parse_url
from service_identity import VerificationError
from twisted.internet import ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IPushProducer,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from websockets.frames import apply_mask  # type: ignore[attr-defined]
from zope.interface import implementer

from pelotontx.errors import Disconnected, LocalProtocolError, SlowConsumer
from pelotontx.net.wheel import Timer, Wheel

# An answer's head: the same bound as for requests; Autobahn alone would buffer without end.
_HEAD_LIMIT_BYTES: Final = 16 * 1024
_NO_CODE: Final = 1005
_ABNORMAL: Final = 1006
_TEXT_FINAL: Final = 0x81

_has_control = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_is_url = re.compile(r"wss?://[\x21-\x7e]+\Z", re.IGNORECASE).match


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds of one connection.

    Attributes:
        limit_bytes: the longest incoming message; past it the connection is closed with 1009. A
            result may have 1 MiB, and its envelope adds to it.
        outbound_limit_bytes: how much may wait for a peer that does not read; past it `send`
            raises.
        connect_timeout_s: for the name lookup and TCP.
        open_timeout_s: for TLS and the opening handshake.
        close_timeout_s: for the closing handshake and again for the end of TCP after it.
        ping_interval_s: silence after which the peer is asked whether it lives.
        ping_timeout_s: how long its answer may take.
    """

    limit_bytes: int = 2 * 1024 * 1024
    outbound_limit_bytes: int = 1024 * 1024
    connect_timeout_s: float = 5.0
    open_timeout_s: float = 5.0
    close_timeout_s: float = 2.0
    ping_interval_s: float = 25.0
    ping_timeout_s: float = 10.0


class _Silent:
    """Takes Autobahn's log calls: it warns of what we give the caller as an error."""

    def debug(self, *_: object, **__: object) -> None: ...

    info = warn = error = failure = debug


@implementer(IPushProducer)
class Connection(WebSocketClientProtocol):  # type: ignore[misc]
    """One WebSocket connection; made by `connect`.

    Attributes:
        opened: fires with this connection once it is open; errbacks with `Disconnected`. Cancelling
            drops TCP.
    """

    log = _Silent()
    factory: ConnectionFactory
    transport: Any
    data: bytes
    message_data: list[bytes]
    _log = Logger()

    def __init__(self) -> None:
        super().__init__()
        self.opened: Deferred[Connection] = Deferred(self._cancelled)
        self._waiting_for_end: list[Deferred[None]] = []
        self._drop_timer: Timer | None = None
        self._is_open = False
        self._is_gone = False
        self._paused = False
        self._unsent_bytes = 0

    def _cancelled(self, _: Deferred[Connection]) -> None:
        self.abort()

    def send(self, message: bytes) -> None:
        """Sends one text message, which must be UTF-8.

        Raises:
            Disconnected: the connection is closing or closed; nothing was sent.
            SlowConsumer: the peer does not read; nothing was sent.
        """
        if self.state != self.STATE_OPEN:
            raise Disconnected("the connection is closing")
        if self._paused:
            limit_bytes = self.factory.options.outbound_limit_bytes
            if self._unsent_bytes + len(message) > limit_bytes:
                raise SlowConsumer(limit_bytes)
            self._unsent_bytes += len(message)
        # Not Autobahn's `sendFrame`: it masks and frames five times as slowly.
        self.transport.write(_text_frame(message))

    def close(self, code: int = 1000, reason: str = "") -> Deferred[None]:
        """Closes with a closing handshake, bounded in time; no message is delivered after this.

        Returns:
            a Deferred that fires when TCP is gone.
        """
        if self.state == self.STATE_OPEN:
            # A reason has at most 123 bytes (RFC 6455, 5.5).
            text = reason.encode()[:123].decode(errors="ignore").encode()
            self.sendCloseFrame(code=code, reasonUtf8=text)
        elif self.state == self.STATE_CONNECTING:
            self.abort()
        return self._end()

    def abort(self) -> Deferred[None]:
        """Drops TCP without a closing handshake; fires when it is gone."""
        if not self._is_gone:
            self.wasNotCleanReason = "dropped by this side"
            self.dropConnection(abort=True)
        return self._end()

    def _end(self) -> Deferred[None]:
        if self._is_gone:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._waiting_for_end.append(ended)
        return ended

    # Called by the transport.

    def connectionMade(self) -> None:
        # Autobahn tries this too, before it has the option, and hides the AttributeError. Without
        # it a second small message waits for the first one's TCP acknowledgement: 44 ms.
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self._dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_gone = True
        if isinstance(reason.value, VerificationError):
            self.wasNotCleanReason = "the server's certificate is for another host"
        elif self.wasNotCleanReason is None and isinstance(
            reason.value, ConnectionDone | ConnectionLost
        ):
            self.wasNotCleanReason = "the server dropped the connection"
        super().connectionLost(reason)
        for timer in (self._drop_timer, self.closeHandshakeTimeoutCall):
            if timer is not None:
                timer.cancel()
        waiting, self._waiting_for_end = self._waiting_for_end, []
        for ended in waiting:
            ended.callback(None)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._unsent_bytes = 0

    def stopProducing(self) -> None:
        self._paused = False

    # Called by Autobahn.

    def processData(self) -> bool:
        """Handles frames at the head of `data`; tells whether there may be more of them.

        Plain ones, nearly all, in one loop; anything else is Autobahn's.
        """
        if self.state == self.STATE_OPEN and self.current_frame is None and not self.inside_message:
            self.data = self._receive_whole_texts(self.data)
            if not self.data:
                return False
        more: bool = super().processData()
        return more

    def _receive_whole_texts(self, data: bytes) -> bytes:
        """Delivers the complete, unfragmented texts at the head of `data`; returns the rest."""
        position, end = 0, len(data)
        limit = self.factory.options.limit_bytes
        while end - position >= 4 and data[position] == _TEXT_FINAL:
            length, start = data[position + 1], position + 2
            if length == 126:
                length, start = data[position + 2] << 8 | data[position + 3], position + 4
                if length < 126:
                    break
            elif length > 126:  # masked, or of 64 KiB and more
                break
            stop = start + length
            if stop > end or length > limit:
                break
            message = data[start:stop]
            if not message.isascii():
                try:
                    message.decode()
                except UnicodeDecodeError:
                    break
            position = stop
            self._deliver(message)
            if self.state != self.STATE_OPEN:
                break
        if position and self.autoPingTimeoutCall is not None:
            self._cancelAutoPingTimeoutCall()  # whoever sends is alive
        return data[position:] if position else data

    def onConnecting(self, transport_details: object) -> ConnectingRequest:
        factory = self.factory
        return ConnectingRequest(
            # Autobahn leaves the brackets of an IPv6 address away, which is no valid Host.
            host=f"[{factory.host}]" if ":" in factory.host else factory.host,
            port=factory.port,
            resource=factory.resource,
            headers=factory.headers,
            useragent=factory.useragent,
            origin=factory.origin,
            protocols=factory.protocols,
        )

    def processHandshake(self) -> Any:
        if len(self.data) > _HEAD_LIMIT_BYTES and b"\r\n\r\n" not in self.data[:_HEAD_LIMIT_BYTES]:
            return self.failHandshake("the answer's head is too long")
        try:
            return super().processHandshake()
        except Exception as error:  # Autobahn lets a malformed head raise anything
            return self.failHandshake(f"malformed answer: {error}")

    def onOpen(self) -> None:
        if self.factory.protocols and self.websocket_protocol_in_use is None:
            self.failHandshake(f"the server does not speak {', '.join(self.factory.protocols)}")
            return
        self._is_open = True
        self.transport.registerProducer(self, True)
        self.opened.callback(self)

    def onMessageEnd(self) -> None:
        # Instead of Autobahn's, which makes a Deferred for each message.
        if not self.failedByMe and not self.closedByMe:
            if self.message_is_binary:
                self._fail_connection(1003, "text messages only")
            else:
                self._deliver(b"".join(self.message_data))
        self.message_data = []

    def _deliver(self, message: bytes) -> None:
        try:
            self.factory.on_message(message)
        except Exception:  # our caller's fault; Autobahn would drop TCP without a word
            self._log.failure("The receiver of a message failed")
            self._fail_connection(1011, "internal error")

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> bool | None:
        result: bool | None = super().onCloseFrame(code, reasonRaw)
        # The server ends TCP (RFC 6455, 7.1.1). Autobahn waits for it with the global reactor's
        # timer when we closed first, and for ever when the server did.
        if self._drop_timer is None and self.state == self.STATE_CLOSING:
            self._drop_timer = self.factory.wheel.call_later(
                self.factory.options.close_timeout_s, self.onServerConnectionDropTimeout
            )
        return result

    def _closeConnection(self, abort: bool = False) -> None:
        # Also where Autobahn would not abort: behind a peer that does not read, loseConnection
        # would wait for ever.
        self.transport.abortConnection()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        error = self._reason_of_end(wasClean)
        if self._is_open:
            self.factory.on_close(error)
        elif not self.opened.called:
            self.opened.errback(Disconnected(error.reason))

    def _reason_of_end(self, was_clean: bool) -> Disconnected:
        if self.closedByMe:
            reason = (self.localCloseReason or b"").decode()
            return Disconnected(reason or "closed by this side", self.localCloseCode)
        if was_clean:
            code = _NO_CODE if self.remoteCloseCode is None else self.remoteCloseCode
            return Disconnected(self.remoteCloseReason or "closed by the server", code)
        return Disconnected(str(self.wasNotCleanReason), _ABNORMAL)


def _text_frame(message: bytes) -> bytes:
    """One final, masked frame (RFC 6455, 5.2 and 5.3)."""
    length = len(message)
    if length < 126:
        head = bytes((_TEXT_FINAL, 0x80 | length))
    elif length < 65536:
        head = bytes((_TEXT_FINAL, 0x80 | 126, length >> 8, length & 0xFF))
    else:
        head = bytes((_TEXT_FINAL, 0x80 | 127)) + length.to_bytes(8, "big")
    mask = os.urandom(4)
    return b"%b%b%b" % (head, mask, apply_mask(message, mask))


class ConnectionFactory(WebSocketClientFactory):  # type: ignore[misc]
    """Makes `Connection`s with every option set; see `connect` for the arguments."""

    protocol: Any = Connection
    log = _Silent()
    noisy = False

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        wheel: Wheel,
        on_message: Callable[[bytes], object],
        on_close: Callable[[Disconnected], object],
        subprotocols: Sequence[str],
        headers: Mapping[str, str],
        options: Options,
    ) -> None:
        check_request(url, headers)
        super().__init__(
            url=url,
            protocols=list(subprotocols),
            useragent="pelotontx",
            headers=dict(headers),
            reactor=reactor,
        )
        self.wheel = self._batched_timer = wheel
        self.on_message = on_message
        self.on_close = on_close
        self.options = options
        self.setProtocolOptions(
            version=13,
            utf8validateIncoming=True,
            acceptMaskedServerFrames=False,
            maskClientFrames=True,
            applyMask=True,
            maxFramePayloadSize=options.limit_bytes,
            maxMessagePayloadSize=options.limit_bytes,
            autoFragmentSize=0,
            failByDrop=False,
            echoCloseCodeReason=True,
            # Ours instead, on the wheel: Connection.onCloseFrame.
            serverConnectionDropTimeout=0,
            openHandshakeTimeout=options.open_timeout_s,
            closeHandshakeTimeout=options.close_timeout_s,
            tcpNoDelay=True,
            perMessageCompressionOffers=[],
            perMessageCompressionAccept=_refuse_compression,
            autoPingInterval=options.ping_interval_s,
            autoPingTimeout=options.ping_timeout_s,
            autoPingSize=12,
            autoPingRestartOnAnyTraffic=True,
        )


def _refuse_compression(_: object) -> None:
    """Autobahn fails the handshake for None: the server compresses although we did not offer it."""


def check_request(url: str, headers: Mapping[str, str]) -> None:
    """Refuses a URL or headers that cannot be used for an opening handshake.

    Raises:
        LocalProtocolError: with what is wrong.
    """
    if _is_url(url) is None:
        raise LocalProtocolError(f"{url!r} is not a ws:// or wss:// URL in plain ASCII")
    if "@" in url.split("/", 3)[2]:
        raise LocalProtocolError(
            "a WebSocket URL carries no password: send an Authorization header"
        )
    try:
        host = parse_url(url)[1]
    except ValueError as error:
        raise LocalProtocolError(f"{url!r}: {error}") from None
    if host == "unix":
        raise LocalProtocolError(f"{url!r}: UNIX sockets are not supported")
    for name, value in headers.items():
        if _is_token(name) is None or _has_control(value) is not None:
            raise LocalProtocolError(f"header {name!r} cannot be sent")


def connect(
    reactor: Any,
    url: str,
    *,
    wheel: Wheel,
    on_message: Callable[[bytes], object],
    on_close: Callable[[Disconnected], object],
    subprotocols: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    tls: IOpenSSLClientConnectionCreator | None = None,
    options: Options | None = None,
) -> Deferred[Connection]:
    """Opens a WebSocket connection.

    Args:
        reactor: for the name lookup and TCP.
        url: ws:// or wss://; the certificate of the latter is verified.
        wheel: for every deadline; must live as long as the connection.
        on_message: gets each text message's bytes.
        on_close: called once, when a connection that was open is gone; its error tells why.
        subprotocols: when there are any, the server must choose one of them.
        headers: more request headers.
        tls: instead of the platform's trust roots (`twisted.internet.ssl.optionsForClientTLS`).
        options: the bounds.

    Returns:
        a Deferred of the open connection; it errbacks with `Disconnected`, which says whether
        the name, TCP, TLS, or the server's answer was the cause, or with `LocalProtocolError` for a
        URL or a header that cannot be used. Cancelling drops what is under way.
    """
    return Deferred.fromCoroutine(
        _connect(
            reactor,
            url,
            wheel,
            tls,
            options or Options(),
            on_message=on_message,
            on_close=on_close,
            subprotocols=subprotocols,
            headers=headers or {},
        )
    )


async def _connect(
    reactor: Any,
    url: str,
    wheel: Wheel,
    tls: IOpenSSLClientConnectionCreator | None,
    options: Options,
    **arguments: Any,
) -> Connection:
    factory = ConnectionFactory(reactor, url, wheel=wheel, options=options, **arguments)
    endpoint = _endpoint(reactor, factory.host, factory.port, options.connect_timeout_s)
    if factory.isSecure:
        endpoint = wrapClientTLS(tls or ssl.optionsForClientTLS(factory.host), endpoint)
    attempt = endpoint.connect(factory)
    # The endpoint's own timeout does not bound the name lookup.
    deadline = wheel.call_later(options.connect_timeout_s, attempt.cancel)
    try:
        connection: Any = await attempt
    except (ConnectingCancelledError, CancelledError):
        raise Disconnected(f"{url}: no connection in time") from None
    except (ConnectError, OSError) as error:
        raise Disconnected(f"{url}: {str(error).rstrip('.')}") from None
    finally:
        deadline.cancel()
    try:
        opened: Connection = await connection.opened
    except Disconnected as error:
        raise Disconnected(f"{url}: {error.reason}") from None
    return opened


def _endpoint(reactor: Any, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint:
    # Twisted would look an address up, too, in a thread that cannot be cancelled.
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, timeout=timeout_s)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, timeout=timeout_s)
    return HostnameEndpoint(reactor, host, port, timeout=timeout_s)
