"""Clients that mean harm: slow ones, silent ones, and floods; and slowhttptest, one more of them.

An `Attack` says what each of many connections sends and reads; `Attackers` does it in a thread,
until it is stopped or the server has ended all of them. Attackers never close a connection
themselves. `TLS`, `HTTP1`, `HTTP2` and `UPLOADS` are the attacks by name.
"""

from __future__ import annotations

import csv
import itertools
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from twisted.internet.threads import deferToThread

from tests.support.programs import Program
from tests.support.servers import eventually, system_binary
from tests.support.slow_site import TIMEOUT_S, Deadlines


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What each connection of an attack does.

    Attributes:
        due_s: how long the server has, counted from the connection's beginning.
        tls: None: plain; else what ALPN offers, nothing with "".
        first: what is sent at once, after TLS's handshake.
        drip: what is sent then, `every_s` seconds, given the number of the time.
        read_bytes: what is read each time; with 0 nothing is ever read.
        receive_buffer: SO_RCVBUF, the smallest with 1; 0: as it is.
    """

    due_s: Callable[[Deadlines], float]
    tls: str | None = None
    first: bytes = b""
    drip: Callable[[int], bytes] | None = None
    every_s: float = 0.2
    read_bytes: int = 0
    receive_buffer: int = 0


class Attackers(threading.Thread):
    """The connections of one attack.

    Args:
        attack: what they do.
        port: on 127.0.0.1.
        count: how many there are.
        authority: whose certificates are believed.

    Attributes:
        opened: connections that were made and began.
    """

    def __init__(self, attack: Attack, port: int, count: int, authority: Path) -> None:
        super().__init__(daemon=True)
        self._attack = attack
        self._port = port
        self._count = count
        self._authority = authority
        self._is_over = threading.Event()
        self._sockets: list[socket.socket] = []
        self.opened = 0

    def run(self) -> None:
        living = self._sockets
        try:
            for _ in range(self._count):
                if self._is_over.is_set():
                    return
                living.append(self._connected())
                self.opened += 1
            for number in itertools.count():
                if self._is_over.wait(self._attack.every_s):
                    return
                living[:] = [own for own in living if self._goes_on(own, number)]
        finally:
            for own in living:
                own.close()

    def _connected(self) -> socket.socket:
        attack = self._attack
        own = socket.socket()
        own.settimeout(TIMEOUT_S)
        if attack.receive_buffer:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, attack.receive_buffer)
        own.connect(("127.0.0.1", self._port))
        if attack.tls is not None:
            context = ssl.create_default_context(cafile=str(self._authority))
            if attack.tls:
                context.set_alpn_protocols([attack.tls])
            own = context.wrap_socket(own, server_hostname="localhost")
        with suppress(OSError):  # the server has seen enough
            own.sendall(attack.first)
        own.setblocking(False)
        return own

    def _goes_on(self, own: socket.socket, number: int) -> bool:
        """Drips and reads; whether the connection is alive. One that the server shut stays."""
        attack = self._attack
        try:
            if attack.drip is not None:
                own.send(attack.drip(number))
            if attack.read_bytes:
                own.recv(attack.read_bytes)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            own.close()
            return False
        return True

    async def all_opened(self, reactor: Any) -> None:
        """Waits until each has begun."""
        await eventually(reactor, lambda: self.opened == self._count, timeout_s=TIMEOUT_S)

    async def stop(self) -> None:
        """Ends them all."""
        self._is_over.set()
        await deferToThread(self.join, TIMEOUT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What slowhttptest has written down.

    Attributes:
        connected: the connections that it made, some of them lost by then.
        served: whether its own honest request was answered all the time.
    """

    connected: int
    served: bool


class SlowHTTPTest(Program):
    """One run of slowhttptest, for much longer than any deadline.

    Args:
        reactor: the tests' reactor.
        words: the mode's.
        url: what it attacks.
        count: its connections.
        folder: where its report is put, by a name of its own.
    """

    def __init__(self, reactor: Any, *words: str, url: str, count: int, folder: Path) -> None:
        self._report = folder / "report.csv"
        number = str(count)
        super().__init__(
            reactor,
            *("-c", number, "-r", number, "-l", "600", "-p", str(int(TIMEOUT_S))),
            *("-g", "-o", str(folder / "report"), "-u", url, *words),
            folder=folder,
            command=(system_binary("slowhttptest"),),
        )

    def report(self) -> Report:
        """Its report, when it has ended."""
        rows = list(csv.reader(self._report.read_text().splitlines()))[1:]
        return Report(
            connected=max(int(row[1]) + int(row[3]) for row in rows),
            served=all(int(row[4]) for row in rows),
        )


#: slowhttptest's modes. Its slow readers take five bytes a second, with windows of 1 to 512 bytes.
SLOW_HEAD: Final = ("-H", "-i", "1")
SLOW_BODY: Final = ("-B", "-i", "1", "-s", "65536", "-x", "10")
SLOW_READ: Final = ("-X", "-w", "1", "-y", "512", "-n", "1", "-z", "5")


