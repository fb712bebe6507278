"""An app behind real connections: bodies that arrive slowly, mounts, hooks, streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory

from pelotontx.net.http import Response
from pelotontx.net.tcp import connect
from pelotontx.web import App, HTTPError, Request, stream
from pelotontx.wire.forwarded import Proxies
from tests.support.conversation import Conversation
from tests.support.http_site import served

pytestmark = pytest.mark.reactors


async def call(url: str) -> Conversation:
    port = url.rpartition(":")[2]
    client = await connect(reactor, f"tcp:127.0.0.1:{port}", Factory.forProtocol(Conversation))
    assert isinstance(client, Conversation)
    return client


def post(path: str, length: int, extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


@pytest_twisted.ensureDeferred
async def test_ordinary_handler_waits_for_the_body_and_a_streaming_one_does_not() -> None:
    app = App()
    begun: Deferred[None] = Deferred()
    app.post("/whole")(lambda request: request.body[::-1])

    @app.post("/stream", stream=True)
    async def take(request: Request) -> bytes:
        begun.callback(None)
        return await request.stream.read()

    async with served(app) as url:
        client = await call(url)
        client.say(post("/whole", 6) + b"abc")
        client.say(b"def")
        assert (await client.until(b"fedcba")).startswith(b"HTTP/1.1 200 ")
        client.say(post("/stream", 3))
        await begun
        client.say(b"xyz")
        await client.until(b"\r\n\r\nxyz")
        client.transport.loseConnection()  # type: ignore[union-attr]
        await client.until(None)


@pytest_twisted.ensureDeferred
async def test_refusals_do_not_wait_for_the_body() -> None:
    app = App()

    @app.before
    def only_friends(request: Request) -> None:
        if request.path == "/private":
            raise HTTPError(403)

    app.post("/private")(lambda _: "never")
    app.get("/page")(lambda _: "never")
    app.post("/small", body_limit_bytes=10)(lambda _: "never")
    async with served(app) as url:
        for path, status in (("/private", 403), ("/page", 405), ("/no", 404), ("/small", 413)):
            client = await call(url)
            client.say(post(path, 500_000))
            answer = await client.until(None)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"Connection: close\r\n" in answer
            assert b"<!doctype html>" in answer


@pytest_twisted.ensureDeferred
async def test_limit_of_a_route_is_above_the_servers() -> None:
    app = App()
    size = 3_000_000
    app.post("/upload", body_limit_bytes=size)(lambda request: f"{len(request.body)} bytes")
    async with served(app) as url:
        client = await call(url)
        client.say(post("/upload", size) + b"z" * size)
        await client.until(b"3000000 bytes")
        client.say(post("/upload", size + 1))
        assert b"HTTP/1.1 413 " in await client.until(None)


@pytest_twisted.ensureDeferred
async def test_hooks_and_mounts_are_around_real_requests() -> None:
    app, shop = App(), App()

    class Place:
        def handle(self, request: Request) -> Response:
            return Response(200, f"{request.root_path}|{request.path_info}".encode())

    @app.after
    def mark(request: Request, response: Response) -> None:
        response.add_header("X-Client", request.client)

    shop.mount("/static", Place())
    app.mount("/shop", shop)
    kind: Any = type("Behind", (Request,), {"__slots__": (), "proxies": Proxies(["127.0.0.1"])})
    async with served(app, request_class=kind) as url:
        client = await call(url)
        client.say(
            b"GET /shop/static/a%20b HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9, 1.2.3.4\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = await client.until(None)
        assert answer.endswith(b"\r\n\r\n/shop/static|/a b")
        assert b"X-Client: 1.2.3.4\r\n" in answer


@pytest_twisted.ensureDeferred
async def test_generator_is_ended_when_the_client_goes() -> None:
    app = App()
    closed: Deferred[None] = Deferred()

    @app.get("/")
    def count(request: Request) -> Response:
        return stream(numbers())

    async def numbers() -> AsyncIterator[str]:
        try:
            yield "one\n"
            await Deferred[None]()
        finally:
            closed.callback(None)

    async with served(app) as url:
        client = await call(url)
        client.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"one\n")
        client.transport.abortConnection()  # type: ignore[union-attr]
        await closed.addTimeout(30, reactor)
        await client.until(None)
