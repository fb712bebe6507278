"""Slow attacks on a real server: attackers are gone by their deadlines, honest clients are well.

In short with deadlines of a second or so and few attackers; ``make slow`` has the deadlines that
servers have, two hundred attackers of each kind, and prints what it saw.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread

from tests.support.attackers import (
    HELD,
    HTTP1,
    HTTP2,
    SLOW_BODY,
    SLOW_HEAD,
    SLOW_READ,
    TLS,
    UPLOADS,
    Attack,
    Attackers,
    SlowHTTPTest,
)
from tests.support.servers import eventually
from tests.support.slow_site import (
    MIB,
    TIMEOUT_S,
    Deadlines,
    HonestClient,
    HTTP1Client,
    HTTP2Client,
    SlowSite,
    SocketTable,
)

FULL = os.environ.get("PELOTON_SLOW") == "all"

SHORT_DEADLINES = Deadlines(
    handshake_s=3,
    head_s=1,
    body_idle_s=2,
    body_grace_s=1,
    body_rate_kib=140,
    unread_s=1,
    idle_s=3,
)
DEADLINES = Deadlines() if FULL else SHORT_DEADLINES
COUNT = 200 if FULL else 10  # slowhttptest's connections
OUR_COUNT = 100 if FULL else 10  # those of each of our own attacks, of which there are many at once

#: For readers that are slow, and slower than any of these.
PATIENT_DEADLINES = Deadlines(unread_s=2, idle_s=1)
READING_S = 6.0

#: Added to a deadline: this machine is busy with the attackers, and with other tests.
SLACK_S = 20.0


class Siege:
    """Attacks on one server, each on a port of its own.

    Args:
        site: the server.
        ports: those that were not attacked yet.
    """

    def __init__(self, site: SlowSite) -> None:
        self.site = site
        self.table = SocketTable()
        self._plain = iter(site.plain)
        self._secure = iter(site.secure)
        self._attacks: list[tuple[str, int, int, float, Any]] = []

    def begin(self, name: str, attack: Attack, *, secure: bool = False) -> None:
        """Starts one of ours."""
        port = next(self._secure if secure else self._plain)
        attackers = Attackers(attack, port, OUR_COUNT, self.site.authority)
        attackers.start()
        self._attacks.append((name, port, OUR_COUNT, attack.due_s(DEADLINES), attackers))

    def begin_slowhttptest(
        self, words: tuple[str, ...], path: str, due_s: float, *, secure: bool = False
    ) -> None:
        """Starts slowhttptest in one of its modes."""
        port = next(self._secure if secure else self._plain)
        folder = self.site.folder / str(port)
        folder.mkdir()
        url = f"http{'s' if secure else ''}://127.0.0.1:{port}{path}"
        attackers = SlowHTTPTest(reactor, *words, url=url, count=COUNT, folder=folder)
        attackers.child.start()
        # Beside them is its own honest connection, which is idle in the end.
        due_s += DEADLINES.idle_s
        self._attacks.append((f"slowhttptest {words[0]} {url}", port, COUNT, due_s, attackers))

    async def over(self) -> None:
        """Waits until each attack has had all of its connections, and none is left."""
        looking = LoopingCall(self.table.look)
        looking.start(0.1)
        try:
            for name, port, count, due_s, _ in self._attacks:
                await self._gone(name, port, count, due_s)
        finally:
            looking.stop()
            for *_, attackers in self._attacks:
                await attackers.stop()

    async def _gone(self, name: str, port: int, count: int, due_s: float) -> None:
        table = self.table
        try:
            await eventually(
                reactor, lambda: len(table.ages_s(port)) >= count, timeout_s=2 * TIMEOUT_S
            )
            await eventually(reactor, lambda: table.held(port) == 0, timeout_s=due_s + SLACK_S)
        except BaseException as error:
            seen = f"{len(table.ages_s(port))} seen, {table.held(port)} left"
            raise AssertionError(f"{name}: {seen} of {count}") from error
        ages_s = table.ages_s(port)
        half_s, oldest_s = ages_s[len(ages_s) // 2], ages_s[-1]
        print(f"{name:50}{len(ages_s):6}{due_s:8.1f}{half_s:8.1f}{oldest_s:8.1f}")
        assert oldest_s < due_s + SLACK_S, name

    def reports(self) -> None:
        """What slowhttptest has to say."""
        for name, _, count, _, attackers in self._attacks:
            if isinstance(attackers, SlowHTTPTest):
                report = attackers.report()
                assert report.connected == count, name
                assert report.served, name


@asynccontextmanager
async def siege(folder: Path, *, plain: int = 0, secure: int = 0) -> AsyncIterator[Siege]:
    """A server, attacked by who is in the ``async with``; beside it honest clients of all kinds."""
    async with SlowSite(reactor, folder, DEADLINES, plain=plain, secure=secure) as site:
        honest: list[HonestClient] = [
            HTTP1Client(site.plain[-1]),
            HTTP1Client(site.secure[-1], site.authority),
            HTTP2Client(site.secure[-1], site.authority),
        ]
        for client in honest:
            client.start()
        print(f"\n{'attack':50}{'count':>6}{'due s':>8}{'half s':>8}{'last s':>8}")
        begun = Siege(site)
        try:
            yield begun
            await begun.over()
            begun.reports()
        finally:
            outcomes = {client.name: await client.stop() for client in honest}
        stall_s = await site.metric("peloton_reactor_stall_max_seconds")
        print(f"server: {site.cpu_s():.1f} s of CPU, longest stall {stall_s:.3f} s")
        for name, outcome in outcomes.items():
            print(f"{name:50}{outcome.answers:6} answers, slowest {outcome.slowest_s:.3f} s")
            assert outcome.faults == [], name
            assert outcome.answers > 10, name
        assert await site.counted() == 0
        assert "Traceback" not in site.output


@pytest_twisted.ensureDeferred
async def test_slowhttptest_in_its_three_modes(tmp_path: Path) -> None:
    body_s = DEADLINES.body_grace_s + DEADLINES.linger_s
    head_s = DEADLINES.head_s + DEADLINES.linger_s
    unread_s = DEADLINES.unread_s + DEADLINES.look_s
    async with siege(tmp_path, plain=5, secure=2) as begun:
        begun.begin_slowhttptest(SLOW_HEAD, "/small", head_s)
        begun.begin_slowhttptest(SLOW_BODY, "/body", body_s)
        for path in ("/memory", "/files/long.bin", "/stream"):
            begun.begin_slowhttptest(SLOW_READ, path, unread_s)
        begun.begin_slowhttptest(SLOW_HEAD, "/small", head_s, secure=True)
        begun.begin_slowhttptest(SLOW_READ, "/memory", unread_s, secure=True)


@pytest_twisted.ensureDeferred
async def test_attackers_of_http_1_and_tls(tmp_path: Path) -> None:
    async with siege(tmp_path, plain=len(HTTP1), secure=len(TLS)) as begun:
        for name, attack in HTTP1.items():
            begun.begin(name, attack)
        for name, attack in TLS.items():
            begun.begin(f"TLS: {name}", attack, secure=True)


@pytest_twisted.ensureDeferred
async def test_uploads_that_trickle_leave_nothing_behind(tmp_path: Path) -> None:
    async with siege(tmp_path, plain=len(UPLOADS)) as begun:
        for name, attack in UPLOADS.items():
            begun.begin(name, attack)
        spool = tmp_path / "uploads"
        await eventually(reactor, lambda: files_in(spool), timeout_s=TIMEOUT_S)
        await begun.over()
        await eventually(reactor, lambda: not files_in(spool), timeout_s=TIMEOUT_S)


def files_in(folder: Path) -> list[Path]:
    """With those in folders below."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest_twisted.ensureDeferred
