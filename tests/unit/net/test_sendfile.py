"""Parts of files through transports of ours over a socket pair, and as iterators."""

from __future__ import annotations

import contextlib  # trial takes a module's `suppress` for its own
import os
import socket
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.errors import LocalProtocolError, TruncatedFile
from pelotontx.net.http import HTTPFactory, HTTPLimits, Request, Response
from pelotontx.net.sendfile import PIECE_BYTES, READERS, WARM_BYTES, FileSlice, OpenFile
from pelotontx.net.tcp import FILE_BYTES, UNIXServer, sends_files, unsent_bytes
from pelotontx.net.wheel import Wheel
from pelotontx.wire.http import RefusedRequest
from tests.support.fake_reactor import FakeReactor
from tests.support.http_case import GET, HTTPCase
from tests.unit.backend.callee_case import THREAD_TIMEOUT_S

CONTENT = os.urandom(64 * 1024) * 48  # 3 MiB: more than a socket takes at once


class Reactor(FakeReactor):
    """Is told by threads when a test says so, and ends with it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.ends: list[Callable[[], object]] = []

    def callFromThread(self, function: Callable[[], object]) -> None:
        self.told.put(function)

    def addSystemEventTrigger(self, phase: str, event: str, function: Any) -> None:
        self.ends.append(function)

    def listen(self) -> None:
        """Waits for a thread that has something to tell."""
        self.told.get(timeout=THREAD_TIMEOUT_S)()

    def end(self) -> None:
        for function in self.ends:
            function()


class ColdFile(OpenFile):
    """Never in memory; threads read it when `gate` is open."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gate = Event()
        self.reads: SimpleQueue[int] = SimpleQueue()

    def is_cached(self, count: int, offset: int) -> bool:
        return False

    def read_cached(self, count: int, offset: int) -> None:
        return None

    def read(self, count: int, offset: int) -> bytes:
        self.reads.put(offset)
        assert self.gate.wait(THREAD_TIMEOUT_S)
        return super().read(count, offset)


class CutFile(OpenFile):
    """Ends where one begins to read."""

    def read_cached(self, count: int, offset: int) -> bytes:
        return b""


class GreedySlice(FileSlice):
    """Notes how much it may send at a time, and sends a byte."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.limits: list[int] = []

    def send(self, socket_descriptor: int, limit_bytes: int) -> int:
        self.limits.append(limit_bytes)
        return super().send(socket_descriptor, 1)


class Peer(Protocol):
    """A protocol that is its transport's producer, and keeps what happened."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost: list[Failure] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason)


def content_file(case: SynchronousTestCase) -> str:
    """A file of `CONTENT` in a folder of its own; returns its path."""
    folder = TemporaryDirectory()
    case.addCleanup(folder.cleanup)
    path = f"{folder.name}/content"
    with open(path, "wb") as file:
        file.write(CONTENT)
    return path


class FileCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = content_file(self)

    def pair(self, reactor: FakeReactor, protocol: Any) -> UNIXServer:
        """A transport, whose other end is `self.peer`."""
        ours, self.peer = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.peer.close)
        self.peer.setblocking(False)
        return UNIXServer(ours, protocol, "peer", None, 0, reactor)

    def drain(self) -> bytes:
        """What the kernel has for the peer."""
        pieces = []
        while True:
            try:
                piece = self.peer.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                break
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)

    def assertClosed(self, descriptor: int) -> None:
        with self.assertRaises(OSError):
            os.fstat(descriptor)


