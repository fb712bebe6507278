"""What all connections of a WebSocket endpoint share, and what makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.protocol import WebSocketProtocol

from pelotontx.net.admission import Admission
from pelotontx.net.websocket.connection import (
    CONNECTING,
    OPEN,
    Accept,
    ServerConnection,
)
from pelotontx.net.websocket.deflate import Deflater
from pelotontx.net.websocket.message import (
    WebSocketLimits,
)
from pelotontx.net.wheel import Wheel


class ServerFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes the connections of one WebSocket endpoint.

    Args:
        reactor: handed to Autobahn.
        wheel: for handshake, ping and close deadlines.
        accept: decides about each opening request.
        limits: what peers may do.
        origins: further origins (``https://host[:port]``) that browsers may come from, besides the
            server's own; ``*`` allows all but `null`.
        admission: where connections are counted as long as they are here.

    Attributes:
        connections: all that are there, from the opening request to the end of TCP.
        slow_consumers: how many were closed for not reading.
        floods: how many were closed for too many frames.
        deflater: compresses what is sent.

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
        admission: Admission | None = None,
    ) -> None:
        super().__init__(reactor=reactor)
        self.wheel = self._batched_timer = wheel  # the latter is Autobahn's name for such a thing
        self.limits = limits or WebSocketLimits()
        self.accept = accept
        self.origins = origins
        self._admission = admission or Admission(reactor.seconds)
        self.connections: dict[ServerConnection, None] = {}
        self.slow_consumers = 0
        self.floods = 0
        self.deflater = Deflater(self.limits.deflate_from_bytes)
        self._seconds = reactor.seconds
        self._second = 0
        self._frames: dict[ServerConnection, int] = {}
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
            if connection.state == CONNECTING:
                connection.dropConnection(abort=True)
            else:
                connection.close(code, reason)

    def has_too_many_frames(self, connection: ServerConnection) -> bool:
        """Counts a frame that is no message, or comes after a close, within this second.

        Such frames pass by every rate of messages, and cost more than one.
        """
        second = int(self._seconds())
        if second != self._second:
            self._second = second
            self._frames.clear()
        count = self._frames[connection] = self._frames.get(connection, 0) + 1
        rate = self.limits.frame_rate
        if not rate or count <= rate:
            return False
        if connection.state == OPEN:
            self.floods += 1
        return True

    def connection_made(self, connection: ServerConnection) -> None:
        """Told by a connection that it is there."""
        self.connections[connection] = None
        self._admission.enter(connection.transport)

    def connection_closed(self, connection: ServerConnection) -> None:
        """Told by a connection that it is gone."""
        self.connections.pop(connection, None)
        self._admission.leave(connection.transport)
        self._frames.pop(connection, None)
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
