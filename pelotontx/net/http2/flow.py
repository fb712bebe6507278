"""The two bodies of an HTTP/2 stream under flow control: what comes in, and what goes out.

For `net.http2.stream`. Windows are a promise of memory: the peer's is opened as what it sent is
read, and what the peer has no window for waits here.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from h2.connection import H2Connection
from twisted.internet.defer import Deferred, succeed

from pelotontx.net.http.body import RequestBody
from pelotontx.net.http.message import HTTPLimits, Request
from pelotontx.wire.http import CHUNKED, RefusedRequest
from pelotontx.wire.http2 import FRAME_BYTES

#: Bytes of one body that may be under way to us.
STREAM_WINDOW: Final = 256 * 1024

#: Unsent bytes of an answer past which its writer waits, and under which it goes on.
_HIGH_BYTES: Final = 64 * 1024
_LOW_BYTES: Final = 32 * 1024

NEVER: Final = float("inf")


class Receiver(Protocol):
    """The stream, as its incoming body sees it."""

    def now(self) -> float:
        """The time in seconds."""

    def may_receive(self) -> bool:
        """Whether the connection has room for more of this body."""

    def release(self, size: int) -> None:
        """So much of this body is not held here any more."""

    def open_window(self, size: int) -> None:
        """Lets the peer send so much more."""

    def say_continue(self) -> None:
        """Answers 100 (Continue)."""


class Incoming:
    """A request's body; the source of its `RequestBody`.

    What comes before the handler is called is kept: a body that is whole by then is the request's
    at once, as in HTTP/1.1.

    Attributes:
        is_open: more may come.
        received: bytes so far.
        held: bytes that are not read, or are gathered until all are there.
    """

    __slots__ = (
        "_body",
        "_early",
        "_is_expecting",
        "_is_paused",
        "_limits",
        "_owed",
        "_receiver",
        "_waited_s",
        "_wanted_s",
        "held",
        "is_open",
        "received",
    )

    def __init__(self, receiver: Receiver, limits: HTTPLimits, *, is_open: bool) -> None:
        self._receiver = receiver
        self._limits = limits
        self.is_open = is_open
        self.received = self.held = 0
        self._early: list[bytes] = []
        self._body: RequestBody | None = None
        self._is_expecting = False
        self._is_paused = False
        self._owed = 0  # received, and the window not opened for it
        self._wanted_s: float | None = None  # since when somebody waits for more
        self._waited_s = 0.0  # before that

    def begin(self, request: Request) -> None:
        """The handler is about to be called."""
        framing = request.framing
        early = b"".join(self._early)
        self._early.clear()
        limit = self._limits.body_limit_bytes
        if not self.is_open and len(early) <= limit:
            request.body = early
            return
        length = None if framing.length == CHUNKED else framing.length
        self._is_expecting = framing.expects and not early
        self._body = RequestBody(self, length, limit_bytes=limit)
        request.expect(self._body)
        self._body.feed(early, is_last=not self.is_open)
        self.open_window()

    def receive(self, data: bytes, size: int, *, is_last: bool) -> None:
        """Part of it came, and took `size` bytes of the window."""
        self.received += len(data)
        self.held += len(data)
        self._owed += size
        self._is_expecting = False
        self._stop_waiting()
        if is_last:
            self.is_open = False
        if self._body is None:
            self._early.append(data)
        else:
            self._body.feed(data, is_last=is_last)
        self._release()
        self.open_window()

    def _release(self) -> None:
        """Counts what was read."""
        if self._body is not None:
            size = self.held - (self.received - self._body.given)
            if size:
                self.held -= size
                self._receiver.release(size)

    def open_window(self) -> None:
        """Lets the peer send more, if that pays and somebody reads."""
        if (
            self.is_open
            and self._body is not None
            and not self._is_paused
            and self._owed >= STREAM_WINDOW // 2
            and self._receiver.may_receive()
        ):
            size, self._owed = self._owed, 0
            self._receiver.open_window(size)

    def end(self, error: Exception) -> None:
        """The stream is over: who still reads the body gets `error`. The last call."""
        self._fail(error)
        del self._receiver  # which has us: both would wait for the garbage collector

    def _fail(self, error: Exception) -> None:
        self._stop_waiting()
        body, self._body = self._body, None
        if body is not None:
            body.fail(error)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for more."""
        return self._wanted_s is not None

    def _stop_waiting(self) -> None:
        if self._wanted_s is not None:
            self._waited_s += self._receiver.now() - self._wanted_s
            self._wanted_s = None

    def due_s(self) -> float:
        """When it will have taken too long; that counts while it is waited for and let in."""
        if self._wanted_s is None or not self.is_open or not self._receiver.may_receive():
            return NEVER
        left_s = self._limits.body_idle_s
        if self._limits.body_rate_bytes_s:
            enough_s = self.received / self._limits.body_rate_bytes_s
            left_s = min(left_s, max(self._limits.body_rate_after_s, enough_s) - self._waited_s)
        return self._wanted_s + left_s

    def expire(self) -> None:
        """It has taken too long."""
        self._fail(RefusedRequest(408, "request took too long"))

    # Source, called by the body.

    def body_wanted(self) -> None:
        self._release()
        if not self.is_open or self._body is None:
            return
        if self._wanted_s is None:  # else a wait that was given up goes on
            self._wanted_s = self._receiver.now()
        if self._is_expecting:
            self._is_expecting = False
            self._receiver.say_continue()

    def pause_body(self) -> None:
        self._is_paused = True

    def resume_body(self) -> None:
        self._is_paused = False
        self._release()
        self.open_window()


