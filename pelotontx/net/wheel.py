"""Coarse timers for many short-lived waits: deadlines of calls, requests, handshakes and pings.

One `callLater` of the reactor serves any number of timers, and a timer that is cancelled (nearly
all are) costs two operations on a dict. Timers fire up to one tick late, never early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Timer:
    """One pending call of a `Wheel`; `cancel` may be called at any time, any number of times."""

    __slots__ = ("_bucket", "arguments", "function")

    def __init__(
        self,
        bucket: dict[Timer, None],
        function: Callable[..., object],
        arguments: tuple[Any, ...],
    ) -> None:
        self._bucket = bucket
        self.function = function
        self.arguments = arguments

    @property
    def is_pending(self) -> bool:
        """Whether it was neither called nor cancelled."""
        return self in self._bucket

    def cancel(self) -> None:
        # Taken out, not only marked: a minute's worth of ended calls would be most of the memory.
        self._bucket.pop(self, None)


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
        self._buckets: dict[int, dict[Timer, None]] = {}
        self._wakeup: IDelayedCall | None = None
        self._wakeup_tick = 0

    def call_later(self, delay_s: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Calls `function(*arguments)` between `delay_s` and `delay_s` plus one tick from now."""
        tick = int((self._clock.seconds() + delay_s) / self._tick_s) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            if self._wakeup is None or tick < self._wakeup_tick:
                self._schedule(tick)
        timer = Timer(bucket, function, arguments)
        bucket[timer] = None
        return timer

    def __len__(self) -> int:
        """How many timers are pending."""
        return sum(map(len, self._buckets.values()))

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
            for timer in tuple(self._buckets.pop(tick, ())):
                if timer.is_pending:  # another of this tick may have cancelled it
                    self._fire(timer)
        if self._buckets:
            # One that fired may have begun a later one, and with it a wakeup too late for others.
            first = min(self._buckets)
            if self._wakeup is None or first < self._wakeup_tick:
                self._schedule(first)

    def _fire(self, timer: Timer) -> None:
        timer.cancel()
        try:
            timer.function(*timer.arguments)
        except Exception:  # one timer's fault must not stop the others
            self._log.failure("A timer's function failed")
