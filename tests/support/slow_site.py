"""A server under slow attacks: what it serves, who holds sockets with it, and honest clients.

Servers are real (``twistd peloton``), and every attack has a port of its own, so that the kernel's
table tells whose connections are still there.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.support.certificates import Authority
from tests.support.programs import Program
from tests.support.servers import eventually, free_port

MIB = 1024 * 1024

#: Ends a test that hangs; nothing honest takes so long.
TIMEOUT_S = 60.0

APPLICATION = """
from pelotontx.web import App, Response, json

app = App()
LONG = bytes(10 * 1024 * 1024)

@app.get("^/small$")
def small(request):
    return Response(200, b"small")

@app.get("^/memory$")
def memory(request):
    return Response(200, LONG)

@app.get("^/medium$")
def medium(request):
    return Response(200, LONG[:1024 * 1024])

@app.get("^/stream$")
def stream(request):
    async def pieces():
        for _ in range(160):
            yield LONG[:65536]
    return Response(200, pieces())

@app.post("^/body$")
def body(request):
    return Response(200, b"%d" % len(request.body))

@app.post("^/form$", stream=True)
async def form(request):
    async with request.read_form() as form:
        return json({"files": len(form.files)})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """What a server grants, seconds; the defaults are its own."""

    handshake_s: float = 10.0
    head_s: float = 10.0
    body_idle_s: float = 30.0
    body_grace_s: float = 10.0
    body_rate_kib: int = 1
    unread_s: float = 30.0
    idle_s: float = 15.0

    #: An answer that nobody waits for, and the looks that are taken at a slow reader.
    linger_s: float = 2.0
    look_s: float = 6.0

    def toml(self) -> str:
        """The section ``[http]``."""
        return (
            f'[http]\nhead_timeout = "{self.head_s:g}s"\n'
            f'body_idle_timeout = "{self.body_idle_s:g}s"\n'
            f'body_rate_grace = "{self.body_grace_s:g}s"\n'
            f'body_rate = "{self.body_rate_kib}KiB"\n'
            f'write_idle_timeout = "{self.unread_s:g}s"\nidle_timeout = "{self.idle_s:g}s"\n'
        )


class SlowSite(Program):
    """The server, until the end of an ``async with``.

    Args:
        reactor: the tests' reactor.
        folder: where it runs; ``files/long.bin`` is a file that it serves.
        deadlines: its configuration.
        plain: how many plain ports it has.
        secure: how many with TLS.

    Attributes:
        plain: the ports; the last is for honest clients.
        secure: as `plain`.
    """

    def __init__(
        self, reactor: Any, folder: Path, deadlines: Deadlines, *, plain: int = 0, secure: int = 0
    ) -> None:
        self.deadlines = deadlines
        self.folder = folder
        self.plain = _ports(plain + 1)
        self.secure = _ports(secure + 1)
        (folder / "slow.py").write_text(APPLICATION)
        (folder / "uploads").mkdir()
        (folder / "files").mkdir()
        (folder / "files" / "long.bin").write_bytes(bytes(10 * MIB))
        (folder / "files" / "mib.bin").write_bytes(bytes(MIB))
        authority = Authority(folder)
        self.authority = authority.path
        certificate, key = authority.issue("one", "localhost", "127.0.0.1")
        (folder / "peloton.toml").write_text(self._toml(certificate, key))
        super().__init__(reactor, "peloton", "--config", "peloton.toml", folder=folder)

    def _toml(self, certificate: Path, key: Path) -> str:
        listen = ", ".join(f'"tcp:{port}:interface=127.0.0.1"' for port in self.plain)
        tables = "".join(
            f'[[listener]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
            f'certificate = "{certificate}"\nprivate_key = "{key}"\n'
            f'handshake_timeout = "{self.deadlines.handshake_s:g}s"\n'
            for port in self.secure
        )
        return (
            f'[server]\nlisten = [{listen}]\n[broker]\nurl = "memory:"\n[web]\napp = "slow:app"\n'
            f'[upload]\nfolder = "uploads"\nmemory_limit = "1KiB"\n'
            f'[[mount]]\npath = "/files"\ndirectory = "files"\n{self.deadlines.toml()}{tables}'
        )

    async def __aenter__(self) -> SlowSite:
        self.child.start()

        def listens() -> bool:
            assert self.child.pid is not None, self.output
            return self.output.count("Listening on") == len(self.plain) + len(self.secure)

        await eventually(self.reactor, listens, timeout_s=TIMEOUT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def rss_bytes(self) -> int:
        """Its resident memory."""
        return self._status("VmRSS") * 1024

    def cpu_s(self) -> float:
        """The CPU time that it has used."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    async def metric(self, name: str) -> float:
        """A value of its metrics page."""
        page: bytes = await deferToThread(_get, self.plain[-1], "/metrics")
        (line,) = (line for line in page.decode().splitlines() if line.startswith(f"{name} "))
        return float(line.split()[1])

    async def counted(self) -> int:
        """The connections that it says it has, this question's own left out."""
        return int(await self.metric("peloton_http_connections")) - 1

    async def settled(self) -> None:
        """Waits until it says that nobody is connected."""
        deadline_s = self.reactor.seconds() + TIMEOUT_S
        while await self.counted():
            assert self.reactor.seconds() < deadline_s
            await deferLater(self.reactor, 0.05)


def _ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


class SocketTable:
    """The kernel's table of TCP connections, looked at now and then: who was with a port how long.

    A connection is there while a process has it, and after that while the kernel keeps data for
    the peer: both are what an attacker wants.
    """

    _LISTEN = "0A"
    _TIME_WAIT = "06"

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[float, float]] = {}
        self._held: dict[int, int] = {}

    def look(self) -> None:
        """Reads it."""
        now_s = time.monotonic()
        held: dict[int, int] = {}
        with open("/proc/net/tcp") as table:
            next(table)
            for line in table:
                words = line.split(maxsplit=10)
                if words[3] in (self._LISTEN, self._TIME_WAIT):
                    continue
                if words[9] == "0" and words[4].startswith("00000000"):
                    continue
                port = int(words[1].rpartition(":")[2], 16)
                peer = int(words[2].rpartition(":")[2], 16)
                held[port] = held.get(port, 0) + 1
                began_s, _ = self._seen.get((port, peer), (now_s, now_s))
                self._seen[port, peer] = began_s, now_s
        self._held = held

    def held(self, port: int) -> int:
        """Connections with a local port, when last looked."""
        return self._held.get(port, 0)

    def ages_s(self, port: int) -> list[float]:
        """How long each connection was seen, rising."""
        spans = [span for (own, _), span in self._seen.items() if own == port]
        return sorted(last_s - began_s for began_s, last_s in spans)


