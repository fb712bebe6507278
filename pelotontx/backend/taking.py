"""Taking calls from the broker while there is room for them; for `pelotontx.backend.callee`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import random
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import Callee as BrokerCallee
from pelotontx.broker.interface import IncomingCall
from pelotontx.errors import BrokerUnavailable
from pelotontx.flow import Tasks, later

# Attempts to take calls that may fail before it is worth a line: connecting takes a moment.
_SILENT_ATTEMPTS: Final = 4
# Without room for so long, functions that never end may have taken it all.
_FULL_S: Final = 30.0


class Taker:
    """A loop that takes calls of some URIs and runs them, on a callee side of its own.

    Args:
        source: the broker's callee side.
        uris: at least one.
        clock: keeps time.
        room: how many calls may be taken now.
        run: is given each call; never raises.
        overdue: how many calls run though their time is over; for a warning.
        on_failure: called when something that must not happen has ended it; that is logged.
    """

    _log = Logger()

    def __init__(
        self,
        source: BrokerCallee,
        uris: Sequence[str],
        *,
        clock: IReactorTime,
        room: Callable[[], int],
        run: Callable[[IncomingCall, BrokerCallee], None],
        overdue: Callable[[], int],
        on_failure: Callable[[], object],
    ) -> None:
        self._source = source
        self._uris = tuple(uris)
        self._clock = clock
        self._room = room
        self._run = run
        self._loop = Tasks()
        self._overdue = overdue
        self._on_failure = on_failure
        self._waiting_for_room: Deferred[None] | None = None
        self._full_call: IDelayedCall | None = None
        self._requests = 0
        self._warned_at = -1

    @property
    def is_taking(self) -> bool:
        """Whether it waits for calls, or for room; false when something has ended that."""
        return len(self._loop) > 0

    def start(self) -> None:
        """Connects, and takes calls until `stop_taking`."""
        self._source.start()
        self._loop.spawn(self._take())

    def wake(self) -> None:
        """There may be room again."""
        waiting, self._waiting_for_room = self._waiting_for_room, None
        if waiting is not None:
            # In a turn of its own: where many calls end at a time, there is room for as many.
            self._clock.callLater(0, waiting.callback, None)

    def stop_taking(self) -> Deferred[None]:
        """Takes no more; results can still be stored. No call is lost."""
        if self._full_call is not None:
            self._full_call.cancel()
            self._full_call = None
        return self._loop.stop()

    def stop(self) -> Deferred[None]:
        """Lets go of the broker."""
        return self._source.stop()

    async def _take(self) -> None:
        try:
            await self._take_calls()
        except CancelledError:  # `stop_taking`
            raise
        except Exception:
            self._on_failure()
            raise

    async def _take_calls(self) -> None:
        attempt = 0
        while True:
            limit = self._room()
            if limit <= 0:
                self._waiting_for_room = Deferred()
                if self._full_call is None:
                    self._look_later()
                await self._waiting_for_room
                continue
            self._requests += 1
            try:
                calls = await self._source.take_calls(self._uris, limit)
            except BrokerUnavailable as error:
                # Consumers try for ever; jitter keeps a fleet from coming back in step.
                attempt += 1
                if attempt == _SILENT_ATTEMPTS:
                    self._log.warn("No calls can be taken, trying on: {error}", error=error)
                await later(self._clock, random() * 0.05 * 2 ** min(attempt, 6))
                continue
            if attempt >= _SILENT_ATTEMPTS:
                self._log.info("Calls can be taken again")
            attempt = 0
            for call in calls:
                self._run(call, self._source)

    def _look_later(self) -> None:
        # One timer at a time, not one each time that there is no room: under load that is often.
        self._full_call = self._clock.callLater(_FULL_S, self._look, self._requests)

    def _look(self, requests: int) -> None:
        """Warns, once until calls are taken again, when there was no room since the timer began."""
        self._full_call = None
        if self._waiting_for_room is None:
            return
        if requests != self._requests:
            self._look_later()
        elif requests != self._warned_at:
            self._warned_at = requests
            self._log.warn(
                "No calls were taken for {seconds:g} s: every place is in use, {count} of them by "
                "functions that run on though the time of their call is over",
                seconds=_FULL_S,
                count=self._overdue(),
            )
