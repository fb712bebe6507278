"""`peloton load` against the real server, as a user runs both."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from pelotontx.cli.load import metrics
from tests.support.programs import BIN, PelotonServer, Program, children_of
from tests.support.servers import eventually, free_port

CONFIG = """
[rpc]
message_rate = 0
[[callee]]
object = "pelotontx.demo.callee:callee"
"""


class Load(Program):
    """One run of the load tester, whose report `figures` is."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._report = folder / "report.json"
        super().__init__(
            reactor,
            *("load", "--json", str(self._report), *arguments),
            folder=folder,
            command=(str(BIN / "peloton"),),
        )
        self.child.start()

    async def status(self) -> int | None:
        """Its exit status, at its end."""
        return (await self.ended(timeout_s=60)).code

    @property
    def figures(self) -> dict[str, Any]:
        """The report."""
        figures: dict[str, Any] = json.loads(self._report.read_text())
        return figures


Start: TypeAlias = Callable[..., Load]


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts the load tester with a URL and further words; ends it with the test."""
    loads: list[Load] = []

    def start_load(url: str, *words: str) -> Load:
        loads.append(Load(tmp_path, "--url", url, *words))
        return loads[-1]

    yield start_load
    for load in loads:
        await load.stop()


@pytest_twisted.async_yield_fixture
async def server(tmp_path: Path) -> AsyncIterator[PelotonServer]:
    """The demo's functions, without a limit on messages."""
    (tmp_path / "peloton.toml").write_text(CONFIG)
    async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
        yield server


@pytest_twisted.ensureDeferred
async def test_closed_loop_counts_every_call(server: PelotonServer, start: Start) -> None:
    words = ["-u", "test.echo", "-c", "20", "--in-flight", "4", "-n", "3000", "-t", "30s"]
    load = start(server.websocket_url, *words)
    assert await load.status() == 0, load.output
    counts = load.figures["counts"]
    assert (counts["sent"], counts["acks"], counts["results"]) == (3000, 3000, 3000)
    assert sum(row["count"] for row in load.figures["histogram"]) == 3000
    assert "p99.9" in load.output
    server_counts = load.figures["server"]
    assert 3000 in server_counts.values(), server_counts


@pytest_twisted.ensureDeferred
async def test_fixed_rate_is_kept(server: PelotonServer, start: Start) -> None:
    words = ["-c", "10", "-r", "20/s", "-d", "1s", "-p", "10", "-t", "30s", "--warm-up", "100ms"]
    load = start(server.websocket_url, *words)
    assert await load.status() == 0, load.output
    figures = load.figures
    assert figures["counts"]["sent"] == figures["counts"]["results"] == 220
    assert figures["measured"] == 200
    # test.delay waits for 10 ms.
    assert figures["latency_ms"]["min"] >= 10


@pytest_twisted.ensureDeferred
async def test_every_event_reaches_every_subscriber(server: PelotonServer, start: Start) -> None:
    words = ["--pubsub", "-c", "30", "--publishers", "2", "--channels", "3", "-n", "60"]
    load = start(server.websocket_url, *words, "-r", "100/s", "-t", "30s")
    assert await load.status() == 0, load.output
    counts = load.figures["counts"]
    assert (counts["sent"], counts["expected"], counts["received"]) == (60, 600, 600)
    assert counts["duplicates"] == counts["reordered"] == 0


@pytest_twisted.ensureDeferred
async def test_uri_that_nobody_serves_expires(server: PelotonServer, start: Start) -> None:
    words = ["-u", "nobody", "-c", "2", "--in-flight", "1", "-n", "4", "-t", "300ms"]
    load = start(server.websocket_url, *words)
    assert await load.status() == 1
    assert load.figures["counts"]["expired"] == 4
    assert "FAILED: 4 expired" in load.output
    assert load.figures["server"]["calls_expired"] == 4
    load = start(server.websocket_url, *words, "--allow-expired", "-u", "none")
    assert await load.status() == 1
    assert load.figures["problems"] == ["nothing came back"]


