"""A WebSocket connection that is made again whenever it is lost."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import Disconnected
from pelotontx.net.wheel import Timer, Wheel

# A connection that lived shorter than this did not work: the backoff goes on growing, so that a
# server which accepts and hangs up at once is not asked without pause.
_STABLE_S: Final = 5.0


class State(StrEnum):
    """Where a `Redial` stands; WAITING is the pause before the next attempt."""

    NEW = "new"
    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class Connection(Protocol):
    """What is needed of `net.websocket.client.Connection`."""

    def send(self, message: bytes) -> None: ...

    def close(self, code: int = 1000, reason: str = "") -> Deferred[None]: ...

    def abort(self) -> Deferred[None]: ...


class Owner(Protocol):
    """Whom a `Redial` tells what happens; none of these may raise."""

    def connection_opened(self, connection: Connection) -> None:
        """A connection is there; the state is OPEN."""

    def connection_lost(self, error: Disconnected) -> None:
        """It is gone; the state is WAITING."""

    def connection_closed(self, error: Disconnected) -> None:
        """There will be no other; the state is CLOSED."""

    def state_changed(self, state: State, cause: Disconnected | None) -> None:
        """Called first of all; `cause` when it was not asked for."""


class Redial:
    """Keeps one connection open: exponential backoff with full jitter, for ever.

    Args:
        dial: makes one attempt; gets what to call when the connection that it made is gone.
        owner: is told.
        reactor: for time.
        wheel: for the pauses; stopped when this has closed.
        backoff_s: the first pause is a random time up to this; it doubles.
        backoff_limit_s: the longest pause.
        jitter: gives random numbers from 0 to 1.

    Attributes:
        state: where it stands.
        connection: the open connection, or one that is closing; None when there is none.
    """

    _log = Logger()

    def __init__(
        self,
        dial: Callable[[Callable[[Disconnected], None]], Deferred[Any]],
        owner: Owner,
        *,
        reactor: Any,
        wheel: Wheel,
        backoff_s: float,
        backoff_limit_s: float,
        jitter: Callable[[], float],
    ) -> None:
        self.state = State.NEW
        self.connection: Connection | None = None
        self._dial = dial
        self._owner = owner
        self._reactor = reactor
        self._wheel = wheel
        self._backoff_s = backoff_s
        self._backoff_limit_s = backoff_limit_s
        self._jitter = jitter
        self._dialing: Deferred[Any] | None = None
        self._timer: Timer | None = None
        self._retries = True
        self._attempts = 0
        self._opened_at = 0.0
        self._waiting_for_open: list[Deferred[None]] = []

    def connect(self, *, retry: bool) -> Deferred[None]:
        """Starts; fires when the connection is open, errbacks with `Disconnected` if closed before.

        Args:
            retry: whether a failure of the first attempt, too, is mended; otherwise it closes.
        """
        if self.state is State.OPEN:
            return succeed(None)
        if self.state is State.CLOSED:
            return fail(Disconnected("the client is closed"))
        waiting: Deferred[None] = Deferred(self._waiting_for_open.remove)
        self._waiting_for_open.append(waiting)
        if self.state is State.NEW:
            self._retries = retry
            self._attempt()
        return waiting

    async def close(self, *, abort: bool) -> None:
        """Ends the connection, or the attempt to make one; waits until nothing is left of it."""
        connection, dialing = self.connection, self._dialing
        self._shut(Disconnected("the client was closed"), None)
        if dialing is not None:
            dialing.cancel()
            # Transports that were dropped leave the reactor in its next turn.
            await deferLater(self._reactor, 0)
        if connection is not None:
            await (connection.abort() if abort else connection.close())
        self.connection = None
        self._wheel.stop()

    def pause_s(self, attempts: int) -> float:
        """The pause after so many failed attempts."""
        # Past 2**32 times the first pause the limit holds in any case.
        longest_s: float = min(self._backoff_limit_s, self._backoff_s * 2 ** min(attempts, 32))
        return self._jitter() * longest_s

    def _set_state(self, state: State, cause: Disconnected | None = None) -> None:
        self.state = state
        self._owner.state_changed(state, cause)

    def _attempt(self) -> None:
        self._timer = None
        self._set_state(State.CONNECTING)
        if self.state is not State.CONNECTING:
            return  # closed by whom that told
        dialing = self._dialing = self._dial(self._lost)
        dialing.addCallbacks(self._opened, self._not_opened)
        dialing.addErrback(self._broken)

    def _opened(self, connection: Connection) -> None:
        self._dialing = None
        self.connection = connection
        self._opened_at = self._reactor.seconds()
        self._retries = True
        self._set_state(State.OPEN)
        if self.state is State.OPEN:
            self._owner.connection_opened(connection)
        while self.state is State.OPEN and self._waiting_for_open:
            self._waiting_for_open.pop(0).callback(None)

    def _not_opened(self, failure: Failure) -> Failure | None:
        self._dialing = None
        error = failure.value
        if self.state is State.CLOSED:
            return None
        if not isinstance(error, Disconnected):
            return failure
        if self._retries:
            self._retry(error)
        else:
            self._wheel.stop()  # before anybody is told: nothing of it is left then
            self._shut(error, error)
        return None

    def _broken(self, failure: Failure) -> None:
        self._log.failure("Connecting failed", failure)
        error = Disconnected(failure.getErrorMessage())
        self._shut(error, error)
        if self.connection is not None:
            self.connection.abort()

    def _lost(self, error: Disconnected) -> None:
        self.connection = None
        if self.state is State.CLOSED:
            return
        if self._reactor.seconds() - self._opened_at >= _STABLE_S:
            self._attempts = 0
        self._retry(error)
        if self.state is State.WAITING:
            self._owner.connection_lost(error)

    def _retry(self, error: Disconnected) -> None:
        delay_s = self.pause_s(self._attempts)
        self._attempts += 1
        self._timer = self._wheel.call_later(delay_s, self._attempt)
        self._set_state(State.WAITING, error)

    def _shut(self, error: Disconnected, cause: Disconnected | None) -> None:
        if self.state is State.CLOSED:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._set_state(State.CLOSED, cause)
        self._owner.connection_closed(error)
        while self._waiting_for_open:
            self._waiting_for_open.pop(0).errback(error)
