"""Requests whose bodies are read while they arrive, are not read at all, or never come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import HTTPConnection, HTTPLimits, Request, Response, Upgrade
from pelotontx.net.http.body import HIGH_BYTES
from pelotontx.wire.http import RefusedRequest
from tests.support.http_case import GET, HTTPCase, Wire

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def post(length: int, extra: bytes = b"", path: bytes = b"/") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path, length, extra)


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECTING = b"Expect: 100-continue\r\n"


class UploadCase(HTTPCase):
    def setUp(self) -> None:
        super().setUp()
        self.streamed.add("/")
        self.pieces: list[bytes] = []
        self.errors: list[BaseException] = []

    async def read(self, request: Request) -> Response:
        """A handler that notes pieces as they come."""
        try:
            async for piece in request.stream:
                self.pieces.append(piece)
        except BaseException as error:
            self.errors.append(error)
            raise
        return Response(200, b"read %d" % sum(map(len, self.pieces)))

    def post(self, data: bytes) -> tuple[HTTPConnection, Wire]:
        connection, wire = self.connect()
        connection.dataReceived(data)
        return connection, wire

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)


class ReadingTests(UploadCase):
    def setUp(self) -> None:
        super().setUp()
        self.results["/"] = self.read

    def test_body_that_came_with_its_head_is_there(self) -> None:
        self.results["/"] = None
        chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        for data in (post(5) + b"abcde", CHUNKED + chunks):
            answer, _ = self.exchange(data)
            self.assertTrue(answer.endswith(b"POST /abcde"))
            self.assertTrue(self.requests[-1].is_complete)

    def test_stream_of_a_body_that_is_there_gives_it(self) -> None:
        answer, _ = self.exchange(post(5) + b"abcde")
        self.assertTrue(answer.endswith(b"read 5"))
        self.assertEqual(self.pieces, [b"abcde"])

    def test_stream_without_a_body_is_over(self) -> None:
        answer, _ = self.exchange(GET)
        self.assertTrue(answer.endswith(b"read 0"))

    def test_handler_is_called_when_the_head_is_complete(self) -> None:
        connection, wire = self.post(post(6))
        self.assertEqual(len(self.requests), 1)
        self.assertFalse(self.requests[0].is_complete)
        connection.dataReceived(b"abc")
        self.assertEqual(self.pieces, [b"abc"])
        self.assertEqual(wire.taken(), b"")
        connection.dataReceived(b"def" + GET.replace(b"/ ", b"/next "))
        answer = wire.taken()
        self.assertLess(answer.index(b"read 6"), answer.index(b"GET /next"))
        self.assertFalse(wire.ended)

    def test_chunks_are_read_as_they_come(self) -> None:
        connection, wire = self.post(CHUNKED + b"3\r\nab")
        for byte in b"c\r\n4;x=y\r\ndefg\r\n0\r\nA: b\r\n\r\n":
            connection.dataReceived(bytes([byte]))
        self.assertEqual(b"".join(self.pieces), b"abcdefg")
        self.assertTrue(wire.taken().endswith(b"read 7"))

    def test_bodies_follow_one_another_on_a_connection(self) -> None:
        connection, wire = self.post(post(3) + b"a")
        connection.dataReceived(b"bc" + CHUNKED + b"2\r\nde")
        connection.dataReceived(b"\r\n0\r\n\r\n" + post(1) + b"f" + GET)
        self.assertEqual(wire.taken().count(b"HTTP/1.1 200"), 4)
        self.assertEqual(b"".join(self.pieces), b"abcdef")

    def test_malformed_chunk_is_told_to_the_reader_and_then_to_the_peer(self) -> None:
        connection, wire = self.post(CHUNKED + b"3\r\nabc\r\n")
        connection.dataReceived(b"x\r\n")
        self.assertEqual(self.pieces, [b"abc"])
        answer = wire.taken()
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 "))
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(wire.half_closed)
        connection.dataReceived(GET)
        self.assertEqual((wire.taken(), len(self.requests)), (b"", 1))

    def test_malformed_chunk_that_came_with_the_head_calls_nobody(self) -> None:
        answer, wire = self.exchange(CHUNKED + b"x\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 "))
        self.assertTrue(wire.half_closed)
        self.assertEqual(self.requests, [])

    def test_handler_may_answer_a_malformed_body_itself(self) -> None:
        async def forgive(request: Request) -> Response:
            try:
                await request.stream.read()
            except RefusedRequest as error:
                return Response(422, error.reason.encode())
            raise AssertionError("unreachable")

        self.results["/"] = forgive
        connection, wire = self.post(CHUNKED)
        connection.dataReceived(b"x\r\n")
        answer = wire.taken()
        self.assertTrue(answer.startswith(b"HTTP/1.1 422 "))
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(wire.half_closed)

    def test_body_past_the_limit_is_refused_unless_the_handler_allows_more(self) -> None:
        self.factory.limits = HTTPLimits(body_limit_bytes=10)
        for data in (post(11), post(11) + b"x" * 11, CHUNKED + b"b\r\n01234567890\r\n0\r\n\r\n"):
            answer, wire = self.exchange(data)
            self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), data)
            self.assertIn(b"Connection: close\r\n", answer)
            self.assertTrue(wire.ended)

        async def allow(request: Request) -> Response:
            request.stream.limit_bytes = 11
            return await self.read(request)

        self.results["/"] = allow
        for data in (post(11) + b"x" * 11, CHUNKED + b"b\r\n01234567890\r\n0\r\n\r\n"):
            answer, wire = self.exchange(data + GET)
            self.assertEqual(answer.count(b"HTTP/1.1 200 "), 2, data)
            self.assertFalse(wire.ended)

    def test_peer_is_held_back_while_nobody_reads(self) -> None:
        go_on: Deferred[None] = Deferred()

        async def wait(request: Request) -> Response:
            await go_on
            return await self.read(request)

        self.results["/"] = wait
        connection, wire = self.post(post(900_000) + b"x" * HIGH_BYTES)
        self.assertEqual(wire.producerState, "producing")
        connection.dataReceived(b"x")
        self.assertEqual(wire.producerState, "paused")
        self.advance(300)
        self.assertFalse(wire.ended)
        go_on.callback(None)
        self.assertEqual(wire.producerState, "producing")
        connection.dataReceived(b"x" * (900_000 - HIGH_BYTES - 1))
        self.assertTrue(wire.taken().endswith(b"read 900000"))

    def test_peer_that_leaves_in_mid_body_cancels_the_handler(self) -> None:
        connection, _ = self.post(post(6) + b"abc")
        connection.connectionLost(Failure(ConnectionDone()))
        (error,) = self.errors
        self.assertIsInstance(error, CancelledError)
        self.assertEqual(self.factory.connections, set())

    def test_peer_that_ends_in_mid_body_is_gone(self) -> None:
        for begun in (post(6) + b"abc", CHUNKED + b"3\r\nabc\r\n"):
            connection, wire = self.post(begun)
            connection.readConnectionLost()
            self.assertTrue(wire.aborted)
            self.assertIsInstance(self.errors.pop(), CancelledError)

    def test_peer_may_end_after_its_body(self) -> None:
        connection, wire = self.post(post(6) + b"abc")
        connection.dataReceived(b"def")
        connection.readConnectionLost()
        self.assertTrue(wire.taken().endswith(b"read 6"))
        self.assertTrue(wire.disconnecting)

    def test_upgrade_with_a_body_is_refused(self) -> None:
        self.results["/"] = lambda _: Upgrade(Protocol())
        extra = b"Connection: upgrade\r\nUpgrade: echo\r\n"
        for data in (post(3, extra) + b"abc", post(3, extra) + b"a", post(3, extra)):
            answer, wire = self.exchange(data)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), data)
            self.assertIn(b"Connection: close\r\n", answer)
            self.assertTrue(wire.half_closed)

    def test_refusal_of_a_handler_is_a_complete_answer(self) -> None:
        async def refuse_later(_: Request) -> Response:
            raise RefusedRequest(415, "only text is taken")

        def refuse(_: Request) -> Response:
            raise RefusedRequest(415, "only text is taken")

        for handler in (refuse, refuse_later):
            self.results["/"] = handler
            for data in (GET, post(100_000), post(100_000) + b"x"):
                answer, wire = self.exchange(data)
                self.assertTrue(answer.startswith(b"HTTP/1.1 415 "))
                self.assertTrue(answer.endswith(b"415 only text is taken\n"))
                self.assertIn(b"Connection: close\r\n", answer)
                self.assertTrue(wire.ended)


class ContinueTests(UploadCase):
    def test_it_is_sent_when_the_body_is_first_waited_for(self) -> None:
        go_on: Deferred[None] = Deferred()

        async def wait(request: Request) -> Response:
            await go_on
            return await self.read(request)

        self.results["/"] = wait
        connection, wire = self.post(post(4, EXPECTING))
        self.assertEqual(wire.taken(), b"")
        go_on.callback(None)
        self.assertEqual(wire.taken(), CONTINUE)
        connection.dataReceived(b"ab")
        connection.dataReceived(b"cd")
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200"))

    def test_it_follows_answers_to_earlier_requests(self) -> None:
        self.results["/"] = self.read
        answer, _ = self.exchange(GET.replace(b"/ ", b"/first ") + post(4, EXPECTING))
        self.assertTrue(answer.endswith(b"GET /first" + CONTINUE))

    def test_it_is_not_sent_once_the_body_comes(self) -> None:
        self.results["/"] = self.read
        _, wire = self.post(post(4, EXPECTING) + b"a")
        self.assertEqual(wire.taken(), b"")

    def test_it_is_not_sent_before_a_refusal(self) -> None:
        self.results["/"] = self.read
        answer, wire = self.exchange(post(2_000_000, EXPECTING))
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "))
        self.assertTrue(wire.ended)

    def test_answer_without_it_ends_the_connection(self) -> None:
        self.results["/"] = Response(401, b"who are you")
        answer, wire = self.exchange(post(4, EXPECTING))
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 "))
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(wire.half_closed)

    def test_it_is_not_sent_after_an_answer_has_begun(self) -> None:
        begun: Deferred[None] = Deferred()

        async def body(request: Request) -> AsyncIterator[bytes]:
            yield b"begun"
            await begun
            async for piece in request.stream:
                yield piece

        self.results["/"] = lambda request: Response(200, body(request))
        connection, wire = self.post(post(4, EXPECTING))
        begun.callback(None)
        connection.dataReceived(b"abcd")
        answer = wire.taken()
        self.assertNotIn(CONTINUE, answer)
        self.assertTrue(answer.endswith(b"4\r\nabcd\r\n0\r\n\r\n"))


class UnreadTests(UploadCase):
    """Answers that do not wait for the body."""

    def test_short_rest_is_dropped_and_the_connection_kept(self) -> None:
        self.results["/"] = Response(200, b"early")
        next_one = GET.replace(b"/ ", b"/next ")
        for begun in (b"", b"x" * 30_000):
            connection, wire = self.post(post(60_000) + begun)
            self.assertTrue(wire.taken().endswith(b"early"))
            rest = b"GET / HTTP/1.1\r\n" * 4000
            connection.dataReceived(rest[: 59_999 - len(begun)])
            self.assertEqual(wire.taken(), b"")
            connection.dataReceived(b"x" + next_one)
            self.assertTrue(wire.taken().endswith(b"GET /next"))
            self.assertFalse(wire.ended)

    def test_short_rest_is_dropped_when_the_peer_reads_its_answer_late(self) -> None:
        self.results["/"] = Response(200, b"early")
        connection, wire = self.connect()
        connection.pauseProducing()
        connection.dataReceived(post(4) + b"ab")
        connection.dataReceived(b"cd" + GET.replace(b"/ ", b"/next "))
        self.assertTrue(wire.taken().endswith(b"early"))
        connection.resumeProducing()
        self.assertTrue(wire.taken().endswith(b"GET /next"))

    def test_short_rest_must_come_in_time(self) -> None:
        self.results["/"] = Response(200, b"early")
        connection, wire = self.post(post(60_000))
        self.assertFalse(wire.ended)
        wire.taken()
        for _ in range(9):
            connection.dataReceived(b"x" * 100)
            self.advance(1)
        self.assertFalse(wire.ended)
        self.advance(1.2)
        self.assertTrue(wire.half_closed)
        self.assertEqual(wire.taken(), b"")
        self.advance(3)
        self.assertTrue(wire.aborted)

    def test_long_rest_ends_the_connection_gently(self) -> None:
        self.results["/"] = Response(200, b"early")
        for begun in (post(100_000) + b"x", CHUNKED, CHUNKED + b"3\r\nabc\r\n"):
            connection, wire = self.post(begun)
            answer = wire.taken()
            self.assertIn(b"Connection: close\r\n", answer)
            self.assertTrue(wire.half_closed)
            connection.dataReceived(b"x" * 50_000 + GET)
            self.assertEqual(wire.taken(), b"")
            self.advance(2.5)
            self.assertTrue(wire.aborted)

    def test_peer_that_ends_instead_of_sending_the_rest_keeps_its_answer(self) -> None:
        self.results["/"] = Response(200, b"early")
        connection, wire = self.post(post(4))
        connection.readConnectionLost()
        self.assertTrue(wire.taken().endswith(b"early"))
        self.assertTrue(wire.disconnecting)
        self.assertFalse(wire.aborted)
        connection, wire = self.connect()
        connection.pauseProducing()
        connection.dataReceived(post(4))
        connection.readConnectionLost()
        self.assertFalse(wire.ended)
        connection.resumeProducing()
        self.assertTrue(wire.taken().endswith(b"early"))
        self.assertTrue(wire.disconnecting)

    def test_limit_of_what_is_dropped_is_configurable(self) -> None:
        self.factory.limits = HTTPLimits(unread_body_bytes=0)
        self.results["/"] = Response(200, b"early")
        answer, wire = self.exchange(post(1))
        self.assertIn(b"Connection: close\r\n", answer)
        self.assertTrue(wire.half_closed)

    def test_unread_body_that_is_all_there_harms_nobody(self) -> None:
        answered: Deferred[Response] = Deferred()
        self.results["/"] = answered
        connection, wire = self.post(post(900_000) + b"x" * 899_999)
        connection.dataReceived(b"x" + GET.replace(b"/ ", b"/next "))
        answered.callback(Response(200, b"late"))
        self.assertEqual(wire.producerState, "producing")
        answer = wire.taken()
        self.assertTrue(answer.endswith(b"GET /next"))
        self.assertNotIn(b"Connection: close", answer)

    def test_stream_that_does_not_read_the_body_ends_the_connection_after_it(self) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"abc"

        self.results["/"] = lambda _: Response(200, body())
        _, wire = self.post(post(100_000))
        self.assertTrue(wire.taken().endswith(b"0\r\n\r\n"))
        self.assertTrue(wire.half_closed)
        connection, wire = self.post(post(3))
        connection.dataReceived(b"abc" + GET.replace(b"/ ", b"/next "))
        self.assertTrue(wire.taken().endswith(b"GET /next"))

    def test_who_reads_after_the_answer_is_told(self) -> None:
        kept: list[Request] = []

        def answer(request: Request) -> Response:
            kept.append(request)
            return Response(200, b"early")

        self.results["/"] = answer
        self.post(post(10))
        reading = Deferred.fromCoroutine(kept[0].stream.read())
        self.failureResultOf(reading, LocalProtocolError)

    def test_drain_does_not_wait_for_a_rest_that_nobody_reads(self) -> None:
        self.results["/"] = Response(200, b"early")
        _, wire = self.post(post(10))
        self.factory.drain(5)
        self.assertTrue(wire.ended)


class DeadlineTests(UploadCase):
    def setUp(self) -> None:
        super().setUp()
        self.results["/"] = self.read

    def test_reader_of_a_body_that_stands_still_gets_408(self) -> None:
        self.factory.limits = HTTPLimits(body_rate_bytes_s=0)
        connection, wire = self.post(post(900_000) + b"x")
        self.advance(29)
        connection.dataReceived(b"x")
        self.advance(29)
        self.assertFalse(wire.ended)
        self.advance(1.2)
        (error,) = self.errors
        assert isinstance(error, RefusedRequest)
        self.assertEqual(error.status, 408)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))
        self.assertTrue(wire.half_closed)

    def test_empty_chunk_heads_are_no_progress(self) -> None:
        connection, wire = self.post(CHUNKED)
        for _ in range(9):
            connection.dataReceived(b"1\r\nx\r\n")
            self.advance(1)
        self.assertFalse(wire.ended)
        self.advance(1.2)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_time_in_which_nobody_waits_does_not_count(self) -> None:
        turns: list[Deferred[None]] = []

        async def now_and_then(request: Request) -> Response:
            async for piece in request.stream:
                self.pieces.append(piece)
                turns.append(Deferred())
                await turns[-1]
            return Response(200, b"done")

        self.results["/"] = now_and_then
        connection, wire = self.post(post(4))
        for _ in range(4):
            self.advance(2)
            connection.dataReceived(b"x")
            self.advance(100)
            self.assertFalse(wire.ended)
            turns[-1].callback(None)
        self.assertTrue(wire.taken().endswith(b"done"))

    def test_times_in_which_somebody_waits_add_up(self) -> None:
        connection, wire = self.post(post(900_000))
        for _ in range(60):
            connection.dataReceived(b"x" * 1500)
            self.advance(1)
        self.assertFalse(wire.ended)
        self.advance(26)
        self.assertFalse(wire.ended)
        connection.dataReceived(b"x")
        self.advance(2.5)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_waiting_again_and_again_gains_no_time(self) -> None:
        async def patient(request: Request) -> Response:
            while True:
                waiting = Deferred.fromCoroutine(anext(request.stream))  # type: ignore[arg-type]
                waiting.addTimeout(1, self.clock)
                try:
                    self.pieces.append(await waiting)
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    return Response(200, b"done")

        self.results["/"] = patient
        connection, wire = self.post(post(900_000))
        for _ in range(9):
            self.advance(1)
            connection.dataReceived(b"x")
        self.assertFalse(wire.ended)
        self.advance(2)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 408 "))

    def test_handler_that_went_on_after_408_is_cancelled_when_its_peer_leaves(self) -> None:
        cancelled: list[Any] = []

        async def stubborn(request: Request) -> Response:
            try:
                await request.stream.read()
            except RefusedRequest:
                await Deferred(cancelled.append)
            raise AssertionError("unreachable")

        self.results["/"] = stubborn
        connection, wire = self.post(post(10))
        self.advance(12)
        self.assertEqual(wire.taken(), b"")
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(len(cancelled), 1)
        self.advance(60)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class EchoTests(UploadCase):
    """The answer leaves while the request is coming."""

    def setUp(self) -> None:
        super().setUp()
        self.results["/"] = lambda request: Response(200, self.echo(request))

    async def echo(self, request: Request) -> AsyncIterator[bytes]:
        try:
            async for piece in request.stream:
                yield piece.upper()
        except BaseException as error:
            self.errors.append(error)
            raise

    def test_every_piece_is_answered_when_it_comes(self) -> None:
        connection, wire = self.post(CHUNKED)
        self.assertEqual(wire.taken(), b"")  # a 400 is still possible
        connection.dataReceived(b"3\r\nabc\r\n")
        answer = wire.taken()
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))
        self.assertTrue(answer.endswith(b"\r\n\r\n3\r\nABC\r\n"))
        connection.dataReceived(b"2\r\nde\r\n0\r\n\r\n" + GET.replace(b"/ ", b"/next "))
        answer = wire.taken()
        self.assertTrue(answer.startswith(b"2\r\nDE\r\n0\r\n\r\nHTTP/1.1 200 "))
        self.assertTrue(answer.endswith(b"GET /next"))

    def test_continue_comes_before_the_answer(self) -> None:
        connection, wire = self.post(post(3, EXPECTING))
        self.assertEqual(wire.taken(), CONTINUE)
        connection.dataReceived(b"abc")
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200 "))

    def test_bad_body_is_refused_before_anything_left_and_aborted_after(self) -> None:
        connection, wire = self.post(CHUNKED)
        connection.dataReceived(b"x\r\n")
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 400 "))
        self.assertFalse(wire.aborted)
        connection, wire = self.post(CHUNKED)
        connection.dataReceived(b"1\r\na\r\n")
        connection.dataReceived(b"x\r\n")
        self.assertEqual(wire.taken().count(b"HTTP/1.1"), 1)
        self.assertTrue(wire.aborted)

    def test_slow_body_is_aborted_when_bytes_have_left(self) -> None:
        connection, wire = self.post(post(10))
        connection.dataReceived(b"a")
        self.advance(12)
        self.assertTrue(wire.aborted)
        self.assertNotIn(b" 408 ", wire.taken())

    def test_peer_that_does_not_read_is_not_read_either(self) -> None:
        connection, wire = self.post(post(900_000))
        connection.pauseProducing()
        for _ in range(4):
            connection.dataReceived(b"x" * 60_000)
        self.assertEqual(wire.producerState, "paused")
        connection.resumeProducing()
        self.assertEqual(wire.producerState, "producing")
        connection.dataReceived(b"x" * 660_000)
        self.assertEqual(wire.taken().count(b"X"), 900_000)

    def test_head_leaves_when_the_body_is_over(self) -> None:
        more: Deferred[bytes] = Deferred()

        async def afterwards(request: Request) -> AsyncIterator[bytes]:
            await request.stream.read()
            yield await more

        self.results["/"] = lambda request: Response(200, afterwards(request))
        connection, wire = self.post(post(3))
        self.assertEqual(wire.taken(), b"")
        connection.dataReceived(b"abc")
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 200 "))
        more.callback(b"z")
        self.assertEqual(wire.taken(), b"1\r\nz\r\n0\r\n\r\n")

    def test_peer_that_leaves_cancels_the_stream(self) -> None:
        connection, _ = self.post(post(10) + b"abc")
        connection.connectionLost(Failure(ConnectionDone()))
        (error,) = self.errors
        self.assertIsInstance(error, CancelledError)
