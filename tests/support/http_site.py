"""A server of a few routes on a free port, on whatever reactor the tests were started with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory

from pelotontx.net.http import HTTPFactory, HTTPLimits
from pelotontx.net.tcp import connect, listen
from pelotontx.net.wheel import Wheel
from pelotontx.web import App, Request
from tests.support.conversation import Conversation


class Site:
    """The server, and the clients that called it."""

    def __init__(
        self,
        limits: HTTPLimits | None = None,
        *,
        app: App | None = None,
        request_class: type[Request] = Request,
    ) -> None:
        self.app = app or App()
        self.wheel = Wheel(reactor)
        self.factory = HTTPFactory(
            self.app.handle,
            wheel=self.wheel,
            clock=reactor,
            limits=limits,
            request_class=request_class,
        )
        self.ports: list[Any] = []
        self.clients: list[Conversation] = []

    async def listen(self, description: str = "tcp:0:interface=127.0.0.1") -> Any:
        port: Any = await listen(reactor, description, self.factory)
        self.ports.append(port)
        return port

    @property
    def number(self) -> int:
        """The first port's."""
        return int(self.ports[0].getHost().port)

    async def call(self) -> Conversation:
        description = f"tcp:127.0.0.1:{self.number}"
        protocol = await connect(reactor, description, Factory.forProtocol(Conversation))
        assert isinstance(protocol, Conversation)
        self.clients.append(protocol)
        return protocol

    async def turns(self, client: Conversation) -> None:
        """Has the server answer another client, after whatever it was told before."""
        for _ in range(3):
            seen = client.data.count(b"HTTP/1.1")
            client.say(get("/"))
            await client.until(b"HTTP/1.1", seen + 1)

    async def stop(self) -> None:
        for port in self.ports:
            await port.stopListening()
        await self.factory.drain(1)
        for client in self.clients:
            await client.until(None)
        self.wheel.stop()


@asynccontextmanager
async def serving(limits: HTTPLimits | None = None) -> AsyncIterator[Site]:
    site = Site(limits)
    await site.listen()
    try:
        yield site
    finally:
        await site.stop()


@asynccontextmanager
async def served(app: App, *, request_class: type[Request] = Request) -> AsyncIterator[str]:
    """Serves `app` within an ``async with``; gives its URL, without a slash at the end."""
    site = Site(app=app, request_class=request_class)
    await site.listen()
    try:
        yield f"http://127.0.0.1:{site.number}"
    finally:
        await site.stop()


def get(path: str, extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode()
