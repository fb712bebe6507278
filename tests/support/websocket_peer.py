"""A WebSocket server without sockets: `ServerTestCase` is the client and the clock.

Frames are made and read here by hand, so that nothing of ours judges itself.
"""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.net.tcp import Corked
from pelotontx.net.websocket import Handshake, Refused, ServerFactory, WebSocketLimits
from pelotontx.net.wheel import Timer, Wheel

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASK = b"\x11\x22\x33\x44"

FIELDS = {
    "Host": "server.test",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",  # the example of RFC 6455, 1.3
    "Sec-WebSocket-Protocol": "other, juggler.0",
}


def request(line: str = "GET /ws HTTP/1.1", **changes: str | None) -> bytes:
    """An opening request; a field that is None is left out."""
    fields = FIELDS | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes = MASK,
    length_bytes: int | None = None,
) -> bytes:
    """A client's frame; `length_bytes` 0, 2 or 8 where it is not the shortest that will do."""
    length = len(payload)
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65536 else 8
    short = {0: length, 2: 126, 8: 127}[length_bytes]
    head = bytes((fin << 7 | rsv << 4 | opcode, bool(mask) << 7 | short))
    if length_bytes:
        head += length.to_bytes(length_bytes, "big")
    if not mask:
        return head + payload
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def decode(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame of a server."""
    found = []
    while data:
        assert data[0] & 0xF0 == 0x80, "final, no extension"
        length, start = data[1], 2
        assert length < 128, "a server does not mask"
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        assert len(data) >= start + length
        found.append((data[0] & 0x0F, data[start : start + length]))
        data = data[start + length :]
    return found


class Reactor:
    """A turn of it flushes what was written."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.dirty: list[Any] = []
        self.seconds = (clock or Clock()).seconds

    def removeReader(self, reader: Any) -> None: ...

    addReader = removeWriter = removeReader

    def turn(self) -> None:
        dirty, self.dirty = self.dirty, []
        for transport in dirty:
            transport.flush()


class Transport(Corked, FileDescriptor):
    """A transport of `net.tcp` into memory; its kernel takes `room` bytes."""

    TLS = False
    _aborting = False

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.connected = True
        self.socket = self
        self.room = 1 << 30
        self.sent = b""
        self.is_aborted = False
        self.no_delay = False

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 4711)

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def writeSomeData(self, data: bytes) -> int:
        return self.send(bytes(data)) if self.room else 0

    def startWriting(self) -> None: ...

    def abortConnection(self) -> None:
        self.is_aborted = self._aborting = True

    def drain(self) -> None:
        """The peer reads everything, and goes on reading."""
        self.room = 1 << 30
        while self.unsent_bytes:
            self.doWrite()

    def take(self) -> bytes:
        """What the peer got since last time."""
        self.reactor.turn()
        data, self.sent = self.sent, b""
        return data


class RecordingWheel(Wheel):
    """Knows which of its timers could still fire."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.timers: list[Timer] = []

    def call_later(self, *arguments: Any) -> Timer:
        timer = super().call_later(*arguments)
        self.timers.append(timer)
        return timer

    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if timer.is_pending]


class Conversation:
    """Writes down what happens; `on_text` may do something about it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.messages: list[tuple[int, bytes]] = []
        self.ends: list[int] = []
        self.on_text: Any = lambda payload: None

    def text_received(self, payload: bytes) -> None:
        self.messages.append((TEXT, payload))
        self.on_text(payload)

    def binary_received(self, payload: bytes) -> None:
        self.messages.append((BINARY, payload))

    def connection_lost(self, code: int) -> None:
        self.ends.append(code)


class ServerTestCase(SynchronousTestCase):
    limits = WebSocketLimits(message_limit_bytes=200_000)

    def setUp(self) -> None:
        self.clock = Clock()
        self.reactor = Reactor(self.clock)
        self.wheel = RecordingWheel(self.clock)
        self.transports: list[Transport] = []
        self.conversations: list[Conversation] = []
        self.handshakes: list[Handshake] = []
        self.make()

    def tearDown(self) -> None:
        for transport in self.transports:
            if transport.connected:
                self.lose(transport)
        self.assertEqual(self.factory.connections, {})
        self.assertEqual(self.wheel.pending(), [])
        self.wheel.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def make(self, limits: WebSocketLimits | None = None, **options: Any) -> None:
        self.factory = ServerFactory(
            self.reactor,
            wheel=self.wheel,
            limits=limits or self.limits,
            **{"accept": self.accept} | options,
        )

    def accept(self, handshake: Handshake) -> tuple[str | None, Any]:
        self.handshakes.append(handshake)
        if "juggler.0" not in handshake.subprotocols:
            raise Refused(400, "juggler.0 is needed")
        return "juggler.0", self.converse

    def converse(self, connection: Any) -> Conversation:
        self.conversations.append(Conversation(connection))
        return self.conversations[-1]

    def connect(self) -> None:
        self.transport = Transport(self.reactor)
        self.transports.append(self.transport)
        self.connection = self.transport.protocol = self.factory.buildProtocol(None)
        self.connection.makeConnection(self.transport)

    def open(self, limits: WebSocketLimits | None = None, more: bytes = b"") -> None:
        if limits is not None:
            self.make(limits)
        self.connect()
        self.receive(request() + more)
        self.assertTrue(self.transport.take().startswith(b"HTTP/1.1 101 "))
        self.conversation = self.conversations[-1]

    def receive(self, *pieces: bytes) -> None:
        """As a socket would: nothing after the end."""
        for data in pieces:
            if self.transport.connected and not self.transport._aborting:
                self.connection.dataReceived(data)

    def lose(self, transport: Transport | None = None, reason: Any = None) -> None:
        transport = transport or self.transport
        failure = Failure(reason or ConnectionDone())
        transport.connectionLost(failure)
        transport.protocol.connectionLost(failure)

    def messages(self) -> list[tuple[int, bytes]]:
        return self.conversation.messages

    def sent(self) -> list[tuple[int, bytes]]:
        return decode(self.transport.take())

    def assertCloses(self, code: int, reason: bytes | None = None) -> None:
        """The peer gets exactly one close frame, and nothing after it."""
        self.assertClosesAfter([], code, reason)

    def assertClosesAfter(
        self, frames: list[tuple[int, bytes]], code: int, reason: bytes | None = None
    ) -> None:
        *before, (opcode, payload) = self.sent()
        self.assertEqual((before, opcode), (frames, CLOSE))
        self.assertEqual(int.from_bytes(payload[:2], "big"), code, payload)
        payload[2:].decode()
        if reason is not None:
            self.assertEqual(payload[2:], reason)

    def assertIsDropped(self) -> None:
        """TCP ends as soon as what was written has left."""
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.is_aborted)