def _request(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def _head_due_s(deadlines: Deadlines) -> float:
    return deadlines.head_s + deadlines.linger_s


def _body_due_s(deadlines: Deadlines) -> float:
    return deadlines.body_grace_s + deadlines.linger_s


def _unread_due_s(deadlines: Deadlines) -> float:
    return deadlines.unread_s + deadlines.look_s


def _left_due_s(deadlines: Deadlines) -> float:
    """Of an answer that is in the kernel's hands: idle first, or left to the kernel's looks."""
    return deadlines.idle_s + 2 * deadlines.unread_s + deadlines.look_s


def _handshake_due_s(deadlines: Deadlines) -> float:
    return deadlines.handshake_s


def _at_once_s(_: Deadlines) -> float:
    return 2.0


_DRIBBLE: Final = {"read_bytes": 20, "receive_buffer": 1}

HTTP1: Final = {
    "silence": Attack(due_s=_head_due_s),
    "silence after a request": Attack(
        due_s=lambda deadlines: deadlines.idle_s + 2, first=_request("/small")
    ),
    "head by the byte": Attack(due_s=_head_due_s, first=b"GET / HTTP/1.1\r\n", drip=lambda _: b"x"),
    "second head by the byte": Attack(
        due_s=_head_due_s, first=_request("/small") + b"GET / HTTP/1.1\r\n", drip=lambda _: b"x"
    ),
    "chunks by the byte": Attack(
        due_s=_body_due_s,
        first=_request("/body", "Transfer-Encoding: chunked", method="POST"),
        drip=lambda _: b"1\r\nx\r\n",
    ),
    "chunk's size by the byte": Attack(
        due_s=_body_due_s,
        first=_request("/body", "Transfer-Encoding: chunked", method="POST"),
        drip=lambda _: b"0",
    ),
    "no reading of memory": Attack(due_s=_unread_due_s, first=_request("/memory")),
    "no reading of a file": Attack(due_s=_unread_due_s, first=_request("/files/long.bin")),
    "no reading of a stream": Attack(due_s=_unread_due_s, first=_request("/stream")),
    "reading of memory by the byte": Attack(
        due_s=_unread_due_s, first=_request("/memory"), **_DRIBBLE
    ),
    "reading of a file by the byte": Attack(
        due_s=_unread_due_s, first=_request("/files/long.bin"), **_DRIBBLE
    ),
    "no reading of what the kernel took": Attack(
        due_s=_left_due_s, first=_request("/medium"), receive_buffer=1
    ),
    "no reading of a last answer": Attack(
        due_s=_left_due_s, first=_request("/medium", "Connection: close"), receive_buffer=1
    ),
    "no reading of many answers": Attack(
        due_s=_unread_due_s, first=_request("/medium") * 20, receive_buffer=1
    ),
}

#: So that the file is on the disk, which is written in blocks of 128 KiB.
_FORM_KIB: Final = 140

_FORM: Final = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    + b"x" * _FORM_KIB * 1024
)

UPLOADS: Final = {
    "form by the byte": Attack(
        due_s=lambda deadlines: _FORM_KIB / deadlines.body_rate_kib + deadlines.linger_s,
        first=_request(
            "/form",
            "Content-Type: multipart/form-data; boundary=b",
            "Content-Length: 1000000",
            method="POST",
        )
        + _FORM,
        drip=lambda _: b"x",
    ),
}

_HELLO: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # a ClientHello of 512 bytes, which never come
)

TLS: Final = {
    "silence before the handshake": Attack(due_s=_handshake_due_s),
    "half a ClientHello": Attack(due_s=_handshake_due_s, first=_HELLO),
    "ClientHello by the byte": Attack(due_s=_handshake_due_s, first=_HELLO, drip=lambda _: b"\x00"),
    "silence after the handshake": Attack(due_s=_head_due_s, tls=""),
    "head by the byte": Attack(
        due_s=_head_due_s, tls="http/1.1", first=b"GET / HTTP/1.1\r\n", drip=lambda _: b"x"
    ),
    "no reading of memory": Attack(due_s=_unread_due_s, tls="", first=_request("/memory")),
    "no reading of a file": Attack(due_s=_unread_due_s, tls="", first=_request("/files/long.bin")),
    "no reading of what the kernel took": Attack(
        due_s=_left_due_s, tls="", first=_request("/medium"), receive_buffer=1
    ),
    "no reading of a last answer": Attack(
        due_s=_left_due_s,
        tls="",
        first=_request("/medium", "Connection: close"),
        receive_buffer=1,
    ),
}


def _begun(window: int = 65535) -> H2Connection:
    """A client's connection, and its first bytes."""
    h2 = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
    h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
    h2.local_settings.acknowledge()
    h2.initiate_connection()
    return h2


def _pairs(path: str, method: str = "GET") -> list[tuple[str, str]]:
    return [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]


def _asking(*paths: str, window: int = 65535) -> bytes:
    """Requests, with windows that let so many bytes of each answer come."""
    h2 = _begun(window)
    if window > 65535:
        h2.increment_flow_control_window(window)
    for path in paths:
        h2.send_headers(h2.get_next_available_stream_id(), _pairs(path), end_stream=True)
    return h2.data_to_send()


