"""HTTP connections over transports in memory, with a clock that is turned by hand."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.http import HTTPConnection, HTTPFactory, HTTPLimits, Request, Response
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
        self.factory = HTTPFactory(
            self.handle,
            wheel=self.wheel,
            clock=self.clock,
            limits=self.limits,
            wall_clock=self.clock.seconds,
        )

    def handle(self, request: Request) -> Any:
        self.requests.append(request)
        result = self.results.get(request.path)
        if callable(result):
            return result(request)
        if result is not None:
            return result
        return Response(200, f"{request.method} {request.path}".encode() + request.body)

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
