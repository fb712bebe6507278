"""The HTTP stack on real sockets, on whatever reactor the tests were started with."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from pelotontx.net.http import BodyWriter, HTTPLimits, Response, Upgrade
from pelotontx.net.tcp import connect, listen, unsent_bytes
from pelotontx.web import Request
from tests.support.conversation import LIMIT_S, Conversation, certificate
from tests.support.http_site import Site, get, serving


class Echo(Protocol):
    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"<" + data + b">")


@pytest_twisted.ensureDeferred
async def test_requests_are_answered_on_one_connection() -> None:
    async with serving() as site:
        site.app.get(r"^/hello/(\w+)$")(lambda _, name: f"Hello, {name}")
        site.app.post(r"^/echo$")(lambda request: request.body)
        client = await site.call()
        client.say(get("/hello/one"))
        await client.until(b"Hello, one")
        client.say(get("/hello/two") + get("/hello/three"))
        answer = await client.until(b"Hello, three")
        assert answer.index(b"two") < answer.index(b"three")
        body = b"z" * 300_000
        client.say(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + body)
        assert (await client.until(body)).count(b"HTTP/1.1 200 OK") == 4


@pytest_twisted.ensureDeferred
async def test_nodelay_is_set_on_both_ends() -> None:
    async with serving() as site:
        site.app.get(r"^/$")(lambda _: "x")
        client = await site.call()
        client.say(get("/"))
        await client.until(b"\r\n\r\nx")
        (connection,) = site.factory.connections
        for transport in (client.transport, connection.transport):
            handle: socket.socket = transport.getHandle()  # type: ignore[union-attr]
            assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest_twisted.ensureDeferred
async def test_long_body_arrives_whole_at_a_reader_that_stops_now_and_then() -> None:
    async with serving() as site:
        site.app.get(r"^/$")(lambda _: b"z" * 20_000_000)
        client = await site.call()
        client.say(get("/", "Connection: close\r\n"))
        transport: Any = client.transport
        await client.until(b"z")
        for _ in range(3):
            seen = len(client.data)
            transport.pauseProducing()
            (connection,) = site.factory.connections
            assert unsent_bytes(connection.transport) < 1_000_000
            transport.resumeProducing()
            if not client.is_over:
                await client.until(b"z", client.data.count(b"z") + 1)
            assert len(client.data) > seen
        assert (await client.until(None)).count(b"z") == 20_000_000


@pytest_twisted.ensureDeferred
async def test_stream_is_held_back_by_a_peer_that_does_not_read() -> None:
    written: list[int] = []
    held: Deferred[None] = Deferred()

    async def body(writer: BodyWriter) -> None:
        for _ in range(400):
            writer.write(b"z" * 50_000)
            written.append(1)
            waiting = writer.drain()
            if not waiting.called and len(written) > 3 and not held.called:
                held.callback(None)
            await waiting

    async with serving() as site:
        site.app.get(r"^/$")(lambda _: Response(200, body))
        client = await site.call()
        transport: Any = client.transport
        transport.pauseProducing()
        client.say(get("/"))
        await held.addTimeout(LIMIT_S, reactor)
        assert len(written) < 400
        transport.resumeProducing()
        answer = await client.until(b"\r\n0\r\n\r\n")
        assert answer.count(b"z") == 20_000_000


@pytest_twisted.ensureDeferred
async def test_peer_that_does_not_read_is_aborted() -> None:
    lost: Deferred[None] = Deferred()

    async def body(writer: BodyWriter) -> None:
        try:
            while True:
                writer.write(b"z" * 100_000)
                await writer.drain()
        finally:
            lost.callback(None)

    async with serving(HTTPLimits(unread_s=0.3)) as site:
        site.app.get(r"^/$")(lambda _: Response(200, body))
        client = await site.call()
        client.transport.pauseProducing()  # type: ignore[union-attr]
        client.say(get("/"))
        await lost.addTimeout(LIMIT_S, reactor)
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await client.until(None)
        assert site.factory.connections == set()


@pytest_twisted.ensureDeferred
async def test_upgrade_hands_the_socket_over() -> None:
    async with serving() as site:
        echo = Echo()
        site.app.get(r"^/ws$")(lambda _: Upgrade(echo))
        client = await site.call()
        head = get("/ws", "Connection: upgrade\r\nUpgrade: echo\r\n")
        client.say(head)
        assert await client.until(b">") == b"<" + head + b">"
        client.say(b"more")
        await client.until(b"<more>")
        assert site.factory.connections == set()
        client.transport.loseConnection()  # type: ignore[union-attr]
        await echo.lost.addTimeout(LIMIT_S, reactor)


@pytest_twisted.ensureDeferred
async def test_handler_is_cancelled_when_its_client_leaves() -> None:
    started: Deferred[None] = Deferred()
    cancelled: Deferred[None] = Deferred()

    async def wait(_: Request) -> None:
        started.callback(None)
        await Deferred(lambda _: cancelled.callback(None))

    async with serving() as site:
        site.app.get(r"^/$")(wait)
        client = await site.call()
        client.say(get("/"))
        await started.addTimeout(LIMIT_S, reactor)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await cancelled.addTimeout(LIMIT_S, reactor)


@pytest_twisted.ensureDeferred
async def test_client_that_half_closes_after_its_request_gets_the_answer() -> None:
    release: Deferred[str] = Deferred()
    started: Deferred[None] = Deferred()

    async def slow(_: Request) -> str:
        started.callback(None)
        return await release

    async with serving() as site:
        site.app.get(r"^/$")(lambda _: "x")
        site.app.get(r"^/slow$")(slow)
        half, other = await site.call(), await site.call()
        half.say(get("/slow"))
        half.transport.loseWriteConnection()  # type: ignore[union-attr]
        await started.addTimeout(LIMIT_S, reactor)
        await site.turns(other)
        assert len(site.factory.connections) == 2
        handles: list[socket.socket] = [
            connection.transport.getHandle()  # type: ignore[union-attr]
            for connection in site.factory.connections
        ]
        probed = [handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for handle in handles]
        assert sorted(probed) == [0, 1]
        release.callback("finished")
        answer = await half.until(None)
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"finished")


@pytest_twisted.ensureDeferred
async def test_half_closed_connection_without_a_request_ends() -> None:
    async with serving() as site:
        site.app.get(r"^/$")(lambda _: "x")
        for said in (b"", get("/"), b"GET / HTTP/1.1\r\nHo"):
            client = await site.call()
            client.say(said)
            client.transport.loseWriteConnection()  # type: ignore[union-attr]
            answer = await client.until(None)
            assert answer.count(b"HTTP/1.1 200 OK") == said.count(b"\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_stream_is_cancelled_when_a_half_closed_client_vanishes() -> None:
    cancelled: Deferred[None] = Deferred()

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"tick"
                await deferLater(reactor, 0)
        except CancelledError:
            cancelled.callback(None)
            raise

    async with serving() as site:
        site.app.get(r"^/$")(lambda _: Response(200, body()))
        client = await site.call()
        client.say(get("/"))
        client.transport.loseWriteConnection()  # type: ignore[union-attr]
        await client.until(b"tick", 100)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await cancelled.addTimeout(LIMIT_S, reactor)


@pytest_twisted.ensureDeferred
async def test_refused_upload_still_sees_its_answer() -> None:
    async with serving() as site:
        site.app.post(r"^/$")(lambda request: request.body)
        client = await site.call()
        client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
        client.say(b"z" * 2_000_000)
        answer = await client.until(None)
        assert answer.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
        assert answer.endswith(b"</html>\n")


@pytest_twisted.ensureDeferred
async def test_slow_head_is_refused() -> None:
    async with serving(HTTPLimits(head_s=0.2, linger_s=0.1)) as site:
        client = await site.call()
        client.say(b"GET / HTTP/1.1\r\n")
        assert (await client.until(None)).startswith(b"HTTP/1.1 408 ")


@pytest_twisted.ensureDeferred
async def test_drain_lets_busy_connections_answer() -> None:
    release: Deferred[str] = Deferred()
    started: Deferred[None] = Deferred()

    async def slow(_: Request) -> str:
        started.callback(None)
        return await release

    site = Site()
    await site.listen()
    site.app.get(r"^/$")(lambda _: "x")
    site.app.get(r"^/slow$")(slow)
    idle, busy = await site.call(), await site.call()
    idle.say(get("/"))
    await idle.until(b"\r\n\r\nx")
    busy.say(get("/slow"))
    await started.addTimeout(LIMIT_S, reactor)
    stopped = Deferred.fromCoroutine(site.stop())
    await idle.until(None)
    release.callback("finished")
    answer = await busy.until(None)
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(b"finished")
    await stopped


@pytest_twisted.ensureDeferred
async def test_unix_socket_with_mode_and_its_own_client(tmp_path: Path) -> None:
    site = Site()
    path = tmp_path / "http.sock"
    await site.listen(f"unix:{path}:mode=600:lockfile=0")
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        site.app.get(r"^/$")(lambda request: request.client)
        client = await connectProtocol(UNIXClientEndpoint(reactor, str(path)), Conversation())
        client.say(get("/"))
        await client.until(b"\r\n\r\nunix")
        ours: Any = await connect(reactor, f"unix:{path}", Factory.forProtocol(Conversation))
        ours.say(get("/"))
        await ours.until(b"\r\n\r\nunix")
        ours.transport.loseConnection()
        client.transport.loseConnection()
        await ours.until(None)
    finally:
        await site.stop()
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_tls_serves_and_upgrades(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    site = Site()
    await site.listen(f"ssl:0:interface=127.0.0.1:privateKey={pem}")
    try:
        site.app.get(r"^/$")(lambda request: f"secure={request.is_secure}")
        echo = Echo()
        site.app.get(r"^/ws$")(lambda _: Upgrade(echo))
        endpoint = SSL4ClientEndpoint(
            reactor, "127.0.0.1", site.number, CertificateOptions(verify=False)
        )
        client = await connectProtocol(endpoint, Conversation())
        client.say(get("/"))
        await client.until(b"secure=True")
        client.say(get("/ws", "Connection: upgrade\r\nUpgrade: echo\r\n"))
        await client.until(b"\r\n\r\n>")
        client.say(b"more")
        await client.until(b"<more>")
        assert site.factory.connections == set()
        client.transport.loseConnection()  # type: ignore[union-attr]
        await client.until(None)
        await echo.lost.addTimeout(LIMIT_S, reactor)
    finally:
        await site.stop()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_handler_is_cancelled_when_its_tls_client_leaves(tmp_path: Path) -> None:
    started: Deferred[None] = Deferred()
    cancelled: Deferred[None] = Deferred()

    async def wait(_: Request) -> None:
        started.callback(None)
        await Deferred(lambda _: cancelled.callback(None))

    site = Site()
    await site.listen(f"ssl:0:interface=127.0.0.1:privateKey={certificate(tmp_path)}")
    try:
        site.app.get(r"^/$")(wait)
        endpoint = SSL4ClientEndpoint(
            reactor, "127.0.0.1", site.number, CertificateOptions(verify=False)
        )
        client = await connectProtocol(endpoint, Conversation())
        client.say(get("/"))
        await started.addTimeout(LIMIT_S, reactor)
        client.transport.loseConnection()  # type: ignore[union-attr]
        await cancelled.addTimeout(LIMIT_S, reactor)
        await client.until(None)
    finally:
        await site.stop()


@pytest_twisted.ensureDeferred
async def test_port_in_use_is_an_errback() -> None:
    async with serving() as site:
        number = site.ports[0].getHost().port
        with pytest.raises(CannotListenError):
            await listen(reactor, f"tcp:{number}:interface=127.0.0.1", Factory())
