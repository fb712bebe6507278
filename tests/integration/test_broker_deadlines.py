"""Calls that tell by themselves when their time is over, beside calls of other programs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pelotontx.broker.interface import Callee, IncomingCall
from pelotontx.errors import BrokerUnavailable
from pelotontx.flow import later
from tests.support.brokers import Node, Peer, World, store_result
from tests.support.servers import RedisServer, eventually


@pytest_twisted.async_yield_fixture
async def world() -> AsyncIterator[World]:
    world = World(reactor, "redis")
    await world.start()
    yield world
    await world.stop()


def redis(world: World) -> RedisServer:
    assert isinstance(world.server, RedisServer)
    return world.server


async def take(source: Callee, count: int) -> list[IncomingCall]:
    calls: list[IncomingCall] = []
    while len(calls) < count:
        try:
            calls += await source.take_calls(("u",), count - len(calls))
        except BrokerUnavailable:
            await later(reactor, 0.01)
    return calls


async def stored(node: Node, count: int, **options: Any) -> Peer:
    """Puts calls on the broker whose args are their numbers."""
    peer = Peer()
    for number in range(count):
        node.call(peer, number, "u", b"%d" % number, **options)
    await eventually(reactor, lambda: len(peer.of("stored")) == count)
    return peer


async def entries(world: World) -> list[Any]:
    found = await redis(world).command("LRANGE", "juggler:calls:{u}", 0, -1)
    return [json.loads(entry) for entry in reversed(found)]


async def foreign_call(world: World, number: int, timeout_ms: int = 5000) -> None:
    """As a server of the original stores it."""
    call = {"conn_uuid": "C", "msg_uuid": f"M{number}", "uri": "u", "args": number}
    key = f"juggler:calls:timeout:{{u}}:M{number}"
    await redis(world).command("SET", key, timeout_ms, "PX", timeout_ms)
    await redis(world).command("LPUSH", "juggler:calls:{u}", json.dumps(call))


@pytest_twisted.ensureDeferred
async def test_a_call_tells_its_deadline_by_the_clock_of_redis(world: World) -> None:
    node = await world.node()
    before = await redis(world).command("TIME")
    await stored(node, 1, timeout_s=30)
    after = await redis(world).command("TIME")
    (entry,) = await entries(world)
    least, most = (int(s) * 1000 + int(us) // 1000 + 30_000 for s, us in (before, after))
    assert least - 20 <= entry["dl"] <= most + 20
    assert list(entry) == ["conn_uuid", "msg_uuid", "uri", "dl", "args"]


@pytest_twisted.ensureDeferred
async def test_a_call_past_its_deadline_is_not_run_though_its_key_is_there(world: World) -> None:
    node, source = await world.node(), await world.source()
    await stored(node, 1)
    (entry,) = await entries(world)
    await redis(world).command("LSET", "juggler:calls:{u}", 0, json.dumps({**entry, "dl": 1}))
    await stored(node, 1)
    (call,) = await take(source, 1)
    assert call.msg_uuid != entry["msg_uuid"]
    assert source.calls_expired == 1  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_its_result_leaves_no_keys_and_reads_none(world: World) -> None:
    node, source = await world.node(), await world.source()
    peer = await stored(node, 3)
    for call in await take(source, 3):
        assert await store_result(source, call, b"1") is None
    await eventually(reactor, lambda: len(peer.of("answered")) == 3)
    keys = await redis(world).command("KEYS", "juggler:*")
    assert [key for key in keys if b"results:{" not in key] == []
    statistics = (await redis(world).command("INFO", "commandstats")).decode()
    assert "cmdstat_pttl" in statistics  # of lists
    called = {line.split(":")[0] for line in statistics.splitlines()}
    assert "cmdstat_del" not in called


@pytest_twisted.ensureDeferred
async def test_ours_and_foreign_calls_of_one_list_keep_their_order(world: World) -> None:
    node = await world.node()
    await stored(node, 1)
    await foreign_call(world, 1)
    await foreign_call(world, 99, timeout_ms=1)
    await stored(node, 1)
    source = await world.source()
    calls = await take(source, 3)
    assert [call.args for call in calls] == [b"0", b"1", b"0"]
    assert [bool(call.ticket) for call in calls] == [True, False, True]
    assert await store_result(source, calls[1], b"2") is None
    ours = await redis(world).command("PTTL", "juggler:results:timeout:{C}:M1")
    assert 0 < ours <= 5000
    (result,) = await redis(world).command("LRANGE", "juggler:results:{C}", 0, -1)
    assert "dl" not in json.loads(result)


@pytest_twisted.ensureDeferred
async def test_calls_that_were_taken_and_not_wanted_go_back_with_their_time(world: World) -> None:
    node = await world.node()
    await stored(node, 3, timeout_s=30)
    source = await world.source()
    (first,) = await take(source, 1)
    back: Deferred[None] = Deferred()
    source.put_back([first], lambda: back.callback(None))  # type: ignore[attr-defined]
    await back
    calls = await take(source, 3)
    assert [call.args for call in calls] == [b"0", b"1", b"2"]
    assert calls[0].expires_at_s == first.expires_at_s


@pytest_twisted.ensureDeferred
async def test_without_a_clock_everything_goes_by_the_keys(world: World) -> None:
    """A user who may not ask for the time."""
    await redis(world).command("ACL", "SETUSER", "default", "-time")
    node, source = await world.node(), await world.source()
    peer = await stored(node, 2)
    assert all("dl" not in entry for entry in await entries(world))
    for call in await take(source, 2):
        assert await store_result(source, call, call.args) is None
    await eventually(reactor, lambda: peer.of("answered") == [(0, b"0"), (1, b"1")])
    assert await redis(world).command("KEYS", "juggler:*timeout*") == []


@pytest.mark.parametrize("dl", [10**400, 1e15, None, "soon", -5])
@pytest_twisted.ensureDeferred
async def test_a_deadline_that_is_none_of_ours_goes_by_the_key(world: World, dl: Any) -> None:
    source = await world.source()
    await redis(world).command("SET", "juggler:calls:timeout:{u}:M", 5000, "PX", 5000)
    call = {"conn_uuid": "C", "msg_uuid": "M", "uri": "u", "dl": dl, "args": 1}
    await redis(world).command("LPUSH", "juggler:calls:{u}", json.dumps(call))
    (taken,) = await take(source, 1)
    assert (taken.msg_uuid, taken.ticket) == ("M", 0)


@pytest_twisted.ensureDeferred
async def test_a_call_with_no_time_left_does_not_hold_up_those_put_back_with_it(
    world: World,
) -> None:
    node = await world.node()
    await stored(node, 3, timeout_s=30)
    source = await world.source()
    calls = await take(source, 3)
    ending = msgspec.structs.replace(calls[1], expires_at_s=reactor.seconds() + 0.0005)
    back: Deferred[None] = Deferred()
    source.put_back([calls[0], ending, calls[2]], lambda: back.callback(None))  # type: ignore[attr-defined]
    await back
    assert [entry["args"] for entry in await entries(world)] == [0, 2]


@pytest_twisted.ensureDeferred
async def test_a_foreign_servers_list_gets_no_expiry_by_what_is_put_back(world: World) -> None:
    source = await world.source()
    await foreign_call(world, 1)
    (call,) = await take(source, 1)
    back: Deferred[None] = Deferred()
    source.put_back([call], lambda: back.callback(None))  # type: ignore[attr-defined]
    await back
    assert await redis(world).command("PTTL", "juggler:calls:{u}") == -1
    node = await world.node()
    await stored(node, 1)
    (_, ours) = await take(source, 2)
    back = Deferred()
    source.put_back([ours], lambda: back.callback(None))  # type: ignore[attr-defined]
    await back
    assert await redis(world).command("PTTL", "juggler:calls:{u}") > 0


@pytest_twisted.ensureDeferred
async def test_a_call_is_run_though_the_connection_that_tells_the_time_is_away(
    world: World,
) -> None:
    node, source = await world.node(), await world.source()
    await stored(node, 1)
    await take(source, 1)  # the time is known from here on
    taking = source.take_calls(("u",), 1)
    clients = (await redis(world).command("CLIENT", "LIST")).decode().splitlines()
    commands = [line.split()[0].removeprefix("id=") for line in clients if "-commands-" in line]
    for number in commands:
        await redis(world).command("CLIENT", "KILL", "ID", number)
    await eventually(reactor, lambda: not source.available)
    call = {"conn_uuid": "C", "msg_uuid": "M", "uri": "u", "dl": int(1e13), "args": 1}
    await redis(world).command("LPUSH", "juggler:calls:{u}", json.dumps(call))
    assert [call.msg_uuid for call in await taking] == ["M"]