class Outgoing:
    """An answer's body that has not been sent.

    Attributes:
        unsent: its bytes.
        is_over: no more will be written; what ends it has not been sent.
        trailers: fields that follow it.
        moved_s: when data went, or began to wait.
    """

    __slots__ = ("_pieces", "_room", "is_over", "moved_s", "trailers", "unsent")

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()
        self._room: list[Deferred[None]] = []
        self.unsent = 0
        self.is_over = False
        self.trailers: list[tuple[bytes, bytes]] = []
        self.moved_s = 0.0

    @property
    def has_more(self) -> bool:
        """Whether something is to be sent."""
        return self.unsent > 0 or self.is_over

    def write(self, data: bytes, now_s: float) -> None:
        """Appends."""
        if not self.unsent:
            self.moved_s = now_s
        self._pieces.append(data)
        self.unsent += len(data)

    def send(self, h2: H2Connection, stream_id: int) -> int:
        """Gives h2 a frame, if there is something to send and the windows allow it.

        Returns:
            Bytes of data; -1 if it was the end alone.
        """
        if not self.unsent:
            return self._send_end(h2, stream_id)
        window = h2.local_flow_control_window(stream_id)
        size = min(self.unsent, window, h2.max_outbound_frame_size, FRAME_BYTES)
        if size <= 0:
            return 0
        self.unsent -= size
        is_last = self.is_over and not self.unsent and not self.trailers
        h2.send_data(stream_id, self._take(size), end_stream=is_last)
        if is_last:
            self.is_over = False
        return size

    def _send_end(self, h2: H2Connection, stream_id: int) -> int:
        if not self.is_over:
            return 0
        self.is_over = False
        if self.trailers:
            h2.send_headers(stream_id, self.trailers, end_stream=True)
        else:
            h2.end_stream(stream_id)
        return -1

    def _take(self, size: int) -> bytes:
        taken: list[bytes | memoryview] = []
        while size:
            piece = self._pieces.popleft()
            if len(piece) > size:
                view = memoryview(piece)
                self._pieces.appendleft(view[size:])
                piece = view[:size]
            taken.append(piece)
            size -= len(piece)
        return b"".join(taken)

    def drained(self) -> Deferred[None]:
        """Fires when there is room for more; cancelling is safe."""
        if self.unsent <= _HIGH_BYTES:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._forget)
        self._room.append(waiting)
        return waiting

    def _forget(self, waiting: Deferred[None]) -> None:
        if waiting in self._room:
            self._room.remove(waiting)

    def make_room(self) -> None:
        """Has writers go on, if there is room."""
        if self._room and self.unsent <= _LOW_BYTES:
            room, self._room = self._room, []
            for waiting in room:
                waiting.callback(None)

    def clear(self) -> None:
        """Nothing of it will be sent."""
        self._pieces.clear()
        self.unsent = 0
        self.is_over = False
        self.make_room()
