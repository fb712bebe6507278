from twisted.internet.defer import CancelledError, Deferred

from pelotontx.client import Client, Event
from pelotontx.errors import (
    CallExpired,
    CallFailed,
    Disconnected,
    LocalProtocolError,
    QueueFull,
    RequestRefused,
    SlowConsumer,
)
from pelotontx.wire import juggler
from tests.support.client_case import UUID, ClientTestCase


class CallTests(ClientTestCase):
    def test_result_is_decoded(self):
        connection = self.opened()
        called = self.client.call("test.echo", {"a": [1, "ü"]}, timeout_s=2)
        (payload,) = connection.payloads(juggler.CALL)
        expected = {"uri": "test.echo", "timeout": 2_000_000_000, "args": {"a": [1, "ü"]}}
        self.assertEqual(payload, expected)
        (uuid,) = connection.ids(juggler.CALL)
        connection.say(juggler.ACK, for_=uuid, for_type=1, uri="test.echo")
        self.assertNoResult(called)
        connection.say(juggler.RES, for_=uuid, uri="test.echo", args={"b": None})
        self.assertEqual(self.successResultOf(called), {"b": None})

    def test_result_before_its_acknowledgement_counts(self):
        connection = self.opened()
        called = self.client.call("test.echo")
        (uuid,) = connection.ids(juggler.CALL)
        connection.say(juggler.RES, for_=uuid, uri="test.echo", args=1)
        self.assertEqual(self.successResultOf(called), 1)
        connection.say(juggler.ACK, for_=uuid, for_type=1, uri="test.echo")

    def test_result_without_args_is_none(self):
        connection = self.opened()
        called = self.client.call("test.echo")
        connection.say(juggler.RES, for_=connection.ids(juggler.CALL)[0], uri="test.echo")
        self.assertIsNone(self.successResultOf(called))

    def test_results_find_their_calls_in_any_order(self):
        connection = self.opened()
        calls = [self.client.call("u", n) for n in range(3)]
        for n in (2, 0, 1):
            connection.say(juggler.RES, for_=connection.ids(juggler.CALL)[n], uri="u", args=n)
        self.assertEqual([self.successResultOf(called) for called in calls], [0, 1, 2])

    def test_failure_of_the_callee_is_an_exception(self):
        connection = self.opened()
        called = self.client.call("u")
        error = {"error": {"message": "boom"}}
        connection.say(juggler.RES, for_=connection.ids(juggler.CALL)[0], uri="u", args=error)
        failed = self.failureResultOf(called, CallFailed).value
        self.assertEqual((str(failed), failed.payload), ("boom", {"message": "boom"}))

    def test_result_that_only_looks_like_a_failure_is_a_result(self):
        connection = self.opened()
        for value in ({"error": "text"}, {"error": {"message": "x"}, "more": 1}, {"error": None}):
            called = self.client.call("u")
            uuid = connection.ids(juggler.CALL)[-1]
            connection.say(juggler.RES, for_=uuid, uri="u", args=value)
            self.assertEqual(self.successResultOf(called), value)

    def test_refused_call_carries_code_and_message(self):
        connection = self.opened()
        called = self.client.call("u")
        uuid = connection.ids(juggler.CALL)[0]
        connection.say(juggler.NACK, for_=uuid, for_type=1, uri="u", code=429, message="slowly")
        refused = self.failureResultOf(called, RequestRefused).value
        self.assertEqual((refused.code, refused.message), (429, "slowly"))

    def test_call_without_a_result_expires(self):
        connection = self.opened()
        called = self.client.call("u", timeout_s=1)
        self.clock.advance(0.9)
        self.assertNoResult(called)
        self.clock.advance(0.3)
        self.assertEqual(self.failureResultOf(called, CallExpired).value.uri, "u")
        connection.say(juggler.RES, for_=connection.ids(juggler.CALL)[0], uri="u", args=1)

    def test_cancelled_call_is_forgotten(self):
        connection = self.opened(pending_limit=1)
        called = self.client.call("u")
        called.cancel()
        self.failureResultOf(called, CancelledError)
        connection.say(juggler.RES, for_=connection.ids(juggler.CALL)[0], uri="u", args=1)
        self.assertNoResult(self.client.call("u"))

    def test_lost_connection_ends_calls_in_flight_and_does_not_repeat_them(self):
        self.opened()
        called = self.client.call("u")
        self.dialer._callbacks[-1][1](Disconnected("cut", 1006))
        self.assertEqual(self.failureResultOf(called, Disconnected).value.close_code, 1006)
        self.clock.advance(1)
        self.assertEqual(self.dialer.accept().sent, [])

    def test_call_waits_for_the_connection_and_tells_what_time_is_left(self):
        self.client.connect()
        called = self.client.call("u", timeout_s=10)
        self.clock.advance(4)
        connection = self.dialer.accept()
        (payload,) = connection.payloads(juggler.CALL)
        self.assertEqual(payload["timeout"], 6_000_000_000)
        self.assertNoResult(called)

    def test_call_expires_while_it_waits_for_the_connection(self):
        self.client.connect()
        called = self.client.call("u", timeout_s=1)
        self.clock.advance(1.2)
        self.failureResultOf(called, CallExpired)
        self.assertEqual(self.dialer.accept().sent, [])

    def test_waiting_calls_are_sent_in_order(self):
        self.client.connect()
        for n in range(3):
            self.client.call("u", n)
        connection = self.dialer.accept()
        self.assertEqual([p["args"] for p in connection.payloads(juggler.CALL)], [0, 1, 2])

    def test_call_on_a_closing_connection_goes_to_the_next(self):
        connection = self.opened()
        connection.refuses = Disconnected("closing")
        called = self.client.call("u")
        connection.lose()
        self.assertNoResult(called)
        self.clock.advance(1)
        self.assertEqual(len(self.dialer.accept().payloads(juggler.CALL)), 1)

    def test_call_that_the_server_would_not_read_fails(self):
        connection = self.opened()
        connection.refuses = SlowConsumer(10)
        self.failureResultOf(self.client.call("u"), SlowConsumer)

    def test_pending_requests_are_bounded(self):
        self.opened(pending_limit=2)
        calls = [self.client.call("u") for _ in range(2)]
        self.assertEqual(self.failureResultOf(self.client.call("v"), QueueFull).value.name, "v")
        for called in calls:
            self.assertNoResult(called)

    def test_misuse_is_an_error_of_the_caller(self):
        self.failureResultOf(self.client.call("u"), LocalProtocolError)
        self.opened()
        self.failureResultOf(self.client.call("u", object()), LocalProtocolError)
        self.failureResultOf(self.client.call("u", "\ud800"), LocalProtocolError)
        self.failureResultOf(self.client.call(""), LocalProtocolError)
        self.failureResultOf(self.client.call("u", timeout_s=0), LocalProtocolError)
        self.failureResultOf(self.client.call("u", timeout_s=float("nan")), LocalProtocolError)

    def test_unusable_url_is_refused_at_once(self):
        for url in ("http://x/", "ws://", "ws://x/#f", "ws://x/ y", "ws://ü/", "ws://a:b@x/"):
            with self.assertRaises(LocalProtocolError, msg=url):
                Client(url, reactor=self.clock)

    def test_header_that_breaks_the_request_is_refused_at_once(self):
        for headers in ({"A": "b\r\nC: d"}, {"A b": "c"}, {"": "c"}):
            with self.assertRaises(LocalProtocolError):
                Client("ws://x/", reactor=self.clock, headers=headers)


