import base64
import hashlib
import struct

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import Disconnected, LocalProtocolError, SlowConsumer
from pelotontx.net.websocket.client import ConnectionFactory, Options
from pelotontx.net.wheel import Wheel

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Transport(StringTransport):
    """Counts what is asked of it."""

    aborted = 0

    def abortConnection(self):
        self.aborted += 1

    def unregisterProducer(self):
        self.producer = None  # as TCP: harmless when there is none


def frame(opcode, payload, fin=True):
    """An unmasked frame, as servers send them."""
    head = bytes((opcode | (0x80 if fin else 0),))
    if len(payload) < 126:
        return head + bytes((len(payload),)) + payload
    return head + b"\x7e" + struct.pack("!H", len(payload)) + payload


def frames(data):
    """Opcode and payload of each masked frame."""
    found = []
    while data:
        assert data[1] & 0x80, "a client masks"
        length, start = data[1] & 0x7F, 2
        if length == 126:
            length, start = struct.unpack("!H", data[2:4])[0], 4
        mask = data[start : start + 4]
        masked = data[start + 4 : start + 4 + length]
        found.append((data[0] & 0x0F, bytes(b ^ mask[n % 4] for n, b in enumerate(masked))))
        data = data[start + 4 + length :]
    return found


class ConnectionTestCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.messages = []
        self.ends = []
        self.make()

    def make(self, url="ws://server.test:8080/ws", options=None, headers=None):
        self.factory = ConnectionFactory(
            self.clock,
            url,
            wheel=Wheel(self.clock),
            on_message=self.messages.append,
            on_close=self.ends.append,
            subprotocols=["juggler.0"],
            headers=headers or {},
            options=options or Options(),
        )
        self.transport = Transport()
        self.connection = self.factory.buildProtocol(None)
        self.connection.makeConnection(self.transport)

    def answer(self, more=b"", protocol=b"juggler.0"):
        request = self.transport.value()
        self.transport.clear()
        key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        chosen = b"Sec-WebSocket-Protocol: " + protocol + b"\r\n" if protocol else b""
        self.connection.dataReceived(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n" + chosen + b"\r\n" + more
        )
        return request

    def lose(self):
        self.connection.connectionLost(Failure(ConnectionDone()))

    def reason(self):
        """Why the connection could not be opened."""
        return self.failureResultOf(self.connection.opened, Disconnected).value.reason


