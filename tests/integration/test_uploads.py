"""Uploads on real disks and over real connections."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutput

from pelotontx.errors import LocalProtocolError
from pelotontx.flow import later
from pelotontx.net.http.client import fetch
from pelotontx.web import App, Request, Response
from pelotontx.web.forms import FormLimits
from pelotontx.web.uploads import DiskSink, Upload
from pelotontx.wire.multipart import PartHead
from tests.support.browser import chromium, on_browser_thread
from tests.support.http_site import served
from tests.support.programs import PelotonServer, Program
from tests.support.servers import eventually, system_binary

ROOT = Path(__file__).parents[2]
KIB = 1024
MIB = 1024 * KIB
BIG = os.urandom(300 * KIB)  # more than stays in memory, and more than one block

HEAD = PartHead(
    name="file",
    filename="../photo.png",
    content_type="image/png",
    charset="utf-8",
    headers=(),
)


def left_in(folder: Path) -> list[Path]:
    """Temporary files that lie there."""
    return [path for path in folder.rglob("*") if path.is_file()]


@asynccontextmanager
async def disk(folder: Path, **options: Any) -> AsyncIterator[DiskSink]:
    sink = DiskSink(reactor, folder=str(folder), **options)
    try:
        yield sink
        assert left_in(folder) == []
    finally:
        await sink.stop()
    assert list(folder.iterdir()) == []


async def uploaded(sink: DiskSink, *pieces: bytes) -> tuple[Any, Upload]:
    writer = await sink.open(HEAD)
    for piece in pieces:
        await writer.write(piece)
    return writer, await writer.close()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


class TestDisk:
    @pytest_twisted.ensureDeferred
    async def test_a_small_file_stays_in_memory(self, spool: Path, tmp_path: Path) -> None:
        async with disk(spool) as sink:
            writer, upload = await uploaded(sink, b"one", b"two")
            assert (upload.filename, upload.raw_filename) == ("photo.png", "../photo.png")
            assert (upload.content_type, upload.size_bytes) == ("image/png", 6)
            assert (upload.path, list(spool.iterdir())) == (None, [])
            assert await upload.read() == b"onetwo"
            assert await upload.sha256() == hashlib.sha256(b"onetwo").hexdigest()
            await upload.store(tmp_path / "kept")
            await writer.discard()
            assert (tmp_path / "kept").read_bytes() == b"onetwo"
            assert await upload.read() == b"onetwo"

    @pytest_twisted.ensureDeferred
    async def test_how_large_a_small_file_may_be_is_chosen(self, spool: Path) -> None:
        for memory_bytes in (len(BIG), len(BIG) - 1, 1, 0):
            async with disk(spool, memory_bytes=memory_bytes) as sink:
                for data in (BIG, b"xy", b""):
                    writer, upload = await uploaded(sink, data)
                    assert (upload.path is None) == (len(data) <= memory_bytes)
                    assert (upload.size_bytes, await upload.read()) == (len(data), data)
                    await writer.discard()

    @pytest_twisted.ensureDeferred
    async def test_a_large_one_lies_where_only_we_can_read_it(self, spool: Path) -> None:
        async with disk(spool) as sink:
            writer, upload = await uploaded(sink, BIG[:100], BIG[100:200_000], BIG[200_000:])
            assert upload.path is not None
            assert stat.S_IMODE(upload.path.stat().st_mode) == 0o600
            assert stat.S_IMODE(upload.path.parent.stat().st_mode) == 0o700
            assert (upload.size_bytes, await upload.read()) == (len(BIG), BIG)
            assert await upload.sha256() == hashlib.sha256(BIG).hexdigest()
            await writer.discard()

    @pytest_twisted.ensureDeferred
    async def test_storing_moves_it(self, spool: Path, tmp_path: Path) -> None:
        async with disk(spool) as sink:
            writer, upload = await uploaded(sink, BIG)
            assert upload.path is not None
            number = upload.path.stat().st_ino
            await upload.store(tmp_path / "kept", mode=0o640)
            await writer.discard()
            kept = (tmp_path / "kept").stat()
            assert (kept.st_ino, stat.S_IMODE(kept.st_mode)) == (number, 0o640)
            assert (upload.path, await upload.read()) == (tmp_path / "kept", BIG)
            with pytest.raises(LocalProtocolError):
                await upload.store(tmp_path / "again")

    @pytest_twisted.ensureDeferred
    async def test_a_file_that_is_there_is_replaced_only_on_demand(
        self, spool: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "kept").write_bytes(b"old")
        for data in (b"small", BIG):
            async with disk(spool) as sink:
                writer, upload = await uploaded(sink, data)
                with pytest.raises(FileExistsError):
                    await upload.store(tmp_path / "kept")
                assert (tmp_path / "kept").read_bytes() != data
                await upload.store(tmp_path / "kept", replace=True)
                await writer.discard()
                assert (tmp_path / "kept").read_bytes() == data
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "spool"]

    @pytest_twisted.ensureDeferred
    async def test_another_file_system_gets_a_whole_copy(self, spool: Path, tmp_path: Path) -> None:
        other = Path("/dev/shm")
        if not os.access(other, os.W_OK) or other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is one file system only")
        kept = other / f"{tmp_path.name}-{os.getpid()}"
        kept.mkdir()
        try:
            async with disk(spool) as sink:
                writer, upload = await uploaded(sink, BIG)
                await upload.store(kept / "file")
                assert [path.name for path in kept.iterdir()] == ["file"]
                assert await upload.read() == BIG
                await writer.discard()
        finally:
            shutil.rmtree(kept)

    @pytest_twisted.ensureDeferred
    async def test_a_store_that_fails_leaves_nothing_and_can_be_repeated(
        self, spool: Path, tmp_path: Path
    ) -> None:
        for data in (b"small", BIG):
            async with disk(spool) as sink:
                writer, upload = await uploaded(sink, data)
                with pytest.raises(OSError, match="too long"):
                    await upload.store(tmp_path / ("x" * 300))
                with pytest.raises(FileNotFoundError):
                    await upload.store(tmp_path / "nowhere" / "kept")
                assert [path.name for path in tmp_path.iterdir()] == ["spool"]
                await upload.store(tmp_path / "kept")
                await writer.discard()
                (tmp_path / "kept").unlink()

    @pytest_twisted.ensureDeferred
    async def test_a_discard_waits_for_the_thread_that_writes(self, spool: Path) -> None:
        async with disk(spool) as sink:
            writer = await sink.open(HEAD)
            writing = Deferred.fromCoroutine(writer.write(BIG))
            writing.addErrback(lambda _: None)
            writing.cancel()
            await writer.discard()
            assert left_in(spool) == []

    @pytest_twisted.ensureDeferred
    async def test_a_cancellation_at_any_time_leaves_a_whole_file_or_none(
        self, spool: Path, tmp_path: Path
    ) -> None:
        async def keep(sink: DiskSink, target: Path) -> None:
            writer = await sink.open(HEAD)
            try:
                for start in range(0, len(BIG), 50_000):
                    await writer.write(BIG[start : start + 50_000])
                upload = await writer.close()
                await upload.store(target)
            finally:
                await writer.discard()

        outcomes = set()
        async with disk(spool) as sink:
            for turns in range(60):
                target = tmp_path / str(turns)
                keeping = Deferred.fromCoroutine(keep(sink, target))
                for _ in range(turns):
                    await later(reactor, 0)
                keeping.cancel()
                await DeferredList([keeping], consumeErrors=True)
                outcomes.add(target.exists())
                assert not target.exists() or target.read_bytes() == BIG
                assert left_in(spool) == []
        assert False in outcomes

    @pytest_twisted.ensureDeferred
    async def test_what_a_dead_server_has_left_is_removed(self, spool: Path) -> None:
        long_ago = (0, 0)
        dead, locked, young, other = (
            spool / name
            for name in ("peloton-uploads-1", "peloton-uploads-2", "peloton-uploads-3", "mine")
        )
        for folder in (dead, locked, young, other):
            folder.mkdir()
            (folder / "file").write_bytes(b"x")
            if folder != young:
                os.utime(folder, long_ago)
        lock = os.open(locked, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        sink = DiskSink(reactor, folder=str(spool))
        writer, _ = await uploaded(sink, BIG)
        await writer.discard()
        await sink.stop()
        assert set(spool.iterdir()) == {locked, young, other}
        os.close(lock)

    @pytest_twisted.ensureDeferred
    async def test_a_folder_that_somebody_has_removed_is_made_again(self, spool: Path) -> None:
        async with disk(spool) as sink:
            for _ in range(2):
                writer, upload = await uploaded(sink, BIG)
                assert await upload.read() == BIG
                (folder,) = spool.iterdir()
                shutil.rmtree(folder)  # as those do who tidy up temporary files
                await writer.discard()

    @pytest_twisted.ensureDeferred
    async def test_a_folder_that_cannot_be_used_fails_the_write(self, spool: Path) -> None:
        sink = DiskSink(reactor, folder=str(spool / "nowhere"))
        writer = await sink.open(HEAD)
        with pytest.raises(FileNotFoundError):
            await writer.write(BIG)
        await writer.discard()
        await sink.stop()
        with pytest.raises(LocalProtocolError):
            await sink.run(lambda: None)


def form(*files: bytes, boundary: str = "b") -> bytes:
    """A form with these files, all called ``file``."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return b"".join(head.encode() + data + b"\r\n" for data in files) + f"--{boundary}--".encode()


