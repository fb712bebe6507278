"""How long an HTTP connection may take over what it does: the clock of `net.http`, and only its.

One lazy timer a connection, which looks now and then, and when a phase may have lasted too long. A
request that comes and goes in time costs it two attribute stores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import Any
from typing import Protocol as Interface

from twisted.internet.protocol import Protocol

from pelotontx.net.http.message import HTTPLimits
from pelotontx.net.tcp import is_gone, untaken_bytes
from pelotontx.net.wheel import Timer, Wheel

# What a connection waits for. HEAD: the rest of a head. IDLE: the next request. ANSWER: our own
# handler, or the peer's reading. BODY: more of a body that somebody reads, or the small rest of one
# that nobody read. CLOSING: the peer's last bytes. No request is taken from ANSWER on.
HEAD, IDLE, ANSWER, BODY, CLOSING = range(5)

#: How often a connection is looked at while nothing is due: a peer that stopped reading, or that
#: left when nothing was being read, is noticed this late at most.
LOOK_S = 5.0

#: While a peer does not read, how often its progress is looked at.
PROGRESS_S = 1.0

#: A peer that takes less than this of what waits for it reads to hold us, not to have it.
_TAKEN_BYTES_S = 1024


class Owner(Interface):
    """What all connections of a factory share."""

    limits: HTTPLimits
    wheel: Wheel

    def now(self) -> float:
        """The time in seconds."""


class TimedConnection(Protocol, ABC):
    """A connection that is in one of five phases, and not too long in any.

    A subclass keeps the attributes true, and says in `expire` what lateness means.

    Attributes:
        phase: what is waited for.
        since_s: when the phase began.
        received: bytes of the present body.
        waited_s: how long somebody waited for it, the present wait left out.
        written: bytes given to the transport in all.
        last_s: when the last head must have come.
    """

    owner: Owner
    phase = HEAD
    since_s = 0.0
    received = 0
    waited_s = 0.0
    written = 0
    last_s = inf

    _timer: Timer | None = None
    _timer_s = 0.0
    _to_be_taken = 0  # of `written`: where the peer must be, to be given more time
    _taking_s: float | None = None  # since when

    @abstractmethod
    def expire(self) -> None:
        """The phase has lasted too long."""

    def abort(self) -> None:
        """Ends the connection, whatever is going on."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def enter(self, phase: int) -> None:
        """Begins a phase, and watches it."""
        self.phase = phase
        self.since_s = self.owner.now()
        self.watch(min(self._due(self.since_s), self.since_s + LOOK_S))

    def watch(self, due_s: float) -> None:
        """Looks at `due_s` or before."""
        if self._timer is not None:
            if self._timer_s <= due_s:
                return
            self._timer.cancel()
        self._timer_s = due_s
        delay_s = max(0.0, due_s - self.owner.now())
        self._timer = self.owner.wheel.call_later(delay_s, self._look)

    def unwatch(self) -> None:
        """Leaves nothing in the wheel."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self, now_s: float) -> float:
        """When the present phase will have lasted too long."""
        limits = self.owner.limits
        if self.phase == IDLE:
            return self.since_s + limits.keep_alive_s
        if self.phase == HEAD:
            return min(self.since_s + limits.head_s, self.last_s)
        if self.phase == BODY:
            idle_s = self.since_s + limits.body_idle_s
            if not limits.body_rate_bytes_s:
                return idle_s
            enough_s = self.received / limits.body_rate_bytes_s
            left_s = max(limits.body_rate_after_s, enough_s) - self.waited_s
            return min(idle_s, self.since_s + left_s)
        if self.phase == CLOSING:
            return self.since_s + limits.linger_s
        return now_s + LOOK_S  # a handler takes the time it takes

    def _look(self) -> None:
        self._timer = None
        now_s = self.owner.now()
        untaken = untaken_bytes(self.transport)
        next_s = now_s + LOOK_S
        if untaken:
            stuck_s = self._stuck_s(self.written - untaken, now_s)
            next_s = min(now_s + PROGRESS_S, stuck_s)
        else:
            self._taking_s = None
        if next_s <= now_s or (self.phase == ANSWER and is_gone(self.transport)):
            self.abort()
            return
        if untaken and self.phase in (IDLE, CLOSING):
            self.since_s = now_s  # it is not idle: it is slow
        due_s = self._due(now_s)
        if due_s > now_s:
            self.watch(min(due_s, next_s))
        else:
            self.expire()

    def _stuck_s(self, taken: int, now_s: float) -> float:
        """When the peer will have read too little for too long, if it goes on like this.

        In each time that it is given it must take what waited at the beginning, or some of it.
        """
        unread_s = self.owner.limits.unread_s
        if self._taking_s is None or taken >= self._to_be_taken:
            self._taking_s = now_s
            self._to_be_taken = min(self.written, taken + int(unread_s * _TAKEN_BYTES_S))
        return self._taking_s + unread_s