class SendFileTests(FileCase):
    def setUp(self) -> None:
        super().setUp()
        self.reactor = Reactor()
        self.addCleanup(self.reactor.end)
        self.protocol = Peer()
        self.transport: Any = self.pair(self.reactor, self.protocol)
        self.transport.startReading()

    def send(self, part: FileSlice) -> int:
        """Sends it after a head; returns the file's descriptor."""
        assert part.file is not None
        descriptor = part.file.descriptor
        self.transport.write(b"head")
        self.transport.send_file(part)
        return descriptor

    def turns(self) -> bytes:
        """Turns the reactor and reads at the peer until nobody wants to write."""
        data = b""
        self.reactor.turn()
        while self.transport in self.reactor.writers:
            data += self.drain()
            self.reactor.turn()
        return data + self.drain()

    def test_file_goes_between_what_was_written_before_and_after(self) -> None:
        descriptor = self.send(FileSlice.of(self.path))
        self.transport.write(b"tail")
        self.assertEqual(self.turns(), b"head" + CONTENT + b"tail")
        self.assertClosed(descriptor)
        self.assertEqual(unsent_bytes(self.transport), 0)

    def test_part_of_a_file(self) -> None:
        self.send(FileSlice(OpenFile.open(self.path), 100, 1000))
        self.assertEqual(self.turns(), b"head" + CONTENT[100:1100])

    def test_small_file_leaves_with_the_turn_that_wrote_it(self) -> None:
        self.send(FileSlice(OpenFile.open(self.path), 0, 5))
        self.reactor.flush()
        self.assertEqual(self.drain(), b"head" + CONTENT[:5])
        self.assertEqual(self.reactor.writers, set())

    def test_file_without_anything_before_it(self) -> None:
        self.transport.send_file(FileSlice(OpenFile.open(self.path), 0, 5))
        self.assertEqual(self.turns(), CONTENT[:5])

    def test_file_behind_what_the_kernel_has_refused(self) -> None:
        self.transport.write(CONTENT)
        self.reactor.flush()
        self.assertIn(self.transport, self.reactor.writers)
        self.send(FileSlice(OpenFile.open(self.path), 0, 5))
        self.assertEqual(self.turns(), CONTENT + b"head" + CONTENT[:5])

    def test_producer_is_paused_until_all_is_sent(self) -> None:
        self.transport.registerProducer(self.protocol, True)
        self.send(FileSlice.of(self.path))
        self.assertEqual(self.protocol.calls, ["pause"])
        self.reactor.turn()
        self.assertEqual(self.protocol.calls, ["pause"])
        self.turns()
        self.assertEqual(self.protocol.calls, ["pause", "resume"])

    def test_unsent_bytes_tell_of_the_file(self) -> None:
        self.send(FileSlice.of(self.path))
        total = 4 + len(CONTENT)
        self.assertEqual(unsent_bytes(self.transport), total)
        self.reactor.turn()
        self.assertEqual(unsent_bytes(self.transport), total - len(self.drain()))

    def test_lose_connection_sends_the_file_first(self) -> None:
        descriptor = self.send(FileSlice.of(self.path))
        self.transport.loseConnection()
        self.assertEqual(self.turns(), b"head" + CONTENT)
        self.assertTrue(self.protocol.lost[0].check(type(CONNECTION_DONE)))
        self.assertClosed(descriptor)

    def test_half_close_sends_the_file_first(self) -> None:
        self.send(FileSlice.of(self.path))
        self.transport.loseWriteConnection()
        self.assertEqual(self.turns(), b"head" + CONTENT)
        self.assertEqual(self.peer.recv(1), b"")
        self.assertEqual(self.protocol.lost, [])

    def test_abort_lets_go_of_the_file(self) -> None:
        descriptor = self.send(FileSlice.of(self.path))
        self.reactor.turn()
        self.transport.abortConnection()
        self.reactor.advance(0)
        self.assertEqual(len(self.protocol.lost), 1)
        self.assertClosed(descriptor)

    def test_peer_that_leaves_ends_it(self) -> None:
        descriptor = self.send(FileSlice.of(self.path))
        self.reactor.turn()
        self.peer.close()
        self.assertEqual(self.transport.doWrite(), CONNECTION_LOST)
        self.transport.connectionLost(Failure(CONNECTION_LOST))
        self.assertClosed(descriptor)

    def test_peer_that_left_before_is_found_by_the_flush(self) -> None:
        self.peer.close()
        self.send(FileSlice.of(self.path))
        self.reactor.flush()
        self.assertIn(self.transport, self.reactor.writers)
        self.assertEqual(self.transport.doWrite(), CONNECTION_LOST)

    def test_lost_connection_takes_no_file(self) -> None:
        self.transport.connectionLost(Failure(CONNECTION_DONE))
        part = FileSlice.of(self.path)
        self.transport.send_file(part)
        self.assertIsNone(part.file)

    def test_truncated_file_aborts(self) -> None:
        descriptor = self.send(FileSlice.of(self.path))
        self.reactor.turn()
        os.truncate(self.path, 100)
        self.turns()
        self.reactor.advance(0)
        self.assertTrue(self.protocol.lost[0].check(ConnectionAborted))
        self.assertEqual(self.reactor.writers, set())
        self.assertClosed(descriptor)

    def test_one_file_at_a_time_and_none_under_tls(self) -> None:
        self.assertTrue(sends_files(self.transport))
        self.send(FileSlice.of(self.path))
        with self.assertRaises(LocalProtocolError):
            self.transport.send_file(FileSlice.of(self.path))
        self.assertFalse(sends_files(object()))
        transport: Any = self.pair(FakeReactor(), Peer())
        transport.TLS = True
        self.assertFalse(sends_files(transport))
        with self.assertRaises(LocalProtocolError):
            transport.send_file(FileSlice.of(self.path))

    def test_empty_part_is_nothing(self) -> None:
        part = FileSlice(OpenFile.open(self.path), 0, 0)
        self.transport.registerProducer(self.protocol, True)
        self.transport.send_file(part)
        self.assertEqual(self.protocol.calls, [])
        self.assertIsNone(part.file)

    def test_slice_sends_no_more_than_it_may(self) -> None:
        part = FileSlice.of(self.path)
        self.assertEqual(part.send(self.transport.fileno(), 1000), 1000)
        self.assertEqual((part.offset, part.left), (1000, len(CONTENT) - 1000))

    def test_turn_sends_a_bounded_part_to_each(self) -> None:
        part = GreedySlice.of(self.path)
        self.send(part)
        self.reactor.flush()
        self.assertEqual(part.limits, [FILE_BYTES])  # though the socket would take more

    def cold(self) -> ColdFile:
        file = ColdFile.open(self.path)
        assert isinstance(file, ColdFile)
        self.addCleanup(file.gate.set)
        return file

    def test_cold_file_is_read_by_a_thread_first(self) -> None:
        file = self.cold()
        self.send(FileSlice(file))
        self.reactor.turn()
        self.reactor.turn()
        self.assertEqual(self.drain(), b"head")
        self.assertEqual(self.reactor.writers, set())
        file.gate.set()
        data = b""
        while len(data) < len(CONTENT):
            self.reactor.listen()
            before = len(data)
            data += self.turns()
            self.assertLessEqual(len(data) - before, WARM_BYTES)
        self.assertEqual(data, CONTENT)

    def test_nothing_else_happens_while_a_thread_reads(self) -> None:
        file = self.cold()
        descriptor = self.send(FileSlice(file))
        self.reactor.turn()
        self.transport.write(b"tail")
        self.transport.loseConnection()
        for _ in range(3):
            self.reactor.turn()
        self.assertEqual(file.reads.get(timeout=THREAD_TIMEOUT_S), 0)
        self.assertTrue(file.reads.empty())
        self.assertEqual(self.drain(), b"head")
        self.transport.abortConnection()
        self.reactor.advance(0)
        file.gate.set()
        del file
        self.reactor.listen()  # nobody waits for it any more
        self.assertEqual(self.reactor.writers, set())
        self.assertClosed(descriptor)

    def block_readers(self, most: int | None = None) -> None:
        """Has so many threads for files hang; None: all, and as many wait for one as may."""
        gate = Event()
        self.addCleanup(gate.set)
        for _ in count() if most is None else range(most):
            hanging = READERS.run(partial(gate.wait, THREAD_TIMEOUT_S), self.reactor)
            if hanging.called:
                self.failureResultOf(hanging, RefusedRequest)
                return

    def test_file_for_which_too_many_wait_is_not_sent(self) -> None:
        self.block_readers()
        descriptor = self.send(FileSlice(self.cold()))
        self.reactor.turn()
        self.reactor.advance(0)
        self.assertTrue(self.protocol.lost[0].check(ConnectionAborted))
        self.assertEqual(self.reactor.writers, set())
        self.assertClosed(descriptor)

    def test_file_that_waits_for_a_thread_is_let_go_of_with_its_connection(self) -> None:
        self.block_readers(READERS.size)
        descriptor = self.send(FileSlice(self.cold()))
        self.reactor.turn()
        self.assertEqual(self.protocol.lost, [])
        self.transport.abortConnection()
        self.reactor.advance(0)
        self.assertClosed(descriptor)

    def test_hot_file_is_sent_while_all_threads_hang(self) -> None:
        self.block_readers()
        file = OpenFile.open(self.path)
        file.read(len(CONTENT), 0)
        self.send(FileSlice(file))
        self.assertEqual(self.turns(), b"head" + CONTENT)


