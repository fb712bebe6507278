"""Answers that other people's code pushes: a status, fields, then pieces of a body, and an end.

`twisted.web`, WSGI and ASGI applications all write when they like; our own handlers return a
`Response`. `Answer` is the bridge: what is complete at once leaves as a whole, with its length;
the rest is a stream, as fast as the peer reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError, SlowConsumer
from pelotontx.net.http import BodyWriter, Request, Response, Upgrade
from pelotontx.net.wheel import Timer, Wheel

#: Unwritten bytes past which an application is asked to wait: what a transport buffers at ease.
HIGH_BYTES: Final = 64 * 1024

#: Unwritten bytes past which one that does not wait is cut off. Whole pages are written in one
#: turn of the reactor by code that cannot wait, so this is more than the server's own bound.
LIMIT_BYTES: Final = 16 * 1024 * 1024

#: What is between an application's answer and its first byte (hooks that save a session) may take
#: so long; a peer that leaves meanwhile leaves no other sign.
_BEGIN_S: Final = 60.0

#: Fields of the connection, which is ours (RFC 9110, 7.6.1), and of the server.
_OURS: Final = frozenset(
    {"date", "keep-alive", "proxy-connection", "server", "transfer-encoding", "upgrade"}
)
_BODILESS: Final = frozenset({204, 304})


def response_head(status: int, fields: Iterable[tuple[str, str]]) -> Response:
    """A response without its body, of the fields that an application has set.

    Framing, `Server` and `Date` are the server's: Content-Length becomes `length`, ``Connection:
    close`` is honoured, the others are left out. Called in any thread.

    Raises:
        LocalProtocolError: a status, name or value that may not be sent.
    """
    kept: list[tuple[str, str]] = []
    content_type = ""
    length: int | None = None
    close = False
    for name, value in fields:
        lower = name.lower()
        if lower == "content-type":
            content_type = value
        elif lower == "content-length":
            if not (value.isascii() and value.isdigit() and len(value) < 19):
                raise LocalProtocolError(f"not a Content-Length: {value!r}")
            length = int(value)
        elif lower == "connection":
            close = close or "close" in value.lower()
        elif lower not in _OURS:
            kept.append((name, value))
    return Response(status, b"", kept, content_type, length=length, close=close)


def checked(data: object) -> bytes:
    """A piece of a body as an application gives it.

    Raises:
        LocalProtocolError: it is text, say.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise LocalProtocolError(f"a body is made of bytes, not of {type(data).__name__}")
    return bytes(data)


