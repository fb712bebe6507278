import inspect
import struct
from itertools import pairwise
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.websocket import ServerFactory, WebSocketLimits, encode_frame
from pelotontx.net.wheel import Wheel
from tests.support.websocket_peer import (
    BINARY,
    CLOSE,
    MASK,
    PING,
    PONG,
    TEXT,
    Conversation,
    Reactor,
    ServerTestCase,
    Transport,
    close_frame,
    decode,
    frame,
    request,
)


class MessageTests(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def test_whole_messages_arrive_in_order(self) -> None:
        frames = [
            frame(TEXT, b"one"),
            frame(BINARY, b"\xff"),
            frame(TEXT),
            frame(TEXT, b"\xc3\xa4"),
        ]
        expected = [(TEXT, b"one"), (BINARY, b"\xff"), (TEXT, b""), (TEXT, b"\xc3\xa4")]
        self.receive(*frames)
        self.receive(b"".join(frames))
        self.assertEqual(self.messages(), expected * 2)

    def test_every_length_encoding(self) -> None:
        lengths = (0, 1, 125, 126, 127, 65535, 65536, 200_000)
        for length in lengths:
            data = frame(BINARY, b"x" * length)
            self.receive(data)
            self.receive(data[:1], data[1:7], data[7:100], data[100:])
        received = [len(payload) for _, payload in self.messages()]
        self.assertEqual(received, [length for length in lengths for _ in range(2)])

    def test_fragments_are_one_message_and_control_frames_come_between(self) -> None:
        self.receive(
            frame(TEXT, b"a\xc3", fin=False)
            + frame(PING, b"now")
            + frame(0, b"\xa4", fin=False)
            + frame(PONG, b"unasked")
            + frame(0, b"")
            + frame(BINARY, b"next")
        )
        self.assertEqual(self.messages(), [(TEXT, b"a\xc3\xa4"), (BINARY, b"next")])
        self.assertEqual(self.sent(), [(PONG, b"now")])

    def test_plain_messages_behind_others_are_read_the_fast_way_again(self) -> None:
        self.receive(frame(PING) + frame(TEXT, b"x") * 1000)
        self.assertEqual(self.messages(), [(TEXT, b"x")] * 1000)
        self.assertNotIn("utf8validator", vars(self.connection))

    def test_pings_are_answered(self) -> None:
        self.receive(frame(PING) + frame(PING, b"x" * 125))
        self.assertEqual(self.sent(), [(PONG, b""), (PONG, b"x" * 125)])

    def test_what_is_sent(self) -> None:
        self.connection.send_text(b"\xc3\xa4")
        self.connection.send_binary(b"b" * 300)
        self.connection.send_frame(encode_frame(b"c" * 70_000))
        expected = [(TEXT, b"\xc3\xa4"), (BINARY, b"b" * 300), (TEXT, b"c" * 70_000)]
        self.assertEqual(self.sent(), expected)

    def test_encoded_lengths(self) -> None:
        for length, head in (
            (125, b"\x81\x7d"),
            (126, b"\x81\x7e\x00\x7e"),
            (65535, b"\x81\x7e\xff\xff"),
            (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ):
            self.assertEqual(encode_frame(b"x" * length), head + b"x" * length)

    def test_a_handler_that_fails_is_1011_and_logged(self) -> None:
        self.conversation.on_text = lambda payload: 1 // 0
        self.receive(frame(TEXT, b"one") + frame(TEXT, b"two"))
        self.assertCloses(1011, b"internal error")
        self.assertEqual(self.messages(), [(TEXT, b"one")])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_handler_that_fails_in_fragments_is_1011_too(self) -> None:
        self.conversation.on_text = lambda payload: 1 // 0
        self.receive(frame(TEXT, b"one", fin=False) + frame(0, b"two") + frame(TEXT, b"three"))
        self.assertCloses(1011)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ViolationTests(ServerTestCase):
    """Each is answered with one close frame, and the connection ends when the peer agrees."""

    def assertFails(self, code: int, *pieces: bytes) -> None:
        self.open()
        self.receive(*pieces)
        self.assertCloses(code)
        self.receive(frame(TEXT, b"ignored") + close_frame(code))
        self.assertEqual((self.messages(), self.sent()), ([], []))
        self.assertIsDropped()
        self.lose()
        self.assertEqual(self.conversation.ends, [code])

    def test_breaking_the_framing_is_1002(self) -> None:
        for pieces in (
            [frame(TEXT, b"x", mask=b"")],
            [frame(PING, b"x", mask=b"")],
            [frame(TEXT, b"x", rsv=4)],
            [frame(TEXT, b"x", rsv=2)],
            [frame(TEXT, b"x", rsv=1)],
            [frame(PING, b"x", rsv=4)],
            [frame(TEXT, b"x" * 125, length_bytes=2)],
            [frame(BINARY, b"x" * 65535, length_bytes=8)],
            [frame(0, b"x")],
            [frame(0, b"x", fin=False)],
            [frame(TEXT, b"x", fin=False), frame(TEXT, b"y")],
            [frame(TEXT, b"x", fin=False), frame(BINARY, b"y", fin=False)],
            [frame(PING, b"x", fin=False)],
            [frame(PING, b"x" * 126)],
            [frame(CLOSE, b"x" * 126)],
        ):
            self.assertFails(1002, *pieces)
            self.assertFails(1002, b"".join(pieces))

    def test_reserved_opcodes_are_1002(self) -> None:
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
            self.assertFails(1002, frame(opcode, b"x"))

    def test_bad_close_frames_are_1002_and_the_end(self) -> None:
        for payload in (b"\x03", *(struct.pack("!H", code) for code in (0, 999, 1005, 1006, 5000))):
            self.open()
            self.receive(frame(CLOSE, payload))
            self.assertCloses(1002)
            self.assertIsDropped()
            self.lose()
            self.assertEqual(self.conversation.ends, [1002])

    def test_close_reason_that_is_no_utf8_is_1007(self) -> None:
        self.open()
        self.receive(close_frame(1000, b"\xff"))
        self.assertCloses(1007)

    def test_invalid_utf8_is_1007(self) -> None:
        for payload in (b"\xff", b"abc\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
            data = frame(TEXT, payload)
            self.assertFails(1007, data)
            self.assertFails(1007, *(data[n : n + 1] for n in range(len(data))))
            for cut in range(len(payload)):
                first = frame(TEXT, payload[:cut], fin=False)
                self.assertFails(1007, first + frame(0, payload[cut:]))

    def test_invalid_utf8_is_noticed_before_the_message_ends(self) -> None:
        self.open()
        self.receive(frame(TEXT, b"x" * 1000 + b"\xff" + b"y" * 1000)[:1100])
        self.assertCloses(1007)

    def test_a_long_message_is_1009_as_soon_as_it_is_announced(self) -> None:
        for data in (
            frame(TEXT, b"x" * 200_001),
            b"\x81\xff" + (200_001).to_bytes(8, "big") + MASK,
            b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + MASK,
        ):
            self.open()
            self.receive(data[:14])
            self.assertCloses(1009)

    def test_a_short_limit_holds_on_every_path(self) -> None:
        self.make(WebSocketLimits(message_limit_bytes=10))
        self.assertFails(1009, frame(TEXT, b"x" * 11))
        self.assertFails(1009, frame(BINARY, b"x" * 200))
        self.assertFails(1009, frame(TEXT, b"x" * 6, fin=False), frame(0, b"x" * 5))
        self.open()
        self.receive(frame(TEXT, b"x" * 6, fin=False) + frame(0, b"x" * 4) + frame(TEXT, b"y" * 10))
        self.assertEqual(self.messages(), [(TEXT, b"x" * 10), (TEXT, b"y" * 10)])

    def test_too_many_fragments_are_1009(self) -> None:
        first, more = frame(TEXT, b"x", fin=False), frame(0, b"", fin=False)
        self.assertFails(1009, first + more * 1024)
        self.open()
        self.receive(first + more * 1022 + frame(0, b"y"))
        self.assertEqual(self.messages(), [(TEXT, b"xy")])

    def test_pieces_of_reads_are_no_fragments(self) -> None:
        self.open()
        data = frame(TEXT, b"x" * 5000, fin=False) + frame(0, b"y" * 5000)
        self.receive(*(data[n : n + 1] for n in range(len(data))))
        self.assertEqual(self.messages(), [(TEXT, b"x" * 5000 + b"y" * 5000)])

    def test_a_slow_frame_does_not_pile_up_pieces(self) -> None:
        self.open()
        self.receive(b"\x82\xfe\xff\xff" + MASK)
        for _ in range(3000):
            self.receive(b"x")
        self.assertLess(len(self.connection.frame_data), 300)

    def test_nothing_is_kept_after_a_failure(self) -> None:
        for opcode in (TEXT, PING, 3):
            self.open()
            self.receive(bytes((0x80 | opcode, 0xFF)) + (2**62).to_bytes(8, "big") + MASK)
            self.receive(*[b"x" * 65536] * 20)
            self.assertEqual(len(self.sent()), 1)
            kept = [v for v in vars(self.connection).values() if isinstance(v, bytes | list)]
            self.assertLess(sum(map(len, kept)), 1000)

    def test_a_violation_during_our_closing_ends_it(self) -> None:
        self.open()
        self.connection.close(1001, "bye")
        self.receive(frame(3, b"x"))
        self.assertCloses(1001)
        self.assertIsDropped()

    def test_a_violation_is_logged_once_as_the_peers_fault(self) -> None:
        self.open()
        with capturedLogs() as events:
            self.receive(frame(3, b"x") + frame(4, b"x", mask=b"") + frame(TEXT, b"\xff"))
            self.receive(close_frame(1002))
            self.lose()
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn])
        self.assertEqual(events[0]["code"], 1002)


class ClosingTests(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def test_the_peers_close_is_echoed_and_told(self) -> None:
        self.receive(frame(TEXT, b"last") + close_frame(4321, b"enough") + frame(TEXT, b"late"))
        self.assertEqual(self.messages(), [(TEXT, b"last")])
        self.assertCloses(4321, b"enough")
        self.assertIsDropped()
        self.lose()
        self.assertEqual(self.conversation.ends, [4321])

    def test_a_close_without_a_code_is_1005(self) -> None:
        self.receive(frame(CLOSE))
        self.assertEqual(self.sent(), [(CLOSE, b"")])
        self.lose()
        self.assertEqual(self.conversation.ends, [1005])

    def test_an_end_without_a_close_is_1006(self) -> None:
        self.lose()
        self.assertEqual(self.conversation.ends, [1006])

    def test_our_close_waits_for_the_peers(self) -> None:
        self.connection.close(1001, "bye")
        self.connection.close(1000, "twice")
        self.assertCloses(1001, b"bye")
        self.assertFalse(self.transport.disconnecting)
        self.receive(frame(PING, b"x") + close_frame(1001))
        self.assertEqual(self.sent(), [])
        self.assertIsDropped()
        self.lose()
        self.assertEqual(self.conversation.ends, [1001])

    def test_our_close_is_forced_after_two_seconds(self) -> None:
        self.connection.close(1001, "bye")
        self.clock.advance(1.9)
        self.assertFalse(self.transport.is_aborted)
        self.clock.advance(0.3)
        self.assertTrue(self.transport.is_aborted)
        self.lose(reason=ConnectionAborted())
        self.assertEqual(self.conversation.ends, [1006])

    def test_a_peer_that_closes_and_does_not_read_is_dropped_after_two_seconds(self) -> None:
        self.transport.room = 0
        self.receive(close_frame(1000))
        self.receive(*[b"x" * 65536] * 10)
        self.assertEqual(self.connection.data, b"")
        self.clock.advance(1.9)
        self.assertIsDropped()
        self.clock.advance(0.3)
        self.assertTrue(self.transport.is_aborted)

    def test_a_long_reason_is_cut_between_characters(self) -> None:
        self.connection.close(1001, "ä" * 100)
        self.assertCloses(1001, "ä".encode() * 61)

    def test_nothing_is_sent_or_delivered_after_our_close(self) -> None:
        self.conversation.on_text = lambda payload: self.connection.close(4000, "enough")
        fragments = frame(TEXT, b"f", fin=False) + frame(0, b"g")
        self.receive(frame(TEXT, b"one") + frame(TEXT, b"two") + fragments + frame(BINARY, b"\xff"))
        self.receive(frame(TEXT, b"three"))
        self.connection.send_text(b"late")
        self.assertEqual(self.messages(), [(TEXT, b"one")])
        self.assertCloses(4000, b"enough")

    def test_nothing_happens_after_the_end(self) -> None:
        self.lose()
        self.connection.send_text(b"late")
        self.connection.close(1000, "late")
        self.assertEqual((self.sent(), self.conversation.ends), ([], [1006]))

    def test_a_conversation_that_cannot_end_is_logged_and_forgotten(self) -> None:
        self.conversation.connection_lost = lambda code: 1 // 0  # type: ignore[method-assign]
        self.lose()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_close_all_tells_when_the_last_is_gone(self) -> None:
        first, waiting = self.transport, []
        self.open()
        self.connect()  # its request never comes
        self.factory.close_all(1001, "bye", lambda: waiting.append(1))
        self.assertTrue(self.transport.is_aborted)
        self.lose()
        for transport in (first, self.transports[1]):
            self.assertEqual(waiting, [])
            self.assertEqual(decode(transport.take()), [(CLOSE, b"\x03\xe9bye")])
            self.lose(transport)
        self.assertEqual(waiting, [1])

    def test_close_all_of_none_tells_at_once(self) -> None:
        self.lose()
        waiting: list[int] = []
        self.factory.close_all(1001, "bye", lambda: waiting.append(1))
        self.assertEqual(waiting, [1])


class PingTests(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def wait_for_ping(self) -> bytes:
        """Lets time pass, at most 25 s and a fifth, until the peer gets one."""
        for _ in range(302):
            self.clock.advance(0.1)
            if frames := self.sent():
                [(opcode, payload)] = frames
                self.assertEqual(opcode, PING)
                return payload
        raise AssertionError("no ping")

    def test_a_silent_peer_is_dropped_and_told_as_1006(self) -> None:
        self.wait_for_ping()
        self.clock.advance(10.2)
        self.assertTrue(self.transport.is_aborted)
        self.lose(reason=ConnectionAborted())
        self.assertEqual(self.conversation.ends, [1006])

    def test_a_pong_and_any_traffic_prove_life(self) -> None:
        big = b"\x82\xff" + (100_000).to_bytes(8, "big") + MASK
        for answer in (None, frame(TEXT, b"hello"), big, b"x" * 100, b"x"):
            payload = self.wait_for_ping()
            self.receive(frame(PONG, payload) if answer is None else answer)
            self.clock.advance(10.2)
            self.assertFalse(self.transport.is_aborted)

    def test_pings_are_spread_by_a_fifth(self) -> None:
        intervals = [self.factory.buildProtocol(None).autoPingInterval for _ in range(200)]
        self.assertTrue(all(20 <= interval <= 30 for interval in intervals))
        self.assertGreater(max(intervals) - min(intervals), 5)

    def test_no_interval_is_no_ping(self) -> None:
        self.open(WebSocketLimits(ping_interval_s=0))
        self.clock.advance(100)
        self.assertEqual(self.sent(), [])


class OptionTests(SynchronousTestCase):
    #: What Autobahn's handshake and its sending would look at; both are ours.
    ELSEWHERE = frozenset(
        (
            "versions",
            "webStatus",
            "tcpNoDelay",
            "perMessageCompressionAccept",
            "serveFlashSocketPolicy",
            "flashSocketPolicy",
            "allowedOrigins",
            "allowNullOrigin",
            "maxConnections",
            "trustXForwardedFor",
        )
    )

    def setUp(self) -> None:
        limits = WebSocketLimits(
            message_limit_bytes=1111,
            open_timeout_s=2,
            close_timeout_s=3,
            ping_interval_s=40,
            pong_timeout_s=5,
        )
        self.factory = ServerFactory(
            Reactor(), wheel=Wheel(Clock()), accept=lambda _: (None, Conversation), limits=limits
        )
        self.connection = self.factory.buildProtocol(None)

    def test_every_option_about_frames_is_in_effect(self) -> None:
        expected = {
            "utf8validateIncoming": True,
            "requireMaskedClientFrames": True,
            "maskServerFrames": False,
            "applyMask": True,
            "maxFramePayloadSize": 1111,
            "maxMessagePayloadSize": 1111,
            "autoFragmentSize": 0,
            "failByDrop": False,
            "echoCloseCodeReason": True,
            "openHandshakeTimeout": 2,
            "closeHandshakeTimeout": 3,
            "autoPingTimeout": 5,
            "autoPingSize": 12,
            "autoPingRestartOnAnyTraffic": True,
        }
        for name, value in expected.items():
            self.assertEqual(getattr(self.connection, name), value, name)
        self.assertTrue(32 <= self.connection.autoPingInterval <= 48)
        known = inspect.signature(self.factory.setProtocolOptions).parameters.keys()
        self.assertEqual(known - expected.keys() - self.ELSEWHERE, {"autoPingInterval"})

    def test_nothing_is_compressed_before_it_is_agreed_on(self) -> None:
        self.assertIsNone(self.connection._perMessageCompress)

    def test_a_connection_holds_little_of_its_own(self) -> None:
        self.assertEqual(vars(self.connection).keys(), {"factory", "autoPingInterval"})

    def test_connections_share_nothing_that_changes(self) -> None:
        shared = vars(type(self.connection))
        immutable = int | float | str | bytes | tuple | staticmethod | None
        mutable = {name for name, value in shared.items() if not isinstance(value, immutable)}
        statistics = {"trafficStats", "send_queue"}  # the latter stays empty
        options = set(self.connection.CONFIG_ATTRS)
        self.assertEqual({name for name in mutable - options if "__" not in name}, statistics)

    def test_an_option_that_autobahn_does_not_take_is_noticed(self) -> None:
        class Deaf(ServerFactory):
            def setProtocolOptions(self, **options: Any) -> None:
                super().setProtocolOptions(**options | {"failByDrop": True})

        with self.assertRaises(RuntimeError) as caught:
            Deaf(Reactor(), wheel=Wheel(Clock()), accept=lambda _: (None, Conversation))
        self.assertIn("failByDrop", str(caught.exception))


class PatientTransport(Transport):
    """Sends what was written before it aborts: Autobahn aborts behind some of its close frames."""

    def abortConnection(self) -> None:
        self.flush()
        super().abortConnection()


class Stock(WebSocketServerProtocol):
    """Autobahn alone, with the same options."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[int, bytes]] = []

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.messages.append((BINARY if isBinary else TEXT, payload))


def stock_protocol(reactor: Reactor, limit: int) -> Stock:
    factory = WebSocketServerFactory(reactor=reactor, protocols=["juggler.0"])
    factory._batched_timer = Wheel(Clock())
    factory.setProtocolOptions(
        maxFramePayloadSize=limit,
        maxMessagePayloadSize=limit,
        failByDrop=False,
        echoCloseCodeReason=True,
        allowNullOrigin=True,
    )
    protocol = Stock()
    protocol.factory = factory
    protocol.makeConnection(PatientTransport(reactor))
    protocol.dataReceived(request(Sec_WebSocket_Protocol=None))
    protocol.transport.take()
    return protocol


LIMIT = 300

texts = st.text(max_size=20).map(str.encode)
payloads = texts | st.binary(max_size=20) | st.integers(100, LIMIT + 20).map(lambda n: b"x" * n)
#: Mostly right, and now and then wrong in one of many ways.
frames = st.one_of(
    st.builds(frame, st.sampled_from((TEXT, BINARY)), texts),
    st.builds(frame, st.sampled_from((TEXT, BINARY)), payloads),
    st.builds(frame, st.sampled_from((TEXT, BINARY, 0)), texts, fin=st.just(False)),
    st.builds(frame, st.just(0), payloads),
    st.builds(frame, st.sampled_from((PING, PONG)), st.binary(max_size=130)),
    st.builds(frame, st.just(CLOSE), st.binary(max_size=10)),
    st.builds(frame, st.integers(0, 15), texts, rsv=st.integers(0, 7), fin=st.booleans()),
    st.builds(frame, st.just(TEXT), texts, mask=st.sampled_from((b"", MASK))),
    st.builds(frame, st.just(BINARY), payloads, length_bytes=st.sampled_from((2, 8))),
)


class EquivalenceTests(ServerTestCase):
    """What comes out does not depend on how it comes in, and is what Autobahn makes of it."""

    limits = WebSocketLimits(message_limit_bytes=LIMIT, ping_interval_s=0)

    def outcome(self, pieces: list[bytes]) -> tuple[list[Any], list[Any]]:
        self.open()
        self.receive(*pieces)
        return self.messages(), self.sent()

    def stock_outcome(self, pieces: list[bytes]) -> tuple[list[Any], list[Any]]:
        protocol = stock_protocol(self.reactor, LIMIT)
        transport = protocol.transport
        sent: list[tuple[int, bytes]] = []
        for data in pieces:
            if not (transport.disconnecting or transport._aborting):
                protocol.dataReceived(data)
                sent += decode(transport.take())
        return protocol.messages, sent

    STREAM = (
        frame(TEXT, b"hello")
        + frame(PING, b"p")
        + frame(BINARY, b"\xff" * 130)
        + frame(TEXT, "ä€😀".encode())
        + frame(TEXT, b"a\xe2\x82", fin=False)
        + frame(PONG)
        + frame(0, b"\xac", fin=False)
        + frame(0)
        + frame(TEXT)
        + close_frame(4000, b"bye")
    )

    def test_every_cut_of_a_stream_in_two_gives_the_same(self) -> None:
        expected = self.stock_outcome([self.STREAM])
        self.assertEqual(len(expected[0]), 5)
        self.assertEqual(self.outcome([self.STREAM]), expected)
        for cut in range(1, len(self.STREAM)):
            outcome = self.outcome([self.STREAM[:cut], self.STREAM[cut:]])
            self.assertEqual(outcome, expected, cut)

    def test_byte_by_byte_gives_the_same(self) -> None:
        pieces = [self.STREAM[n : n + 1] for n in range(len(self.STREAM))]
        self.assertEqual(self.outcome(pieces), self.stock_outcome([self.STREAM]))

    @given(st.lists(frames, max_size=12), st.lists(st.integers(0, 400), max_size=12))
    @settings(max_examples=500, deadline=None)
    @example([frame(TEXT, b"\xff"), close_frame(1007)], [])
    def test_any_frames_in_any_pieces_are_what_autobahn_makes_of_them(
        self, sequence: list[bytes], cuts: list[int]
    ) -> None:
        stream = b"".join(sequence)
        places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
        pieces = [stream[start:end] for start, end in pairwise(places)]
        self.assertEqual(self.outcome(pieces), self.stock_outcome(pieces))
