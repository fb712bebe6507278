"""`pelotontx.httpd` as a user starts it, in a process of its own."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory

from pelotontx.net.tcp import connect
from tests.support.conversation import Conversation
from tests.support.programs import Program
from tests.support.servers import eventually, free_port

EXAMPLES = Path(__file__).parents[2] / "examples"

DECORATED = """
import sys
from pelotontx import httpd

@httpd.get("/hello/{name}")
async def hello(request, name):
    return f"Hello, {name}"

@httpd.after
def mark(request, response):
    response.add_header("X-Mark", "yes")

def pair(request, word, capture):
    return httpd.json([word, capture])

httpd.serve(("GET", r"^/pair/(\\w+)$", pair, "extra"), ports=[0, sys.argv[1]], development=True)
"""


def program(folder: Path, *words: str) -> Program:
    return Program(reactor, folder=folder, command=(sys.executable, *words))


async def listening(program: Program) -> int:
    """Waits until it listens; its first TCP port."""

    def port() -> re.Match[str] | None:
        assert program.child.pid is not None, program.output
        return re.search(r"Listening on http://127.0.0.1:(\d+)/", program.output)

    await eventually(reactor, port, timeout_s=20)
    found = port()
    assert found is not None
    return int(found[1])


@asynccontextmanager
async def running(folder: Path, *words: str) -> AsyncIterator[tuple[Program, int]]:
    ours = program(folder, *words)
    ours.child.start()
    try:
        yield ours, await listening(ours)
    finally:
        await ours.stop()


async def ask(description: str, path: str) -> Conversation:
    """Has sent one request."""
    client = await connect(reactor, description, Factory.forProtocol(Conversation))
    assert isinstance(client, Conversation)
    client.say(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return client


@pytest_twisted.ensureDeferred
async def test_counter_page_arrives_piece_by_piece(tmp_path: Path) -> None:
    async with running(tmp_path, str(EXAMPLES / "counter.py"), "0") as (_, port):
        index = await ask(f"tcp:127.0.0.1:{port}", "/")
        assert b"<h1>Hello from Peloton</h1>" in await index.until(None)
        counter = await ask(f"tcp:127.0.0.1:{port}", "/chunked")
        page = await counter.until(b'<h1 id="foo">1</h1>')
        assert b"Content-Type: text/html; charset=utf-8\r\n" in page
        assert b"Transfer-Encoding: chunked\r\n" in page
        await counter.until(b"<script>x++; f(x);</script>", 2)
        assert not counter.is_over
        assert counter.transport is not None
        counter.transport.loseConnection()
        await counter.until(None)


@pytest_twisted.ensureDeferred
async def test_decorated_routes_and_routes_as_data_are_served_on_all_ports(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(DECORATED)
    socket = tmp_path / "shop.sock"
    async with running(tmp_path, "shop.py", f"unix:{socket}") as (_, port):
        for description in (f"tcp:127.0.0.1:{port}", f"unix:{socket}"):
            hello = await (await ask(description, "/hello/bob")).until(None)
            assert hello.endswith(b"Hello, bob")
            assert b"X-Mark: yes\r\n" in hello
            pair = await (await ask(description, "/pair/x")).until(None)
            assert pair.endswith(b'["extra","x"]')
            nothing = await (await ask(description, "/nothing")).until(None)
            assert b"404 Not Found" in nothing
            assert b"X-Mark: yes\r\n" in nothing


@pytest_twisted.ensureDeferred
async def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path, str(EXAMPLES / "counter.py"), "0") as (ours, _):
        ours.child.signal(signal.SIGINT)
        status = await ours.ended()
        assert (status.code, status.signal_number) in ((0, None), (None, signal.SIGINT))
        assert "Traceback" not in ours.output


@pytest_twisted.ensureDeferred
async def test_used_port_is_told_in_one_line(tmp_path: Path) -> None:
    port = free_port()
    words = str(EXAMPLES / "counter.py"), str(port)
    async with running(tmp_path, *words):
        second = program(tmp_path, *words)
        second.child.start()
        status = await second.ended()
        assert status.code == 1
        told = [line for line in second.lines if line.startswith("httpd: ")]
        assert told == [
            f"httpd: Couldn't listen on 127.0.0.1:{port}: [Errno 98] Address already in use."
        ]
        assert "Traceback" not in second.output