class PiecesTests(FileCase):
    def start(self, part: FileSlice) -> Deferred[list[bytes]]:
        async def run() -> list[bytes]:
            return [piece async for piece in part]

        return Deferred.fromCoroutine(run())

    def collect(self, part: FileSlice) -> list[bytes]:
        return self.successResultOf(self.start(part))

    def test_pieces_are_bounded_and_together_the_part(self) -> None:
        part = FileSlice(OpenFile.open(self.path), 10, 300_000)
        descriptor = part.file.descriptor  # type: ignore[union-attr]
        pieces = self.collect(part)
        self.assertEqual(b"".join(pieces), CONTENT[10:300_010])
        self.assertEqual(max(map(len, pieces)), PIECE_BYTES)
        self.assertClosed(descriptor)

    def test_file_is_shared_and_closed_with_the_last(self) -> None:
        file = OpenFile.open(self.path)
        descriptor = file.descriptor
        first, second = FileSlice(file, 0, 3), FileSlice(file, 3, 3)
        del file
        self.assertEqual(self.collect(first), [CONTENT[:3]])
        self.assertEqual(self.collect(second), [CONTENT[3:6]])
        self.assertClosed(descriptor)

    def test_closed_slice_is_not_a_short_one(self) -> None:
        part = FileSlice.of(self.path)
        part.close()
        self.failureResultOf(self.start(part), LocalProtocolError)

    def test_truncated_file_is_not_a_short_one(self) -> None:
        part = FileSlice(CutFile.open(self.path))
        self.failureResultOf(self.start(part), TruncatedFile)
        self.assertIsNone(part.file)

    def test_only_regular_files_are_opened(self) -> None:
        with self.assertRaises(IsADirectoryError):
            OpenFile.open(os.path.dirname(os.path.abspath(self.path)))
        fifo = f"{self.path}-fifo"
        os.mkfifo(fifo)
        with self.assertRaises(OSError):
            OpenFile.open(fifo)
        with self.assertRaises(FileNotFoundError):
            OpenFile.open(f"{self.path}-missing")
        with self.assertRaises(ValueError):
            OpenFile.open("a\0b")

    def test_what_is_in_memory_can_be_read_at_once(self) -> None:
        file = OpenFile.open(self.path)
        file.read(len(CONTENT), 0)
        self.assertTrue(file.is_cached(len(CONTENT), 0))
        self.assertEqual(file.read_cached(10, 5), CONTENT[5:15])
        self.assertEqual(file.read_cached(10, len(CONTENT) - 5), CONTENT[-5:])

    def test_what_a_file_has_lost_is_not_in_memory(self) -> None:
        file = OpenFile.open(self.path)
        os.truncate(self.path, 0)
        self.assertIsNone(file.read_cached(10, 5))


