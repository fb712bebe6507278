"""Brokers and what can happen to them, for `tests.chaos.rig`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tests.chaos.functions import URIS
from tests.support.proxy import Proxy
from tests.support.redis_farm import RedisCluster, SentinelTrio, shared
from tests.support.redis_node import until
from tests.support.servers import RedisServer, redis_binary

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

Fault = Callable[["Rig"], Awaitable[None]]


class Ground(Protocol):
    """A broker.

    Attributes:
        server_url: where the server finds it.
        callee_url: where callees do.
        faults: what can happen to it; each ends when its cause has gone.
        short_faults: some of them: together all grounds' have each kind of fault once.
    """

    server_url: str
    callee_url: str

    @property
    def faults(self) -> Sequence[Fault]: ...

    @property
    def short_faults(self) -> Sequence[Fault]: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class RedisGround:
    """One Redis, behind a proxy for the server and another for callees."""

    def __init__(self, reactor: Any) -> None:
        self._redis = RedisServer(reactor, redis_binary())
        self._to_server = Proxy(reactor, self._redis.port)
        self._to_callees = Proxy(reactor, self._redis.port)
        self.server_url = ""
        self.callee_url = ""

    async def start(self) -> None:
        await self._redis.start()
        for proxy in (self._to_server, self._to_callees):
            await proxy.start()
        self.server_url = f"redis://127.0.0.1:{self._to_server.port}"
        self.callee_url = f"redis://127.0.0.1:{self._to_callees.port}"

    async def stop(self) -> None:
        for proxy in (self._to_server, self._to_callees):
            await proxy.stop()
        await self._redis.stop()

    @property
    def faults(self) -> Sequence[Fault]:
        return (
            self._kill,
            self._pause_long,
            self._pause_short,
            self._cut_requests,
            self._cut_replies,
            self._cut_callees,
            self._slow,
            self._hang_up,
        )

    short_faults = faults

    async def _kill(self, rig: Rig) -> None:
        """kill -9; a new one, empty, after a while."""
        await self._redis.kill()
        await rig.until_ill()
        await rig.pause(rig.random.uniform(0.0, 1.0))
        await self._redis.start()

    async def _pause_long(self, rig: Rig) -> None:
        """Nobody answers, and then all of it does at once."""
        self._redis.freeze()
        await rig.until_ill()
        self._redis.thaw()

    async def _pause_short(self, rig: Rig) -> None:
        self._redis.freeze()
        await rig.pause(rig.random.uniform(0.1, 0.8))
        self._redis.thaw()

    async def _cut_requests(self, rig: Rig) -> None:
        """Redis hears the server no more, and may hear the rest later."""
        self._to_server.cut(requests=True)
        await rig.until_ill()
        self._to_server.restore()

    async def _cut_replies(self, rig: Rig) -> None:
        """Redis does what the server asks, and the server does not hear of it."""
        self._to_server.cut(replies=True)
        await rig.until_ill()
        self._to_server.restore()

    async def _cut_callees(self, rig: Rig) -> None:
        """One way or the other, for less or more than the time of a reply."""
        replies = rig.random.random() < 0.5
        self._to_callees.cut(requests=not replies, replies=replies)
        await rig.pause(rig.random.uniform(0.3, 3.0))
        self._to_callees.restore()

    async def _slow(self, rig: Rig) -> None:
        for proxy in (self._to_server, self._to_callees):
            proxy.delay_s = rig.random.uniform(0.01, 0.2)
        await rig.pause(1.0)
        for proxy in (self._to_server, self._to_callees):
            proxy.restore()

    async def _hang_up(self, rig: Rig) -> None:
        """All connections are reset."""
        for proxy in (self._to_server, self._to_callees):
            proxy.hang_up()
        await rig.pause(0.3)  # what was under way is lost, and a probe need not be among it


class SentinelGround:
    """A trio with its Sentinels; processes die, and masters are replaced that live on.

    The old and the new one then both hold the calls that were waiting, until a Sentinel demotes
    the old one.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._trio: SentinelTrio | None = None
        self.server_url = ""
        self.callee_url = ""

    async def start(self) -> None:
        self._trio = await shared(self._reactor, SentinelTrio)
        self.server_url = self.callee_url = self._trio.url

    async def stop(self) -> None:
        """The next user finds it whole."""

    @property
    def trio(self) -> SentinelTrio:
        assert self._trio is not None
        return self._trio

    @property
    def faults(self) -> Sequence[Fault]:
        return (self._kill_master, *self.short_faults)

    @property
    def short_faults(self) -> Sequence[Fault]:
        return (self._kill_replica, self._kill_sentinel, self._failover, self._freeze_master)

    async def _kill_master(self, rig: Rig) -> None:
        """kill -9; it comes back empty when another has taken over."""
        master = await self.trio.master()
        await master.kill()
        await self.trio.wait_for_new_master(master)
        await rig.healed()
        await master.start()
        await until(self._reactor, self.trio.is_whole, timeout_s=60)

    async def _kill_replica(self, rig: Rig) -> None:
        replica = rig.random.choice(await self.trio.replicas())
        await replica.restart()
        await until(self._reactor, self.trio.is_whole, timeout_s=60)

    async def _kill_sentinel(self, rig: Rig) -> None:
        sentinel = rig.random.choice(self.trio.sentinels)
        await sentinel.kill()
        await rig.healed()
        await self.trio.start_sentinel(sentinel)
        await until(self._reactor, self.trio.is_whole, timeout_s=60)

    async def _failover(self, rig: Rig) -> None:
        """A change of master that was asked for."""
        await self.trio.failover()
        await until(self._reactor, self.trio.is_whole, timeout_s=60)

    async def _freeze_master(self, rig: Rig) -> None:
        """It is replaced, and comes back believing that it still is the master."""
        master = await self.trio.master()
        master.freeze()
        await self.trio.wait_for_new_master(master)
        await rig.pause(rig.random.uniform(0.0, 1.0))
        master.thaw()
        await until(self._reactor, self.trio.is_whole, timeout_s=60)


