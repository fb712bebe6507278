"""One stream of HTTP/2: a request and its answer.

Made by `net.http2.HTTP2Connection`, which decides when a stream may send. The bodies, in and out,
are in `net.http2.flow`.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import iscoroutine
from typing import Any, Protocol

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError, SlowConsumer
from pelotontx.net.http import deadline
from pelotontx.net.http.answer import CLIENT_GONE, UNREAD, OnAnswered
from pelotontx.net.http.message import Request, Response, Upgrade
from pelotontx.net.http.writer import BodyWriter
from pelotontx.net.http2.flow import NEVER, Incoming, Outgoing
from pelotontx.net.sendfile import FileSlice
from pelotontx.wire.http import (
    CHUNKED,
    METHODS,
    REASONS,
    Framing,
    RefusedRequest,
    read_head,
    response_field,
)
from pelotontx.wire.http2 import MalformedRequest, request_head, response_pairs

#: Responses without a body and without a length.
_BODILESS = frozenset({204, 304})

#: Errors after which HTTP/1.1 would not know where the next request begins. Here it is known.
_OF_FRAMING = frozenset({400, 408, 413})


class Owner(deadline.Owner, Protocol):
    """The factory, as these connections see it; `net.http.HTTPFactory` tells what there is."""

    clock: IReactorTime
    fields: bytes
    handle: Any
    last_request: int
    on_answered: OnAnswered | None
    request_class: type[Request]
    targets: dict[bytes, tuple[str, str, str]]

    def read_target(self, method: str, target: bytes, host: bytes) -> tuple[str, str, str]:
        """A request target as text, its path, and its query; raises `RefusedRequest`."""

    def remember(self, connection: Any) -> None:
        """A connection began."""

    def forget(self, connection: Any) -> None:
        """A connection ended."""


class Connection(Protocol):
    """The connection, as its streams see it.

    Attributes:
        judged: the fields of the last request, and what they were found to say.
        sent_s: when data went last, of any stream.
    """

    owner: Owner
    h2: H2Connection
    peer: IAddress | None
    is_secure: bool
    judged: tuple[bytes, Framing | None]
    sent_s: float

    def may_receive(self, stream: HTTP2Stream) -> bool:
        """Whether a stream's window may be opened."""

    def release(self, size: int) -> None:
        """So much of a body is not held any more."""

    def send(self, stream: HTTP2Stream) -> None:
        """The stream has something to send."""

    def push(self) -> None:
        """Writes now."""

    def wake(self) -> None:
        """Writes soon."""

    def finish(self, stream: HTTP2Stream) -> None:
        """The stream's last byte was written."""

    def cut(self, stream: HTTP2Stream, code: ErrorCodes) -> None:
        """The stream cannot be finished."""

    def close_when_idle(self) -> None:
        """No further request is wanted."""


