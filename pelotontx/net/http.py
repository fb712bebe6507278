"""HTTP/1.1 for servers: requests in, responses out, deadlines, and hand-over to other protocols.

    factory = HTTPFactory(handle, wheel=Wheel(reactor), clock=reactor)
    listen(reactor, "tcp:8080", factory)

`handle(request)` returns a `Response` or an `Upgrade`, or a coroutine or Deferred of one. One
request a connection is worked on at a time; pipelined ones wait, bounded, and are answered in
order. When the client leaves, a handler that is still at work is cancelled. What must not be
understood in two ways is in `wire.http`; here are time, memory and writing.

Every write is backpressured: the connection is its transport's producer. While the peer does not
read, no further request is taken, streams wait, and bodies in memory go out in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.utils import formatdate
from inspect import iscoroutine
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from pelotontx.errors import SlowConsumer
from pelotontx.net.http_deadline import (
    ANSWER,
    BODY,
    CLOSING,
    HEAD,
    IDLE,
    PROGRESS_S,
    TimedConnection,
)
from pelotontx.net.http_message import (
    Body,
    BodyWriter,
    Headers,
    HTTPLimits,
    Request,
    Response,
    Upgrade,
)
from pelotontx.net.tcp import unsent_bytes
from pelotontx.net.wheel import Wheel
from pelotontx.wire.http import (
    CHUNKED,
    METHODS,
    ChunkedBody,
    Framing,
    RefusedRequest,
    SizedBody,
    check_partial,
    read_head,
    read_target,
    status_line,
)

#: A body in memory up to this size leaves in one write; longer ones go in slices of it.
SLICE_BYTES = 256 * 1024

#: Output of one read that is collected before it is written: what a transport buffers at ease.
_BATCH_BYTES = 64 * 1024

#: Response heads of the second, and targets, that are kept at most. Both repeat a lot.
_KEPT = 1024

#: What else a request line holds, at most: ``OPTIONS  HTTP/1.1``.
_AROUND_TARGET = 17

#: Responses without a body and without a length.
_BODILESS = frozenset({204, 304})

#: Pieces of a body that are kept apart: one-byte chunks would cost sixty times their size.
_PIECES = 256

Answer = Response | Upgrade
#: Status, fields, length, whether the connection stays, HTTP version.
HeadKey = tuple[int, bytes, int, bool, str]
Handle = Callable[[Any], Answer | Deferred[Answer] | Coroutine[Deferred[Any], Any, Answer]]


@implementer(IPushProducer)
class HTTPConnection(TimedConnection):
    """One connection; made by `HTTPFactory`."""

    _log = Logger()

    owner: HTTPFactory
    is_secure = False
    peer: IAddress | None = None

    _gone = False  # lost, or another protocol's
    _choked = False  # the transport holds more than it likes
    _paused = False  # we do not read
    _consuming = False  # an answer need not look for the next request: somebody does
    _keep = True  # the connection lives on after this answer
    _room: Deferred[None] | None = None
    _running: Deferred[Any] | None = None
    _tail: memoryview | None = None  # of a long body, not yet written
    # the request whose body is being read
    _request: Request | None = None
    _body: SizedBody | ChunkedBody
    _pieces: list[bytes]
    # the last head's version and fields, and what they were found to say
    _rest = b""
    _framing: Framing
    _requests = 0

    def __init__(self, owner: HTTPFactory) -> None:
        self.owner = owner
        self._buffer = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.is_secure = ISSLTransport.providedBy(transport)
        self.peer = transport.getPeer()
        self.owner.connections.add(self)
        transport.registerProducer(self, True)
        self.enter(HEAD)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._buffer = b""
        self._tail = None
        self._leave()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
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
            if self.phase == ANSWER:
                self._hold(data)
            return
        self._buffer = b""
        self._consume(data)

    def _hold(self, data: bytes) -> None:
        """Keeps input until the present answer is made, or read."""
        self._buffer = data
        if len(data) > self.owner.limits.pipelined_bytes and not self._paused:
            self._paused = True
            cast(Any, self.transport).pauseProducing()

    def _consume(self, data: bytes) -> None:
        """Answers every complete request in `data`, and keeps what is left.

        The hot path: the responses of one read leave in one write, and what a request usually
        needs is written out here instead of called.
        """
        now_s = self.owner.now()
        handle = self.owner.handle
        out: list[bytes] = []
        size = position = 0
        self._consuming = True
        try:
            while position < len(data):
                if self._request is not None:
                    data, position = self._read_body(data[position:], now_s), 0
                    if not self._body.complete:
                        return
                    request, self._request = self._request, None
                    request.body, self._pieces = b"".join(self._pieces), []
                else:
                    end = data.find(b"\r\n\r\n", position) + 4
                    if end < 4:
                        self._read_partial(data[position:])
                        return
                    request = self._read_head(data[position:end])
                    position = end
                    if self._request is not None:
                        self._begin_body(out, now_s, more=position < len(data))
                        continue
                try:
                    result: Any = handle(request)
                except Exception:  # the user's code
                    result = self._crashed(Failure())
                if (
                    type(result) is Response
                    and type(result.body) is bytes
                    and len(result.body) <= SLICE_BYTES
                ):
                    answer = self._render(request, result, result.body)
                    out.append(answer)
                    size += len(answer)
                    if self._keep and size < _BATCH_BYTES:
                        continue
                    self._buffer = data[position:]
                    self._flush(out)
                    if not self._keep:
                        self._close()
                else:
                    self._buffer = data[position:]
                    self._flush(out)
                    self.phase = ANSWER
                    self._start(request, result)
                if self._choked or self.phase >= ANSWER:
                    self._wait()
                    return
                data, self._buffer = self._buffer, b""
                position = size = 0
            if self._request is None:
                self.phase = IDLE
                self.since_s = now_s
        except RefusedRequest as error:
            self._flush(out)
            self._refuse(error.status, error.reason)
        finally:
            self._consuming = False
            if out:
                self._flush(out)

    def _wait(self) -> None:
        if self.phase != CLOSING:
            self.phase = ANSWER
            self._hold(self._buffer)

    def _read_head(self, head: bytes) -> Request:
        """A request; one with a body still to come is left in `_request`."""
        owner = self.owner
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
        self._requests += 1
        self._keep = framing.keep_alive and self._requests < owner.last_request
        request = owner.request_class(self, name, parts, framing, head)
        if framing.length:
            if framing.length > owner.limits.body_limit_bytes:
                raise RefusedRequest(413, "body too large")
            self._request = request
        return request

    def _read_partial(self, pending: bytes) -> None:
        """Keeps the beginning of a head."""
        line = pending[2:] if pending.startswith(b"\r\n") else pending
        if line and line != b"\r":
            check_partial(line, self.owner.limits.head)
        self._buffer = pending
        if self.phase != HEAD:
            self.enter(HEAD)

    def _begin_body(self, out: list[bytes], now_s: float, *, more: bool) -> None:
        assert self._request is not None
        framing = self._request.framing
        self._body = ChunkedBody() if framing.length == CHUNKED else SizedBody(framing.length)
        self._pieces = []
        self.received = 0
        self.received_s = now_s
        if framing.expects and not more:
            out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.enter(BODY)

    def _read_body(self, data: bytes, now_s: float) -> bytes:
        """Takes what belongs to the body; returns what follows it."""
        pieces, rest = self._body.feed(data)
        self.received_s = now_s
        self.received += sum(map(len, pieces))
        if self.received > self.owner.limits.body_limit_bytes:
            raise RefusedRequest(413, "body too large")
        self._pieces.extend(pieces)
        if len(self._pieces) > _PIECES:
            self._pieces = [b"".join(self._pieces)]
        return rest

    # Answering.

    def _start(self, request: Request, result: Any) -> None:
        """Answers with anything but a small `Response`: waits, streams, or hands over."""
        if iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            self._running = result
            result.addErrback(self._failed)
            result.addCallback(self._answered, request)
            result.addErrback(self._cut)
        else:
            self._answered(result, request)

    def _answered(self, result: Any, request: Request) -> None:
        self._running = None
        if self._gone:
            return
        self.owner.now()  # it may have been long: the Date must be of now
        if isinstance(result, Upgrade):
            if request.framing.length:
                self._refuse(400, "an upgrade has no body")
            else:
                self._upgrade(request, result.protocol)
            return
        if not isinstance(result, Response):
            self._log.error("A handler returned {what}", what=type(result).__name__)
            result = _plain(500)
        if isinstance(result.body, bytes):
            self._write_whole(request, result, result.body)
        else:
            streaming = Deferred.fromCoroutine(self._stream(request, result))
            self._running = streaming
            streaming.addCallback(self._streamed)
            streaming.addErrback(self._cut)

    def _crashed(self, failure: Failure) -> Response:
        self._log.failure("A handler failed", failure)
        return _plain(500)

    def _failed(self, failure: Failure) -> Response:
        if self._gone and failure.check(CancelledError):
            return _plain(500)  # nobody is there to see it
        return self._crashed(failure)

    def _write_whole(self, request: Request, response: Response, body: bytes) -> None:
        head = self._render(request, response, body)
        if len(head) <= SLICE_BYTES:
            self._write(head)
            self._finish()
            return
        self._tail = memoryview(head)
        self._write_tail()

    def _write_tail(self) -> None:
        while self._tail is not None and not self._choked and not self._gone:
            piece, rest = self._tail[:SLICE_BYTES], self._tail[SLICE_BYTES:]
            self._tail = rest if len(rest) else None
            self._write(bytes(piece))
        if self._tail is None:
            self._finish()

    async def _stream(self, request: Request, response: Response) -> None:
        body: Any = response.body
        bare = request.method == "HEAD" or response.status in _BODILESS
        chunked = response.length is None and request.version == "1.1"
        if response.length is None and not chunked:
            self._keep = False  # HTTP/1.0: the end of the connection ends the body
        writer = BodyWriter(self, response.length, chunked=chunked)
        self._write(self._stream_head(request, response, chunked=chunked and not bare))
        try:
            if bare:
                return
            if callable(body):
                await body(writer)
            else:
                async for piece in body:
                    writer.write(piece)
                    if self._choked:
                        await writer.drain()
            writer.finish()
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def _streamed(self, _: object) -> None:
        self._running = None
        self._finish()

    def _cut(self, failure: Failure) -> None:
        """A stream failed when bytes had left: the peer must not take the rest for the whole."""
        self._running = None
        if not failure.check(CancelledError, SlowConsumer):
            self._log.failure("A response failed", failure)
        if not self._gone:
            self.abort()

    def _finish(self) -> None:
        """After the last byte of an answer that `_consume` did not write itself."""
        if self._gone or self.phase == CLOSING:
            return
        if not self._keep:
            self._close()
            return
        if self._choked:
            return  # `resumeProducing` comes back here
        self.phase = IDLE
        self.since_s = self.owner.now()
        if not self._consuming:
            self._advance()

    def _advance(self) -> None:
        """Goes on after an answer: the next pipelined request, or waiting for one."""
        if self._paused:
            self._paused = False
            cast(Any, self.transport).resumeProducing()
        data, self._buffer = self._buffer, b""
        if data:
            self._consume(data)
        else:
            self.enter(IDLE)

    def _upgrade(self, request: Request, protocol: Any) -> None:
        """Hands transport, head and what followed over, and is not there any more."""
        transport: Any = self.transport
        data, self._buffer = request.raw_head + self._buffer, b""
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

    # Writing.

    def _render(self, request: Request, response: Response, body: bytes) -> bytes:
        """A whole response."""
        if response.close:
            self._keep = False
        status = response.status
        if request.method == "HEAD" or status in _BODILESS:
            return self._render_bare(request, response, len(body))
        key = status, response.fields, len(body), self._keep, request.framing.version
        head = self.owner.heads.get(key)
        if head is None:
            head = b"%bContent-Length: %d\r\n\r\n" % (self._head(request, response), len(body))
            self.owner.keep_head(key, head)
        return head + body

    def _render_bare(self, request: Request, response: Response, length: int) -> bytes:
        """A whole response that has no body."""
        head = self._head(request, response)
        if response.status in _BODILESS:
            return head + b"\r\n"
        return b"%bContent-Length: %d\r\n\r\n" % (head, response.length or length)

    def _head(self, request: Request, response: Response) -> bytes:
        """A response's head without what frames its body."""
        head = status_line(response.status) + self.owner.fields
        if not self._keep:
            head += b"Connection: close\r\n"
        elif request.version == "1.0":
            head += b"Connection: keep-alive\r\n"
        return head + response.fields

    def _stream_head(self, request: Request, response: Response, *, chunked: bool) -> bytes:
        if response.close:
            self._keep = False
        head = self._head(request, response)
        if chunked:
            head += b"Transfer-Encoding: chunked\r\n"
        elif response.length is not None and response.status not in _BODILESS:
            head += b"Content-Length: %d\r\n" % response.length
        return head + b"\r\n"

    def _write(self, data: bytes) -> None:
        self.written += len(data)
        cast(Any, self.transport).write(data)

    def _flush(self, out: list[bytes]) -> None:
        if out and not self._gone:
            data = out[0] if len(out) == 1 else b"".join(out)
            self.written += len(data)
            self.transport.write(data)  # type: ignore[union-attr]
        out.clear()

    def write_bounded(self, data: bytes) -> None:
        """A stream's write: aborts the connection past `HTTPLimits.unread_bytes`.

        Raises:
            SlowConsumer: the connection was aborted for this.
        """
        if self._gone:
            return
        limit = self.owner.limits.unread_bytes
        if self._choked and unsent_bytes(self.transport) + len(data) > limit:
            self.abort()
            raise SlowConsumer(limit)
        self._write(data)

    def drained(self) -> Deferred[None]:
        """Fires when the transport wants more, or is lost; at once if it does or is."""
        if not self._choked or self._gone:
            return succeed(None)
        if self._room is None:
            self._room = Deferred()
        waiting: Deferred[None] = Deferred()

        def go_on(_: None) -> None:
            if not waiting.called:  # else it was cancelled
                waiting.callback(None)

        self._room.addCallback(go_on)
        return waiting

    # IPushProducer, called by the transport.

    def pauseProducing(self) -> None:
        self._choked = True
        self.watch(self.owner.now() + PROGRESS_S)

    def resumeProducing(self) -> None:
        self._choked = False
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)
        elif self._tail is not None:
            self._write_tail()
        elif self.phase == ANSWER and self._running is None and not self._consuming:
            self._finish()

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""

    # Ending.

    def _refuse(self, status: int, reason: str) -> None:
        """A complete, short error answer, and the end."""
        self._keep = False
        self._request, self._pieces = None, []
        body = f"{status} {reason}\n".encode()
        self._write(
            b"%b%bConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: %d\r\n\r\n%b"
            % (status_line(status), self.owner.fields, len(body), body)
        )
        self._close(gently=True)

    def _close(self, *, gently: bool = False) -> None:
        """Ends the connection once all is written; gently if the peer may still be sending."""
        transport: Any = self.transport
        gently = gently or bool(self._buffer)
        self._buffer = b""
        transport.unregisterProducer()
        if self._paused:
            self._paused = False
            transport.resumeProducing()
        self.enter(CLOSING)
        if gently and not self.is_secure and hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def close_when_idle(self) -> None:
        """Ends the connection now if nothing is going on, else after the present answer."""
        self._keep = False
        if self.phase == IDLE or (self.phase == HEAD and not self._buffer):
            self._close()

    def expire(self) -> None:
        if self.phase == CLOSING:
            self.abort()
        elif self.phase == IDLE or (self.phase == HEAD and not self._buffer):
            self._close()
        else:
            self._refuse(408, "request took too long")