TYPE = {"Content-Type": "multipart/form-data; boundary=b"}


@asynccontextmanager
async def site(app: App, spool: Path) -> AsyncIterator[str]:
    """Serves `app` with a sink; nothing may be left of it."""
    async with disk(spool) as sink:
        limits = FormLimits(body_bytes=MIB, files=3)
        own = {"__slots__": (), "uploads": sink, "form_limits": limits}
        async with served(app, request_class=type("Request", (Request,), own)) as url:
            yield url


def keeping(folder: Path) -> App:
    """Keeps what it is sent under the name that the query gives."""
    app = App()

    @app.post("/keep", stream=True)
    async def keep(request: Request) -> Response:
        async with request.read_form() as form:
            await form.file("file").store(folder / request.argument("name"))
        return Response(201)

    return app


class TestServer:
    @pytest_twisted.ensureDeferred
    async def test_many_at_once_are_kept_as_they_were_sent(
        self, spool: Path, tmp_path: Path
    ) -> None:
        contents = [os.urandom(size * KIB) for size in range(0, 600, 15)]
        async with site(keeping(tmp_path), spool) as url:
            answers = await DeferredList(
                fetch(
                    reactor,
                    "POST",
                    f"{url}/keep",
                    params={"name": str(number)},
                    headers=TYPE,
                    data=form(data),
                )
                for number, data in enumerate(contents)
            )
        assert [answer.status for _, answer in answers] == [201] * len(contents)
        for number, data in enumerate(contents):
            assert (tmp_path / str(number)).read_bytes() == data

    @pytest_twisted.ensureDeferred
    async def test_what_the_client_of_treq_sends_is_understood(
        self, spool: Path, tmp_path: Path
    ) -> None:
        sent = tmp_path / "sent.bin"
        sent.write_bytes(BIG)
        async with site(keeping(tmp_path), spool) as url:
            with sent.open("rb") as file:
                answer = await fetch(
                    reactor,
                    "POST",
                    f"{url}/keep",
                    params={"name": "kept"},
                    data={"title": "ä"},
                    files={"file": file},
                )
        assert (answer.status, (tmp_path / "kept").read_bytes()) == (201, BIG)

    @pytest_twisted.ensureDeferred
    async def test_past_a_limit_nothing_is_left(self, spool: Path, tmp_path: Path) -> None:
        async with site(keeping(tmp_path), spool) as url:
            for body in (form(BIG, BIG, BIG, b"4"), form(BIG * 4), form(BIG)[:-1]):
                answer = await fetch(reactor, "POST", f"{url}/keep?name=x", headers=TYPE, data=body)
                assert answer.status in (400, 413)
                assert left_in(spool) == []
        assert not (tmp_path / "x").exists()

    @pytest_twisted.ensureDeferred
    async def test_what_is_no_form_is_refused_and_leaves_nothing(
        self, spool: Path, tmp_path: Path
    ) -> None:
        good = form(BIG)
        async with site(keeping(tmp_path), spool) as url:
            for content_type, body, status in (
                ("multipart/form-data", good, 400),
                ("multipart/form-data; boundary=c", good, 400),
                ("multipart/mixed; boundary=b", good, 415),
                ("text/plain", good, 415),
                (TYPE["Content-Type"], b"preamble" + good, 400),
                (TYPE["Content-Type"], good.replace(b"\r\n", b"\n", 1), 400),
                (TYPE["Content-Type"], good[:-2] + b"x\r\n", 400),
                (TYPE["Content-Type"], form(BIG, b"2").replace(b"form-data", b"file"), 400),
                (TYPE["Content-Type"], form(BIG)[:-5] + b"\r\n--b\r\n" + b"x" * 9000, 413),
                (TYPE["Content-Type"], b"--b--", 400),
            ):
                answer = await fetch(
                    reactor,
                    "POST",
                    f"{url}/keep?name=x",
                    headers={"Content-Type": content_type},
                    data=body,
                )
                assert (answer.status, left_in(spool)) == (status, [])
        assert not (tmp_path / "x").exists()

    @pytest_twisted.ensureDeferred
    async def test_an_error_of_the_handler_leaves_nothing(
        self, spool: Path, tmp_path: Path, logged: Any
    ) -> None:
        async with site(keeping(tmp_path), spool) as url:
            target = f"{url}/keep?name=nowhere/x"
            answer = await fetch(reactor, "POST", target, headers=TYPE, data=form(BIG))
            assert answer.status == 500
        assert len(logged.flush(FileNotFoundError)) == 1

    @pytest_twisted.ensureDeferred
    async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
        self, spool: Path, tmp_path: Path
    ) -> None:
        async with site(keeping(tmp_path), spool) as url:
            host, port = url.removeprefix("http://").split(":")
            head = (
                "POST /keep?name=x HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            )
            for is_reset in (False, True):
                client = socket.create_connection((host, int(port)))
                client.setblocking(False)
                client.send(head.encode())
                client.send(form(BIG, BIG)[: 200 * KIB])
                await eventually(reactor, lambda: left_in(spool))
                if is_reset:
                    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.close()
                await eventually(reactor, lambda: not left_in(spool))
        assert not (tmp_path / "x").exists()

    @pytest_twisted.ensureDeferred
    async def test_curl_sends_a_form_and_waits_for_100(self, spool: Path, tmp_path: Path) -> None:
        curl = system_binary("curl")
        sent = tmp_path / "sent.bin"
        sent.write_bytes(BIG)
        async with site(keeping(tmp_path), spool) as url:
            words = ["-s", "-v", "-H", "Expect: 100-continue", "-F", f"file=@{sent};filename=../x"]
            output = await getProcessOutput(
                curl, [*words, f"{url}/keep?name=kept"], errortoo=True
            ).addTimeout(20, reactor)
        assert b"< HTTP/1.1 100 Continue" in output
        assert b"< HTTP/1.1 201 " in output
        assert (tmp_path / "kept").read_bytes() == BIG


def rss_kib(pid: int, name: str) -> int:
    """A line of /proc/PID/status: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def send_form(port: int, path: str, size: int) -> tuple[bytes, str]:
    """Posts one file of random bytes; the answer, and the SHA-256 of the file. Blocks."""
    begin, end = form(b"").split(b"\r\n\r\n", 1)
    begin += b"\r\n\r\n"
    total = len(begin) + size + len(end)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {total}\r\n"
    block = os.urandom(MIB)
    digest = hashlib.sha256()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(f"{head}Content-Type: {TYPE['Content-Type']}\r\n\r\n".encode() + begin)
        for _ in range(size // MIB):
            client.sendall(block)
            digest.update(block)
        client.sendall(end)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    return answer, digest.hexdigest()


@on_browser_thread
def choose_and_send(browser: Any, url: str, files: list[Path]) -> dict[str, Any]:
    """Fills in the example's form; what the server answers."""
    page = browser.new_page()
    page.goto(url)
    page.get_by_label("What is it?").fill('Ö "quoted"\\')
    page.get_by_label("Files").set_input_files(files)
    page.get_by_role("button", name="Keep").click()
    page.wait_for_url("**/files")
    answer: dict[str, Any] = json.loads(page.inner_text("body"))
    page.close()
    return answer


class TestProgram:
    @pytest_twisted.ensureDeferred
    async def test_a_browser_sends_two_files(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "examples" / "upload", tmp_path, dirs_exist_ok=True)
        files = [tmp_path / "fünf.bin", tmp_path / 'a"b.txt']
        files[0].write_bytes(BIG)
        files[1].write_bytes(b"small")
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            with chromium() as browser:
                answer = choose_and_send(browser, server.url, files)
        assert answer["title"] == 'Ö "quoted"\\'
        first, second = answer["kept"]
        assert (first["name"].partition("-")[2], first["bytes"]) == ("fünf.bin", len(BIG))
        assert (second["name"].partition("-")[2], second["type"]) == ('a"b.txt', "text/plain")
        assert (tmp_path / "kept" / first["name"]).read_bytes() == BIG

    @pytest_twisted.ensureDeferred
    async def test_a_long_upload_takes_little_memory_and_is_kept(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "examples" / "upload", tmp_path, dirs_exist_ok=True)
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            pid = server.child.pid
            assert pid is not None
            assert (await server.get("/"))[0] == 200
            await deferToThread(send_form, server.port, "/files", MIB)
            before = rss_kib(pid, "VmRSS")
            answer, digest = await deferToThread(send_form, server.port, "/files", 48 * MIB)
            assert answer.startswith(b"HTTP/1.1 201 "), answer
            (kept,) = json.loads(answer.partition(b"\r\n\r\n")[2])["kept"]
            assert kept["bytes"] == 48 * MIB
            with open(tmp_path / "kept" / kept["name"], "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == digest
            assert rss_kib(pid, "VmHWM") - before < 16 * KIB
            counted, _ = await deferToThread(send_form, server.port, "/count", 8 * MIB)
            assert json.loads(counted.partition(b"\r\n\r\n")[2]) == {"file": 8 * MIB}
            assert len(list(tmp_path.glob("peloton-uploads-*"))) == 1
        assert list(tmp_path.glob("peloton-uploads-*")) == []

    @pytest_twisted.ensureDeferred
    async def test_a_folder_that_cannot_be_used_is_told_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "p.toml").write_text('[broker]\nurl = "memory:"\n[upload]\nfolder = "nowhere"')
        words = ("peloton", "--config", "p.toml", "--listen", "tcp:0:interface=127.0.0.1")
        program = Program(reactor, *words, folder=tmp_path)
        program.child.start()
        await program.ended()
        assert "upload.folder: nowhere is no folder" in program.output

    @pytest_twisted.ensureDeferred
    async def test_a_killed_servers_files_are_removed_by_the_next(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "examples" / "upload", tmp_path, dirs_exist_ok=True)
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            await deferToThread(send_form, server.port, "/files", MIB)
            (left,) = tmp_path.glob("peloton-uploads-*")
            server.child.signal(signal.SIGKILL)
            await server.ended()
        assert left.exists()
        os.utime(left, (0, 0))
        async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
            await deferToThread(send_form, server.port, "/files", MIB)
            assert not left.exists()
