"""Connections before their first request: a balancer's header or TLS's handshake comes first.

They are counted, given up when they take too long, and ended with the server. For `net.tls` and
`net.proxy_protocol`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from pelotontx.net.admission import Admission
from pelotontx.net.wheel import Timer, Wheel

#: A handshake takes a few round trips; whoever needs longer holds a descriptor for nothing.
TIMEOUT_S = 10.0


class ThresholdFactory(Factory):
    """Makes protocols that hand their connection over to another one.

    Args:
        admission: where the connections count until they are handed over.
        wheel: their deadlines.
        timeout_s: how long that may take; then the connection is aborted.

    Attributes:
        waiting: the connections that were not handed over yet.
        failed: how many never were.
    """

    noisy = False

    def __init__(self, *, admission: Admission, wheel: Wheel, timeout_s: float = TIMEOUT_S) -> None:
        self.admission = admission
        self.wheel = wheel
        self.timeout_s = timeout_s
        self.waiting: set[Threshold] = set()
        self.failed = 0

    def abort_all(self) -> None:
        """Ends them all."""
        for waiting in tuple(self.waiting):
            waiting.abort()


class Threshold(Protocol):
    """One such connection."""

    transport: Any
    owner: ThresholdFactory
    _timer: Timer

    def __init__(self, owner: ThresholdFactory) -> None:
        self.owner = owner

    def connectionMade(self) -> None:
        owner = self.owner
        owner.waiting.add(self)
        owner.admission.enter(self.transport)
        self._timer = owner.wheel.call_later(owner.timeout_s, self.abort)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.owner.failed += 1
        self.leave()

    def leave(self) -> None:
        """It is handed over now, or gone."""
        self._timer.cancel()
        self.owner.waiting.discard(self)
        self.owner.admission.leave(self.transport)

    def abort(self) -> None:
        """Ends it at once."""
        self.transport.abortConnection()


__all__ = ["TIMEOUT_S", "Threshold", "ThresholdFactory"]
