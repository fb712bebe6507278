"""Answers that are made while they are sent: writers, their end, trailers; and who is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import SLICE_BYTES, BodyWriter, HTTPFactory, Request, Response, Upgrade
from pelotontx.net.tcp import UNIXServer
from pelotontx.wire.http import RefusedRequest
from tests.support.http_case import GET, HTTPCase, SocketCase

NEXT = GET.replace(b"/ ", b"/next ")
TAKES_TRAILERS = GET.replace(b"Host: a\r\n", b"Host: a\r\nTE: gzip;q=0.5, Trailers\r\n")


class WriterTests(HTTPCase):
    def setUp(self) -> None:
        super().setUp()
        self.writers: list[BodyWriter] = []
        self.hold: Deferred[None] = Deferred()

    def streaming(self, *pieces: bytes, **options: Any) -> None:
        """Answers with these pieces, and waits for `hold` after them."""

        async def body(writer: BodyWriter) -> None:
            self.writers.append(writer)
            for piece in pieces:
                await writer.write(piece)
            await self.hold

        self.results["/"] = lambda _: Response(200, body, **options)

    def test_write_waits_for_room(self) -> None:
        self.streaming(b"abc", b"def")
        connection, wire = self.connect()
        connection.pauseProducing()
        connection.dataReceived(GET)
        self.assertTrue(wire.taken().endswith(b"\r\n\r\n3\r\nabc\r\n"))
        connection.resumeProducing()
        self.assertEqual(wire.taken(), b"3\r\ndef\r\n")
        self.assertEqual(self.writers[0].written, 6)

    def test_waiting_for_room_may_be_cancelled_and_taken_up_again(self) -> None:
        self.streaming(b"abc")
        connection, _ = self.connect()
        connection.pauseProducing()
        connection.dataReceived(GET)
        first, second = self.writers[0].drain(), self.writers[0].drain()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertNoResult(second)
        connection.resumeProducing()
        self.successResultOf(second)

    def test_head_leaves_with_the_first_piece(self) -> None:
        self.streaming(b"abc")
        connection, wire = self.connect()
        writes: list[bytes] = []
        wire.write = writes.append  # type: ignore[method-assign]
        connection.dataReceived(GET)
        (write,) = writes
        self.assertTrue(write.endswith(b"\r\n\r\n3\r\nabc\r\n"))

    def test_head_leaves_when_there_is_something_to_wait_for(self) -> None:
        self.streaming()
        answer, _ = self.exchange(GET)
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_nothing_is_lost_of_an_empty_stream(self) -> None:
        self.hold.callback(None)
        for options, end in (({}, b"\r\n\r\n0\r\n\r\n"), ({"length": 0}, b"th: 0\r\n\r\n")):
            self.streaming(**options)
            answer, wire = self.exchange(GET)
            self.assertTrue(answer.endswith(end))
            self.assertFalse(wire.ended)

    def test_what_is_written_after_the_end_is_dropped(self) -> None:
        self.streaming(b"abc")
        connection, wire = self.connect()
        connection.dataReceived(GET)
        self.hold.callback(None)
        wire.taken()
        self.assertTrue(self.writers[0].is_finished)
        self.writers[0].write(b"HTTP/1.1 200 OK\r\n")
        self.writers[0].flush()
        self.assertEqual(wire.taken(), b"")
        connection.dataReceived(NEXT)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200 "))

    def test_finished_fires_when_the_peer_goes_away(self) -> None:
        self.streaming(b"abc")
        connection, _ = self.connect()
        connection.dataReceived(GET)
        writer = self.writers[0]
        first, second = writer.finished, writer.finished
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertNoResult(first)
        self.assertFalse(writer.is_finished)
        self.hold.addErrback(lambda failure: failure.trap(CancelledError) and None)
        connection.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(first)
        self.assertTrue(writer.is_finished)
        self.successResultOf(writer.finished)

    def test_finished_fires_when_the_body_is_over(self) -> None:
        self.streaming(b"abc")
        self.exchange(GET)
        finished = self.writers[0].finished
        self.assertNoResult(finished)
        self.hold.callback(None)
        self.successResultOf(finished)

    def test_handler_may_wait_for_the_peer_to_go(self) -> None:
        seen: list[str] = []

        async def body(writer: BodyWriter) -> None:
            writer.write(b"abc")
            await writer.finished
            seen.append("gone")

        self.results["/"] = lambda _: Response(200, body)
        connection, _ = self.connect()
        connection.dataReceived(GET)
        self.assertEqual(seen, [])
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(seen, ["gone"])

    def test_generator_that_waits_for_something_else_is_closed_when_the_peer_goes(self) -> None:
        ended: list[str] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"one"
                await Deferred()
            except CancelledError:
                ended.append("cancelled")
                raise
            finally:
                ended.append("closed")

        self.results["/"] = lambda _: Response(200, body())
        connection, _ = self.connect()
        connection.dataReceived(GET)
        self.assertEqual(ended, [])
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(ended, ["cancelled", "closed"])

    def test_http_1_0_gets_identity_and_the_end(self) -> None:
        self.hold.callback(None)
        self.streaming(b"abc", b"def", trailers=["X-Sum"])
        answer, wire = self.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        self.assertTrue(answer.endswith(b"\r\n\r\nabcdef"))
        self.assertNotIn(b"Transfer-Encoding", answer)
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(wire.disconnecting)

    def test_stream_is_refused_until_bytes_have_left(self) -> None:
        async def early(_: BodyWriter) -> None:
            raise RefusedRequest(409, "not now")

        async def late(writer: BodyWriter) -> None:
            writer.write(b"abc")
            raise RefusedRequest(409, "not now")

        self.results["/"] = lambda _: Response(200, early)
        answer, wire = self.exchange(GET)
        self.assertTrue(answer.startswith(b"HTTP/1.1 409 "))
        self.assertTrue(answer.endswith(b"409 not now\n"))
        self.assertTrue(wire.disconnecting)
        self.results["/"] = lambda _: Response(200, late)
        answer, wire = self.exchange(GET)
        self.assertEqual(answer.count(b"HTTP/1.1"), 1)
        self.assertTrue(wire.aborted)


class FlushTests(SocketCase):
    def test_what_was_written_is_sent_at_once(self) -> None:
        received: list[bytes] = []

        async def body(writer: BodyWriter) -> None:
            writer.flush()
            received.append(peer.recv(1 << 20))
            writer.write(b"abc")
            writer.flush()
            received.append(peer.recv(1 << 20))

        self.results["/"] = lambda _: Response(200, body)
        connection, peer = self.open()
        assert isinstance(connection.transport, UNIXServer)
        peer.send(GET)
        self.turn()
        head, piece = received
        self.assertTrue(head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n"))
        self.assertEqual(piece, b"3\r\nabc\r\n")
        self.assertEqual(self.read(peer), b"0\r\n\r\n")

    def test_flush_of_a_backlog_goes_on_with_the_stream(self) -> None:
        async def body(writer: BodyWriter) -> None:
            for _ in range(40):
                writer.write(b"z" * 10_000)
                writer.flush()
                await writer.drain()

        waiting: Deferred[Response] = Deferred()
        self.results["/"] = waiting
        _, peer = self.open(send_buffer_bytes=4096)
        peer.send(GET + NEXT)
        self.turn()
        waiting.callback(Response(200, body))
        answer = self.read(peer)
        self.assertEqual(answer.count(b"z"), 400_000)
        self.assertEqual(answer.count(b"HTTP/1.1 200"), 2)
        self.assertTrue(answer.endswith(b"GET /next"))


class TrailerTests(HTTPCase):
    def setUp(self) -> None:
        super().setUp()
        self.set: dict[str, str] = {"X-Sum": "42"}

        async def body(writer: BodyWriter) -> None:
            writer.write(b"abc")
            writer.trailers.update(self.set)

        self.results["/"] = lambda _: Response(200, body, trailers=["X-Sum", "X-Time"])

    def test_they_follow_the_body_of_who_asked(self) -> None:
        answer, wire = self.exchange(TAKES_TRAILERS + NEXT)
        self.assertIn(b"\r\nTrailer: X-Sum, X-Time\r\n", answer)
        self.assertIn(b"3\r\nabc\r\n0\r\nX-Sum: 42\r\n\r\nHTTP/1.1 200 ", answer)
        self.assertFalse(wire.ended)

    def test_they_are_dropped_for_others(self) -> None:
        for request in (GET, GET.replace(b"Host: a\r\n", b"Host: a\r\nTE: gzip\r\n")):
            answer, _ = self.exchange(request)
            self.assertNotIn(b"Trailer", answer)
            self.assertTrue(answer.endswith(b"3\r\nabc\r\n0\r\n\r\n"))

    def test_iterators_set_them_in_the_response(self) -> None:
        response = Response(200, trailers=["X-Sum"])

        async def body() -> AsyncIterator[bytes]:
            yield b"abc"
            assert response.trailers is not None
            response.trailers["X-Sum"] = "7"

        response.body = body()
        self.results["/"] = response
        answer, _ = self.exchange(TAKES_TRAILERS)
        self.assertTrue(answer.endswith(b"0\r\nX-Sum: 7\r\n\r\n"))

    def test_those_that_may_not_be_sent_abort(self) -> None:
        for wrong in ({"X-Other": "1"}, {"X-Sum": "a\r\nb: c"}):
            self.set = wrong
            answer, wire = self.exchange(TAKES_TRAILERS)
            self.assertTrue(wire.aborted, wrong)
            self.assertNotIn(b"0\r\n", answer[-8:])
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 2)

    def test_names_of_what_must_come_first_are_refused(self) -> None:
        for name in ("Content-Length", "transfer-encoding", "Host", "Set-Cookie", "Trailer", "a b"):
            self.assertRaises(LocalProtocolError, Response, 200, trailers=[name])

    def test_body_of_announced_length_has_none(self) -> None:
        async def body(writer: BodyWriter) -> None:
            writer.write(b"abc")
            writer.trailers["X-Sum"] = "1"

        self.results["/"] = lambda _: Response(200, body, trailers=["X-Sum"], length=3)
        answer, _ = self.exchange(TAKES_TRAILERS)
        self.assertNotIn(b"Trailer", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\nabc"))


class AnsweredTests(HTTPCase):
    """What `on_answered` is told."""

    def setUp(self) -> None:
        super().setUp()
        self.told: list[tuple[str, str, int, int, float]] = []
        self.factory = self.telling(self.tell)

    def telling(self, on_answered: Callable[..., object]) -> HTTPFactory:
        return HTTPFactory(
            self.handle,
            wheel=self.wheel,
            clock=self.clock,
            wall_clock=self.clock.seconds,
            on_answered=on_answered,
        )

    def tell(self, request: Request, status: int, size: int, began_s: float) -> None:
        since_s = round(self.clock.seconds() - began_s, 1)
        self.told.append((request.method, request.path, status, size, since_s))

    def test_each_of_several_answers_is_told(self) -> None:
        self.results["/no"] = Response(404, b"nothing")
        head = NEXT.replace(b"GET", b"HEAD")
        self.exchange(GET + GET.replace(b"/ ", b"/no ") + head)
        self.assertEqual(
            self.told,
            [("GET", "/", 200, 5, 0), ("GET", "/no", 404, 7, 0), ("HEAD", "/next", 200, 0, 0)],
        )

    def test_time_counts_from_the_head(self) -> None:
        waiting: Deferred[Response] = Deferred()
        self.results["/"] = waiting
        self.exchange(GET)
        self.clock.advance(2.5)
        self.assertEqual(self.told, [])
        waiting.callback(Response(200, b"abc"))
        self.assertEqual(self.told, [("GET", "/", 200, 3, 2.5)])

    def test_upload_is_told_once(self) -> None:
        connection, _ = self.connect()
        connection.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab")
        self.clock.advance(1)
        connection.dataReceived(b"c" + NEXT)
        self.assertEqual(self.told, [("POST", "/", 200, 9, 1), ("GET", "/next", 200, 9, 0)])

    def test_stream_counts_what_was_written_without_framing(self) -> None:
        go_on: Deferred[None] = Deferred()

        async def body(writer: BodyWriter) -> None:
            writer.write(b"abc")
            await go_on
            writer.write(b"defg")

        self.results["/"] = lambda _: Response(206, body)
        self.exchange(GET)
        self.assertEqual(self.told, [])
        go_on.callback(None)
        self.assertEqual(self.told, [("GET", "/", 206, 7, 0)])

    def test_long_body_is_told_when_it_was_written(self) -> None:
        self.results["/"] = Response(200, b"z" * (2 * SLICE_BYTES))
        for leaves in (False, True):
            connection, _ = self.connect()
            connection.pauseProducing()
            connection.dataReceived(GET)
            self.assertEqual(self.told, [])
            if leaves:
                connection.connectionLost(Failure(ConnectionDone()))
            else:
                connection.resumeProducing()
            ((_, _, status, size, _),) = self.told
            self.assertEqual((status, size), (200, 0 if leaves else 2 * SLICE_BYTES))
            self.told.clear()

    def test_cut_stream_counts_what_had_left(self) -> None:
        async def body(writer: BodyWriter) -> None:
            writer.write(b"abc")
            await Deferred()

        self.results["/"] = lambda _: Response(200, body)
        connection, _ = self.connect()
        connection.dataReceived(GET)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.told, [("GET", "/", 200, 3, 0)])

    def test_peer_that_left_before_its_answer_is_told_as_499(self) -> None:
        self.results["/"] = lambda _: Deferred()
        connection, _ = self.connect()
        connection.dataReceived(GET)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.told, [("GET", "/", 499, 0, 0)])

    def test_idle_connection_that_ends_is_not_told(self) -> None:
        connection, _ = self.connect()
        connection.dataReceived(GET)
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(len(self.told), 1)

    def test_refused_requests_are_told(self) -> None:
        answer, _ = self.exchange(b"nonsense\r\n\r\n")
        self.exchange(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
        size = len(answer.partition(b"\r\n\r\n")[2])
        self.assertEqual(self.told[0], ("", "", 400, size, 0))
        self.assertEqual(self.told[1][:3], ("POST", "/x", 400))
        self.told.clear()
        connection, _ = self.connect()
        connection.dataReceived(b"GET / HT")
        for _ in range(110):
            self.clock.advance(0.1)
        self.assertEqual([told[2] for told in self.told], [408])

    def test_upgrade_is_told_as_101(self) -> None:
        self.results["/"] = lambda _: Upgrade(Protocol())
        self.exchange(GET)
        self.assertEqual(self.told, [("GET", "/", 101, 0, 0)])

    def test_failing_listener_harms_no_answer(self) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("disk full")

        async def answer(_: Request) -> Response:
            return Response(200, b"later")

        self.factory = self.telling(fail)
        self.results["/"] = answer
        data, wire = self.exchange(GET + NEXT)
        self.assertEqual(data.count(b"HTTP/1.1 200"), 2)
        self.assertFalse(wire.ended)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)


class CookieTests(HTTPCase):
    def test_each_cookie_has_its_field(self) -> None:
        response = Response(200, b"x")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2", max_age_s=60, http_only=False, same_site="Strict")
        response.delete_cookie("c")
        self.assertEqual(
            response.headers.get_all("set-cookie"),
            [
                "a=1; Path=/; Secure; HttpOnly; SameSite=Lax",
                "b=2; Max-Age=60; Path=/; Secure; SameSite=Strict",
                "c=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax",
            ],
        )

    def test_cookie_that_could_end_its_field_is_refused(self) -> None:
        response = Response()
        self.assertRaises(LocalProtocolError, response.set_cookie, "a", "1\r\nX: y")
        self.assertEqual(len(response.headers), 0)
