"""HTTP/2 for servers: many requests at once on one connection, chosen by ALPN under TLS.

    factory = HTTPFactory(handle, wheel=wheel, clock=reactor)
    protocol = HTTP2Connection(factory)         # for a connection that negotiated `h2`

The same factory, handlers, requests and responses as in HTTP/1.1 (`net.http`), the same limits and
deadlines, counted for each stream where they were a connection's. h2 keeps the protocol's state; a
stream's request and answer are in `net.http2.stream`, what may be judged without state is in
`wire.http2`. Here is what streams share: reading, the order of writing, floods, and the end.

Requests only: no push, no other protocols on streams (a WebSocket client speaks HTTP/1.1), and no
HTTP/2 without TLS, which no browser speaks and which two readers could take for HTTP/1.1.
"""

from __future__ import annotations

from typing import Any, Final, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError as H2ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pelotontx.net.http.deadline import ANSWER, CLOSING, IDLE, LOOK_S, PROGRESS_S, TimedConnection
from pelotontx.net.http2.flood import Flood
from pelotontx.net.http2.flow import STREAM_WINDOW
from pelotontx.net.http2.stream import HTTP2Stream, Owner
from pelotontx.wire.hpack import Decoder, Encoder
from pelotontx.wire.http import Framing
from pelotontx.wire.http2 import (
    CONTINUATION,
    GOAWAY,
    HEADERS,
    PREFACE,
    BrokenConnection,
    FrameCutter,
    MalformedRequest,
    check_trailers,
)

#: Requests at once: what browsers and other servers count on.
STREAMS: Final = 100

#: Bytes of bodies that may be under way to us, all streams together.
CONNECTION_WINDOW: Final = 1024 * 1024

#: Work for one turn, in frames: other connections are waiting. A request costs as much as ten.
_TURN: Final = 320
_REQUEST_COST: Final = 10

#: Written at once: what a transport buffers at ease.
_BATCH_BYTES: Final = 64 * 1024

#: How long a client has to show that it knows of the coming end (it answers a ping).
_LEAVE_S: Final = 1.0
_LEAVING: Final = b"leaving."

_LAST_STREAM: Final = 2**31 - 1

