"""A client on a connection that the test holds the other end of."""

import json

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.client import Client
from pelotontx.errors import (
    Disconnected,
)

UUID = "b3b9e3a2-3d6e-4d3c-9d3a-0f2f5a6b7c8d"


class RecordingConnection:
    """Stands for an open WebSocket connection; `say` is the server."""

    def __init__(self, on_message, on_close):
        self.sent = []
        self.closed = None
        self.refuses = None
        self._on_message = on_message
        self._on_close = on_close

    def send(self, message):
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(json.loads(message))

    def close(self, code=1000, reason=""):
        self.closed = code
        return succeed(None)

    def abort(self):
        self.closed = "aborted"
        return succeed(None)

    def say(self, type_, **payload):
        payload = {name.removesuffix("_"): value for name, value in payload.items()}
        frame = {"meta": {"type": type_, "uuid": UUID}, "payload": payload}
        self._on_message(json.dumps(frame).encode() + b"\n")

    def say_bytes(self, frame):
        self._on_message(frame)

    def lose(self, reason="cut", code=1006):
        self._on_close(Disconnected(reason, code))

    def ids(self, type_):
        return [m["meta"]["uuid"] for m in self.sent if m["meta"]["type"] == type_]

    def payloads(self, type_):
        return [m["payload"] for m in self.sent if m["meta"]["type"] == type_]


class RecordingDialer:
    """Stands for `net.websocket.client.connect`; each attempt is decided by the test."""

    def __init__(self):
        self.attempts = []
        self._callbacks = []
        self.cancelled = 0

    def __call__(self, reactor, url, *, on_message, on_close, **arguments):
        self.arguments = arguments
        attempt = Deferred(self._cancel)
        self.attempts.append(attempt)
        self._callbacks.append((on_message, on_close))
        return attempt

    def _cancel(self, _):
        self.cancelled += 1

    def accept(self):
        connection = RecordingConnection(*self._callbacks[-1])
        self.attempts[-1].callback(connection)
        return connection

    def refuse(self, reason="refused"):
        self.attempts[-1].errback(Disconnected(reason))


class ClientTestCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.dialer = RecordingDialer()
        self.states = []
        self.client = self.make_client()

    def make_client(self, **arguments):
        arguments = {"jitter": lambda: 1.0} | arguments
        return Client(
            "ws://server.test/ws",
            reactor=self.clock,
            connector=self.dialer,
            on_state=lambda state, cause: self.states.append((state, cause)),
            **arguments,
        )

    def opened(self, **arguments):
        if arguments:
            self.client = self.make_client(**arguments)
        connected = self.client.connect()
        connection = self.dialer.accept()
        self.assertIsNone(self.successResultOf(connected))
        return connection
