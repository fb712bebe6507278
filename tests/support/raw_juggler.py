"""A juggler client for tests that shares nothing with the package: its own frames, its own JSON.

    peer = await connect(reactor, server.port)
    uuid = peer.send(CALL, uri="test.echo", args="0012")
    await peer.until(lambda: peer.of(RES))

It sends whatever it is told to, right or wrong, and remembers all that comes, in order. RFC 6455,
from the client's side.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

CALL, PUB, SUB, UNSB = 1, 2, 3, 4
NACK, ACK, RES, EVNT = 7, 8, 9, 10
EXP = 256

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

# Generous: only a server that hangs meets it.
_PATIENCE_S = 30.0
_HEAD_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Message:
    """One text message as it came.

    Attributes:
        text: all of it.
        value: the same, decoded.
    """

    text: str
    value: Any

    @property
    def type(self) -> int:
        return int(self.value["meta"]["type"])

    @property
    def uuid(self) -> str:
        return str(self.value["meta"]["uuid"])

    @property
    def payload(self) -> dict[str, Any]:
        payload = self.value["payload"]
        assert isinstance(payload, dict)
        return payload

    @property
    def for_uuid(self) -> str:
        return str(self.payload["for"])

    @property
    def args_text(self) -> str:
        """The args as they were written."""
        return raw_member(raw_member(self.text, "payload"), "args")


class RefusedError(Exception):
    """The opening handshake was answered with something else than 101."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = headers
        self.body = body


@dataclass
class Opening:
    """An opening request, to be bent as a test likes; `early` follows it at once."""

    path: str = "/ws"
    subprotocols: Sequence[str] = ("juggler.0",)
    headers: Sequence[tuple[str, str]] = ()
    origin: str | None = None
    early: bytes = b""
    key: str = field(default_factory=lambda: base64.b64encode(os.urandom(16)).decode())

    def encode(self, host: str) -> bytes:
        """The request's head, and what follows at once."""
        lines = [
            f"GET {self.path} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self.key}",
            "Sec-WebSocket-Version: 13",
        ]
        if self.subprotocols:
            lines.append("Sec-WebSocket-Protocol: " + ", ".join(self.subprotocols))
        if self.origin is not None:
            lines.append(f"Origin: {self.origin}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + self.early

    def check(self, headers: dict[str, str]) -> None:
        """Raises AssertionError where the answer is not one to our key."""
        magic = self.key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic).digest()).decode()
        assert headers["sec-websocket-accept"] == accept
        assert headers["upgrade"].lower() == "websocket"


