from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
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
from pelotontx.wire.glob import GlobTable
from tests.unit.gateway.case import SessionTestCase, SlowPubSub


class SessionTests(SessionTestCase):
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
        self.assertEqual(self.hub.calls_expired, 1)

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
        pubsub = SlowPubSub(self.broker)
        self.make_hub(pubsub)
        self.open()
        self.send(3, channel="c")
        pubsub.subscribing[0].callback(None)
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

    def test_a_second_sub_that_is_refused_leaves_the_first(self) -> None:
        pubsub = MemoryPubSub(self.broker)
        self.make_hub(pubsub)
        self.open()
        self.send(3, channel="c")
        pubsub.available = False
        self.send(3, channel="c")
        pubsub.available = True
        self.send(4, channel="c")
        self.send(2, channel="c")
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "NACK", "ACK", "ACK"])
        self.assertEqual(self.hub.topics, 0)

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
        meta = b'{"meta":{"type":%d,"uuid":"00000000-0000-4000-8000-00000000000%b"}'
        for frame, code in (
            (b"{", 1007),
            (b"[]", 1008),
            (b"\xff\xfe", 1007),
            (meta % (juggler.CALL, b"1") + b"}", 1008),
            (meta % (juggler.CALL, b"1") + b',"payload":{"uri":"u","args":1e400}}', 1007),
            (meta % (juggler.CALL, b"x") + b',"payload":{"uri":"u"}}', 1008),
            (meta % (juggler.RES, b"1") + b',"payload":{"for":"x"}}', 1002),
            (meta % (5, b"1") + b',"payload":{}}', 1008),
        ):
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
        self.assertEqual(self.endpoint.slow_messages, {})
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
        self.assertEqual(self.endpoint.slow_messages, {juggler.CALL: 1})

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

    def test_draining_lets_go_of_the_last_session_at_once(self) -> None:
        drained = self.drain()
        self.session.connection_lost(1001)
        self.successResultOf(drained)
        self.assertEqual(len(self.wheel), 0)


