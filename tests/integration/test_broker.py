"""The broker contract: the same claims over every kind of broker."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pelotontx.backend.callee import Callee
from pelotontx.errors import BrokerError, BrokerUnavailable, CallExpired, QueueFull
from pelotontx.flow import later
from pelotontx.wire.juggler import calls_key, results_key
from pelotontx.wire.slots import key_slot
from tests.integration.conftest import LoggedErrors
from tests.support.brokers import KINDS, Node, Peer, World, store_result
from tests.support.redis_farm import Node as RedisNode
from tests.support.redis_farm import RedisCluster
from tests.support.redis_fronts import ClusterServer, settled
from tests.support.redis_node import until
from tests.support.servers import eventually


@pytest_twisted.async_yield_fixture(params=KINDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(reactor, request.param)
    await world.start()
    yield world
    await world.stop()


@pytest_twisted.async_yield_fixture(params=[kind for kind in KINDS if kind != "memory"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Only brokers with a server that can be killed."""
    world = World(reactor, request.param)
    await world.start()
    yield world
    await world.stop()


async def take(source: Any, count: int, uris: tuple[str, ...] = ("u",)) -> list[Any]:
    """Takes `count` calls, however many waits that needs."""
    calls: list[Any] = []
    while len(calls) < count:
        try:
            calls += await source.take_calls(uris, count - len(calls))
        except BrokerUnavailable:
            await later(reactor, 0.01)
    return calls


echo = Callee()


@echo.function("echo")
def _echo(args: Any) -> Any:
    return args


@echo.function("wait")
async def _wait(args: float) -> str:
    await later(reactor, args)
    return "waited"


@echo.function("fail")
def _fail(args: Any) -> None:
    raise ValueError(f"not {args}")


