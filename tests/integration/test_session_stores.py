"""The contract of session stores: the same claims over every kind of broker."""

from __future__ import annotations

from secrets import token_urlsafe
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from pelotontx.broker.interface import SessionStore
from pelotontx.errors import BrokerUnavailable
from pelotontx.flow import later
from pelotontx.wire.session import session_key
from pelotontx.wire.slots import key_slot
from tests.support.brokers import Node, World
from tests.support.kinds import KINDS
from tests.support.redis_fronts import ClusterServer
from tests.support.servers import eventually

HOUR_MS = 3_600_000
MINUTE_MS = 60_000


async def load(store: SessionStore, session_id: str, life_ms: int = HOUR_MS) -> Any:
    return await store.load(session_id, life_ms=life_ms, slack_ms=MINUTE_MS)


async def begin(store: SessionStore, life_ms: int = HOUR_MS, **fields: bytes) -> str:
    """A new session with some fields, `a` if none are named."""
    session_id = token_urlsafe(16)
    assert await store.save(session_id, fields or {"a": b"[1]"}, life_ms=life_ms, is_new=True)
    return session_id


async def is_gone(store: SessionStore, session_id: str) -> bool:
    """Whether it ends, of itself, soon."""
    for _ in range(1000):
        # A life of no length: to look must not keep it alive.
        if await store.load(session_id, life_ms=1, slack_ms=HOUR_MS) is None:
            return True
        await later(reactor, 0.01)
    return False


