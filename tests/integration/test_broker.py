"""The broker contract: the same claims over every kind of broker."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pelotontx.backend.callee import Callee
from pelotontx.errors import CallExpired, QueueFull
from tests.integration.conftest import LoggedErrors
from tests.support.broker_case import echo, take
from tests.support.brokers import Peer, World, store_result
from tests.support.servers import eventually


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
