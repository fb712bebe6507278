"""What the gateway serves over HTTP: the WebSocket, and the client for browsers."""

from __future__ import annotations

import re
from importlib.resources import files

from pelotontx.net.http import Upgrade
from pelotontx.net.websocket import ServerFactory
from pelotontx.web import App, Request, Response, text


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
    module = files("pelotontx.gateway").joinpath("peloton.js").read_bytes()

    @app.get(f"^{re.escape(path)}$")
    def client(request: Request) -> Response:
        return Response(
            200,
            module,
            {"Cache-Control": "no-cache"},
            content_type="text/javascript; charset=utf-8",
        )

    return app
