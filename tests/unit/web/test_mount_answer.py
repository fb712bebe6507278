"""Answers that are pushed become whole ones or streams, and never more or less than announced."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.web.mount.answer import HIGH_BYTES, Answer, response_head
from tests.support.http_case import Wire
from tests.support.mount_case import MountCase, head_and_body


class Pushed:
    """What is mounted: keeps the answers that tests push."""

    def __init__(self, case: MountCase) -> None:
        self.case = case
        self.answers: list[Answer] = []
        self.written: list[int] = []
        self.gone = 0

    def handle(self, request: Any) -> Deferred[Any]:
        def gone() -> None:
            self.gone += 1

        answer = Answer(
            request,
            wheel=self.case.wheel,
            on_written=self.written.append,
            on_gone=gone,
            limit_bytes=2 * HIGH_BYTES,
        )
        self.answers.append(answer)
        return answer.response


class AnswerCase(MountCase):
    def setUp(self) -> None:
        super().setUp()
        self.pushed = Pushed(self)
        self.app.mount("/p", self.pushed)

    def begun(self, method: str = "GET", *fields: tuple[str, str], status: int = 200) -> Wire:
        """The wire of a request whose answer has a head."""
        _, wire = self.send(method, "/p")
        self.answer = self.pushed.answers[-1]
        self.answer.begin(response_head(status, fields))
        return wire


class HeadTests(AnswerCase):
    def test_fields_of_the_connection_are_left_out(self) -> None:
        head = response_head(
            200,
            [
                ("Content-Type", "a/b"),
                ("Date", "then"),
                ("Server", "other"),
                ("Transfer-Encoding", "chunked"),
                ("Upgrade", "h2c"),
                ("Connection", "Close"),
                ("Content-Length", "12"),
                ("X-Mine", "1"),
            ],
        )
        self.assertEqual(head.fields, b"Content-Type: a/b\r\nX-Mine: 1\r\n")
        self.assertEqual(head.length, 12)
        self.assertTrue(head.close)

    def test_what_may_not_be_sent_is_refused(self) -> None:
        for status, field in (
            (200, ("Content-Length", "-1")),
            (200, ("Content-Length", "1, 1")),
            (200, ("Content-Length", "²")),
            (200, ("X", "a\r\nSet-Cookie: b")),
            (200, ("X y", "a")),
            (101, ("X", "a")),
        ):
            with self.assertRaises(LocalProtocolError):
                response_head(status, [field])


class WholeTests(AnswerCase):
    def test_all_of_the_announced_length_leaves_as_a_whole_before_the_end(self) -> None:
        wire = self.begun("GET", ("Content-Length", "5"))
        self.answer.write(b"hello")
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nContent-Length: 5", head)
        self.assertEqual(body, b"hello")
        self.answer.write(b"too much")
        self.answer.finish()
        self.assertEqual(wire.taken(), b"")
        self.assertEqual(self.pushed.written, [5, 8])

    def test_pieces_of_an_announced_length_are_not_chunked(self) -> None:
        wire = self.begun("GET", ("Content-Length", "5"))
        self.answer.write(b"he")
        self.answer.write(b"llo")
        self.answer.finish()
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nContent-Length: 5", head)
        self.assertEqual(body, b"hello")

    def test_what_is_complete_when_it_is_released_has_a_length(self) -> None:
        _, wire = self.send("GET", "/p")
        answer = self.pushed.answers[-1]
        answer.is_held = True
        answer.begin(response_head(200, []))
        answer.write(b"a")
        answer.write(b"b")
        answer.finish()
        self.assertEqual(wire.taken(), b"")
        answer.release()
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nContent-Length: 2", head)
        self.assertEqual(body, b"ab")

    def test_less_than_the_announced_length_is_no_answer(self) -> None:
        wire = self.begun("GET", ("Content-Length", "5"))
        self.answer.finish()
        self.assertIn(b" 500 ", wire.taken())
        self.assertEqual(len(self.flushLoggedErrors(LocalProtocolError)), 1)

    def test_head_has_the_length_that_is_known_and_no_other(self) -> None:
        wire = self.begun("HEAD", ("Content-Length", "5"))
        self.assertIn(b"\r\nContent-Length: 5", wire.taken())
        wire = self.begun("HEAD")
        self.answer.write(b"dropped")
        self.answer.finish()
        answer = wire.taken()
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))
        self.assertNotIn(b"Content-Length", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"))

    def test_304_has_no_body(self) -> None:
        wire = self.begun("GET", status=304)
        self.answer.write(b"dropped")
        self.answer.finish()
        self.assertTrue(wire.taken().endswith(b"\r\n\r\n"))


class StreamTests(AnswerCase):
    def test_pieces_leave_as_they_come(self) -> None:
        wire = self.begun()
        self.answer.write(b"one")
        head, body = head_and_body(wire.taken())
        self.assertIn(b"\r\nTransfer-Encoding: chunked", head)
        self.assertEqual(body, b"3\r\none\r\n")
        self.answer.write(b"two")
        self.assertEqual(wire.taken(), b"3\r\ntwo\r\n")
        self.answer.finish()
        self.assertEqual(wire.taken(), b"0\r\n\r\n")
        self.assertEqual(self.pushed.gone, 0)

    def test_the_head_can_be_sent_before_the_body(self) -> None:
        wire = self.begun()
        self.assertEqual(wire.taken(), b"")
        self.answer.open()
        self.assertTrue(wire.taken().endswith(b"\r\n\r\n"))

    def test_what_the_peer_does_not_take_waits_and_is_passed_on_together(self) -> None:
        wire = self.begun()
        wire.producer.pauseProducing()
        for piece in (b"a", b"b", b"c"):
            self.answer.write(piece)
        # The first one is written when the stream begins; then there is no room.
        self.assertEqual(self.answer.unwritten, 3)
        self.assertEqual(self.pushed.written, [])
        wire.taken()
        wire.producer.resumeProducing()
        self.assertEqual(wire.taken(), b"2\r\nbc\r\n")
        self.assertEqual(self.pushed.written, [1, 2])

    def test_more_than_may_wait_cuts_the_connection(self) -> None:
        wire = self.begun()
        wire.producer.pauseProducing()
        for _ in range(4):
            self.answer.write(b"x" * HIGH_BYTES)
        self.assertEqual(self.pushed.gone, 0)  # the stream sees it when there is room
        wire.producer.resumeProducing()
        self.assertTrue(wire.aborted)
        self.assertEqual(self.pushed.gone, 1)
        self.assertTrue(self.answer.is_gone)

    def test_a_peer_that_leaves_is_told_once(self) -> None:
        connection, _ = self.send("GET", "/p")
        answer = self.pushed.answers[-1]
        connection.abort()
        self.assertEqual(self.pushed.gone, 1)
        answer.begin(response_head(200, []))
        answer.write(b"x")
        answer.finish()
        answer.fail(Failure(ValueError()))
        self.assertEqual(self.pushed.gone, 1)

    def test_a_peer_that_leaves_during_the_stream_is_told(self) -> None:
        wire = self.begun()
        self.answer.write(b"x")
        wire.abortConnection()
        self.assertEqual(self.pushed.gone, 1)

    def test_a_failure_before_the_head_is_an_error_page(self) -> None:
        wire = self.begun()
        self.answer.fail(Failure(ValueError("mine")))
        self.assertIn(b" 500 ", wire.taken())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_failure_in_the_middle_cuts_the_connection(self) -> None:
        wire = self.begun()
        self.answer.write(b"x")
        self.answer.fail(Failure(ValueError("mine")))
        self.assertTrue(wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_answer_that_is_never_sent_is_given_up(self) -> None:
        held: Deferred[Any] = Deferred()

        @self.app.after
        async def wait(request: Any, response: Any) -> None:
            await held

        wire = self.begun()
        self.answer.write(b"x")
        wire.abortConnection()  # while the hook waits: the answer has fired already
        for _ in range(61):
            self.clock.advance(1)
        self.assertEqual(self.pushed.gone, 1)
