"""Corked transports over a socket pair, on a reactor that only notes what it is asked."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.main import CONNECTION_DONE
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import ConfigError
from pelotontx.net.tcp import (
    CorkedReactor,
    UNIXServer,
    is_gone,
    listen,
    lose_ended,
    peer_name,
    probe_peer,
    unsent_bytes,
)
from tests.support.fake_reactor import FakeReactor


class CountingSocket(socket.socket):
    """Counts its sends."""

    sends = 0

    def send(self, *arguments: Any) -> int:
        type(self).sends += 1
        return super().send(*arguments)


class Producer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Received(Protocol):
    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.data.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason)


class CorkedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.make(FakeReactor())

    def make(self, reactor: FakeReactor) -> None:
        self.reactor = reactor
        ours, self.peer = socket.socketpair()
        counting = CountingSocket(fileno=ours.detach())
        CountingSocket.sends = 0
        self.addCleanup(counting.close)
        self.addCleanup(self.peer.close)
        self.peer.setblocking(False)
        self.protocol = Received()
        self.transport: Any = UNIXServer(counting, self.protocol, "peer", None, 0, reactor)

    def fill(self) -> int:
        """Writes more than the kernel takes; returns how much."""
        size = 4_000_000
        self.transport.write(b"z" * size)
        self.reactor.flush()
        self.assertIn(self.transport, self.reactor.writers)
        return size

    def drain(self) -> int:
        """Reads at the peer what the kernel has."""
        count = 0
        while True:
            try:
                count += len(self.peer.recv(1 << 20))
            except BlockingIOError:
                return count

    def test_writes_of_one_turn_are_one_send(self) -> None:
        self.transport.write(b"a")
        self.transport.write(b"b")
        self.transport.writeSequence([b"c", b"d"])
        self.assertEqual(CountingSocket.sends, 0)
        self.assertEqual(self.reactor.dirty, [self.transport])
        self.assertEqual(unsent_bytes(self.transport), 4)
        self.reactor.flush()
        self.assertEqual(CountingSocket.sends, 1)
        self.assertEqual(self.peer.recv(100), b"abcd")
        self.assertEqual(unsent_bytes(self.transport), 0)
        self.assertEqual(self.reactor.writers, set())

    def test_what_the_kernel_refuses_goes_the_stock_way(self) -> None:
        size = self.fill()
        self.transport.write(b"end")
        self.reactor.flush()
        seen = 0
        while self.transport in self.reactor.writers:
            seen += self.drain()
            self.assertIsNone(self.transport.doWrite())
        seen += self.drain()
        self.assertEqual(seen, size + 3)

    def test_producer_is_paused_and_resumed(self) -> None:
        producer = Producer()
        self.transport.registerProducer(producer, True)
        self.transport.write(b"z" * 70_000)
        self.assertEqual(producer.calls, ["pause"])
        self.reactor.flush()
        self.assertEqual(producer.calls, ["pause", "resume"])
        self.drain()
        self.fill()
        self.assertEqual(producer.calls[2:], ["pause"])
        while self.transport in self.reactor.writers:
            self.drain()
            self.transport.doWrite()
        self.assertEqual(producer.calls[2:], ["pause", "resume"])

    def test_pull_producer_is_asked_again_after_each_flush(self) -> None:
        producer = Producer()
        self.transport.registerProducer(producer, False)
        self.transport.write(b"a")
        self.reactor.flush()
        self.assertEqual(producer.calls, ["resume", "resume"])

    def test_lose_connection_sends_what_was_written_first(self) -> None:
        self.transport.write(b"bye")
        self.transport.loseConnection()
        self.reactor.flush()
        self.assertEqual(self.transport.doWrite(), CONNECTION_DONE)
        self.assertEqual(self.peer.recv(10), b"bye")

    def test_half_close_sends_what_was_written_first(self) -> None:
        self.transport.write(b"bye")
        self.transport.loseWriteConnection()
        self.reactor.flush()
        self.assertIsNone(self.transport.doWrite())
        self.assertEqual(self.peer.recv(10), b"bye")
        self.assertEqual(self.peer.recv(10), b"")
        self.peer.send(b"more")
        self.transport.doRead()
        self.assertEqual(self.protocol.data, [b"more"])
        self.transport.write(b"late")
        self.assertEqual(self.reactor.dirty, [])

    def test_abort_drops_what_was_written(self) -> None:
        self.transport.write(b"never")
        self.transport.abortConnection()
        self.reactor.flush()
        self.assertEqual(CountingSocket.sends, 0)
        self.reactor.advance(0)
        self.assertEqual(len(self.protocol.lost), 1)

    def test_flush_after_the_connection_was_lost_does_nothing(self) -> None:
        self.transport.write(b"never")
        self.transport.connectionLost(Failure(CONNECTION_DONE))
        self.reactor.flush()
        self.transport.write(b"never")
        self.assertEqual(self.reactor.dirty, [])
        self.assertEqual(CountingSocket.sends, 0)

    def test_broken_connection_is_found_by_the_stock_write(self) -> None:
        self.peer.close()
        self.transport.write(b"a")
        self.reactor.flush()
        self.assertIn(self.transport, self.reactor.writers)
        self.assertIsInstance(self.transport.doWrite(), Exception)

    def test_read_is_handed_to_the_protocol(self) -> None:
        self.peer.send(b"hello")
        self.assertIsNone(self.transport.doRead())
        self.assertIsNone(self.transport.doRead())  # nothing there
        self.assertEqual(self.protocol.data, [b"hello"])
        self.peer.close()
        self.assertEqual(self.transport.doRead(), CONNECTION_DONE)

    def test_peer_that_half_closed_is_not_gone(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)
        self.assertFalse(is_gone(self.transport))
        probe_peer(self.transport)  # nothing to do for a UNIX socket
        self.peer.close()
        self.assertTrue(is_gone(self.transport))
        self.transport.connectionLost(Failure(CONNECTION_DONE))
        self.assertFalse(is_gone(self.transport))
        self.assertFalse(is_gone(object()))

    def test_ended_connection_is_lost_at_once_if_all_was_sent(self) -> None:
        lose_ended(self.transport)
        self.assertEqual(len(self.protocol.lost), 1)
        self.assertEqual(self.reactor.writers, set())

    def test_ended_connection_sends_what_was_written_first(self) -> None:
        self.transport.write(b"bye")
        lose_ended(self.transport)
        self.assertEqual(self.protocol.lost, [])
        self.reactor.turn()
        self.assertEqual(self.peer.recv(10), b"bye")
        self.assertEqual(len(self.protocol.lost), 1)

    def test_text_is_refused(self) -> None:
        self.assertRaises(TypeError, self.transport.write, "text")
        self.transport.write(bytearray(b"ok"))
        self.reactor.flush()
        self.assertEqual(self.peer.recv(10), b"ok")

    def test_tls_takes_the_stock_path(self) -> None:
        written: list[bytes] = []

        class TLS(Received):
            write = staticmethod(written.append)

        self.transport.protocol = TLS()
        self.transport.TLS = True
        self.transport.write(b"secret")
        self.assertEqual(written, [b"secret"])
        self.assertEqual(self.reactor.dirty, [])

    def test_other_reactors_cork_by_a_call(self) -> None:
        reactor = FakeReactor(corking=False)
        self.make(reactor)
        self.transport.write(b"a")
        self.transport.write(b"b")
        self.assertEqual(len(reactor.getDelayedCalls()), 1)
        reactor.advance(0)
        self.assertEqual(self.peer.recv(10), b"ab")
        self.assertEqual(CountingSocket.sends, 1)
        self.transport.write(b"c")
        reactor.advance(0)
        self.assertEqual(self.peer.recv(10), b"c")


class ListenTests(SynchronousTestCase):
    def test_bad_string_is_named(self) -> None:
        for bad in (
            "",
            "tcp",
            "tcp:http",
            "tcp:99999",
            "tcp:80:nonsense=1",
            "unix:/x:mode=9",
            "carrier-pigeon:1",
            "tcp:80\\",
        ):
            with self.assertRaises(ConfigError) as caught:
                listen(FakeReactor(), bad, Factory())
            self.assertEqual(caught.exception.path, bad)

    def test_backlog_of_the_string_wins(self) -> None:
        reactor = CorkedReactor(None, backlog=1024)
        self.assertEqual(reactor._deeper(50), 1024)
        self.assertEqual(reactor._deeper(7), 7)

    def test_peer_name_of_something_strange_is_its_text(self) -> None:
        self.assertEqual(peer_name(5), "5")
        self.assertEqual(unsent_bytes(object()), 0)
