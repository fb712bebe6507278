"""Taking calls from the broker while there is room for them; for `pelotontx.backend.callee`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import random
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pelotontx.broker.interface import Callee as BrokerCallee
from pelotontx.broker.interface import IncomingCall
from pelotontx.errors import BrokerUnavailable
from pelotontx.flow import Tasks, later

# Attempts to take calls that may fail before it is worth a line: connecting takes a moment.
_SILENT_ATTEMPTS: Final = 4


class Taker:
    """A loop that takes calls of some URIs and runs them, on a callee side of its own.

    Args:
        source: the broker's callee side.
        uris: at least one.
        clock: keeps time.
        room: how many calls may be taken now.
        run: is given each call; never raises.
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
    ) -> None:
        self._source = source
        self._uris = tuple(uris)
        self._clock = clock
        self._room = room
        self._run = run
        self._loop = Tasks()
        self._waiting_for_room: Deferred[None] | None = None

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
        return self._loop.stop()

    def stop(self) -> Deferred[None]:
        """Lets go of the broker."""
        return self._source.stop()

    async def _take(self) -> None:
        attempt = 0
        while True:
            limit = self._room()
            if limit <= 0:
                self._waiting_for_room = Deferred()
                await self._waiting_for_room
                continue
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
