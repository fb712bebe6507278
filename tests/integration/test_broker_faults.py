"""Brokers that fail, are silent or forget."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.errors import BrokerError, BrokerUnavailable
from tests.support.broker_case import echo, take
from tests.support.brokers import Peer, World, store_result
from tests.support.servers import eventually


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
