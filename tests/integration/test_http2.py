"""HTTP/2 over TLS on real sockets: curl, h2load, a browser, and a client that stops reading."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from pelotontx.net.admission import Admission
from pelotontx.net.http import (
    BodyWriter,
    HTTPConnection,
    HTTPFactory,
    HTTPLimits,
    Request,
    Response,
)
from pelotontx.net.http2 import HTTP2Connection
from pelotontx.net.sendfile import FileSlice
from pelotontx.net.tcp import listen
from pelotontx.net.tls import HTTP_1, HTTP_2, CertificateFiles, Certificates, TLSFactory
from pelotontx.net.wheel import Wheel
from tests.support.browser import chromium, on_browser_thread
from tests.support.certificates import Authority
from tests.support.conversation import LIMIT_S
from tests.support.listening import ListeningServer, secured
from tests.support.servers import eventually, free_port, system_binary

MIB = 1024 * 1024


class Secure:
    """A server of handlers by path, which speaks HTTP/2 and HTTP/1.1 as its clients choose."""

    def __init__(self, folder: Path, limits: HTTPLimits | None) -> None:
        self.handlers: dict[str, Callable[[Request], Any]] = {}
        self.wheel = Wheel(reactor)
        self.factory = HTTPFactory(self.handle, wheel=self.wheel, clock=reactor, limits=limits)
        self.authority = Authority(folder)
        files = CertificateFiles(*map(str, self.authority.issue("one", "localhost", "127.0.0.1")))
        certificates = Certificates([files], protocols=(HTTP_2, HTTP_1))
        certificates.load()
        admission = Admission(reactor.seconds)
        self.tls = TLSFactory(certificates, self.build, admission=admission, wheel=self.wheel)
        self.port: Any = None

    def build(self, negotiated: bytes | None) -> Any:
        kind = HTTP2Connection if negotiated == HTTP_2 else HTTPConnection
        return kind(self.factory)

    def handle(self, request: Request) -> Any:
        return self.handlers[request.path](request)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port.getHost().port}"

    def connected(self) -> ssl.SSLSocket:
        """A blocking connection that has negotiated HTTP/2."""
        plain = socket.create_connection(("127.0.0.1", self.port.getHost().port), LIMIT_S)
        return secured(plain, self.authority.path, alpn=["h2"])

    async def curl(self, path: str, *words: str) -> bytes:
        """Body, then a line of HTTP's version and the status."""
        command = [
            *(system_binary("curl"), "--silent", "--show-error", "--http2", "--max-time", "30"),
            *(
                "--cacert",
                str(self.authority.path),
                "--write-out",
                "\n%{http_version} %{http_code}",
            ),
            *(*words, self.url + path),
        ]
        return await run(command)


def listener(port: int, certificate: Path, key: Path) -> str:
    """The table of a listener that speaks TLS."""
    return (
        f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
        f'certificate = "{certificate}"\nprivate_key = "{key}"\n'
    )


