"""The client of a Redis Cluster against a real one, while it is changed and broken."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.client import RedisClient, redis_client
from pelotontx.net.redis.connection import ResponseError, SubscriberConnection
from pelotontx.net.redis.script import Script
from pelotontx.wire.slots import key_slot
from tests.support.certificates import Authority
from tests.support.redis_clients import ask, ask_on, log_texts, opened, run
from tests.support.redis_farm import RedisCluster, shared
from tests.support.redis_fronts import settled
from tests.support.redis_node import Node, until
from tests.support.servers import RedisServer, eventually, free_port, redis_binary


@pytest_twisted.async_yield_fixture
async def cluster() -> AsyncIterator[RedisCluster]:
    cluster = await shared(reactor, RedisCluster)
    await settled(reactor, cluster)
    yield cluster


@pytest_twisted.async_yield_fixture
async def client(cluster: RedisCluster) -> AsyncIterator[RedisClient]:
    async with opened(reactor, cluster.url) as client:
        yield client


async def keys_of_masters(cluster: RedisCluster) -> dict[str, Node]:
    """A key for each master."""
    found: dict[Node, str] = {}
    n = 0
    while len(found) < 3:
        key = f"key:{n}"
        found.setdefault(await cluster.owner(key_slot(key)), key)
        n += 1
    return {key: node for node, key in found.items()}


set_both = Script(
    b"redis.call('SET', KEYS[1], ARGV[1]) redis.call('SET', KEYS[2], ARGV[1]) return 1"
)


append = Script(b"return redis.call('APPEND', KEYS[1], ARGV[1])")


class TestStop:
    @pytest_twisted.ensureDeferred
    async def test_a_stop_ends_a_look_that_nobody_has_answered(self) -> None:
        """What it leaves in the reactor, a later look too, fails the test at its end."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = redis_client(reactor, f"redis+cluster://127.0.0.1:{silent.getsockname()[1]}")
            client.start()
            silent.settimeout(10)
            asked, _ = await deferToThread(silent.accept)
            with asked:
                await client.stop()


class TestSlots:
    @pytest_twisted.ensureDeferred
    async def test_a_keys_slot_is_what_redis_says(self, cluster: RedisCluster) -> None:
        for key in (
            *("", "a", "foo{bar}", "{}x", "{}{a}", "{{a}}", "a{b", "a}b{c}d", "é", "{é}x"),
            *("juggler:calls:{{shop}.price}", "juggler:calls:{a.b}", "x{a}{b}", "}{a}"),
        ):
            assert key_slot(key) == await cluster.slot_of(key), key

    @pytest_twisted.ensureDeferred
    async def test_keys_go_to_all_masters(self, cluster: RedisCluster, client: RedisClient) -> None:
        for key, node in (await keys_of_masters(cluster)).items():
            await ask(client, key, "SET", key, "v")
            assert await node.command("GET", key) == b"v"
            assert client.is_up(key)
            ahead_s = client.ahead_s(key)
            assert ahead_s is not None
            # Redis goes by the time of day, on this machine.
            assert abs(reactor.seconds() + ahead_s - time.time()) < 5

    @pytest_twisted.ensureDeferred
    async def test_an_error_of_another_kind_is_handed_on(self, client: RedisClient) -> None:
        await ask(client, "k", "SET", "k", "v")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await ask(client, "k", "LPUSH", "k", "v")


