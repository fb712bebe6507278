"""A juggler client of raw bytes on a real socket: it says and leaves out whatever a test wants.

Frames are made in `websocket_peer` and read here by hand, so that nothing of ours judges itself.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from uuid import uuid4

import pytest
from twisted.internet import reactor, tcp

from tests.support.conversation import LIMIT_S, Conversation
from tests.support.programs import PelotonServer
from tests.support.servers import eventually
from tests.support.websocket_peer import CLOSE, TEXT, frame, request

CALL, PUB, SUB, UNSB, NACK, ACK, RES, EVNT = 1, 2, 3, 4, 7, 8, 9, 10


def message(type_: int, **payload: Any) -> bytes:
    """A juggler message, JSON."""
    return json.dumps({"meta": {"type": type_, "uuid": str(uuid4())}, "payload": payload}).encode()


def call(uri: str, args: Any) -> bytes:
    """A CALL in a frame."""
    return frame(TEXT, message(CALL, uri=uri, timeout=0, args=args))


def subscribe(channel: str) -> bytes:
    """A SUB in a frame."""
    return frame(TEXT, message(SUB, channel=channel, pattern=False))


class RawWebSocket(Conversation):
    """Attributes: `head`, the server's answer; `frames`, opcode and payload of each whole one."""

    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.head = b""
        self.frames: list[tuple[int, bytes]] = []

    def dataReceived(self, data: bytes) -> None:
        data = self.data + data
        if not self.head:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.data = head
                return
            self.head = head
        self.data = self._take_frames(data)

    def _take_frames(self, data: bytes) -> bytes:
        """Reads what is whole; returns the rest."""
        position = 0
        while len(data) - position >= 2:
            first, length = data[position : position + 2]
            start = position + 2
            if length >= 126:
                wide = 2 if length == 126 else 8
                length = int.from_bytes(data[start : start + wide], "big")
                start += wide
            if start + length > len(data):
                break
            self.frames.append((first, data[start : start + length]))
            position = start + length
        return data[position:]

    def messages(self, *types: int) -> list[dict[str, Any]]:
        """The payloads of the juggler messages of these types that have come."""
        decoded = [json.loads(payload) for opcode, payload in self.frames if opcode == 0x80 | TEXT]
        return [one["payload"] for one in decoded if one["meta"]["type"] in types]

    def control(self, opcode: int) -> list[bytes]:
        """The payloads of the control frames of this kind that have come."""
        return [payload for first, payload in self.frames if first == 0x80 | opcode]

    async def gets(self, type_: int, count: int = 1) -> list[dict[str, Any]]:
        """Waits for so many messages of one type."""
        await eventually(
            reactor, lambda: len(self.messages(type_)) >= count or self.is_over, timeout_s=LIMIT_S
        )
        return self.messages(type_)

    async def closes(self) -> tuple[int, str]:
        """Waits for the server's close frame: its code and reason."""
        await eventually(reactor, lambda: self.control(CLOSE) or self.is_over, timeout_s=LIMIT_S)
        assert self.control(CLOSE), "TCP ended without a close frame"
        payload = self.control(CLOSE)[0]
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def ends(self) -> None:
        """Waits for the end of TCP."""
        await eventually(reactor, lambda: self.is_over, timeout_s=LIMIT_S)

    def stop_reading(self) -> None:
        self.transport.pauseProducing()

    def read_again(self) -> None:
        self.transport.resumeProducing()


def connect(
    port: int, *, receive_bytes: int | None = None, address: str = "127.0.0.1"
) -> RawWebSocket:
    """A TCP connection to a local port, nothing said yet.

    Args:
        port: the server's.
        receive_bytes: how much the kernel may take in for us; None: as it likes.
        address: where we come from.
    """
    sock = socket.socket()
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.bind((address, 0))
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    peer = RawWebSocket()
    # Not `adoptStreamConnection`, which cannot stand that the server has cut us off already.
    peer.makeConnection(tcp.Server(sock, peer, sock.getsockname(), None, 0, reactor))
    return peer


class WatchedServer(PelotonServer):
    """The real server, raw peers that end with it, and a look at its metrics."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._peers: list[RawWebSocket] = []

    async def __aexit__(self, *exception: object) -> None:
        for peer in self._peers:
            peer.transport.abortConnection()
        await super().__aexit__(*exception)

    def connect_raw(self, *, port: int | None = None, **options: Any) -> RawWebSocket:
        """See `connect`."""
        self._peers.append(connect(port or self.port, **options))
        return self._peers[-1]

    async def open_raw(
        self, *, fields: dict[str, str] | None = None, **options: Any
    ) -> RawWebSocket:
        """An open WebSocket at the juggler endpoint; `fields` are added to the request's."""
        peer = self.connect_raw(**options)
        peer.say(request(**(fields or {})))
        await eventually(reactor, lambda: peer.head or peer.is_over)
        assert peer.head.startswith(b"HTTP/1.1 101 "), peer.head
        return peer

    async def metric(self, name: str) -> float:
        """One value of the metrics page."""
        _, page = await self.get("/metrics")
        found = re.search(rf"^peloton_{re.escape(name)} (\S+)$".encode(), page, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    async def until_metric(self, name: str, value: float) -> None:
        """Looks again and again until a metric has this value."""
        deadline = self.reactor.seconds() + LIMIT_S
        while (found := await self.metric(name)) != value:
            if self.reactor.seconds() > deadline:
                pytest.fail(f"{name} is {found:g}, not {value:g}")
