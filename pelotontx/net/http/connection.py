"""One HTTP connection: requests are read, answered in their order, and at some time it ends.

Made by `net.http.HTTPFactory`. What a handler returned is written in `net.http.answer`, and how
long everything may take is watched in `net.http.deadline`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from pelotontx.net.http import answer
from pelotontx.net.http.answer import SLICE_BYTES, body_bytes
from pelotontx.net.http.deadline import ANSWER, BODY, CLOSING, HEAD, IDLE
from pelotontx.net.http.message import HTTPLimits, Request, Response, Upgrade
from pelotontx.net.http.receive import ReceivingConnection
from pelotontx.net.tcp import has_input, is_gone, keep_unread, lose_ended, probe_peer
from pelotontx.wire.http import (
    METHODS,
    Framing,
    RefusedRequest,
    check_partial,
    read_head,
    status_line,
)

#: Output of one read that is collected before it is written: what a transport buffers at ease.
_BATCH_BYTES = 64 * 1024

#: What a connection without any request yet is given when the server stops.
NEW_S = 1.0

Answer = Response | Upgrade
Handle = Callable[[Any], Answer | Deferred[Answer] | Coroutine[Deferred[Any], Any, Answer]]


class Owner(answer.Owner, Protocol):
    """The factory, as its connections see it; `HTTPFactory` tells what the attributes are."""

    handle: Handle
    last_request: int
    targets: dict[bytes, tuple[str, str, str]]

    def read_target(self, method: str, target: bytes, host: bytes) -> tuple[str, str, str]:
        """A request target as text, its path, and its query; raises `RefusedRequest`."""

    def remember(self, connection: HTTPConnection) -> None:
        """A connection began."""

    def forget(self, connection: HTTPConnection) -> None:
        """A connection ended or was handed over."""


@implementer(IHalfCloseableProtocol)
class HTTPConnection(ReceivingConnection):
    """One connection."""

    owner: Owner

    # the last head's version and fields, and what they were found to say
    _rest = b""
    _last_head = b""  # and all of it
    _last_parts: tuple[str, tuple[str, str, str]]
    _framing: Framing
    _requests = 0
    _requests_before = 0  # the head that is coming

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._buffer = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.is_secure = ISSLTransport.providedBy(transport)
        self.peer = transport.getPeer()
        self.owner.remember(self)
        transport.registerProducer(self, True)
        self.enter(HEAD)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._buffer = self._head = b""
        self._leave()
        if self._writer is not None:
            self._writer.close()
        self._report()
        self._tail = None
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._end_body(RefusedRequest(400, "connection lost"))
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    def _leave(self) -> None:
        self._gone = True
        self.unwatch()
        self.owner.forget(self)

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if self.phase >= ANSWER:
            if self._decoder is not None:
                self._feed(self._decoder, data)
            elif self.phase != CLOSING:
                self._hold(data)
            return
        self._buffer = b""
        self._consume(data)

    def _consume(self, data: bytes) -> None:
        """Answers every complete request in `data`, and keeps what is left.

        The responses of one read leave in one write.
        """
        out: list[bytes] = []
        self._consuming = True
        try:
            self._answer_all(data, out)
        except RefusedRequest as error:
            self._flush(out)
            self._refuse(error.status, error.reason)
        finally:
            self._consuming = False
            if out:
                self._flush(out)

    def _answer_all(self, data: bytes, out: list[bytes]) -> None:
        """The hot path: what a request usually needs is written out here instead of called.

        Raises:
            RefusedRequest: of `_read_head` and the like; what is in `out` is to be written first.
        """
        now_s = self.owner.now()
        handle = self.owner.handle
        on_answered = self.owner.on_answered
        size = position = 0
        while position < len(data):
            end = data.find(b"\r\n\r\n", position) + 4
            if end < 4:
                self._read_partial(data[position:])
                return
            request = self._read_head(data[position:end])
            position = end
            if request.framing.length:
                position = self._take_body(request, data, position)
                if self._body is not None:
                    self._flush(out)  # before a 100 (Continue)
                    self.phase = ANSWER
            try:
                result: Any = handle(request)
            except Exception:  # the user's code
                result = self._crashed(Failure(), request)
            if (
                type(result) is Response
                and type(result.body) is bytes
                and len(result.body) <= SLICE_BYTES
                and self._body is None
            ):
                rendered = self._render(request, result, result.body)
                out.append(rendered)
                if on_answered is not None:
                    self.report(request, result.status, body_bytes(request, result), now_s)
                size += len(rendered)
                if self._keep and size < _BATCH_BYTES:
                    continue
                self._buffer = data[position:]
                self._flush(out)
                if not self._keep:
                    self._close()
            else:
                self._buffer = data[position:]
                self._flush(out)
                if self.phase < ANSWER:
                    self.phase = ANSWER
                self._start(request, result, now_s)
            if self._choked or self.phase >= ANSWER:
                self._wait()
                return
            data, self._buffer = self._buffer, b""
            position = size = 0
        self.phase = IDLE
        self.since_s = now_s

    def _wait(self) -> None:
        """Holds what is left until the answer is made, or read."""
        if self.phase < ANSWER:
            self.phase = ANSWER
        if self.phase != CLOSING:
            self._hold(self._buffer)

    def _read_head(self, head: bytes) -> Request:
        """A request, without its body."""
        owner = self.owner
        if head == self._last_head:  # asked again: saves 0.3 us of 2.3 (benchmarks/http_memory.py)
            self._requests += 1
            self._keep = self._framing.keep_alive and self._requests < owner.last_request
            return owner.request_class(self, *self._last_parts, self._framing, head)
        try:
            method, target, rest = head.split(b" ", 2)
        except ValueError:
            raise _without_target(head, owner.limits) from None
        name = METHODS.get(method)
        if name is not None and rest == self._rest:
            framing = self._framing  # the same fields as last time, judged then
        else:
            if head.startswith(b"\r\n") and not head.startswith(b"\r\n", 2):
                return self._read_head(head[2:])  # RFC 9112, 2.2: one empty line is forgiven
            framing = self._framing = read_head(head, method, rest, owner.limits.head)
            self._rest = rest
            name = METHODS[method]
        parts = owner.targets.get(target) or owner.read_target(name, target, framing.host)
        self._last_head, self._last_parts = head, (name, parts)
        self._requests += 1
        self._keep = framing.keep_alive and self._requests < owner.last_request
        return owner.request_class(self, name, parts, framing, head)

    def _read_partial(self, pending: bytes) -> None:
        """Keeps the beginning of a head."""
        line = pending[2:] if pending.startswith(b"\r\n") else pending
        if line and line != b"\r":
            check_partial(line, self.owner.limits.head)
        self._buffer = pending
        if self.phase != HEAD or self._requests != self._requests_before:
            self._requests_before = self._requests
            self.enter(HEAD)

    # From one request to the next.

    def _finish(self) -> None:
        """After the last byte of an answer that `_answer_all` did not write itself."""
        if self._gone or self.phase == CLOSING:
            return
        self._settle()
        if not self._keep:
            self._close()
            return
        if self._choked:
            self.phase = ANSWER
            return  # `resumeProducing` comes back here
        if self._decoder is not None:
            self._resume()
            self.enter(BODY)
            return  # `_drop` comes back here
        self.phase = IDLE
        self.since_s = self.owner.now()
        if not self._consuming:
            self._advance()

    def _advance(self) -> None:
        """Goes on after an answer: the next pipelined request, or waiting for one."""
        self._resume()
        data, self._buffer = self._buffer, b""
        if data:
            self._consume(data)
        else:
            self.enter(IDLE)
        if self._input_ended and self.phase < ANSWER and not self._gone:
            self._close()  # what was sent is answered, and no more will come

    def _hand_over(self, request: Request, protocol: Any) -> None:
        """Hands transport, head and what followed over, and is not there any more."""
        if request.framing.length or self._input_ended:
            self._refuse(400, "an upgrade has no body, and needs both directions")
            return
        transport: Any = self.transport
        data, self._buffer = request.raw_head + self._buffer, b""
        self._status = 101
        self._report()
        self.phase = CLOSING
        self._leave()
        transport.unregisterProducer()
        if self._paused:
            transport.resumeProducing()
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        self.transport = None
        try:
            protocol.makeConnection(transport)
            protocol.dataReceived(data)
        except Exception:  # another protocol's code
            self._log.failure("The protocol of an upgrade failed")
            transport.abortConnection()

    # IHalfCloseableProtocol, called by the transport; TLS has no half-close.

    def readConnectionLost(self) -> None:
        """The peer sends no more, and may well be reading still (RFC 9112, 9.6).

        An answer that is being made is finished. For a peer that is gone altogether, which TCP
        does not tell from this, it is cut short when a write or a probe fails.
        """
        self._input_ended = True
        if self._body is None:
            self._decoder = None  # what nobody reads need not come
        if self.phase == CLOSING:
            cast(Any, self.transport).loseConnection()
        elif self.phase != ANSWER and self._body is None:
            self._close()
        elif self._decoder is not None or is_gone(self.transport):
            self.abort()  # of half a body nothing can be made
        else:
            if not self._buffer:
                self._keep = False
            probe_peer(self.transport)

    def writeConnectionLost(self) -> None:
        """Our last byte was sent; the peer's, or the end of `HTTPLimits.linger_s`, follows."""

    # Ending.

    def _refuse(self, status: int, reason: str) -> None:
        """A complete, short error answer, and the end."""
        self._keep = False
        body = f"{status} {reason}\n".encode()
        if self._request is None:
            self._request, self._began_s = self.unread_request(), self.owner.now()
        self._status, self._body_bytes = status, len(body)
        self._write(
            b"%b%bConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: %d\r\n\r\n%b"
            % (status_line(status), self.owner.fields, len(body), body)
        )
        self._report()
        self._close(gently=True)

    def _close(self, *, gently: bool = False) -> None:
        """Ends the connection once all is written; gently if the peer may still be sending."""
        transport: Any = self.transport
        unread = self._buffer or self._is_cut or self._decoder is not None
        gently = (gently or bool(unread)) and not self._input_ended
        self._buffer = b""
        self._decoder = None
        self._end_body(RefusedRequest(400, "connection closed"))
        transport.unregisterProducer()
        self._resume()
        self.enter(CLOSING)
        if gently and not self.is_secure and hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()
        elif self._input_ended:
            lose_ended(transport)
        else:
            keep_unread(transport, self.owner.limits.unread_s)
            transport.loseConnection()

    def close_when_idle(self) -> None:
        """Ends the connection now if nothing is going on, else after the present answer.

        A request that is here unread is answered, and a connection that has only just come has a
        moment to say what it wants: whoever sent it cannot know that it came too late.
        """
        self._keep = False
        if self.phase == HEAD and not self._requests:
            self.last_s = self.owner.now() + NEW_S
            self.watch(self.last_s)
        elif (self.phase == BODY and self._body is None) or (
            self._is_idle() and not has_input(self.transport)
        ):
            self._close()

    def _is_idle(self) -> bool:
        return self.phase == IDLE or (self.phase == HEAD and not self._buffer)

    def expire(self) -> None:
        if self.phase == CLOSING:
            self.abort()
        elif self.phase == BODY:
            self._cut_body(RefusedRequest(408, "body took too long"))
        elif self._is_idle():
            self._close()
        else:
            self._refuse(408, "request took too long")


def _without_target(head: bytes, limits: HTTPLimits) -> RefusedRequest:
    if len(head) > limits.head.line_bytes:
        return RefusedRequest(414, "request line too long")
    return RefusedRequest(400, "malformed request line")
