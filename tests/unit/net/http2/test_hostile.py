"""HTTP/2: requests that are not accepted, and floods."""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from pelotontx.net.http import BodyWriter, HTTPLimits, Request, Response
from pelotontx.net.http2 import HTTP2Connection
from pelotontx.wire.http2 import PREFACE
from tests.support.http2_peer import HTTP2Case, HTTP2Peer
from tests.support.http_case import Wire

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 1, 3, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

Fields = list[tuple[str, str]]


def changed(*more: tuple[str, str], without: str = "", **pseudo: str) -> Fields:
    """The fields of a request, pseudo-header fields changed or left out, others appended."""
    values = {"method": "GET", "scheme": "https", "authority": "a", "path": "/"} | pseudo
    return [(f":{name}", value) for name, value in values.items() if name != without] + list(more)


#: Malformed in the words of RFC 9113: the stream is reset.
MALFORMED: dict[str, Fields] = {
    "no method": changed(without="method"),
    "no scheme": changed(without="scheme"),
    "no path": changed(without="path"),
    "empty path": changed(path=""),
    "no authority and no Host": changed(without="authority"),
    "another scheme": changed(scheme="ftp"),
    "unknown pseudo-header field": changed((":x", "y")),
    "answer's pseudo-header field": changed((":status", "200")),
    "extended CONNECT": changed((":protocol", "websocket"), method="CONNECT"),
    "pseudo-header field twice": changed((":path", "/")),
    "pseudo-header field after others": changed(("x", "y"), (":method", "GET"), without="method"),
    "pseudo-header field after a cookie": [("cookie", "a=b"), *changed()],
    "upper case": changed(("X-Y", "z")),
    "empty name": changed(("", "z")),
    "space in a name": changed(("x y", "z")),
    "colon in a name": changed(("x: y", "z")),
    "line feed in a name": changed(("x\ny", "z")),
    "line feed in a value": changed(("x", "y\nz: w")),
    "carriage return in a value": changed(("x", "y\rz")),
    "NUL in a value": changed(("x", "y\0z")),
    "control character in a value": changed(("x", "y\x07z")),
    "value that begins with a space": changed(("x", " y")),
    "value that ends with a tab": changed(("x", "y\t")),
    "line feed in the authority": changed(authority="a\nb: c"),
    "space in the method": changed(method="GET /"),
    "Connection": changed(("connection", "close")),
    "Keep-Alive": changed(("keep-alive", "5")),
    "Proxy-Connection": changed(("proxy-connection", "close")),
    "Transfer-Encoding": changed(("transfer-encoding", "chunked")),
    "Upgrade": changed(("upgrade", "websocket")),
    "TE but trailers": changed(("te", "gzip")),
    "two Host fields": changed(("host", "a"), ("host", "a")),
    "Host field of another host": changed(("host", "b")),
    "length without a body": changed(("content-length", "3")),
}

#: Answered as in HTTP/1.1.
REFUSED: dict[str, tuple[int, Fields]] = {
    "malformed host": (400, changed(authority="a b")),
    "user in the authority": (400, changed(authority="u@a")),
    "two hosts": (400, changed(authority="a,b")),
    "absolute path": (400, changed(path="https://a/")),
    "path without a slash": (400, changed(path="x")),
    "space in the path": (400, changed(path="/a b")),
    "line feed in the path": (400, changed(path="/a%0a")),
    "fragment": (400, changed(path="/a#b")),
    "bad escape": (400, changed(path="/%zz")),
    "path that is not UTF-8": (400, changed(path="/%ff")),
    "byte in the path": (400, changed(path="/\xe9")),
    "star without OPTIONS": (400, changed(path="*")),
    "CONNECT": (501, [(":method", "CONNECT"), (":authority", "a:1")]),
    "unknown method": (501, changed(method="BREW")),
    "malformed method": (400, changed(method="get")),
    "unknown expectation": (417, changed(("expect", "tea"))),
    "long path": (414, changed(path="/" + "x" * 8190)),
    "long field": (431, changed(("x", "y" * 8190))),
    "many fields": (431, changed(*[(f"x{n}", "y") for n in range(101)])),
    "large head": (431, changed(*[(f"x{n}", "y" * 4000) for n in range(5)])),
}


