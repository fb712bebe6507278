"""`together`: several things in parallel, as one."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from types import SimpleNamespace
from typing import Any, overload

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.flow.deferreds import started


@overload
def together(*values: Any) -> Deferred[tuple[Any, ...]]: ...


@overload
def together(**values: Any) -> Deferred[SimpleNamespace]: ...


def together(*values: Any, **named: Any) -> Deferred[Any]:
    """Waits for all of `values`, which run in parallel: Deferreds, coroutines and plain values.

    Fires with their results as a tuple, or, when they were named, as a namespace:

        a, b = await together(load_a(), load_b())
        bound = await together(user=load_user(), limit=10)   # bound.user, bound.limit

    The first failure cancels the rest and is raised as itself; a further one is logged.
    Cancelling cancels all. In every case nothing of it runs any more when it fires.

    Raises:
        TypeError: some values are named and others not.
    """
    if values and named:
        raise TypeError("together() takes values or named values, not both")
    return Deferred.fromCoroutine(_gather(values, named))


async def _gather(values: Sequence[Any], named: dict[str, Any]) -> Any:
    if named:
        results = await _Bindings(tuple(named.values())).all()
        return SimpleNamespace(**dict(zip(named, results, strict=True)))
    return tuple(await _Bindings(values).all())


class _Bindings:
    """What runs, and what has come of it."""

    _log = Logger()

    def __init__(self, values: Sequence[Any]) -> None:
        self._results = list(values)
        self._running: dict[int, Deferred[Any]] = {}
        self._failure: Failure | None = None
        self._all_ended: Deferred[None] | None = None

    async def all(self) -> list[Any]:
        """The results in order, when all have ended."""
        tasks = {
            index: started(value)
            for index, value in enumerate(self._results)
            if isinstance(value, Awaitable)
        }
        self._running.update(tasks)
        for index, task in tasks.items():
            task.addBoth(self._ended, index)
        while self._running:
            self._all_ended = Deferred(lambda _: None)
            try:
                await self._all_ended
            except CancelledError:  # of us: they may take a while to end
                self._fail(Failure())
        if self._failure is not None:
            self._failure.raiseException()
        return self._results

    def _ended(self, outcome: Any, index: int) -> Any:
        del self._running[index]
        if isinstance(outcome, Failure):
            if self._failure is None:
                self._fail(outcome)
            elif outcome.check(CancelledError) is None:
                self._log.failure("Another one failed too", outcome)
            outcome = None  # it has been dealt with
        else:
            self._results[index] = outcome
        if not self._running and self._all_ended is not None and not self._all_ended.called:
            self._all_ended.callback(None)
        return outcome  # somebody else may wait for the same Deferred

    def _fail(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        for task in tuple(self._running.values()):
            task.cancel()
