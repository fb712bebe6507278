"""Sockets and pipes that Twisted does not know: told when one is ready.

    watch = on_readable(reactor, sock, lambda: print(sock.recv(100)))
    ...
    watch.stop()

    await once_writable(reactor, sock)

What is watched is a duplicate of the file descriptor, so that one socket may be watched for several
things at once, and closing it cannot confuse the reactor. Until all its watches were stopped the
peer does not see that it was closed: stop them first.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pelotontx.flow.deferreds import started

# A descriptor stays ready while its callback fails to read it: calling at once would be a loop.
_REST_S = 1.0


class HasDescriptor(Protocol):
    """A socket, a pipe's file ..., non-blocking."""

    def fileno(self) -> int:
        """The open file descriptor."""


@implementer(IReadDescriptor, IWriteDescriptor)
class Watch:
    """What `on_readable` and the others return."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        file: HasDescriptor,
        callback: Callable[[], object],
        *,
        is_reading: bool,
    ) -> None:
        self._reactor = reactor
        self._callback = callback
        self._is_reading = is_reading
        self._resting: IDelayedCall | None = None
        self._descriptor = os.dup(file.fileno())
        self._resume()

    def stop(self) -> None:
        """The callback is not called any more; stopping again changes nothing."""
        if self._descriptor < 0:
            return
        self._pause()
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _pause(self) -> None:
        if self._is_reading:
            self._reactor.removeReader(self)
        else:
            self._reactor.removeWriter(self)

    def _resume(self) -> None:
        self._resting = None
        if self._descriptor < 0:
            return
        if self._is_reading:
            self._reactor.addReader(self)
        else:
            self._reactor.addWriter(self)

    # For the reactor.

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return type(self).__name__

    def doRead(self) -> None:
        try:
            result = self._callback()
        except Exception:  # the user's code
            self._failed(Failure())
            return
        if isinstance(result, Awaitable):
            if self._descriptor >= 0:
                self._pause()
            ending: Deferred[Any] = started(result)
            ending.addCallbacks(lambda _: self._resume(), self._failed)

    doWrite = doRead

    def connectionLost(self, reason: Failure) -> None:
        """The peer is gone, which the owner's next call shows; or the reactor is stopping.

        The reactor has already stopped watching.
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN if self._is_reading else select.POLLOUT)
        if poll.poll(0):
            self.doRead()
        self.stop()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("What was watched for failed; once more in a second", failure)
        if self._descriptor >= 0:
            self._pause()
            self._resting = IReactorTime(self._reactor).callLater(_REST_S, self._resume)


def on_readable(
    reactor: IReactorFDSet, file: HasDescriptor, callback: Callable[[], object]
) -> Watch:
    """Calls ``callback()`` whenever there is something to read, an end included.

    It is called again for as long as something is left. While a coroutine that it has returned
    runs, it is not. What it raises is logged, and a second later it is called again. Stop the
    watch when reading shows the end: an end stays readable.
    """
    return Watch(reactor, file, callback, is_reading=True)


def on_writable(
    reactor: IReactorFDSet, file: HasDescriptor, callback: Callable[[], object]
) -> Watch:
    """Calls ``callback()`` whenever something can be written, else as `on_readable`.

    Nearly always that is so: stop it when there is nothing to write.
    """
    return Watch(reactor, file, callback, is_reading=False)


def on_acceptable(
    reactor: IReactorFDSet, listener: HasDescriptor, callback: Callable[[], object]
) -> Watch:
    """Calls ``callback()`` whenever connections wait to be accepted, else as `on_readable`."""
    return Watch(reactor, listener, callback, is_reading=True)


def on_connectable(
    reactor: IReactorFDSet, sock: socket.socket, callback: Callable[[OSError | None], object]
) -> Watch:
    """Calls ``callback(error)`` once, when a connection attempt has ended; None: it is there.

    The attempt is one that ``connect`` or ``connect_ex`` of a non-blocking socket has begun.
    """

    def ended() -> object:
        watch.stop()
        return callback(_error_of(sock))

    watch = Watch(reactor, sock, ended, is_reading=False)
    return watch


def once_readable(reactor: IReactorFDSet, file: HasDescriptor) -> Deferred[None]:
    """Fires when there is something to read, an end included; cancelling is safe."""
    return _once(reactor, file, is_reading=True)


def once_writable(reactor: IReactorFDSet, file: HasDescriptor) -> Deferred[None]:
    """Fires when something can be written; cancelling is safe."""
    return _once(reactor, file, is_reading=False)


def once_acceptable(reactor: IReactorFDSet, listener: HasDescriptor) -> Deferred[None]:
    """Fires when a connection waits to be accepted; cancelling is safe."""
    return _once(reactor, listener, is_reading=True)


async def once_connectable(reactor: IReactorFDSet, sock: socket.socket) -> None:
    """Returns when a connection attempt has succeeded; cancelling does not end the attempt.

    Raises:
        OSError: it has failed (`ConnectionRefusedError` ...).
    """
    await _once(reactor, sock, is_reading=False)
    error = _error_of(sock)
    if error is not None:
        raise error


def _once(reactor: IReactorFDSet, file: HasDescriptor, *, is_reading: bool) -> Deferred[None]:
    result: Deferred[None] = Deferred(lambda _: watch.stop())

    def ready() -> None:
        watch.stop()
        result.callback(None)

    watch = Watch(reactor, file, ready, is_reading=is_reading)
    return result


def _error_of(sock: socket.socket) -> OSError | None:
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else None