class JudgementTest(HTTP2Case):
    def test_malformed_requests_are_reset(self) -> None:
        for name, fields in MALFORMED.items():
            with self.subTest(name):
                peer = self.peer()
                answer = peer.answers[peer.send(fields)]
                self.assertEqual(answer.reset, PROTOCOL_ERROR)
                self.assertEqual(answer.status, 0)
                self.assertEqual(peer.answer().status, 200)
                self.assertEqual(len(self.requests), 1)
                self.requests.clear()

    def test_refused_requests_are_answered(self) -> None:
        for name, (status, fields) in REFUSED.items():
            with self.subTest(name):
                peer = self.peer()
                answer = peer.answers[peer.send(fields)]
                self.assertEqual(answer.status, status)
                self.assertTrue(answer.ended)
                self.assertEqual(peer.answer().status, 200)
                self.assertEqual(len(self.requests), 1)
                self.requests.clear()

    def test_the_same_bytes_one_by_one_have_the_same_verdict(self) -> None:
        for name, fields in MALFORMED.items():
            with self.subTest(name):
                peer = self.peer()
                stream = peer.h2.get_next_available_stream_id()
                peer.h2.send_headers(stream, fields, end_stream=True)
                data = peer.h2.data_to_send()
                for index in range(len(data)):
                    peer.connection.dataReceived(data[index : index + 1])
                peer.turn()
                self.assertEqual(peer.answers[stream].reset, PROTOCOL_ERROR)

    def test_two_lengths_are_refused(self) -> None:
        peer = self.peer()
        fields = changed(("content-length", "3"), ("content-length", "3"), method="POST")
        self.assertEqual(peer.answers[peer.send(fields, end=False)].status, 400)

    def test_length_that_the_body_does_not_have_ends_the_connection(self) -> None:
        for sent in (b"ab", b"abcd"):
            peer = self.peer()
            stream = peer.ask("/", method="POST", end=False, content_length="3")
            peer.h2.send_data(stream, sent, end_stream=True)
            self.assert_broken(peer, PROTOCOL_ERROR)
        self.assertEqual(self.requests, [])

    def test_malformed_trailers_reset_the_stream(self) -> None:
        for trailers in ([(":path", "/")], [("X", "y")], [("connection", "close")]):
            peer = self.peer()
            stream = peer.ask("/", method="POST", end=False)
            peer.h2.send_headers(stream, trailers, end_stream=True)
            peer.turn()
            self.assertEqual(peer.answers[stream].reset, PROTOCOL_ERROR)

    def test_head_request_that_is_refused_has_no_body(self) -> None:
        peer = self.peer()
        answer = peer.answers[peer.send(changed(method="HEAD", path="/%zz"))]
        self.assertEqual((answer.status, answer.body), (400, b""))
        self.assertTrue(answer.ended)

    def test_refused_requests_are_reported(self) -> None:
        reports: list[tuple[Any, ...]] = []
        self.factory.on_answered = lambda request, status, size, began_s: reports.append(
            (request.method, request.version, status)
        )
        self.peer().send(changed(path="/%zz"))
        self.assertEqual(reports, [("", "2", 400)])


