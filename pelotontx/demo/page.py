"""The demo page as an `App`: static files of this package, read and prepared once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Final

from pelotontx.net.http import Response
from pelotontx.web import App, Request

# Everything from this server and nothing inline; a WebSocket to the same host is part of 'self'.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS: Final = (
    ("Cache-Control", "no-cache"),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

_INDEX: Final = "index.html"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page.

    Attributes:
        body: what is sent.
        content_type: the header's value.
    """

    body: bytes
    content_type: str


def assets(path: str, *, websocket_path: str, client_path: str) -> dict[str, Asset]:
    """All files of the page by the paths they are served at.

    Args:
        path: where index.html is served; the rest stands in ``demo/`` below it.
        websocket_path: where the page finds the juggler WebSocket.
        client_path: where the page finds peloton.js.

    Raises:
        ValueError: `path` does not begin with a slash.
    """
    if not path.startswith("/"):
        raise ValueError(f"the demo's path begins with a slash, unlike {path!r}")
    folder = f"{path.rstrip('/')}/demo/"
    found = {}
    for file in files("pelotontx.demo").joinpath("static").iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix not in _TYPES:
            continue
        body = file.read_bytes()
        if file.name == _INDEX:
            body = _filled(body, websocket=websocket_path, client=client_path, demo=folder)
        name = path if file.name == _INDEX else folder + file.name
        found[name] = Asset(body, _TYPES[suffix])
    return found


def _filled(page: bytes, **values: str) -> bytes:
    for name, value in values.items():
        page = page.replace(b"{{%b}}" % name.encode(), escape(value).encode())
    return page


def routes(
    path: str = "/", *, websocket_path: str = "/ws", client_path: str = "/peloton.js"
) -> App:
    """The demo as an application; arguments and errors as `assets`."""
    app = App()
    found = assets(path, websocket_path=websocket_path, client_path=client_path)
    for name, asset in found.items():
        app.get(f"^{re.escape(name)}$")(_sender(asset))
    return app


def _sender(asset: Asset) -> Callable[[Request], Response]:
    def send(request: Request) -> Response:
        return Response(200, asset.body, _HEADERS, asset.content_type)

    return send
