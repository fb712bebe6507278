"""Files over real sockets, to curl and to clients that behave badly."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, ClassVar

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from pelotontx.flow import timeout
from pelotontx.net.http import HTTPFactory, Response
from pelotontx.net.sendfile import READERS, FileSlice, OpenFile
from pelotontx.net.tcp import connect, listen
from pelotontx.net.wheel import Wheel
from pelotontx.web import App, Request
from pelotontx.web.compress import Compress
from pelotontx.web.files import Files
from tests.support.conversation import LIMIT_S, certificate
from tests.support.servers import eventually, system_binary

LARGE = os.urandom(1 << 20) * 8 + b"end"
SMALL = os.urandom(5000)


class Download(Protocol):
    """Asks for one address, and keeps the answer.

    Args:
        path: of the address.
        pause_bytes: after so many it stops to read.
    """

    def __init__(self, path: str, pause_bytes: int | None = None) -> None:
        self._path = path
        self._pause_bytes = pause_bytes
        self._pieces: list[bytes] = []
        self.received = 0
        self.paused: Deferred[None] = Deferred()
        self.ended: Deferred[bytes] = Deferred()
        self.ended.addTimeout(LIMIT_S, reactor)

    def connectionMade(self) -> None:
        head = f"GET {self._path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        self.transport.write(head.encode())  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self._pieces.append(data)
        self.received += len(data)
        if self._pause_bytes is not None and self.received > self._pause_bytes:
            self._pause_bytes = None
            self.transport.pauseProducing()  # type: ignore[union-attr]
            self.paused.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(b"".join(self._pieces))

    async def body(self) -> bytes:
        """All of the answer's body."""
        return (await self.ended).partition(b"\r\n\r\n")[2]


class Tree:
    """A served folder.

    Attributes:
        folder: of the files, at ``/files``.
        results: what other addresses answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "large.bin").write_bytes(LARGE)
        (folder / "small.bin").write_bytes(SMALL)
        self.app = App()
        self.app.mount("/files", Files(folder))
        self.wheel = Wheel(reactor)
        self.factory = HTTPFactory(
            self.app.handle, wheel=self.wheel, clock=reactor, request_class=Request
        )

    async def get(self, path: str, pause_bytes: int | None = None) -> Download:
        """Begins a download."""
        download = Download(path, pause_bytes)
        client = Factory.forProtocol(lambda: download)
        client.noisy = False
        await connect(reactor, f"tcp:127.0.0.1:{self.number}", client)
        return download

    async def start(self, description: str) -> None:
        self.port: Any = await listen(reactor, description, self.factory)
        self.number = getattr(self.port.getHost(), "port", 0)

    async def stop(self) -> None:
        await self.port.stopListening()
        await self.factory.drain(1)
        self.wheel.stop()


@asynccontextmanager
async def serving(
    folder: Path, description: str = "tcp:0:interface=127.0.0.1"
) -> AsyncIterator[Tree]:
    root = folder / "root"
    root.mkdir()
    tree = Tree(root)
    await tree.start(description)
    try:
        yield tree
    finally:
        await tree.stop()


async def curl(*arguments: str) -> bytes:
    """What curl prints; fails if curl does."""
    command = system_binary("curl")
    words = ["--silent", "--show-error", "--max-time", str(LIMIT_S), *arguments]
    out, errors, status = await getProcessOutputAndValue(command, words, reactor=reactor)
    assert status == 0, errors.decode()
    return bytes(out)


def open_files(path: Path) -> int:
    """How often this process has a file open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            count += os.readlink(f"/proc/self/fd/{number}") == str(path)
    return count


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_files_arrive_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        for name, content in (("large.bin", LARGE), ("small.bin", SMALL)):
            assert await (await tree.get(f"/files/{name}")).body() == content


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_files_arrive_whole_under_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    async with serving(tmp_path, f"ssl:0:interface=127.0.0.1:privateKey={pem}") as tree:
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", tree.number, CertificateOptions())
        for name, content in (("large.bin", LARGE), ("small.bin", SMALL)):
            download = Download(f"/files/{name}")
            await connectProtocol(endpoint, download)
            assert await download.body() == content


