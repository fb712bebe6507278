from pelotontx.net.websocket import WebSocketLimits
from tests.support.websocket_peer import (
    BINARY,
    MASK,
    PING,
    PONG,
    TEXT,
    ServerTestCase,
    frame,
)


class SlowConsumerTests(ServerTestCase):
    limits = WebSocketLimits(outbound_limit_bytes=1000_000)

    def setUp(self) -> None:
        super().setUp()
        self.open()

    def fill(self, count: int) -> None:
        for _ in range(count):
            self.connection.send_binary(b"x" * 9_996)  # 10 000 with its head

    def test_past_the_limit_it_is_closed_with_4008(self) -> None:
        self.transport.room = 0
        self.fill(100)
        self.assertEqual(self.factory.slow_consumers, 0)
        self.fill(50)
        self.assertEqual(self.factory.slow_consumers, 1)
        self.transport.drain()
        reason = b"slow consumer: more than 1000000 bytes unread"
        self.assertClosesAfter([(BINARY, b"x" * 9_996)] * 100, 4008, reason)

    def test_it_is_aborted_when_it_does_not_read_the_close_either(self) -> None:
        self.transport.room = 0
        self.fill(101)
        self.clock.advance(2.2)
        self.assertTrue(self.transport.is_aborted)

    def test_what_was_read_does_not_count(self) -> None:
        self.transport.room = 0
        for _ in range(5):
            self.fill(99)
            self.reactor.turn()
            self.transport.drain()
            self.transport.room = 0
        self.assertEqual(len(self.sent()), 495)
        self.assertEqual(self.factory.slow_consumers, 0)

    def test_a_peer_that_reads_steadily_may_lag_for_ever(self) -> None:
        self.transport.room = 0
        self.fill(90)
        self.reactor.turn()
        for _ in range(100):
            self.transport.room = 50_000
            self.transport.doWrite()
            self.fill(5)
            self.reactor.turn()
        self.assertEqual(self.factory.slow_consumers, 0)

    def test_much_in_one_turn_is_not_the_peers_fault(self) -> None:
        self.fill(500)
        self.assertEqual(len(self.sent()), 500)
        self.assertEqual(self.factory.slow_consumers, 0)

    def test_pongs_count(self) -> None:
        self.open(WebSocketLimits(outbound_limit_bytes=100_000))
        self.transport.room = 0
        for _ in range(20):
            self.receive(frame(PING, b"x" * 125) * 100)
        self.assertEqual((self.factory.slow_consumers, self.factory.floods), (1, 0))


class FloodTests(ServerTestCase):
    """Frames that are no messages: at most so many within one second."""

    limits = WebSocketLimits(frame_rate=100)

    def setUp(self) -> None:
        super().setUp()
        self.open()

    def assertIsAFlood(self, frames: bytes, pongs: int = 0) -> None:
        self.receive(frames)
        self.assertClosesAfter([(PONG, b"")] * pongs, 1008, b"too many frames")
        self.assertEqual(self.factory.floods, 1)

    def test_pings(self) -> None:
        self.assertIsAFlood(frame(PING) * 101, pongs=100)

    def test_pongs(self) -> None:
        self.assertIsAFlood(frame(PONG) * 101)

    def test_fragments_of_one_message(self) -> None:
        self.assertIsAFlood(frame(TEXT, fin=False) + frame(0, fin=False) * 100)

    def test_fragments_of_many_messages(self) -> None:
        self.assertIsAFlood((frame(TEXT, fin=False) + frame(0)) * 51)

    def test_whole_messages_do_not_count(self) -> None:
        self.receive(*[piece for _ in range(300) for piece in (b"\x81\x81", MASK + b"x")])
        self.assertEqual((len(self.messages()), self.factory.floods), (300, 0))

    def test_a_second_later_as_many_are_fine(self) -> None:
        for _ in range(5):
            self.receive(frame(PING) * 100)
            self.clock.advance(1)
        self.assertEqual(len(self.sent()), 500)

    def test_another_connection_has_a_rate_of_its_own(self) -> None:
        self.receive(frame(PING) * 100)
        self.open()
        self.receive(frame(PING) * 100)
        self.assertEqual(len(self.sent()), 100)

    def test_who_goes_on_is_dropped(self) -> None:
        self.assertIsAFlood(frame(PONG) * 101)
        self.receive(frame(PONG))
        self.assertIsDropped()

    def test_messages_after_our_close_are_counted_too(self) -> None:
        self.connection.close(4029, "enough")
        self.receive(frame(TEXT, b"x") * 100)
        self.assertFalse(self.transport.disconnecting)
        self.receive(frame(TEXT, b"x"))
        self.assertCloses(4029)
        self.assertIsDropped()
        self.assertEqual(self.factory.floods, 0)

    def test_no_rate_is_any(self) -> None:
        self.open(WebSocketLimits(frame_rate=0))
        self.receive(frame(PING) * 10_000)
        self.assertEqual(len(self.sent()), 10_000)

    def test_nothing_is_kept_of_a_connection_that_is_gone(self) -> None:
        self.receive(frame(PING))
        self.lose()
        self.assertEqual(self.factory._frames, {})