@pytest.mark.reactors
class TestCalls:
    @pytest_twisted.ensureDeferred
    async def test_stored_comes_before_answered_and_args_are_kept_byte_for_byte(
        self, world: World
    ) -> None:
        node, source, peer = await world.node(), await world.source(), Peer()
        args = b'{"b": "0012", "a": [1.50, "\\u00e9"]}'
        node.call(peer, 1, "u", args)
        (call,) = await take(source, 1)
        assert call.args == args
        assert await store_result(source, call, b'"0012"') is None
        await eventually(reactor, lambda: len(peer.told) == 2)
        assert peer.told == [("stored", 1), ("answered", 1, b'"0012"')]

    @pytest_twisted.ensureDeferred
    async def test_calls_of_a_uri_are_taken_first_in_first_out(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        for n in range(15):
            node.call(peer, n, "u", b"%d" % n)
        await eventually(reactor, lambda: len(peer.of("stored")) == 15)
        source = await world.source()
        assert [int(call.args) for call in await take(source, 15)] == list(range(15))

    @pytest_twisted.ensureDeferred
    async def test_a_taker_gets_no_more_than_it_asked_for(self, world: World) -> None:
        node, source, peer = await world.node(), await world.source(), Peer()
        for n in range(5):
            node.call(peer, n, "u", b"%d" % n)
        await eventually(reactor, lambda: len(peer.of("stored")) == 5)
        assert len(await take(source, 2)) == 2
        assert len(await source.take_calls(("u",), 9)) == 3

    @pytest_twisted.ensureDeferred
    async def test_an_expired_call_is_never_run(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        node.call(peer, "short", "u", b'"short"', timeout_s=0.05)
        await eventually(reactor, lambda: peer.told[-1:] == [("expired", "short")])
        node.call(peer, "long", "u", b'"long"')
        source = await world.source()
        assert [call.args for call in await take(source, 1)] == [b'"long"']

    @pytest_twisted.ensureDeferred
    async def test_a_result_past_its_time_is_not_stored(self, world: World) -> None:
        node, source, peer = await world.node(), await world.source(), Peer()
        node.call(peer, 1, "u", timeout_s=0.1)
        (call,) = await take(source, 1)
        await eventually(reactor, lambda: ("expired", 1) in peer.told)
        assert isinstance(await store_result(source, call, b"1"), CallExpired)
        assert peer.told == [("stored", 1), ("expired", 1)]

    @pytest_twisted.ensureDeferred
    async def test_a_capped_list_takes_what_has_room_and_refuses_the_rest(
        self, world: World
    ) -> None:
        node, peer = await world.node(), Peer()
        for n in range(25):
            node.call(peer, n, "u")
        await eventually(reactor, lambda: len(peer.told) == 25)
        assert peer.of("stored") == list(range(20))
        assert [n for n, error in peer.of("refused") if isinstance(error, QueueFull)] == list(
            range(20, 25)
        )
        source = await world.source()
        await take(source, 1)
        node.call(peer, "again", "u")
        await eventually(reactor, lambda: ("stored", "again") in peer.told)

    @pytest_twisted.ensureDeferred
    async def test_each_server_gets_the_results_of_its_own_calls(self, world: World) -> None:
        one, two = await world.node(), await world.node()
        first, second = Peer(), Peer()
        await world.callee(echo)
        for n in range(10):
            one.call(first, n, "echo", b"%d" % n)
            two.call(second, n, "echo", b"%d" % (n + 100))
        await eventually(reactor, lambda: len(first.told) + len(second.told) == 40)
        assert dict(first.of("answered")) == {n: b"%d" % n for n in range(10)}
        assert dict(second.of("answered")) == {n: b"%d" % (n + 100) for n in range(10)}

    @pytest_twisted.ensureDeferred
    async def test_several_uris_are_all_served(self, world: World) -> None:
        node, source, peer = await world.node(), await world.source(), Peer()
        for uri in ("a", "b", "c"):
            for _ in range(5):
                node.call(peer, uri, uri)
        calls = await take(source, 15, ("a", "b", "c"))
        assert {call.uri for call in calls} == {"a", "b", "c"}

    @pytest_twisted.ensureDeferred
    async def test_a_cancelled_wait_loses_no_call(self, world: World) -> None:
        node, source, peer = await world.node(), await world.source(), Peer()
        for n in range(20):
            waiting = source.take_calls(("u",), 1)
            waiting.addErrback(lambda failure: None)
            node.call(peer, n, "u", b"%d" % n)
            if n % 2:
                await eventually(reactor, lambda n=n: ("stored", n) in peer.told)
            calls: list[Any] = []
            waiting.addCallback(lambda taken, calls=calls: calls.extend(taken or ()))
            waiting.cancel()
            if not calls:
                calls = await take(source, 1)
            assert [int(call.args) for call in calls] == [n]

    @pytest_twisted.ensureDeferred
    async def test_stopping_a_wait_leaves_every_call_to_the_next_callee(self, world: World) -> None:
        node, peer, taken = await world.node(), Peer(), list[int]()
        for n in range(15):
            source = await world.source()
            waiting = source.take_calls(("u",), 5)
            waiting.addCallbacks(
                lambda calls: taken.extend(int(call.args) for call in calls), lambda failure: None
            )
            node.call(peer, n, "u", b"%d" % n)
            if n % 3:
                await eventually(reactor, lambda n=n: ("stored", n) in peer.told)
            await source.stop()
        await eventually(reactor, lambda: len(peer.of("stored")) == 15)
        source = await world.source()
        while len(taken) < 15:
            taken += [int(call.args) for call in await take(source, 1)]
        assert sorted(taken) == list(range(15))

    @pytest_twisted.ensureDeferred
    async def test_functions_run_and_their_failures_are_results(
        self, world: World, logged: LoggedErrors
    ) -> None:
        node, peer = await world.node(), Peer()
        await world.callee(echo)
        node.call(peer, "echo", "echo", b'{"x":1}')
        node.call(peer, "fail", "fail", b'"good"')
        node.call(peer, "wait", "wait", b"0.01")
        await eventually(reactor, lambda: len(peer.of("answered")) == 3)
        answers = {name: json.loads(args) for name, args in peer.of("answered")}
        assert answers == {
            "echo": {"x": 1},
            "fail": {"error": {"message": "not good"}},
            "wait": "waited",
        }
        assert len(logged.flush(ValueError)) == 1

    @pytest_twisted.ensureDeferred
    async def test_a_callee_runs_no_more_than_its_concurrency_at_once(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        running, most, gates = 0, 0, list[Deferred[None]]()
        callee = Callee()

        @callee.function("u")
        async def function(args: Any) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            gates.append(Deferred())
            await gates[-1]
            running -= 1

        await world.callee(callee, concurrency=3)
        for n in range(9):
            node.call(peer, n, "u")

        def open_gates() -> bool:
            for gate in [gate for gate in gates if not gate.called] if running == 3 else ():
                gate.callback(None)
            return len(peer.of("answered")) == 9

        await eventually(reactor, open_gates)
        assert most == 3

    @pytest_twisted.ensureDeferred
    async def test_a_stopping_callee_finishes_what_it_has(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        gate: Deferred[str] = Deferred()
        started: list[Any] = []
        callee = Callee()

        @callee.function("u")
        def function(args: Any) -> Deferred[str]:
            started.append(args)
            return gate

        service = await world.callee(callee)
        node.call(peer, 1, "u")
        await eventually(reactor, lambda: started)
        stopped = service.stopService()
        assert not stopped.called
        gate.callback("finished")
        await stopped
        await eventually(reactor, lambda: ("answered", 1, b'"finished"') in peer.told)


@pytest.mark.reactors
class TestEvents:
    @pytest_twisted.ensureDeferred
    async def test_events_of_a_publisher_come_in_order_on_every_server(self, world: World) -> None:
        one, two, here, there = await world.node(), await world.node(), Peer(), Peer()
        await one.hub.subscribe(here, "c", pattern=False)
        await two.hub.subscribe(there, "c", pattern=False)
        for n in range(200):
            one.hub.publish("c", "m", b"%d" % n)
        await eventually(reactor, lambda: len(here.told) + len(there.told) == 400)
        expected = [("c", None, b"%d" % n) for n in range(200)]
        assert here.of("event") == expected
        assert there.of("event") == expected

    @pytest_twisted.ensureDeferred
    async def test_plain_and_pattern_subscriptions_get_an_event_each(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        await node.hub.subscribe(peer, "room.1", pattern=False)
        await node.hub.subscribe(peer, "room.[0-9]", pattern=True)
        await node.hub.publish("room.1", "m", b"1")
        await node.hub.publish("room.x", "m", b"2")
        await node.hub.publish("room.2", "m", b"3")
        await eventually(reactor, lambda: len(peer.told) == 3)
        assert sorted(peer.of("event"), key=str) == sorted(
            [
                ("room.1", None, b"1"),
                ("room.1", "room.[0-9]", b"1"),
                ("room.2", "room.[0-9]", b"3"),
            ],
            key=str,
        )

    @pytest_twisted.ensureDeferred
    async def test_no_event_after_unsubscribing(self, world: World) -> None:
        node, peer, other = await world.node(), Peer(), Peer()
        await node.hub.subscribe(peer, "c", pattern=False)
        await node.hub.subscribe(other, "d", pattern=False)
        node.hub.unsubscribe(peer, "c", pattern=False)
        await node.hub.publish("c", "m", b"1")
        await node.hub.publish("d", "m", b"2")
        await eventually(reactor, lambda: other.told)
        assert peer.told == []

    @pytest_twisted.ensureDeferred
    async def test_subscribing_again_right_after_unsubscribing_works(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        for _ in range(20):
            await node.hub.subscribe(peer, "c", pattern=False)
            node.hub.unsubscribe(peer, "c", pattern=False)
        await node.hub.subscribe(peer, "c", pattern=False)
        await node.hub.publish("c", "m", b"1")
        await eventually(reactor, lambda: peer.told)
        assert peer.of("event") == [("c", None, b"1")]

    @pytest_twisted.ensureDeferred
    async def test_names_and_payloads_beyond_ascii_pass(self, world: World) -> None:
        node, peer = await world.node(), Peer()
        args = json.dumps({"text": "grüße ✓\n"}, ensure_ascii=False).encode()
        await node.hub.subscribe(peer, "räume ✓", pattern=False)
        await node.hub.publish("räume ✓", "m", args)
        await eventually(reactor, lambda: peer.told)
        assert peer.of("event") == [("räume ✓", None, args)]


class TestRedisLayout:
    """What other programs on the same Redis see."""

    @pytest_twisted.ensureDeferred
    async def test_a_stored_call_is_a_list_entry_and_a_timeout_key(self, served: World) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        node.call(peer, 1, "a.b", b'"0012"', timeout_s=30)
        await eventually(reactor, lambda: peer.told)
        (entry,) = await served.server.command("LRANGE", "juggler:calls:{a.b}", 0, -1)
        payload = json.loads(entry)
        assert payload["uri"] == "a.b"
        assert payload["args"] == "0012"
        assert payload["conn_uuid"] in node.broker.caller.conn_uuids
        key = f"juggler:calls:timeout:{{a.b}}:{payload['msg_uuid']}"
        assert await served.server.command("GET", key) == b"30000"
        assert 29_000 < await served.server.command("PTTL", key) <= 30_000

    @pytest_twisted.ensureDeferred
    async def test_nothing_is_left_behind_by_calls_that_ended(self, served: World) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        await served.callee(echo)
        for n in range(30):
            node.call(peer, n, "capped", b"1", timeout_s=0.05)
        for n in range(20):
            node.call(peer, n, "echo", b"1")
        await eventually(reactor, lambda: len(peer.of("answered")) == 20)
        await eventually(reactor, lambda: len(peer.of("expired")) == 20)
        command = served.server.command

        async def are_gone() -> bool:  # Redis's clock starts a little later than the hub's
            return await command("KEYS", "*") == [b"juggler:calls:{capped}"]

        await until(reactor, are_gone, timeout_s=3)
        assert 0 < await command("PTTL", "juggler:calls:{capped}") <= 600_000

    @pytest_twisted.ensureDeferred
    async def test_a_foreign_callee_with_the_originals_commands_answers(
        self, served: World
    ) -> None:
        assert served.server is not None
        command = served.server.command
        node, peer = await served.node(), Peer()
        node.call(peer, 1, "go", b'"abc"')
        _, entry = await command("BRPOP", "juggler:calls:{go}", 5)
        call = json.loads(entry)
        timeout_key = f"juggler:calls:timeout:{{go}}:{call['msg_uuid']}"
        script = "local r = redis.call('PTTL', KEYS[1]) redis.call('DEL', KEYS[1]) return r"
        left_ms = await command("EVAL", script, 1, timeout_key)
        assert 0 < left_ms <= 5000
        result = json.dumps({**call, "args": "cba"})
        conn_uuid, msg_uuid = call["conn_uuid"], call["msg_uuid"]
        key = f"juggler:results:timeout:{{{conn_uuid}}}:{msg_uuid}"
        await command("SET", key, left_ms, "PX", left_ms)
        await command("LPUSH", f"juggler:results:{{{conn_uuid}}}", result)
        await eventually(reactor, lambda: ("answered", 1, b'"cba"') in peer.told)
        assert not await command("EXISTS", key)

    @pytest_twisted.ensureDeferred
    async def test_a_foreign_server_with_the_originals_commands_is_answered(
        self, served: World
    ) -> None:
        assert served.server is not None
        command = served.server.command
        await served.callee(echo)
        call = {"conn_uuid": "C", "msg_uuid": "M", "uri": "echo", "args": [1, "x"]}
        await command("SET", "juggler:calls:timeout:{echo}:M", 5000, "PX", 5000)
        await command("LPUSH", "juggler:calls:{echo}", json.dumps(call))
        _, entry = await command("BRPOP", "juggler:results:{C}", 5)
        assert json.loads(entry) == call
        assert 0 < await command("PTTL", "juggler:results:timeout:{C}:M") <= 5000

    @pytest.mark.parametrize(
        "junk",
        [
            b"junk",
            b'{"conn_uuid":"c","msg_uuid":"m","uri":"echo","args":%b%b}'
            % (b"[" * 3000, b"]" * 3000),
            b'{"conn_uuid":"c","msg_uuid":"m","uri":"echo","args":"\xff"}',
        ],
        ids=["no JSON", "too deep", "no UTF-8"],
    )
    @pytest_twisted.ensureDeferred
    async def test_what_is_no_call_is_dropped_and_the_next_is_served(
        self, served: World, junk: bytes
    ) -> None:
        assert served.server is not None
        node, peer, command = await served.node(), Peer(), served.server.command
        await node.hub.subscribe(peer, "c", pattern=False)
        await command("RPUSH", "juggler:calls:{echo}", junk)
        await command("RPUSH", f"juggler:results:{{{node.broker.caller.conn_uuids[0]}}}", junk)
        await command("PUBLISH", "c", junk)
        await served.callee(echo)
        node.call(peer, 1, "echo", b"1")
        await eventually(reactor, lambda: ("answered", 1, b"1") in peer.told)


class TestFaults:
    @pytest_twisted.ensureDeferred
    async def test_a_broker_that_is_down_fails_fast(self, served: World) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        await served.server.kill()
        await eventually(reactor, lambda: not node.broker.available)
        node.call(peer, 1, "u")
        await eventually(reactor, lambda: peer.told)
        assert isinstance(peer.of("refused")[0][1], BrokerUnavailable)
        with pytest.raises(BrokerUnavailable):
            await node.hub.publish("c", "m", b"1")
        with pytest.raises(BrokerUnavailable):
            await node.hub.subscribe(peer, "c", pattern=False)
        await served.server.start()
        await served.healed(node)

    @pytest_twisted.ensureDeferred
    async def test_killed_and_restarted_under_load_it_heals_and_resubscribes(
        self, served: World
    ) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        await served.callee(echo)
        await node.hub.subscribe(peer, "c", pattern=False)
        await node.hub.subscribe(peer, "c*", pattern=True)
        count = 0

        def load(calls: int) -> None:
            nonlocal count
            for _ in range(calls):
                node.call(peer, count, "echo", b"%d" % count, timeout_s=1)
                count += 1

        load(10)
        await eventually(reactor, lambda: len(peer.of("answered")) == 10)
        load(10)
        await served.server.kill()
        load(10)
        await served.server.start()
        load(10)
        await served.healed(node)
        await eventually(reactor, lambda: node.hub.pending_calls == 0)
        answered = [request for request, _ in peer.of("answered")]
        ended = answered + peer.of("expired") + [request for request, _ in peer.of("refused")]
        assert sorted(ended) == list(range(count))
        assert set(answered) | set(peer.of("expired")) == set(peer.of("stored"))
        probe = Peer()  # the callee comes back in its own time
        while not probe.of("answered"):
            node.call(probe, None, "echo", b"0", timeout_s=0.2)
            await eventually(reactor, lambda: node.hub.pending_calls == 0)
        # A late result of an expired call is dropped, so new calls meet no old answers.
        after = count
        load(5)
        await eventually(reactor, lambda: node.hub.pending_calls == 0)
        assert {(n, b"%d" % n) for n in range(after, count)} <= set(peer.of("answered"))
        before = len(peer.of("event"))
        await node.hub.publish("c", "m", b"1")
        await eventually(reactor, lambda: len(peer.of("event")) == before + 2)

    @pytest_twisted.ensureDeferred
    async def test_a_silent_broker_is_noticed_and_then_heals(self, served: World) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        served.server.freeze()
        node.call(peer, 1, "u", timeout_s=30)
        await eventually(reactor, lambda: peer.told)
        assert isinstance(peer.of("refused")[0][1], BrokerError)
        assert not node.broker.available
        served.server.thaw()
        await served.healed(node)

    @pytest_twisted.ensureDeferred
    async def test_what_a_hung_broker_does_not_read_is_bounded(self, served: World) -> None:
        assert served.server is not None
        node = await served.node()
        served.server.freeze()
        told: list[str] = []
        payload = b'"' + b"x" * (1 << 20) + b'"'
        for _ in range(60):
            done = node.hub.publish("c", "m", payload)
            done.addErrback(lambda failure: told.append(str(failure.value)))
        assert told == ["Redis does not keep up"] * len(told)
        assert 20 <= len(told) <= 30  # 32 MiB wait here, the kernel may hold some more
        served.server.thaw()
        await served.healed(node)

    @pytest_twisted.ensureDeferred
    async def test_results_of_a_foreign_callee_are_checked(self, served: World) -> None:
        assert served.server is not None
        node, source, peer = await served.node(), await served.source(), Peer()
        for n, args in enumerate((b'"\xff"', b"1e999", b"[" * 40 + b"]" * 40)):
            node.call(peer, n, "u")
            (call,) = await take(source, 1)
            assert await store_result(source, call, args) is None
            await eventually(reactor, lambda n=n: len(peer.of("answered")) == n + 1)
        assert all(b"cannot be sent" in args for _, args in peer.of("answered"))

    @pytest_twisted.ensureDeferred
    async def test_a_broker_lost_while_subscribing_again_is_found_again(
        self, served: World
    ) -> None:
        assert served.server is not None
        command = served.server.command
        node, peer = await served.node(), Peer()
        for n in range(50):
            await node.hub.subscribe(peer, f"c{n}", pattern=False)
        await command("ACL", "SETUSER", "default", "resetchannels")
        await eventually(reactor, lambda: not node.hub.available)
        await command("ACL", "SETUSER", "default", "allchannels")
        await served.healed(node)
        await node.hub.publish("c49", "m", b"1")
        await eventually(reactor, lambda: peer.of("event"))

    @pytest_twisted.ensureDeferred
    async def test_our_own_pause_is_not_taken_for_a_silent_broker(self, served: World) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        await served.callee(echo)

        async def call(n: int) -> None:
            node.call(peer, n, "echo", b"1")
            await eventually(reactor, lambda: ("answered", n, b"1") in peer.told)

        async def connections() -> set[bytes]:
            listing = await served.server.command("CLIENT", "LIST")
            lines = [line.split() for line in listing.splitlines() if b"name=pelotontx" in line]
            return {line[0] for line in lines}

        await call(0)
        before = await connections()
        node.call(peer, "in flight", "echo", b"1")
        resume_at_s = reactor.seconds() + 1.5  # reply_timeout_s is 1 here
        while reactor.seconds() < resume_at_s:
            """The process stands still."""
        for n in range(1, 20):
            await call(n)
        assert ("answered", "in flight", b"1") in peer.told
        assert await connections() == before

    @pytest_twisted.ensureDeferred
    async def test_forgotten_scripts_are_sent_again(self, served: World) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        await served.callee(echo)
        for n in range(2):
            await served.server.command("SCRIPT", "FLUSH")
            node.call(peer, n, "echo", b"1")
            await eventually(reactor, lambda n=n: ("answered", n, b"1") in peer.told)

    @pytest_twisted.ensureDeferred
    async def test_a_server_and_a_callee_hold_a_constant_number_of_connections(
        self, served: World
    ) -> None:
        assert served.server is not None
        node, peer = await served.node(), Peer()
        await served.callee(echo)
        for n in range(10):
            node.call(peer, n, "echo", b"1")
            await node.hub.subscribe(peer, f"c{n}", pattern=False)
        await eventually(reactor, lambda: len(peer.of("answered")) == 10)
        clients = (await served.server.command("CLIENT", "LIST")).decode()
        roles = Counter(re.findall(r"name=pelotontx-(\w+)-", clients))
        if served.kind == "cluster":  # three masters; three URIs in three slots
            assert roles == {"commands": 2 * 3, "events": 1, "results": 3, "takes": 3}
        else:  # functions of two kinds: those that are awaited, those that run in threads
            assert roles == {"commands": 2, "events": 1, "results": 1, "takes": 2}


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
            callee.function(uri)(_echo)
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
            callee.function(uri)(_echo)
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
