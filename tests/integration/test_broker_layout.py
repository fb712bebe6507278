"""What other programs on the same Redis see of ours, and ours of them."""

from __future__ import annotations

import json

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.support.broker_case import echo
from tests.support.brokers import Peer, World
from tests.support.redis_node import until
from tests.support.servers import eventually


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
