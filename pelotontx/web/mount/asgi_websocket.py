"""WebSockets of ASGI applications: `net.websocket` speaks, the application sends and receives.

The application decides before the connection is handed over, so that its refusal is an ordinary
answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http import Response, Upgrade
from pelotontx.net.websocket import (
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    Refused,
    ServerFactory,
    origin_allowed,
)
from pelotontx.net.websocket.connection import ServerConnection
from pelotontx.net.websocket.handshake import Handshake, read_handshake
from pelotontx.web.mount.answer import Answer, checked, response_head
from pelotontx.web.mount.asgi_message import (
    ClientDisconnected,
    Message,
    decoded,
    failure_of,
    misplaced,
)
from pelotontx.web.mount.host import Host
from pelotontx.web.request import Request
from pelotontx.wire.http import response_field

#: Bytes of messages that the application has not received, past which the client is not read.
_HIGH_BYTES: Final = 128 * 1024

#: And past which the connection is closed: one read can hold many messages, if they are compressed.
_LIMIT_BYTES: Final = 16 * 1024 * 1024

#: What each of them costs besides: empty ones are not free.
_MESSAGE_BYTES: Final = 256

_NORMAL: Final = 1000
_ABNORMAL: Final = 1006


class Socket:
    """One WebSocket, from its opening request on: what `receive` and `send` do.

    It is the connection's `Conversation` as well.

    Raises:
        Refused: an opening request that the application need not see.
    """

    _log = Logger()

    def __init__(
        self,
        request: Request,
        host: Host,
        factory: ServerFactory,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        handshake, _ = read_handshake(request.raw_head, request.client)
        is_secure = request.scheme == "https"
        origin = handshake.headers.get("origin")
        if not origin_allowed(origin, request.host, host.origins, is_secure=is_secure):
            raise Refused(403, f"origin {origin!a} is not allowed at {request.host!a}")
        self.answer = Answer(request, wheel=host.wheel, on_gone=self._gone)
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "scheme": "wss" if is_secure else "ws",
            "subprotocols": handshake.subprotocols,
            "extensions": {"websocket.http.response": {}},
        }
        self._request = request
        self._factory = factory
        self._loop = loop
        self._open_timeout_s = host.websocket_limits.open_timeout_s
        self._connection: ServerConnection | None = None
        self._subprotocol: str | None = None
        self._head: Response | None = None
        self._is_decided = False
        self._is_over = False
        self._messages: deque[Message] = deque([{"type": "websocket.connect"}])
        self._unread = 0
        self._is_reading = True
        self._news = asyncio.Event()
        self._news.set()
        self._opened = asyncio.Event()

    # For the application.

    async def receive(self) -> Message:
        """The next event; after the end that again and again."""
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        message = self._messages[0]
        if message["type"] == "websocket.disconnect":
            return message
        self._messages.popleft()
        self._unread -= _size(message)
        if not self._is_reading and self._unread <= _HIGH_BYTES // 2:
            self._read_on()
        return message

    async def send(self, message: Message) -> None:
        """An event of the application's; waits while the client does not read.

        Raises:
            ClientDisconnected: nobody is there any more.
            LocalProtocolError: what may not be sent, or not now.
        """
        if self._is_over:
            raise ClientDisconnected("the client has gone")
        kind = message["type"]
        if self._connection is not None:
            await self._send(self._connection, message)
        elif self._is_decided:
            raise misplaced(message)
        elif kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.close":
            self._is_decided = True
            self.answer.replace(Response(403, b"403 Forbidden\n", (), "text/plain"))
            self._end(_ABNORMAL)
        elif kind == "websocket.http.response.start" and self._head is None:
            self._head = response_head(message["status"], decoded(message.get("headers", ())))
        elif kind == "websocket.http.response.body" and self._head is not None:
            self._send_refusal(message)
        else:
            raise misplaced(message)

    async def _accept(self, message: Message) -> None:
        subprotocol = message.get("subprotocol")
        if subprotocol is not None and subprotocol not in self.scope["subprotocols"]:
            raise LocalProtocolError(f"{subprotocol!r} was not offered")
        fields = [
            response_field(name, value)
            for name, value in decoded(message.get("headers") or ())
            if name.lower() != "sec-websocket-protocol"  # the subprotocol's, above
        ]
        self._is_decided = True
        self._subprotocol = subprotocol
        connection = self._factory.buildProtocol(self._request.peer)
        connection.accept = self._accepted
        connection.fields = b"".join(fields)
        self.answer.replace(Upgrade(connection))
        try:
            await asyncio.wait_for(self._opened.wait(), self._open_timeout_s)
        except TimeoutError:
            self._end(_ABNORMAL)
        if self._is_over:
            raise ClientDisconnected("the client has gone")

    def _send_refusal(self, message: Message) -> None:
        answer = self.answer
        assert self._head is not None
        body = checked(message.get("body", b""))
        answer.is_held = True
        if not answer.has_begun:
            answer.begin(self._head)
        answer.write(body)
        if not message.get("more_body", False):
            self._is_decided = True
            answer.finish()
            self._end(_ABNORMAL)
        answer.release()

    async def _send(self, connection: ServerConnection, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.close":
            code, reason = message.get("code", _NORMAL), message.get("reason") or ""
            connection.close(code, reason)
            self._end(code)
        elif kind != "websocket.send":
            raise misplaced(message)
        else:
            text = message.get("text")
            if text is not None:
                connection.send_text(text.encode())
            else:
                connection.send_binary(message["bytes"])
            await connection.drained().asFuture(self._loop)

    # For the connection.

    def _accepted(self, _: Handshake) -> Any:
        return self._subprotocol, self._begin

    def _begin(self, connection: ServerConnection) -> Socket:
        self._connection = connection
        self._opened.set()
        return self

    def text_received(self, payload: bytes) -> None:
        """See `Conversation`."""
        self._take({"type": "websocket.receive", "text": payload.decode()}, len(payload))

    def binary_received(self, payload: bytes) -> None:
        """See `Conversation`."""
        self._take({"type": "websocket.receive", "bytes": payload}, len(payload))

    def connection_lost(self, code: int) -> None:
        """See `Conversation`."""
        self._end(code)

    def _take(self, message: Message, size: int) -> None:
        connection = self._connection
        if self._is_over or connection is None:
            return
        self._messages.append(message)
        self._unread += size + _MESSAGE_BYTES
        self._news.set()
        if self._unread > _LIMIT_BYTES:
            connection.close(POLICY_VIOLATION, "messages are not taken")
            self._end(POLICY_VIOLATION)
        elif self._unread > _HIGH_BYTES and self._is_reading:
            self._is_reading = False
            connection.pause_reading()

    def _read_on(self) -> None:
        self._is_reading = True
        if self._connection is not None:
            self._connection.resume_reading()

    # Ends.

    def _gone(self) -> None:
        """The client did not wait for the decision."""
        self._end(_ABNORMAL)

    def _end(self, code: int) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._messages.append({"type": "websocket.disconnect", "code": code, "reason": ""})
        self._news.set()
        self._opened.set()
        if not self._is_reading:
            self._read_on()  # else the peer's close frame would not be read

    def ended(self, task: asyncio.Task[None]) -> None:
        """The application is done."""
        error = failure_of(task)
        if self._connection is not None and not self._is_over:
            if error is None:
                self._connection.close(_NORMAL, "")
            else:
                self._connection.close(INTERNAL_ERROR, "internal error")
            self._end(_NORMAL)
        elif not self._is_decided:
            unanswered = LocalProtocolError("the application ended without a decision")
            self.answer.fail(Failure(error or unanswered))
            return
        if error is not None and not isinstance(error, ClientDisconnected):
            self._log.failure(
                "The WebSocket of {path} failed", Failure(error), path=self._request.path
            )


def _size(message: Message) -> int:
    payload = message.get("text") or message.get("bytes") or b""
    size = len(payload.encode()) if isinstance(payload, str) else len(payload)
    return size + _MESSAGE_BYTES