async def test_attackers_of_http_2(tmp_path: Path) -> None:
    async with siege(tmp_path, secure=len(HTTP2)) as begun:
        for name, attack in HTTP2.items():
            begun.begin(f"HTTP/2: {name}", attack, secure=True)


@pytest_twisted.ensureDeferred
async def test_readers_that_are_only_slow_get_all(tmp_path: Path) -> None:
    async with SlowSite(reactor, tmp_path, PATIENT_DEADLINES) as site:
        plain, secure = site.plain[-1], site.secure[-1]
        reading = [
            deferToThread(read_slowly, site, plain, "/memory", rate=300_000),
            deferToThread(read_slowly, site, plain, "/files/long.bin", rate=300_000),
            deferToThread(read_slowly, site, plain, "/stream", rate=300_000),
            deferToThread(read_slowly, site, secure, "/memory", rate=300_000),
            deferToThread(read_slowly, site, secure, "/medium", rate=150_000),
            deferToThread(read_slowly, site, secure, "/medium", "Connection: close", rate=150_000),
        ]
        sizes = await gatherResults(reading, consumeErrors=True)
    assert [size // MIB for size in sizes] == [10, 10, 10, 10, 1, 1]


def read_slowly(site: SlowSite, port: int, path: str, *fields: str, rate: int) -> int:
    """Reads an answer at so many bytes a second, for longer than any deadline, then what is left.

    Returns:
        How much it was.
    """
    read = 0
    with connected(site, port) as own:
        own.sendall(request(path, *fields))
        over_s = time.monotonic() + READING_S
        while time.monotonic() < over_s:
            read += len(own.recv(rate // 10))
            time.sleep(0.1)  # it is the reader that is slow
        with suppress(TimeoutError):
            own.settimeout(1)
            while data := own.recv(65536):
                read += len(data)
    return read


def connected(site: SlowSite, port: int) -> socket.socket:
    """A blocking connection to one of its ports."""
    own = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    if port not in site.secure:
        return own
    context = ssl.create_default_context(cafile=str(site.authority))
    return context.wrap_socket(own, server_hostname="localhost")


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest_twisted.ensureDeferred
async def test_five_hundred_ranges_send_no_more_than_the_file(tmp_path: Path) -> None:
    ranges = ",".join(f"{n}-" for n in range(500))

    def received(site: SlowSite) -> int:
        size = 0
        with connected(site, site.plain[-1]) as own:
            own.sendall(request("/files/mib.bin", f"Range: bytes={ranges}", "Connection: close"))
            while data := own.recv(65536):
                size += len(data)
        return size

    async with SlowSite(reactor, tmp_path, DEADLINES) as site:
        size = await deferToThread(received, site)
    assert size < MIB + 1024


@pytest_twisted.ensureDeferred
async def test_a_body_in_chunks_of_a_byte_harms_nobody(tmp_path: Path) -> None:
    count = MIB

    def post(site: SlowSite) -> bytes:
        with connected(site, site.plain[-1]) as own:
            own.sendall(request("/body", "Transfer-Encoding: chunked", method="POST"))
            for _ in range(count // 4096):
                own.sendall(b"1\r\nx\r\n" * 4096)
            own.sendall(b"0\r\n\r\n")
            return own.recv(65536)

    async with SlowSite(reactor, tmp_path, DEADLINES) as site:
        honest = HTTP1Client(site.plain[-1])
        honest.start()
        try:
            before_s = site.cpu_s()
            answer = await deferToThread(post, site)
            used_s = site.cpu_s() - before_s
        finally:
            outcome = await honest.stop()
    assert answer.endswith(b"\r\n\r\n%d" % count)
    assert outcome.faults == []
    print(f"\n{used_s / count * 1e6:.2f} us of CPU a chunk of one byte, honest clients included;")
    print(f"their slowest answer: {outcome.slowest_s:.3f} s")


@pytest.mark.skipif(not FULL, reason="PELOTON_SLOW=all is not set")
@pytest_twisted.ensureDeferred
async def test_memory_of_a_thousand_held_connections(tmp_path: Path) -> None:
    async with SlowSite(reactor, tmp_path, DEADLINES, plain=len(HELD), secure=len(HELD)) as site:
        await site.settled()
        print(f"\n{'held':45}{'count':>6}{'KiB each':>10}")
        for n, (name, (attack, count)) in enumerate(HELD.items()):
            port = (site.plain if attack.tls is None else site.secure)[n]
            before = site.rss_bytes()
            attackers = Attackers(attack, port, count, site.authority)
            attackers.start()
            await attackers.all_opened(reactor)
            await site.counted()  # it has answered after all of them
            grown = site.rss_bytes() - before
            table = SocketTable()
            table.look()
            held = table.held(port)
            assert held > count / 2, name
            print(f"{name:45}{held:6}{grown / 1024 / held:10.1f}")
            assert grown < held * MIB, name
            await attackers.stop()
            await site.settled()
