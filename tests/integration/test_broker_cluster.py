"""A broker whose lists lie on several masters."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pelotontx.backend.callee import Callee
from pelotontx.flow import later
from pelotontx.wire.juggler import calls_key, results_key
from pelotontx.wire.slots import key_slot
from tests.support.broker_case import echo, run_echo, take
from tests.support.brokers import Node, Peer, World
from tests.support.kinds import KINDS
from tests.support.redis_farm import Node as RedisNode
from tests.support.redis_farm import RedisCluster
from tests.support.redis_fronts import ClusterServer, settled
from tests.support.servers import eventually


class TestCluster:
    """What only a cluster can do to us."""

    @pytest_twisted.async_yield_fixture
    async def world(self) -> AsyncIterator[World]:
        if "cluster" not in KINDS:
            pytest.skip("on our own reactor only")
        world = World(reactor, "cluster")
        await world.start()
        yield world
        await world.stop()

    @staticmethod
    async def uris_of_masters(cluster: RedisCluster) -> dict[str, RedisNode]:
        """A URI whose calls wait on each master."""
        found: dict[RedisNode, str] = {}
        n = 0
        while len(found) < 3:
            uri = f"uri.{n}"
            found.setdefault(await cluster.owner(key_slot(calls_key(uri))), uri)
            n += 1
        return {uri: node for node, uri in found.items()}

    @pytest_twisted.ensureDeferred
    async def test_calls_and_results_go_over_all_masters(self, world: World) -> None:
        assert isinstance(world.server, ClusterServer)
        cluster, callee = world.server.cluster, Callee()
        uris = await self.uris_of_masters(cluster)
        for uri in uris:
            callee.function(uri)(run_echo)
        node, peer = await world.node(), Peer()
        lists = [results_key(conn_uuid) for conn_uuid in node.broker.caller.conn_uuids]
        owners = {await cluster.owner(key_slot(key)) for key in lists}
        assert owners == set(await cluster.masters())
        await world.callee(callee)
        for n in range(15):
            for uri in uris:
                node.call(peer, (uri, n), uri, b"%d" % n)
        await eventually(reactor, lambda: len(peer.told) == 90)
        assert dict(peer.of("answered")) == {(uri, n): b"%d" % n for uri in uris for n in range(15)}
        for master in await cluster.masters():  # a result that was pushed has been popped there
            stats = await master.command("INFO", "commandstats")
            assert b"cmdstat_blmpop:" in stats

    @pytest_twisted.ensureDeferred
    async def test_a_slot_that_moves_while_callees_wait_is_served_on(self, world: World) -> None:
        assert isinstance(world.server, ClusterServer)
        cluster = world.server.cluster
        node, peer = await world.node(), Peer()
        await world.callee(echo)
        result_slots = [key_slot(results_key(each)) for each in node.broker.caller.conn_uuids]
        asked = 0

        async def call() -> None:
            nonlocal asked
            asked += 1
            n = asked
            node.call(peer, n, "echo", b"%d" % n, timeout_s=20)
            await eventually(reactor, lambda: ("answered", n, b"%d" % n) in peer.told)

        await call()
        for slot in (key_slot(calls_key("echo")), *result_slots):
            source = await cluster.owner(slot)
            target = await cluster.another_master(source)
            for there in (target, source):
                await cluster.migrate_slot(slot, there)
                await call()
                await settled(reactor, cluster)

    @pytest_twisted.ensureDeferred
    async def test_calls_that_wait_move_along_with_their_slot(self, world: World) -> None:
        assert isinstance(world.server, ClusterServer)
        cluster, slot = world.server.cluster, key_slot(calls_key("u"))
        node, peer = await world.node(), Peer()
        for n in range(15):
            node.call(peer, n, "u", b"%d" % n, timeout_s=20)
        await eventually(reactor, lambda: len(peer.of("stored")) == 15)
        await cluster.migrate_slot(slot, await cluster.another_master(await cluster.owner(slot)))
        source = await world.source()
        assert [int(call.args) for call in await take(source, 15)] == list(range(15))

    @pytest_twisted.ensureDeferred
    async def test_calls_meet_a_definite_end_while_their_slot_moves_back_and_forth(
        self, world: World
    ) -> None:
        assert isinstance(world.server, ClusterServer)
        cluster, slot = world.server.cluster, key_slot(calls_key("echo"))
        node, peer = await world.node(), Peer()
        await world.callee(echo)
        source = await cluster.owner(slot)
        target = await cluster.another_master(source)
        count = 0

        async def move(there: RedisNode) -> None:
            await cluster.migrate_slot(slot, there)
            await settled(reactor, cluster)

        for there in (target, source) * 2:
            moving: Deferred[None] = Deferred.fromCoroutine(move(there))
            while not moving.called:
                for _ in range(4):
                    node.call(peer, count, "echo", b"%d" % count, timeout_s=3)
                    count += 1
                await later(reactor, 0.005)
            await moving
        await eventually(reactor, lambda: node.hub.pending_calls == 0)
        answered = [request for request, _ in peer.of("answered")]
        ended = answered + peer.of("expired") + [request for request, _ in peer.of("refused")]
        assert sorted(ended) == list(range(count))
        assert set(answered) | set(peer.of("expired")) == set(peer.of("stored"))
        await served_again(node, "echo")

    @pytest_twisted.ensureDeferred
    async def test_a_killed_master_stops_only_its_own_calls_until_it_is_replaced(
        self, world: World
    ) -> None:
        assert isinstance(world.server, ClusterServer)
        cluster, callee = world.server.cluster, Callee()
        uris = await self.uris_of_masters(cluster)
        for uri in uris:
            callee.function(uri)(run_echo)
        node, peer = await world.node(), Peer()
        await world.callee(callee)
        lists = {
            await cluster.owner(key_slot(results_key(each)))
            for each in node.broker.caller.conn_uuids
        }
        assert len(lists) == 3
        dead, *others = uris
        await uris[dead].kill()
        await eventually(reactor, lambda: not node.broker.available)
        node.call(peer, dead, dead)
        await eventually(reactor, lambda: peer.of("refused"))
        for uri in others:
            node.call(peer, uri, uri, b"1")
        await eventually(reactor, lambda: len(peer.of("answered")) == 2)
        await served_again(node, dead)
        await world.healed(node)


async def served_again(node: Node, uri: str) -> None:
    """Until a call to the URI is answered."""
    probe = Peer()
    deadline_s = reactor.seconds() + 30  # type: ignore[attr-defined]
    while not probe.of("answered"):
        assert reactor.seconds() < deadline_s  # type: ignore[attr-defined]
        node.call(probe, None, uri, b"0", timeout_s=0.5)
        await eventually(reactor, lambda: node.hub.pending_calls == 0)
        await later(reactor, 0.02)
