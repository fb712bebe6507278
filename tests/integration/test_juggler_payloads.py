"""The juggler protocol below its messages: Redis' side, fragments, and payloads byte for byte."""

from __future__ import annotations

import json
import re

import pytest
import pytest_twisted
from twisted.internet import reactor

from pelotontx.flow import later
from tests.support.juggler_case import JugglerCase, juggler, juggler_server
from tests.support.raw_juggler import (
    ACK,
    CALL,
    CONTINUATION,
    EVNT,
    PING,
    PUB,
    RES,
    SUB,
    TEXT,
    encode_frame,
    raw_member,
)
from tests.support.redis_node import until

__all__ = ["juggler", "juggler_server"]

ID = "9b0e3c1a-6f2d-4c57-8a1b-0123456789ab"
_META = f'{{"meta":{{"type":1,"uuid":"{ID}"}}'


class TestRedisLayout:
    @pytest_twisted.ensureDeferred
    async def test_a_waiting_call_is_an_entry_and_a_key_with_its_time(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        await peer.request(CALL, uri="by.hand", args={"a": 1}, timeout=7_500_000_000)
        (timeout_key,) = await juggler.keys("juggler:calls:timeout:*")
        (entry,) = await juggler.redis.command("LRANGE", "juggler:calls:{by.hand}", 0, -1)
        call = json.loads(entry)
        assert call.items() >= {"uri": "by.hand", "args": {"a": 1}}.items()
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", call["msg_uuid"])
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", call["conn_uuid"])
        assert timeout_key == f"juggler:calls:timeout:{{by.hand}}:{call['msg_uuid']}"
        assert await juggler.redis.command("GET", timeout_key) == b"7500"
        assert 0 < await juggler.redis.command("PTTL", timeout_key) <= 7500

    @pytest_twisted.ensureDeferred
    async def test_without_args_the_entry_has_none(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        await peer.request(CALL, uri="by.hand")
        assert "args" not in (await juggler.take("by.hand")).call

    @pytest.mark.parametrize(
        ("nanoseconds", "ms"),
        [(0, 60_000), (1, 60_000), (999_999, 60_000), (-5, 60_000), (10**18, 300_000)],
    )
    @pytest_twisted.ensureDeferred
    async def test_below_a_millisecond_a_call_has_a_minute_and_never_more_than_five(
        self, juggler: JugglerCase, nanoseconds: int, ms: int
    ) -> None:
        peer = await juggler.connect()
        await peer.request(CALL, uri="by.hand", args=1, timeout=nanoseconds)
        waiting = await juggler.take("by.hand")
        assert await juggler.redis.command("GET", waiting.timeout_key) == b"%d" % ms

    @pytest_twisted.ensureDeferred
    async def test_a_list_that_nobody_serves_goes_away_by_itself(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        await peer.request(CALL, uri="by.hand", args=1, timeout=300 * 10**9)
        life_ms = await juggler.redis.command("PTTL", "juggler:calls:{by.hand}")
        assert 2 * 300_000 - 30_000 < life_ms <= 24 * 3600 * 1000

    @pytest_twisted.ensureDeferred
    async def test_an_event_has_its_channels_own_name_and_two_members(
        self, juggler: JugglerCase
    ) -> None:
        peer, probe = await juggler.connect(), await juggler.connect()
        await probe.request(SUB, channel="raw é {x}", pattern=False)
        names = await juggler.redis.command("PUBSUB", "CHANNELS", "raw*")
        assert [name.decode() for name in names] == ["raw é {x}"]
        id_ = peer.send(PUB, channel="raw é {x}", args=[1, "0012"])
        await probe.until(lambda: probe.of(EVNT))
        assert probe.of(EVNT)[0].for_uuid == id_

    @pytest_twisted.ensureDeferred
    async def test_results_of_all_peers_come_through_one_list(self, juggler: JugglerCase) -> None:
        peers = [await juggler.connect() for _ in range(3)]
        ids = [peer.send(CALL, uri="by.hand", args=n) for n, peer in enumerate(peers)]
        taken = [await juggler.take("by.hand") for _ in peers]
        assert len({waiting.call["conn_uuid"] for waiting in taken}) == 1
        for waiting in reversed(taken):
            await juggler.answer(waiting, waiting.args_text)
        for n, (peer, id_) in enumerate(zip(peers, ids, strict=True)):
            assert (await peer.answer(id_, RES)).payload["args"] == n

    @pytest_twisted.ensureDeferred
    async def test_redis_connections_do_not_grow_with_peers(self, juggler: JugglerCase) -> None:
        async def connections() -> int:
            return len((await juggler.redis.command("CLIENT", "LIST")).splitlines())

        await juggler.still_serves()
        before = await connections()
        peers = [await juggler.connect() for _ in range(40)]
        for n, peer in enumerate(peers):
            await peer.request(SUB, channel=f"own.{n}", pattern=False)
            await peer.call("test.echo", n)
        assert await connections() == before

    @pytest_twisted.ensureDeferred
    async def test_after_the_work_nothing_is_left(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        for n in range(20):
            await peer.call("test.echo", n)
        (await juggler.connect()).abort()
        await juggler.still_serves()
        assert await juggler.keys("juggler:calls:*") == []

        async def is_clean() -> bool:
            return await juggler.keys("juggler:results:*") == []

        await until(reactor, is_clean)


class TestFragments:
    @pytest_twisted.ensureDeferred
    async def test_a_message_may_come_in_parts_with_pings_between(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        text = json.dumps(
            {"meta": {"type": CALL, "uuid": ID}, "payload": {"uri": "test.echo", "args": "é✓"}},
            ensure_ascii=False,
        ).encode()
        for n in range(len(text)):  # a part for each byte, UTF-8 cut too
            peer.send_frame(TEXT if n == 0 else CONTINUATION, text[n : n + 1], fin=False)
            if n % 20 == 0:
                peer.send_frame(PING, b"%d" % n)
        peer.send_frame(CONTINUATION, b"", fin=True)
        assert (await peer.answer(ID, RES)).payload["args"] == "é✓"
        assert peer.pongs == [b"%d" % n for n in range(0, len(text), 20)]

    @pytest_twisted.ensureDeferred
    async def test_bytes_may_drip(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        texts = [f'{_META},"payload":{{"uri":"test.echo","args":{n}}}}}' for n in range(2)]
        for byte in b"".join(encode_frame(TEXT, text.encode()) for text in texts):
            peer.send_bytes(bytes([byte]))
            await later(reactor, 0)
        await peer.until(lambda: len(peer.of(RES)) == 2)
        assert [res.payload["args"] for res in peer.of(RES)] == [0, 1]

    @pytest_twisted.ensureDeferred
    async def test_a_long_message_in_three_parts(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        args = "x" * 60_000
        text = _META + f',"payload":{{"uri":"test.echo","args":"{args}"}}}}'
        peer.send_text(text, cuts=[10, 40_000])
        assert (await peer.answer(ID, RES)).payload["args"] == args


EXACT = {
    "digits as text": '"0012"',
    "nothing": "null",
    "booleans": "[true,false]",
    "empty": '[[],{},""]',
    "spaces": '{ "b" : 1 ,\t"a":[ 1 , 2 ]\r\n}',
    "order of keys": '{"b":1,"a":2,"":3}',
    "the same key twice": '{"a":1,"a":2}',
    "64 bits": "[18446744073709551615,-9223372036854775808,9007199254740993]",
    "floats": "[1.50,1e5,1E+2,-0.0,-0,0.1e-7,1e308,5e-324,123456789012345678.25]",
    "many digits": "0.1000000000000000055511151231257827021181583404541015625",
    "escapes": r'"\u0000\u001f\/\b\f\n\r\t\"\\\u00e9\u2713"',
    "a pair of surrogates": r'"\ud83d\ude00"',
    "unicode": '"é✓😀\u2028\u2029\ufeff"',
    "DEL": '"\x7f"',
    "names of ours": '{"meta":{"type":9},"payload":{"args":1},"for":"x"}',
    "what looks like a script": '"</script><!--\\u0027"',
    "as deep as allowed": "[" * 32 + "1" + "]" * 32,
    "as many keys as allowed": json.dumps({str(n): n for n in range(1024)}),
    "braces in text": json.dumps("{" * 2000),
}

REFUSED = {
    "overflow": "1e400",
    "overflow below": "[-1e400]",
    "past 64 bits": "18446744073709551616",
    "past 64 bits below": "-9223372036854775809",
    "half a pair": r'"\ud800"',
    "the other half": r'{"a":["\udc00x"]}',
    "halves the wrong way": r'"\ude00\ud83d"',
    "half a pair as key": r'{"\ud800":1}',
    "too deep": "[" * 33 + "]" * 33,
    "far too deep": "[" * 20_000 + "]" * 20_000,
    "too many keys": json.dumps({str(n): n for n in range(1025)}),
    "NaN": "NaN",
    "Infinity": "[-Infinity]",
    "leading zero": "0012",
    "hexadecimal": "0x1F",
    "single quotes": "'a'",
    "trailing comma": "[1,]",
    "comment": "1/**/",
    "raw control character": '"\x01"',
    "bad escape": r'"\x41"',
    "plus": "+1",
    "nothing": "",
}


class TestPayloads:
    @pytest.mark.parametrize("args", EXACT.values(), ids=EXACT)
    @pytest_twisted.ensureDeferred
    async def test_args_and_results_are_kept_byte_for_byte(
        self, juggler: JugglerCase, args: str
    ) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="exact", pattern=False)
        id_ = peer.send_call("by.hand", args)
        waiting = await juggler.take("by.hand")
        assert waiting.args_text == args
        await juggler.answer(waiting, args)
        assert (await peer.answer(id_, RES)).args_text == args

        text = (
            f'{{"meta":{{"type":2,"uuid":"{ID}"}},"payload":{{"channel":"exact","args":{args}}}}}'
        )
        peer.send_text(text)
        assert (await peer.answer(ID, EVNT)).args_text == args

    @pytest.mark.parametrize("args", EXACT.values(), ids=EXACT)
    @pytest_twisted.ensureDeferred
    async def test_test_echo_gives_back_what_it_got(self, juggler: JugglerCase, args: str) -> None:
        peer = await juggler.connect()
        res = await peer.answer(peer.send_call("test.echo", args), RES)
        assert res.args_text == args

    @pytest.mark.parametrize("args", REFUSED.values(), ids=REFUSED)
    @pytest_twisted.ensureDeferred
    async def test_what_is_not_carried_closes_with_1007(
        self, juggler: JugglerCase, args: str
    ) -> None:
        peer = await juggler.connect()
        peer.send_call("by.hand", args)
        code, reason = await peer.closed()
        assert code == 1007
        assert reason
        assert await juggler.keys("juggler:calls:*") == []

    @pytest_twisted.ensureDeferred
    async def test_bad_utf8_in_args_closes_with_1007(self, juggler: JugglerCase) -> None:
        for args in (b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"'):
            peer = await juggler.connect()
            peer.send_call("by.hand", args)
            assert (await peer.closed())[0] == 1007

    @pytest.mark.parametrize("args", ["1e400", r'"\ud800"', "[" * 40 + "]" * 40, '"\x01"'])
    @pytest_twisted.ensureDeferred
    async def test_another_programs_result_that_cannot_be_carried_is_an_error(
        self, juggler: JugglerCase, args: str
    ) -> None:
        peer = await juggler.connect()
        ids = [peer.send(CALL, uri="by.hand", args=n, timeout=2 * 10**9) for n in range(2)]
        first, second = [await juggler.take("by.hand") for _ in ids]
        await juggler.answer(first, args)
        await juggler.answer(second, "2")
        assert (await peer.answer(ids[1], RES)).payload["args"] == 2
        for res in peer.answers_to(ids[0])[1:]:  # none, where it was not even JSON
            assert res.payload["args"].keys() == {"error"}

    @pytest_twisted.ensureDeferred
    async def test_names_are_kept_too(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        for name in ("a b", "é✓", "{x}", "}{", '"', "\\", "\x00", "*", "a\nb", "x" * 255):
            id_ = peer.send(CALL, uri=name, args=1)
            waiting = await juggler.take(name)
            assert waiting.call["uri"] == name
            await juggler.answer(waiting, "1")
            assert (await peer.answer(id_, RES)).payload["uri"] == name
            await peer.request(SUB, channel=name, pattern=False)
            event = await peer.answer(peer.send(PUB, channel=name, args=1), EVNT)
            assert event.payload["channel"] == name

    @pytest_twisted.ensureDeferred
    async def test_of_a_member_that_is_there_twice_one_is_meant_everywhere(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        peer.send_text(_META + ',"payload":{"uri":"by.one","uri":"by.two","args":1,"args":2}}')
        ack = await peer.answer(ID, ACK)
        waiting = await juggler.take(ack.payload["uri"])
        assert waiting.call["uri"] == ack.payload["uri"]
        assert raw_member(waiting.value.decode(), "args") == "2"
