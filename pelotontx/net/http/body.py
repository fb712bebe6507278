"""A request's body while it arrives: an async iterator with backpressure.

A connection (HTTP/1.1 or an HTTP/2 stream) feeds a `RequestBody`; one handler reads it. What nobody
has read is bounded: past `HIGH_BYTES` the connection stops reading its peer.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.defer import Deferred

from pelotontx.errors import LocalProtocolError
from pelotontx.wire.http import RefusedRequest

#: Unread bytes past which the peer is not read any more: two reads of a socket.
HIGH_BYTES = 128 * 1024


#: Unread pieces up to this size are joined: single bytes would cost forty times their size.
_JOINED_BYTES = 4096


class Source(Protocol):
    """The connection, as a body sees it."""

    def body_wanted(self) -> None:
        """Somebody waits for the body: a peer that waits for 100 (Continue) may send it."""

    def pause_body(self) -> None:
        """Enough is unread."""

    def resume_body(self) -> None:
        """More may come."""


class RequestBody:
    """The body of one request: ``async for piece in body``, once, by one reader.

    Args:
        source: paused while too much is unread; None for a body that is there already.
        length: the announced bytes; None if they come in chunks.
        limit_bytes: past it reading raises `RefusedRequest` with 413.

    Attributes:
        length: the announced bytes, or None.
        limit_bytes: may be changed before the first piece is read; an upload's route does.
        received: bytes so far.
        given: bytes of pieces that were read; `read` keeps what it has until the end.
        is_complete: all of it has been received; some may still be unread.
    """

    __slots__ = (
        "_failure",
        "_is_paused",
        "_pieces",
        "_source",
        "_unread",
        "_waiting",
        "given",
        "is_complete",
        "length",
        "limit_bytes",
        "received",
    )

    def __init__(self, source: Source | None, length: int | None, *, limit_bytes: int) -> None:
        self._source = source
        self.length = length
        self.limit_bytes = limit_bytes
        self.received = 0
        self.given = 0
        self.is_complete = False
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._is_paused = False
        self._waiting: Deferred[None] | None = None
        self._failure: Exception | None = None

    @classmethod
    def of(cls, data: bytes) -> RequestBody:
        """A body that is there already."""
        body = cls(None, len(data), limit_bytes=len(data))
        body.feed(data)
        body.end()
        return body

    # For the connection.

    def feed(self, data: bytes, *, is_last: bool = False) -> None:
        """Appends what was received; asks the source to pause when too much is unread.

        Args:
            data: any bytes, none included.
            is_last: as if `end` followed, with one waking of the reader.
        """
        if self._failure is not None:
            return
        if data:
            self.received += len(data)
            self._unread += len(data)
            if self._pieces and len(self._pieces[-1]) + len(data) <= _JOINED_BYTES:
                self._pieces[-1] += data
            else:
                self._pieces.append(data)
        if is_last:
            self.is_complete = True
        elif self._unread > HIGH_BYTES and not self._is_paused and self._source is not None:
            self._is_paused = True
            self._source.pause_body()
        if data or is_last:
            self._wake()

    def end(self) -> None:
        """All was received."""
        self.feed(b"", is_last=True)

    def fail(self, error: Exception) -> None:
        """Nothing more will come: who reads gets `error`, after what was received."""
        if self.is_complete:
            return
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    # For the handler.

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        """The next piece, of any size but 0.

        Cancelling is safe: nothing is lost.

        Raises:
            RefusedRequest: 413 past the limit, 400 for a malformed body, 408 for a slow one.
            LocalProtocolError: somebody reads it already, or the request was answered.
        """
        self._check()
        while not self._pieces:
            if self._failure is not None:
                raise self._failure
            if self.is_complete:
                raise StopAsyncIteration
            await self._more()
            self._check()
        piece = self._pieces.popleft()
        self._unread -= len(piece)
        self.given += len(piece)
        if self._is_paused and self._unread <= HIGH_BYTES // 2:
            self._go_on()
        return piece

    async def read(self) -> bytes:
        """All that is left of it, up to `limit_bytes`; raises as `__anext__`.

        Cancelling loses what had come.
        """
        taken = bytearray()
        try:
            while not self._gather(taken):
                await self._more()
            return bytes(taken)
        finally:
            taken.clear()  # an error keeps our frame until the garbage collector comes

    def _gather(self, taken: bytearray) -> bool:
        """Appends what is here; whether that was the rest."""
        self._check()
        for piece in self._pieces:
            taken += piece
        self._pieces.clear()
        self._unread = 0
        if self._is_paused:
            self._go_on()
        if self._failure is not None:
            raise self._failure
        return self.is_complete

    def _check(self) -> None:
        if self.received > self.limit_bytes or (self.length or 0) > self.limit_bytes:
            raise RefusedRequest(413, "body too large")

    def _go_on(self) -> None:
        self._is_paused = False
        if self._source is not None:
            self._source.resume_body()

    async def _more(self) -> None:
        if self._waiting is not None:
            raise LocalProtocolError("the body is read by somebody else")
        waiting = self._waiting = Deferred(self._forget)
        if self._source is not None:
            self._source.body_wanted()
        await waiting

    def _forget(self, _: Deferred[None]) -> None:
        self._waiting = None
