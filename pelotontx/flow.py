"""Small things over Deferred: wait a while, and coroutines that belong to a service."""

from __future__ import annotations

import gc
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure


def spare_collector() -> None:
    """Keeps the garbage collector off what a process consists of once it is set up.

    Without, each full collection walks every module and service, and whoever calls then waits.
    For entry points, once.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def later(clock: IReactorTime, delay_s: float) -> Deferred[None]:
    """Fires after `delay_s` seconds; cancelling is safe."""
    result: Deferred[None] = Deferred(lambda _: call.cancel())
    call = clock.callLater(delay_s, result.callback, None)
    return result


class Tasks:
    """The coroutines that a service has running.

    A failure is logged, and each is cancelled when the service stops.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._running: dict[Deferred[Any], None] = {}

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> None:
        """Runs `coroutine` until it ends or `stop` cancels it."""
        task: Deferred[Any] = Deferred.fromCoroutine(coroutine)
        if not task.called:
            self._running[task] = None
        task.addBoth(self._ended, task)

    def _ended(self, outcome: Any, task: Deferred[Any]) -> None:
        self._running.pop(task, None)
        if isinstance(outcome, Failure) and outcome.check(CancelledError) is None:
            self._log.failure("A task failed", outcome)

    def stop(self) -> Deferred[Any]:
        """Cancels all; fires when they have ended."""
        running = tuple(self._running)
        ended = [Deferred[None]() for _ in running]
        for task, end in zip(running, ended, strict=True):
            task.addBoth(end.callback)
            task.cancel()
        return DeferredList(ended)
