"""Waiting: for a while, no longer than, for a callback; and coroutines that belong to a service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from inspect import iscoroutine
from typing import Any, ParamSpec, TypeVar, overload

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import LocalProtocolError, TimedOut

T = TypeVar("T")
P = ParamSpec("P")


def started(awaitable: Awaitable[T]) -> Deferred[T]:
    """Anything that can be awaited, as a Deferred; a coroutine runs until it first waits."""
    if isinstance(awaitable, Deferred):
        return awaitable
    if iscoroutine(awaitable):
        return Deferred.fromCoroutine(awaitable)

    async def wait() -> T:
        return await awaitable

    return Deferred.fromCoroutine(wait())


@overload
def later(clock: IReactorTime, delay_s: float) -> Deferred[None]: ...


@overload
def later(
    clock: IReactorTime,
    delay_s: float,
    function: Callable[P, Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Deferred[T]: ...


@overload
def later(
    clock: IReactorTime,
    delay_s: float,
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Deferred[T]: ...


def later(
    clock: IReactorTime,
    delay_s: float,
    function: Callable[..., Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Deferred[Any]:
    """Fires after `delay_s` seconds, with the result of ``function(*args)`` if one is given.

    ``later(reactor, 1.0, print, "hi")`` prints "hi" after one second. The function may be a
    coroutine function; what it raises is the Deferred's failure. Cancelling is safe, before the
    call and within it.
    """
    result: Deferred[Any] = Deferred(lambda _: call.cancel())
    call = clock.callLater(delay_s, result.callback, None)
    if function is not None:
        result.addCallback(lambda _: maybeDeferred(function, *args, **kwargs))
    return result


def timeout(clock: IReactorTime, timeout_s: float, awaitable: Awaitable[T]) -> Deferred[T]:
    """Waits for `awaitable`, and cancels it when that has taken `timeout_s` seconds.

    It fires when what it cancelled has ended: a coroutine may still clean up, and even return a
    result, which then counts. A Deferred that is given is the one that is returned. Cancelling
    is as safe as cancelling `awaitable`.

    Raises:
        TimedOut: it was cancelled and then failed, in whatever way: that is the cause.
    """
    return started(awaitable).addTimeout(timeout_s, clock, _timed_out)


def _timed_out(outcome: Any, timeout_s: float) -> Any:
    if isinstance(outcome, Failure):  # libraries wrap the cancellation in errors of their own
        raise TimedOut(timeout_s) from outcome.value
    return outcome


def from_callback(function: Callable[..., object], *args: Any, **kwargs: Any) -> Deferred[Any]:
    """Calls ``function(*args, callback, **kwargs)`` and fires when it calls `callback`.

    Fires with what `callback` was given: None, one value, or a tuple of several. It fires once:
    further calls are ignored, and so are those that come after it was cancelled. What `function`
    raises is its failure, unless it has called back before.
    """
    result: Deferred[Any] = Deferred(lambda _: None)

    def callback(*values: Any) -> None:
        if not result.called:
            result.callback(values if len(values) > 1 else values[0] if values else None)

    try:
        function(*args, callback, **kwargs)
    except Exception as error:  # foreign code
        if result.called:
            raise
        result.errback(Failure(error))
    return result


# The marks of the tasks that the code which runs is a part of.
_within: ContextVar[frozenset[object]] = ContextVar("_within", default=frozenset())


class Tasks:
    """The coroutines that a service has running.

    A failure is logged, and each is cancelled when the service stops.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._running: dict[Deferred[Any], object] = {}  # and its mark
        self._stops: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> None:
        """Runs `coroutine` until it ends or `stop` cancels it: where it first waits if that is on.

        After a stop there may be tasks again.
        """
        mark = object()
        outside = _within.set(_within.get() | {mark})
        try:
            task: Deferred[Any] = Deferred.fromCoroutine(coroutine)  # takes a copy of the context
        finally:
            _within.reset(outside)
        if not task.called:
            self._running[task] = mark
        task.addBoth(self._ended, task)
        if self._stops:
            task.cancel()

    def _ended(self, outcome: Any, task: Deferred[Any]) -> None:
        self._running.pop(task, None)
        if isinstance(outcome, Failure) and outcome.check(CancelledError) is None:
            self._log.failure("A task failed", outcome)
        if not self._running:
            stops, self._stops = self._stops, []
            for stopped in stops:
                stopped.callback(None)

    def stop(self) -> Deferred[None]:
        """Cancels all; fires when they have ended, and those that they spawned meanwhile.

        Raises:
            LocalProtocolError: one of these tasks asks for it, or a coroutine that it has
                started: it would wait for itself.
        """
        if not self._running:
            return succeed(None)
        if not _within.get().isdisjoint(self._running.values()):
            raise LocalProtocolError("a task cannot stop the tasks it belongs to")
        stopped: Deferred[None] = Deferred()
        self._stops.append(stopped)
        if len(self._stops) == 1:  # else that was done; what cleans up is not to be cut short
            for task in tuple(self._running):
                task.cancel()
        return stopped
