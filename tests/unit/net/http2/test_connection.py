"""HTTP/2: requests and answers, as in HTTP/1.1."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

from hyperframe.frame import GoAwayFrame
from twisted.internet.defer import CancelledError, Deferred

from pelotontx.net.http import BodyWriter, Request, Response, Upgrade
from tests.support.http2_peer import HTTP2Case, request_pairs


class RequestTest(HTTP2Case):
    def test_get_is_answered(self) -> None:
        answer = self.peer().answer("/x?y=1")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.body, b"GET /x")
        self.assertEqual(answer.headers["content-length"], "6")
        self.assertEqual(answer.headers["server"], "pelotontx")
        self.assertIn("date", answer.headers)
        self.assertTrue(answer.ended)

    def test_request_is_what_http_1_makes(self) -> None:
        self.peer().answer("/%C3%A9?q=%20", cookie="a=1", x_more="m")
        request = self.requests[0]
        self.assertEqual(request.method, "GET")
        self.assertEqual(request.path, "/é")
        self.assertEqual(request.query_string, "q=%20")
        self.assertEqual(request.version, "2")
        self.assertEqual(request.host, "a")
        self.assertEqual(request.headers.get("Host"), "a")
        self.assertEqual(request.headers.get("x-more"), "m")
        self.assertEqual(request.headers.get("cookie"), "a=1")
        self.assertTrue(request.is_complete)
        self.assertEqual(request.body, b"")

    def test_crumbs_of_a_cookie_are_one_field(self) -> None:
        peer = self.peer()
        peer.send(
            [
                (":method", "GET"),
                (":path", "/"),
                (":scheme", "https"),
                (":authority", "a"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ]
        )
        self.assertEqual(self.requests[0].headers.get_all("cookie"), ["a=1; b=2"])

    def test_host_field_does_for_an_authority(self) -> None:
        peer = self.peer()
        pairs = [(":method", "GET"), (":path", "/"), (":scheme", "https"), ("host", "b:8")]
        peer.send(pairs)
        self.assertEqual(self.requests[0].host, "b:8")

    def test_head_has_no_body(self) -> None:
        answer = self.peer().answer("/", method="HEAD")
        self.assertEqual(answer.headers["content-length"], "6")
        self.assertEqual(answer.body, b"")
        self.assertTrue(answer.ended)

    def test_not_modified_has_no_length(self) -> None:
        self.results["/"] = Response(304)
        answer = self.peer().answer()
        self.assertEqual(answer.status, 304)
        self.assertNotIn("content-length", answer.headers)
        self.assertTrue(answer.ended)

    def test_fields_are_in_lower_case_and_none_speaks_of_the_connection(self) -> None:
        fields = {"Set-Cookie": "a=1", "Upgrade": "x", "Proxy-Connection": "x", "X-Y": "é"}
        self.results["/"] = Response(200, b"", fields, "text/html")
        answer = self.peer().answer()
        self.assertEqual(answer.headers["set-cookie"], "a=1")
        self.assertEqual(answer.headers["x-y"], "é")
        self.assertEqual(answer.headers["content-type"], "text/html")
        self.assertNotIn("upgrade", answer.headers)
        self.assertNotIn("proxy-connection", answer.headers)

    def test_streams_are_answered_as_they_are_done(self) -> None:
        waiting: dict[str, Deferred[Response]] = {"/1": Deferred(), "/2": Deferred()}
        self.results.update(waiting)
        peer = self.peer()
        first, second = peer.ask("/1"), peer.ask("/2")
        third = peer.answer("/3")
        self.assertEqual(third.body, b"GET /3")
        waiting["/2"].callback(Response(200, b"two"))
        peer.turn()
        self.assertEqual(peer.answers[second].body, b"two")
        self.assertFalse(peer.answers[first].ended)
        waiting["/1"].callback(Response(200, b"one"))
        peer.turn()
        self.assertEqual(peer.answers[first].body, b"one")

    def test_handlers_of_one_turn_answer_in_one_write(self) -> None:
        waiting: list[Deferred[Response]] = []

        def wait(request: Request) -> Deferred[Response]:
            waiting.append(Deferred())
            return waiting[-1]

        self.results["/"] = wait
        peer = self.peer()
        streams = [peer.ask() for _ in range(5)]
        writes: list[bytes] = []
        peer.wire.write = writes.append  # type: ignore[method-assign,assignment]
        for deferred in waiting:
            deferred.callback(Response(200, b"late"))
        self.assertEqual(writes, [])
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)
        peer.wire.io.write(writes[0])
        peer.take()
        self.assertTrue(all(peer.answers[stream].body == b"late" for stream in streams))

    def test_handler_that_fails_is_500_on_its_stream(self) -> None:
        def fail(request: Request) -> Response:
            raise ValueError("no")

        self.results["/bad"] = fail
        peer = self.peer()
        self.assertEqual(peer.answer("/bad").status, 500)
        self.assertEqual(peer.answer("/good").status, 200)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_handler_that_returns_nonsense_is_500(self) -> None:
        self.results["/"] = lambda request: 5
        self.assertEqual(self.peer().answer().status, 500)

    def test_upgrade_is_refused(self) -> None:
        self.results["/"] = Upgrade(object())
        answer = self.peer().answer()
        self.assertEqual(answer.status, 501)
        self.assertIn(b"HTTP/1.1", answer.body)

    def test_close_of_a_response_ends_the_connection_gracefully(self) -> None:
        self.results["/last"] = Response(200, b"bye", close=True)
        peer = self.peer()
        answer = peer.answer("/last")
        self.assertEqual(answer.body, b"bye")
        self.assertEqual(peer.goodbyes, [(0, 2**31 - 1), (0, 1)])
        self.assertTrue(peer.wire.disconnecting)

    def test_body_that_http_1_could_not_survive_ends_its_stream_only(self) -> None:
        self.results["/"] = Response(413, b"too much", close=True)
        peer = self.peer()
        self.assertEqual(peer.answer().status, 413)
        self.assertEqual(peer.goodbyes, [])

    def test_answers_are_reported(self) -> None:
        reports: list[tuple[str, int, int]] = []
        self.factory.on_answered = lambda request, status, size, began_s: reports.append(
            (request.path, status, size)
        )
        peer = self.peer()
        self.results["/wait"] = Deferred()
        peer.answer("/x")
        peer.answer("/x", method="HEAD")
        peer.h2.reset_stream(peer.ask("/wait"))
        peer.turn()
        self.assertEqual(reports, [("/x", 200, 6), ("/x", 200, 0), ("/wait", 499, 0)])

    def test_nothing_of_a_request_waits_for_the_garbage_collector(self) -> None:
        class Watched(Request):
            __slots__ = ("__weakref__",)

        async def write(writer: BodyWriter) -> None:
            await writer.write(b"x")

        async def read(request: Request) -> Response:
            return Response(200, await request.stream.read())

        def gone(path: str, *, reset: bool = False) -> bool:
            stream = peer.ask(path, method="POST", end=path == "/write")
            request = ref(self.requests.pop())
            if reset:
                peer.h2.reset_stream(stream)
                peer.turn()
            elif path == "/read":
                peer.upload(stream, b"abc", end=True)
            self.assertNotEqual(peer.answers[stream].ended, reset)
            return request() is None

        self.factory.request_class = Watched
        self.streamed = {"/read", "/write", "/wait"}
        self.results["/read"] = read
        self.results["/write"] = lambda _: Response(200, write)
        self.results["/wait"] = lambda _: Deferred()
        peer = self.peer()
        gc.disable()
        self.addCleanup(gc.enable)
        self.assertTrue(gone("/read"))
        self.assertTrue(gone("/write"))
        self.assertTrue(gone("/wait", reset=True))


class ResetTest(HTTP2Case):
    def test_reset_cancels_its_handler_only(self) -> None:
        cancelled: list[str] = []
        for path in ("/1", "/2"):
            self.results[path] = Deferred(lambda _, path=path: cancelled.append(path))
        peer = self.peer()
        first, second = peer.ask("/1"), peer.ask("/2")
        peer.h2.reset_stream(first)
        peer.turn()
        self.assertEqual(cancelled, ["/1"])
        self.results["/2"].callback(Response(200, b"two"))
        peer.turn()
        self.assertEqual(peer.answers[second].body, b"two")

    def test_reset_before_the_handler_was_called_means_it_never_is(self) -> None:
        peer = self.peer()
        stream = peer.h2.get_next_available_stream_id()
        peer.h2.send_headers(stream, request_pairs(), end_stream=True)
        peer.h2.reset_stream(stream)
        peer.turn()
        self.assertEqual(self.requests, [])

    def test_loss_of_the_connection_cancels_all(self) -> None:
        cancelled: list[str] = []
        for path in ("/1", "/2"):
            self.results[path] = Deferred(lambda _, path=path: cancelled.append(path))
        peer = self.peer()
        peer.ask("/1")
        peer.ask("/2")
        peer.wire.abortConnection()
        self.assertEqual(sorted(cancelled), ["/1", "/2"])
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(len(self.wheel), 0)

    def test_coroutine_is_cancelled_where_it_waits(self) -> None:
        seen: list[str] = []

        async def wait(request: Request) -> Response:
            try:
                await Deferred[None]()
            except CancelledError:
                seen.append("cancelled")
                raise
            raise AssertionError

        self.results["/"] = wait
        peer = self.peer()
        peer.h2.reset_stream(peer.ask())
        peer.turn()
        self.assertEqual(seen, ["cancelled"])


class DrainTest(HTTP2Case):
    def drain(self, timeout_s: float = 10) -> list[Any]:
        done: list[Any] = []
        self.factory.drain(timeout_s).addCallback(done.append)
        return done

    def test_answers_under_way_are_finished(self) -> None:
        self.results["/"] = Deferred()
        peer = self.peer()
        stream = peer.ask("/")
        done = self.drain()
        peer.turn()
        self.assertEqual(peer.goodbyes, [(0, 2**31 - 1), (0, stream)])
        self.assertFalse(peer.wire.disconnecting)
        self.results["/"].callback(Response(200, b"last"))
        peer.turn()
        self.assertEqual(peer.answers[stream].body, b"last")
        self.assertTrue(peer.wire.disconnecting)
        peer.wire.abortConnection()
        self.assertEqual(done, [None])

    def test_idle_connection_is_closed_when_the_peer_knows(self) -> None:
        peer = self.peer()
        self.drain()
        self.assertFalse(peer.wire.disconnecting)
        peer.turn()
        self.assertTrue(peer.wire.disconnecting)

    def test_peer_that_says_nothing_is_closed_after_a_second(self) -> None:
        peer = self.peer()
        self.drain()
        self.clock.advance(0)
        self.clock.advance(1.2)
        self.assertTrue(peer.wire.disconnecting)

    def test_request_that_crossed_the_farewell_is_answered(self) -> None:
        peer = self.peer()
        self.drain()
        answer = peer.answer("/crossed")
        self.assertEqual(answer.body, b"GET /crossed")
        self.assertTrue(peer.wire.disconnecting)

    def test_request_after_the_farewell_is_refused_so_that_it_can_be_repeated(self) -> None:
        self.results["/"] = Deferred()
        peer = self.peer()
        peer.ask("/")
        self.drain()
        peer.turn()
        late = peer.answer("/late")
        self.assertEqual(late.reset, 7)
        self.assertEqual(len(self.requests), 1)

    def test_peer_that_says_goodbye_gets_its_answers(self) -> None:
        self.results["/"] = Deferred()
        peer = self.peer()
        stream = peer.ask("/")
        peer.raw(GoAwayFrame(0, last_stream_id=0, error_code=0))
        self.results["/"].callback(Response(200, b"still"))
        peer.turn()
        self.assertEqual(peer.answers[stream].body, b"still")
        self.assertTrue(peer.wire.disconnecting)

    def test_connection_ends_after_so_many_requests(self) -> None:
        self.factory.last_request = 3
        peer = self.peer()
        for _ in range(3):
            self.assertEqual(peer.answer().status, 200)
        self.assertEqual(peer.goodbyes[-1], (0, 5))
        self.assertTrue(peer.wire.disconnecting)
