"""HTTP/2: bodies in both directions, flow control and backpressure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from twisted.internet.defer import Deferred

from pelotontx.errors import LocalProtocolError, SlowConsumer
from pelotontx.net.http import BodyWriter, HTTPLimits, Request, Response
from pelotontx.net.sendfile import FileSlice
from pelotontx.wire.http import RefusedRequest
from tests.support.http2_peer import HTTP2Case, HTTP2Peer, request_pairs
from tests.support.logs import logged

KIB = 1024
MIB = 1024 * KIB


class UploadTest(HTTP2Case):
    limits = HTTPLimits(body_limit_bytes=4 * MIB)

    def reading(self, path: str) -> tuple[list[bytes], list[Deferred[None]]]:
        """A handler at `path` that reads a piece whenever the second list's last is fired."""
        self.streamed.add(path)
        pieces: list[bytes] = []
        gates: list[Deferred[None]] = []

        async def read(request: Request) -> Response:
            gates.append(Deferred())
            await gates[-1]
            async for piece in request.stream:
                pieces.append(piece)
                gates.append(Deferred())
                await gates[-1]
            return Response(200, b"%d" % sum(map(len, pieces)))

        self.results[path] = read
        return pieces, gates

    def test_body_is_collected(self) -> None:
        peer = self.peer()
        stream = peer.ask("/", method="POST", end=False)
        peer.upload(stream, b"abc", end=True)
        self.assertEqual(peer.answers[stream].body, b"POST /abc")

    def test_body_that_comes_with_its_head_is_there_at_once(self) -> None:
        self.streamed.add("/")
        peer = self.peer()
        stream = peer.h2.get_next_available_stream_id()
        peer.h2.send_headers(stream, request_pairs("POST", content_length="3"))
        peer.h2.send_data(stream, b"abc", end_stream=True)
        peer.turn()
        self.assertTrue(self.requests[0].is_complete)
        self.assertEqual(self.requests[0].body, b"abc")

    def test_body_of_a_megabyte_passes_small_windows(self) -> None:
        body = os.urandom(MIB)
        peer = self.peer()
        stream = peer.ask("/", method="PUT", end=False)
        self.assertEqual(peer.upload(stream, body, end=True), MIB)
        self.assertEqual(peer.answers[stream].body, b"PUT /" + body)

    def test_unread_body_stops_its_peer(self) -> None:
        pieces, gates = self.reading("/up")
        peer = self.peer()
        stream = peer.ask("/up", method="POST", end=False)
        sent = peer.upload(stream, bytes(2 * MIB))
        self.assertEqual(pieces, [])
        self.assertLess(sent, 512 * KIB)
        self.assertEqual(peer.upload(stream, b"x"), 0)
        while peer.h2.local_flow_control_window(stream) == 0:
            gates[-1].callback(None)
            peer.turn()
        self.assertLess(sum(map(len, pieces)), sent)
        self.assertGreater(peer.upload(stream, bytes(MIB)), 0)

    def test_stopped_upload_stops_no_other(self) -> None:
        self.reading("/up")
        peer = self.peer()
        stopped = [peer.ask("/up", method="POST", end=False) for _ in range(20)]
        for stream in stopped:
            self.assertLess(peer.upload(stream, bytes(MIB)), 512 * KIB)
        stream = peer.ask("/", method="POST", end=False)
        self.assertEqual(peer.upload(stream, bytes(MIB), end=True), MIB)
        self.assertEqual(len(peer.answers[stream].body), MIB + len("POST /"))

    def test_many_unanswered_uploads_wait_for_the_oldest(self) -> None:
        peer = self.peer()
        peer.connection.held_limit_bytes = 256 * KIB
        first, second, third = (peer.ask("/", method="POST", end=False) for _ in range(3))
        peer.upload(second, bytes(128 * KIB))
        self.assertLess(peer.upload(third, bytes(MIB)), MIB)
        self.assertEqual(peer.upload(first, bytes(MIB), end=True), MIB)
        self.assertTrue(peer.answers[first].ended)
        self.assertEqual(peer.upload(third, bytes(MIB)), 0)
        self.assertEqual(peer.upload(second, bytes(100 * KIB), end=True), 100 * KIB)
        self.assertEqual(peer.upload(third, bytes(100 * KIB), end=True), 100 * KIB)
        self.assertTrue(peer.answers[third].ended)

    def test_long_upload_that_is_read_as_it_comes_stops_no_other(self) -> None:
        async def count(request: Request) -> Response:
            return Response(200, b"%d" % sum([len(piece) async for piece in request.stream]))

        self.streamed.add("/up")
        self.results["/up"] = count
        peer = self.peer()
        peer.connection.held_limit_bytes = 2 * MIB
        long = peer.ask("/up", method="POST", end=False)
        self.assertEqual(peer.upload(long, bytes(3 * MIB)), 3 * MIB)
        other = peer.ask("/", method="POST", end=False)
        self.assertEqual(peer.upload(other, bytes(MIB), end=True), MIB)
        peer.upload(long, b"x", end=True)
        self.assertEqual(peer.answers[long].body, b"%d" % (3 * MIB + 1))

    def test_upload_goes_on_when_the_oldest_was_read(self) -> None:
        _, gates = self.reading("/up")
        peer = self.peer()
        peer.connection.held_limit_bytes = 400 * KIB
        oldest = peer.ask("/up", method="POST", end=False)
        self.assertGreater(peer.upload(oldest, bytes(MIB)), 200 * KIB)
        other = peer.ask("/", method="POST", end=False)
        self.assertLess(peer.upload(other, bytes(MIB)), 300 * KIB)
        while not gates[-1].called:
            gates[-1].callback(None)
            peer.turn()
        self.assertGreater(peer.h2.local_flow_control_window(other), 0)

    def test_expectation_is_met_when_the_body_is_read(self) -> None:
        _, gates = self.reading("/up")
        peer = self.peer()
        stream = peer.ask("/up", method="POST", end=False, expect="100-continue")
        self.assertEqual(peer.answers[stream].informed, [])
        gates[-1].callback(None)
        peer.turn()
        self.assertEqual(peer.answers[stream].informed, ["100"])
        peer.upload(stream, b"abc")
        gates[-1].callback(None)
        peer.h2.end_stream(stream)
        peer.turn()
        self.assertEqual(peer.answers[stream].informed, ["100"])
        self.assertEqual(peer.answers[stream].body, b"3")

    def test_answer_before_the_body_ends_the_upload_kindly(self) -> None:
        self.streamed.add("/early")
        self.results["/early"] = Response(403, b"no")
        peer = self.peer()
        stream = peer.ask("/early", method="POST", end=False)
        answer = peer.answers[stream]
        self.assertEqual((answer.status, answer.body, answer.ended), (403, b"no", True))
        self.assertIsNone(answer.reset)  # some clients would forget the answer
        for _ in range(3):
            self.clock.advance(1)
        peer.turn()
        self.assertEqual(answer.reset, 0)
        self.assertFalse(peer.wire.disconnecting)

    def test_good_answer_before_the_body_ends_the_upload_at_once(self) -> None:
        self.streamed.add("/early")
        self.results["/early"] = Response(200, b"enough")
        peer = self.peer()
        answer = peer.answers[peer.ask("/early", method="POST", end=False)]
        self.assertEqual((answer.body, answer.ended, answer.reset), (b"enough", True, 0))

    def test_rest_of_an_answered_upload_is_dropped(self) -> None:
        self.streamed.add("/early")
        self.results["/early"] = Response(403, b"no")
        peer = self.peer()
        stream = peer.ask("/early", method="POST", end=False)
        self.assertEqual(peer.upload(stream, bytes(3_000_000), end=True), 3_000_000)
        self.clock.advance(5)
        peer.turn()
        self.assertIsNone(peer.answers[stream].reset)
        self.assertEqual(peer.answers[peer.ask("/")].status, 200)

    def test_answered_upload_that_its_client_resets_is_over(self) -> None:
        self.streamed.add("/early")
        self.results["/early"] = Response(403, b"no")
        peer = self.peer()
        stream = peer.ask("/early", method="POST", end=False)
        peer.h2.reset_stream(stream)
        peer.turn()
        self.clock.advance(5)
        peer.turn()
        self.assertIsNone(peer.answers[stream].reset)
        self.assertFalse(peer.wire.disconnecting)

    def test_answered_upload_holds_the_end_up_for_a_moment(self) -> None:
        self.streamed.add("/early")
        self.results["/early"] = Response(403, b"no")
        peer = self.peer()
        stream = peer.ask("/early", method="POST", end=False)
        peer.connection.close_when_idle()
        peer.turn()
        self.assertFalse(peer.wire.disconnecting)
        peer.upload(stream, b"abc", end=True)
        self.assertTrue(peer.wire.disconnecting)

    def test_too_long_a_body_is_413(self) -> None:
        peer = self.peer()
        for fields in ({}, {"content_length": str(5 * MIB)}):
            stream = peer.ask("/", method="POST", end=False, **fields)
            with contextlib.suppress(StreamClosedError):  # when the answer is there
                peer.upload(stream, bytes(5 * MIB))
            self.assertEqual(peer.answers[stream].status, 413)
        self.assertEqual(self.requests, [])
        self.assertEqual(peer.answer().status, 200)

    def test_reset_upload_fails_for_its_reader(self) -> None:
        errors: list[Exception] = []
        self.streamed.add("/up")

        async def read(request: Request) -> Response:
            try:
                await request.stream.read()
            except BaseException as error:
                errors.append(error)
                raise
            raise AssertionError

        self.results["/up"] = read
        peer = self.peer()
        stream = peer.ask("/up", method="POST", end=False)
        peer.h2.reset_stream(stream)
        peer.turn()
        self.assertEqual(len(errors), 1)

    def test_body_that_stands_still_is_408(self) -> None:
        peer = self.peer()
        stream = peer.ask("/", method="POST", end=False)
        peer.upload(stream, bytes(100 * KIB))
        for _ in range(40):
            self.clock.advance(1)
        peer.turn()
        self.assertEqual(peer.answers[stream].status, 408)
        self.assertEqual(peer.answer().status, 200)

    def test_body_that_trickles_is_408(self) -> None:
        peer = self.peer()
        stream = peer.ask("/", method="POST", end=False)
        for _ in range(20):
            if peer.answers[stream].status:
                break
            peer.upload(stream, b"x")
            self.clock.advance(1)
            peer.turn()
        self.assertEqual(peer.answers[stream].status, 408)

    def test_body_that_we_do_not_read_has_all_the_time(self) -> None:
        _, gates = self.reading("/up")
        peer = self.peer()
        stream = peer.ask("/up", method="POST", end=False)
        peer.upload(stream, bytes(MIB))
        for _ in range(100):
            self.clock.advance(1)
        peer.turn()
        self.assertEqual(peer.answers[stream].status, 0)
        self.assertIsNone(peer.answers[stream].reset)
        self.assertEqual(len(gates), 1)

    def test_small_pieces_cost_no_more_than_their_bytes(self) -> None:
        pieces, gates = self.reading("/up")
        peer = self.peer()
        stream = peer.ask("/up", method="POST", end=False)
        for _ in range(3000):
            peer.h2.send_data(stream, b"x")
        peer.turn()
        for _ in range(10):
            gates[-1].callback(None)
            peer.turn()
            if sum(map(len, pieces)) == 3000:
                break
        self.assertEqual(b"".join(pieces), b"x" * 3000)

    def test_what_is_read_after_the_answer_harms_nobody(self) -> None:
        self.streamed.add("/early")
        self.results["/early"] = Deferred()
        peer = self.peer()
        stream = peer.ask("/early", method="POST", end=False)
        peer.upload(stream, bytes(MIB))
        body = self.requests[0].stream
        self.results["/early"].callback(Response(200, b"enough"))
        peer.turn()
        read = Deferred.fromCoroutine(body.read())
        self.failureResultOf(read, LocalProtocolError)
        self.assertEqual(peer.answers[stream].body, b"enough")
        self.assertEqual(peer.answer().status, 200)

    def test_trailers_end_a_body(self) -> None:
        peer = self.peer()
        stream = peer.ask("/", method="POST", end=False)
        peer.upload(stream, b"abc")
        peer.h2.send_headers(stream, [("x-sum", "1")], end_stream=True)
        peer.turn()
        self.assertEqual(peer.answers[stream].body, b"POST /abc")