def _without_target(head: bytes, limits: HTTPLimits) -> RefusedRequest:
    if len(head) > limits.head.line_bytes:
        return RefusedRequest(414, "request line too long")
    return RefusedRequest(400, "malformed request line")


def _plain(status: int) -> Response:
    line = status_line(status)
    return Response(status, line[9:-2] + b"\n", content_type="text/plain; charset=utf-8")


class HTTPFactory(Factory):
    """Makes `HTTPConnection`s.

    Args:
        handle: called with each complete request.
        wheel: deadlines of all connections.
        clock: the time, for deadlines and for Date; a reactor.
        limits: what a connection may cost.
        request_class: what `handle` is given; a subclass of `Request`.
        admits: whether there is room for one more connection; otherwise it is closed at once.

    Attributes:
        connections: those that speak HTTP now; upgraded ones are not among them.
        turned_away: how many found no room.
        is_draining: every answer is a connection's last.
        last_request: the request of a connection that is its last.
        fields: Server and Date, as they are now.
        heads: heads of this second's responses.
        targets: request targets, read.
    """

    noisy = False

    def __init__(
        self,
        handle: Handle,
        *,
        wheel: Wheel,
        clock: IReactorTime,
        limits: HTTPLimits | None = None,
        request_class: type[Request] = Request,
        admits: Callable[[], bool] = lambda: True,
    ) -> None:
        self.handle = handle
        self._admits = admits
        self.limits = limits or HTTPLimits()
        self.wheel = wheel
        self.request_class = request_class
        self.connections: set[HTTPConnection] = set()
        self.turned_away = 0
        self.is_draining = False
        self.last_request = self.limits.requests
        self.heads: dict[HeadKey, bytes] = {}
        self.targets: dict[bytes, tuple[str, str, str]] = {}
        self._clock = clock
        self._seconds = clock.seconds
        self._second = -1
        self.fields = b""
        self._drained: list[Deferred[None]] = []
        self._late: IDelayedCall | None = None

    def buildProtocol(self, addr: IAddress | None) -> HTTPConnection | None:
        if not self._admits():
            self.turned_away += 1
            return None
        return HTTPConnection(self)

    def now(self) -> float:
        """The clock's seconds; the Date of responses follows it."""
        now_s = self._seconds()
        if not 0 <= now_s - self._second < 1:
            self._second = int(now_s)
            self.heads.clear()
            date = formatdate(self._second, usegmt=True)
            self.fields = f"Server: pelotontx\r\nDate: {date}\r\n".encode()
        return now_s

    def keep_head(self, key: HeadKey, head: bytes) -> None:
        """Keeps the head of a response for the next like it, for as long as its Date holds."""
        if len(self.heads) < _KEPT:
            self.heads[key] = head

    def read_target(self, method: str, target: bytes, host: bytes) -> tuple[str, str, str]:
        """`wire.http.read_target`, which remembers short targets that depend on nothing else.

        Raises:
            RefusedRequest: as there, and 414 for a request line that is too long.
        """
        if len(target) + _AROUND_TARGET > self.limits.head.line_bytes:
            raise RefusedRequest(414, "request line too long")
        parts = read_target(method, target, host)
        if target.startswith(b"/") and len(target) < 256:
            if len(self.targets) >= _KEPT:
                self.targets.clear()
            self.targets[target] = parts
        return parts

    def forget(self, connection: HTTPConnection) -> None:
        """A connection ended or was handed over."""
        self.connections.discard(connection)
        if self.connections or not self._drained:
            return
        if self._late is not None and self._late.active():
            self._late.cancel()
        drained, self._drained = self._drained, []
        for deferred in drained:
            deferred.callback(None)

    def drain(self, timeout_s: float) -> Deferred[None]:
        """Ends all connections, gracefully as far as time allows.

        Idle ones are closed at once, busy ones answer with ``Connection: close``, and what is
        left after `timeout_s` is aborted. Stop listening first. Cancelling only stops waiting.

        Returns:
            Fires when no connection is left and nothing of them is in the reactor.
        """
        self.is_draining = True
        self.last_request = 0
        for connection in list(self.connections):
            connection.close_when_idle()
        if not self.connections:
            return succeed(None)
        if self._late is None or not self._late.active():
            self._late = self._clock.callLater(timeout_s, self._abort_all)
        drained: Deferred[None] = Deferred(lambda waiting: self._drained.remove(waiting))
        self._drained.append(drained)
        return drained

    def _abort_all(self) -> None:
        for connection in list(self.connections):
            connection.abort()


__all__ = [
    "Body",
    "BodyWriter",
    "HTTPConnection",
    "HTTPFactory",
    "HTTPLimits",
    "Headers",
    "Request",
    "Response",
    "Upgrade",
]
