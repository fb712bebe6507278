"""An HTTP/2 client in memory: h2 on the other side of a `Wire`, turned by hand."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from hyperframe.frame import Frame, GoAwayFrame

from pelotontx.net.http import HTTPFactory
from pelotontx.net.http2 import HTTP2Connection
from tests.support.fake_reactor import FakeReactor
from tests.support.http_case import HTTPCase, Wire


def request_pairs(method: str = "GET", path: str = "/", **fields: str) -> list[tuple[str, str]]:
    """The fields of a request; underscores stand for hyphens."""
    more = [(name.replace("_", "-"), value) for name, value in fields.items()]
    return [
        (":method", method),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", path),
        *more,
    ]


class Answer:
    """What a stream has brought so far."""

    def __init__(self) -> None:
        self.informed: list[str] = []
        self.headers: dict[str, str] = {}
        self.body = b""
        self.trailers: dict[str, str] = {}
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers.get(":status", 0))


class HTTP2Peer:
    """The client's side of one connection.

    Attributes:
        h2: its state; call what you like, then `turn`.
        answers: by stream.
        goodbyes: the GOAWAY frames that came: code and last stream.
    """

    def __init__(self, factory: HTTPFactory, clock: FakeReactor) -> None:
        # h2 as a client would refuse to send, and to do, much of what is tried here.
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.clock = clock
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.goodbyes: list[tuple[int, int]] = []
        self.received = b""
        self.acknowledges = True
        self.connection = HTTP2Connection(factory)
        self.wire = Wire()
        self.wire.protocol = self.connection
        self.connection.makeConnection(self.wire)

    def begin(self) -> HTTP2Peer:
        """Preface and settings, both ways."""
        self.h2.initiate_connection()
        self.turn()
        return self

    def turn(self) -> None:
        """Exchanges all there is, until nobody has anything to say at this moment."""
        while True:
            data = self.h2.data_to_send()
            if data:
                self.connection.dataReceived(data)
            self.clock.advance(0)
            if not self.take() and not data:
                return

    def take(self) -> bool:
        """Reads what the server wrote; whether there was anything."""
        data = self.wire.taken()
        self.received += data
        kept = b""
        while data:
            frame, size = Frame.parse_frame_header(memoryview(data[:9]))
            whole, data = data[: size + 9], data[size + 9 :]
            if isinstance(frame, GoAwayFrame):
                frame.parse_body(memoryview(whole[9:]))
                self.goodbyes.append((frame.error_code, frame.last_stream_id))
            else:
                kept += whole
        for event in self.h2.receive_data(kept):
            self.handle(event)
        return bool(self.received) and bool(kept)

    def handle(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            raise AssertionError("GOAWAY frames are read apart")
        answer = self.answers[getattr(event, "stream_id", 0) or 0]
        if isinstance(event, InformationalResponseReceived):
            answer.informed.append(dict(event.headers)[":status"])
        elif isinstance(event, ResponseReceived):
            answer.headers = dict(event.headers)
        elif isinstance(event, DataReceived):
            answer.body += event.data
            if self.acknowledges:
                size = event.flow_controlled_length
                self.h2.acknowledge_received_data(size, event.stream_id)
        elif isinstance(event, TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)

    def ask(self, path: str = "/", *, method: str = "GET", end: bool = True, **fields: str) -> int:
        """Sends a request's head; returns its stream."""
        return self.send(request_pairs(method, path, **fields), end=end)

    def send(self, pairs: Any, *, end: bool = True) -> int:
        """As `ask`, of any fields."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, pairs, end_stream=end)
        self.turn()
        return stream_id

    def upload(self, stream_id: int, data: bytes, *, end: bool = False) -> int:
        """Sends as much of a body as the windows allow; returns how much that was."""
        sent = 0
        while sent < len(data):
            size = min(len(data) - sent, self.h2.local_flow_control_window(stream_id), 16384)
            if not size:
                break
            self.h2.send_data(stream_id, data[sent : sent + size])
            sent += size
            self.turn()
        if end and sent == len(data):
            self.h2.end_stream(stream_id)
            self.turn()
        return sent

    def raw(self, *frames: Frame) -> None:
        """Sends frames that h2 knows nothing of."""
        self.connection.dataReceived(b"".join(frame.serialize() for frame in frames))
        self.clock.advance(0)
        self.turn()

    def answer(self, path: str = "/", **more: Any) -> Answer:
        """A request and what came back."""
        return self.answers[self.ask(path, **more)]


class HTTP2Case(HTTPCase):
    """Tests of HTTP/2 over transports in memory."""

    def peer(self) -> HTTP2Peer:
        return HTTP2Peer(self.factory, self.clock).begin()

    def assert_broken(self, peer: HTTP2Peer, code: int) -> None:
        """The server has ended the connection, and said why."""
        peer.turn()
        self.assertEqual([code for code, _ in peer.goodbyes][-1:], [code])
        self.assertTrue(peer.wire.disconnecting)
