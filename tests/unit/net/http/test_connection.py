"""The HTTP connection over a transport in memory, with a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import (
    SLICE_BYTES,
    BodyWriter,
    HTTPLimits,
    Request,
    Response,
    Upgrade,
)
from tests.support.http_case import GET, HTTPCase, SocketCase
from tests.support.logs import logged


class AnswerTests(HTTPCase):
    def test_response_has_status_server_date_and_length(self) -> None:
        answer, wire = self.exchange(GET)
        self.assertEqual(
            answer,
            b"HTTP/1.1 200 OK\r\nServer: pelotontx\r\nDate: Mon, 12 Jan 1970 13:46:40 GMT\r\n"
            b"Content-Length: 5\r\n\r\nGET /",
        )
        self.assertFalse(wire.ended)

    def test_date_follows_the_clock(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(GET)
        wire.taken()
        self.clock.advance(1.5)
        connection.dataReceived(GET)
        self.assertIn(b"13:46:41 GMT", wire.taken())

    def test_pipelined_requests_leave_in_one_write_in_order(self) -> None:
        connection, wire = self.connect()
        writes: list[bytes] = []
        wire.write = writes.append  # type: ignore[method-assign]
        connection.dataReceived(GET + GET.replace(b"/ ", b"/b ") + GET.replace(b"/ ", b"/c "))
        self.assertEqual(len(writes), 1)
        self.assertEqual(
            [part.split(b"\r\n\r\n")[1] for part in writes[0].split(b"HTTP/1.1 ")[1:]],
            [b"GET /", b"GET /b", b"GET /c"],
        )

    def test_every_split_of_the_input_gives_the_same_answers(self) -> None:
        stream = (
            b"POST /a?x=1 HTTP/1.1\r\nHost: a.example:80\r\nContent-Length: 5\r\n\r\nhello"
            b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
            b"\r\nGET /c%20d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        whole, wire = self.exchange(stream)
        self.assertTrue(wire.ended)
        self.assertEqual(whole.count(b"HTTP/1.1 200"), 3)
        self.assertIn(b"POST /babc0123456789", whole)
        for cut in range(1, len(stream)):
            connection, wire = self.connect()
            connection.dataReceived(stream[:cut])
            if not wire.ended:
                connection.dataReceived(stream[cut:])
            self.assertEqual(wire.taken(), whole, cut)
        connection, wire = self.connect()
        for position in range(len(stream)):
            connection.dataReceived(stream[position : position + 1])
        self.assertEqual(wire.taken(), whole)

    def test_request_carries_what_was_sent(self) -> None:
        self.exchange(b"GET /a%2Fb%C3%A9?q=%20 HTTP/1.1\r\nHost: x:8\r\nX-A: 1\r\nx-a:  2 \r\n\r\n")
        (request,) = self.requests
        self.assertEqual(
            (request.method, request.target, request.path, request.query_string),
            ("GET", "/a%2Fb%C3%A9?q=%20", "/a/bé", "q=%20"),
        )
        self.assertEqual((request.host, request.version), ("x:8", "1.1"))
        self.assertEqual(request.headers.get("X-a"), "1")
        self.assertEqual(request.headers.get_all("x-A"), ["1", "2"])
        self.assertEqual(request.headers["host"], "x:8")
        self.assertIn("HOST", request.headers)
        self.assertNotIn("cookie", request.headers)
        self.assertEqual(len(request.headers), 2)

    def test_head_has_the_length_and_no_body(self) -> None:
        answer, _ = self.exchange(GET.replace(b"GET", b"HEAD"))
        self.assertIn(b"Content-Length: 6\r\n", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_http_1_0_closes_unless_asked_to_stay(self) -> None:
        answer, wire = self.exchange(b"GET / HTTP/1.0\r\n\r\n")
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(wire.ended)
        answer, wire = self.exchange(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        self.assertIn(b"Connection: keep-alive\r\n", answer)
        self.assertFalse(wire.ended)

    def test_continue_is_sent_only_when_the_body_has_not_come(self) -> None:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        connection, wire = self.connect()
        connection.dataReceived(head)
        self.assertEqual(wire.taken(), b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.dataReceived(b"ok")
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200"))
        answer, _ = self.exchange(head + b"ok")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200"))

    def test_no_content_and_not_modified_have_no_length(self) -> None:
        for status in (204, 304):
            self.results["/"] = Response(status)
            answer, _ = self.exchange(GET)
            self.assertNotIn(b"Content-Length", answer)
            self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_response_may_close(self) -> None:
        self.results["/"] = Response(200, b"x", close=True)
        answer, wire = self.exchange(GET + GET)
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertEqual(answer.count(b"HTTP/1.1"), 1)
        self.assertTrue(wire.ended)

    def test_last_request_of_a_connection_closes_it(self) -> None:
        self.factory.last_request = 3
        answer, wire = self.exchange(GET * 5)
        self.assertEqual(answer.count(b"HTTP/1.1 200"), 3)
        self.assertEqual(answer.count(b"Connection: close"), 1)
        self.assertTrue(wire.ended)

    def test_failing_handler_gives_500_and_the_connection_lives(self) -> None:
        def fail(_: Request) -> Response:
            raise RuntimeError("secret")

        self.results["/"] = fail
        answer, wire = self.exchange(GET)
        self.assertTrue(answer.startswith(b"HTTP/1.1 500 "))
        self.assertNotIn(b"secret", answer)
        self.assertFalse(wire.ended)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_header_injection_is_refused_in_the_handlers_face(self) -> None:
        for name, value in (
            ("X", "a\r\nSet-Cookie: b"),
            ("X", "a\nb"),
            ("X", "a\0b"),
            ("X y", "a"),
            ("X", "€"),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
        ):
            self.assertRaises(LocalProtocolError, Response, 200, b"", {name: value})
        self.assertRaises(LocalProtocolError, Response, 199)
        self.assertRaises(LocalProtocolError, Response, 200, b"", content_type="a\r\nb: c")


class AsyncTests(HTTPCase):
    def test_pipelined_requests_wait_for_a_deferred_answer(self) -> None:
        waiting: Deferred[Response] = Deferred()
        self.results["/"] = waiting
        answer, wire = self.exchange(GET + GET.replace(b"/ ", b"/b "))
        self.assertEqual(answer, b"")
        self.assertEqual(len(self.requests), 1)
        waiting.callback(Response(200, b"first"))
        answer = wire.taken()
        self.assertLess(answer.index(b"first"), answer.index(b"GET /b"))

    def test_date_is_of_the_answer_not_of_the_question(self) -> None:
        waiting: Deferred[Response] = Deferred()
        self.results["/"] = waiting
        _, wire = self.exchange(GET)
        self.clock.advance(5)
        waiting.callback(Response(200, b"x"))
        self.assertIn(b"13:46:45 GMT", wire.taken())

    def test_thousand_pipelined_coroutines_do_not_nest(self) -> None:
        async def answer(_: Request) -> Response:
            return Response(200, b"x")

        self.factory.last_request = 10_000
        self.results["/"] = answer
        data, _ = self.exchange(GET * 2000)
        self.assertEqual(data.count(b"HTTP/1.1 200"), 2000)

    def test_pipelined_bytes_are_bounded_while_an_answer_waits(self) -> None:
        waiting: Deferred[Response] = Deferred()
        self.results["/"] = waiting
        connection, wire = self.connect()
        connection.dataReceived(GET)
        connection.dataReceived(GET.replace(b"/ ", b"/b ") * 10)
        self.assertEqual(wire.producerState, "producing")
        connection.dataReceived(GET.replace(b"/ ", b"/b ") * 600)
        self.assertEqual(wire.producerState, "paused")
        waiting.callback(Response(200, b"first"))
        self.assertEqual(wire.producerState, "producing")
        self.assertEqual(wire.taken().count(b"HTTP/1.1 200"), 611)

    def test_handler_is_cancelled_when_its_client_leaves(self) -> None:
        cancelled: list[object] = []

        async def wait(_: Request) -> Response:
            try:
                await Deferred()
            except CancelledError:
                cancelled.append(1)
                raise
            raise AssertionError("unreachable")

        self.results["/"] = wait
        connection, _ = self.connect()
        connection.dataReceived(GET)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(cancelled, [1])
        self.assertEqual(self.factory.connections, set())

    def test_failed_deferred_gives_500(self) -> None:
        waiting: Deferred[Response] = Deferred()
        self.results["/"] = waiting
        _, wire = self.exchange(GET)
        waiting.errback(ValueError("no"))
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 500 "))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_what_failed_is_named_in_the_log(self) -> None:
        async def cut_short(writer: BodyWriter) -> None:
            await writer.write(b"x")
            raise ValueError

        self.results["/crash"] = lambda _: 1 / 0
        self.results["/none"] = lambda _: None
        self.results["/cut"] = Response(200, cut_short)
        with logged() as lines:
            for path in (b"/crash", b"/none", b"/cut"):
                self.exchange(GET.replace(b"/ ", path + b" "))
        self.flushLoggedErrors(ZeroDivisionError, ValueError)
        self.assertEqual(
            lines,
            [
                "The handler of GET /crash failed",
                "The handler of GET /none returned NoneType",
                "The response to GET /cut failed",
            ],
        )

    def test_stream_whose_wait_was_cancelled_by_another_is_a_failure(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def wait(writer: BodyWriter) -> None:
            await writer.write(b"x")
            await waiting

        self.results["/"] = Response(200, wait)
        _, wire = self.exchange(GET)
        waiting.cancel()
        self.assertTrue(wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)


class StreamTests(HTTPCase):
    def pieces(self, *pieces: bytes) -> Callable[[Request], Response]:
        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return lambda _: Response(200, body())

    def test_iterator_leaves_in_chunks(self) -> None:
        self.results["/"] = self.pieces(b"abc", b"", b"0123456789abcdef")
        answer, wire = self.exchange(GET)
        head, body = answer.split(b"\r\n\r\n", 1)
        self.assertIn(b"Transfer-Encoding: chunked", head)
        self.assertEqual(body, b"3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n")
        self.assertFalse(wire.ended)

    def test_http_1_0_stream_ends_with_the_connection(self) -> None:
        self.results["/"] = self.pieces(b"abc")
        answer, wire = self.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        self.assertTrue(answer.endswith(b"\r\n\r\nabc"))
        self.assertIn(b"Connection: close", answer)
        self.assertTrue(wire.ended)

    def test_stream_of_announced_length_is_not_chunked(self) -> None:
        async def write(writer: BodyWriter) -> None:
            writer.write(b"ab")
            await writer.drain()
            writer.write(b"c")

        self.results["/"] = lambda _: Response(200, write, length=3)
        answer, _ = self.exchange(GET)
        self.assertTrue(answer.endswith(b"Content-Length: 3\r\n\r\nabc"))

    def test_stream_of_wrong_length_aborts(self) -> None:
        for length, pieces in ((4, (b"abc",)), (4, (b"abc", b"de"))):
            answer = self.pieces(*pieces)(self.requests and self.requests[0])  # type: ignore[arg-type]
            answer.length = length
            self.results["/"] = answer
            _, wire = self.exchange(GET)
            self.assertTrue(wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 2)

    def test_stream_that_fails_before_its_first_byte_gives_500(self) -> None:
        answer = self.pieces(b"abc")(self.requests and self.requests[0])  # type: ignore[arg-type]
        answer.length = 2
        self.results["/"] = answer
        data, wire = self.exchange(GET)
        self.assertTrue(data.startswith(b"HTTP/1.1 500 "))
        self.assertEqual(data.count(b"HTTP/1.1"), 1)
        self.assertFalse(wire.ended)
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_failing_stream_aborts_instead_of_ending_cleanly(self) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("broken")

        self.results["/"] = lambda _: Response(200, body())
        answer, wire = self.exchange(GET)
        self.assertTrue(wire.aborted)
        self.assertNotIn(b"0\r\n\r\n", answer)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_head_does_not_run_the_stream(self) -> None:
        self.results["/"] = self.pieces(b"abc")
        answer, _ = self.exchange(GET.replace(b"GET", b"HEAD"))
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_stream_waits_while_the_peer_does_not_read(self) -> None:
        closed: list[int] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                for number in range(4):
                    yield b"%d" % number
            finally:
                closed.append(1)

        self.results["/"] = lambda _: Response(200, body())
        connection, wire = self.connect()
        connection.pauseProducing()
        connection.dataReceived(GET)
        self.assertTrue(wire.taken().endswith(b"1\r\n0\r\n"))
        connection.resumeProducing()
        self.assertTrue(wire.taken().endswith(b"1\r\n3\r\n0\r\n\r\n"))
        self.assertEqual(closed, [1])

    def test_stream_is_closed_when_its_client_leaves(self) -> None:
        closed: list[int] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                yield b"b"
            finally:
                closed.append(1)

        self.results["/"] = lambda _: Response(200, body())
        connection, _ = self.connect()
        connection.pauseProducing()
        connection.dataReceived(GET)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(closed, [1])

    def test_long_body_goes_out_in_slices_as_the_peer_reads(self) -> None:
        self.results["/"] = Response(200, b"z" * (3 * SLICE_BYTES))
        connection, wire = self.connect()
        real = wire.write

        def write(data: bytes) -> None:
            real(data)
            connection.pauseProducing()

        wire.write = write  # type: ignore[method-assign]
        connection.dataReceived(GET + GET)
        total = wire.taken()
        self.assertEqual(len(total), SLICE_BYTES)
        for _ in range(3):
            connection.resumeProducing()
            total += wire.taken()
        self.assertEqual(total.count(b"z"), 3 * SLICE_BYTES)
        self.assertEqual(total.count(b"HTTP/1.1 200"), 1)
        connection.resumeProducing()
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200"))

    def test_no_request_is_taken_while_the_peer_does_not_read(self) -> None:
        connection, wire = self.connect()
        connection.pauseProducing()
        connection.dataReceived(GET * 2000)
        self.assertLess(len(self.requests), 1000)
        self.assertEqual(wire.producerState, "paused")
        connection.resumeProducing()
        self.assertEqual(wire.producerState, "producing")


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"<" + data + b">")


class UpgradeTests(HTTPCase):
    head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    def test_protocol_gets_transport_head_and_what_followed(self) -> None:
        echo = Echo()
        self.results["/ws"] = lambda _: Upgrade(echo)
        connection, wire = self.connect()
        connection.dataReceived(self.head + b"more")
        self.assertEqual(wire.taken(), b"<" + self.head + b"more>")
        self.assertIs(wire.protocol, echo)
        self.assertIs(echo.transport, wire)
        self.assertIsNone(wire.producer)
        self.assertEqual(self.factory.connections, set())
        self.clock.advance(1000)
        self.assertFalse(wire.ended)

    def test_upgrade_may_be_decided_later(self) -> None:
        waiting: Deferred[Upgrade] = Deferred()
        self.results["/ws"] = waiting
        connection, wire = self.connect()
        connection.dataReceived(GET + self.head + b"mo")
        connection.dataReceived(b"re")
        wire.taken()
        waiting.callback(Upgrade(Echo()))
        self.assertEqual(wire.taken(), b"<" + self.head + b"more>")

    def test_ignored_upgrade_is_an_ordinary_request(self) -> None:
        answer, wire = self.exchange(self.head + GET)
        self.assertEqual(answer.count(b"HTTP/1.1 200"), 2)
        self.assertFalse(wire.ended)


class DeadlineTests(HTTPCase):
    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    def test_silent_connection_is_closed_without_an_answer(self) -> None:
        _, wire = self.connect()
        self.advance(10.5)
        self.assertEqual(wire.taken(), b"")
        self.assertTrue(wire.ended)

    def test_trickling_head_gets_408_at_an_absolute_time(self) -> None:
        connection, wire = self.connect()
        for byte in b"GET / HTTP/1.1\r\nX: ":
            connection.dataReceived(bytes([byte]))
            self.advance(0.5)
        self.assertFalse(wire.ended)
        self.advance(1.5)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))
        self.assertTrue(wire.half_closed)
        self.advance(3)
        self.assertTrue(wire.aborted)

    def test_second_head_has_its_own_time(self) -> None:
        connection, wire = self.connect()
        self.advance(9)
        connection.dataReceived(GET)
        self.advance(9)
        connection.dataReceived(b"GET / HT")
        self.advance(9)
        self.assertFalse(wire.ended)
        self.advance(1.5)
        self.assertTrue(wire.ended)

    def test_each_of_the_heads_that_follow_each_other_has_its_own_time(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(GET[:10])
        for _ in range(10):
            self.advance(4)
            connection.dataReceived(GET[10:] + GET[:10])
        self.assertEqual(wire.taken().count(b"HTTP/1.1 200 "), 10)
        self.advance(9)
        self.assertFalse(wire.ended)
        self.advance(1.5)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_idle_connection_is_closed(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(GET)
        self.advance(14)
        self.assertFalse(wire.ended)
        self.advance(1.5)
        self.assertTrue(wire.ended)

    def test_body_that_stands_still_gets_408(self) -> None:
        connection, wire = self.connect()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n"
        connection.dataReceived(head + b"x" * 800_000)
        self.advance(29)
        self.assertFalse(wire.ended)
        self.advance(1.5)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_body_that_trickles_gets_408_after_a_grace(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n")
        for _ in range(9):
            self.advance(1)
            connection.dataReceived(b"x" * 100)
        self.assertFalse(wire.ended)
        self.advance(1.5)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_slow_but_steady_body_is_accepted(self) -> None:
        connection, wire = self.connect()
        connection.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n")
        for _ in range(60):
            connection.dataReceived(b"x" * 1500)
            self.advance(1)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200 "))

    def test_no_rate_lets_a_body_trickle(self) -> None:
        self.factory.limits = HTTPLimits(body_rate_bytes_s=0)
        connection, wire = self.connect()
        connection.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")
        for _ in range(98):
            connection.dataReceived(b"x")
            self.advance(1)
        self.assertFalse(wire.ended)
        self.advance(30)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_handler_may_take_its_time(self) -> None:
        self.results["/"] = Deferred()
        _, wire = self.exchange(GET)
        self.advance(300)
        self.assertFalse(wire.ended)

    def test_lost_connection_leaves_nothing_behind(self) -> None:
        connection, _ = self.connect()
        connection.dataReceived(GET)
        connection.connectionLost(Failure(ConnectionDone()))
        self.advance(60)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DrainTests(HTTPCase):
    def test_idle_connections_close_and_busy_ones_answer(self) -> None:
        waiting: Deferred[Response] = Deferred()
        self.results["/slow"] = waiting
        idle, idle_wire = self.connect()
        idle.dataReceived(GET)
        busy, busy_wire = self.connect()
        busy.dataReceived(GET.replace(b"/ ", b"/slow "))
        drained = self.factory.drain(5)
        self.assertTrue(idle_wire.ended)
        self.assertFalse(busy_wire.ended)
        idle.connectionLost(Failure(ConnectionDone()))
        waiting.callback(Response(200, b"x"))
        self.assertIn(b"Connection: close", busy_wire.taken())
        self.assertTrue(busy_wire.ended)
        self.assertNoResult(drained)
        busy.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(drained)
        self.wheel.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_left_is_aborted(self) -> None:
        self.results["/"] = Deferred()
        _, wire = self.exchange(GET)
        drained = self.factory.drain(5)
        self.clock.advance(5)
        self.assertTrue(wire.aborted)
        self.successResultOf(drained)

    def test_who_has_only_just_come_is_answered(self) -> None:
        connection, wire = self.connect()
        self.factory.drain(5)
        self.clock.advance(0.9)
        self.assertFalse(wire.ended)
        connection.dataReceived(GET)
        self.assertIn(b"Connection: close", wire.taken())
        self.assertTrue(wire.ended)

    def test_who_has_come_and_says_nothing_is_let_go(self) -> None:
        _, wire = self.connect()
        self.factory.drain(5)
        self.clock.advance(1.2)
        self.assertTrue(wire.ended)
        self.assertFalse(wire.aborted)

    def test_nothing_to_drain_fires_at_once(self) -> None:
        self.successResultOf(self.factory.drain(5))


class DrainSocketTests(SocketCase):
    def test_a_request_that_lies_unread_is_answered(self) -> None:
        connection, peer = self.open()
        peer.send(GET)
        self.assertIn(b"200 OK", self.read(peer))
        peer.send(GET)
        self.factory.drain(5)
        self.assertIn(b"Connection: close", self.read(peer))
        connection.abort()
