"""A juggler session on a broker in memory: `SessionTestCase` is the client, the callee and time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.hub import Hub
from pelotontx.broker.memory import MemoryBroker, MemoryPubSub
from pelotontx.gateway.juggler import (
    Gateway,
    JugglerEndpoint,
    JugglerLimits,
    Message,
    Next,
    Session,
)
from pelotontx.net.websocket import Handshake
from pelotontx.net.wheel import Wheel
from pelotontx.wire import juggler


class RecordingConnection:
    """What a session sends, decoded."""

    peer = "tcp:test"

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None

    def send_text(self, payload: bytes) -> None:
        self.sent.append(json.loads(payload))

    def send_frame(self, frame: bytes) -> None:
        self.send_text(frame[frame.index(b"{") :])

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def types(self) -> list[str]:
        return [juggler.NAMES[message["meta"]["type"]] for message in self.sent]

    def answers(self) -> list[tuple[str, str]]:
        """The type of each message and the request that it answers."""
        return [
            (juggler.NAMES[message["meta"]["type"]], message["payload"]["for"])
            for message in self.sent
        ]


class SlowPubSub(MemoryPubSub):
    """Says that it took something when the test says so, or at once when it `is_quick`."""

    is_quick = False

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.publishing: list[Deferred[None]] = []
        self.subscribing: list[Deferred[None]] = []

    def publish(self, channel: str, payload: bytes) -> Deferred[None]:
        taken = super().publish(channel, payload)
        if self.is_quick:
            return taken
        self.publishing.append(Deferred())
        return self.publishing[-1]

    def subscribe(self, channel: str, *, pattern: bool) -> Deferred[None]:
        taken = super().subscribe(channel, pattern=pattern)
        if self.is_quick:
            return taken
        self.subscribing.append(Deferred())
        return self.subscribing[-1]


def uuid(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012}"


class SessionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, call_cap=lambda uri: 10)
        self.make_hub(self.broker.pubsub)
        self.callee = self.broker.callee()
        self.count = 0
        self.open()

    def make_hub(self, pubsub: MemoryPubSub) -> None:
        self.wheel = Wheel(self.clock)
        self.hub = Hub(caller=self.broker.caller, pubsub=pubsub, wheel=self.wheel)
        self.hub.start()

    def open(
        self,
        headers: dict[str, str] | None = None,
        options: dict[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        """A session on an endpoint of its own, with these options and limits."""
        self.endpoint = JugglerEndpoint(
            hub=self.hub,
            clock=self.clock,
            wheel=self.wheel,
            limits=JugglerLimits(**limits),
            **(options or {}),
        )
        accepted = self.endpoint.accept(
            Handshake(headers or {}, ["juggler.0"], "p", "/ws?token=a%20b&token=c")
        )
        if isinstance(accepted, Deferred):
            accepted = self.successResultOf(accepted)
        self.connection = RecordingConnection()
        self.session: Any = accepted[1](self.connection)

    def send(self, type_: int, **payload: Any) -> str:
        self.count += 1
        message = {"meta": {"type": type_, "uuid": uuid(self.count)}, "payload": payload}
        self.session.text_received(json.dumps(message).encode())
        return uuid(self.count)

    def answer(self, args: bytes = b'"done"', uri: str = "u") -> None:
        for call in self.successResultOf(self.callee.take_calls((uri,), 100)):
            self.callee.store_result(call, args, self.assertIsNone)
        self.clock.advance(0)

    def drain(self, timeout_s: float = 5) -> Deferred[None]:
        return Deferred.fromCoroutine(self.endpoint.drain(timeout_s))

    def nacks(self) -> list[tuple[int, str]]:
        return [
            (message["payload"]["code"], message["payload"]["message"])
            for message in self.connection.sent
            if message["meta"]["type"] == juggler.NACK
        ]


async def pass_on(session: Session, message: Message, next: Next) -> None:
    await next(message)


class MiddlewareTestCase(SessionTestCase):
    def setUp(self) -> None:
        self.gateway = Gateway()
        super().setUp()

    def open(self, *arguments: Any, **more: Any) -> None:
        if not arguments:
            more.setdefault("options", {"gateway": self.gateway})
        super().open(*arguments, **more)

    def use(self, middleware: Callable[..., Any], **limits: Any) -> None:
        """A session with this middleware, behind those that there are."""
        self.gateway.middleware(middleware)
        self.open(**limits)

    def errors(self) -> list[str]:
        """The messages of the exceptions that were logged."""
        return [str(failure.value) for failure in self.flushLoggedErrors()]