def _posting() -> bytes:
    h2 = _begun()
    h2.send_headers(1, _pairs("/body", "POST"))
    return h2.data_to_send()


def _head(stream_id: int) -> HeadersFrame:
    """A whole request."""
    data = Encoder().encode(_pairs("/small"))
    return HeadersFrame(stream_id, data=data, flags=["END_STREAM", "END_HEADERS"])


def _bytes(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def _resets(number: int) -> bytes:
    """A hundred requests that are taken back at once."""
    ids = [2 * (100 * number + n) + 1 for n in range(100)]
    cancel = ErrorCodes.CANCEL
    return b"".join(_bytes(_head(own), RstStreamFrame(own, error_code=cancel)) for own in ids)


def _http2(due_s: Callable[[Deadlines], float], **more: Any) -> Attack:
    return Attack(due_s=due_s, tls="h2", **more)


_BEGIN: Final = _begun().data_to_send()
_HALF: Final = HeadersFrame(1, data=b"\x82", flags=["END_STREAM"])
_PRIORITY: Final = PriorityFrame(1, depends_on=0, stream_weight=1)

HTTP2: Final = {
    "silence": _http2(_head_due_s),
    "half a preface": _http2(_head_due_s, first=b"PRI * HTTP/2.0\r\n"),
    "preface by the byte": _http2(_head_due_s, drip=lambda n: _BEGIN[n : n + 1]),
    "silence after the preface": _http2(lambda d: d.idle_s + d.linger_s, first=_BEGIN),
    "head without an end": _http2(_head_due_s, first=_BEGIN + _bytes(_HALF)),
    "continuations by the byte": _http2(
        _head_due_s,
        first=_BEGIN + _bytes(_HALF),
        drip=lambda _: _bytes(ContinuationFrame(1, data=b"\x87")),
    ),
    "a frame by the byte": _http2(
        _head_due_s, first=_BEGIN + _bytes(_head(1))[:9], drip=lambda _: b"\x82"
    ),
    "body by the byte": _http2(
        lambda d: d.body_grace_s + d.idle_s + d.linger_s,
        first=_posting(),
        drip=lambda _: _bytes(DataFrame(1, data=b"x")),
    ),
    "no window": _http2(
        lambda d: d.unread_s + d.idle_s + d.look_s, first=_asking("/memory", window=0)
    ),
    "no window for a stream": _http2(
        lambda d: d.unread_s + d.idle_s + d.look_s, first=_asking("/stream", window=0)
    ),
    "no reading": _http2(_unread_due_s, first=_asking("/memory", "/files/long.bin", window=2**30)),
    "no reading of what the kernel took": _http2(
        _left_due_s, first=_asking("/medium", window=2**30), receive_buffer=1
    ),
    "flood of empty data": _http2(
        _at_once_s, first=_posting(), every_s=0.01, drip=lambda _: _bytes(DataFrame(1)) * 100
    ),
    "flood of pings": _http2(
        _at_once_s, first=_BEGIN, every_s=0.01, drip=lambda _: _bytes(PingFrame()) * 100
    ),
    "flood of settings": _http2(
        _at_once_s, first=_BEGIN, every_s=0.01, drip=lambda _: _bytes(SettingsFrame()) * 100
    ),
    "flood of priorities": _http2(
        _at_once_s, first=_BEGIN, every_s=0.01, drip=lambda _: _bytes(_PRIORITY) * 100
    ),
    "flood of window updates": _http2(
        _at_once_s,
        first=_asking("/memory", window=0),
        every_s=0.01,
        drip=lambda _: _bytes(WindowUpdateFrame(1, window_increment=1)) * 100,
    ),
    "rapid reset": _http2(_at_once_s, first=_BEGIN, every_s=0.01, drip=_resets),
}


#: What is held to see how much memory it takes, and how often.
HELD: Final = {
    "silence": (HTTP1["silence"], 1000),
    "half a head": (HTTP1["head by the byte"], 1000),
    "half a body in chunks": (HTTP1["chunks by the byte"], 1000),
    "half a form with a file": (UPLOADS["form by the byte"], 300),
    "10 MB of memory unread": (HTTP1["no reading of memory"], 200),
    "10 MB of a file unread": (HTTP1["no reading of a file"], 200),
    "10 MB of a stream unread": (HTTP1["no reading of a stream"], 200),
    "half a ClientHello": (TLS["half a ClientHello"], 1000),
    "TLS: silence": (TLS["silence after the handshake"], 1000),
    "TLS: half a head": (TLS["head by the byte"], 1000),
    "TLS: 10 MB of memory unread": (TLS["no reading of memory"], 200),
    "HTTP/2: silence": (HTTP2["silence after the preface"], 1000),
    "HTTP/2: half a head": (HTTP2["head without an end"], 1000),
    "HTTP/2: half a body": (HTTP2["body by the byte"], 1000),
    "HTTP/2: 10 MB of memory without a window": (HTTP2["no window"], 1000),
    "HTTP/2: 10 MB of a stream without a window": (HTTP2["no window for a stream"], 1000),
}