@pytest_twisted.ensureDeferred
async def test_errors_alone_are_told_and_no_success(server: PelotonServer, start: Start) -> None:
    load = start(server.websocket_url, "-u", "test.delay", "-p", "soon", "-c", "1", "-n", "2")
    assert await load.status() == 1
    assert "first error: test.delay takes milliseconds, not 'soon'" in load.output


class OtherPage(BaseHTTPRequestHandler):
    """A server whose counters are at the second of the usual places."""

    def do_GET(self) -> None:
        is_there = self.path == "/debug/vars"
        self.send_response(200 if is_there else 404)
        self.end_headers()
        self.wfile.write(b'{"n": 1}')

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest_twisted.ensureDeferred
async def test_counters_come_with_the_page_that_has_them() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherPage) as pages:
        thread = Thread(target=pages.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        urls = metrics.candidates(f"ws://127.0.0.1:{pages.server_port}/ws")
        try:
            assert await metrics.fetch(reactor, urls) == (urls[1], {"n": 1})
            assert await metrics.fetch(reactor, urls[:1]) is None
        finally:
            pages.shutdown()
            thread.join()


@pytest_twisted.ensureDeferred
async def test_killed_callee_is_told(tmp_path: Path, start: Start) -> None:
    (tmp_path / "peloton.toml").write_text(CONFIG + "processes = 1\n")
    async with PelotonServer(reactor, "--config", "peloton.toml", folder=tmp_path) as server:
        client = await server.client()
        assert await client.call("test.echo", 1, timeout_s=30) == 1
        words = ["-c", "4", "-r", "20/s", "-d", "4s", "-p", "500", "-t", "2s"]
        load = start(server.websocket_url, *words)
        await eventually(reactor, lambda: "in flight" in load.output, timeout_s=30)
        os.kill(callee_of(server), signal.SIGKILL)
        assert await load.status() == 1
    counts = load.figures["counts"]
    assert counts["expired"] > 0
    ends = ("refused", "results", "expired", "lost")
    assert counts["sent"] == sum(counts[name] for name in ends)
    assert "expired" in load.output.splitlines()[-1]


def callee_of(server: PelotonServer) -> int:
    """The process that serves the functions."""
    assert server.child.pid is not None
    (pid,) = (
        pid
        for pid in children_of(server.child.pid)
        if b"callee" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return pid


@pytest_twisted.ensureDeferred
async def test_killed_server_is_told(tmp_path: Path, start: Start) -> None:
    async with PelotonServer(reactor, "--broker", "memory:", folder=tmp_path) as server:
        words = ["-c", "3", "-r", "10/s", "-d", "60s", "-t", "5s", "-p", "1000"]
        load = start(server.websocket_url, *words)
        await eventually(reactor, lambda: "in flight" in load.output, timeout_s=30)
        server.child.signal(signal.SIGKILL)
        assert await load.status() == 1
    assert load.figures["counts"]["lost"] > 0
    assert load.figures["disconnects"][0]["count"] == 3


@pytest_twisted.ensureDeferred
async def test_interrupted_run_ends_with_its_report(server: PelotonServer, start: Start) -> None:
    words = ["-c", "2", "-r", "10/s", "-d", "60s", "-p", "1", "-t", "30s"]
    load = start(server.websocket_url, *words)
    await eventually(reactor, lambda: "in flight" in load.output, timeout_s=30)
    load.child.signal(signal.SIGINT)
    assert await load.status() == 0, load.output
    assert load.figures["interrupted"]
    assert "Traceback" not in load.output


@pytest_twisted.ensureDeferred
async def test_interrupted_opening_is_130(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        load = start(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws", "--metrics", "none")
        connection, _ = await deferToThread(listener.accept)
        with connection:
            load.child.signal(signal.SIGINT)
            assert await load.status() == 130
    assert load.output == ""


@pytest_twisted.ensureDeferred
async def test_no_connection_is_one_line_and_2(server: PelotonServer, start: Start) -> None:
    for url, text in (
        (f"ws://127.0.0.1:{free_port()}/ws", "is the server running?"),
        (f"{server.websocket_url}/nothing", "[404]"),
    ):
        load = start(url)
        assert await load.status() == 2
        assert len(load.lines) == 1, load.output
        assert load.output.startswith("peloton load: ")
        assert text in load.output
