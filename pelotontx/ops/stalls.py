"""How long the reactor was busy elsewhere: the lateness of a short timer, over and over."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pelotontx.ops.metrics import Histogram

# Whatever stands still for longer is felt by clients; so long a stall is told from a busy turn.
INTERVAL_S: Final = 0.05
_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class StallMonitor:
    """Measures how late a timer of `INTERVAL_S` is, from `start` to `stop`.

    A stall of D seconds shows as one observation between D less the interval and D.

    Args:
        clock: the reactor that is watched.

    Attributes:
        lateness: of each timer, seconds.
        longest_s: the latest of them.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.lateness = Histogram(_BOUNDS_S)
        self.longest_s = 0.0
        self._clock = clock
        self._due_s = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Begins to watch."""
        self._due_s = self._clock.seconds() + INTERVAL_S
        self._timer = self._clock.callLater(INTERVAL_S, self._ring)

    def stop(self) -> None:
        """Leaves nothing in the reactor."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        late_s = max(0.0, self._clock.seconds() - self._due_s)  # a clock may be set back
        self.lateness.observe(late_s)
        self.longest_s = max(self.longest_s, late_s)
        self.start()