class HTTP2Stream:
    """A request and its answer.

    Attributes:
        incoming: the request's body.
        outgoing: the answer's.
        status: the answer's; 0 before there is one.
    """

    _log = Logger()

    __slots__ = (
        "_began_s",
        "_body_bytes",
        "_connection",
        "_gone",
        "_head",
        "_is_bare",
        "_request",
        "_running",
        "_writer",
        "incoming",
        "outgoing",
        "status",
        "stream_id",
    )

    def __init__(self, connection: Connection, stream_id: int, *, has_body: bool) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self._gone = False
        self._request: Request | None = None
        self._running: Deferred[Any] | None = None
        self._is_bare = False  # the answer has no body: the method is HEAD
        self._began_s = connection.owner.now()
        self.status = 0
        self._body_bytes = 0
        self._head: Response | None = None  # of a stream; see `_send_head`
        self._writer: BodyWriter | None = None
        self.incoming = Incoming(self, connection.owner.limits, is_open=has_body)
        self.outgoing = Outgoing()

    # The request.

    def read(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Reads a head; one that is refused is answered at once.

        Raises:
            MalformedRequest: the stream is to be reset.
        """
        pairs = list(pairs)
        self._is_bare = (b":method", b"HEAD") in pairs
        try:
            self._request = self._read(pairs)
        except RefusedRequest as error:
            self._answer(_plain(error.status, error.reason))

    def _read(self, pairs: list[tuple[bytes, bytes]]) -> Request:
        owner = self._connection.owner
        method, target, rest = request_head(pairs)
        head = b"%b %b %b" % (method, target, rest)
        framing = self._judge(head, method, rest)
        if not self.incoming.is_open and framing.length:
            raise MalformedRequest("a length without a body")
        if self.incoming.is_open and not framing.length:
            framing = framing._replace(length=CHUNKED)  # its end will tell
        name = METHODS[method]
        parts = owner.targets.get(target) or owner.read_target(name, target, framing.host)
        return owner.request_class(self, name, parts, framing, head)

    def _judge(self, head: bytes, method: bytes, rest: bytes) -> Framing:
        """What the fields say, by the rules of HTTP/1.1."""
        judged, framing = self._connection.judged
        if framing is None or judged != rest or method not in METHODS:
            framing = read_head(head, method, rest, self._connection.owner.limits.head)
            framing = framing._replace(version="2", keep_alive=True)
            self._connection.judged = rest, framing
        return framing

    def start(self) -> None:
        """Has the request answered, unless it has been refused or lost."""
        request = self._request
        if request is None or self._gone:
            return
        self.incoming.begin(request)
        try:
            result = self._connection.owner.handle(request)
        except Exception:  # the user's code
            result = self._failed(Failure(), request)
        if iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            self._running = result
            result.addErrback(self._failed, request)
            result.addCallback(self._answered, request)
            result.addErrback(self._cut, request)
        else:
            self._answered(result, request)

    def receive(self, data: bytes, size: int, *, is_last: bool) -> None:
        """Part of the body came, which took `size` bytes of the window."""
        self.incoming.receive(data, size, is_last=is_last)
        if is_last and self._running is not None:
            self._send_head()  # nothing is left to refuse the request for

    # Receiver, called by the incoming body.

    def now(self) -> float:
        """The time in seconds."""
        return self._connection.owner.now()

    def may_receive(self) -> bool:
        """Whether the connection has room for more of this body."""
        return self._connection.may_receive(self)

    def release(self, size: int) -> None:
        """So much of the body is not held any more."""
        self._connection.release(size)

    def open_window(self, size: int) -> None:
        """Lets the peer send so much more."""
        self._connection.h2.increment_flow_control_window(size, self.stream_id)
        self._connection.wake()

    def say_continue(self) -> None:
        """Answers 100 (Continue), unless a final answer has begun."""
        if not self.status:
            self._connection.h2.send_headers(self.stream_id, [(b":status", b"100")])
            self._connection.wake()

    # The answer.

    def _failed(self, failure: Failure, request: Request) -> Response:
        """What a handler that raised answers."""
        error = failure.value
        if isinstance(error, RefusedRequest):
            failure.cleanFailure()  # its traceback has the body so far, and refers to the failure
            return _plain(error.status, error.reason)
        if self._gone and failure.check(CancelledError):
            failure.cleanFailure()
        else:
            self._log_failure("The handler of {method} {path} failed", failure, request)
        return _plain(500)

    def _log_failure(self, text: str, failure: Failure, request: Request) -> None:
        self._log.failure(text, failure, method=request.method, path=request.path)

    def _answered(self, result: Any, request: Request) -> None:
        self._running = None
        if self._gone:
            return
        self._connection.owner.now()  # it may have been long: the Date must be of now
        if isinstance(result, Upgrade):
            result = _plain(501, "other protocols are spoken on HTTP/1.1 connections only")
        elif not isinstance(result, Response):
            self._log.error(
                "The handler of {method} {path} returned {what}",
                method=request.method,
                path=request.path,
                what=type(result).__name__,
            )
            result = _plain(500)
        self._answer(result, request)

    def _answer(self, result: Response, request: Request | None = None) -> None:
        """Begins the answer; that to a request which could not be read is no stream."""
        self.status = result.status
        self._is_bare = self._is_bare or result.status in _BODILESS
        if result.close and result.status not in _OF_FRAMING:
            self._connection.close_when_idle()
        self._head = result
        if isinstance(result.body, bytes):
            self._send_whole(result, result.body)
        elif request is not None:
            self._send_stream(result, request)

    def _send_whole(self, response: Response, body: bytes) -> None:
        if body and not self._is_bare:
            self._body_bytes = len(body)
            self.outgoing.write(body, self.now())
        self._end()

    def _send_stream(self, response: Response, request: Request) -> None:
        running: Deferred[None] = Deferred.fromCoroutine(self._stream(response))
        self._running = running
        running.addCallback(self._streamed)
        running.addErrback(self._cut, request)
        if self._running is running and not self.incoming.is_awaited:
            self._send_head()

    async def _stream(self, response: Response) -> None:
        body: Any = response.body
        writer = self._writer = BodyWriter(
            self,
            self._length(response),
            chunked=False,
            trailers=response.trailers,
            takes_trailers=True,
        )
        try:
            if self._is_bare:
                return
            if callable(body):
                await body(writer)
            else:
                async for piece in body:
                    await writer.write(piece)
            writer.finish()
            self.outgoing.trailers = [
                pair
                for name, value in writer.trailing()
                for pair in response_pairs(response_field(name, value))
            ]
        finally:
            writer.close()
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def _streamed(self, _: object) -> None:
        self._running = None
        if not self._gone:
            self._end()

    def _end(self) -> None:
        """All of the answer is there."""
        if self.outgoing.has_more or self.outgoing.trailers:
            self._send_head()
            self.outgoing.is_over = True
            self._connection.send(self)
        elif self._head is not None:
            self._send_head(is_end=True)
            self._finish()
        else:
            self.outgoing.is_over = True
            self._connection.send(self)

    def _send_head(self, *, is_end: bool = False) -> None:
        """Sends the answer's head, if that has not gone.

        That of a stream goes with the first piece, or when there is something to wait for: until
        then a failure can still be answered as such.
        """
        response, self._head = self._head, None
        if response is None or self._gone:
            return
        pairs = [
            (b":status", b"%d" % response.status),
            *response_pairs(self._connection.owner.fields),
            *response_pairs(response.fields),
        ]
        length = self._length(response)
        if length is not None and response.status not in _BODILESS:
            pairs.append((b"content-length", b"%d" % length))
        if response.trailers and not self._is_bare:
            pairs.append((b"trailer", ", ".join(response.trailers).encode()))
        self._connection.h2.send_headers(self.stream_id, pairs, end_stream=is_end)
        self._connection.wake()

    def _length(self, response: Response) -> int | None:
        body = response.body
        if isinstance(body, FileSlice):
            return body.length
        if not isinstance(body, bytes) or (self._is_bare and response.length is not None):
            return response.length
        return len(body)

    def _cut(self, failure: Failure, request: Request) -> None:
        """A stream failed. If bytes have left, the peer must not take these for the whole."""
        self._running = None
        if self._head is not None and not self._gone:
            self._answer(self._failed(failure, request))
            return
        if failure.check(SlowConsumer, RefusedRequest) or (
            self._gone and failure.check(CancelledError)
        ):
            failure.cleanFailure()  # see above
        else:
            self._log_failure("The response to {method} {path} failed", failure, request)
        self._abandon(ErrorCodes.INTERNAL_ERROR)

    def _abandon(self, code: ErrorCodes) -> None:
        if not self._gone:
            self._connection.cut(self, code)
            self.lose()

    def _finish(self) -> None:
        self._connection.finish(self)
        self._leave(LocalProtocolError("the request was answered before its body was read"))

    def lose(self) -> None:
        """The peer is not interested any more, or is gone: the handler is cancelled."""
        self._leave(RefusedRequest(400, "stream reset"))

    def _leave(self, error: Exception) -> None:
        if self._gone:
            return
        self._gone = True
        if self._writer is not None:
            self._writer.close()
        self._report()
        # The request and the writer refer to us: a body would wait for the garbage collector.
        self._request = self._writer = None
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self.outgoing.clear()
        self.incoming.end(error)

    def _report(self) -> None:
        """Tells `on_answered` of the answer, however it ended."""
        owner = self._connection.owner
        if owner.on_answered is None:
            return
        request = self._request
        if request is None:
            unread = UNREAD._replace(version="2")
            request = owner.request_class(self, "", ("", "", ""), unread, b"")
        size = self._body_bytes if self._writer is None else self._writer.written
        size -= self.outgoing.unsent
        try:
            owner.on_answered(request, self.status or CLIENT_GONE, size, self._began_s)
        except Exception:  # foreign code
            self._log.failure("A listener for answers failed")

    # Sending, as the connection allows.

    def send_frame(self) -> int:
        """Sends a frame if it may; bytes of data, -1 for the end alone, 0 for none."""
        size = self.outgoing.send(self._connection.h2, self.stream_id)
        if size:
            self.outgoing.moved_s = self.now()
            if not self.outgoing.has_more and self._running is None:
                self._finish()
            else:
                self.outgoing.make_room()
        return size

    # Channel, called by the request and by the writer.

    @property
    def peer(self) -> IAddress | None:
        """Where the connection comes from."""
        return self._connection.peer

    @property
    def is_secure(self) -> bool:
        """Whether the connection is TLS's."""
        return self._connection.is_secure

    @property
    def is_gone(self) -> bool:
        """See `Channel`."""
        return self._gone

    def write_bounded(self, data: bytes) -> None:
        """A stream's write: resets it past `HTTPLimits.unread_bytes`.

        Raises:
            SlowConsumer: it was reset for this.
        """
        if self._gone:
            return
        limit = self._connection.owner.limits.unread_bytes
        if self.outgoing.unsent and self.outgoing.unsent + len(data) > limit:
            self._running = None  # it is this that is running
            self._abandon(ErrorCodes.CANCEL)
            raise SlowConsumer(limit)
        self._send_head()
        self.outgoing.write(data, self.now())
        self._connection.send(self)

    def drained(self) -> Deferred[None]:
        """Fires when the peer has taken enough, or is lost; at once if it has or is."""
        return succeed(None) if self._gone else self.outgoing.drained()

    def flush(self) -> None:
        """Writes what was written so far now."""
        self._send_head()
        self._connection.push()

    # Deadlines.

    @property
    def is_stuck(self) -> bool:
        """Whether the peer's windows alone keep data from being sent."""
        h2 = self._connection.h2
        return self.outgoing.unsent > 0 and h2.local_flow_control_window(self.stream_id) <= 0

    def due_s(self) -> float:
        """When something will have lasted too long."""
        due_s = NEVER
        if self.is_stuck:
            moved_s = self.outgoing.moved_s
            if self._connection.h2.outbound_flow_control_window <= 0:
                moved_s = max(moved_s, self._connection.sent_s)  # others may have had their turn
            due_s = moved_s + self._connection.owner.limits.unread_s
        return min(due_s, self.incoming.due_s())

    def expire(self) -> None:
        """It has lasted too long."""
        if self.is_stuck:
            self._abandon(ErrorCodes.CANCEL)
        else:
            self.incoming.expire()


def _plain(status: int, reason: str = "") -> Response:
    text = f"{status} {reason or REASONS.get(status, '')}\n"
    return Response(status, text.encode(), content_type="text/plain; charset=utf-8")