class OrderTests(SessionTestCase):
    """What was sent in one go takes effect in that order, over two connections to the broker."""

    def setUp(self) -> None:
        super().setUp()
        self.pubsub = SlowPubSub(self.broker)
        self.make_hub(self.pubsub)
        self.open()

    def types_and_channels(self) -> list[tuple[str, str]]:
        types = self.connection.types()
        channels = [message["payload"]["channel"] for message in self.connection.sent]
        return list(zip(types, channels, strict=True))

    def test_a_publication_waits_for_the_subscription_before_it(self) -> None:
        self.send(3, channel="c")
        self.send(2, channel="c", args=1)
        self.assertEqual(self.pubsub.publishing, [])
        self.pubsub.subscribing[0].callback(None)
        self.assertEqual(len(self.pubsub.publishing), 1)
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "EVNT"])

    def test_a_subscription_waits_for_the_publication_before_it(self) -> None:
        self.send(2, channel="c", args="not for us")
        self.send(3, channel="c")
        self.assertEqual(self.pubsub.subscribing, [])
        self.clock.advance(0)
        self.pubsub.publishing[0].callback(None)
        self.pubsub.subscribing[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "ACK"])

    def test_what_waits_is_performed_in_order(self) -> None:
        self.send(2, channel="a")
        self.send(3, channel="b")
        self.send(4, channel="b")
        self.send(2, channel="c")
        self.assertEqual(len(self.pubsub.publishing), 1)
        self.pubsub.publishing[0].callback(None)
        # The UNSB has ended the waiting for the SUB, and so let the PUB through.
        self.pubsub.publishing[1].callback(None)
        answered = [("ACK", "a"), ("ACK", "b"), ("ACK", "b"), ("ACK", "c")]
        self.assertEqual(self.types_and_channels(), answered)

    def test_calls_do_not_wait(self) -> None:
        self.send(3, channel="c")
        self.send(2, channel="c")
        self.send(1, uri="u")
        self.assertEqual(self.connection.types(), ["ACK"])

    def test_other_sessions_do_not_wait(self) -> None:
        self.send(3, channel="c")
        self.send(2, channel="c")
        self.open()
        self.send(2, channel="c")
        self.assertEqual(len(self.pubsub.publishing), 1)

    def test_what_fails_lets_the_next_go_on(self) -> None:
        self.send(3, channel="c")
        self.send(2, channel="c")
        self.send(3, channel="d")
        self.pubsub.subscribing[0].errback(Failure(BrokerUnavailable("down")))
        self.pubsub.publishing[0].errback(Failure(BrokerUnavailable("down")))
        self.assertEqual(self.connection.types(), ["NACK", "NACK"])
        self.assertEqual(len(self.pubsub.subscribing), 2)

    def test_what_waits_is_bounded(self) -> None:
        self.open(waiting_limit=2)
        self.send(3, channel="c")
        for _ in range(3):
            self.send(2, channel="c")
        self.assertEqual(self.nacks(), [(429, "too many messages wait")])
        self.assertEqual(self.endpoint.limits_exceeded, 1)

    def test_many_that_waited_and_are_done_at_once_do_not_recurse(self) -> None:
        self.open(waiting_limit=5000, message_rate=0)
        self.send(2, channel="c")
        self.pubsub.is_quick = True
        self.send(3, channel="c")
        for _ in range(3000):
            self.send(2, channel="c")
        self.pubsub.publishing[0].callback(None)
        self.assertEqual(self.connection.types(), ["ACK"] * 3002)

    def test_subscriptions_that_wait_count_too(self) -> None:
        self.open(subscriptions_limit=1)
        self.send(2, channel="c")
        for channel in ("a", "b"):
            self.send(3, channel=channel)
        self.pubsub.publishing[0].callback(None)
        self.assertEqual(self.nacks(), [(429, "1 subscriptions are held")])

    def test_what_waits_is_bounded_in_bytes(self) -> None:
        self.open(waiting_limit_bytes=100)
        self.send(3, channel="c")
        for args in ("x" * 200, "x" * 200, "x"):  # one alone may have any size
            self.send(2, channel="c", args=args)
        self.assertEqual(self.nacks(), [(429, "too many messages wait")] * 2)
        self.pubsub.subscribing[0].callback(None)
        self.send(3, channel="d")
        for _ in range(2):  # there is room again
            self.send(2, channel="c", args="x" * 40)
        self.assertEqual(len(self.nacks()), 2)

    def test_what_waited_behind_an_own_event_comes_after_it(self) -> None:
        self.pubsub.is_quick = True
        self.send(3, channel="c")
        self.pubsub.is_quick = False
        self.send(2, channel="c")
        self.send(3, channel="d")
        self.send(4, channel="c")
        self.clock.advance(0)
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "EVNT", "ACK"])

    def test_an_event_is_the_word_for_its_own_channel_only(self) -> None:
        self.open(patterns=True)
        self.pubsub.is_quick = True
        self.send(3, channel="c")
        self.send(3, channel="c*", pattern=True)
        self.pubsub.is_quick = False
        for channel in ("c", "elsewhere"):
            self.count = 8
            self.send(2, channel=channel)
        self.clock.advance(0)
        published, failed = self.pubsub.publishing
        published.callback(None)
        failed.errback(Failure(BrokerUnavailable("down")))
        self.assertEqual(self.connection.types()[2:], ["ACK", "EVNT", "EVNT", "NACK"])

    def test_draining_waits_for_the_brokers_word(self) -> None:
        self.send(2, channel="c")
        self.send(3, channel="c")
        self.drain()
        self.assertIsNone(self.connection.closed)
        self.pubsub.publishing[0].callback(None)
        self.assertIsNone(self.connection.closed)
        self.pubsub.subscribing[0].callback(None)
        self.assertEqual(self.connection.types(), ["ACK", "ACK"])
        self.assertEqual(self.connection.closed, (1001, "the server is stopping"))

    def test_draining_waits_for_a_refusal_too(self) -> None:
        for type_, asked in ((2, self.pubsub.publishing), (3, self.pubsub.subscribing)):
            self.open()
            self.send(type_, channel="c")
            self.drain()
            self.assertIsNone(self.connection.closed)
            asked[0].errback(Failure(BrokerUnavailable("down")))
            self.assertEqual(self.connection.types(), ["NACK"])
            self.assertEqual(self.connection.closed, (1001, "the server is stopping"))

    def test_draining_does_not_wait_for_ever(self) -> None:
        self.send(2, channel="c")
        self.drain(5)
        self.clock.advance(4.9)
        self.assertIsNone(self.connection.closed)
        self.clock.advance(0.3)
        self.assertEqual(self.connection.closed, (1001, "the server is stopping"))

    def test_an_error_of_ours_in_what_waited_closes_with_1011(self) -> None:
        self.send(2, channel="c")
        self.send(3, channel="d")
        self.hub.subscribe = None  # type: ignore[assignment, method-assign]
        self.pubsub.publishing[0].callback(None)
        self.assertEqual(self.connection.closed, (1011, "internal error"))
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_a_lost_connection_forgets_what_waits(self) -> None:
        self.send(2, channel="c")
        self.send(3, channel="c")
        self.session.connection_lost(1006)
        self.pubsub.publishing[0].callback(None)
        self.assertEqual((self.pubsub.subscribing, self.hub.topics), ([], 0))


