"""A WebSocket echo at /echo, for conformance cases: text to text, binary to binary.

An application of the real server, started where its configuration lies as ``peloton.toml``:

    [web]
    app = "tests.support.echo:app"

The limits are those of the server's own WebSocket.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pelotontx.config import load
from pelotontx.net.http import Upgrade
from pelotontx.net.websocket import Handshake, ServerFactory
from pelotontx.net.wheel import Wheel
from pelotontx.services.limits import websocket_limits
from pelotontx.web import App, Request

app = App()


class Echo:
    """Sends back what it gets."""

    def __init__(self, connection: Any) -> None:
        self.text_received = connection.send_text
        self.binary_received = connection.send_binary

    def connection_lost(self, code: int) -> None: ...


def accept(handshake: Handshake) -> tuple[str | None, Any]:
    """Takes everybody, and the first subprotocol that is offered."""
    return next(iter(handshake.subprotocols), None), Echo


@cache
def endpoint() -> ServerFactory:
    """The WebSocket; made when the reactor runs."""
    from twisted.internet import reactor

    limits = websocket_limits(load("peloton.toml", environ={}, overrides=None).websocket)
    return ServerFactory(reactor, wheel=Wheel(reactor), accept=accept, limits=limits)


@app.get("^/echo$")
def echo(request: Request) -> Upgrade:
    return Upgrade(endpoint().buildProtocol(request.peer))