class ConnectionTest(HTTP2Case):
    def raw_peer(self) -> HTTP2Peer:
        return HTTP2Peer(self.factory, self.clock)

    def test_another_preface_is_no_connection(self) -> None:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"P",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"\x16\x03",
        ):
            peer = self.raw_peer()
            peer.connection.dataReceived(data)
            self.assertEqual(peer.wire.disconnecting, data != b"P")

    def test_frame_that_is_too_large_ends_the_connection(self) -> None:
        peer = self.peer()
        peer.connection.dataReceived(b"\x00\x40\x01\x00\x00\x00\x00\x00\x01")
        self.assert_broken(peer, FRAME_SIZE_ERROR)

    def test_frame_within_a_head_ends_the_connection(self) -> None:
        peer = self.peer()
        peer.raw(HeadersFrame(1, Encoder().encode(changed())), PingFrame(0))
        self.assert_broken(peer, PROTOCOL_ERROR)

    def test_undecodable_head_ends_the_connection(self) -> None:
        peer = self.peer()
        peer.raw(HeadersFrame(1, b"\xff\xff\xff\xff", flags=["END_HEADERS", "END_STREAM"]))
        self.assert_broken(peer, PROTOCOL_ERROR)

    def test_push_of_a_client_ends_the_connection(self) -> None:
        peer = self.peer()
        data = Encoder().encode(changed())
        peer.raw(PushPromiseFrame(1, 2, data, flags=["END_HEADERS"]))
        self.assert_broken(peer, PROTOCOL_ERROR)

    def test_data_past_the_window_ends_the_connection(self) -> None:
        self.streamed.add("/up")
        self.results["/up"] = Deferred()
        peer = self.peer()
        stream = peer.ask("/up", method="POST", end=False)
        peer.raw(*[DataFrame(stream, bytes(16384)) for _ in range(40)])
        self.assert_broken(peer, FLOW_CONTROL_ERROR)

    def test_more_streams_than_allowed_end_the_connection(self) -> None:
        self.results["/"] = lambda request: Deferred()
        peer = self.peer()
        self.assertEqual(peer.h2.remote_settings.max_concurrent_streams, 100)
        for _ in range(100):
            peer.ask()
        self.assertEqual(len(self.requests), 100)
        peer.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 200
        peer.h2.remote_settings.acknowledge()
        peer.ask()
        self.assert_broken(peer, PROTOCOL_ERROR)
        self.assertEqual(len(self.requests), 100)

    def test_bomb_of_compressed_fields_ends_the_connection(self) -> None:
        peer = self.peer()
        encoder = Encoder()
        head = encoder.encode(changed(("x", "y" * 3000)))
        bomb = encoder.encode([("x", "y" * 3000)]) * 15_000
        frames: list[Frame] = [HeadersFrame(1, head + bomb[:10_000], flags=["END_STREAM"])]
        frames.append(ContinuationFrame(1, bomb[10_000:15_000], flags=["END_HEADERS"]))
        peer.raw(*frames)
        self.assert_broken(peer, ENHANCE_YOUR_CALM)
        self.assertEqual(self.requests, [])

    def test_huge_table_of_a_client_is_not_filled(self) -> None:
        peer = self.peer()
        peer.raw(SettingsFrame(0, {SettingCodes.HEADER_TABLE_SIZE: 2**31}))
        self.assertEqual(peer.connection.h2.encoder.header_table_size, 4096)
        self.assertEqual(peer.answer().status, 200)