class RawPeer(Protocol):
    """One connection.

    Attributes:
        messages: the text messages that came, in order.
        pongs: the payloads of pongs that came.
        close: code and reason of the close frame that came; None: none did (yet).
        is_lost: whether TCP has ended.
        subprotocol: what the server has chosen, "" for none.
        answers_pings: set it to false to play dead.
        on_message: told each message as it comes.
        on_lost: told the end of TCP.
    """

    def __init__(self, opening: Opening, host: str, clock: Any) -> None:
        self.messages: list[Message] = []
        self.pongs: list[bytes] = []
        self.close: tuple[int, str] | None = None
        self.is_lost = False
        self.subprotocol = ""
        self.answers_pings = True
        self.on_message: Callable[[Message], object] = lambda message: None
        self.on_lost: Callable[[], object] = lambda: None
        self.opened: Deferred[RawPeer] = Deferred()
        self._opening = opening
        self._host = host
        self._clock = clock
        self._is_open = False
        self._data = bytearray()
        self._parts: list[bytes] = []
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    # Sending

    def send(self, type_: int, *, uuid_: str | None = None, **payload: Any) -> str:
        """Sends a message; the result is its id. A name with a `_` behind loses it."""
        uuid_ = uuid_ or str(uuid.uuid4())
        payload = {name.removesuffix("_"): value for name, value in payload.items()}
        self.send_text(json.dumps({"meta": {"type": type_, "uuid": uuid_}, "payload": payload}))
        return uuid_

    def send_many(self, type_: int, payloads: Sequence[dict[str, Any]]) -> list[str]:
        """Sends messages of one type in one write; their ids, in order."""
        ids = [str(uuid.uuid4()) for _ in payloads]
        messages = (
            json.dumps({"meta": {"type": type_, "uuid": id_}, "payload": payload})
            for id_, payload in zip(ids, payloads, strict=True)
        )
        self.send_bytes(b"".join(encode_frame(TEXT, text.encode()) for text in messages))
        return ids

    def send_call(self, uri: str, args_text: str | bytes, *, timeout: int = 0) -> str:
        """A CALL whose args are these characters or bytes."""
        uuid_ = str(uuid.uuid4())
        head = (
            f'{{"meta":{{"type":{CALL},"uuid":"{uuid_}"}},'
            f'"payload":{{"uri":{json.dumps(uri)},"timeout":{timeout},"args":'
        )
        args = args_text.encode() if isinstance(args_text, str) else args_text
        self.send_text(head.encode() + args + b"}}")
        return uuid_

    def send_text(self, text: str | bytes, *, cuts: Iterable[int] = ()) -> None:
        """One text message, fragmented where `cuts` says."""
        data = text.encode() if isinstance(text, str) else text
        ends = [*cuts, len(data)]
        start = 0
        for n, end in enumerate(ends):
            is_last = n == len(ends) - 1
            self.send_frame(TEXT if n == 0 else CONTINUATION, data[start:end], fin=is_last)
            start = end

    def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        """One masked frame."""
        self.send_bytes(encode_frame(opcode, payload, fin=fin))

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """A close frame."""
        self.send_frame(CLOSE, struct.pack(">H", code) + reason.encode())

    def send_bytes(self, data: bytes) -> None:
        """Anything."""
        self.transport.write(data)

    def abort(self) -> None:
        """A reset."""
        self.transport.abortConnection()

    async def leave(self) -> None:
        """Ends the connection, and waits for that."""
        self.transport.loseConnection()
        await self.until(lambda: self.is_lost)

    # What came

    def of(self, *types: int) -> list[Message]:
        """The messages of some types, in order."""
        return [message for message in self.messages if message.type in types]

    def answers_to(self, uuid_: str) -> list[Message]:
        """The messages that name a request, in order."""
        return [message for message in self.messages if message.payload.get("for") == uuid_]

    async def until(self, is_so: Callable[[], object], *, timeout_s: float = _PATIENCE_S) -> None:
        """Waits until what came makes it so; raises AssertionError past the timeout."""
        if is_so():
            return
        waiting: Deferred[None] = Deferred()
        self._waiting.append((is_so, waiting))

        def give_up(*_: object) -> None:
            came = f"{len(self.messages)} messages, last {self.messages[-3:]}, close {self.close}"
            raise AssertionError(f"not so within {timeout_s:g} s; came: {came}")

        await waiting.addTimeout(timeout_s, self._clock, give_up)

    async def answer(self, uuid_: str, *types: int) -> Message:
        """The answer of one of these types to a request."""
        await self.until(lambda: [m for m in self.answers_to(uuid_) if m.type in types])
        return next(m for m in self.answers_to(uuid_) if m.type in types)

    async def request(self, type_: int, **payload: Any) -> Message:
        """Sends a request; the ACK or NACK."""
        return await self.answer(self.send(type_, **payload), ACK, NACK)

    async def call(self, uri: str, args: Any = None, *, timeout: int = 0) -> Message:
        """Sends a CALL; the RES."""
        return await self.answer(self.send(CALL, uri=uri, args=args, timeout=timeout), RES)

    async def echoed(self) -> None:
        """Until the server has read all that was sent before."""
        token = os.urandom(8)
        self.send_frame(PING, token)
        await self.until(lambda: token in self.pongs)

    async def closed(self) -> tuple[int, str]:
        """Waits for TCP to end; code and reason of the close frame."""
        await self.until(lambda: self.is_lost)
        assert self.close is not None, "the connection was dropped without a close frame"
        return self.close

    # Twisted

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.write(self._opening.encode(self._host))

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if not self._is_open:
            self._read_head()
        if self._is_open:
            while self._read_frame():
                pass
            self._look()

    def connectionLost(self, reason: Failure) -> None:
        self.is_lost = True
        if not self.opened.called:
            self._refuse()
        self.on_lost()
        self._look()

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for is_so, deferred in waiting:
            if deferred.called:
                continue
            if is_so():
                deferred.callback(None)
            else:
                self._waiting.append((is_so, deferred))

    def _read_head(self) -> None:
        head, blank, rest = bytes(self._data).partition(b"\r\n\r\n")
        if not blank:
            assert len(head) < _HEAD_LIMIT_BYTES
            return
        status, headers = _parse_head(head)
        if status != 101:
            if len(rest) >= int(headers.get("content-length", _HEAD_LIMIT_BYTES)):
                self.transport.loseConnection()  # otherwise its body ends with the connection
            return
        self._opening.check(headers)
        self.subprotocol = headers.get("sec-websocket-protocol", "")
        self._is_open = True
        self._data[:] = rest
        self.opened.callback(self)

    def _refuse(self) -> None:
        head, _, body = bytes(self._data).partition(b"\r\n\r\n")
        if head:
            self.opened.errback(RefusedError(*_parse_head(head), body))
        else:
            self.opened.errback(RefusedError(0, {}, b""))

    def _read_frame(self) -> bool:
        data = self._data
        if len(data) < 2:
            return False
        length, start = data[1], 2
        assert not length & 0x80, "a server must not mask"
        assert not data[0] & 0x70, "no extension was negotiated"
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(data) < start:
                return False
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return False
        opcode, is_last = data[0] & 0x0F, bool(data[0] & 0x80)
        payload = bytes(data[start : start + length])
        del data[: start + length]
        self._frame(opcode, payload, is_last)
        return True

    def _frame(self, opcode: int, payload: bytes, is_last: bool) -> None:
        assert self.close is None, "nothing may follow a close frame"
        if opcode in (TEXT, CONTINUATION):
            assert (opcode == CONTINUATION) == bool(self._parts), "fragments out of order"
            self._parts.append(payload)
            if is_last:
                text = b"".join(self._parts).decode()
                self._parts.clear()
                message = Message(text, json.loads(text))
                self.messages.append(message)
                self.on_message(message)
        elif opcode == PING:
            if self.answers_pings:
                self.send_frame(PONG, payload)
        elif opcode == PONG:
            self.pongs.append(payload)
        else:
            assert opcode == CLOSE, f"opcode {opcode}"
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.close = (code, payload[2:].decode())
            self.send_frame(CLOSE, payload)


