from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.connection import RedisConnection, ResponseError, SubscriberConnection


class RecordingTransport:
    """Takes what is written; `dataBuffer` is what the kernel has not."""

    disconnecting = False

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...

    def abortConnection(self) -> None:
        self.aborted = True


class ConnectionTests(SynchronousTestCase):
    connection_class: type[RedisConnection] = RedisConnection

    def setUp(self) -> None:
        self.connection: Any = self.connection_class()
        self.connection.factory = Factory()
        self.transport = RecordingTransport()
        self.connection.makeConnection(self.transport)
        self.replies: list[Any] = []

    def lose(self) -> None:
        self.connection.connectionLost(Failure(ConnectionDone()))

    def test_replies_come_in_order_and_as_they_were(self) -> None:
        for _ in range(5):
            self.connection.send(self.replies.append, "GET", "k")
        data = b"$4\r\n0012\r\n:7\r\n$-1\r\n*2\r\n$1\r\na\r\n:1\r\n+QUEUED\r\n"
        for n in range(len(data)):
            self.connection.dataReceived(data[n : n + 1])
        self.assertEqual(self.replies, [b"0012", 7, None, [b"a", 1], b"QUEUED"])
        self.assertEqual((self.connection.waiting, self.connection.replies), (0, 5))

    def test_commands_are_written_with_their_arguments_as_bytes(self) -> None:
        self.connection.send(self.replies.append, "SET", b"\x00\xff", 12)
        self.assertEqual(
            self.transport.written,
            b"*3\r\n$3\r\nSET\r\n$2\r\n\x00\xff\r\n$2\r\n12\r\n",
        )

    def test_an_error_is_a_reply_and_fails_a_deferred(self) -> None:
        self.connection.send(self.replies.append, "X")
        failing: Deferred[Any] = self.connection.execute_command("X")
        self.connection.dataReceived(b"-ERR no\r\n-ERR no\r\n")
        self.assertIsInstance(self.replies[0], ResponseError)
        self.failureResultOf(failing, ResponseError)

    def test_a_lost_connection_fails_what_waits_and_what_comes_after(self) -> None:
        self.connection.send(lambda reply: 1 / 0, "A")
        self.connection.send(self.replies.append, "B")
        self.lose()
        self.connection.send(self.replies.append, "C")
        self.assertEqual([type(reply) for reply in self.replies], [BrokerUnavailable] * 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(self.connection.lost.has_happened)

    def test_one_replys_fault_does_not_take_the_others_along(self) -> None:
        self.connection.send(lambda reply: 1 / 0, "A")
        self.connection.send(self.replies.append, "B")
        self.connection.dataReceived(b":1\r\n:2\r\n")
        self.assertEqual(self.replies, [2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_that_is_dropped_counts_as_lost_at_once(self) -> None:
        lost: list[bool] = []
        self.connection.on_lost = lambda: lost.append(True)
        self.connection.send(self.replies.append, "A")
        self.connection.drop()
        self.assertTrue(self.transport.aborted)
        self.connection.send(self.replies.append, "B")
        self.assertEqual([str(each) for each in self.replies], ["the connection to Redis is lost"])
        self.assertFalse(self.connection.lost.has_happened)
        self.lose()
        self.assertEqual([type(reply) for reply in self.replies], [BrokerUnavailable] * 2)
        self.assertEqual(lost, [True])

    def test_a_loss_with_a_reason_says_why(self) -> None:
        for error, reason in (
            (SSL.Error([("SSL routines", "", "certificate verify failed")]), "TLS: certificate"),
            (VerificationError([]), "its certificate is for another host"),
            (OSError(5, "no luck"), "[Errno 5] no luck"),
        ):
            self.setUp()
            self.connection.send(self.replies.append, "A")
            self.connection.connectionLost(Failure(error))
            self.assertIn(f"the connection to Redis is lost: {reason}", str(self.replies[0]))

    def test_error_replies_are_judged(self) -> None:
        self.connection.on_error = lambda error: BrokerUnavailable(f"judged {error}")
        self.connection.send(self.replies.append, "A")
        self.connection.dataReceived(b"-ERR no\r\n")
        self.assertEqual(str(self.replies[0]), "judged ERR no")
        self.assertIsInstance(self.replies[0], BrokerUnavailable)

    def test_asking_goes_before_each_command(self) -> None:
        self.connection.is_asking = True
        self.connection.send(self.replies.append, "A")
        self.assertEqual(self.transport.written, b"*1\r\n$6\r\nASKING\r\n*1\r\n$1\r\nA\r\n")
        self.connection.dataReceived(b"+OK\r\n:1\r\n")
        self.assertEqual(self.replies, [1])

    def test_what_is_no_redis_is_left(self) -> None:
        self.connection.dataReceived(b"HTTP/1.1 400 Bad Request\r\n")
        self.assertTrue(self.transport.aborted)

    def test_a_cancelled_command_keeps_its_place_in_the_queue(self) -> None:
        cancelled = self.connection.execute_command("A")
        cancelled.addErrback(lambda failure: None)
        cancelled.cancel()
        self.connection.send(self.replies.append, "B")
        self.connection.dataReceived(b":1\r\n:2\r\n")
        self.assertEqual(self.replies, [2])


class SubscriberTests(ConnectionTests):
    connection_class = SubscriberConnection

    def setUp(self) -> None:
        super().setUp()
        self.events: list[tuple[Any, ...]] = []
        self.connection.on_event = lambda *event: self.events.append(event)

    def test_events_are_told_from_replies(self) -> None:
        done = self.connection.subscribe_to("SUBSCRIBE", [b"a", b"b"])
        self.connection.dataReceived(
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
            b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\n00\r\n"
        )
        self.assertNoResult(done)
        self.connection.dataReceived(
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"
            b"*4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$2\r\nab\r\n$1\r\n1\r\n"
        )
        self.successResultOf(done)
        self.assertEqual(self.events, [(b"a", None, b"00"), (b"ab", b"a*", b"1")])

    def test_a_refused_subscription_to_many_ends_the_connection(self) -> None:
        done = self.connection.subscribe_to("SUBSCRIBE", [b"a", b"b"])
        self.connection.dataReceived(b"-NOPERM no\r\n")
        self.failureResultOf(done, ResponseError)
        self.assertTrue(self.transport.aborted)

    def test_a_refused_subscription_to_one_does_not(self) -> None:
        done = self.connection.subscribe_to("SUBSCRIBE", [b"a"])
        self.connection.dataReceived(b"-NOPERM no\r\n")
        self.failureResultOf(done, ResponseError)
        self.assertFalse(self.transport.aborted)