class AnswerTests(HTTPCase):
    """Slices as bodies, over a transport that is not ours: they are read and written."""

    def setUp(self) -> None:
        super().setUp()
        self.path = content_file(self)
        self.part = FileSlice(OpenFile.open(self.path), 0, 1000)
        self.results["/"] = lambda request: Response(200, self.part)

    def test_slice_has_its_length(self) -> None:
        data, wire = self.exchange(GET)
        head, _, body = data.partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: 1000", head)
        self.assertEqual(body, CONTENT[:1000])
        self.assertFalse(wire.ended)
        self.assertIsNone(self.part.file)

    def test_head_has_the_length_and_lets_go_of_the_file(self) -> None:
        data, _ = self.exchange(GET.replace(b"GET", b"HEAD"))
        self.assertIn(b"Content-Length: 1000\r\n", data)
        self.assertTrue(data.endswith(b"\r\n\r\n"))
        self.assertIsNone(self.part.file)

    def test_empty_slice(self) -> None:
        self.part = FileSlice(OpenFile.open(self.path), 0, 0)
        data, _ = self.exchange(GET + GET.replace(b"/ ", b"/next "))
        self.assertIn(b"Content-Length: 0\r\n", data)
        self.assertIn(b"GET /next", data)

    def test_peer_that_does_not_read_stops_the_reading(self) -> None:
        self.part = FileSlice.of(self.path)
        connection, wire = self.connect()
        wire.registerProducer = lambda *_: None  # type: ignore[method-assign]
        connection.pauseProducing()
        connection.resumeProducing()
        written: list[int] = []
        write = wire.write

        def choke(data: bytes) -> None:
            write(data)
            written.append(len(data))
            connection.pauseProducing()

        wire.write = choke  # type: ignore[method-assign]
        connection.dataReceived(GET)
        self.assertLessEqual(sum(written), PIECE_BYTES + 1000)
        wire.abortConnection()
        self.assertIsNone(self.part.file)