async def connect(
    reactor: Any, address: int | str, opening: Opening | None = None, **changes: Any
) -> RawPeer:
    """Opens a connection to a port of loopback, or to a UNIX socket.

    Args:
        reactor: connects and keeps time.
        address: a port, or the socket's path.
        opening: the request; None: an ordinary one.
        changes: of the ordinary one, see `Opening`.

    Raises:
        RefusedError: the answer was not 101.
    """
    if isinstance(address, int):
        endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", address)
        host = f"127.0.0.1:{address}"
    else:
        endpoint, host = UNIXClientEndpoint(reactor, address), "localhost"
    opening = opening or Opening(**changes)
    factory = Factory.forProtocol(lambda: RawPeer(opening, host, reactor))
    factory.noisy = False
    peer = await endpoint.connect(factory)
    return await peer.opened.addTimeout(_PATIENCE_S, reactor, lambda *_: peer.abort())


def encode_frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A masked frame (RFC 6455, 5.2)."""
    head = bytes([opcode | (0x80 if fin else 0)])
    length = len(payload)
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 1 << 16:
        head += struct.pack(">BH", 0x80 | 126, length)
    else:
        head += struct.pack(">BQ", 0x80 | 127, length)
    mask = os.urandom(4)
    repeated = mask * (length // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:length], "big")
    return head + mask + masked.to_bytes(length, "big")


def raw_member(text: str, name: str) -> str:
    """The characters of a member's value in the text of a JSON object."""
    decoder = json.JSONDecoder()
    at = text.index("{") + 1
    while True:
        key, at = decoder.raw_decode(text, _skip(text, at))
        at = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = decoder.raw_decode(text, at)
        if key == name:
            return text[at:end]
        at = _skip(text, end)
        if text[at] == "}":
            raise KeyError(name)
        at += 1


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(first.split()[1]), headers