class Answer:
    """One answer, pushed in the reactor's thread.

    What the peer has not taken is kept, up to `limit_bytes`; past it the peer is cut off, and the
    writer told by `on_gone`.

    Args:
        request: what is answered.
        wheel: for a deadline.
        on_written: told how many bytes were passed on: so much more may be written.
        on_gone: told once that nobody reads any more; what is written then is dropped.
        on_over: told once that all of the answer was passed on: the request's body is the
            connection's affair from then on, and may never come to its end.
        limit_bytes: bytes that wait at most.

    Attributes:
        response: fires with the answer; cancelling it says that the peer has gone.
        unwritten: bytes that wait for the peer.
        is_gone: nobody reads.
        is_held: nothing leaves yet, so that what is complete soon leaves as a whole; see `release`.
    """

    _log = Logger()

    def __init__(
        self,
        request: Request,
        *,
        wheel: Wheel,
        on_written: Callable[[int], object] = lambda size: None,
        on_gone: Callable[[], object] = lambda: None,
        on_over: Callable[[], object] = lambda: None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._cancel = cancel = [self._lose]  # emptied at the end: it leads from `response` to us

        def cancelled(_: object) -> None:
            for lose in tuple(cancel):
                lose()

        self.response: Deferred[Response | Upgrade] = Deferred(cancelled)
        self.unwritten = 0
        self.is_gone = False
        self.is_held = False
        self._method, self._path = request.method, request.path
        self._wheel = wheel
        self._on_written = on_written
        self._on_gone = on_gone
        self._on_over = on_over
        self._limit_bytes = limit_bytes
        self._head: Response | None = None
        self._is_bare = False  # no body is sent, whatever is written
        self._bare_bytes = 0  # that were written all the same
        self._is_whole = False  # all of it was sent, whatever else is written
        self._is_sent = False  # `response` has fired
        self._is_open = False  # it fires as soon as there is a head
        self._is_finished = False
        self._is_over = False  # nothing more is passed on
        self._is_pouring = False
        self._pieces: list[bytes] = []
        self._failure: Failure | None = None
        self._wake: Deferred[None] | None = None
        self._late: Timer | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a status can no longer be chosen."""
        return self._is_sent

    def begin(self, head: Response) -> None:
        """Status and fields, as of `response_head`; again, as long as nothing has left."""
        self._head = head
        self._is_bare = self._method == "HEAD" or head.status in _BODILESS
        if self._is_bare:
            self._advance()

    def write(self, data: bytes) -> None:
        """Appends to the body, after `begin`."""
        if not data or self.is_gone:
            return
        if self._is_bare or self._is_whole:
            self._bare_bytes += len(data)
            self._on_written(len(data))
            return
        if self._pieces and self.unwritten + len(data) > self._limit_bytes:
            self._log.warn(
                "The peer of {method} {path} does not read: {limit} bytes wait",
                method=self._method,
                path=self._path,
                limit=self._limit_bytes,
            )
            self.fail(Failure(SlowConsumer(self._limit_bytes)))
            return
        self._pieces.append(data)
        self.unwritten += len(data)
        self._advance()

    def finish(self) -> None:
        """The body is complete."""
        self._is_finished = True
        self._advance()
        if self._is_over:
            self._let_go()

    def fail(self, failure: Failure) -> None:
        """The application has failed: an error page, or a connection that is cut.

        What is answered completely stays so; the failure is logged.
        """
        if self.is_gone:
            return
        if self._is_sent and (self._is_whole or self._is_finished):
            if not failure.check(ConnectionDone):
                self._log.failure(
                    "{method} {path} failed behind its answer",
                    failure,
                    method=self._method,
                    path=self._path,
                )
            if self._is_over:
                self._let_go()
        elif self._is_sent:
            self._failure = failure
            self._go_on()
        else:
            self._is_sent = True
            self._lose()
            self.response.errback(failure)

    def replace(self, response: Response | Upgrade) -> None:
        """The answer is this, and not what would have been pushed."""
        if not self._is_sent and not self.is_gone:
            self._is_sent = self._is_whole = True
            self.response.callback(response)
            self._end()

    def open(self) -> None:
        """Sends status and fields now, also if nothing of the body is there."""
        self._is_open = True
        self._advance()

    def release(self) -> None:
        """Ends `is_held`; what has begun is opened."""
        self.is_held = False
        self.open()

    def _advance(self) -> None:
        if self.is_held or self._head is None or self.is_gone:
            return
        if self._is_sent:
            self._go_on()
            return
        head = self._head
        is_whole = head.length is not None and self.unwritten >= head.length
        if self._is_bare:
            self._finish_bare(head)
        elif is_whole or self._is_finished:
            body = b"".join(self._pieces)
            if head.length not in (None, len(body)):
                reason = f"{len(body)} bytes of body, and {head.length} were announced"
                self.fail(Failure(LocalProtocolError(reason)))
                return
            head.body, head.length = body, None
            self._is_whole = True
        elif self._pieces or self._is_open:
            head.body = self._pour
        else:
            return
        self._is_sent = True
        if self._is_whole:
            self._forget()
        self.response.callback(head)
        if self._is_whole:
            self._end()
        elif not self._is_pouring:
            self._late = self._wheel.call_later(_BEGIN_S, self._lose)

    def _finish_bare(self, head: Response) -> None:
        """An answer without a body has the length that the body would have, if that is known."""
        self._is_whole = True
        if head.length is None and head.status not in _BODILESS:
            if self._bare_bytes and self._is_finished:
                head.length = self._bare_bytes
            else:
                head.body = _nothing()

    def _forget(self) -> None:
        """Drops what was written, and lets the writer go on."""
        size, self.unwritten = self.unwritten, 0
        self._pieces.clear()
        if size:
            self._on_written(size)

    def _go_on(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.callback(None)

    async def _pour(self, writer: BodyWriter) -> None:
        """The body, as a stream of ours."""
        self._is_pouring = True
        if self._late is not None:
            self._late.cancel()
        try:
            while not (self._is_finished and not self._pieces and self._failure is None):
                if self._failure is not None:
                    self._failure.raiseException()
                if self._pieces:
                    await self._pass_on(writer)
                else:
                    self._wake = Deferred()
                    await self._wake
        except BaseException:  # cancelled, cut, or a piece too much
            self._lose()
            raise
        self._end()

    async def _pass_on(self, writer: BodyWriter) -> None:
        pieces, self._pieces = self._pieces, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        await writer.write(data)
        self.unwritten -= len(data)
        self._on_written(len(data))

    def _lose(self) -> None:
        if self.is_gone:
            return
        self.is_gone = True
        self._pieces.clear()
        self.unwritten = 0
        self._on_gone()
        self._let_go()

    def _end(self) -> None:
        """All that the peer will get was passed on; the writer may go on for nobody."""
        self._is_over = True
        self._on_over()
        if self._is_finished:
            self._let_go()

    def _let_go(self) -> None:
        """The last call of us: whoever refers to us would wait for the garbage collector."""
        self._cancel.clear()
        self._on_written = self._on_gone = self._on_over = _ignore
        self._head = None


def _ignore(*_: object) -> None:
    """Nobody listens."""


async def _nothing() -> AsyncIterator[bytes]:
    """The body of an answer to HEAD of which nobody knows the length."""
    for piece in tuple[bytes, ...]():
        yield piece
