"""How an HTTP connection takes the bodies of its requests: while they arrive, and as they are read.

Between `net.http.connection`, which reads heads, and `net.http.answer`, which writes. A body that
came with its head costs nothing here. Any other is fed to a `RequestBody`: while nobody reads that,
the peer is not read either; while somebody waits for it, the deadlines of bodies hold.

An answer that was given before its request's body had come ends the connection, because the peer
cannot be stopped otherwise. If what is left is announced and short, it is read and dropped instead.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

from pelotontx.errors import LocalProtocolError
from pelotontx.net.http.answer import AnsweringConnection
from pelotontx.net.http.body import RequestBody
from pelotontx.net.http.deadline import ANSWER, BODY
from pelotontx.net.http.message import Request
from pelotontx.wire.http import CHUNKED, ChunkedBody, RefusedRequest, SizedBody


class ReceivingConnection(AnsweringConnection):
    """A connection that can take bodies: the source of its `RequestBody`s."""

    _buffer = b""  # input that waits for the present answer
    _paused = False  # we do not read
    _input_ended = False  # the peer has closed its sending side
    # a request's body that has not all come
    _decoder: SizedBody | ChunkedBody | None = None
    _body: RequestBody | None = None  # None: nobody reads it any more
    _is_expecting = False  # the peer waits for 100 (Continue)
    _is_cut = False  # there will be no more of it, though the peer may be sending

    @abstractmethod
    def _close(self, *, gently: bool = False) -> None:
        """Ends the connection once all is written."""

    def _hold(self, data: bytes) -> None:
        """Keeps input until the present answer is made, or read."""
        self._buffer = data
        if self._paused or self._input_ended:
            return
        if len(data) > self.owner.limits.pipelined_bytes:
            self._paused = True
            cast(Any, self.transport).pauseProducing()

    def _take_body(self, request: Request, data: bytes, position: int) -> int:
        """Takes what has come of a body; returns where in `data` what follows it begins.

        One that is all there, and not too long, is the request's at once. For any other a
        `RequestBody` is made, to be read while it arrives.

        Raises:
            RefusedRequest: 400, not a chunked body.
        """
        length = request.framing.length
        limit = self.owner.limits.body_limit_bytes
        end = position + length
        if length != CHUNKED and end <= len(data) and length <= limit:
            request.body = data[position:end]
            return end
        decoder = ChunkedBody() if length == CHUNKED else SizedBody(length)
        try:
            pieces, rest = decoder.feed(data[position:])
        except RefusedRequest:
            self._request, self._began_s = request, self.owner.now()
            raise
        body = b"".join(pieces)
        if decoder.complete and len(body) <= limit:
            request.body = body
        else:
            self._receive(request, decoder, body)
        return len(data) - len(rest)

    def _receive(self, request: Request, decoder: SizedBody | ChunkedBody, body: bytes) -> None:
        """Begins with a body of which `body` has come."""
        length = None if isinstance(decoder, ChunkedBody) else request.framing.length
        limit = self.owner.limits.body_limit_bytes
        self._body = RequestBody(self, length, limit_bytes=limit)
        request.expect(self._body)
        self._is_expecting = request.framing.expects and not body
        self.received, self.waited_s = len(body), 0.0
        self._body.feed(body, is_last=decoder.complete)
        self._decoder = None if decoder.complete else decoder

    def _feed(self, decoder: SizedBody | ChunkedBody, data: bytes) -> None:
        """Takes what came while the request is being answered, or when it has been."""
        if self.phase == BODY:
            now_s = self.owner.now()
            self.waited_s += now_s - self.since_s
            self.since_s = now_s
        try:
            pieces, rest = decoder.feed(data)
        except RefusedRequest as error:
            self._cut_body(error)
            return
        self._is_expecting = False
        piece = b"".join(pieces)
        self.received += len(piece)
        if decoder.complete:
            self._decoder = None
        if self._body is None:
            self._drop(rest)
            return
        if rest:
            self._hold(rest)
        if piece or decoder.complete:
            self.phase = ANSWER  # who waited for it goes on
            self._body.feed(piece, is_last=decoder.complete)
        if decoder.complete:
            self.send_head()  # nothing is left to refuse the request for

    def _drop(self, rest: bytes) -> None:
        """Part of a body was dropped; `rest` follows it if it is over."""
        if self._decoder is not None:
            return
        self._buffer = rest
        if self.phase == BODY:
            self._finish()
        else:
            self._hold(rest)

    def _cut_body(self, error: RefusedRequest) -> None:
        """No more of the body can be had: who reads it gets `error`, and the answer is the last."""
        self._decoder = None
        self._is_cut = True
        self._keep = False
        if self._body is None:
            self._close()
            return
        self.enter(ANSWER)
        self._end_body(error)

    def _end_body(self, error: Exception) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.fail(error)

    def _awaits_body(self) -> bool:
        return self.phase == BODY

    def _settle(self) -> None:
        """Nobody reads the body further: its rest is dropped if it is short, else the peer is."""
        if self._body is None:
            return
        if self.phase == BODY:
            self.phase = ANSWER
        if self._decoder is not None and not self._is_short(self._decoder):
            self._decoder = None
            self._is_cut = True
            self._keep = False
        self._end_body(LocalProtocolError("the request was answered before its body was read"))

    def _is_short(self, decoder: SizedBody | ChunkedBody) -> bool:
        """Whether a body's rest is worth being awaited; what 100 was not said to may not come."""
        limit = self.owner.limits.unread_body_bytes
        return isinstance(decoder, SizedBody) and decoder.left <= limit and not self._is_expecting

    # Source of a `RequestBody`.

    def body_wanted(self) -> None:
        """Somebody waits for the body."""
        if self._decoder is None or self._gone:
            return
        if self._is_expecting and (self._head or not self._status):  # else an answer has begun
            self._is_expecting = False
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.phase != BODY:  # else a wait that was given up goes on
            self.enter(BODY)

    def pause_body(self) -> None:
        """Enough is unread."""
        if not self._paused and not self._input_ended:
            self._paused = True
            cast(Any, self.transport).pauseProducing()

    def resume_body(self) -> None:
        """More may come; of what follows the body, too, and `_hold` bounds that."""
        self._resume()

    def _resume(self) -> None:
        if self._paused and not self._gone:
            self._paused = False
            cast(Any, self.transport).resumeProducing()
