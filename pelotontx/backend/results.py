"""Results on their way to the broker; for `pelotontx.backend.callee`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import random
from typing import Final, TypeAlias

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import Callee as BrokerCallee
from pelotontx.broker.interface import IncomingCall
from pelotontx.errors import BrokerError, BrokerUnavailable, CallExpired

# The first further attempt comes after about this time, the next ones after twice as long each: a
# broker that is just being connected has the result within milliseconds.
_BACKOFF_S: Final = 0.02
_BACKOFF_LIMIT_S: Final = 1.0
# Between two lines about lost results: a full list loses thousands.
_WARN_EVERY_S: Final = 5.0

_Result: TypeAlias = tuple[BrokerCallee, IncomingCall, bytes]


class Results:
    """Stores results, and stores them again while the broker is away and their callers wait.

    A result that is stored twice does no harm: callers see one. Not bounded by itself: no calls are
    taken while too many results are `unstored`.

    Args:
        clock: keeps time.
        changed: called when a result is stored or lost, so that `unstored` has become less.

    Attributes:
        unstored: results that are on their way.
        lost: how many could not be stored while somebody waited for them.
        expired: how many nobody waited for any more.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, changed: Callable[[], object]) -> None:
        self._clock = clock
        self._changed = changed
        self._again: deque[_Result] = deque()
        self._again_call: IDelayedCall | None = None
        self._attempts = 0
        self._has_given_up = False
        self._warned_s = -_WARN_EVERY_S
        self.unstored = 0
        self.lost = 0
        self.expired = 0

    def store(self, source: BrokerCallee, call: IncomingCall, encoded: bytes) -> None:
        """Stores the result of a call that was taken from `source`."""
        self.unstored += 1
        source.store_result(call, encoded, partial(self._stored, source, call, encoded))

    def give_up(self) -> None:
        """Loses what is not stored yet, and tries nothing again from now on."""
        self._has_given_up = True
        if self._again_call is not None:
            self._again_call.cancel()
            self._again_call = None
        while self._again:
            self._lose(self._again.popleft()[1], BrokerUnavailable("stopped before it came back"))

    def _stored(
        self,
        source: BrokerCallee,
        call: IncomingCall,
        encoded: bytes,
        error: BrokerError | CallExpired | None,
    ) -> None:
        if error is None:
            self._attempts = 0
            if self._again_call is not None:  # the broker is back
                self._again_call.reset(0)
            self._end()
        elif isinstance(error, CallExpired):
            self.expired += 1
            self._end()
        elif isinstance(error, BrokerUnavailable) and not self._has_given_up:
            self._again.append((source, call, encoded))
            if self._again_call is None:
                self._schedule()
        else:
            self._lose(call, error)

    def _schedule(self) -> None:
        # One timer for all; jitter keeps a fleet from coming back in step.
        delay_s = min(_BACKOFF_S * 2**self._attempts, _BACKOFF_LIMIT_S) * (0.5 + random())
        self._attempts = min(self._attempts + 1, 16)
        self._again_call = self._clock.callLater(delay_s, self._store_again)

    def _store_again(self) -> None:
        self._again_call = None
        again, self._again = self._again, deque()
        for source, call, encoded in again:
            if call.expires_at_s <= self._clock.seconds():
                self._lose(call, BrokerUnavailable("the broker was away until nobody waited"))
            else:
                source.store_result(call, encoded, partial(self._stored, source, call, encoded))

    def _lose(self, call: IncomingCall, error: BrokerError) -> None:
        self.lost += 1
        if self._clock.seconds() >= self._warned_s + _WARN_EVERY_S:
            self._warned_s = self._clock.seconds()
            self._log.warn(
                "{uri}: a result is lost ({count} so far): {error}",
                uri=call.uri,
                count=self.lost,
                error=error,
            )
        self._end()

    def _end(self) -> None:
        self.unstored -= 1
        self._changed()
