"""treq with our deadlines, against servers of ours and against ones that misbehave."""

from __future__ import annotations

import gzip
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, CertificateOptions
from twisted.python.failure import Failure
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    ResponseFailed,
    ResponseNeverReceived,
)

from pelotontx.errors import TimedOut
from pelotontx.flow import Stream, timeout
from pelotontx.net.http import HTTPFactory
from pelotontx.net.http.client import AnswerTooLong, fetch, http_client
from pelotontx.net.wheel import Wheel
from pelotontx.web import App, Request, Response
from tests.support.conversation import certificate
from tests.support.http_site import served
from tests.support.programs import Program
from tests.support.servers import free_port

ROOT = Path(__file__).parents[2]
LIMIT_S = 20

app = App()


@app.post(r"^/echo$")
def echo(request: Request) -> dict[str, object]:
    return {
        "query": request.query,
        "x": request.header("x-test"),
        "type": request.header("content-type"),
        "body": request.body.decode(),
    }


@app.get(r"^/chunks$")
def chunks(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d," % number

    return Response(200, pieces())


@app.get(r"^/long$")
def long(request: Request) -> bytes:
    return b"z" * 5000


@app.get(r"^/packed$")
def packed(request: Request) -> Response:
    return Response(200, gzip.compress(b"z" * 5000), {"Content-Encoding": "gzip"})


@app.get(r"^/away$")
def away(request: Request) -> Response:
    return Response(302, b"", {"Location": "/long", "Set-Cookie": "a=b; Path=/"})


@app.get(r"^/cookie$")
def cookie(request: Request) -> str:
    return request.cookies.get("a", "none")


@pytest_twisted.ensureDeferred
async def test_params_headers_and_bodies_arrive() -> None:
    async with served(app) as url:
        sent = await fetch(
            reactor,
            "POST",
            f"{url}/echo",
            params={"page": "2"},
            headers={"X-Test": "yes"},
            json={"a": 1},
        )
        assert sent.status == 200
        assert sent.json() == {
            "query": {"page": ["2"]},
            "x": "yes",
            "type": "application/json; charset=UTF-8",
            "body": '{"a":1}',
        }
        plain = await fetch(reactor, "POST", f"{url}/echo", data=b"bytes")
        assert plain.json(dict[str, object])["body"] == "bytes"


@pytest_twisted.ensureDeferred
async def test_fixed_chunked_and_compressed_answers_are_read_whole() -> None:
    async with served(app) as url:
        chunked = await fetch(reactor, "GET", f"{url}/chunks")
        assert chunked.headers.getRawHeaders("transfer-encoding") is None  # the framing is done
        assert chunked.body == b"".join(b"%d," % number for number in range(100))
        assert (await fetch(reactor, "GET", f"{url}/long")).body == b"z" * 5000
        assert (await fetch(reactor, "GET", f"{url}/packed")).body == b"z" * 5000
        assert (await fetch(reactor, "GET", f"{url}/nothing")).status == 404


@pytest_twisted.ensureDeferred
async def test_a_longer_answer_than_wanted_is_refused() -> None:
    async with served(app) as url:
        for path in ("/long", "/packed"):
            with pytest.raises(AnswerTooLong):
                await fetch(reactor, "GET", url + path, limit_bytes=4999)
            assert len((await fetch(reactor, "GET", url + path, limit_bytes=5000)).body) == 5000


@pytest_twisted.ensureDeferred
async def test_redirects_are_followed_and_cookies_kept_only_when_asked_for() -> None:
    async with served(app) as url:
        assert (await fetch(reactor, "GET", f"{url}/away")).status == 302
        assert (await fetch(reactor, "GET", f"{url}/cookie")).body == b"none"
        followed = await fetch(reactor, "GET", f"{url}/away", allow_redirects=True)
        assert (followed.status, len(followed.body)) == (200, 5000)
        client = http_client(reactor)
        await fetch(reactor, "GET", f"{url}/away", client=client)
        assert (await fetch(reactor, "GET", f"{url}/cookie", client=client)).body == b"b"


@pytest_twisted.ensureDeferred
async def test_a_pool_keeps_the_connection() -> None:
    seen = []
    keeping = App()
    keeping.get(r"^/$")(lambda request: str(seen.append(str(request.peer))))
    async with served(keeping) as url:
        pool = HTTPConnectionPool(reactor)
        client = http_client(reactor, pool=pool)
        for _ in range(3):
            await fetch(reactor, "GET", f"{url}/", client=client)
        await pool.closeCachedConnections()
    assert (len(seen), len(set(seen))) == (3, 1)


class Says(Protocol):
    """Answers any request with `says`, and does not go on."""

    says = b""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self.says)
        self.says = b""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        lost: Stream[bytes] = self.factory.lost  # type: ignore[union-attr]
        lost.offer(b"lost")