class TestStores:
    @pytest_twisted.ensureDeferred
    async def test_fields_come_back_byte_for_byte_on_every_server(self, world: World) -> None:
        one, two = await world.node(), await world.node()
        fields = {"a": b"[1]", "n\u00e9e": b'["0012"]', "c": b"[ {} ]"}
        session_id = await begin(one.broker.sessions, **fields)
        assert await load(two.broker.sessions, session_id) == fields

    @pytest_twisted.ensureDeferred
    async def test_what_nobody_has_stored_is_not_found_and_not_begun(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        assert await load(store, "unknown") is None
        assert await store.save("unknown", {"a": b"[1]"}, life_ms=HOUR_MS) is False
        assert await load(store, "unknown") is None

    @pytest_twisted.ensureDeferred
    async def test_only_the_named_fields_are_written(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        session_id = await begin(store, a=b"[1]", b=b"[1]", c=b"[1]")
        saved = await gatherResults(
            [
                store.save(session_id, {"a": b"[2]"}, life_ms=HOUR_MS),
                store.save(session_id, {"b": b"[2]", "d": b"[2]"}, ["c"], life_ms=HOUR_MS),
            ]
        )
        assert saved == [True, True]
        assert await load(store, session_id) == {"a": b"[2]", "b": b"[2]", "d": b"[2]"}

    @pytest_twisted.ensureDeferred
    async def test_a_session_without_fields_is_none(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        session_id = await begin(store)
        assert await store.save(session_id, {}, ["a", "never there"], life_ms=HOUR_MS) is True
        assert await load(store, session_id) is None

    @pytest_twisted.ensureDeferred
    async def test_many_fields_fit(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        fields = {f"f{n}": b'["%d"]' % n for n in range(100)}
        session_id = await begin(store, **fields)
        assert await load(store, session_id) == fields

    @pytest_twisted.ensureDeferred
    async def test_it_ends_by_itself(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        session_id = await begin(store, life_ms=50)
        assert await is_gone(store, session_id)

    @pytest_twisted.ensureDeferred
    async def test_saving_sets_its_life_anew(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        session_id = await begin(store)
        await store.save(session_id, {"a": b"[2]"}, life_ms=50)
        assert await is_gone(store, session_id)

    @pytest_twisted.ensureDeferred
    async def test_moved_it_has_all_fields_and_the_old_id_is_dead(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        for n in range(8):  # from and to every master of a cluster, more or less
            old, new = await begin(store, a=b"[1]", b=b"[1]", c=b"[1]"), f"new{n}"
            changed = {"b": b"[2]", "d": b"[2]"}
            assert await store.move(old, new, changed, ["c"], life_ms=HOUR_MS) is True
            assert await load(store, old) is None
            assert await load(store, new) == {"a": b"[1]", "b": b"[2]", "d": b"[2]"}
            assert await store.save(old, {"a": b"[9]"}, life_ms=HOUR_MS) is False

    @pytest_twisted.ensureDeferred
    async def test_a_moved_session_ends_by_itself(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        await store.move(await begin(store), "new", {}, life_ms=50)
        assert await is_gone(store, "new")

    @pytest_twisted.ensureDeferred
    async def test_of_two_who_move_one_gets_the_fields(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        old = await begin(store)
        moved = [store.move(old, f"new{n}", {"n": b"[0]"}, life_ms=HOUR_MS) for n in range(2)]
        assert await gatherResults(moved) == [True, True]
        assert await load(store, "new0") == {"a": b"[1]", "n": b"[0]"}
        assert await load(store, "new1") == {"n": b"[0]"}

    @pytest_twisted.ensureDeferred
    async def test_what_has_ended_is_not_moved(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        assert await store.move("old", "new", {}, life_ms=HOUR_MS) is False
        assert await store.move(await begin(store), "new", {}, ["a"], life_ms=HOUR_MS) is False
        assert await load(store, "new") is None

    @pytest_twisted.ensureDeferred
    async def test_deleted_it_is_gone_and_stays_so(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        session_id = await begin(store)
        await store.delete(session_id)
        await store.delete(session_id)
        assert await store.save(session_id, {"a": b"[1]"}, life_ms=HOUR_MS) is False
        assert await load(store, session_id) is None

    @pytest_twisted.ensureDeferred
    async def test_who_stops_waiting_disturbs_nobody(self, world: World) -> None:
        store = (await world.node()).broker.sessions
        session_id = await begin(store)
        for _ in range(5):
            waiting = store.load(session_id, life_ms=HOUR_MS, slack_ms=MINUTE_MS)
            waiting.addErrback(lambda failure: failure.trap(CancelledError))
            waiting.cancel()
        assert await load(store, session_id) == {"a": b"[1]"}


class TestOnRedis:
    """What other programs on the same Redis see and do."""

    @pytest_twisted.ensureDeferred
    async def test_it_is_a_hash_that_expires(self, served: World) -> None:
        assert served.server is not None
        store = (await served.node()).broker.sessions
        session_id = await begin(store, user=b'["bob"]', n=b"[7]")
        key = f"session:{session_id}"
        flat = await served.server.command("HGETALL", key)
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == {b"user": b'["bob"]', b"n": b"[7]"}
        assert HOUR_MS - MINUTE_MS < await served.server.command("PTTL", key) <= HOUR_MS

    @pytest_twisted.ensureDeferred
    async def test_looking_puts_its_end_off_when_that_gains_something(self, served: World) -> None:
        assert served.server is not None
        store = (await served.node()).broker.sessions
        session_id = await begin(store, life_ms=HOUR_MS - MINUTE_MS // 2)
        key = f"session:{session_id}"
        await load(store, session_id)
        assert await served.server.command("PTTL", key) <= HOUR_MS - MINUTE_MS // 2
        await load(store, session_id, HOUR_MS * 2)
        assert await served.server.command("PTTL", key) > HOUR_MS

    @pytest_twisted.ensureDeferred
    async def test_a_session_of_another_program_is_read_and_given_an_end(
        self, served: World
    ) -> None:
        assert served.server is not None
        store = (await served.node()).broker.sessions
        await served.server.command("HSET", "session:ruby", "a", '[ {"b": 1} ]', b"\xff", "[1]")
        assert await served.server.command("PTTL", "session:ruby") == -1
        assert await load(store, "ruby") == {"a": b'[ {"b": 1} ]'}
        assert 0 < await served.server.command("PTTL", "session:ruby") <= HOUR_MS

    @pytest_twisted.ensureDeferred
    async def test_another_program_may_write_to_ours_without_keeping_it_alive(
        self, served: World
    ) -> None:
        assert served.server is not None
        store = (await served.node()).broker.sessions
        session_id = await begin(store)
        await served.server.command("HSET", f"session:{session_id}", "b", '["theirs"]')
        await store.save(session_id, {"a": b"[2]"}, life_ms=HOUR_MS)
        assert await load(store, session_id) == {"a": b"[2]", "b": b'["theirs"]'}

    @pytest_twisted.ensureDeferred
    async def test_a_refusal_of_redis_is_an_unavailable_broker(self, served: World) -> None:
        assert served.server is not None
        store = (await served.node()).broker.sessions
        await served.server.command("SET", "session:text", "no hash")
        with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
            await load(store, "text")

    @pytest_twisted.ensureDeferred
    async def test_a_broker_that_is_down_fails_fast_and_is_back_when_it_is(
        self, served: World
    ) -> None:
        assert served.server is not None
        node: Node = await served.node()
        store = node.broker.sessions
        session_id = await begin(store)
        await served.server.kill()
        await eventually(reactor, lambda: not node.broker.available)
        for asked in (
            store.load(session_id, life_ms=HOUR_MS, slack_ms=MINUTE_MS),
            store.save(session_id, {"a": b"[2]"}, life_ms=HOUR_MS),
            store.move(session_id, "new", {}, life_ms=HOUR_MS),
            store.delete(session_id),
        ):
            with pytest.raises(BrokerUnavailable):
                await asked
        await served.server.start()
        await served.healed(node)
        assert await load(store, await begin(store)) == {"a": b"[1]"}

    @pytest_twisted.ensureDeferred
    async def test_a_broker_that_is_silent_fails_in_bounded_time(self, served: World) -> None:
        assert served.server is not None
        node = await served.node()
        served.server.freeze()
        with pytest.raises(BrokerUnavailable):
            await load(node.broker.sessions, "any")
        served.server.thaw()
        await served.healed(node)


class TestOnCluster:
    @pytest_twisted.ensureDeferred
    async def test_a_session_whose_slot_moves_is_read_and_written_on(self) -> None:
        if "cluster" not in KINDS:
            pytest.skip("on our own reactor only")
        world = World(reactor, "cluster")
        await world.start()
        try:
            assert isinstance(world.server, ClusterServer)
            cluster = world.server.cluster
            store = (await world.node()).broker.sessions
            session_id = await begin(store)
            slot = key_slot(session_key(session_id))
            before = await cluster.owner(slot)
            moving = Deferred.fromCoroutine(
                cluster.migrate_slot(slot, await cluster.another_master(before))
            )
            saves = 0
            while not moving.called or saves < 10:
                saves += 1
                assert await store.save(session_id, {"n": b"[%d]" % saves}, life_ms=HOUR_MS)
                assert await load(store, session_id) == {"a": b"[1]", "n": b"[%d]" % saves}
            await moving
            assert await cluster.owner(slot) is not before
            assert await store.move(session_id, "new", {}, life_ms=HOUR_MS)
            assert await load(store, "new") == {"a": b"[1]", "n": b"[%d]" % saves}
        finally:
            await world.stop()
