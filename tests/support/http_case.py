"""HTTP connections over transports in memory, with a clock that is turned by hand."""

from __future__ import annotations

import socket
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import HTTPConnection, HTTPFactory, HTTPLimits, Request, Response
from pelotontx.net.tcp import UNIXServer
from pelotontx.net.wheel import Wheel
from tests.support.fake_reactor import FakeReactor

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Wire(StringTransport):
    """A transport that keeps what is written, and tells how it was ended."""

    aborted = False
    half_closed = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    @property
    def ended(self) -> bool:
        return self.disconnecting or self.half_closed or self.aborted

    def taken(self) -> bytes:
        data: bytes = self.value()
        self.clear()
        return data


class HTTPCase(SynchronousTestCase):
    limits = HTTPLimits()

    def setUp(self) -> None:
        self.clock = FakeReactor()
        self.clock.advance(1_000_000)
        self.wheel = Wheel(self.clock)
        self.requests: list[Request] = []
        self.results: dict[str, Any] = {}
        self.streamed: set[str] = set()  # paths whose handlers read the body themselves
        self.factory = HTTPFactory(
            self.handle,
            wheel=self.wheel,
            clock=self.clock,
            limits=self.limits,
            wall_clock=self.clock.seconds,
        )

    def handle(self, request: Request) -> Any:
        if not request.is_complete and request.path not in self.streamed:
            return Deferred.fromCoroutine(self.collected(request))
        self.requests.append(request)
        result = self.results.get(request.path)
        if callable(result):
            return result(request)
        if result is not None:
            return result
        return Response(200, f"{request.method} {request.path}".encode() + request.body)

    async def collected(self, request: Request) -> Any:
        request.body = await request.stream.read()
        result = self.handle(request)
        return await result if isinstance(result, Deferred) or iscoroutine(result) else result

    def connect(self) -> tuple[HTTPConnection, Wire]:
        connection = self.factory.buildProtocol(None)
        wire = Wire()
        wire.protocol = connection
        connection.makeConnection(wire)
        return connection, wire

    def exchange(self, data: bytes) -> tuple[bytes, Wire]:
        connection, wire = self.connect()
        connection.dataReceived(data)
        return wire.taken(), wire


class SocketCase(HTTPCase):
    """A connection over a socket pair, in turns of the fake reactor."""

    def open(self, send_buffer_bytes: int = 0) -> tuple[HTTPConnection, socket.socket]:
        ours, peer = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(peer.close)
        peer.setblocking(False)
        if send_buffer_bytes:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        connection = self.factory.buildProtocol(None)
        assert connection is not None
        transport: Any = UNIXServer(ours, connection, "peer", None, 0, self.clock)
        connection.makeConnection(transport)
        return connection, peer

    def turn(self, seconds: float = 0) -> None:
        """Lets time pass in ticks of the wheel, with a turn of the reactor after each."""
        self.clock.turn()
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.clock.turn()

    def read(self, peer: socket.socket) -> bytes:
        """What has come; all of it if the connection has ended."""
        received = b""
        while True:
            self.turn()
            try:
                data = peer.recv(1 << 20)
            except BlockingIOError:
                return received
            if not data:
                return received
            received += data

    def is_open(self, connection: HTTPConnection) -> bool:
        return connection in self.factory.connections