@dataclass
class Outcome:
    """What an honest client has seen.

    Attributes:
        answers: those that were as they should be.
        slowest_s: the longest that one took.
        faults: everything else.
    """

    answers: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)


class HonestClient(threading.Thread, ABC):
    """Asks for one thing after the other, all the time, over a connection that it keeps.

    Attributes:
        outcome: what it has seen so far.
    """

    def __init__(self, name: str, port: int) -> None:
        super().__init__(name=name, daemon=True)
        self.port = port
        self.outcome = Outcome()
        self._is_over = threading.Event()

    @abstractmethod
    def ask(self) -> bool:
        """One request; whether it was answered as it should be."""

    @abstractmethod
    def close(self) -> None:
        """Ends the connection."""

    def run(self) -> None:
        outcome = self.outcome
        while not self._is_over.wait(0.01):
            began_s = time.monotonic()
            try:
                if self.ask():
                    outcome.answers += 1
                else:
                    outcome.faults.append("a wrong answer")
            except Exception as error:
                outcome.faults.append(repr(error))
                break
            outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - began_s)
        self.close()

    async def stop(self) -> Outcome:
        """Ends it; what it has seen."""
        self._is_over.set()
        await deferToThread(self.join, TIMEOUT_S)
        return self.outcome


class HTTP1Client(HonestClient):
    """Asks for pages and files and sends bodies by HTTP/1.1; under TLS, given an authority."""

    _WANTED = (
        ("GET", "/small", None, 200, 5),
        ("POST", "/body", bytes(3000), 200, 4),
        ("GET", "/missing", None, 404, None),
        ("GET", "/files/mib.bin", None, 200, MIB),
    )

    def __init__(self, port: int, authority: Path | None = None) -> None:
        super().__init__("HTTP/1.1" if authority is None else "HTTP/1.1, TLS", port)
        self._count = 0
        self._connection = http.client.HTTPConnection("localhost", port, timeout=TIMEOUT_S)
        if authority is not None:
            context = ssl.create_default_context(cafile=str(authority))
            self._connection = http.client.HTTPSConnection(
                "localhost", port, timeout=TIMEOUT_S, context=context
            )

    def ask(self) -> bool:
        method, path, body, status, size = self._WANTED[self._count % len(self._WANTED)]
        self._count += 1
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        data = response.read()
        return response.status == status and size in (None, len(data))

    def close(self) -> None:
        self._connection.close()


class HTTP2Client(HonestClient):
    """Asks for a short and a long page in turn, by HTTP/2."""

    _WANTED = ("/small", 5), ("/medium", MIB)
    _REQUESTS = 500  # of one connection: the server would say goodbye after a thousand

    def __init__(self, port: int, authority: Path) -> None:
        super().__init__("HTTP/2", port)
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.set_alpn_protocols(["h2"])
        self._count = 0
        self._connection: ssl.SSLSocket | None = None

    def _connect(self) -> ssl.SSLSocket:
        self.close()
        plain = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        self._connection = self._context.wrap_socket(plain, server_hostname="localhost")
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self._h2.initiate_connection()
        return self._connection

    def ask(self) -> bool:
        connection = self._connection
        if connection is None or self._count % self._REQUESTS == 0:
            connection = self._connect()
        path, wanted = self._WANTED[self._count % len(self._WANTED)]
        self._count += 1
        stream_id = self._h2.get_next_available_stream_id()
        pairs = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
        ]
        self._h2.send_headers(stream_id, pairs, end_stream=True)
        status, size = self._read_answer(connection, stream_id)
        return (status, size) == ("200", wanted)

    def _read_answer(self, connection: ssl.SSLSocket, stream_id: int) -> tuple[str, int]:
        status, size, is_over = "", 0, False
        while not is_over:
            connection.sendall(self._h2.data_to_send())
            data = connection.recv(65536)
            if not data:
                raise ConnectionError("the server left")
            for event in self._h2.receive_data(data):
                if isinstance(event, ResponseReceived):
                    status = dict(event.headers)[":status"]
                elif isinstance(event, DataReceived):
                    size += len(event.data)
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
                elif isinstance(event, StreamEnded):
                    is_over = True
        return status, size

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
