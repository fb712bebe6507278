"""Applications of other kinds in the real server, with real clients; Django has its own tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.web.client import Agent
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pelotontx.net.tcp import connect as connect_stream
from tests.support.programs import BIN, PelotonServer, Program
from tests.support.servers import eventually

ROOT = Path(__file__).parents[2]
ASYNCIO = (str(BIN / "twistd"), "--nodaemon", "--pidfile=", "--reactor=asyncio")
FOLDER = ROOT / "tests" / "support" / "mounted"
APPS = {"PYTHONPATH": str(FOLDER)}

MOUNTS = """
[broker]
url = "memory:"
[web]
app = "mounted_apps:app"
[[mount]]
path = "/wsgi"
wsgi = "mounted_apps:wsgi"
threads = 2
queue = 1
body_limit = "1GiB"
[[mount]]
path = "/old"
resource = "mounted_apps:resource"
[[mount]]
path = "/"
resource = "mounted_apps:root"
"""

WITH_ASGI = f"""{MOUNTS}
[[mount]]
path = "/asgi"
asgi = "mounted_apps:asgi"
body_limit = "1GiB"
"""


def server(folder: Path, text: str, **options: Any) -> PelotonServer:
    (folder / "peloton.toml").write_text(text)
    return PelotonServer(
        reactor, "--config", "peloton.toml", folder=folder, environ=APPS, **options
    )


@pytest_twisted.async_yield_fixture
async def mounts(tmp_path: Path) -> AsyncIterator[PelotonServer]:
    async with server(tmp_path, MOUNTS) as running:
        yield running


@pytest_twisted.async_yield_fixture
async def with_asgi(tmp_path: Path) -> AsyncIterator[PelotonServer]:
    async with server(tmp_path, WITH_ASGI, command=ASYNCIO) as running:
        yield running


async def talk(url: str, conversation: Callable[[ClientConnection], Any], **options: Any) -> Any:
    """Has `conversation` talk as a WebSocket client; it blocks, so in a thread."""

    def run() -> Any:
        with connect(url, open_timeout=10, close_timeout=10, **options) as client:
            return conversation(client)

    return await deferToThread(run)


class Silent(Protocol):
    """A client that sends a request and reads nothing."""

    def __init__(self, path: str) -> None:
        self._path = path

    def connectionMade(self) -> None:
        self.transport.pauseProducing()
        self.transport.write(f"GET {self._path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


async def silent(running: PelotonServer, path: str) -> Protocol:
    factory = Factory.forProtocol(lambda: Silent(path))
    factory.noisy = False
    return await connect_stream(reactor, f"tcp:127.0.0.1:{running.port}", factory)


async def are_running(mounts: PelotonServer) -> list[str]:
    return list(json.loads((await mounts.get("/running"))[1]))


async def until(mounts: PelotonServer, is_so: Callable[[list[str]], bool]) -> None:
    """Asks what is running until that is as it should be."""
    names: list[str] = []

    def ask() -> bool:
        asking.append(Deferred.fromCoroutine(are_running(mounts)).addCallback(take))
        return is_so(names)

    def take(found: list[str]) -> None:
        names[:] = found

    asking: list[Deferred[None]] = []
    names[:] = await are_running(mounts)
    await eventually(reactor, ask, step_s=0.05)
    await gatherResults(asking)


def megabytes(server: PelotonServer, field: str) -> float:
    status = Path(f"/proc/{server.child.pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


async def upload(server: PelotonServer, path: str, size: int) -> tuple[str, str]:
    """What the application made of a body of so many bytes, and what it should be."""
    data = bytes(range(256)) * (size // 256)
    response = await HTTPClient(Agent(reactor)).post(
        server.url + path, data=data, headers={"Connection": "close"}, timeout=60
    )
    return await treq.text_content(response), sha256(data).hexdigest()


class TestPlaces:
    @pytest_twisted.ensureDeferred
    async def test_mounts_come_before_the_application_and_the_root_is_last(
        self, mounts: PelotonServer
    ) -> None:
        assert await mounts.get("/wsgi/own") == (200, b"wsgi /own")
        assert await mounts.get("/running") == (200, b"[]")
        assert await mounts.get("/inner") == (200, b"inside /inner")
        assert (await mounts.get("/anything"))[0] == 404
        assert await mounts.get("/") == (200, b"the root")
        assert (await mounts.get("/health"))[0] == 200

    @pytest_twisted.ensureDeferred
    async def test_a_file_of_a_resource_is_whole(self, mounts: PelotonServer) -> None:
        code = (FOLDER / "mounted_apps.py").read_bytes()
        assert await mounts.get("/old/code") == (200, code)


class TestWSGI:
    @pytest_twisted.ensureDeferred
    async def test_its_threads_and_its_queue_are_its_own(self, mounts: PelotonServer) -> None:
        waiting = [Deferred.fromCoroutine(mounts.get("/wsgi/wait")) for _ in range(2)]
        await until(mounts, lambda names: len(names) == 2)
        late = [Deferred.fromCoroutine(mounts.get("/wsgi/late")) for _ in range(2)]
        # One of the two waits in the queue, the other is sent away at once.
        (status, _), index = await DeferredList(late, fireOnOneCallback=True)
        assert status == 503
        waiting.append(late[1 - index])
        assert await mounts.get("/inner") == (200, b"inside /inner")
        assert await mounts.get("/release") == (200, b"released")
        assert {status for status, _ in await gatherResults(waiting)} == {200}
        assert (await mounts.get("/wsgi/again"))[0] == 200

    @pytest_twisted.ensureDeferred
    async def test_a_large_body_needs_little_memory(self, mounts: PelotonServer) -> None:
        await upload(mounts, "/wsgi/hash", 1024 * 1024)
        before = megabytes(mounts, "VmRSS")
        got, expected = await upload(mounts, "/wsgi/hash", 48 * 1024 * 1024)
        assert got == expected
        assert megabytes(mounts, "VmHWM") - before < 16

    @pytest_twisted.ensureDeferred
    async def test_a_client_that_does_not_read_costs_little_and_leaves_no_thread(
        self, mounts: PelotonServer
    ) -> None:
        before = megabytes(mounts, "VmRSS")
        client = await silent(mounts, "/wsgi/endless")
        await until(mounts, lambda names: names == ["endless"])
        assert (await mounts.get("/wsgi/meanwhile"))[0] == 200
        assert megabytes(mounts, "VmRSS") - before < 16
        client.transport.abortConnection()
        await until(mounts, lambda names: names == [])


class TestTwistedWeb:
    @pytest_twisted.ensureDeferred
    async def test_autobahns_websocket_resource_echoes(self, mounts: PelotonServer) -> None:
        def conversation(client: ClientConnection) -> list[Any]:
            messages = ["hällo", b"\0\1", "x" * 100_000]
            got = []
            for message in messages:
                client.send(message)
                got.append(client.recv(10) == message)
            return got

        url = mounts.url.replace("http", "ws") + "/old/ws"
        assert await talk(url, conversation) == [True] * 3
        status, page = await mounts.get("/old/ws")  # as a browser's address bar asks
        assert status == 200
        assert b"AutobahnPython" in page


class TestASGI:
    @pytest_twisted.ensureDeferred
    async def test_bodies_stream_and_the_lifespan_frames_it_all(
        self, with_asgi: PelotonServer
    ) -> None:
        await upload(with_asgi, "/asgi", 1024 * 1024)
        before = megabytes(with_asgi, "VmRSS")
        got, expected = await upload(with_asgi, "/asgi", 48 * 1024 * 1024)
        assert got == f"{expected} hello"
        assert megabytes(with_asgi, "VmHWM") - before < 16
        assert (await with_asgi.get("/wsgi/too"))[0] == 200
        await with_asgi.stop()
        assert "the lifespan ends" in with_asgi.output

    @pytest_twisted.ensureDeferred
    async def test_a_client_that_does_not_read_costs_little_and_is_left(
        self, with_asgi: PelotonServer
    ) -> None:
        before = megabytes(with_asgi, "VmRSS")
        client = await silent(with_asgi, "/asgi/endless")
        await until(with_asgi, lambda names: names == ["endless"])
        assert megabytes(with_asgi, "VmRSS") - before < 16
        client.transport.abortConnection()
        await until(with_asgi, lambda names: names == [])

    @pytest_twisted.ensureDeferred
    async def test_a_websocket_has_subprotocol_headers_and_close_codes(
        self, with_asgi: PelotonServer
    ) -> None:
        def conversation(client: ClientConnection) -> Any:
            assert client.response is not None
            seen: list[Any] = [client.subprotocol, client.response.headers["X-Mine"]]
            for message in ("hällo", b"\0\1", "x" * 500_000):
                client.send(message)
                seen.append(client.recv(10) == message)
            client.send("close")
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            return [*seen, client.close_code, client.close_reason]

        url = with_asgi.url.replace("http", "ws") + "/asgi/ws"
        assert await talk(url, conversation, subprotocols=["b", "a"]) == [
            *("b", "1", True, True, True, 3333, "as asked")
        ]

    @pytest_twisted.ensureDeferred
    async def test_a_client_that_closes_is_told_of(self, with_asgi: PelotonServer) -> None:
        url = with_asgi.url.replace("http", "ws") + "/asgi/ws"
        await talk(url, lambda client: client.close(4001))
        await eventually(reactor, lambda: "the client closed with 4001" in with_asgi.output)

    @pytest_twisted.ensureDeferred
    async def test_a_stop_closes_websockets_with_1001(self, with_asgi: PelotonServer) -> None:
        def conversation(client: ClientConnection) -> int | None:
            client.send("hello")
            client.recv(10)
            reactor.callFromThread(with_asgi.child.stop, timeout_s=20)
            with pytest.raises(ConnectionClosed):
                client.recv(20)
            return client.close_code

        url = with_asgi.url.replace("http", "ws") + "/asgi/ws"
        assert await talk(url, conversation) == 1001
        await with_asgi.child.exited

    @pytest_twisted.ensureDeferred
    async def test_messages_wait_for_an_application_that_does_not_receive(
        self, with_asgi: PelotonServer
    ) -> None:
        count, message = 400, "x" * 65_000
        before = megabytes(with_asgi, "VmRSS")

        def conversation(client: ClientConnection) -> int:
            sending = client.socket
            sending.settimeout(None)
            for _ in range(count):
                client.send(message)
            return sum(client.recv(20) == str(len(message)) for _ in range(count))

        url = with_asgi.url.replace("http", "ws") + "/asgi/deaf"
        talking = Deferred.fromCoroutine(talk(url, conversation, max_queue=None))
        await until(with_asgi, lambda names: names == ["deaf"])
        assert megabytes(with_asgi, "VmRSS") - before < 16
        await with_asgi.get("/release")
        assert await talking == count


class TestStarts:
    @pytest.mark.parametrize(
        ("application", "command", "line"),
        [
            (
                "asgi",
                (),
                "mount[0].asgi: an ASGI application needs the asyncio reactor: start the "
                "server with twistd --reactor=asyncio peloton ...",
            ),
            (
                "failing",
                ASYNCIO,
                "mount[0].asgi: the ASGI application did not start: no database",
            ),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_what_cannot_start_says_so_in_one_line(
        self, tmp_path: Path, application: str, command: tuple[str, ...], line: str
    ) -> None:
        (tmp_path / "peloton.toml").write_text(
            '[server]\nlisten = ["tcp:0:interface=127.0.0.1"]\n[broker]\nurl = "memory:"\n'
            f'[[mount]]\npath = "/a"\nasgi = "mounted_apps:{application}"\n'
        )
        options: dict[str, Any] = {"command": command} if command else {}
        program = Program(
            reactor,
            *("peloton", "--config", "peloton.toml"),
            folder=tmp_path,
            environ=APPS,
            **options,
        )
        program.child.start()
        status = await program.ended()
        assert status.code == 1
        assert line in program.output
        assert "peloton: " in program.output
        assert "Traceback" not in program.output


class TestExample:
    @pytest_twisted.ensureDeferred
    async def test_four_frameworks_are_served_on_one_port(self) -> None:
        folder = ROOT / "examples" / "mounts"
        async with PelotonServer(
            reactor,
            *("--config", "peloton.toml", "--broker", "memory:"),
            folder=folder,
            command=ASYNCIO,
            environ={"PYTHONDONTWRITEBYTECODE": "1"},
        ) as example:
            assert b"Four frameworks" in (await example.get("/"))[1]
            assert (await example.get("/klein/hello/you"))[1] == b"Hello, you, from Klein\n"
            assert (await example.get("/klein/slow"))[1] == b"Worth the wait\n"
            assert (await example.get("/wsgi/x"))[1] == b"POST a text to /wsgi/x\n"
            response = await HTTPClient(Agent(reactor)).post(
                f"{example.url}/wsgi",
                data=b"three short\nwords",
                headers={"Connection": "close"},
                timeout=10,
            )
            assert await treq.content(response) == b"3 words\n"
            greeting = {"greeting": "Hello from Starlette", "path": "/asgi/"}
            assert json.loads((await example.get("/asgi/"))[1]) == greeting
            assert (await example.get("/asgi/count"))[1] == b"0\n1\n2\n"
            assert b"color-scheme" in (await example.get("/static/style.css"))[1]

            def conversation(client: ClientConnection) -> Any:
                client.send("hello")
                return client.recv(10)

            url = example.url.replace("http", "ws") + "/asgi/echo"
            assert await talk(url, conversation) == "hello"