class HandshakeTests(ConnectionTestCase):
    def test_request_names_host_subprotocol_and_headers(self):
        self.make(headers={"Authorization": "Bearer x"})
        request = self.answer()
        self.assertTrue(request.startswith(b"GET /ws HTTP/1.1\r\n"))
        for line in (
            b"Host: server.test:8080",
            b"Sec-WebSocket-Protocol: juggler.0",
            b"Authorization: Bearer x",
        ):
            self.assertIn(line + b"\r\n", request)
        self.assertNotIn(b"Extensions", request)
        self.assertIs(self.successResultOf(self.connection.opened), self.connection)

    def test_ipv6_host_keeps_its_brackets(self):
        self.make(url="ws://[::1]:8080/ws")
        self.assertIn(b"Host: [::1]:8080\r\n", self.transport.value())

    def test_message_in_the_same_read_as_the_answer_is_delivered(self):
        self.answer(frame(1, b"hi"))
        self.assertEqual(self.messages, [b"hi"])

    def test_refusal_tells_the_http_status(self):
        self.connection.dataReceived(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(self.transport.aborted, 1)
        self.lose()
        self.assertIn("[403]: Forbidden", self.reason())
        self.assertEqual(self.ends, [])

    def test_server_without_the_subprotocol_is_refused(self):
        self.answer(protocol=b"")
        self.assertEqual(self.transport.aborted, 1)
        self.lose()
        self.assertEqual(self.reason(), "the server does not speak juggler.0")

    def test_server_that_does_not_answer_is_given_up(self):
        self.clock.advance(5.2)
        self.assertEqual(self.transport.aborted, 1)
        self.lose()
        self.assertIn("timeout", self.reason())

    def test_head_without_an_end_is_not_buffered(self):
        self.connection.dataReceived(b"HTTP/1.1 101 x\r\nA: " + b"b" * 20_000)
        self.assertEqual(self.transport.aborted, 1)
        self.lose()
        self.assertEqual(self.reason(), "the answer's head is too long")

    def test_malformed_head_is_an_error_and_nothing_is_logged(self):
        for head in (b"\xff\xfe\r\n\r\n", b"HTTP/1.1 101\r\nno colon\r\n\r\n", b"\r\n\r\n"):
            self.make()
            self.connection.dataReceived(head)
            self.assertEqual(self.transport.aborted, 1)
            self.lose()
            self.reason()

    def test_connection_lost_during_the_handshake_is_an_error(self):
        self.lose()
        self.assertEqual(self.reason(), "the server dropped the connection")

    def test_cancelling_drops_tcp(self):
        self.connection.opened.cancel()
        self.assertEqual(self.transport.aborted, 1)
        self.failureResultOf(self.connection.opened)
        self.lose()

    def test_unix_sockets_are_not_supported(self):
        with self.assertRaises(LocalProtocolError):
            self.make(url="ws://unix:/run/x")


class OpenTests(ConnectionTestCase):
    def setUp(self):
        super().setUp()
        self.answer()
        self.successResultOf(self.connection.opened)

    def test_messages_are_sent_masked(self):
        self.connection.send(b"hi")
        self.assertEqual(frames(self.transport.value()), [(1, b"hi")])

    def test_messages_of_every_length_are_sent_whole(self):
        for length in (0, 1, 125, 126, 65535):
            self.transport.clear()
            self.connection.send(b"x" * length)
            self.assertEqual(frames(self.transport.value()), [(1, b"x" * length)])
        self.transport.clear()
        self.connection.send(b"x" * 65536)
        self.assertEqual(self.transport.value()[:10], b"\x81\xff" + (65536).to_bytes(8, "big"))

    def test_every_split_of_what_was_read_gives_the_same_messages(self):
        messages = [b"a", "ü".encode(), b"x" * 125, b"y" * 126, b"", b"z" * 300]
        data = b"".join(frame(1, message) for message in messages)
        data = data[:3] + frame(9, b"ping") + data[3:]
        for split in range(len(data) + 1):
            self.connection.dataReceived(data[:split])
            self.connection.dataReceived(data[split:])
            self.assertEqual(self.messages, messages)
            self.messages.clear()

    def test_text_that_is_not_utf8_closes_with_1007(self):
        self.connection.dataReceived(frame(1, b"a") + frame(1, b"\xff\xff"))
        self.assertEqual(self.messages, [b"a"])
        self.assertEqual(frames(self.transport.value())[0][1][:2], struct.pack("!H", 1007))

    def test_nothing_is_delivered_behind_a_close(self):
        self.factory.on_message = lambda message: self.connection.close()
        self.connection.dataReceived(frame(1, b"a"))
        self.factory.on_message = self.messages.append
        self.connection.dataReceived(frame(1, b"b"))
        self.assertEqual(self.messages, [])

    def test_message_in_fragments_is_delivered_whole(self):
        self.connection.dataReceived(frame(1, b"a", fin=False) + frame(0, b"b", fin=False))
        self.connection.dataReceived(frame(0, b"c"))
        self.assertEqual(self.messages, [b"abc"])

    def test_binary_message_closes_with_1003(self):
        self.connection.dataReceived(frame(2, b"a"))
        self.assertEqual(frames(self.transport.value())[0][1][:2], struct.pack("!H", 1003))
        self.assertEqual(self.messages, [])

    def test_too_long_message_closes_with_1009(self):
        self.make(options=Options(limit_bytes=1000))
        self.answer()
        self.connection.dataReceived(frame(1, b"a" * 1001))
        self.assertEqual(frames(self.transport.value())[0][1][:2], struct.pack("!H", 1009))
        self.assertEqual(self.messages, [])

    def test_failing_receiver_closes_with_1011_and_is_logged(self):
        self.factory.on_message = lambda message: 1 / 0
        self.connection.dataReceived(frame(1, b"a"))
        self.assertEqual(frames(self.transport.value())[0][1][:2], struct.pack("!H", 1011))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_peer_that_does_not_read_is_not_buffered_for(self):
        self.make(options=Options(outbound_limit_bytes=10))
        self.answer()
        self.transport.producer.pauseProducing()
        self.connection.send(b"0123456789")
        with self.assertRaises(SlowConsumer):
            self.connection.send(b"0")
        self.transport.producer.resumeProducing()
        self.connection.send(b"0")

    def test_code_and_reason_of_the_server_are_told(self):
        self.connection.dataReceived(frame(8, struct.pack("!H", 4008) + b"slow consumer"))
        self.lose()
        (end,) = self.ends
        self.assertEqual((end.close_code, end.reason), (4008, "slow consumer"))

    def test_close_without_a_code_is_1005(self):
        self.connection.dataReceived(frame(8, b""))
        self.lose()
        self.assertEqual(self.ends[0].close_code, 1005)

    def test_cut_connection_is_1006(self):
        self.lose()
        self.assertEqual(self.ends[0].close_code, 1006)

    def test_closing_waits_for_the_server(self):
        closed = self.connection.close(1000, "bye")
        self.assertEqual(frames(self.transport.value()), [(8, b"\x03\xe8bye")])
        self.connection.dataReceived(frame(1, b"late"))
        self.connection.dataReceived(frame(8, b"\x03\xe8"))
        self.assertNoResult(closed)
        self.lose()
        self.successResultOf(closed)
        self.assertEqual(self.messages, [])
        self.assertEqual((self.ends[0].close_code, self.ends[0].reason), (1000, "bye"))
        self.successResultOf(self.connection.close())

    def test_server_that_does_not_answer_a_close_is_dropped(self):
        self.connection.close()
        self.clock.advance(2.2)
        self.assertEqual(self.transport.aborted, 1)

    def test_server_that_keeps_tcp_after_closing_is_dropped(self):
        self.connection.dataReceived(frame(8, b"\x03\xe8"))
        self.assertEqual(self.transport.aborted, 0)
        self.clock.advance(2.2)
        self.assertEqual(self.transport.aborted, 1)

    def test_server_that_answers_a_close_and_keeps_tcp_is_dropped(self):
        self.connection.close()
        self.connection.dataReceived(frame(8, b"\x03\xe8"))
        self.clock.advance(2.2)
        self.assertEqual(self.transport.aborted, 1)

    def test_silent_server_is_pinged_and_dropped(self):
        self.clock.advance(25.2)
        self.assertEqual(frames(self.transport.value())[0][0], 9)
        self.clock.advance(10.2)
        self.assertEqual(self.transport.aborted, 1)

    def test_server_that_answers_pings_is_kept(self):
        for _ in range(5):
            self.transport.clear()
            self.clock.advance(25.2)
            ((opcode, payload),) = frames(self.transport.value())
            self.assertEqual(opcode, 9)
            self.connection.dataReceived(frame(10, payload))
        self.assertEqual(self.transport.aborted, 0)

    def test_sending_on_a_closing_connection_is_refused(self):
        self.connection.close()
        with self.assertRaises(Disconnected):
            self.connection.send(b"hi")

    def test_every_option_is_set(self):
        connection = self.connection
        self.assertEqual(
            (
                connection.failByDrop,
                connection.maskClientFrames,
                connection.acceptMaskedServerFrames,
                connection.maxMessagePayloadSize,
                connection.maxFramePayloadSize,
                connection.openHandshakeTimeout,
                connection.closeHandshakeTimeout,
                connection.autoPingInterval,
                connection.autoPingTimeout,
                connection.perMessageCompressionOffers,
            ),
            (False, True, False, 2**21, 2**21, 5.0, 2.0, 25.0, 10.0, []),
        )
