"""An `App` served on a free port of this process, by the real HTTP stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor

from pelotontx.net.http import HTTPFactory, HTTPLimits
from pelotontx.net.tcp import listen
from pelotontx.net.wheel import Wheel
from pelotontx.web.app import App, Request


@asynccontextmanager
async def serving(
    app: App, limits: HTTPLimits | None = None, request_class: type[Request] = Request
) -> AsyncIterator[str]:
    """Serves `app` within an ``async with``; gives its URL, without a slash at the end."""
    wheel = Wheel(reactor)
    factory = HTTPFactory(
        app.handle, wheel=wheel, clock=reactor, limits=limits, request_class=request_class
    )
    port: Any = await listen(reactor, "tcp:0:interface=127.0.0.1", factory)
    try:
        yield f"http://127.0.0.1:{port.getHost().port}"
    finally:
        await port.stopListening()
        await factory.drain(1)
        wheel.stop()
