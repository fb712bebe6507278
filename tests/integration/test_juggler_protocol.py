"""The juggler protocol as a client of somebody else's making sees it: messages, order, refusals."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.support.juggler_case import (
    CALL_CAP,
    CALLS_LIMIT,
    TEST_FUNCTIONS,
    JugglerCase,
    juggler,
    juggler_server,
)
from tests.support.raw_juggler import (
    ACK,
    BINARY,
    CALL,
    CLOSE,
    CONTINUATION,
    EVNT,
    NACK,
    PUB,
    RES,
    SUB,
    TEXT,
    UNSB,
    Message,
    RefusedError,
    encode_frame,
)

__all__ = ["juggler", "juggler_server"]

MANY = 300
ID = "9b0e3c1a-6f2d-4c57-8a1b-0123456789ab"


def assert_is(came: Message, type_: int, /, **payload: Any) -> None:
    """The whole message: these keys and values, a fresh v4 uuid, and nothing else."""
    assert came.value.keys() == {"meta", "payload"}
    assert came.value["meta"].keys() == {"type", "uuid"}
    assert came.type == type_
    assert uuid.UUID(came.uuid).version == 4
    expected = {name.removesuffix("_"): value for name, value in payload.items()}
    assert came.payload == expected
    for name, value in expected.items():
        assert type(came.payload[name]) is type(value)


class TestOpening:
    @pytest.mark.parametrize("offered", [("juggler.0",), ("chat", "juggler.0", "juggler.1")])
    @pytest_twisted.ensureDeferred
    async def test_juggler_0_is_chosen_wherever_it_stands(
        self, juggler: JugglerCase, offered: tuple[str, ...]
    ) -> None:
        peer = await juggler.connect(subprotocols=offered)
        assert peer.subprotocol == "juggler.0"

    @pytest.mark.parametrize("offered", [(), ("chat",), ("juggler.00", "Xjuggler.0")])
    @pytest_twisted.ensureDeferred
    async def test_without_juggler_0_the_opening_is_refused(
        self, juggler: JugglerCase, offered: tuple[str, ...]
    ) -> None:
        with pytest.raises(RefusedError) as caught:
            await juggler.connect(subprotocols=offered)
        assert caught.value.status == 400
        assert b"juggler.0" in caught.value.body

    @pytest_twisted.ensureDeferred
    async def test_a_plain_get_is_told_400(self, juggler: JugglerCase) -> None:
        assert (await juggler.server.get("/ws"))[0] == 400

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://good.example",
            "https://good.example.evil.example",
            "https://good.example:8443",
            "null",
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_a_page_from_elsewhere_is_told_403(
        self, juggler: JugglerCase, origin: str
    ) -> None:
        with pytest.raises(RefusedError) as caught:
            await juggler.connect(origin=origin)
        assert caught.value.status == 403

    @pytest_twisted.ensureDeferred
    async def test_pages_of_ours_and_listed_ones_may_connect(self, juggler: JugglerCase) -> None:
        for origin in ("https://good.example", f"http://127.0.0.1:{juggler.server.port}"):
            peer = await juggler.connect(origin=origin)
            assert (await peer.call("test.echo", origin)).payload["args"] == origin


class TestShapes:
    @pytest_twisted.ensureDeferred
    async def test_a_call_is_acked_and_answered(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        id_ = peer.send(CALL, uri="test.echo", args={"a": [1]}, timeout=10**9)
        await peer.answer(id_, RES)
        ack, res = peer.messages
        assert_is(ack, ACK, for_=id_, for_type=CALL, uri="test.echo")
        assert_is(res, RES, for_=id_, uri="test.echo", args={"a": [1]})

    @pytest.mark.parametrize("type_", [SUB, UNSB, PUB])
    @pytest_twisted.ensureDeferred
    async def test_what_names_a_channel_is_acked(self, juggler: JugglerCase, type_: int) -> None:
        peer = await juggler.connect()
        fields: dict[str, Any] = {"args": 1} if type_ == PUB else {"pattern": False}
        id_ = peer.send(type_, channel="acked", **fields)
        await peer.answer(id_, ACK)
        (ack,) = peer.messages
        assert_is(ack, ACK, for_=id_, for_type=type_, channel="acked")

    @pytest_twisted.ensureDeferred
    async def test_an_event_names_its_pub_and_the_pattern_only_if_one_matched(
        self, juggler: JugglerCase
    ) -> None:
        plain, globbing = await juggler.connect(), await juggler.connect()
        await plain.request(SUB, channel="news.é", pattern=False)
        await globbing.request(SUB, channel="new?.*", pattern=True)
        id_ = plain.send(PUB, channel="news.é", args="x")
        await plain.until(lambda: plain.of(EVNT))
        await globbing.until(lambda: globbing.of(EVNT))
        assert_is(plain.of(EVNT)[0], EVNT, for_=id_, channel="news.é", args="x")
        (event,) = globbing.of(EVNT)
        assert_is(event, EVNT, for_=id_, channel="news.é", pattern="new?.*", args="x")

    @pytest_twisted.ensureDeferred
    async def test_a_call_that_cannot_be_stored_gets_a_nack(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        await juggler.redis.command("RPUSH", "juggler:calls:{full}", *["x"] * CALL_CAP)
        id_ = peer.send(CALL, uri="full", args=1, timeout=0)
        await peer.answer(id_, NACK)
        (nack,) = peer.messages
        message = "list capacity exceeded"
        assert_is(nack, NACK, for_=id_, for_type=CALL, uri="full", code=500, message=message)
        assert await juggler.keys("juggler:calls:*") == ["juggler:calls:{full}"]
        assert await juggler.redis.command("LLEN", "juggler:calls:{full}") == CALL_CAP

    @pytest_twisted.ensureDeferred
    async def test_a_callees_failure_is_a_result(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        res = await peer.call("test.reverse", {"not": "text"})
        assert res.payload["args"].keys() == {"error"}
        assert isinstance(res.payload["args"]["error"]["message"], str)

    @pytest_twisted.ensureDeferred
    async def test_args_may_be_left_out(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="bare", pattern=False)
        await peer.request(PUB, channel="bare")
        await peer.until(lambda: peer.of(EVNT))
        assert peer.of(EVNT)[0].payload["args"] is None
        res = await peer.answer(peer.send(CALL, uri="test.echo"), RES)
        assert res.payload["args"] is None

    @pytest_twisted.ensureDeferred
    async def test_expiry_is_silent_and_a_late_result_is_dropped(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        late = peer.send(CALL, uri="by.hand", args=1, timeout=20_000_000)
        # Behind this one the first one's time is over.
        await peer.call("test.delay", "200")
        await juggler.answer(await juggler.take("by.hand"), '"late"')
        # Results leave one list, in order: behind this one the late one has been read.
        await peer.call("test.echo")
        assert [answer.type for answer in peer.answers_to(late)] == [ACK]
        assert {message.type for message in peer.messages} == {ACK, RES}

    @pytest_twisted.ensureDeferred
    async def test_a_result_that_is_too_large_becomes_an_error(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        id_ = peer.send(CALL, uri="by.hand", args=1)
        await juggler.answer(await juggler.take("by.hand"), json.dumps("x" * 70_000))
        res = await peer.answer(id_, RES)
        assert "bytes" in res.payload["args"]["error"]["message"]

    @pytest_twisted.ensureDeferred
    async def test_results_that_are_none_do_no_harm(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        id_ = peer.send(CALL, uri="by.hand", args=1)
        waiting = await juggler.take("by.hand")
        results = f"juggler:results:{{{waiting.call['conn_uuid']}}}"
        for junk in ("", "x", "[]", '{"conn_uuid":1}', "\xff"):
            await juggler.redis.command("LPUSH", results, junk)
        stranger = {**waiting.call, "msg_uuid": ID}
        await juggler.redis.command("LPUSH", results, json.dumps(stranger))
        await juggler.answer(waiting, "2")
        assert (await peer.answer(id_, RES)).payload["args"] == 2
        assert len(peer.messages) == 2


def _frame(type_: Any, payload: Any, uuid_: Any = ID) -> bytes:
    message = {"meta": {"type": type_, "uuid": uuid_}, "payload": payload}
    return encode_frame(TEXT, json.dumps(message).encode())


_CALL = {"uri": "test.echo", "timeout": 0, "args": 1}
_META = f'{{"meta":{{"type":1,"uuid":"{ID}"}}'

BAD_INPUT = {
    "no JSON": (encode_frame(TEXT, b"hello"), 1007),
    "cut JSON": (encode_frame(TEXT, b'{"meta":'), 1007),
    "two values": (encode_frame(TEXT, (_META + ',"payload":{"uri":"u"}}{}').encode()), 1007),
    "nothing": (encode_frame(TEXT, b""), 1007),
    "bad UTF-8": (encode_frame(TEXT, b'{"meta":"\xff"}'), 1007),
    "binary": (encode_frame(BINARY, b"{}"), 1003),
    "an array": (encode_frame(TEXT, b"[]"), 1008),
    "no meta": (encode_frame(TEXT, b'{"payload":{"uri":"u"}}'), 1008),
    "no payload": (encode_frame(TEXT, (_META + "}").encode()), 1008),
    "null payload": (_frame(CALL, None), 1008),
    "empty payload": (_frame(CALL, {}), 1008),
    "no channel": (_frame(SUB, {"pattern": True}), 1008),
    "empty channel": (_frame(PUB, {"channel": "", "args": 1}), 1008),
    "number as uri": (_frame(CALL, {**_CALL, "uri": 5}), 1008),
    "text as timeout": (_frame(CALL, {**_CALL, "timeout": "5s"}), 1008),
    "a fraction as timeout": (_frame(CALL, {**_CALL, "timeout": 1.5}), 1008),
    "a byte order mark": (encode_frame(TEXT, "\ufeff{}".encode()), 1007),
    "text as pattern": (_frame(SUB, {"channel": "c", "pattern": "c*"}), 1008),
    "text as type": (_frame("CALL", _CALL), 1008),
    "no uuid": (encode_frame(TEXT, b'{"meta":{"type":1},"payload":{"uri":"u"}}'), 1008),
    "short uuid": (_frame(CALL, _CALL, ID[:-1]), 1008),
    "uuid and more": (_frame(CALL, _CALL, ID + "\n"), 1008),
    "uuid without dashes": (_frame(CALL, _CALL, ID.replace("-", "")), 1008),
    "number as uuid": (_frame(CALL, _CALL, 7), 1008),
    **{f"type {type_}": (_frame(type_, _CALL), 1008) for type_ in (0, 5, 6, 11, 255, 257, -1)},
    **{f"server's type {type_}": (_frame(type_, _CALL), 1002) for type_ in (NACK, ACK, RES, EVNT)},
    "EXP": (_frame(256, {"for": ID, "uri": "u"}), 1002),
    "over the limit": (_frame(CALL, {**_CALL, "args": "x" * (64 << 10)}), 1009),
    "over the limit, in parts": (
        encode_frame(TEXT, b'"' + b"x" * 40_000, fin=False)
        + encode_frame(CONTINUATION, b"x" * 40_000),
        1009,
    ),
    "too many parts": (
        encode_frame(TEXT, b"", fin=False) + encode_frame(CONTINUATION, b"", fin=False) * 1100,
        1009,
    ),
    "reserved opcode": (encode_frame(3, b"{}"), 1002),
    "part of nothing": (encode_frame(CONTINUATION, b"{}"), 1002),
    "unmasked": (b"\x81\x02{}", 1002),
    "reserved bit": (b"\xc1" + encode_frame(TEXT, b"{}")[1:], 1002),
}


class TestBadInput:
    @pytest.mark.parametrize(("sent", "code"), BAD_INPUT.values(), ids=BAD_INPUT)
    @pytest_twisted.ensureDeferred
    async def test_it_closes_the_connection_with_a_code_and_a_reason(
        self, juggler: JugglerCase, sent: bytes, code: int
    ) -> None:
        peer = await juggler.connect()
        peer.send_bytes(sent)
        closed, reason = await peer.closed()
        assert closed == code
        assert reason
        assert peer.messages == []

    @pytest_twisted.ensureDeferred
    async def test_others_notice_nothing(self, juggler: JugglerCase) -> None:
        bystander = await juggler.connect()
        id_ = bystander.send(CALL, uri="test.delay", args="100")
        for sent, _ in BAD_INPUT.values():
            (await juggler.connect()).send_bytes(sent)
        assert (await bystander.answer(id_, RES)).payload["args"] == 100
        assert await bystander.call("test.echo")

    @pytest_twisted.ensureDeferred
    async def test_what_was_asked_before_the_bad_message_is_no_more_answered(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        peer.send(CALL, uri="by.hand", args=1)
        await peer.until(lambda: peer.of(ACK))
        peer.send_text("{")
        assert (await peer.closed())[0] == 1007
        await juggler.answer(await juggler.take("by.hand"), "1")
        await juggler.still_serves()
        assert peer.of(RES) == []

    @pytest_twisted.ensureDeferred
    async def test_a_line_feed_behind_a_message_is_fine(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        peer.send_text(_META + ',"payload":{"uri":"test.echo","args":7}}\n')
        assert (await peer.answer(ID, RES)).payload["args"] == 7


class TestTolerance:
    @pytest_twisted.ensureDeferred
    async def test_members_that_nobody_knows_are_ignored(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        meta = {"type": CALL, "uuid": ID, "trace": {"a": [1]}}
        payload = {**_CALL, "channel": "c", "for": "x", "priority": 5}
        peer.send_text(json.dumps({"v": 2, "meta": meta, "payload": payload}))
        assert_is(await peer.answer(ID, RES), RES, for_=ID, uri="test.echo", args=1)

    @pytest_twisted.ensureDeferred
    async def test_without_pattern_a_subscription_is_plain(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="c*")
        await peer.request(PUB, channel="cd", args=1)
        await peer.request(PUB, channel="c*", args=2)
        await peer.until(lambda: peer.of(EVNT))
        assert_is(peer.of(EVNT)[0], EVNT, for_=peer.of(ACK)[-1].for_uuid, channel="c*", args=2)

    @pytest.mark.parametrize(
        "id_", [ID.upper(), "00000000-0000-0000-0000-000000000000", ID.replace("4c57", "1c57")]
    )
    @pytest_twisted.ensureDeferred
    async def test_any_uuid_comes_back_as_it_was(self, juggler: JugglerCase, id_: str) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="ids")
        peer.send(CALL, uuid_=id_, uri="test.echo", args=1)
        await peer.answer(id_, RES)
        peer.send(PUB, uuid_=id_, channel="ids", args=1)
        await peer.answer(id_, EVNT)
        assert [answer.type for answer in peer.answers_to(id_)] == [ACK, RES, ACK, EVNT]

    @pytest_twisted.ensureDeferred
    async def test_messages_may_come_with_the_opening_request(self, juggler: JugglerCase) -> None:
        frame = encode_frame(TEXT, f'{_META},"payload":{json.dumps(_CALL)}}}'.encode())
        peer = await juggler.connect(early=frame)
        assert (await peer.answer(ID, RES)).payload["args"] == 1

    @pytest_twisted.ensureDeferred
    async def test_behind_a_close_frame_nothing_is_done(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        call = f'{_META},"payload":{{"uri":"by.hand"}}}}'.encode()
        peer.send_bytes(encode_frame(CLOSE, b"\x03\xe8") + encode_frame(TEXT, call))
        assert (await peer.closed())[0] == 1000
        assert await juggler.keys("juggler:calls:*") == []


class TestOrder:
    @pytest_twisted.ensureDeferred
    async def test_each_ack_comes_before_its_result_and_all_in_order(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        ids = peer.send_many(
            CALL, [{"uri": "test.echo", "timeout": 0, "args": n} for n in range(MANY)]
        )
        await peer.until(lambda: len(peer.of(RES)) == MANY)
        assert [ack.for_uuid for ack in peer.of(ACK)] == ids
        assert [res.payload["args"] for res in peer.of(RES)] == list(range(MANY))
        assert [res.for_uuid for res in peer.of(RES)] == ids
        first: dict[str, int] = {}
        for message in peer.messages:
            first.setdefault(message.for_uuid, message.type)
        assert set(first.values()) == {ACK}
        assert len(peer.messages) == 2 * MANY

    @pytest_twisted.ensureDeferred
    async def test_calls_of_one_uri_wait_in_the_order_in_which_they_came(
        self, juggler: JugglerCase
    ) -> None:
        one, two = await juggler.connect(), await juggler.connect()
        sent = []
        for peer, start in ((one, 0), (two, 100), (one, 200)):
            numbers = list(range(start, start + 20))
            ids = peer.send_many(CALL, [{"uri": "by.hand", "args": n} for n in numbers])
            await peer.answer(ids[-1], ACK)
            sent += numbers
        taken = [(await juggler.take("by.hand")).call["args"] for _ in sent]
        assert taken == sent

    @pytest_twisted.ensureDeferred
    async def test_each_ack_of_a_pub_comes_before_its_event_and_all_in_order(
        self, juggler: JugglerCase
    ) -> None:
        peer, other = await juggler.connect(), await juggler.connect()
        for subscriber in (peer, other):
            await subscriber.request(SUB, channel="ordered", pattern=False)
        peer.messages.clear()
        ids = peer.send_many(PUB, [{"channel": "ordered", "args": n} for n in range(MANY)])
        await peer.until(lambda: len(peer.messages) == 2 * MANY)
        await other.until(lambda: len(other.of(EVNT)) == MANY)
        assert [ack.for_uuid for ack in peer.of(ACK)] == ids
        assert [event.for_uuid for event in peer.of(EVNT)] == ids
        assert [event.payload["args"] for event in other.of(EVNT)] == list(range(MANY))
        first: dict[str, int] = {}
        for message in peer.messages:
            first.setdefault(message.for_uuid, message.type)
        assert set(first.values()) == {ACK}

    @pytest_twisted.ensureDeferred
    async def test_a_mixture_is_answered_completely(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="mixed", pattern=False)
        peer.messages.clear()
        calls, pubs = [], []
        for n in range(MANY):
            calls.append(peer.send(CALL, uri="test.reverse", args=f"{n:03d}"))
            pubs.append(peer.send(PUB, channel="mixed", args=n))
        await peer.until(lambda: len(peer.messages) == 4 * MANY)
        for id_, follows in [*((i, RES) for i in calls), *((i, EVNT) for i in pubs)]:
            assert [answer.type for answer in peer.answers_to(id_)] == [ACK, follows]

    @pytest_twisted.ensureDeferred
    async def test_two_peers_with_the_same_id_get_their_own_answers(
        self, juggler: JugglerCase
    ) -> None:
        one, two = await juggler.connect(), await juggler.connect()
        one.send(CALL, uuid_=ID, uri="by.hand", args="one")
        two.send(CALL, uuid_=ID, uri="by.hand", args="two")
        for _ in range(2):
            waiting = await juggler.take("by.hand")
            await juggler.answer(waiting, waiting.args_text)
        assert (await one.answer(ID, RES)).payload["args"] == "one"
        assert (await two.answer(ID, RES)).payload["args"] == "two"


class TestEvents:
    @pytest_twisted.ensureDeferred
    async def test_plain_and_matching_patterns_each_bring_an_event(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="a.b", pattern=False)
        await peer.request(SUB, channel="a.*", pattern=True)
        await peer.request(SUB, channel="[ab].?", pattern=True)
        await peer.request(PUB, channel="a.b", args=1)
        await peer.until(lambda: len(peer.of(EVNT)) == 3)
        patterns = [event.payload.get("pattern") for event in peer.of(EVNT)]
        assert sorted(patterns, key=str) == sorted([None, "a.*", "[ab].?"], key=str)

    @pytest_twisted.ensureDeferred
    async def test_unsb_ends_one_subscription_alone(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="a.b", pattern=False)
        await peer.request(SUB, channel="a.*", pattern=True)
        await peer.request(UNSB, channel="a.*", pattern=False)  # never subscribed plainly
        await peer.request(UNSB, channel="a.b", pattern=False)
        await peer.request(PUB, channel="a.b", args=1)
        await peer.request(UNSB, channel="a.*", pattern=True)
        await peer.request(PUB, channel="a.b", args=2)
        await peer.request(SUB, channel="end", pattern=False)
        await peer.request(PUB, channel="end", args=3)
        await peer.until(lambda: [e for e in peer.of(EVNT) if e.payload["args"] == 3])
        told = [(event.payload.get("pattern"), event.payload["args"]) for event in peer.of(EVNT)]
        assert told == [("a.*", 1), (None, 3)]

    @pytest_twisted.ensureDeferred
    async def test_subscribing_twice_is_the_same_as_once(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        for channel in ("twice", "twice", "end"):
            await peer.request(SUB, channel=channel, pattern=False)
        await peer.request(PUB, channel="twice", args=1)
        await peer.request(PUB, channel="end", args=2)
        await peer.until(lambda: [e for e in peer.of(EVNT) if e.payload["args"] == 2])
        assert [event.payload["args"] for event in peer.of(EVNT)] == [1, 2]

    @pytest_twisted.ensureDeferred
    async def test_other_programs_events_arrive_and_junk_does_no_harm(
        self, juggler: JugglerCase
    ) -> None:
        peer = await juggler.connect()
        await peer.request(SUB, channel="outside", pattern=False)
        for junk in ("", "x", "[]", '{"msg_uuid":1}', '{"msg_uuid":"a","args":1e400}'):
            await juggler.redis.command("PUBLISH", "outside", junk)
        await juggler.redis.command("PUBLISH", "outside", f'{{"msg_uuid":"{ID}"}}')
        value = f'{{"args":"0012", "msg_uuid":"{ID}", "more":1}}\n'
        await juggler.redis.command("PUBLISH", "outside", value)
        await peer.until(lambda: len(peer.of(EVNT)) == 2)
        bare, full = peer.of(EVNT)
        assert_is(bare, EVNT, for_=ID, channel="outside", args=None)
        assert_is(full, EVNT, for_=ID, channel="outside", args="0012")


ALLOWED = {
    "call": {CALL},
    "PUB": {PUB},
    " sub , Unsb ": {SUB, UNSB},
    "call,bogus": {CALL},
    "*": {CALL, PUB, SUB, UNSB},
    "call,*": {CALL, PUB, SUB, UNSB},
    "": {CALL, PUB, SUB, UNSB},
    "bogus,,": {CALL, PUB, SUB, UNSB},
}


class TestAllowedMessages:
    @pytest.mark.parametrize(("header", "allowed"), ALLOWED.items())
    @pytest_twisted.ensureDeferred
    async def test_others_get_a_403(
        self, juggler: JugglerCase, header: str, allowed: set[int]
    ) -> None:
        peer = await juggler.connect(headers=[("Juggler-Allowed-Messages", header)])
        for type_, fields in {
            CALL: {"uri": "test.echo", "args": 1, "timeout": 0},
            PUB: {"channel": "c", "args": 1},
            SUB: {"channel": "c", "pattern": False},
            UNSB: {"channel": "c", "pattern": False},
        }.items():
            answer = await peer.request(type_, **fields)
            assert answer.type == (ACK if type_ in allowed else NACK)
            if answer.type == NACK:
                assert answer.payload["code"] == 403
                assert answer.payload["for_type"] == type_
                subject = {"uri"} if type_ == CALL else {"channel"}
                assert answer.payload.keys() == {"for", "for_type", "code", "message"} | subject

    @pytest_twisted.ensureDeferred
    async def test_a_forbidden_call_is_not_stored(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect(headers=[("juggler-allowed-messages", "pub")])
        assert (await peer.request(CALL, uri="by.hand", args=1)).type == NACK
        assert await juggler.keys("juggler:calls:*") == []


class TestLimits:
    @pytest_twisted.ensureDeferred
    async def test_calls_in_flight_are_bounded(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        count = CALLS_LIMIT + 5
        ids = peer.send_many(CALL, [{"uri": "by.hand", "args": n} for n in range(count)])
        await peer.until(lambda: len(peer.messages) == count)
        refused = {nack.for_uuid for nack in peer.of(NACK)}
        assert refused == set(ids[CALLS_LIMIT:])
        assert {nack.payload["code"] for nack in peer.of(NACK)} == {429}

    @pytest_twisted.ensureDeferred
    async def test_a_call_of_the_closing_uri_ends_with_bye(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        peer.send(CALL, uri="test.close", args=None)
        assert await peer.closed() == (1000, "bye")
        assert peer.messages == []

    @pytest_twisted.ensureDeferred
    async def test_a_clients_close_is_answered_with_its_code(self, juggler: JugglerCase) -> None:
        peer = await juggler.connect()
        peer.send_close(1000, "enough")
        assert (await peer.closed())[0] == 1000


@pytest_twisted.async_yield_fixture
async def strict(tmp_path: Any) -> AsyncIterator[JugglerCase]:
    """Defaults, but for what is set here."""
    config = "[broker]\nresult_cap = 3\n[websocket]\nallow_empty_subprotocol = true\n"
    async with JugglerCase(reactor, tmp_path, config + TEST_FUNCTIONS) as case:
        yield case
        await case.hang_up()


class TestDefaults:
    @pytest_twisted.ensureDeferred
    async def test_old_clients_patterns_and_the_results_cap(self, strict: JugglerCase) -> None:
        peer = await strict.connect(subprotocols=())
        assert peer.subprotocol == ""
        assert (await peer.call("test.echo", 1)).payload["args"] == 1

        with pytest.raises(RefusedError):  # it offers something, and that is not ours
            await strict.connect(subprotocols=("chat",))

        nack = await peer.request(SUB, channel="a*", pattern=True)
        assert (nack.type, nack.payload["code"]) == (NACK, 403)

        answers = [await peer.request(CALL, uri="by.hand", args=n) for n in range(4)]
        assert [answer.type for answer in answers] == [ACK, ACK, ACK, NACK]
        assert answers[-1].payload["message"] == "list capacity exceeded"
        assert await strict.redis.command("LLEN", "juggler:calls:{by.hand}") == 3
        assert len(await strict.keys("juggler:calls:timeout:*")) == 3

    @pytest_twisted.ensureDeferred
    async def test_a_flood_is_refused_and_then_closed(self, strict: JugglerCase) -> None:
        peer = await strict.connect()
        peer.send_many(UNSB, [{"channel": "c", "pattern": False}] * 1000)
        code, reason = await peer.closed()
        assert (code, reason) == (4029, "too many messages")
        assert {nack.payload["code"] for nack in peer.of(NACK)} == {429}
        assert len(peer.of(ACK)) >= 100