@pytest_twisted.ensureDeferred
async def test_files_arrive_whole_over_a_unix_socket(tmp_path: Path) -> None:
    async with serving(tmp_path, f"unix:{tmp_path}/s:lockfile=0") as tree:
        path = f"{tmp_path}/s"
        got = await curl("--unix-socket", path, "http://a/files/large.bin")
        assert got == LARGE
        assert tree.number == 0


@pytest_twisted.ensureDeferred
async def test_ranges_for_curl(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        for name, content in (("large.bin", LARGE), ("small.bin", SMALL)):
            url = f"http://127.0.0.1:{tree.number}/files/{name}"
            for asked, expected in (
                ("0-0", content[:1]),
                ("100-1999", content[100:2000]),
                ("-3", content[-3:]),
                ("4000-", content[4000:]),
            ):
                assert await curl("--range", asked, url) == expected
            parts = await curl("--range", "0-9,100-109,-5", url)
            for piece in (content[:10], content[100:110], content[-5:]):
                assert b"\r\n\r\n" + piece + b"\r\n--" in parts
            out = await curl("--range", f"{len(content)}-", "--head", "--request", "GET", url)
            assert out.startswith(b"HTTP/1.1 416 ")
            assert f"Content-Range: bytes */{len(content)}\r\n".encode() in out


@pytest_twisted.ensureDeferred
async def test_download_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        part = tmp_path / "part"
        part.write_bytes(LARGE[:3_000_000])
        url = f"http://127.0.0.1:{tree.number}/files/large.bin"
        await curl("--continue-at", "-", "--output", str(part), url)
        assert part.read_bytes() == LARGE


@pytest_twisted.ensureDeferred
async def test_five_hundred_ranges_are_no_more_than_the_file(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        url = f"http://127.0.0.1:{tree.number}/files/large.bin"
        asked = ",".join(f"{start}-" for start in range(500))
        assert len(await curl("--range", asked, url)) == len(LARGE)
        asked = ",".join(["0-3000000", "2000000-6000000", "7000000-"] * 160)
        assert len(await curl("--range", asked, url)) < len(LARGE)


@pytest_twisted.ensureDeferred
async def test_curl_asks_whether_a_file_changed(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        url = f"http://127.0.0.1:{tree.number}/files/small.bin"
        tag = str(tmp_path / "tag")
        await curl("--etag-save", tag, "--output", "/dev/null", url)
        out = await curl("--etag-compare", tag, "--include", url)
        assert out.startswith(b"HTTP/1.1 304 ")
        assert out.endswith(b"\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_no_address_leads_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        (tmp_path / "secret").write_bytes(b"secret")
        (tree.folder / "link").symlink_to("../secret")
        base = f"http://127.0.0.1:{tree.number}/files"
        for path in ("/../secret", "/..%2fsecret", "/%2e%2e/secret", "/link", "/..%5csecret"):
            out = await curl("--path-as-is", "--include", base + path)
            assert out.startswith(b"HTTP/1.1 404 "), path
            assert b"secret" not in out.partition(b"\r\n\r\n")[2]
        out = await curl("--path-as-is", "--include", f"{base}/small.bin%00.txt")
        assert out.startswith(b"HTTP/1.1 400 ")


@pytest_twisted.ensureDeferred
async def test_peer_that_leaves_frees_the_file(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        path = tree.folder / "large.bin"
        tree.app.get(r"^/one$")(lambda _: Response(200, FileSlice.of(path)))
        download = await tree.get("/one", pause_bytes=100_000)
        await download.paused
        assert open_files(path) == 1
        download.transport.abortConnection()  # type: ignore[union-attr]
        await eventually(reactor, lambda: open_files(path) == 0)
        await eventually(reactor, lambda: not tree.factory.connections)
        await download.ended


@pytest_twisted.ensureDeferred
async def test_file_that_is_cut_while_it_is_sent_does_not_end_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        path = tree.folder / "large.bin"
        path.write_bytes(LARGE * 4)
        download = await tree.get("/files/large.bin", pause_bytes=100_000)
        await download.paused
        os.truncate(path, 1000)
        await eventually(reactor, lambda: download.received)
        download.transport.resumeProducing()  # type: ignore[union-attr]
        assert len(await download.body()) < len(LARGE) * 4
        assert not tree.factory.connections


class ColdFile(OpenFile):
    """Never in memory."""

    def read_cached(self, count: int, offset: int) -> bytes | None:
        return None


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_cold_files_are_read_by_threads(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        path = tree.folder / "large.bin"
        tree.app.get(r"^/sent$")(lambda _: Response(200, FileSlice(ColdFile.open(path))))
        tree.app.get(r"^/read$")(
            lambda _: Response(200, aiter(FileSlice(ColdFile.open(path))), length=len(LARGE))
        )
        for address in ("/sent", "/read"):
            assert await (await tree.get(address)).body() == LARGE


class HungFile(ColdFile):
    """Its disk does not answer until `gate` is open.

    Attributes:
        hung: an item for each thread that came there.
    """

    gate: ClassVar[Event]
    hung: ClassVar[SimpleQueue[int]]

    def is_cached(self, count: int, offset: int) -> bool:
        return False

    def read(self, count: int, offset: int) -> bytes:
        self.hung.put(offset)
        assert self.gate.wait(LIMIT_S)
        return super().read(count, offset)


@pytest.mark.reactors
@pytest_twisted.ensureDeferred
async def test_disk_that_hangs_holds_up_what_is_read_from_it_and_nothing_else(
    tmp_path: Path,
) -> None:
    HungFile.gate, HungFile.hung = Event(), SimpleQueue()
    async with serving(tmp_path) as tree:
        path = tree.folder / "large.bin"
        page = "<p>all the same</p>" * 50_000
        tree.app.get(r"^/sent$")(lambda _: Response(200, FileSlice(HungFile.open(path))))
        tree.app.get(r"^/read$")(
            lambda _: Response(200, aiter(FileSlice(HungFile.open(path))), length=len(LARGE))
        )
        tree.app.get(r"^/page$")(lambda _: page)
        tree.app.after(Compress())
        crowd = 2 * max(READERS.size, reactor.getThreadPool().max)  # type: ignore[attr-defined]
        hanging = [await tree.get(("/sent", "/read")[n % 2]) for n in range(crowd)]
        try:
            await eventually(reactor, lambda: HungFile.hung.qsize() >= READERS.size)
            assert await (await tree.get("/files/large.bin")).body() == LARGE
            assert await timeout(reactor, LIMIT_S, deferToThread(lambda: 7)) == 7
            base = f"http://127.0.0.1:{tree.number}"
            assert await curl("--compressed", f"{base}/page") == page.encode()
            assert not any(download.ended.called for download in hanging)
        finally:
            HungFile.gate.set()
        for download in hanging:
            assert await download.body() == LARGE


@pytest_twisted.ensureDeferred
async def test_long_pages_are_compressed_by_threads(tmp_path: Path) -> None:
    async with serving(tmp_path) as tree:
        page = "<p>all the same</p>" * 50_000

        async def pieces() -> AsyncIterator[bytes]:
            yield page.encode()
            yield b"end"

        tree.app.get(r"^/page$")(lambda _: page)
        stream = lambda _: Response(200, pieces(), content_type="text/html")  # noqa: E731
        tree.app.get(r"^/stream$")(stream)
        tree.app.after(Compress())
        base = f"http://127.0.0.1:{tree.number}"
        assert await curl("--compressed", f"{base}/page") == page.encode()
        assert await curl("--compressed", f"{base}/stream") == page.encode() + b"end"
        sent = await curl("--header", "Accept-Encoding: gzip", f"{base}/page")
        assert len(sent) < len(page) / 50