class FloodTest(HTTP2Case):
    def test_resets_are_bounded(self) -> None:
        self.results["/"] = lambda request: Deferred()
        peer = self.peer()
        for _ in range(300):
            if peer.wire.disconnecting:
                break
            peer.h2.reset_stream(peer.ask())
            peer.turn()
        self.assert_broken(peer, ENHANCE_YOUR_CALM)
        self.assertLess(len(self.requests), 210)

    def test_resets_that_the_server_is_made_to_send_are_bounded(self) -> None:
        self.results["/"] = lambda request: Deferred()
        peer = self.peer()
        for _ in range(300):
            if peer.wire.disconnecting:
                break
            frame = WindowUpdateFrame(peer.ask(), 2**31 - 1)
            peer.raw(frame)
        self.assert_broken(peer, ENHANCE_YOUR_CALM)
        self.assertLess(len(self.requests), 210)

    def test_resets_of_a_patient_client_are_not_a_flood(self) -> None:
        self.results["/"] = lambda request: Deferred()
        self.factory.last_request = 10_000
        peer = self.peer()
        for number in range(400):
            peer.h2.reset_stream(peer.ask())
            peer.turn()
            if number % 10 == 0:
                self.clock.advance(1)
        self.assertFalse(peer.wire.disconnecting)

    def flood(self, frame: Frame, count: int = 1500) -> HTTP2Peer:
        peer = self.peer()
        data = frame.serialize()
        for _ in range(count):
            peer.connection.dataReceived(data)
        return peer

    def test_frames_that_carry_nothing_are_bounded(self) -> None:
        unknown = b"\0\0\0\x77\0\0\0\0\0"
        frames = [
            PingFrame(0, b"12345678"),
            SettingsFrame(0, {SettingCodes.INITIAL_WINDOW_SIZE: 1}),
            SettingsFrame(0),
            PriorityFrame(1),
            WindowUpdateFrame(0, 1),
            RstStreamFrame(1),
        ]
        for frame in frames:
            with self.subTest(type(frame).__name__):
                peer = self.peer()
                peer.ask()  # that there is a stream 1
                for _ in range(1500):
                    peer.connection.dataReceived(frame.serialize())
                self.assert_broken(peer, ENHANCE_YOUR_CALM)
        peer = self.peer()
        for _ in range(1500):
            peer.connection.dataReceived(unknown)
        self.assert_broken(peer, ENHANCE_YOUR_CALM)

    def test_empty_data_is_bounded(self) -> None:
        peer = self.peer()
        stream = peer.ask("/", method="POST", end=False)
        for _ in range(1500):
            peer.connection.dataReceived(DataFrame(stream).serialize())
        self.assert_broken(peer, ENHANCE_YOUR_CALM)

    def test_continuations_are_bounded(self) -> None:
        for payload in (b"", bytes(16384)):
            peer = self.peer()
            peer.connection.dataReceived(HeadersFrame(1, b"").serialize())
            for _ in range(20):
                peer.connection.dataReceived(ContinuationFrame(1, payload).serialize())
            self.assert_broken(peer, ENHANCE_YOUR_CALM)

    def test_dribbled_window_is_bounded(self) -> None:
        self.results["/"] = Response(200, bytes(100_000))
        peer = self.peer()
        peer.acknowledges = False
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        peer.turn()
        stream = peer.ask()
        for _ in range(1500):
            if peer.wire.disconnecting:
                break
            peer.h2.increment_flow_control_window(1, stream)
            peer.turn()
        self.assert_broken(peer, ENHANCE_YOUR_CALM)

    def test_busy_client_is_no_flood(self) -> None:
        self.factory.last_request = 10_000
        peer = self.peer()
        for _ in range(1500):
            answer = peer.answer()
            self.assertTrue(answer.ended)
            peer.h2.increment_flow_control_window(6)
        self.assertFalse(peer.wire.disconnecting)

    def test_one_read_full_of_requests_takes_several_turns(self) -> None:
        peer = self.peer()
        encoder = Encoder()
        frames = b""
        for number in range(90):
            block = encoder.encode(changed())
            frame = HeadersFrame(2 * number + 1, block, flags=["END_HEADERS", "END_STREAM"])
            frames += frame.serialize()
        peer.connection.dataReceived(frames)
        self.assertLess(len(self.requests), 90)
        self.assertEqual(peer.wire.producerState, "paused")
        for _ in range(5):
            self.clock.advance(0)
        self.assertEqual(len(self.requests), 90)
        self.assertEqual(peer.wire.producerState, "producing")


