"""Which node of a Redis Cluster holds which slot, kept up to date."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.process import Moment
from pelotontx.net.redis.address import RedisAddress
from pelotontx.net.redis.ask import Questions
from pelotontx.wire.slots import Node, SlotMap

# Some nodes are asked at the same time, so this counts only while no good answer comes.
_ASK_S: Final = 1.0
_ASKED_NODES: Final = 3
_ASKED_SEEDS: Final = 2
# Between two looks, each time anew: at least, while something is amiss, and else. All processes of
# an installation must not ask in step.
_LEAST_S: Final = (0.05, 0.15)
_TROUBLE_S: Final = (0.3, 0.6)
_CALM_S: Final = (20.0, 40.0)


class Topology:
    """Asks for the slot map: at the start, when somebody wants it, and now and then.

    Args:
        reactor: connects and keeps time.
        seeds: nodes to begin with.
        on_change: called when there is a new map.
        is_troubled: whether to look often.

    Attributes:
        slots: the newest map; at first nobody holds any slot.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        seeds: tuple[RedisAddress, ...],
        *,
        on_change: Callable[[], None],
        is_troubled: Callable[[], bool],
    ) -> None:
        self.slots = SlotMap()
        self._reactor = reactor
        self._seeds = seeds
        self._on_change = on_change
        self._is_troubled = is_troubled
        self._questions = Questions(reactor, timeout_s=_ASK_S)
        self._looked: Moment[None] = Moment()
        self._watching: Deferred[None] | None = None
        self._is_stopped = False
        self._is_wanted = False
        self._pause: Deferred[None] | None = None
        self._is_reported = False

    def start(self) -> None:
        """Looks, and goes on looking; never fails."""
        self._watching = Deferred.fromCoroutine(self._watch())
        self._watching.addErrback(self._stopped_watching)

    def _stopped_watching(self, failure: Failure) -> None:
        if not self._is_stopped:
            self._log.failure("The cluster is not watched", failure)

    def stop(self) -> Deferred[Any]:
        """Fires when nothing is left in the reactor."""
        self._is_stopped = True
        if self._watching is not None:
            self._watching.cancel()
        return self._questions.stop()

    def first_look(self) -> Deferred[None]:
        """Fires when the first look has ended, well or not."""
        return self._looked.wait()

    def want(self) -> None:
        """The map may be wrong: looks soon."""
        self._is_wanted = True
        if self._pause is not None:
            self._pause.cancel()

    def moved(self, slot: int, node: Node) -> None:
        """A server has said who holds a slot; that counts at once."""
        if self.slots.masters[slot] != node:
            self.slots = self.slots.moved(slot, node)
        self.want()

    async def _watch(self) -> None:
        while True:
            self._is_wanted = False
            try:
                await self._look()
            except Exception:  # nothing but a stop ends the watch
                if self._is_stopped:
                    raise
                self._log.failure("A slot map could not be used")
            if self._is_stopped:  # a cancelled look may end as one that found nobody
                return
            await deferLater(self._reactor, random.uniform(*_LEAST_S))
            if not self._is_wanted:
                await self._rest()

    async def _rest(self) -> None:
        delay_s = random.uniform(*(_TROUBLE_S if self._is_troubled() else _CALM_S))
        self._pause = deferLater(self._reactor, delay_s)
        try:
            await self._pause
        except Exception:
            if self._is_stopped:
                raise
        finally:
            self._pause = None

    async def _look(self) -> None:
        try:
            slots = await self._questions.first(self._ask(node) for node in self._some_nodes())
        except BrokerUnavailable as error:
            if not self._is_reported:
                self._is_reported = True
                self._log.warn("No slot map, trying on: {error}", error=error)
        else:
            self._is_reported = False
            self.slots = slots
            self._looked.happen(None)
            self._on_change()
        self._looked.happen(None)

    def _some_nodes(self) -> list[RedisAddress]:
        nodes = sorted(self.slots.nodes)
        some = random.sample(nodes, min(_ASKED_NODES, len(nodes)))
        seeds = random.sample(self._seeds, min(_ASKED_SEEDS, len(self._seeds)))
        return list(dict.fromkeys([*(self._seeds[0].at(*node) for node in some), *seeds]))

    async def _ask(self, address: RedisAddress) -> SlotMap:
        info, slots = await self._questions.ask(address, ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
        if b"cluster_state:ok" not in info:  # it may be the one that is cut off from the others
            raise BrokerUnavailable(f"{address}: the cluster is down")
        return SlotMap.parse(slots, address.host)