async def run(command: list[str]) -> bytes:
    """What a program prints."""
    done: Any = await deferToThread(
        subprocess.run, command, capture_output=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    output: bytes = done.stdout
    return output


@asynccontextmanager
async def serving(folder: Path, limits: HTTPLimits | None = None) -> AsyncIterator[Secure]:
    site = Secure(folder, limits)
    site.port = await listen(reactor, "tcp:0:interface=127.0.0.1", site.tls)
    try:
        yield site
    finally:
        await site.port.stopListening()
        await site.factory.drain(1)
        site.wheel.stop()
        await deferLater(reactor, 0, lambda: None)  # a stock reactor's last flush


@pytest_twisted.ensureDeferred
async def test_curl_gets_a_refusal_that_comes_before_its_upload_is_over(tmp_path: Path) -> None:
    path = tmp_path / "five"
    path.write_bytes(bytes(5 * MIB))
    async with serving(tmp_path) as site:
        site.handlers["/refused"] = lambda _: Response(400, b"early")
        for _ in range(3):
            out = await site.curl("/refused", "--upload-file", str(path))
            assert out == b"early\n2 400"


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_curl_gets_puts_and_downloads(tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    path = tmp_path / "file"
    path.write_bytes(data)

    async def upload(request: Request) -> Response:
        summed = hashlib.sha256()
        request.stream.limit_bytes = 10 * MIB
        async for piece in request.stream:
            summed.update(piece)
        return Response(200, summed.hexdigest().encode())

    async with serving(tmp_path) as site:
        site.handlers["/hello"] = lambda request: Response(200, b"hello " + request.method.encode())
        site.handlers["/up"] = upload
        site.handlers["/whole"] = lambda request: Response(200, data)
        site.handlers["/file"] = lambda request: Response(200, FileSlice.of(path))
        assert await site.curl("/hello") == b"hello GET\n2 200"
        digest = hashlib.sha256(data).hexdigest().encode()
        assert await site.curl("/up", "--upload-file", str(path)) == digest + b"\n2 200"
        chunked = ("--header", "Content-Length:", "--header", "Expect: 100-continue")
        assert await site.curl("/up", "-T", str(path), *chunked) == digest + b"\n2 200"
        assert await site.curl("/whole") == data + b"\n2 200"
        assert await site.curl("/file") == data + b"\n2 200"
        assert await site.curl("/hello", "--http1.1") == b"hello GET\n1.1 200"


@pytest_twisted.ensureDeferred
async def test_upload_waits_for_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20 * MIB))
    begun: Deferred[Request] = Deferred()
    gate: Deferred[None] = Deferred()

    async def upload(request: Request) -> Response:
        request.stream.limit_bytes = 32 * MIB
        begun.callback(request)
        await gate
        return Response(200, b"%d" % len(await request.stream.read()))

    async with serving(tmp_path) as site:
        site.handlers["/up"] = upload
        site.handlers["/hello"] = lambda request: Response(200, b"hello")
        curl = Deferred.fromCoroutine(site.curl("/up", "-T", str(path)))
        request = await begun
        await eventually(reactor, lambda: request.stream.received > 128 * 1024)
        received = -1
        while received != request.stream.received:  # as long as anything more comes
            received = request.stream.received
            assert await site.curl("/hello") == b"hello\n2 200"
        assert received < MIB
        gate.callback(None)
        assert await curl == b"%d\n2 200" % (20 * MIB)


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_writer_waits_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    written: list[int] = []

    async def body(writer: BodyWriter) -> None:
        for _ in range(512):
            await writer.write(bytes(32 * 1024))
            written.append(1)

    def read_all(connection: ssl.SSLSocket, h2: H2Connection) -> int:
        size = 0
        while True:
            for event in h2.receive_data(connection.recv(65536)):
                if isinstance(event, DataReceived):
                    size += len(event.data)
                    h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamEnded):
                    return size
            connection.sendall(h2.data_to_send())

    async with serving(tmp_path) as site:
        site.handlers["/"] = lambda request: Response(200, body)
        site.handlers["/hello"] = lambda request: Response(200, b"hello")
        with await deferToThread(site.connected) as connection:
            h2 = H2Connection(H2Configuration(client_side=True))
            h2.initiate_connection()
            pairs = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a")]
            h2.send_headers(1, pairs, end_stream=True)
            connection.sendall(h2.data_to_send())
            await eventually(reactor, lambda: len(written) > 1)
            count = -1
            while count != len(written):
                count = len(written)
                assert await site.curl("/hello") == b"hello\n2 200"
            assert count < 16  # the peer's window, and what may wait here
            assert await deferToThread(read_all, connection, h2) == 16 * MIB


@pytest_twisted.ensureDeferred
async def test_handlers_of_a_client_that_leaves_are_cancelled(tmp_path: Path) -> None:
    begun: list[str] = []
    cancelled: list[str] = []

    async def wait(request: Request) -> Response:
        begun.append(request.path)
        try:
            await Deferred[None]()
        except CancelledError:
            cancelled.append(request.path)
            raise
        raise AssertionError

    async with serving(tmp_path) as site:
        site.handlers["/1"] = site.handlers["/2"] = wait
        connection = await deferToThread(site.connected)
        h2 = H2Connection(H2Configuration(client_side=True))
        h2.initiate_connection()
        for stream_id, path in ((1, "/1"), (3, "/2")):
            pairs = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "a")]
            h2.send_headers(stream_id, pairs, end_stream=True)
        connection.sendall(h2.data_to_send())
        await eventually(reactor, lambda: len(begun) == 2)
        h2.reset_stream(1)
        connection.sendall(h2.data_to_send())
        await eventually(reactor, lambda: cancelled == ["/1"])
        connection.close()
        await eventually(reactor, lambda: cancelled == ["/1", "/2"])
        await eventually(reactor, lambda: not site.factory.connections)


@pytest_twisted.ensureDeferred
async def test_drain_finishes_what_is_under_way(tmp_path: Path) -> None:
    begun: Deferred[None] = Deferred()
    gate: Deferred[Response] = Deferred()

    def wait(request: Request) -> Deferred[Response]:
        begun.callback(None)
        return gate

    async with serving(tmp_path) as site:
        site.handlers["/slow"] = wait
        curl = Deferred.fromCoroutine(site.curl("/slow"))
        await begun
        draining = site.factory.drain(LIMIT_S)
        await deferLater(reactor, 0, lambda: None)
        assert site.factory.connections
        gate.callback(Response(200, b"done"))
        assert await curl == b"done\n2 200"
        await draining


async def loaded(site: Secure, path: str, requests: int, clients: int, streams: int) -> str:
    """What h2load says; all of its requests must succeed."""
    shown = (
        await run(
            [
                *(system_binary("h2load"), "-n", str(requests), "-c", str(clients)),
                *("-m", str(streams), site.url + path),
            ]
        )
    ).decode()
    assert re.search(rf"{requests} succeeded, 0 failed, 0 errored", shown), shown
    return shown


