"""The client of a Redis whose master Sentinels choose, through failovers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.errors import BrokerUnavailable
from pelotontx.net.redis.client import RedisClient
from tests.support.redis_clients import ask, ask_on, log_texts, opened
from tests.support.redis_farm import SentinelTrio, shared
from tests.support.servers import eventually

# As docs/operations.md says.
SENTINEL_RIGHTS = (
    *("&*", "+ping", "+subscribe", "+client|setname", "+sentinel|master"),
    *("+sentinel|get-master-addr-by-name", "+sentinel|sentinels"),
)


@pytest_twisted.async_yield_fixture
async def trio() -> AsyncIterator[SentinelTrio]:
    yield await shared(reactor, SentinelTrio)


@pytest_twisted.async_yield_fixture
async def client(trio: SentinelTrio) -> AsyncIterator[RedisClient]:
    async with opened(reactor, trio.url) as client:
        yield client


@pytest_twisted.ensureDeferred
async def test_commands_go_to_the_master(trio: SentinelTrio, client: RedisClient) -> None:
    await ask(client, "k", "SET", "k", "v")
    assert await (await trio.master()).command("GET", "k") == b"v"


@pytest_twisted.ensureDeferred
async def test_a_dead_and_a_silent_sentinel_do_not_matter(trio: SentinelTrio) -> None:
    await trio.sentinels[0].kill()
    trio.sentinels[1].freeze()
    async with opened(reactor, trio.url) as client:
        await ask(client, "k", "SET", "k", "v")
    trio.sentinels[1].thaw()


@pytest_twisted.ensureDeferred
async def test_sentinels_that_the_url_does_not_name_are_learned(trio: SentinelTrio) -> None:
    url = f"redis+sentinel://{trio.sentinels[0].address}/{trio.name}"
    async with opened(reactor, url) as client:
        await trio.sentinels[0].kill()
        master = await trio.master()
        await master.kill()
        await ask_on(reactor, client, "k", "SET", "k", "v")


@pytest_twisted.ensureDeferred
async def test_a_killed_master_is_replaced_and_links_follow(
    trio: SentinelTrio, client: RedisClient
) -> None:
    popped: list[Any] = []

    def pop(connection: Any) -> None:
        connection.send(popped.append, "BLMPOP", "10", 1, "list", "RIGHT")

    link = client.link("takes", "list", on_up=pop)
    link.start()
    try:
        await eventually(reactor, lambda: link.connection)
        master = await trio.master()
        await master.kill()
        await eventually(reactor, lambda: not client.available)
        with pytest.raises(BrokerUnavailable):
            await ask(client, "k", "GET", "k")
        await ask_on(reactor, client, "k", "SET", "k", "v")
        await ask(client, "list", "LPUSH", "list", "1")
        await eventually(reactor, lambda: popped[-1:] == [[b"list", [b"1"]]])
    finally:
        await link.stop()


@pytest_twisted.ensureDeferred
async def test_a_failover_by_hand_is_followed_though_the_old_master_lives(
    trio: SentinelTrio, client: RedisClient
) -> None:
    old = await trio.master()
    new = await trio.failover()
    assert new is not old
    await ask_on(reactor, client, "k", "SET", "k", "v")
    assert await new.command("GET", "k") == b"v"


@pytest_twisted.ensureDeferred
async def test_a_master_that_nobody_told_of_its_fall_is_left_when_it_refuses(
    trio: SentinelTrio, client: RedisClient
) -> None:
    master = await trio.master()
    for sentinel in trio.sentinels:
        sentinel.freeze()
    (replica, _) = (node for node in trio.nodes if node is not master)
    await replica.command("REPLICAOF", "NO", "ONE")
    await master.command("REPLICAOF", "127.0.0.1", replica.port)
    with pytest.raises(BrokerUnavailable, match="READONLY"):
        await ask(client, "k", "SET", "k", "v")
    assert not client.available
    for sentinel in trio.sentinels:
        sentinel.thaw()
    await ask_on(reactor, client, "k", "SET", "k", "v")


@pytest_twisted.ensureDeferred
async def test_a_master_that_misses_its_replicas_is_unavailable(
    trio: SentinelTrio, client: RedisClient
) -> None:
    master = await trio.master()
    await master.command("CONFIG", "SET", "min-replicas-to-write", 3)
    with pytest.raises(BrokerUnavailable, match="NOREPLICAS"):
        await ask(client, "k", "SET", "k", "v")
    await master.command("CONFIG", "SET", "min-replicas-to-write", 0)
    await ask_on(reactor, client, "k", "SET", "k", "v")


@pytest_twisted.ensureDeferred
async def test_the_master_and_the_sentinels_have_logins_of_their_own(trio: SentinelTrio) -> None:
    for node in trio.nodes:
        await node.command("ACL", "SETUSER", "me", "on", ">data", "~*", "&*", "+@all")
    for sentinel in trio.sentinels:
        await sentinel.command("ACL", "SETUSER", "me", "on", ">watch", *SENTINEL_RIGHTS)
    hosts = ",".join(sentinel.address for sentinel in trio.sentinels)
    query = "sentinel_user=me&sentinel_password=watch"
    url = f"redis+sentinel://me:data@{hosts}/{trio.name}?{query}"
    with log_texts() as texts:
        async with opened(reactor, url) as client:
            assert b" user=me " in await ask(client, "k", "CLIENT", "INFO")
            await trio.failover()
            await ask_on(reactor, client, "k", "SET", "k", "v")
        assert not any("NOPERM" in text for text in texts)
    with log_texts() as texts:
        url = f"redis+sentinel://me:data@{hosts}/{trio.name}?sentinel_user=me&sentinel_password=x"
        async with opened(reactor, url, until_up=False):
            await eventually(reactor, lambda: any("WRONGPASS" in text for text in texts))
    for node in (*trio.nodes, *trio.sentinels):
        await node.command("ACL", "DELUSER", "me")


@pytest_twisted.ensureDeferred
async def test_a_name_that_no_sentinel_knows_is_unavailable(trio: SentinelTrio) -> None:
    url = trio.url.removesuffix(trio.name) + "another"
    async with opened(reactor, url, until_up=False) as client:
        with pytest.raises(BrokerUnavailable):
            await ask(client, "k", "GET", "k")