class DeadlineTest(HTTP2Case):
    limits = HTTPLimits(head_s=10, keep_alive_s=15)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def test_preface_must_come_in_time(self) -> None:
        for sent in (b"", PREFACE[:5], PREFACE):
            peer = HTTP2Peer(self.factory, self.clock)
            peer.connection.dataReceived(sent)
            self.pass_time(12)
            self.assertTrue(peer.wire.disconnecting)

    def test_head_must_be_whole_in_time(self) -> None:
        block = Encoder().encode(changed())
        whole = HeadersFrame(1, block, flags=["END_HEADERS"]).serialize()
        frames = HeadersFrame(1, block[:2]).serialize()
        for beginning in (whole[:-1], frames):
            peer = self.peer()
            self.results["/"] = Deferred()
            peer.h2.get_next_available_stream_id()
            peer.connection.dataReceived(beginning)
            self.pass_time(5)
            peer.connection.dataReceived(b"")
            self.assertFalse(peer.wire.disconnecting)
            self.pass_time(11)
            self.assert_broken(peer, ENHANCE_YOUR_CALM)

    def test_heads_that_follow_each_other_are_not_late(self) -> None:
        peer = self.peer()
        encoder = Encoder()

        def head(stream_id: int) -> bytes:
            block = encoder.encode(changed())
            return HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"]).serialize()

        rest = b""
        for number in range(30):
            data = rest + head(2 * number + 1)
            peer.connection.dataReceived(data[:-3])
            rest = data[-3:]
            self.clock.advance(1)
        self.assertFalse(peer.wire.disconnecting)
        self.assertEqual(len(self.requests), 29)

    def test_idle_connection_is_closed(self) -> None:
        peer = self.peer()
        peer.answer()
        self.pass_time(10)
        self.assertFalse(peer.wire.disconnecting)
        self.pass_time(7)
        self.assert_broken(peer, 0)

    def test_pings_keep_no_idle_connection(self) -> None:
        peer = self.peer()
        peer.answer()
        for _ in range(17):
            peer.connection.dataReceived(PingFrame(0, b"12345678").serialize())
            self.clock.advance(1)
        self.assertTrue(peer.wire.disconnecting)

    def test_handler_takes_the_time_it_takes(self) -> None:
        self.results["/"] = Deferred()
        peer = self.peer()
        stream = peer.ask()
        self.pass_time(300)
        self.results["/"].callback(Response(200, b"late"))
        peer.turn()
        self.assertEqual(peer.answers[stream].body, b"late")

    def test_closing_connection_does_not_linger(self) -> None:
        peer = self.peer()
        self.pass_time(16)
        self.assertTrue(peer.wire.disconnecting)
        self.pass_time(5)
        self.assertTrue(peer.wire.aborted)
        self.assertEqual(len(self.wheel), 0)


class FuzzTest(HTTP2Case):
    """Whatever comes, nothing is raised or logged, and the next connection is served."""

    #: What most frames of a kind are as long as; the others are broken ones.
    sizes: ClassVar[dict[int, int]] = {2: 5, 3: 4, 4: 6, 6: 8, 8: 4}

    def frame(self, random: Random, newest: int) -> bytes:
        """A frame that may be right; a head begins a stream after `newest`."""
        kind = random.choice([0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 6, 8, 8, 77])
        flags = random.choice([0, 0, 1])
        kind = 1 if newest < 1 else kind
        stream_id = 0 if kind in (4, 6) else max(1, newest - random.choice([0, 0, 2, 4]))
        payload = random.randbytes(self.sizes.get(kind, random.choice([0, 1, 40])))
        if kind == 1:
            stream_id = newest + 2
            flags = random.choice([4, 4, 5])
            fields = random.choice([*MALFORMED.values(), *([changed(method="POST")] * 60)])
            payload = Encoder().encode(fields)
        elif kind == 4:
            payload = b"\0\4" + random.choice([0, 1, 2**31 - 1]).to_bytes(4, "big")
        if random.random() < 0.02:
            kind, flags = random.randrange(12), random.randrange(256)
        if random.random() < 0.02:
            payload = payload[1:]
        data = len(payload).to_bytes(3, "big") + bytes([kind, flags])
        return data + stream_id.to_bytes(4, "big") + payload

    def test_random_frames(self) -> None:
        async def pieces(request: Request) -> Response:
            await request.stream.read()

            async def body(writer: BodyWriter) -> None:
                await writer.write(b"abc")
                await deferLater(self.clock, 1)

            return Response(200, body)

        self.results["/"] = pieces
        self.streamed.add("/")
        for seed in range(300):
            random = Random(seed)
            connection = HTTP2Connection(self.factory)
            wire = Wire()
            wire.protocol = connection
            connection.makeConnection(wire)
            connection.dataReceived(PREFACE + SettingsFrame(0).serialize())
            newest = -1
            for _ in range(random.randrange(1, 60)):
                if wire.ended:
                    break
                frame = self.frame(random, newest)
                newest += 2 * (frame[3] == 1)
                connection.dataReceived(frame)
                self.clock.advance(random.choice([0, 0, 0, 0.3, 2]))
            wire.abortConnection()
            self.clock.advance(0)
            self.assertEqual(self.flushLoggedErrors(), [], seed)
            self.assertEqual(connection.streams, {})
        self.assertEqual(self.factory.connections, set())
        self.clock.advance(20)
        self.assertEqual(len(self.wheel), 0)
        self.assertGreater(len(self.requests), 400)
