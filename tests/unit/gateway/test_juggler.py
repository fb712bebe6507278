import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.broker.hub import Hub
from pelotontx.broker.memory import MemoryBroker, MemoryCaller, MemoryPubSub
from pelotontx.errors import BrokerUnavailable
from pelotontx.gateway.juggler import (
    JugglerEndpoint,
    JugglerLimits,
    allowed_messages,
    nack_of,
)
from pelotontx.net.websocket import Handshake, Refused
from pelotontx.net.wheel import Wheel
from pelotontx.wire import juggler


class RecordingConnection:
    """What a session sends, decoded."""

    peer = "tcp:test"

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None

    def send_text(self, payload: bytes) -> None:
        self.sent.append(json.loads(payload))

    def send_frame(self, frame: bytes) -> None:
        self.send_text(frame[frame.index(b"{") :])

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def types(self) -> list[str]:
        return [juggler.NAMES[message["meta"]["type"]] for message in self.sent]


class SilentPubSub(MemoryPubSub):
    """Never says whether it took an event."""

    def publish(self, channel: str, payload: bytes) -> Deferred[None]:
        return Deferred()


def uuid(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012}"


class SessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock, call_cap=10)
        wheel = Wheel(self.clock)
        self.hub = Hub(caller=self.broker.caller, pubsub=self.broker.pubsub, wheel=wheel)
        self.hub.start()
        self.callee = self.broker.callee()
        self.count = 0
        self.open()

    def open(self, headers: dict[str, str] | None = None, **limits: Any) -> None:
        self.endpoint = JugglerEndpoint(
            hub=self.hub, clock=self.clock, limits=JugglerLimits(**limits)
        )
        _, open_session = self.endpoint.accept(Handshake(headers or {}, ["juggler.0"], "p"))
        self.connection = RecordingConnection()
        self.session = open_session(self.connection)

    def send(self, type_: int, **payload: Any) -> str:
        self.count += 1
        message = {"meta": {"type": type_, "uuid": uuid(self.count)}, "payload": payload}
        self.session.text_received(json.dumps(message).encode())
        return uuid(self.count)

    def answer(self, args: bytes = b'"done"') -> None:
        for call in self.successResultOf(self.callee.take_calls(("u",), 100)):
            self.successResultOf(self.callee.store_result(call, args))
        self.clock.advance(0)

    def nacks(self) -> list[tuple[int, str]]:
        return [
            (message["payload"]["code"], message["payload"]["message"])
            for message in self.connection.sent
            if message["meta"]["type"] == juggler.NACK
        ]

    def test_a_call_gets_ack_and_then_res(self) -> None:
        sent = self.send(1, uri="u", args=1)
        self.answer()
        self.assertEqual(self.connection.types(), ["ACK", "RES"])
        ack, res = (message["payload"] for message in self.connection.sent)
        self.assertEqual(ack, {"for": sent, "for_type": 1, "uri": "u"})
        self.assertEqual(res, {"for": sent, "uri": "u", "args": "done"})

    def test_an_expired_call_sends_nothing_more(self) -> None:
        self.send(1, uri="u", timeout=5_000_000)
        self.clock.advance(0.3)
        self.assertEqual(self.connection.types(), ["ACK"])
        self.assertEqual(self.endpoint.calls_expired, 1)

    def test_a_full_queue_is_nack_500_list_capacity_exceeded(self) -> None:
        for _ in range(11):
            self.send(1, uri="u")
        self.assertEqual(self.nacks(), [(500, "list capacity exceeded")])

    def test_calls_in_flight_are_bounded_and_an_answer_makes_room(self) -> None:
        self.open(calls_limit=2)
        for _ in range(3):
            self.send(1, uri="u")
        self.assertEqual(self.nacks(), [(429, "2 calls are in flight")])
        self.answer()
        self.send(1, uri="u")
        self.assertEqual(len(self.nacks()), 1)

    def test_publisher_who_listens_gets_ack_before_evnt(self) -> None:
        self.send(3, channel="c")
        sent = self.send(2, channel="c", args={"x": 1})
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "EVNT"])
        self.assertEqual(
            self.connection.sent[-1]["payload"], {"for": sent, "channel": "c", "args": {"x": 1}}
        )

    def test_an_event_that_overtakes_the_brokers_word_comes_after_the_ack(self) -> None:
        pubsub = SilentPubSub(self.broker)
        self.hub = Hub(caller=self.broker.caller, pubsub=pubsub, wheel=Wheel(self.clock))
        self.open()
        self.send(3, channel="c")
        sent = self.send(2, channel="c")
        pubsub.on_event("c", None, juggler.encode_event_payload(sent, b"1"))
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "EVNT"])

    def test_two_publications_of_one_id_get_an_ack_each(self) -> None:
        for _ in range(2):
            self.count = 0
            self.send(2, channel="c")
        self.assertEqual(self.connection.types(), ["ACK", "ACK"])

    def test_why_a_broker_is_unavailable_is_not_told_to_clients(self) -> None:
        error = BrokerUnavailable("no connection to redis://10.1.2.3:6379")
        self.assertEqual(nack_of(error), (500, "the broker is unavailable"))

    def test_plain_and_matching_pattern_give_two_events(self) -> None:
        self.open(patterns=True)
        self.send(3, channel="c")
        self.send(3, channel="*", pattern=True)
        self.send(2, channel="c")
        self.clock.advance(0)
        patterns = [m["payload"].get("pattern") for m in self.connection.sent[3:]]
        self.assertEqual(patterns, [None, "*"])

    def test_pattern_subscription_is_403_unless_allowed(self) -> None:
        self.send(3, channel="*", pattern=True)
        self.assertEqual(self.nacks(), [(403, "pattern subscriptions are not allowed here")])

    def test_unsb_of_a_channel_never_subscribed_is_acked(self) -> None:
        self.send(4, channel="c")
        self.assertEqual(self.connection.types(), ["ACK"])

    def test_no_event_after_unsb(self) -> None:
        self.send(3, channel="c")
        self.send(4, channel="c")
        self.send(2, channel="c")
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "ACK"])

    def test_subscriptions_are_bounded_and_subscribing_again_is_not_counted(self) -> None:
        self.open(subscriptions_limit=2)
        for channel in ("a", "b", "b", "c"):
            self.send(3, channel=channel)
        self.assertEqual(self.nacks(), [(429, "2 subscriptions are held")])

    def test_disallowed_message_is_403(self) -> None:
        self.open({"juggler-allowed-messages": "Call, SUB"})
        self.send(1, uri="u")
        self.send(2, channel="c")
        self.assertEqual(self.connection.types(), ["ACK", "NACK"])
        self.assertEqual(self.nacks(), [(403, "PUB is not allowed here")])

    def test_a_long_name_is_400(self) -> None:
        self.send(1, uri="u" * 256)
        self.assertEqual(self.nacks(), [(400, "a name of over 255 bytes")])

    def test_a_flood_is_429_and_then_closed_with_4029(self) -> None:
        self.open(message_rate=10, message_burst=5)
        for _ in range(6):
            self.send(4, channel="c")
        self.assertEqual(self.nacks(), [(429, "too many messages")])
        self.assertIsNone(self.connection.closed)
        for _ in range(5):
            self.send(4, channel="c")
        self.assertEqual(self.connection.closed, (4029, "too many messages"))

    def test_rate_recovers_with_time(self) -> None:
        self.open(message_rate=10, message_burst=5)
        for _ in range(5):
            self.send(4, channel="c")
        self.clock.advance(0.15)
        self.send(4, channel="c")
        self.assertEqual(self.nacks(), [])

    def test_bad_messages_close_with_a_fitting_code(self) -> None:
        for frame, code in ((b"{", 1007), (b"[]", 1008), (b"\xff\xfe", 1007)):
            self.open()
            self.session.text_received(frame)
            assert self.connection.closed is not None
            self.assertEqual(self.connection.closed[0], code)
        self.open()
        self.session.binary_received(b"x")
        assert self.connection.closed is not None
        self.assertEqual(self.connection.closed[0], 1003)

    def test_a_message_that_takes_long_is_counted(self) -> None:
        self.open(slow_message_s=0.1)
        self.send(4, channel="quick")
        self.assertEqual(self.endpoint.slow_messages, 0)
        store_call = self.broker.caller.store_call

        class SlowCaller(MemoryCaller):
            def store_call(caller, *arguments: Any) -> None:
                self.clock.rightNow += 0.5
                store_call(*arguments)

        self.hub = Hub(
            caller=SlowCaller(self.broker, self.clock),
            pubsub=self.broker.pubsub,
            wheel=Wheel(self.clock),
        )
        self.open(slow_message_s=0.1)
        self.send(1, uri="u")
        self.assertEqual(self.endpoint.slow_messages, 1)

    def test_close_uri_says_bye(self) -> None:
        self.open(close_uri="test.close")
        self.send(1, uri="test.close")
        self.assertEqual(self.connection.closed, (1000, "bye"))

    def test_a_result_past_the_limit_becomes_an_error(self) -> None:
        self.open(result_limit_bytes=10)
        self.send(1, uri="u")
        self.answer(b'"' + b"x" * 20 + b'"')
        error = self.connection.sent[-1]["payload"]["args"]["error"]["message"]
        self.assertEqual(error, "the result has over 10 bytes")

    def test_a_lost_connection_leaves_nothing_behind(self) -> None:
        self.open(patterns=True)
        self.send(1, uri="u")
        self.send(3, channel="c")
        self.send(3, channel="*", pattern=True)
        self.session.connection_lost(1006)
        self.assertEqual((self.hub.pending_calls, self.hub.topics), (0, 0))
        self.assertEqual(self.endpoint.sessions, {})
        before = len(self.connection.sent)
        self.answer()
        self.assertEqual(len(self.connection.sent), before)

    def test_draining_refuses_calls_and_waits_for_those_in_flight(self) -> None:
        self.send(1, uri="u")
        drained = Deferred.fromCoroutine(self.endpoint.drain(5))
        self.send(1, uri="u")
        self.assertEqual(self.nacks(), [(503, "the server is stopping")])
        self.assertIsNone(self.connection.closed)
        self.answer()
        self.assertEqual(self.connection.types()[-1], "RES")
        self.assertEqual(self.connection.closed, (1001, "the server is stopping"))
        self.assertNoResult(drained)
        self.session.connection_lost(1001)
        self.successResultOf(drained)

    def test_a_call_that_outlasts_the_draining_is_answered_with_an_error(self) -> None:
        self.send(1, uri="u")
        Deferred.fromCoroutine(self.endpoint.drain(5))
        self.clock.advance(6)
        error = self.connection.sent[-1]["payload"]["args"]["error"]["message"]
        self.assertEqual(error, "the server is stopping")
        self.assertEqual(self.connection.closed, (1001, "the server is stopping"))