@asynccontextmanager
async def saying(says: bytes) -> AsyncIterator[tuple[str, Stream[bytes]]]:
    """A server that begins an answer; its URL, and where lost connections are told."""
    factory = Factory.forProtocol(type("Saying", (Says,), {"says": says}))
    factory.lost = Stream()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield f"http://127.0.0.1:{port.getHost().port}/", factory.lost
    finally:
        await port.stopListening()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"


@pytest_twisted.ensureDeferred
async def test_a_head_that_does_not_come_is_given_up() -> None:
    async with saying(b"HTTP/1.1 200 OK\r\n") as (url, lost):
        with pytest.raises(TimedOut) as error:
            await fetch(reactor, "GET", url, head_timeout_s=0.1)
        assert error.value.timeout_s == 0.1
        await timeout(reactor, LIMIT_S, anext(lost))


@pytest_twisted.ensureDeferred
async def test_a_body_that_does_not_end_is_given_up() -> None:
    async with saying(HEAD) as (url, lost):
        with pytest.raises(TimedOut) as error:
            await fetch(reactor, "GET", url, timeout_s=0.3)
        assert error.value.timeout_s == 0.3
        await timeout(reactor, LIMIT_S, anext(lost))


@pytest_twisted.ensureDeferred
async def test_cancelling_closes_the_connection() -> None:
    for says in (b"", HEAD):
        async with saying(says) as (url, lost):
            fetching = fetch(reactor, "GET", url)
            reactor.callLater(0.1, fetching.cancel)
            with pytest.raises((CancelledError, ResponseNeverReceived)):
                await fetching
            await timeout(reactor, LIMIT_S, anext(lost))


@pytest_twisted.ensureDeferred
async def test_a_cut_answer_is_no_answer() -> None:
    class Cuts(Says):
        says = HEAD

        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            assert self.transport is not None
            self.transport.loseConnection()

    factory = Factory.forProtocol(Cuts)
    factory.lost = Stream()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    with pytest.raises(ResponseFailed):
        await fetch(reactor, "GET", f"http://127.0.0.1:{port.getHost().port}/")
    await timeout(reactor, LIMIT_S, anext(factory.lost))
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_nobody_there_is_told() -> None:
    with pytest.raises(ConnectionRefusedError):
        await fetch(reactor, "GET", f"http://127.0.0.1:{free_port()}/")


@pytest_twisted.ensureDeferred
async def test_certificates_are_verified(tmp_path: Path) -> None:
    pem = certificate(tmp_path).read_bytes()
    wheel = Wheel(reactor)
    factory = HTTPFactory(app.handle, wheel=wheel, clock=reactor, request_class=Request)
    own = CertificateOptions(*_key_and_certificate(pem))
    port = reactor.listenSSL(0, factory, own, interface="127.0.0.1")
    url = f"https://localhost:{port.getHost().port}/long"
    try:
        with pytest.raises(ResponseNeverReceived, match="certificate verify failed"):
            await fetch(reactor, "GET", url)
        trusting = BrowserLikePolicyForHTTPS(Certificate.loadPEM(pem))
        client = http_client(reactor, tls=trusting)
        assert (await fetch(reactor, "GET", url, client=client)).status == 200
    finally:
        await port.stopListening()
        await factory.drain(1)
        wheel.stop()


def _key_and_certificate(pem: bytes) -> tuple[object, object]:
    from OpenSSL import crypto

    return (
        crypto.load_privatekey(crypto.FILETYPE_PEM, pem),
        crypto.load_certificate(crypto.FILETYPE_PEM, pem),
    )


@pytest_twisted.ensureDeferred
async def test_the_example_prints_an_answer(tmp_path: Path) -> None:
    async with served(app) as url:
        example = Program(
            reactor,
            str(ROOT / "examples" / "http_client.py"),
            f"{url}/echo",
            folder=tmp_path,
            command=(sys.executable,),
        )
        ended: Deferred[object] = Deferred.fromCoroutine(example.ended())
        example.child.start()
        await ended
        assert "200" in example.lines[0]
        assert '"page":["2"]' in example.output
