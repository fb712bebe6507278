"""Peers that close half of a connection, vanish, or do not read what they asked for."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from pelotontx.errors import SlowConsumer
from pelotontx.net.http import (
    SLICE_BYTES,
    BodyWriter,
    HTTPLimits,
    Request,
    Response,
    Upgrade,
)
from pelotontx.net.tcp import is_gone, unsent_bytes
from tests.support.http_case import GET, HTTPCase, SocketCase

SLOW = GET.replace(b"/ ", b"/slow ")


class HalfCloseTests(HTTPCase):
    def setUp(self) -> None:
        super().setUp()
        self.cancelled: list[object] = []
        self.waiting: Deferred[Any] = Deferred(self.cancelled.append)
        self.results["/slow"] = self.waiting

    def test_connection_without_a_request_ends(self) -> None:
        for said in (b"", GET, b"GET / HTTP/1.1\r\nHo", b"POST / HTTP/1.1\r\nHost: a\r\n"):
            connection, wire = self.connect()
            connection.dataReceived(said)
            self.assertFalse(wire.ended)
            connection.readConnectionLost()
            self.assertTrue(wire.disconnecting, said)
            self.assertEqual(wire.taken().count(b"HTTP/1.1"), said.count(GET), said)

    def test_connection_with_half_a_body_ends_without_an_answer(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        connection.readConnectionLost()
        self.assertTrue(wire.ended)
        self.assertEqual((wire.taken(), self.requests), (b"", []))

    def test_answer_in_progress_is_finished_and_is_the_last(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(SLOW)
        connection.readConnectionLost()
        self.clock.pump([1.0] * 300)
        self.assertFalse(wire.ended)
        self.waiting.callback(Response(200, b"late"))
        answer = wire.taken()
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(answer.endswith(b"late"))
        self.assertTrue(wire.disconnecting)
        self.assertEqual(self.cancelled, [])

    def test_pipelined_requests_are_all_answered_first(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(SLOW + GET + GET.replace(b"/ ", b"/b ") + b"GET /half HTTP")
        connection.readConnectionLost()
        self.waiting.callback(Response(200, b"late"))
        answer = wire.taken()
        self.assertEqual(answer.count(b"HTTP/1.1 200"), 3)
        self.assertTrue(answer.endswith(b"GET /b"))
        self.assertTrue(wire.disconnecting)

    def test_pipelined_answers_may_take_their_time_too(self) -> None:
        connection, wire = self.connect()
        second: Deferred[Response] = Deferred()
        self.results["/second"] = second
        connection.dataReceived(SLOW + GET.replace(b"/ ", b"/second "))
        connection.readConnectionLost()
        self.waiting.callback(Response(200, b"first"))
        self.assertTrue(wire.taken().endswith(b"first"))
        self.assertFalse(wire.ended)
        second.callback(Response(200, b"second"))
        self.assertTrue(wire.taken().endswith(b"second"))
        self.assertTrue(wire.disconnecting)

    def test_stream_goes_on(self) -> None:
        more: Deferred[bytes] = Deferred()

        async def body() -> AsyncIterator[bytes]:
            yield b"a"
            yield await more

        self.results["/"] = lambda _: Response(200, body())
        connection, wire = self.connect()
        connection.dataReceived(GET)
        connection.readConnectionLost()
        self.assertFalse(wire.ended)
        more.callback(b"bc")
        self.assertTrue(wire.taken().endswith(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"))
        self.assertTrue(wire.disconnecting)

    def test_long_body_goes_on_as_the_peer_reads(self) -> None:
        self.results["/"] = Response(200, b"z" * (2 * SLICE_BYTES))
        connection, wire = self.connect()
        connection.pauseProducing()
        connection.dataReceived(GET)
        connection.readConnectionLost()
        self.assertFalse(wire.ended)
        connection.resumeProducing()
        self.assertEqual(wire.taken().count(b"z"), 2 * SLICE_BYTES)
        self.assertTrue(wire.disconnecting)

    def test_handler_is_cancelled_when_the_rest_is_lost(self) -> None:
        connection, _ = self.connect()
        connection.dataReceived(SLOW)
        connection.readConnectionLost()
        self.assertEqual(self.cancelled, [])
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(len(self.cancelled), 1)

    def test_upgrade_needs_both_directions(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(SLOW)
        connection.readConnectionLost()
        self.waiting.callback(Upgrade(Protocol()))
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 400 "))
        self.assertTrue(wire.disconnecting)
        self.assertIs(wire.protocol, connection)

    def test_peer_that_has_seen_its_refusal_ends_the_connection(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(b"nonsense\r\n\r\n")
        self.assertTrue(wire.half_closed)
        connection.writeConnectionLost()
        self.assertFalse(wire.disconnecting)
        connection.readConnectionLost()
        self.assertTrue(wire.disconnecting)


class LeavingTests(SocketCase):
    def setUp(self) -> None:
        super().setUp()
        self.cancelled: list[object] = []
        self.waiting: Deferred[Any] = Deferred(self.cancelled.append)
        self.results["/slow"] = self.waiting

    def test_half_closed_peer_gets_its_answer_and_then_the_end(self) -> None:
        connection, peer = self.open()
        peer.send(SLOW)
        peer.shutdown(socket.SHUT_WR)
        self.turn(60)
        self.assertTrue(self.is_open(connection))
        self.waiting.callback(Response(200, b"late"))
        self.assertTrue(self.read(peer).endswith(b"late"))
        self.turn()
        self.assertFalse(self.is_open(connection))
        self.assertEqual(peer.recv(1), b"")

    def test_peer_that_closed_altogether_cancels_the_handler(self) -> None:
        connection, peer = self.open()
        peer.send(SLOW)
        self.turn()
        peer.close()
        self.turn(0.1)
        self.assertEqual(len(self.cancelled), 1)
        self.assertFalse(self.is_open(connection))

    def test_peer_that_closes_the_other_half_later_cancels_the_handler(self) -> None:
        connection, peer = self.open()
        peer.send(SLOW)
        peer.shutdown(socket.SHUT_WR)
        self.turn(20)
        self.assertEqual(self.cancelled, [])
        self.assertFalse(is_gone(connection.transport))
        peer.close()
        self.assertTrue(is_gone(connection.transport))
        self.turn(5.2)
        self.assertEqual(len(self.cancelled), 1)
        self.assertFalse(self.is_open(connection))

    def test_peer_that_closes_while_it_is_not_read_cancels_the_handler(self) -> None:
        connection, peer = self.open()
        peer.send(SLOW + GET * 1000)
        self.turn(1)
        self.assertNotIn(connection.transport, self.clock.readers)
        peer.close()
        self.turn(5.2)
        self.assertEqual(len(self.cancelled), 1)
        self.assertFalse(self.is_open(connection))

    def test_write_to_a_peer_that_is_gone_cancels_the_stream(self) -> None:
        ended: list[BaseException] = []
        more: Deferred[bytes] = Deferred()

        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                yield await more
                await Deferred()
            except CancelledError as error:
                ended.append(error)
                raise

        self.results["/"] = lambda _: Response(200, body())
        connection, peer = self.open()
        peer.send(GET)
        peer.shutdown(socket.SHUT_WR)
        self.turn()
        peer.close()
        more.callback(b"b")
        self.turn()
        self.assertEqual(len(ended), 1)
        self.assertFalse(self.is_open(connection))


class UnreadTests(SocketCase):
    limits = HTTPLimits(unread_s=30.0, unread_bytes=1_000_000)

    def test_reader_that_takes_nothing_is_aborted_after_the_limit(self) -> None:
        self.results["/"] = Response(200, b"z" * 5_000_000)
        connection, peer = self.open()
        peer.send(GET)
        self.turn(29.9)
        self.assertTrue(self.is_open(connection))
        self.turn(1.4)
        self.assertFalse(self.is_open(connection))

    def test_nor_does_a_little_that_is_unread_wait_for_ever(self) -> None:
        self.results["/"] = Response(200, b"z" * 30_000)
        connection, peer = self.open(send_buffer_bytes=4096)
        peer.send(GET)
        self.turn()
        self.assertTrue(0 < unsent_bytes(connection.transport) < 30_000)
        self.turn(29.9)
        self.assertTrue(self.is_open(connection))
        self.turn(6.4)
        self.assertFalse(self.is_open(connection))

    def test_nor_in_the_middle_of_a_connection_that_ends(self) -> None:
        self.results["/"] = Response(200, b"z" * 30_000, close=True)
        connection, peer = self.open(send_buffer_bytes=4096)
        peer.send(GET)
        self.turn(29.9)
        self.assertTrue(self.is_open(connection))
        self.turn(6.4)
        self.assertFalse(self.is_open(connection))

    def test_nor_does_what_the_kernel_holds(self) -> None:
        self.results["/"] = Response(200, b"z" * 30_000)
        connection, peer = self.open()
        peer.send(GET)
        self.turn(30)
        self.assertEqual(unsent_bytes(connection.transport), 0)
        self.assertTrue(self.is_open(connection))
        self.turn(6.4)
        self.assertFalse(self.is_open(connection))

    def test_nor_who_takes_a_few_bytes_now_and_then(self) -> None:
        self.results["/"] = Response(200, b"z" * 5_000_000)
        connection, peer = self.open()
        peer.send(GET)
        for _ in range(6):
            self.turn(6)
            self.assertEqual(len(peer.recv(100)), 100)
        self.turn(1)
        self.assertFalse(self.is_open(connection))

    def test_idleness_counts_from_when_an_answer_was_taken(self) -> None:
        self.results["/"] = Response(200, b"z" * 30_000)
        connection, peer = self.open()
        peer.send(GET)
        self.turn(20)
        self.assertGreater(len(self.read(peer)), 30_000)
        self.turn(14)
        self.assertTrue(self.is_open(connection))
        self.turn(2.5)
        self.assertFalse(self.is_open(connection))

    def test_slow_reader_is_waited_for(self) -> None:
        self.results["/"] = Response(200, b"z" * 2_000_000)
        connection, peer = self.open()
        peer.send(GET)
        self.turn(25)
        seen = 0
        for _ in range(5):
            seen += len(peer.recv(100_000))
            self.turn(25)
        self.assertTrue(self.is_open(connection))
        while len(data := self.read(peer)):
            seen += len(data)
        self.assertGreater(seen, 2_000_000)
        self.turn(14)
        self.assertTrue(self.is_open(connection))
        self.turn(6.2)
        self.assertFalse(self.is_open(connection))

    def write_without_waiting(self, pieces: int, errors: list[Exception]) -> Any:
        async def body(writer: BodyWriter) -> None:
            try:
                for _ in range(pieces):
                    writer.write(b"z" * 100_000)
            except SlowConsumer as error:
                errors.append(error)
                raise

        return lambda _: Response(200, body)

    def test_stream_that_does_not_wait_for_its_reader_is_aborted(self) -> None:
        errors: list[SlowConsumer] = []
        self.results["/"] = self.write_without_waiting(20, errors)
        connection, peer = self.open()
        peer.send(GET + GET)
        self.turn(0.1)
        self.assertEqual([error.limit_bytes for error in errors], [1_000_000])
        self.assertFalse(self.is_open(connection))
        self.assertEqual(len(self.requests), 1)

    def test_stream_within_the_bound_need_not_wait(self) -> None:
        errors: list[SlowConsumer] = []
        self.results["/"] = self.write_without_waiting(9, errors)
        connection, peer = self.open()
        peer.send(GET)
        self.assertTrue(self.read(peer).endswith(b"0\r\n\r\n"))
        self.assertEqual(errors, [])
        self.assertTrue(self.is_open(connection))

    def test_handler_sees_that_its_stream_was_aborted(self) -> None:
        seen: list[Request | str] = []

        async def body(writer: BodyWriter) -> None:
            writer.write(b"z" * 100_000)
            try:
                writer.write(b"z" * 1_000_000)
            except SlowConsumer:
                seen.append("slow")
            writer.write(b"dropped")

        self.results["/"] = lambda _: Response(200, body)
        _, peer = self.open()
        peer.send(GET)
        self.turn(0.1)
        self.assertEqual(seen, ["slow"])
        self.assertEqual(self.factory.connections, set())
