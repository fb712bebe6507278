"""What all connections of a listener share, and what makes them."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from time import time
from typing import Any
from typing import Protocol as Interface

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol

from pelotontx.net.admission import Admission
from pelotontx.net.http.answer import HeadKey, OnAnswered
from pelotontx.net.http.connection import Handle, HTTPConnection
from pelotontx.net.http.message import (
    HTTPLimits,
    Request,
)
from pelotontx.net.wheel import Wheel
from pelotontx.wire.http import RefusedRequest, read_target

#: Response heads of the second, and targets, that are kept at most. Both repeat a lot.
_KEPT = 1024

#: What else a request line holds, at most: ``OPTIONS  HTTP/1.1``.
_AROUND_TARGET = 17


class _TurnedAway(Protocol):
    """A connection that is not wanted: TLS could do nothing without any protocol."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.abortConnection()


class Connection(Interface):
    """A connection of a factory, in whatever version of HTTP."""

    transport: Any

    def close_when_idle(self) -> None:
        """Ends as soon as nothing is going on."""

    def abort(self) -> None:
        """Ends now."""


class HTTPFactory(Factory):
    """Makes `HTTPConnection`s, and keeps what all connections share.

    A connection of another version, which TLS chose by ALPN, is made by others. It takes the
    factory as its `owner`, too: remembers and forgets itself here, and calls `handle` and
    `on_answered`.

    Args:
        handle: called with each request, when its head is complete.
        wheel: deadlines of all connections.
        clock: the time, for deadlines; a reactor.
        limits: what a connection may cost.
        request_class: what `handle` is given; a subclass of `Request`.
        admission: who may connect; others are cut off at once. Without it everybody may.
        wall_clock: seconds since the epoch, for Date.
        on_answered: None, or called with ``(request, status, body_bytes, began_s)`` once for each
            request: when its answer is written, has failed, or cannot be given any more. For
            access logs, so it must be quick. `body_bytes` is without framing; `began_s` is the
            clock's time at the head. A request of which no head could be read has an empty
            method and target; 101 is a connection that was handed over, 499 a peer that left
            before there was an answer.

    Attributes:
        connections: those that speak HTTP now; upgraded ones are not among them.
        is_draining: every answer is a connection's last.
        last_request: the request of a connection that is its last.
        fields: Server and Date, as they are now.
        heads: heads of this second's responses.
        targets: request targets, read.
    """

    noisy = False

    def __init__(
        self,
        handle: Handle,
        *,
        wheel: Wheel,
        clock: IReactorTime,
        limits: HTTPLimits | None = None,
        request_class: type[Request] = Request,
        admission: Admission | None = None,
        wall_clock: Callable[[], float] = time,
        on_answered: OnAnswered | None = None,
    ) -> None:
        self.handle = handle
        self.on_answered = on_answered
        self._admission = admission or Admission(clock.seconds)
        self.limits = limits or HTTPLimits()
        self.wheel = wheel
        self.request_class = request_class
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.last_request = self.limits.requests
        self.heads: dict[HeadKey, bytes] = {}
        self.targets: dict[bytes, tuple[str, str, str]] = {}
        self.clock = clock
        self._seconds = clock.seconds
        self._wall_clock = wall_clock
        self._second = -1
        self.fields = b""
        self._drained: list[Deferred[None]] = []
        self._late: IDelayedCall | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return HTTPConnection(self) if self._admission.admits(addr) else _TurnedAway()

    def now(self) -> float:
        """The clock's seconds; the Date of responses follows."""
        now_s = self._seconds()
        if not 0 <= now_s - self._second < 1:
            self._second = int(now_s)
            self.heads.clear()
            date = formatdate(self._wall_clock(), usegmt=True)
            self.fields = f"Server: pelotontx\r\nDate: {date}\r\n".encode()
        return now_s

    def keep_head(self, key: HeadKey, head: bytes) -> None:
        """Keeps the head of a response for the next like it, for as long as its Date holds."""
        if len(self.heads) < _KEPT:
            self.heads[key] = head

    def read_target(self, method: str, target: bytes, host: bytes) -> tuple[str, str, str]:
        """`wire.http.read_target`, which remembers short targets that depend on nothing else.

        Raises:
            RefusedRequest: as there, and 414 for a request line that is too long.
        """
        if len(target) + _AROUND_TARGET > self.limits.head.line_bytes:
            raise RefusedRequest(414, "request line too long")
        parts = read_target(method, target, host)
        if target.startswith(b"/") and len(target) < 256:
            if len(self.targets) >= _KEPT:
                self.targets.clear()
            self.targets[target] = parts
        return parts

    def remember(self, connection: Connection) -> None:
        """A connection began."""
        self.connections.add(connection)
        self._admission.enter(connection.transport)

    def forget(self, connection: Connection) -> None:
        """A connection ended or was handed over."""
        self.connections.discard(connection)
        self._admission.leave(connection.transport)
        if self.connections or not self._drained:
            return
        if self._late is not None and self._late.active():
            self._late.cancel()
        drained, self._drained = self._drained, []
        for deferred in drained:
            deferred.callback(None)

    def drain(self, timeout_s: float) -> Deferred[None]:
        """Ends all connections, gracefully as far as time allows.

        Idle ones are closed at once, busy ones answer with ``Connection: close``, and what is
        left after `timeout_s` is aborted. Stop listening first. Cancelling only stops waiting.

        Returns:
            Fires when no connection is left and nothing of them is in the reactor.
        """
        self.is_draining = True
        self.last_request = 0
        for connection in list(self.connections):
            connection.close_when_idle()
        if not self.connections:
            return succeed(None)
        if self._late is None or not self._late.active():
            self._late = self.clock.callLater(timeout_s, self._abort_all)
        drained: Deferred[None] = Deferred(lambda waiting: self._drained.remove(waiting))
        self._drained.append(drained)
        return drained

    def _abort_all(self) -> None:
        for connection in list(self.connections):
            connection.abort()