@pytest_twisted.ensureDeferred
async def test_h2load_with_a_hundred_streams_each(tmp_path: Path) -> None:
    async def slowly(request: Request) -> Response:
        await deferLater(reactor, 0.01, lambda: None)
        return Response(200, b"slow")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(20_000)

    async with serving(tmp_path, HTTPLimits(requests=100_000)) as site:
        site.handlers["/hello"] = lambda request: Response(200, b"hello")
        site.handlers["/slow"] = slowly
        site.handlers["/long"] = lambda request: Response(200, bytes(100_000))
        site.handlers["/pieces"] = lambda request: Response(200, pieces())
        shown = await loaded(site, "/hello", 4000, 4, 100)
        assert "Application protocol: h2" in shown
        for path in ("/slow", "/long", "/pieces"):
            await loaded(site, path, 400, 2, 100)


MOUNTS = """
[[mount]]
path = "/wsgi"
wsgi = "shown:wsgi"
[[mount]]
path = "/web"
resource = "shown:web"
[[mount]]
path = "/files"
directory = "files"
[access_log]
path = "access.log"
"""

MOUNTED = """
from pelotontx.web import App, html
from twisted.web.resource import Resource

app = App()
app.get("^/who$")(lambda request: html(f"{request.scheme} {request.host}"))
app.post("^/echo$")(lambda request: request.body)

def wsgi(environ, start_response):
    start_response("201 Created", [("X-Path", environ["PATH_INFO"])])
    return [b"wsgi ", environ["wsgi.input"].read()]

class Web(Resource):
    isLeaf = True

    def render_POST(self, request):
        return b"web " + request.content.read() + request.uri

web = Web()
"""


@pytest_twisted.ensureDeferred
async def test_all_that_a_server_serves_is_the_same_in_both_protocols(tmp_path: Path) -> None:
    port = free_port()
    authority = Authority(tmp_path)
    table = listener(port, *authority.issue("one", "localhost"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_bytes(bytes(range(256)) * 2000)
    server = ListeningServer(reactor, table + MOUNTS, folder=tmp_path)
    (tmp_path / "shown.py").write_text(MOUNTED)

    async def asked(*words: str) -> list[bytes]:
        curl = (system_binary("curl"), "--silent", "--show-error", "--include", "--http2")
        shown = await run([*curl, "--cacert", str(authority.path), *words])
        head, _, body = shown.partition(b"\r\n\r\n")
        fields = [line.lower() for line in head.split(b"\r\n")[1:]]
        status = head.split(b" ")[1]
        varying = (b"date:", b"transfer-encoding:", b"connection:")
        return [status, *sorted(line for line in fields if not line.startswith(varying)), body]

    async with server:
        site = f"https://localhost:{port}"
        for words in (
            (f"{site}/who",),
            (f"{site}/nothing",),
            ("--head", f"{site}/who"),
            ("--data-binary", "x" * 100_000, f"{site}/echo"),
            ("--data-binary", "body", f"{site}/wsgi/in/it"),
            ("--data-binary", "body", f"{site}/web/a%20b?c=d"),
            (f"{site}/files/a.txt",),
            ("--range", "100-299", f"{site}/files/a.txt"),
            ("--header", "If-None-Match: *", f"{site}/files/a.txt"),
            ("--header", "Accept-Encoding: gzip", f"{site}/"),
        ):
            assert await asked(*words) == await asked("--http1.1", *words), words
    logged = (tmp_path / "access.log").read_text().splitlines()
    assert logged[0].count('"GET /who HTTP/2" 200') == 1
    assert sum(' HTTP/2" ' in line for line in logged) == 10


PAGE = """<!doctype html><title>one</title><p id=shown></p><script>
const socket = new WebSocket(`wss://${location.host}/ws`, "juggler.0");
socket.onopen = () => { shown.textContent = performance.getEntriesByType("navigation")[0]
    .nextHopProtocol + " " + socket.protocol; };
socket.onerror = () => { shown.textContent = "refused"; };
</script>"""

APPLICATION = f"""
from pelotontx.web import App, html
app = App()
PAGE = {PAGE!r}
app.get("^/page$")(lambda request: html(PAGE))
"""


@pytest_twisted.ensureDeferred
async def test_browser_loads_a_page_by_http_2_and_opens_a_websocket_beside_it(
    tmp_path: Path,
) -> None:
    port = free_port()
    certificate, key = Authority(tmp_path).issue("one", "localhost")
    table = listener(port, certificate, key)

    @on_browser_thread
    def shown(browser: Any) -> str:
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        page.goto(f"https://localhost:{port}/page")
        page.wait_for_function("shown.textContent", timeout=LIMIT_S * 1000)
        text: str = page.text_content("#shown")
        context.close()
        return text

    def visit() -> str:
        with chromium() as browser:
            return shown(browser)

    server = ListeningServer(reactor, table, folder=tmp_path)
    (tmp_path / "shown.py").write_text(APPLICATION)
    async with server:
        assert (await deferToThread(visit)).split() == ["h2", "juggler.0"]
