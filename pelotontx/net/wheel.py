"""Coarse timers for many short-lived waits: deadlines of calls, requests, handshakes and pings.

One `callLater` of the reactor serves any number of timers, and a timer that is cancelled (nearly
all are) costs an attribute store. Timers fire up to one tick late, never early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Timer:
    """One pending call of a `Wheel`; `cancel` may be called at any time, any number of times."""

    __slots__ = ("arguments", "function")

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.function: Callable[..., object] | None = function
        self.arguments = arguments

    def cancel(self) -> None:
        self.function = None
        self.arguments = ()


class Wheel:
    """Timers in buckets of one tick.

    Args:
        clock: a reactor, or `twisted.internet.task.Clock`.
        tick_s: how coarse the timers are, seconds.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, *, tick_s: float = 0.1) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._buckets: dict[int, list[Timer]] = {}
        self._wakeup: IDelayedCall | None = None
        self._wakeup_tick = 0

    def call_later(self, delay_s: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Calls `function(*arguments)` between `delay_s` and `delay_s` plus one tick from now."""
        timer = Timer(function, arguments)
        tick = int((self._clock.seconds() + delay_s) / self._tick_s) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [timer]
            if self._wakeup is None or tick < self._wakeup_tick:
                self._schedule(tick)
        else:
            bucket.append(timer)
        return timer

    def stop(self) -> None:
        """Forgets every timer and leaves nothing in the reactor."""
        self._buckets.clear()
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None

    def _schedule(self, tick: int) -> None:
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup_tick = tick
        delay_s = max(0.0, tick * self._tick_s - self._clock.seconds())
        self._wakeup = self._clock.callLater(delay_s, self._turn)

    def _turn(self) -> None:
        self._wakeup = None
        now_tick = int(self._clock.seconds() / self._tick_s + 1e-9)
        for tick in sorted(tick for tick in self._buckets if tick <= now_tick):
            for timer in self._buckets.pop(tick, ()):
                if timer.function is not None:
                    self._fire(timer)
        if self._buckets and self._wakeup is None:
            self._schedule(min(self._buckets))

    def _fire(self, timer: Timer) -> None:
        function, arguments = timer.function, timer.arguments
        timer.cancel()
        assert function is not None
        try:
            function(*arguments)
        except Exception:  # one timer's fault must not stop the others
            self._log.failure("A timer's function failed")
