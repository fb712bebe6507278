from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.link import RedisLink


class Transport:
    """Takes what is written; losing it is reported in the next turn, as a reactor does."""

    disconnecting = False

    def __init__(self, clock: Clock, connection: Any) -> None:
        self.written = b""
        self._clock = clock
        self._connection = connection

    def write(self, data: bytes) -> None:
        self.written += data

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    def loseConnection(self) -> None:
        self._clock.callLater(0, self._connection.connectionLost, Failure(ConnectionDone()))

    abortConnection = loseConnection


class Address:
    """Where connections are made by hand: a `RedisAddress` in all that a link looks at."""

    username: str | None = None
    password: str | None = None
    db = 0

    def __init__(self, clock: Clock, *, is_asking: bool = False) -> None:
        self.is_asking = is_asking
        self.attempts: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0
        self._clock = clock

    def __str__(self) -> str:
        return "redis://h:1"

    def endpoint(self, reactor: Any, *, timeout_s: float) -> Address:
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        def cancelled(_: Any) -> None:
            self.cancelled += 1

        result: Deferred[Any] = Deferred(cancelled)
        self.attempts.append((factory, result))
        return result

    def accept(self) -> Any:
        """The newest attempt succeeds."""
        factory, result = self.attempts[-1]
        connection = factory.buildProtocol(None)
        connection.makeConnection(Transport(self._clock, connection))
        result.callback(connection)
        return connection

    def refuse(self) -> None:
        """The newest attempt fails."""
        self.attempts[-1][1].errback(ConnectionRefusedError())


class Locator:
    def __init__(self, address: Address) -> None:
        self.address: Any = address
        self.refusals: list[str] = []

    def locate(self) -> Deferred[Any]:
        if self.address is None:
            return fail(BrokerUnavailable("nobody knows"))
        return succeed(self.address)

    def refused(self, error: str) -> None:
        self.refusals.append(error)

    def __str__(self) -> str:
        return "somewhere"


class LinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.address = Address(self.clock)
        self.locator = Locator(self.address)
        self.replies: list[Any] = []
        self.downs = 0
        self.link = self.open()
        self.texts: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        self.addCleanup(self.stop)

    def open(self, **options: Any) -> RedisLink:
        link = RedisLink(
            self.clock,
            self.locator,
            name="me",
            connect_timeout_s=3,
            reply_timeout_s=4,
            on_down=self.down,
            **options,
        )
        link.start()
        return link

    def down(self) -> None:
        self.downs += 1

    def observe(self, event: LogEvent) -> None:
        if event["log_namespace"] == "pelotontx.net.redis.link.RedisLink":
            self.texts.append(formatEvent(event))

    def stop(self) -> None:
        """Whatever it was at, it ends, and nothing stays in the reactor."""
        stopped = self.link.stop()
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def up(self) -> Any:
        """A connection comes up."""
        connection = self.address.accept()
        connection.dataReceived(b"+OK\r\n+PONG\r\n*2\r\n$2\r\n17\r\n$1\r\n0\r\n")
        self.assertIs(self.link.connection, connection)
        connection.transport.written = b""
        return connection

    def test_it_logs_in_before_it_is_up(self) -> None:
        self.address.username, self.address.password, self.address.db = "u", "p", 2
        connection = self.address.accept()
        expected = b""
        for command in (
            b"*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n",
            b"*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n",
            b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$2\r\nme\r\n",
            b"*1\r\n$4\r\nPING\r\n",
        ):
            expected += command
            self.assertEqual(connection.transport.written, expected)
            self.assertIsNone(self.link.connection)
            connection.dataReceived(b"+OK\r\n")
        self.assertIs(self.link.connection, connection)

    def test_each_reason_of_a_failure_is_logged_once(self) -> None:
        for _ in range(5):
            self.address.refuse()
            self.clock.advance(5)
            self.address.accept().dataReceived(b"-NOAUTH secret wanted\r\n")
            self.clock.pump([0, 5])
        self.assertEqual(len(self.texts), 2)
        self.assertIn("refused", self.texts[0])
        self.assertEqual(self.texts[1], "somewhere: no connection, trying on: NOAUTH secret wanted")
        self.up()
        self.assertEqual(self.texts[2:], ["somewhere: connected"])

    def test_attempts_are_made_with_backoff(self) -> None:
        for _ in range(10):
            self.address.refuse()
            self.clock.advance(0.04)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            self.clock.advance(5)
        self.assertEqual(len(self.address.attempts), 11)

    def test_where_it_is_unknown_is_asked_again(self) -> None:
        self.address.refuse()
        self.locator.address = None
        self.clock.advance(5)
        self.assertIn("somewhere: no connection, trying on: nobody knows", self.texts)
        self.locator.address = self.address
        self.clock.advance(5)
        self.up()

    def test_a_server_that_does_not_answer_while_logging_in_is_given_up(self) -> None:
        connection = self.address.accept()
        self.clock.advance(3)
        self.assertTrue(connection.is_lost)
        self.clock.advance(0)
        self.assertIn("no answer while logging in", self.texts[0])

    def test_a_silent_server_is_given_up(self) -> None:
        connection = self.up()
        for _ in range(3):  # each look is answered
            self.clock.advance(1)
            connection.dataReceived(b"*2\r\n$2\r\n17\r\n$1\r\n0\r\n")
        self.link.send(self.replies.append, "A")
        self.clock.pump([1] * 5)
        self.assertTrue(connection.is_lost)
        self.clock.advance(0)
        self.assertIsInstance(self.replies[0], BrokerUnavailable)
        self.assertIn("no reply in 4 s", self.texts[0])

    def test_while_down_commands_fail_at_once(self) -> None:
        self.link.send(self.replies.append, "A")
        self.assertEqual(str(self.replies[0]), "no connection to somewhere")

    def test_the_wrong_server_is_left_and_the_next_attempt_made_at_once(self) -> None:
        connection = self.up()
        self.link.send(self.replies.append, "A")
        connection.dataReceived(b"-MOVED 1 b:2\r\n")
        self.assertEqual(str(self.replies[0]), "redis://h:1: MOVED 1 b:2")
        self.assertIsInstance(self.replies[0], BrokerUnavailable)
        self.assertTrue(connection.is_lost)
        self.assertIsNone(self.link.connection)
        self.assertEqual(self.locator.refusals, ["MOVED 1 b:2"])
        self.assertEqual(self.downs, 1)
        self.assertEqual(len(self.address.attempts), 1)
        self.clock.advance(0)
        self.assertEqual(len(self.address.attempts), 2)

    def test_a_second_wrong_server_is_not_left_in_haste(self) -> None:
        for _ in range(2):
            self.up()
            self.link.send(self.replies.append, "A")
            self.link.connection.dataReceived(b"-READONLY no\r\n")
            self.clock.advance(0)
        self.assertEqual(len(self.address.attempts), 2)
        self.clock.advance(0.2)
        self.assertEqual(len(self.address.attempts), 3)

    def test_the_wrong_moment_is_waited_out(self) -> None:
        connection = self.up()
        self.link.send(self.replies.append, "A")
        connection.dataReceived(b"-LOADING yet\r\n")
        self.assertIsInstance(self.replies[0], BrokerUnavailable)
        self.clock.advance(0)
        self.assertEqual(len(self.address.attempts), 1)
        self.clock.advance(0.1)
        self.assertEqual(len(self.address.attempts), 2)

    def test_another_error_is_handed_on(self) -> None:
        self.link.reconnect()  # there is none
        connection = self.up()
        self.link.send(self.replies.append, "A")
        connection.dataReceived(b"-ERR MOVED\r\n")
        self.assertEqual(str(self.replies[0]), "ERR MOVED")
        self.assertFalse(connection.is_lost)
        self.link.reconnect()
        self.assertTrue(connection.is_lost)

    def test_its_address_is_none_until_the_new_one_is_known(self) -> None:
        connection = self.up()
        self.assertIs(self.link.address, self.address)
        located: Deferred[Any] = Deferred()
        self.locator.locate = lambda: located  # type: ignore[method-assign]
        connection.drop()
        self.assertIs(self.link.address, self.address)
        self.clock.pump([0, 0.2])
        self.assertIsNone(self.link.address)
        located.callback(self.address)
        self.assertIs(self.link.address, self.address)

    def test_moved_it_leaves_a_connection(self) -> None:
        connection = self.up()
        self.link.moved()
        self.assertTrue(connection.is_lost)
        self.clock.advance(0)
        self.assertEqual(len(self.address.attempts), 2)

    def test_moved_it_leaves_an_attempt(self) -> None:
        other = self.locator.address = Address(self.clock)
        self.link.moved()
        self.assertEqual(self.address.cancelled, 1)
        self.assertEqual(len(other.attempts), 1)
        self.assertEqual(self.texts, [])

    def test_moved_it_leaves_a_login(self) -> None:
        connection = self.address.accept()
        self.link.moved()
        self.assertTrue(connection.is_lost)
        self.clock.advance(0)
        self.assertEqual(len(self.address.attempts), 2)

    def test_moved_it_waits_no_longer(self) -> None:
        for _ in range(8):
            self.address.refuse()
            self.clock.advance(5)
        self.address.refuse()
        before = len(self.address.attempts)
        self.link.moved()
        self.assertEqual(len(self.address.attempts), before + 1)

    def test_an_importing_server_is_asked(self) -> None:
        self.address.is_asking = True
        connection = self.up()
        self.link.send(self.replies.append, "A")
        self.assertTrue(connection.transport.written.startswith(b"*1\r\n$6\r\nASKING\r\n"))

    def test_what_is_to_be_done_first_is_part_of_the_attempt(self) -> None:
        self.stop()
        ready: Deferred[None] = Deferred()
        self.link = self.open(on_up=lambda connection: ready)
        connection = self.address.accept()
        connection.dataReceived(b"+OK\r\n+PONG\r\n")
        self.assertIsNone(self.link.connection)
        ready.errback(BrokerUnavailable("not ready"))
        self.assertTrue(connection.is_lost)
        self.clock.advance(0)
        self.assertIn("not ready", self.texts[0])

    def test_stopped_while_down_it_makes_no_more_attempts(self) -> None:
        self.address.refuse()
        self.stop()
        self.link.moved()
        self.clock.advance(60)
        self.assertEqual(len(self.address.attempts), 1)