class TestMigration:
    @pytest_twisted.ensureDeferred
    async def test_a_moved_slot_is_followed(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        slot, source = key_slot("k"), await cluster.owner(key_slot("k"))
        await ask(client, "k", "SET", "k", "1")
        target = await cluster.another_master(source)
        await cluster.migrate_slot(slot, target)
        assert await ask(client, "k", "GET", "k") == b"1"
        assert await run(client, set_both, ["{k}1", "{k}2"], "2") == 1
        assert await target.command("GET", "{k}2") == b"2"

    @pytest_twisted.ensureDeferred
    async def test_commands_of_one_turn_keep_their_order_through_redirects(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        target = await cluster.another_master(await cluster.owner(key_slot("k")))
        await cluster.migrate_slot(key_slot("k"), target)
        replies = [ask(client, "k", "RPUSH", "k", n) for n in range(50)]
        assert [await reply for reply in replies] == list(range(1, 51))
        assert await ask(client, "k", "LRANGE", "k", 0, -1) == [b"%d" % n for n in range(50)]

    @pytest_twisted.ensureDeferred
    async def test_many_redirects_cost_few_looks_at_the_slot_map(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        async def looks() -> int:
            stats = [await node.text("INFO", "commandstats") for node in cluster.nodes]
            return sum(int(n) for text in stats for n in re.findall(r"slots:calls=(\d+)", text))

        keys = [f"key:{n}" for n in range(300)]
        source = (await keys_of_masters(cluster))["key:0"]
        target = await cluster.another_master(source)
        moving = [key for key in keys if await cluster.owner(key_slot(key)) is source][:30]
        for slot in {key_slot(key) for key in moving}:
            await cluster.migrate_slot(slot, target)
        before = await looks()
        assert before > 0
        for reply in [ask(client, key, "APPEND", key, "x") for key in moving * 10]:
            await reply
        assert await looks() - before < 100

    @pytest_twisted.ensureDeferred
    async def test_during_a_migration_what_has_moved_is_asked_for(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        slot, source = key_slot("k"), await cluster.owner(key_slot("k"))
        target = await cluster.another_master(source)
        await ask(client, "k", "SET", "k", "old")
        await cluster.begin_migration(slot, target)
        assert await ask(client, "k", "GET", "k") == b"old"
        await ask(client, "{k}new", "SET", "{k}new", "new")
        await target.command("SCRIPT", "FLUSH")
        for n in (1, 2):  # by its source, by its digest
            assert await run(client, append, ["{k}1"], "x") == n
        await cluster.migrate_keys(slot, target, 10)
        assert await ask(client, "k", "GET", "k") == b"old"
        await cluster.end_migration(slot, target)
        assert await ask(client, "k", "MGET", "k", "{k}new", "{k}1") == [b"old", b"new", b"xx"]

    @pytest_twisted.ensureDeferred
    async def test_a_script_whose_keys_are_on_both_sides_waits_for_the_end(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        slot, source = key_slot("k"), await cluster.owner(key_slot("k"))
        target = await cluster.another_master(source)
        await ask(client, "k", "SET", "k", "old")
        await cluster.begin_migration(slot, target)
        running = run(client, set_both, ["k", "{k}2"], "new")
        refused = run(client, set_both, ["k", "{k}2"], "never")
        refused.addErrback(lambda failure: failure.value)

        async def has_refused() -> bool:
            return b"errorstat_TRYAGAIN" in await source.command("INFO", "errorstats")

        await until(reactor, has_refused)
        assert not running.called
        await cluster.migrate_keys(slot, target, 10)
        await cluster.end_migration(slot, target)
        assert await running == 1
        assert await refused == 1

    @pytest_twisted.ensureDeferred
    async def test_a_script_is_given_up_when_the_migration_takes_too_long(
        self, cluster: RedisCluster
    ) -> None:
        slot = key_slot("k")
        target = await cluster.another_master(await cluster.owner(slot))
        async with opened(reactor, cluster.url, reply_timeout_s=1.0) as client:
            await ask_on(reactor, client, "k", "SET", "k", "old")
            await cluster.begin_migration(slot, target)
            with pytest.raises(BrokerUnavailable, match="TRYAGAIN"):
                await run(client, set_both, ["k", "{k}2"], "new")
            await cluster.migrate_keys(slot, target, 10)
            await cluster.end_migration(slot, target)


class TestLinks:
    @pytest_twisted.ensureDeferred
    async def test_a_blocking_pop_follows_its_slot(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        slot, source = key_slot("k"), await cluster.owner(key_slot("k"))
        target = await cluster.another_master(source)
        popped: list[Any] = []
        errors: list[Any] = []

        def pop(connection: Any) -> None:
            def replied(reply: Any) -> None:
                if isinstance(reply, Exception):
                    errors.append(reply)
                    return
                if reply is not None:
                    popped.append(reply[1])
                pop(connection)

            connection.send(replied, "BLMPOP", "0.5", 1, "k", "RIGHT")

        link = client.link("takes", "k", on_up=pop)
        link.start()
        try:
            await eventually(reactor, lambda: link.connection)
            await ask(client, "k", "LPUSH", "k", "1")
            await eventually(reactor, lambda: len(popped) == 1)
            await cluster.begin_migration(slot, target)
            await ask(client, "k", "LPUSH", "k", "2")  # the target's
            await eventually(reactor, lambda: len(popped) == 2)
            await cluster.end_migration(slot, target)
            await ask(client, "k", "LPUSH", "k", "3")
            await eventually(reactor, lambda: len(popped) == 3)
            await settled(reactor, cluster)
            await cluster.migrate_slot(slot, source)
            await ask(client, "k", "LPUSH", "k", "4")
            await eventually(reactor, lambda: len(popped) == 4)
        finally:
            await link.stop()
        assert popped == [[b"1"], [b"2"], [b"3"], [b"4"]]
        assert {type(error) for error in errors} == {BrokerUnavailable}

    @pytest_twisted.ensureDeferred
    async def test_a_subscriber_goes_to_another_node_when_its_own_is_down(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        events: list[Any] = []

        async def subscribe(connection: Any) -> None:
            connection.on_event = lambda *event: events.append(event)
            await connection.subscribe_to("SUBSCRIBE", [b"c"])

        link = client.link("events", None, connection_class=SubscriberConnection, on_up=subscribe)
        link.start()
        try:
            await eventually(reactor, lambda: link.connection)
            await ask(client, "c", "PUBLISH", "c", "1")
            await eventually(reactor, lambda: events == [(b"c", None, b"1")])
            first = link.address
            assert first is not None
            node = next(node for node in cluster.nodes if node.port == first.port)
            await node.kill()
            await eventually(reactor, lambda: link.connection and link.address.port != first.port)
            await ask_on(reactor, client, "c", "PUBLISH", "c", "2")
            await eventually(reactor, lambda: events[-1] == (b"c", None, b"2"))
        finally:
            await link.stop()


class TestLogin:
    @pytest_twisted.ensureDeferred
    async def test_user_and_password_count_on_every_node(self, cluster: RedisCluster) -> None:
        for node in cluster.nodes:
            await node.command("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", "+@all")
        hosts = cluster.url.removeprefix("redis+cluster://")
        async with opened(reactor, f"redis+cluster://me:secret@{hosts}") as client:
            for key in await keys_of_masters(cluster):
                assert b" user=me " in await ask(client, key, "CLIENT", "INFO")
        with log_texts() as texts:
            url = f"redis+cluster://me:notsecret@{hosts}"
            async with opened(reactor, url, until_up=False) as client:
                await eventually(reactor, lambda: any("WRONGPASS" in text for text in texts))
                assert not client.available
        assert not any("secret" in text for text in texts)
        for node in cluster.nodes:
            await node.command("ACL", "DELUSER", "me")


class TestOneNode:
    """A cluster of a single node is quickly made."""

    @pytest_twisted.ensureDeferred
    async def test_tls_is_spoken_with_every_node(self, tmp_path: Path) -> None:
        authority, port = Authority(tmp_path), free_port()
        cert, key = authority.issue("node", "localhost")
        options = [
            *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
            *("--cluster-announce-hostname", "localhost"),
            *("--cluster-preferred-endpoint-type", "hostname"),
            *("--tls-port", str(port), "--tls-cluster", "yes", "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(cert), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(authority.path)),
        ]
        async with RedisServer(reactor, redis_binary(), options=options) as server:
            await server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            url = f"rediss+cluster://localhost:{port}?ca={authority.path}"
            async with opened(reactor, url) as client:
                await ask(client, "k", "SET", "k", "v")
                info = await ask(client, "k", "CLIENT", "LIST")
                ports = set(re.findall(rb"laddr=\S+:(\d+) .*name=pelotontx", info))
                assert ports == {b"%d" % port}

    @pytest_twisted.ensureDeferred
    async def test_a_node_without_its_cluster_is_not_believed(self) -> None:
        options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
        async with RedisServer(reactor, redis_binary(), options=options) as server:
            url = f"redis+cluster://127.0.0.1:{server.port}"
            with log_texts() as texts:
                async with opened(reactor, url, until_up=False) as client:
                    await eventually(
                        reactor, lambda: any("the cluster is down" in text for text in texts)
                    )
                    assert not client.available
                    await server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                    await eventually(reactor, lambda: client.available)
                    await ask(client, "k", "SET", "k", "v")

    @pytest_twisted.ensureDeferred
    async def test_a_server_that_is_no_cluster_is_told_of(self) -> None:
        async with RedisServer(reactor, redis_binary()) as server:
            url = f"redis+cluster://127.0.0.1:{server.port}"
            with log_texts() as texts:
                async with opened(reactor, url, until_up=False) as client:
                    reason = "cluster support disabled"
                    await eventually(reactor, lambda: any(reason in text for text in texts))
                    with pytest.raises(BrokerUnavailable):
                        await ask(client, "k", "GET", "k")


class TestFaults:
    @pytest_twisted.ensureDeferred
    async def test_a_killed_master_is_replaced(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        keys = await keys_of_masters(cluster)
        key, node = next(iter(keys.items()))
        await node.kill()
        await eventually(reactor, lambda: not client.available)
        with pytest.raises(BrokerUnavailable):
            await ask(client, key, "GET", key)
        await ask_on(reactor, client, key, "SET", key, "v")
        await eventually(reactor, lambda: client.available)
        for key in keys:
            await ask(client, key, "SET", key, "v")

    @pytest_twisted.ensureDeferred
    async def test_a_failover_by_hand_loses_no_command(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        master = await cluster.owner(key_slot("n"))
        failover: Deferred[Any] = Deferred.fromCoroutine(cluster.failover(master))
        count = 0
        while not failover.called:
            await ask(client, "n", "INCR", "n")
            count += 1
        await failover
        assert await ask(client, "n", "GET", "n") == b"%d" % count

    @pytest_twisted.ensureDeferred
    async def test_a_silent_master_is_unavailable_and_then_replaced(
        self, cluster: RedisCluster
    ) -> None:
        async with opened(reactor, cluster.url, reply_timeout_s=0.5) as client:
            node = await cluster.owner(key_slot("k"))
            node.freeze()
            with pytest.raises(BrokerUnavailable):
                await ask(client, "k", "SET", "k", "1")
            await ask_on(reactor, client, "k", "SET", "k", "2")
            node.thaw()

    @pytest_twisted.ensureDeferred
    async def test_a_cluster_that_is_down_fails_fast_and_heals(
        self, cluster: RedisCluster, client: RedisClient
    ) -> None:
        for node in cluster.nodes:
            node.freeze()
        await eventually(reactor, lambda: not client.available)
        with pytest.raises(BrokerUnavailable):
            await ask(client, "k", "GET", "k")
        for node in cluster.nodes:
            node.thaw()
        assert await ask_on(reactor, client, "k", "GET", "k") is None
        await eventually(reactor, lambda: client.available, timeout_s=30)