class HandshakeTests(SynchronousTestCase):
    def endpoint(self, **options: Any) -> JugglerEndpoint:
        clock = Clock()
        broker = MemoryBroker(clock)
        hub = Hub(caller=broker.caller, pubsub=broker.pubsub, wheel=Wheel(clock))
        return JugglerEndpoint(hub=hub, clock=clock, **options)

    def test_the_subprotocol_is_chosen_among_others(self) -> None:
        chosen, _ = self.endpoint().accept(Handshake({}, ["x", "juggler.0"], "p"))
        self.assertEqual(chosen, "juggler.0")

    def test_no_subprotocol_is_refused_unless_allowed(self) -> None:
        with self.assertRaises(Refused) as caught:
            self.endpoint().accept(Handshake({}, [], "p"))
        self.assertEqual(caught.exception.status, 400)
        chosen, _ = self.endpoint(allow_empty_subprotocol=True).accept(Handshake({}, [], "p"))
        self.assertIsNone(chosen)

    def test_another_subprotocol_is_refused_even_then(self) -> None:
        with self.assertRaises(Refused):
            self.endpoint(allow_empty_subprotocol=True).accept(Handshake({}, ["x"], "p"))

    def test_allowed_messages_header(self) -> None:
        everything = frozenset((1, 2, 3, 4))
        for header, allowed in (
            (None, everything),
            ("", everything),
            ("*", everything),
            ("nonsense", everything),
            ("call", {1}),
            ("CALL , pub", {1, 2}),
            ("sub,unsb,x", {3, 4}),
        ):
            self.assertEqual(allowed_messages(header), allowed)
