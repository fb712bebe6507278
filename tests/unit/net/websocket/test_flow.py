"""What a connection offers to code that can wait: room to send, a pause in reading, its own 101."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from pelotontx.net.websocket import Handshake, Refused, WebSocketLimits
from tests.support.websocket_peer import (
    BINARY,
    PING,
    PONG,
    TEXT,
    ServerTestCase,
    frame,
    request,
)


class RoomTests(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def test_there_is_room_until_the_peer_does_not_read(self) -> None:
        self.successResultOf(self.connection.drained())

    def fill(self) -> None:
        self.transport.room = 0
        self.connection.send_binary(b"x" * 200_000)
        self.reactor.turn()

    def test_whoever_waits_goes_on_when_the_peer_reads(self) -> None:
        self.fill()
        one, two = self.connection.drained(), self.connection.drained()
        self.assertNoResult(one)
        self.transport.drain()
        self.successResultOf(one)
        self.successResultOf(two)

    def test_or_when_the_connection_is_lost(self) -> None:
        self.fill()
        waiting = self.connection.drained()
        self.lose()
        self.successResultOf(waiting)

    def test_who_stops_waiting_concerns_nobody_else(self) -> None:
        self.fill()
        one, two = self.connection.drained(), self.connection.drained()
        one.addErrback(lambda _: None).cancel()
        self.transport.drain()
        self.successResultOf(two)


class ReadingTests(ServerTestCase):
    limits = WebSocketLimits(ping_interval_s=25, pong_timeout_s=10)

    def pings(self) -> int:
        return [opcode for opcode, _ in self.sent()].count(PING)

    def test_a_peer_that_is_not_read_owes_no_pong(self) -> None:
        self.open()
        self.connection.pause_reading()
        for _ in range(120):
            self.clock.advance(1)
        self.assertFalse(self.transport.is_aborted)
        self.assertGreater(self.pings(), 1)
        self.connection.resume_reading()
        for _ in range(12):
            self.clock.advance(1)
        self.assertTrue(self.transport.is_aborted)

    def test_and_lives_on_when_it_is_read_again(self) -> None:
        self.open()
        self.connection.pause_reading()
        for _ in range(60):
            self.clock.advance(1)
        self.connection.resume_reading()
        self.receive(frame(PONG, b"any"), frame(TEXT, b"hello"))
        for _ in range(12):
            self.clock.advance(1)
        self.assertFalse(self.transport.is_aborted)


class OwnDecisionTests(ServerTestCase):
    def test_a_connection_may_decide_instead_of_the_factory(self) -> None:
        self.connect()
        self.connection.accept = lambda handshake: ("other", self.converse)
        self.connection.fields = b"X-Mine: 1\r\n"
        self.receive(request())
        answer = self.transport.take()
        self.assertIn(b"\r\nSec-WebSocket-Protocol: other\r\nX-Mine: 1\r\n", answer)
        self.assertEqual(self.handshakes, [])
        self.receive(frame(BINARY, b"x"))
        self.assertEqual(self.conversations[-1].messages, [(BINARY, b"x")])

    def test_it_may_refuse_and_take_its_time(self) -> None:
        deciding: Deferred[Any] = Deferred()

        def accept(handshake: Handshake) -> Deferred[Any]:
            return deciding

        self.connect()
        self.connection.accept = accept
        self.receive(request())
        self.assertEqual(self.transport.take(), b"")
        deciding.errback(Refused(404, "not here"))
        self.assertTrue(self.transport.take().startswith(b"HTTP/1.1 404 "))
