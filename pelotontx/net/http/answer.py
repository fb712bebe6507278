"""How an HTTP connection answers: what a handler returned becomes bytes, as the peer reads them.

The half of `net.http` that writes; `net.http.connection` reads, and says when. The connection is
its transport's producer: while the peer does not read, streams wait and long bodies stand still.

A stream's head leaves with its first piece, or when the stream has something to wait for other than
the body of its own request. Until then it can still be refused, or fail, with an answer of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from inspect import iscoroutine
from typing import Any, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pelotontx.errors import SlowConsumer
from pelotontx.net.http import deadline
from pelotontx.net.http.deadline import ANSWER, PROGRESS_S, TimedConnection
from pelotontx.net.http.message import Request, Response, Upgrade
from pelotontx.net.http.writer import BodyWriter
from pelotontx.net.sendfile import FileSlice
from pelotontx.net.tcp import sends_files, unsent_bytes
from pelotontx.wire.http import Framing, RefusedRequest, response_field, status_line

#: A body in memory up to this size leaves in one write; longer ones go in slices of it.
SLICE_BYTES = 256 * 1024

#: Responses without a body and without a length.
_BODILESS = frozenset({204, 304})

#: Status, fields, length, whether the connection stays, HTTP version.
HeadKey = tuple[int, bytes, int, bool, str]

#: See `HTTPFactory`.
OnAnswered = Callable[[Request, int, int, float], object]

#: What is told of an answer when the peer had gone before there was one; nginx logs the same.
CLIENT_GONE = 499

#: A request of which no head could be read.
UNREAD = Framing("1.1", b"", 0, False, False, b"")


class Owner(deadline.Owner, Protocol):
    """The factory, as an answering connection sees it.

    Attributes:
        fields: Server and Date, as they are now.
        heads: heads of this second's responses.
        on_answered: see `HTTPFactory`.
        request_class: a subclass of `Request`.
    """

    fields: bytes
    heads: dict[HeadKey, bytes]
    on_answered: OnAnswered | None
    request_class: type[Request]

    def keep_head(self, key: HeadKey, head: bytes) -> None:
        """Keeps the head of a response for the next like it."""


@implementer(IPushProducer)
class AnsweringConnection(TimedConnection):
    """A connection that can answer; what comes before and after is its subclass's."""

    _log = Logger()

    owner: Owner
    is_secure = False
    peer: IAddress | None = None

    _gone = False  # lost, or another protocol's
    _choked = False  # the transport holds more than it likes
    _consuming = False  # an answer need not look for the next request: somebody does
    _keep = True  # the connection lives on after this answer
    _room: Deferred[None] | None = None
    _running: Deferred[Any] | None = None
    _tail: memoryview | None = None  # of a long body, not yet written
    _part: FileSlice | None = None  # of a file, which the transport is sending
    _head = b""  # of a stream; it leaves with the first piece, or when the stream waits
    # what is being answered, unless it was answered at once; and its answer so far
    _request: Request | None = None
    _began_s = 0.0
    _status = 0
    _body_bytes = 0
    _writer: BodyWriter | None = None

    @property
    def is_gone(self) -> bool:
        """See `Channel`."""
        return self._gone

    @abstractmethod
    def _finish(self) -> None:
        """The last byte of an answer was written."""

    @abstractmethod
    def _settle(self) -> None:
        """An answer is about to be made that does not read its request's body any further."""

    @abstractmethod
    def _awaits_body(self) -> bool:
        """Whether somebody is waiting for more of the request's body."""

    @abstractmethod
    def _refuse(self, status: int, reason: str) -> None:
        """Answers with an error, and ends the connection."""

    @abstractmethod
    def _hand_over(self, request: Request, protocol: Any) -> None:
        """The answer is another protocol."""

    def _start(self, request: Request, result: Any, began_s: float) -> None:
        """Answers with anything but a small `Response`: waits, streams, or hands over."""
        self._request = request
        self._began_s = began_s
        if iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            self._running = result
            result.addErrback(self._failed, request)
            result.addCallback(self._answered, request)
            result.addErrback(self._cut, request)
        else:
            self._answered(result, request)

    def _answered(self, result: Any, request: Request) -> None:
        self._running = None
        if self._gone:
            return
        self.owner.now()  # it may have been long: the Date must be of now
        if isinstance(result, Upgrade):
            self._hand_over(request, result.protocol)
            return
        if not isinstance(result, Response):
            self._log.error(
                "The handler of {method} {path} returned {what}",
                method=request.method,
                path=request.path,
                what=type(result).__name__,
            )
            result = _plain(500)
        self._status = result.status
        if isinstance(result.body, bytes):
            self._write_whole(request, result, result.body)
        elif isinstance(result.body, FileSlice):
            self._write_file(request, result, result.body)
        else:
            self._write_stream(request, result)

    def _crashed(self, failure: Failure, request: Request) -> Response:
        """What a handler that raised answers."""
        error = failure.value
        if isinstance(error, RefusedRequest):
            failure.cleanFailure()  # its traceback has the body so far, and refers to the failure
            return refusal(error.status, error.reason)
        self._log_failure("The handler of {method} {path} failed", failure, request)
        return _plain(500)

    def _failed(self, failure: Failure, request: Request) -> Response:
        if self._gone and failure.check(CancelledError):
            failure.cleanFailure()
            return _plain(500)  # nobody is there to see it
        return self._crashed(failure, request)

    def _log_failure(self, text: str, failure: Failure, request: Request) -> None:
        self._log.failure(text, failure, method=request.method, path=request.path)

    def _write_whole(self, request: Request, response: Response, body: bytes) -> None:
        self._settle()
        self._body_bytes = body_bytes(request, response)
        if self._body_bytes <= SLICE_BYTES:
            self._write(self._render(request, response, body))
            self._done()
            return
        response.length = len(body)
        head = self._stream_head(request, response, chunked=False, trailers=False)
        size = 0 if self._choked else SLICE_BYTES - len(head)
        self._write(head + body[:size])
        self._tail = memoryview(body)[size:]  # no copy, which a slow peer would make us keep
        self._write_tail()

    def _write_tail(self) -> None:
        while self._tail is not None and not self._choked and not self._gone:
            piece, rest = self._tail[:SLICE_BYTES], self._tail[SLICE_BYTES:]
            self._tail = rest if len(rest) else None
            self._write(bytes(piece))
        if self._tail is None and not self._gone:
            self._done()

    def _write_file(self, request: Request, response: Response, part: FileSlice) -> None:
        """A part of a file; the transport sends it, or it is read as any other stream."""
        response.length = part.length
        if _is_bare(request, response) or not part.length or not sends_files(self.transport):
            self._write_stream(request, response)
            return
        self._settle()
        self._write(self._stream_head(request, response, chunked=False, trailers=False))
        self._part = part
        self._body_bytes = part.length
        self.written += part.length
        cast(Any, self.transport).send_file(part)  # pauses us, and resumes when it was sent

    def _write_stream(self, request: Request, response: Response) -> None:
        streaming = Deferred.fromCoroutine(self._stream(request, response))
        self._running = streaming
        streaming.addCallback(self._streamed)
        streaming.addErrback(self._cut, request)
        if self._running is streaming and not self._awaits_body():
            self.send_head()

    async def _stream(self, request: Request, response: Response) -> None:
        body: Any = response.body
        self._writer = writer = self._open_stream(request, response)
        try:
            if _is_bare(request, response):
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
            writer.close()
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def _open_stream(self, request: Request, response: Response) -> BodyWriter:
        """Makes the head, which waits for the first piece, and what writes the pieces."""
        chunked = response.length is None and request.version == "1.1"
        if response.length is None and not chunked:
            self._keep = False  # HTTP/1.0: the end of the connection ends the body
        is_framed = chunked and not _is_bare(request, response)
        trailers = response.trailers if is_framed else None
        takes_trailers = bool(trailers) and "trailers" in _tokens(request, "te")
        self._head = self._stream_head(
            request, response, chunked=is_framed, trailers=takes_trailers
        )
        return BodyWriter(
            self,
            response.length,
            chunked=chunked,
            trailers=response.trailers,
            takes_trailers=takes_trailers,
        )

    def _streamed(self, _: object) -> None:
        self._running = None
        if self._gone:
            return
        self.send_head()
        self._done()

    def _cut(self, failure: Failure, request: Request) -> None:
        """A stream failed. If bytes have left, the peer must not take these for the whole."""
        self._running = None
        if self._head and not self._gone:
            self._head = b""
            self._answered(self._crashed(failure, request), request)
            return
        if failure.check(SlowConsumer, RefusedRequest) or (
            self._gone and failure.check(CancelledError)
        ):
            failure.cleanFailure()  # see above
        else:
            self._log_failure("The response to {method} {path} failed", failure, request)
        if not self._gone:
            self.abort()

    def _done(self) -> None:
        """After the last byte of an answer that was not made at once."""
        self._report()
        self._finish()

    def _report(self) -> None:
        """Tells `on_answered` of the answer, however it ended."""
        request, self._request = self._request, None
        status, self._status = self._status, 0
        writer, self._writer = self._writer, None
        on_answered = self.owner.on_answered
        if on_answered is None or request is None:
            return
        size = self._body_bytes if writer is None else writer.written
        if self._tail is not None:
            size = max(0, size - len(self._tail))
        if self._part is not None:
            size -= self._part.left
            self._part = None
        self.report(request, status or CLIENT_GONE, size, self._began_s)

    def report(self, request: Request, status: int, size: int, began_s: float) -> None:
        """Calls `on_answered`; nothing it raises may harm the connection."""
        try:
            cast(OnAnswered, self.owner.on_answered)(request, status, size, began_s)
        except Exception:  # foreign code
            self._log.failure("A listener for answers failed")

    def unread_request(self) -> Request:
        """Stands for a request whose head could not be read."""
        return self.owner.request_class(self, "", ("", "", ""), UNREAD, b"")

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
            head = b"%bContent-Length: %d\r\n\r\n" % (self._fields(request, response), len(body))
            self.owner.keep_head(key, head)
        return head + body

    def _render_bare(self, request: Request, response: Response, length: int) -> bytes:
        """A whole response that has no body."""
        head = self._fields(request, response)
        if response.status in _BODILESS:
            return head + b"\r\n"
        return b"%bContent-Length: %d\r\n\r\n" % (head, response.length or length)

    def _fields(self, request: Request, response: Response) -> bytes:
        """A response's head without what frames its body."""
        head = status_line(response.status) + self.owner.fields
        if not self._keep:
            head += b"Connection: close\r\n"
        elif request.version == "1.0":
            head += b"Connection: keep-alive\r\n"
        return head + response.fields

    def _stream_head(
        self, request: Request, response: Response, *, chunked: bool, trailers: bool
    ) -> bytes:
        if response.close:
            self._keep = False
        head = self._fields(request, response)
        if trailers and response.trailers:
            head += response_field("Trailer", ", ".join(response.trailers))
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
        if self._head:
            data, self._head = self._head + data, b""
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

    def flush(self) -> None:
        """See `Channel`."""
        self.send_head()
        flush = getattr(self.transport, "flush", None)
        if flush is not None and not self._gone:
            flush()

    def send_head(self) -> None:
        """Writes a stream's head, if that has not left."""
        head, self._head = self._head, b""
        if head and not self._gone:
            self._write(head)

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
        elif self._part is not None:
            self._done()
        elif self.phase == ANSWER and self._request is None and not self._consuming:
            self._finish()

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""


def body_bytes(request: Request, response: Response) -> int:
    """How many bytes of body a whole response has on the wire."""
    return 0 if _is_bare(request, response) else len(cast(bytes, response.body))


def _is_bare(request: Request, response: Response) -> bool:
    """Whether an answer has a head alone."""
    return request.method == "HEAD" or response.status in _BODILESS


def refusal(status: int, reason: str) -> Response:
    """A short error answer that ends its connection."""
    body = f"{status} {reason}\n".encode()
    return Response(status, body, content_type="text/plain; charset=utf-8", close=True)


def _plain(status: int) -> Response:
    line = status_line(status)
    return Response(status, line[9:-2] + b"\n", content_type="text/plain; charset=utf-8")


def _tokens(request: Request, name: str) -> list[str]:
    """The members of a list field, lower case, parameters left out."""
    members = ",".join(request.headers.get_all(name)).lower().split(",")
    return [member.partition(";")[0].strip() for member in members]