class ClusterGround:
    """A cluster of three masters with a replica each."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._cluster: RedisCluster | None = None
        self.server_url = ""
        self.callee_url = ""

    async def start(self) -> None:
        self._cluster = await shared(self._reactor, RedisCluster)
        self.server_url = self.callee_url = self._cluster.url

    async def stop(self) -> None:
        """The next user finds it whole."""

    @property
    def cluster(self) -> RedisCluster:
        assert self._cluster is not None
        return self._cluster

    @property
    def faults(self) -> Sequence[Fault]:
        return (self._failover, self._freeze_master, *self.short_faults)

    @property
    def short_faults(self) -> Sequence[Fault]:
        return (self._migrate_calls, self._migrate_slowly, self._kill_master)

    async def _migrate_calls(self, rig: Rig) -> None:
        """The slots of all URIs move, one after the other, while calls wait and are waited for."""
        for uri in URIS:
            slot = await self.cluster.slot_of(f"juggler:calls:{{{uri}}}")
            owner = await self.cluster.owner(slot)
            others = [master for master in await self.cluster.masters() if master is not owner]
            await self.cluster.migrate_slot(slot, rig.random.choice(others))

    async def _migrate_slowly(self, rig: Rig) -> None:
        """A slot is between two masters for a while: ASK and TRYAGAIN."""
        slot = await self.cluster.slot_of(f"juggler:calls:{{{rig.random.choice(URIS)}}}")
        target = await self.cluster.another_master(await self.cluster.owner(slot))
        await self.cluster.begin_migration(slot, target)
        for _ in range(20):
            await self.cluster.migrate_keys(slot, target, 3)
            await rig.pause(0.05)
        while await self.cluster.migrate_keys(slot, target, 100):
            pass
        await self.cluster.end_migration(slot, target)

    async def _failover(self, rig: Rig) -> None:
        """A replica takes over in order."""
        await self.cluster.failover(rig.random.choice(await self.cluster.masters()))
        await until(self._reactor, self.cluster.is_whole, timeout_s=60)

    async def _kill_master(self, rig: Rig) -> None:
        """kill -9; it comes back as a replica when another has taken over."""
        master = rig.random.choice(await self.cluster.masters())
        await master.kill()
        await self.cluster.wait_for_failover(master)
        await rig.healed()
        await master.start()
        await until(self._reactor, self.cluster.is_whole, timeout_s=60)

    async def _freeze_master(self, rig: Rig) -> None:
        """It is replaced, and comes back believing that it still is the master."""
        master = rig.random.choice(await self.cluster.masters())
        master.freeze()
        await self.cluster.wait_for_failover(master)
        await rig.pause(rig.random.uniform(0.0, 1.0))
        master.thaw()
        await until(self._reactor, self.cluster.is_whole, timeout_s=60)