class DeadlineTests(FileCase):
    """A connection of ours that sends a file to a peer who reads slowly, or not at all."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = Reactor()
        self.part = FileSlice.of(self.path)
        self.answered: list[tuple[int, int]] = []
        self.factory = HTTPFactory(
            lambda request: Response(200, self.part),
            wheel=Wheel(self.reactor),
            clock=self.reactor,
            limits=HTTPLimits(unread_s=30),
            on_answered=self.note,
        )
        connection: Any = self.factory.buildProtocol(None)
        self.transport = self.pair(self.reactor, connection)
        connection.makeConnection(self.transport)
        self.transport.startReading()
        self.peer.send(GET)
        self.reactor.turn()

    def note(self, request: Request, status: int, body_bytes: int, began_s: float) -> None:
        self.answered.append((status, body_bytes))

    def pass_time(self, seconds: int, *, reading_bytes: int = 0) -> int:
        """Turns the reactor every second; the peer reads so many bytes each time."""
        taken = 0
        for _ in range(seconds):
            if reading_bytes:
                with contextlib.suppress(BlockingIOError):
                    taken += len(self.peer.recv(reading_bytes))
            self.reactor.turn()
            self.reactor.advance(1)
        return taken

    def test_peer_that_reads_nothing_is_aborted(self) -> None:
        self.pass_time(29)
        self.assertEqual(len(self.factory.connections), 1)
        self.pass_time(7)
        self.assertEqual(len(self.factory.connections), 0)
        self.assertIsNone(self.part.file)
        self.assertEqual(self.answered[0][0], 200)
        self.assertLess(self.answered[0][1], len(CONTENT))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_slow_peer_is_not(self) -> None:
        taken = self.pass_time(120, reading_bytes=16_000)
        self.assertGreater(taken, 1_000_000)
        self.assertEqual(len(self.factory.connections), 1)
        taken += len(self.drain())
        while self.part.left:
            self.reactor.turn()
            taken += len(self.drain())
        self.assertGreater(taken, len(CONTENT))
        self.reactor.turn()
        self.assertEqual(self.answered, [(200, len(CONTENT))])

    def test_next_request_is_answered_after_the_file(self) -> None:
        self.drain()
        while self.part.left:
            self.reactor.turn()
            self.drain()
        self.part = FileSlice(OpenFile.open(self.path), 0, 7)
        self.peer.send(GET)
        self.reactor.turn()
        self.reactor.turn()
        self.assertTrue(self.drain().endswith(b"\r\n\r\n" + CONTENT[:7]))
        self.assertEqual(self.answered, [(200, len(CONTENT)), (200, 7)])

    def test_pipelined_requests_get_their_files_in_order(self) -> None:
        self.peer.send(GET)
        self.reactor.turn()
        first, self.part = self.part, FileSlice(OpenFile.open(self.path), 5, 5)
        data = self.drain()
        while first.left or self.part.left:
            self.reactor.turn()
            data += self.drain()
        self.assertTrue(data.endswith(b"\r\n\r\n" + CONTENT[5:10]))
        self.assertEqual(data.count(b"HTTP/1.1 200 OK\r\n"), 2)
