"""Coroutines that mostly need not wait: they are begun at once, and without a Deferred.

`Deferred.fromCoroutine` costs microseconds, and a handler that is a coroutine function often
returns without having waited for anything. For `web.app` and `web.hooks`.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred

_T = TypeVar("_T")


def begin(coroutine: Coroutine[Deferred[Any], Any, _T]) -> _T | Deferred[_T]:
    """Runs a coroutine until it waits: its value, or a Deferred of it; raises what it raises.

    It has a context (`contextvars`) of its own, as with `Deferred.fromCoroutine`.
    """
    context = copy_context()
    try:
        waiting = context.run(coroutine.send, None)
    except StopIteration as end:
        return cast(_T, end.value)
    later: Deferred[_T] = Deferred.fromCoroutine(_rest(_Begun(coroutine, context, waiting)))
    return later


async def _rest(begun: _Begun[_T]) -> _T:
    value: _T = await begun
    return value


class _Begun(Generator[Deferred[Any], Any, _T]):
    """The rest of a coroutine, from the first Deferred on, in the context in which it began."""

    def __init__(
        self,
        coroutine: Coroutine[Deferred[Any], Any, _T],
        context: Context,
        waiting: Deferred[Any],
    ) -> None:
        self._coroutine = coroutine
        self._context = context
        self._waiting: Deferred[Any] | None = waiting

    def __await__(self) -> _Begun[_T]:
        return self

    def send(self, value: Any) -> Deferred[Any]:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            return waiting
        return self._context.run(self._coroutine.send, value)

    def throw(self, *error: Any) -> Deferred[Any]:
        return self._context.run(self._coroutine.throw, *error)