_CONFIG = H2Configuration(
    client_side=False,
    # `wire.http2` judges what comes in, and what goes out was judged when it was made: h2's own
    # looks at each byte took a third of a request's time.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _State(H2Connection):
    MAX_CLOSED_STREAMS = 1024  # of h2's own 65536 a connection would cost megabytes


@implementer(IPushProducer)
class HTTP2Connection(TimedConnection):
    """One connection.

    Args:
        owner: the `HTTPFactory` whose handlers answer.

    Attributes:
        streams: requests that are not done.
        h2: the protocol's state.
        judged: the fields of the last request, and what they were found to say.
        sent_s: when data went last, of any stream.
        held_limit_bytes: of bodies that are not read, or not yet whole. Past it only the oldest
            upload is let on: a connection has a hundred of them.
    """

    _log = Logger()

    owner: Owner
    is_secure = False
    peer: IAddress | None = None

    held_limit_bytes = 16 * 1024 * 1024
    sent_s = 0.0
    _gone = False  # lost, or past saving: nothing is written any more
    _choked = False  # the transport holds more than it likes
    _behind = False  # frames are here that did not fit into the last turn
    _paused = False  # we do not read
    _busy = False  # somebody takes frames or writes, and looks for more afterwards
    _turn: IDelayedCall | None = None
    _leave_s: float | None = None  # when a farewell becomes final
    _last_id = _LAST_STREAM  # streams after this one are not answered
    _requests = 0
    _head_s: float | None = None  # when an unfinished head began to come
    _held = 0  # bytes of bodies, see `held_limit_bytes`
    _taken = 0  # bytes of bodies since the connection's window was opened last

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.streams: dict[int, HTTP2Stream] = {}
        self.judged: tuple[bytes, Framing | None] = b"", None
        self._starting: list[HTTP2Stream] = []
        self._sending: dict[int, HTTP2Stream] = {}
        self._lingering: dict[int, float] = {}  # answered uploads, and when they are reset
        self._frames = FrameCutter()
        self._flood = Flood(owner.now)
        head = owner.limits.head
        self.h2: H2Connection = _State(_CONFIG)
        self.h2.encoder = Encoder()
        self.h2.decoder = Decoder()
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: head.head_bytes + 32 * head.fields,
            },
        )

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.is_secure = ISSLTransport.providedBy(transport)
        self.peer = transport.getPeer()
        self.owner.remember(self)
        transport.registerProducer(self, True)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        self.h2.receive_data(PREFACE)  # the real one is judged by `wire.http2`
        self.flush()
        self._head_s = self.owner.now()
        self.enter(IDLE)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end()
        self.unwatch()
        self.owner.forget(self)

    def _end(self) -> None:
        """Nothing more will be read or written: whoever is at work for this peer may stop."""
        self._gone = True
        self._sending.clear()
        self._lingering.clear()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()
        while self.streams:
            self.streams.popitem()[1].lose()

    # Reading.

    def dataReceived(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            self._frames.feed(data)
        except BrokenConnection as error:
            self._break(error.code)
            return
        if not self._turn and not self._choked:
            self._advance()

    def _advance(self) -> None:
        """Takes the frames that are here, as many as one turn allows, then writes."""
        self._busy = True
        try:
            self._behind = self._take_frames()
            self._start_streams()
        except BrokenConnection as error:
            self._break(error.code)
            return
        except H2ProtocolError:
            self._break(None)
            return
        finally:
            self._busy = False
        if self._head_s is None and self._frames.is_in_head:
            self._head_s = self.owner.now()
        self._pump()
        if self._behind:
            self.wake()
        self._steer()

    def _take_frames(self) -> bool:
        """Whether some may be left for the next turn."""
        left = _TURN
        while left > 0:
            frame = self._frames.cut()
            if frame is None or self._gone:
                return False
            if not self._frames.is_in_block:
                self._head_s = None
            left -= _REQUEST_COST if frame.kind == HEADERS else 1
            self._flood.count(frame)
            if frame.kind == GOAWAY:
                self.close_when_idle()  # h2 would take it for the end of all streams
            elif frame.kind <= CONTINUATION:
                for event in self.h2.receive_data(frame.data):
                    self._handle(event)
        return True

    def _start_streams(self) -> None:
        """Calls handlers, now that what came with the heads is here."""
        starting, self._starting = self._starting, []
        for stream in starting:
            stream.start()

    def _handle(self, event: Event) -> None:
        """Of window updates nothing need be known: `_pump` follows, and looks at the windows."""
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._receive(event)
        elif isinstance(event, StreamEnded):
            stream = self.streams.get(event.stream_id)
            if stream is not None and stream.incoming.is_open:
                stream.receive(b"", 0, is_last=True)  # after trailers
            elif self._lingering.pop(event.stream_id, None) is not None:
                self._rest()
        elif isinstance(event, TrailersReceived):
            self._check_trailers(event)
        elif isinstance(event, StreamReset):
            self._lose(event.stream_id)
        elif isinstance(event, PingAckReceived) and event.ping_data == _LEAVING:
            self._leave_now()

    def _begin(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        if stream_id > self._last_id:
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        if self.phase == IDLE:
            self.enter(ANSWER)
        has_body = event.stream_ended is None
        stream = self.streams[stream_id] = HTTP2Stream(self, stream_id, has_body=has_body)
        try:
            stream.read(event.headers)
        except MalformedRequest:
            self.reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        self._starting.append(stream)
        self._requests += 1
        if self._requests >= self.owner.last_request:
            self.close_when_idle()

    def _receive(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        self._taken += size
        if self._taken >= CONNECTION_WINDOW // 4:
            self.h2.increment_flow_control_window(self._taken)
            self._taken = 0
        stream = self.streams.get(event.stream_id)
        if stream is None:
            if event.stream_id in self._lingering and event.stream_ended is None and size:
                self.h2.increment_flow_control_window(size, event.stream_id)
            return  # answered meanwhile
        self._held += len(event.data)
        stream.receive(event.data, size, is_last=event.stream_ended is not None)

    def may_receive(self, stream: HTTP2Stream) -> bool:
        """Whether a stream's window may be opened: all of them, or the oldest upload's only."""
        if self._held <= self.held_limit_bytes:
            return True
        return stream is next(other for other in self.streams.values() if other.incoming.is_open)

    def release(self, size: int) -> None:
        """So much of a body was read, or its request has been answered."""
        was_full = self._held > self.held_limit_bytes
        self._held -= size
        if was_full:
            for other in self.streams.values():
                other.incoming.open_window()

    def _check_trailers(self, event: TrailersReceived) -> None:
        try:
            check_trailers(event.headers)
        except MalformedRequest:
            self.reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)

    # The end of streams.

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Resets a stream for what its peer did; a handler at work is cancelled.

        Raises:
            BrokenConnection: there were too many.
        """
        self.h2.reset_stream(stream_id, code)
        self._drop(stream_id)
        self._flood.count_reset()

    def _lose(self, stream_id: int) -> None:
        """The peer has reset a stream, or had h2 do so."""
        if self._drop(stream_id):
            self._flood.count_reset()

    def _drop(self, stream_id: int) -> bool:
        """Whether it was not done yet."""
        if self._lingering.pop(stream_id, None) is not None:
            self._rest()
            return False
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return False
        stream.lose()
        self._forget(stream)
        return True

    def finish(self, stream: HTTP2Stream) -> None:
        """An answer's last byte was given to h2.

        The peer may still be sending, and need not go on (RFC 9113, 8.1). But some clients forget
        the answer when they are reset then (curl does): so whoever is told of an error, and will
        stop, has `HTTPLimits.linger_s` for that, as in HTTP/1.1; what it sends is dropped.
        """
        if self.streams.pop(stream.stream_id, None) is None:
            return
        if stream.incoming.is_open and stream.status < 400:
            self.h2.reset_stream(stream.stream_id, ErrorCodes.NO_ERROR)
        elif stream.incoming.is_open:
            due_s = self.owner.now() + self.owner.limits.linger_s
            self._lingering[stream.stream_id] = due_s
            self.watch(due_s)
        self._forget(stream)

    def _end_lingering(self, now_s: float) -> None:
        """Resets who has not stopped yet."""
        for stream_id, due_s in tuple(self._lingering.items()):
            if due_s <= now_s:
                del self._lingering[stream_id]
                self.h2.reset_stream(stream_id, ErrorCodes.NO_ERROR)
                self._rest()
                self.wake()

    def cut(self, stream: HTTP2Stream, code: ErrorCodes) -> None:
        """An answer cannot be finished: the peer must not take it for the whole."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self.h2.reset_stream(stream.stream_id, code)
            self._forget(stream)
            self.wake()

    def _forget(self, stream: HTTP2Stream) -> None:
        self._sending.pop(stream.stream_id, None)
        self.release(stream.incoming.held)
        self._rest()

    @property
    def _is_idle(self) -> bool:
        return not (self.streams or self._lingering)

    def _rest(self) -> None:
        """Nothing may be going on any more."""
        if self._is_idle:
            self.enter(IDLE)
            if self._last_id != _LAST_STREAM:
                self._close()

    # Writing.

    def send(self, stream: HTTP2Stream) -> None:
        """A stream has something to send."""
        self._sending[stream.stream_id] = stream
        self.wake()

    def wake(self) -> None:
        """Goes on in the next turn: whatever is ready then leaves in one write."""
        if self._turn is None and not self._busy and not self._gone:
            self._turn = self.owner.clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._turn = None
        if self._choked:
            self.flush()
        else:
            self._advance()

    def push(self) -> None:
        """Writes now what is there."""
        if not self._busy and not self._gone:
            self._pump()

    def _pump(self) -> None:
        """Sends a frame of each stream in turn, as far as windows and the transport allow."""
        self._busy = True
        sending = self._sending
        idle = batch = 0
        while idle < len(sending) and not self._choked and not self._gone:
            stream_id = next(iter(sending))
            stream = sending.pop(stream_id)
            size = stream.send_frame()
            if stream.outgoing.has_more and stream_id in self.streams:
                sending[stream_id] = stream
            if not size:
                idle += 1
                continue
            idle = 0
            self.sent_s = self.owner.now()
            self._flood.forgive(size, is_whole=not stream.outgoing.unsent)
            batch += size
            if batch >= _BATCH_BYTES:
                self.flush()
                batch = 0
        self._busy = False
        self.flush()

    def flush(self) -> None:
        """Writes what h2 holds."""
        data = self.h2.data_to_send()
        if data and self.transport is not None and self.phase != CLOSING:
            self.written += len(data)
            self.transport.write(data)

    def _steer(self) -> None:
        """Reads, unless frames wait for the next turn, or answers for the peer.

        With a choked transport even window updates could change nothing.
        """
        paused = self._choked or self._behind
        if paused == self._paused or self._gone:
            return
        self._paused = paused
        transport: Any = self.transport
        if paused:
            transport.pauseProducing()
        else:
            transport.resumeProducing()

    # IPushProducer, called by the transport.

    def pauseProducing(self) -> None:
        self._choked = True
        self.watch(self.owner.now() + PROGRESS_S)
        self._steer()

    def resumeProducing(self) -> None:
        self._choked = False
        if self._head_s is not None:
            self._head_s = self.owner.now()  # it was we who did not read
        self.wake()

    def stopProducing(self) -> None:
        """The connection is lost; `connectionLost` follows."""

    # Deadlines.

    def _due(self, now_s: float) -> float:
        limits = self.owner.limits
        if self.phase == CLOSING:
            return self.since_s + limits.linger_s
        due_s = self.since_s + limits.keep_alive_s if self._is_idle else now_s + LOOK_S
        for linger_s in self._lingering.values():
            due_s = min(due_s, linger_s)
        if self._head_s is not None and not self._choked:
            due_s = min(due_s, self._head_s + limits.head_s)
        if self._leave_s is not None:
            due_s = min(due_s, self._leave_s)
        for stream in self.streams.values():
            due_s = min(due_s, stream.due_s())
        return due_s

    def expire(self) -> None:
        now_s = self.owner.now()
        head_s = self._head_s
        if self.phase == CLOSING:
            self.abort()
        elif head_s is not None and not self._choked and now_s >= head_s + self.owner.limits.head_s:
            self._break(ErrorCodes.ENHANCE_YOUR_CALM)
        elif self._is_idle or (self._leave_s is not None and now_s >= self._leave_s):
            self._leave_now()
        else:
            self._expire_streams(now_s)
        if not self._gone:
            self.watch(min(self._due(now_s), now_s + LOOK_S))

    def _expire_streams(self, now_s: float) -> None:
        for stream in tuple(self.streams.values()):
            if stream.due_s() > now_s:
                continue
            if stream.is_stuck and self.h2.outbound_flow_control_window <= 0:
                self.abort()  # none of them will ever be read
                return
            stream.expire()
        self._end_lingering(now_s)

    # Ending.

    def close_when_idle(self) -> None:
        """Ends the connection when the requests that are under way have been answered.

        The peer is told in two steps (RFC 9113, 6.8): that the end is near, and, when it must have
        heard, which request was the last. So none is lost between them.
        """
        if self._leave_s is not None or self._last_id != _LAST_STREAM or self._gone:
            return
        self._leave_s = self.owner.now() + _LEAVE_S
        self._say_goodbye(_LAST_STREAM)
        self.h2.ping(_LEAVING)
        self.watch(self._leave_s)
        self.wake()

    def _leave_now(self) -> None:
        """Takes no more requests."""
        self._leave_s = None
        self._last_id = self.h2.highest_inbound_stream_id
        self._say_goodbye(self._last_id)
        if self._is_idle:
            self._close()

    def _say_goodbye(self, last_id: int) -> None:
        """A GOAWAY frame past h2, for which it would be the end of all streams at once."""
        self.flush()
        data = GoAwayFrame(0, last_stream_id=last_id, error_code=0).serialize()
        self.written += len(data)
        cast(Any, self.transport).write(data)

    def _break(self, code: ErrorCodes | None) -> None:
        """Ends everything, and tells the peer why; None: h2 does already."""
        self._end()
        if code is not None:
            self.h2.close_connection(code)
        if code == ErrorCodes.ENHANCE_YOUR_CALM:
            self._log.warn("{peer} was cut off: it was too slow or sent too much", peer=self.peer)
        self._close()

    def _close(self) -> None:
        """Ends the connection once all is written."""
        transport: Any = self.transport
        self.flush()
        self._gone = True
        transport.unregisterProducer()
        if self._paused:
            self._paused = False
            transport.resumeProducing()
        self.enter(CLOSING)
        transport.loseConnection()


__all__ = ["HTTP2Connection"]
