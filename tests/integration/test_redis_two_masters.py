"""Calls that wait on two masters, an old one that lives on and its successor, are run once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from pelotontx.broker.redis import RedisBroker
from pelotontx.errors import BrokerError
from pelotontx.flow import later
from tests.support.redis_farm import SentinelTrio, shared
from tests.support.redis_node import Node, together, until
from tests.support.servers import eventually

CALLEES = 3
# More than is taken in the time of a failover.
BACKLOG = 3000
URI = "backlog"

Failover: TypeAlias = Callable[[SentinelTrio, Node], Awaitable[None]]


class Taker:
    """A callee's process worth: takes some of the backlog all the time, and notes the calls.

    Attributes:
        taken: how often each call was, by anybody.
        recent: how many it has got since somebody began to count.
        is_stopping: it is to end.
    """

    def __init__(self, url: str, taken: Counter[str]) -> None:
        self.taken = taken
        self.is_stopping = False
        self.recent = 0
        self._broker = RedisBroker(reactor, url, reply_timeout_s=2.0)
        self._source = self._broker.callee()

    async def take(self) -> None:
        """Until it is to end; slowly, so that there is a backlog all the time."""
        self._broker.start()
        while not self.is_stopping:
            try:
                calls = await self._source.take_calls((URI,), 1)
            except BrokerError:
                calls = []
            self.taken.update(call.msg_uuid for call in calls)
            self.recent += len(calls)
            await later(reactor, 0.02)
        await self._source.stop()
        await self._broker.stop()


async def fill(url: str) -> None:
    """Calls that nobody has taken yet."""
    broker = RedisBroker(reactor, url, call_cap=lambda uri: 0)
    broker.start()
    broker.caller.start()
    await eventually(reactor, lambda: broker.available)
    stored: list[Any] = []
    for number in range(BACKLOG):
        broker.caller.store_call(URI, f"call-{number}", b"1", 120_000, stored.append)
    await eventually(reactor, lambda: len(stored) == BACKLOG)
    assert not any(stored)
    await broker.caller.stop()
    await broker.stop()


@asynccontextmanager
async def taking(trio: SentinelTrio) -> AsyncIterator[list[Taker]]:
    """Takers at work; behind the block they have gone on in the end, and taken no call twice."""
    url = f"redis+sentinel://{trio.sentinels[0].address}/{trio.name}"  # the others are learned
    await fill(url)
    taken: Counter[str] = Counter()
    takers = [Taker(url, taken) for _ in range(CALLEES)]
    running = [Deferred.fromCoroutine(taker.take()) for taker in takers]
    try:
        await all_take(takers)
        yield takers
        await until(reactor, trio.is_whole, timeout_s=60)
        await all_take(takers)
    finally:
        for taker in takers:
            taker.is_stopping = True
        await gatherResults(running)
    twice = [id_ for id_, times in taken.items() if times > 1]
    assert not twice, f"{len(twice)} of {len(taken)} calls were run twice"


async def all_take(takers: list[Taker]) -> None:
    """Until each has got calls from now on."""
    for taker in takers:
        taker.recent = 0
    await eventually(reactor, lambda: all(taker.recent for taker in takers), timeout_s=30)


async def on_request(trio: SentinelTrio, master: Node) -> None:
    """By a Sentinel that clients were not told of: it knows of the new master first."""
    await trio.failover(trio.sentinels[1])


async def while_frozen(trio: SentinelTrio, master: Node) -> None:
    """The old master awakes as soon as there is a new one."""
    master.freeze()
    others = [node for node in trio.nodes if node is not master]

    async def one_is_master() -> bool:
        views = await together(node.text("INFO", "replication") for node in others)
        return any("role:master" in view for view in views)

    await until(reactor, one_is_master)
    master.thaw()


@pytest.mark.parametrize("failover", [on_request, while_frozen])
@pytest_twisted.ensureDeferred
async def test_no_call_is_taken_from_both_masters(failover: Failover) -> None:
    trio = await shared(reactor, SentinelTrio)
    async with taking(trio):
        await failover(trio, await trio.master())
