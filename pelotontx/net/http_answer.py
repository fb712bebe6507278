"""How an HTTP connection answers: what a handler returned becomes bytes, as the peer reads them.

The half of `net.http` that writes; `net.http_connection` reads, and says when. The connection is
its transport's producer: while the peer does not read, streams wait and long bodies stand still.
"""

from __future__ import annotations

from inspect import iscoroutine
from typing import Any, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pelotontx.errors import SlowConsumer
from pelotontx.net import http_deadline
from pelotontx.net.http_deadline import ANSWER, PROGRESS_S, TimedConnection
from pelotontx.net.http_message import BodyWriter, Request, Response, Upgrade
from pelotontx.net.tcp import unsent_bytes
from pelotontx.wire.http import status_line

#: A body in memory up to this size leaves in one write; longer ones go in slices of it.
SLICE_BYTES = 256 * 1024

#: Responses without a body and without a length.
_BODILESS = frozenset({204, 304})

#: Status, fields, length, whether the connection stays, HTTP version.
HeadKey = tuple[int, bytes, int, bool, str]


class Owner(http_deadline.Owner, Protocol):
    """The factory, as an answering connection sees it.

    Attributes:
        fields: Server and Date, as they are now.
        heads: heads of this second's responses.
    """

    fields: bytes
    heads: dict[HeadKey, bytes]

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

    def _finish(self) -> None:
        """The last byte of an answer was written."""
        raise NotImplementedError

    def _refuse(self, status: int, reason: str) -> None:
        """Answers with an error, and ends the connection."""
        raise NotImplementedError

    def _hand_over(self, request: Request, protocol: Any) -> None:
        """The answer is another protocol."""
        raise NotImplementedError

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
            self._hand_over(request, result.protocol)
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


def _plain(status: int) -> Response:
    line = status_line(status)
    return Response(status, line[9:-2] + b"\n", content_type="text/plain; charset=utf-8")
