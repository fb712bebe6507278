"""The epoll reactor of the server: slim polling, and one `send` a transport and turn.

Twisted's epoll reactor wraps every event in a logging context and two function calls; here a plain
"readable" or "writable" event calls `doRead` or `doWrite` directly. Transports of `net.tcp` put
themselves on `PelotonReactor.dirty` when they are written to; they are flushed after each batch of
events and once more before the reactor sleeps, so that whatever timers wrote leaves as well.

`install` makes it the process's reactor; ``twistd --reactor=peloton`` does the same. Only `tap` and
entry points call it.
"""

from __future__ import annotations

import errno
import sys
from select import EPOLLIN, EPOLLOUT
from time import monotonic
from typing import Any, Protocol

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.python import log


class Dirty(Protocol):
    """A transport with bytes that wait for the end of the turn."""

    def flush(self) -> None:
        """Sends what it can; never raises for a lost connection."""


class PelotonReactor(EPollReactor):  # zope's interface inheritance
    """Twisted's epoll reactor with direct dispatch and corked writes.

    Attributes:
        dirty: transports to be flushed at the end of this turn. A transport appends itself once
            and is forgotten when it was flushed.
    """

    def __init__(self) -> None:
        self.dirty: list[Dirty] = []
        super().__init__()  # type: ignore[no-untyped-call]

    # Monotonic: a step of the wall clock must not end deadlines, nor look like a flood.
    seconds = staticmethod(monotonic)

    def flush(self) -> None:
        """Flushes every dirty transport once; what becomes dirty meanwhile stays for later."""
        dirty, self.dirty = self.dirty, []
        for transport in dirty:
            try:
                transport.flush()
            except Exception:  # producers resumed by a flush are foreign code
                log.err()

    def doPoll(self, timeout: float | None) -> None:
        if self.dirty:
            timeout = self._flush_before(timeout)
        try:
            events = self._poller.poll(
                -1 if timeout is None else timeout, len(self._selectables) or -1
            )
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        selectables = self._selectables
        for descriptor, event in events:
            selectable = selectables.get(descriptor)
            if selectable is None:
                continue  # closed by an earlier event of this batch
            if event == EPOLLIN:
                try:
                    why = selectable.doRead()
                except BaseException:  # as stock: logged, and the connection is over
                    why = self._failed(selectable)
                if why:
                    self._disconnect(selectable, why, is_read=True)
            elif event == EPOLLOUT:
                try:
                    why = selectable.doWrite()
                except BaseException:
                    why = self._failed(selectable)
                if why:
                    self._disconnect(selectable, why, is_read=False)
            else:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)
        if self.dirty:
            self.flush()

    doIteration = doPoll

    def _flush_before(self, timeout: float | None) -> float | None:
        """Flushes, and says how long the poll may now sleep.

        A flush resumes producers, and these may schedule calls, write again, or stop the reactor.
        """
        self.flush()
        if self.dirty or self._justStopped:
            return 0
        due: float | None = self.timeout()
        if due is None or timeout is None:
            return due if timeout is None else timeout
        return min(due, timeout)

    def _disconnect(self, selectable: Any, why: BaseException, *, is_read: bool) -> None:
        """As stock: what `connectionLost` raises is logged and concerns nobody else."""
        log.callWithLogger(selectable, self._disconnectSelectable, selectable, why, is_read)

    def _failed(self, selectable: Any) -> BaseException | None:
        log.callWithLogger(selectable, log.err)
        return sys.exc_info()[1]


def install() -> PelotonReactor:
    """Makes a `PelotonReactor` the global reactor.

    Raises:
        twisted.internet.error.ReactorAlreadyInstalledError: another one is in place.
    """
    reactor = PelotonReactor()
    installReactor(reactor)
    return reactor


__all__ = ["PelotonReactor", "install"]