class OwnLimitsTests(SessionTestCase):
    """Some URIs and channels have limits of their own."""

    def open_with(self, glob: str, **own: Any) -> None:
        self.open()
        base = JugglerLimits()
        uris = GlobTable([(glob, JugglerLimits(**own)), ("*z", JugglerLimits())], base)
        channels = GlobTable([(glob, JugglerLimits(**own))], base)
        self.open(options={"uri_limits": uris, "channel_limits": channels})

    def test_the_first_glob_that_matches_counts(self) -> None:
        self.open_with("u*", args_limit_bytes=3)
        for uri in ("uz", "z", "a"):
            self.send(1, uri=uri, args="long")
        self.assertEqual(self.nacks(), [(413, "args of over 3 bytes")])
        self.assertEqual(self.connection.sent[0]["payload"]["uri"], "uz")

    def test_the_args_of_an_event_are_bounded_by_its_channel(self) -> None:
        self.open_with("room.*", args_limit_bytes=3)
        self.send(2, channel="room.1", args="long")
        self.send(2, channel="room.1", args=1)
        self.send(2, channel="other", args="long")
        self.assertEqual(self.connection.types(), ["NACK", "ACK", "ACK"])

    def test_calls_in_flight_are_counted_by_their_limits(self) -> None:
        self.open_with("u*", calls_limit=1)
        for uri in ("u", "other", "ux", "u"):
            self.send(1, uri=uri)
        self.assertEqual(self.nacks(), [(429, "1 such calls are in flight")] * 2)
        self.answer()
        self.send(1, uri="ux")
        self.assertEqual(len(self.nacks()), 2)

    def test_calls_have_their_own_time(self) -> None:
        self.open_with("u", call_timeout_s=1.0, call_timeout_limit_s=2.0)
        self.send(1, uri="u")
        self.send(1, uri="u", timeout=juggler.NANOSECONDS * 60)
        self.clock.advance(1.2)
        self.assertEqual(self.hub.pending_calls, 1)
        self.clock.advance(1)
        self.assertEqual(self.hub.pending_calls, 0)

    def test_results_have_their_own_limit(self) -> None:
        self.open_with("u", result_limit_bytes=4)
        self.send(1, uri="u")
        self.answer(b'"12345"')
        error = self.connection.sent[-1]["payload"]["args"]["error"]["message"]
        self.assertEqual(error, "the result has over 4 bytes")


class CountingTests(SessionTestCase):
    def test_the_time_from_call_to_res_is_observed(self) -> None:
        class Latencies(list[float]):
            observe = list.append

        latencies = self.endpoint.call_latency = Latencies()
        self.send(1, uri="u")
        self.send(1, uri="nobody", timeout=1_000_000)
        self.clock.advance(0.25)
        self.answer()
        self.assertEqual(latencies, [0.25])

    def test_nacks_are_counted_by_code(self) -> None:
        self.send(1, uri="u" * 256)
        self.send(3, channel="*", pattern=True)
        self.send(3, channel="*", pattern=True)
        self.assertEqual(self.endpoint.nacks, {400: 1, 403: 2})

    def test_the_limits_of_json_are_the_endpoints(self) -> None:
        self.open(options={"json_limits": juggler.JsonLimits(depth=2, keys=1)})
        self.send(2, channel="c", args=[[]])
        self.assertIsNone(self.connection.closed)
        for args in ([[[]]], {"a": 1, "b": 2}):
            self.open(options={"json_limits": juggler.JsonLimits(depth=2, keys=1)})
            self.send(2, channel="c", args=args)
            assert self.connection.closed is not None
            self.assertEqual(self.connection.closed[0], 1007)

    def test_a_type_of_an_application_is_unknown_without_middleware(self) -> None:
        self.send(300)
        self.assertEqual(self.connection.closed, (1008, "unknown message type 300"))


class HandshakeTests(SynchronousTestCase):
    def endpoint(self, **options: Any) -> JugglerEndpoint:
        clock = Clock()
        broker = MemoryBroker(clock)
        wheel = Wheel(clock)
        hub = Hub(caller=broker.caller, pubsub=broker.pubsub, wheel=wheel)
        return JugglerEndpoint(hub=hub, clock=clock, wheel=wheel, **options)

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