class DownloadTest(HTTP2Case):
    limits = HTTPLimits(unread_s=30)

    def test_long_body_waits_for_windows(self) -> None:
        body = os.urandom(MIB)
        self.results["/"] = Response(200, body)
        peer = self.peer()
        peer.acknowledges = False
        stream = peer.ask()
        self.assertEqual(len(peer.answers[stream].body), 65535)
        peer.h2.increment_flow_control_window(2 * MIB)
        peer.turn()
        self.assertEqual(len(peer.answers[stream].body), 65535)
        peer.h2.increment_flow_control_window(2 * MIB, stream)
        peer.turn()
        self.assertEqual(peer.answers[stream].body, body)
        self.assertTrue(peer.answers[stream].ended)

    def test_initial_window_that_is_raised_later_counts(self) -> None:
        self.results["/"] = Response(200, bytes(100))
        peer = self.peer()
        peer.acknowledges = False
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        peer.turn()
        stream = peer.ask()
        self.assertEqual(peer.answers[stream].status, 200)
        self.assertEqual(peer.answers[stream].body, b"")
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 60})
        peer.turn()
        self.assertEqual(len(peer.answers[stream].body), 60)
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        peer.turn()
        self.assertTrue(peer.answers[stream].ended)

    def test_streams_share_the_connection(self) -> None:
        self.results["/"] = Response(200, bytes(MIB))
        peer = self.peer()
        peer.acknowledges = False
        streams = [peer.ask() for _ in range(4)]
        peer.h2.increment_flow_control_window(400_000)
        peer.turn()
        sizes = [len(peer.answers[stream].body) for stream in streams]
        self.assertEqual(sizes, [65535] * 4)

    def test_short_answer_overtakes_a_stuck_one(self) -> None:
        self.results["/long"] = Response(200, bytes(MIB))
        peer = self.peer()
        peer.acknowledges = False
        peer.h2.increment_flow_control_window(MIB)
        peer.ask("/long")
        self.assertTrue(peer.answer("/short").ended)

    def test_choked_transport_stops_all_and_is_not_read(self) -> None:
        self.results["/"] = Response(200, bytes(MIB))
        peer = self.peer()
        peer.h2.increment_flow_control_window(4 * MIB)
        peer.turn()
        peer.connection.pauseProducing()
        self.assertEqual(peer.wire.producerState, "paused")
        stream = peer.ask()
        self.assertEqual(peer.answers[stream].status, 0)
        peer.connection.resumeProducing()
        peer.turn()
        self.assertEqual(peer.wire.producerState, "producing")
        self.assertTrue(peer.answers[stream].ended)

    def test_pieces_of_an_iterator_arrive(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            await gate
            yield b"b"

        gate: Deferred[None] = Deferred()
        self.results["/"] = Response(200, pieces())
        peer = self.peer()
        stream = peer.ask()
        self.assertEqual(peer.answers[stream].body, b"a")
        self.assertNotIn("content-length", peer.answers[stream].headers)
        gate.callback(None)
        peer.turn()
        self.assertEqual(peer.answers[stream].body, b"ab")
        self.assertTrue(peer.answers[stream].ended)

    def writing(self, body: Any, **more: Any) -> HTTP2Peer:
        self.results["/"] = lambda request: Response(200, body, **more)
        return self.peer()

    def test_writer_waits_for_the_window(self) -> None:
        written: list[int] = []

        async def body(writer: BodyWriter) -> None:
            for _ in range(64):
                await writer.write(bytes(16 * KIB))
                written.append(1)

        peer = self.writing(body)
        peer.acknowledges = False
        stream = peer.ask()
        self.assertLess(len(written), 12)
        peer.acknowledges = True
        peer.h2.increment_flow_control_window(MIB, stream)
        peer.h2.increment_flow_control_window(MIB)
        peer.turn()
        self.assertEqual(len(peer.answers[stream].body), MIB)
        self.assertTrue(peer.answers[stream].ended)

    def test_writer_that_does_not_wait_is_cut_off(self) -> None:
        errors: list[Exception] = []

        async def body(writer: BodyWriter) -> None:
            try:
                for _ in range(100):
                    writer.write(bytes(64 * KIB))
            except SlowConsumer as error:
                errors.append(error)
                raise

        peer = self.writing(body)
        peer.acknowledges = False
        answer = peer.answer()
        self.assertEqual(answer.reset, 8)
        self.assertEqual(len(errors), 1)
        self.assertEqual(peer.answer("/other").status, 200)

    def test_trailers_follow_a_stream(self) -> None:
        async def body(writer: BodyWriter) -> None:
            writer.write(b"abc")
            writer.trailers["X-Sum"] = "6"

        answer = self.writing(body, trailers=["X-Sum"]).answer()
        self.assertEqual(answer.headers["trailer"], "X-Sum")
        self.assertEqual(answer.trailers, {"x-sum": "6"})
        self.assertTrue(answer.ended)

    def test_finished_fires_when_the_stream_is_reset(self) -> None:
        fired: list[None] = []

        async def body(writer: BodyWriter) -> None:
            writer.finished.addCallback(fired.append)
            await Deferred[None]()

        peer = self.writing(body)
        stream = peer.ask()
        self.assertEqual(peer.answers[stream].status, 200)
        peer.h2.reset_stream(stream)
        peer.turn()
        self.assertEqual(fired, [None])

    def test_flush_writes_at_once(self) -> None:
        async def body(writer: BodyWriter) -> None:
            await gate
            writer.write(b"now")
            writer.flush()
            seen.append(peer.wire.value().endswith(b"now"))

        gate: Deferred[None] = Deferred()
        seen: list[bool] = []
        peer = self.writing(body)
        peer.ask()
        gate.callback(None)
        self.assertEqual(seen, [True])

    def test_stream_that_fails_before_its_first_byte_is_an_error(self) -> None:
        async def body(writer: BodyWriter) -> None:
            raise RefusedRequest(400, "bad")

        answer = self.writing(body).answer()
        self.assertEqual(answer.status, 400)
        self.assertTrue(answer.ended)

    def test_stream_that_fails_later_is_reset(self) -> None:
        async def body(writer: BodyWriter) -> None:
            writer.write(b"half")
            raise ValueError("no")

        peer = self.writing(body)
        answer = peer.answer()
        self.assertEqual(answer.reset, 2)
        self.assertFalse(answer.ended)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(peer.answer("/other").status, 200)

    def test_what_failed_is_named_in_the_log(self) -> None:
        async def cut_short(writer: BodyWriter) -> None:
            await writer.write(b"x")
            raise ValueError

        self.results["/crash"] = lambda _: 1 / 0
        self.results["/none"] = lambda _: None
        self.results["/cut"] = Response(200, cut_short)
        peer = self.peer()
        with logged() as lines:
            for path in ("/crash", "/none", "/cut"):
                peer.ask(path)
        self.flushLoggedErrors(ZeroDivisionError, ValueError)
        self.assertEqual(
            lines,
            [
                "The handler of GET /crash failed",
                "The handler of GET /none returned NoneType",
                "The response to GET /cut failed",
            ],
        )

    def test_stream_of_another_length_is_reset(self) -> None:
        async def body(writer: BodyWriter) -> None:
            writer.write(b"half")

        answer = self.writing(body, length=8).answer()
        self.assertEqual(answer.reset, 2)
        self.assertEqual(len(self.flushLoggedErrors(Exception)), 1)

    def test_head_of_a_stream_runs_nothing(self) -> None:
        async def body(writer: BodyWriter) -> None:
            raise AssertionError

        answer = self.writing(body, length=8).answer(method="HEAD")
        self.assertEqual(answer.headers["content-length"], "8")
        self.assertTrue(answer.ended)

    def test_slice_of_a_file_is_read(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "file")
        path.write_bytes(os.urandom(300 * KIB))
        self.results["/"] = lambda request: Response(206, FileSlice.of(path))
        answer = self.peer().answer()
        self.assertEqual(answer.headers["content-length"], str(300 * KIB))
        self.assertEqual(answer.body, path.read_bytes())
        self.assertTrue(answer.ended)

    def test_stuck_stream_is_reset_and_the_others_go_on(self) -> None:
        self.results["/"] = Response(200, bytes(MIB))
        peer = self.peer()
        peer.h2.increment_flow_control_window(MIB)
        peer.acknowledges = False
        stuck = peer.ask()
        for _ in range(40):
            self.clock.advance(1)
            if not peer.wire.disconnecting:
                peer.answer("/other")
        self.assertEqual(peer.answers[stuck].reset, 8)
        self.assertFalse(peer.wire.ended)

    def test_peer_that_never_opens_its_window_is_dropped(self) -> None:
        self.results["/"] = Response(200, bytes(MIB))
        peer = self.peer()
        peer.acknowledges = False
        for _ in range(3):
            peer.ask()
        for _ in range(36):
            self.clock.advance(1)
        self.assertTrue(peer.wire.aborted)

    def test_slow_reader_is_served(self) -> None:
        self.results["/"] = Response(200, bytes(100 * KIB))
        peer = self.peer()
        peer.acknowledges = False
        stream = peer.ask()
        for _ in range(80):
            self.clock.advance(1)
            if not peer.answers[stream].ended and self.clock.seconds() % 10 < 1:
                peer.h2.increment_flow_control_window(8 * KIB, stream)
                peer.h2.increment_flow_control_window(8 * KIB)
                peer.turn()
        self.assertTrue(peer.answers[stream].ended)