class EventTests(ClientTestCase):
    def subscribed(self, connection, channel, handler, pattern=False):
        subscribed = self.client.subscribe(channel, handler, pattern=pattern)
        self.acknowledge(connection, juggler.SUB)
        return self.successResultOf(subscribed)

    def acknowledge(self, connection, type_):
        connection.say(juggler.ACK, for_=connection.ids(type_)[-1], for_type=type_)

    def test_publish_fires_at_its_acknowledgement(self):
        connection = self.opened()
        published = self.client.publish("chat", {"x": 1})
        self.assertEqual(connection.payloads(juggler.PUB), [{"channel": "chat", "args": {"x": 1}}])
        self.assertNoResult(published)
        self.acknowledge(connection, juggler.PUB)
        self.assertIsNone(self.successResultOf(published))

    def test_publish_without_an_answer_expires(self):
        self.opened()
        published = self.client.publish("chat", timeout_s=1)
        self.clock.advance(1.2)
        self.failureResultOf(published, CallExpired)

    def test_handler_gets_the_event(self):
        connection = self.opened()
        events = []
        self.subscribed(connection, "chat", events.append)
        connection.say(juggler.EVNT, for_=UUID, channel="chat", args=[1])
        connection.say(juggler.EVNT, for_=UUID, channel="other", args=[2])
        self.assertEqual(events, [Event("chat", [1], None, UUID)])

    def test_plain_and_pattern_subscription_are_two(self):
        connection = self.opened()
        plain, matching = [], []
        self.subscribed(connection, "news.a", plain.append)
        self.subscribed(connection, "news.*", matching.append, pattern=True)
        connection.say(juggler.EVNT, for_=UUID, channel="news.a", args=1)
        connection.say(juggler.EVNT, for_=UUID, channel="news.a", pattern="news.*", args=1)
        self.assertEqual(plain, [Event("news.a", 1, None, UUID)])
        self.assertEqual(matching, [Event("news.a", 1, "news.*", UUID)])

    def test_event_before_the_acknowledgement_is_delivered(self):
        connection = self.opened()
        events = []
        self.client.subscribe("chat", events.append)
        connection.say(juggler.EVNT, for_=UUID, channel="chat", args=1)
        self.assertEqual(len(events), 1)

    def test_refused_subscription_has_no_handler(self):
        connection = self.opened()
        events = []
        subscribed = self.client.subscribe("chat", events.append)
        uuid = connection.ids(juggler.SUB)[0]
        connection.say(juggler.NACK, for_=uuid, for_type=3, code=403, message="no")
        self.failureResultOf(subscribed, RequestRefused)
        connection.say(juggler.EVNT, for_=UUID, channel="chat", args=1)
        self.assertEqual(events, [])

    def test_subscription_that_came_too_late_is_taken_back(self):
        connection = self.opened()
        subscribed = self.client.subscribe("chat", print, timeout_s=1)
        self.clock.advance(1.2)
        self.failureResultOf(subscribed, CallExpired)
        self.assertEqual(len(connection.ids(juggler.UNSB)), 1)

    def test_server_is_told_when_the_last_handler_leaves(self):
        connection = self.opened()
        first = self.subscribed(connection, "chat", print)
        second = self.subscribed(connection, "chat", print)
        self.successResultOf(self.client.unsubscribe(first))
        self.assertEqual(connection.ids(juggler.UNSB), [])
        unsubscribed = self.client.unsubscribe(second)
        self.assertNoResult(unsubscribed)
        self.acknowledge(connection, juggler.UNSB)
        self.successResultOf(unsubscribed)
        self.successResultOf(self.client.unsubscribe(second))

    def test_unsubscribing_without_a_connection_is_done_at_once(self):
        connection = self.opened()
        subscription = self.subscribed(connection, "chat", print)
        connection.lose()
        self.successResultOf(self.client.unsubscribe(subscription))
        self.clock.advance(1)
        self.assertEqual(self.dialer.accept().sent, [])

    def test_failing_handler_is_logged_and_called_again(self):
        connection = self.opened()
        self.subscribed(connection, "chat", lambda event: 1 / event.args)
        for args in (0, 1, 0):
            connection.say(juggler.EVNT, for_=UUID, channel="chat", args=args)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_slow_handler_gets_one_event_after_the_other(self):
        connection = self.opened()
        seen, ends = [], []

        async def handler(event):
            seen.append(event.args)
            ends.append(Deferred())
            await ends[-1]

        self.subscribed(connection, "chat", handler)
        for n in range(3):
            connection.say(juggler.EVNT, for_=UUID, channel="chat", args=n)
        self.assertEqual(seen, [0])
        ends[0].callback(None)
        self.assertEqual(seen, [0, 1])
        ends[1].callback(None)
        ends[2].callback(None)
        self.assertEqual(seen, [0, 1, 2])

    def test_events_past_the_limit_of_a_slow_handler_are_dropped_and_counted(self):
        connection = self.opened()
        end = Deferred()
        seen = []

        def handler(event):
            seen.append(event.args)
            return end if event.args == 0 else None

        subscription = self.subscribed(connection, "chat", handler)
        for n in range(1005):
            connection.say(juggler.EVNT, for_=UUID, channel="chat", args=n)
        self.assertEqual(subscription.dropped, 4)
        end.callback(None)
        self.assertEqual(seen, list(range(1001)))

    def test_closing_cancels_a_handler_that_runs(self):
        connection = self.opened()
        running = Deferred()
        self.subscribed(connection, "chat", lambda event: running)
        connection.say(juggler.EVNT, for_=UUID, channel="chat", args=1)
        self.successResultOf(self.client.close())
        self.assertTrue(running.called)

    def test_subscriptions_are_made_again(self):
        connection = self.opened()
        events = []
        self.subscribed(connection, "chat", events.append)
        self.subscribed(connection, "n*", events.append, pattern=True)
        connection.lose()
        self.clock.advance(1)
        connection = self.dialer.accept()
        self.assertEqual(
            connection.payloads(juggler.SUB),
            [{"channel": "chat", "pattern": False}, {"channel": "n*", "pattern": True}],
        )
        connection.say(juggler.EVNT, for_=UUID, channel="chat", args=1)
        self.assertEqual(len(events), 1)

    def test_subscription_in_flight_when_the_connection_is_lost_is_asked_for_again(self):
        connection = self.opened()
        subscribed = self.client.subscribe("chat", print)
        connection.lose()
        self.clock.advance(1)
        connection = self.dialer.accept()
        self.assertEqual(len(connection.ids(juggler.SUB)), 1)
        self.acknowledge(connection, juggler.SUB)
        self.assertEqual(self.successResultOf(subscribed).channel, "chat")

    def test_refused_resubscription_is_tried_until_it_succeeds(self):
        connection = self.opened()
        self.subscribed(connection, "chat", print)
        connection.lose()
        self.clock.advance(1)
        connection = self.dialer.accept()
        for attempt in range(3):
            uuid = connection.ids(juggler.SUB)[attempt]
            connection.say(juggler.NACK, for_=uuid, for_type=3, code=500, message="no broker")
            self.clock.advance(5)
        self.assertEqual(len(connection.ids(juggler.SUB)), 4)
