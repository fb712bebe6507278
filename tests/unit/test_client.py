import json

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pelotontx.client import Client, Event, State
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

UUID = "b3b9e3a2-3d6e-4d3c-9d3a-0f2f5a6b7c8d"


class RecordingConnection:
    """Stands for an open WebSocket connection; `say` is the server."""

    def __init__(self, on_message, on_close):
        self.sent = []
        self.closed = None
        self.refuses = None
        self._on_message = on_message
        self._on_close = on_close

    def send(self, message):
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(json.loads(message))

    def close(self, code=1000, reason=""):
        self.closed = code
        return succeed(None)

    def abort(self):
        self.closed = "aborted"
        return succeed(None)

    def say(self, type_, **payload):
        payload = {name.removesuffix("_"): value for name, value in payload.items()}
        frame = {"meta": {"type": type_, "uuid": UUID}, "payload": payload}
        self._on_message(json.dumps(frame).encode() + b"\n")

    def say_bytes(self, frame):
        self._on_message(frame)

    def lose(self, reason="cut", code=1006):
        self._on_close(Disconnected(reason, code))

    def ids(self, type_):
        return [m["meta"]["uuid"] for m in self.sent if m["meta"]["type"] == type_]

    def payloads(self, type_):
        return [m["payload"] for m in self.sent if m["meta"]["type"] == type_]


class RecordingDialer:
    """Stands for `websocket_client.connect`; each attempt is decided by the test."""

    def __init__(self):
        self.attempts = []
        self._callbacks = []
        self.cancelled = 0

    def __call__(self, reactor, url, *, on_message, on_close, **arguments):
        self.arguments = arguments
        attempt = Deferred(self._cancel)
        self.attempts.append(attempt)
        self._callbacks.append((on_message, on_close))
        return attempt

    def _cancel(self, _):
        self.cancelled += 1

    def accept(self):
        connection = RecordingConnection(*self._callbacks[-1])
        self.attempts[-1].callback(connection)
        return connection

    def refuse(self, reason="refused"):
        self.attempts[-1].errback(Disconnected(reason))


class ClientTestCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.dialer = RecordingDialer()
        self.states = []
        self.client = self.make_client()

    def make_client(self, **arguments):
        arguments = {"jitter": lambda: 1.0} | arguments
        return Client(
            "ws://server.test/ws",
            reactor=self.clock,
            connector=self.dialer,
            on_state=lambda state, cause: self.states.append((state, cause)),
            **arguments,
        )

    def opened(self, **arguments):
        if arguments:
            self.client = self.make_client(**arguments)
        connected = self.client.connect()
        connection = self.dialer.accept()
        self.assertIsNone(self.successResultOf(connected))
        return connection


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


class ConnectionTests(ClientTestCase):
    def test_states_are_told(self):
        connection = self.opened()
        connection.lose("cut")
        self.clock.advance(1)
        self.dialer.accept()
        self.successResultOf(self.client.close())
        self.assertEqual(
            [state for state, _ in self.states],
            [
                State.CONNECTING,
                State.OPEN,
                State.WAITING,
                State.CONNECTING,
                State.OPEN,
                State.CLOSED,
            ],
        )
        self.assertEqual(self.states[2][1].reason, "cut")

    def test_subprotocol_is_asked_for(self):
        self.opened(headers={"Authorization": "Bearer x"})
        self.assertEqual(self.dialer.arguments["subprotocols"], ["juggler.0"])
        self.assertEqual(self.dialer.arguments["headers"], {"Authorization": "Bearer x"})

    def test_first_connection_is_tried_for_ever(self):
        connected = self.client.connect()
        for _ in range(20):
            self.dialer.refuse()
            self.clock.advance(31)
        self.assertEqual(len(self.dialer.attempts), 21)
        self.dialer.accept()
        self.successResultOf(connected)

    def test_first_failure_closes_when_it_is_not_to_be_retried(self):
        connected = self.client.connect(retry=False)
        called = self.client.call("u")
        self.dialer.refuse("nobody there")
        self.assertEqual(self.failureResultOf(connected, Disconnected).value.reason, "nobody there")
        self.failureResultOf(called, Disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.failureResultOf(self.client.connect(), Disconnected)

    def test_pauses_double_up_to_the_limit(self):
        self.client = self.make_client(backoff_s=1, backoff_limit_s=5)
        self.client.connect()
        pauses = []
        for attempts in range(1, 6):
            self.dialer.refuse()
            start = self.clock.seconds()
            while len(self.dialer.attempts) == attempts:
                self.clock.advance(0.25)
            pauses.append(int(self.clock.seconds() - start))
        self.assertEqual(pauses, [1, 2, 4, 5, 5])

    def test_jitter_takes_any_part_of_the_pause(self):
        self.client = self.make_client(jitter=lambda: 0.0)
        self.client.connect()
        self.dialer.refuse()
        self.clock.advance(0.2)
        self.assertEqual(len(self.dialer.attempts), 2)

    def test_server_that_hangs_up_at_once_is_asked_less_and_less(self):
        self.client.connect()
        for _ in range(6):
            self.dialer.accept().lose()
            self.clock.advance(17)
        before = len(self.dialer.attempts)
        self.dialer.accept().lose()
        self.clock.advance(17)
        self.assertEqual(len(self.dialer.attempts), before)

    def test_connection_that_lasted_is_made_again_soon(self):
        self.client.connect()
        for _ in range(6):
            self.dialer.accept().lose()
            self.clock.advance(31)
        connection = self.dialer.accept()
        self.clock.advance(6)
        connection.lose()
        before = len(self.dialer.attempts)
        self.clock.advance(0.7)
        self.assertEqual(len(self.dialer.attempts), before + 1)

    def test_closing_ends_everything_and_leaves_nothing_in_the_reactor(self):
        connection = self.opened()
        called = self.client.call("u")
        subscribed = self.client.subscribe("chat", print)
        closed = self.client.close()
        self.successResultOf(closed)
        self.failureResultOf(called, Disconnected)
        self.failureResultOf(subscribed, Disconnected)
        self.assertEqual(connection.closed, 1000)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.failureResultOf(self.client.call("u"), Disconnected)
        self.successResultOf(self.client.close())

    def test_aborting_drops_the_connection(self):
        connection = self.opened()
        self.successResultOf(self.client.close(abort=True))
        self.assertEqual(connection.closed, "aborted")

    def test_closing_ends_an_attempt_to_connect(self):
        connected = self.client.connect()
        closed = self.client.close()
        self.failureResultOf(connected, Disconnected)
        self.clock.advance(0)
        self.successResultOf(closed)
        self.assertEqual(self.dialer.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closing_ends_the_pause_before_the_next_attempt(self):
        connected = self.client.connect()
        self.dialer.refuse()
        self.successResultOf(self.client.close())
        self.failureResultOf(connected, Disconnected)
        self.clock.advance(60)
        self.assertEqual(len(self.dialer.attempts), 1)

    def test_closing_while_connecting_is_told_is_safe(self):
        connected = self.close_at(State.CONNECTING)
        self.failureResultOf(connected, Disconnected)
        self.assertEqual(self.dialer.attempts, [])

    def test_closing_while_the_opening_is_told_is_safe(self):
        connected = self.close_at(State.OPEN)
        connection = self.dialer.accept()
        self.failureResultOf(connected, Disconnected)
        self.assertEqual(connection.closed, 1000)

    def test_closing_while_the_loss_is_told_is_safe(self):
        connected = self.close_at(State.WAITING)
        self.dialer.accept().lose()
        self.successResultOf(connected)
        self.clock.advance(60)
        self.assertEqual(len(self.dialer.attempts), 1)

    def close_at(self, wanted):
        def on_state(state, cause):
            if state is wanted:
                self.closed = client.close()

        client = Client(
            "ws://server.test/", reactor=self.clock, connector=self.dialer, on_state=on_state
        )
        return client.connect()

    def test_failing_callbacks_of_the_user_are_logged(self):
        def fail(*_):
            raise ZeroDivisionError

        self.client = Client(
            "ws://server.test/",
            reactor=self.clock,
            connector=self.dialer,
            on_state=fail,
            on_message=fail,
        )
        self.client.connect()
        connection = self.dialer.accept()
        called = self.client.call("u")
        connection.say(juggler.RES, for_=connection.ids(juggler.CALL)[0], uri="u", args=1)
        self.assertEqual(self.successResultOf(called), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_message_that_breaks_the_protocol_closes_the_connection(self):
        for frame, code in ((b"{", 1007), (b"{}", 1008), (b'{"meta":{"type":1,"uuid":"x"}}', 1008)):
            connection = self.opened(backoff_s=0.1)
            connection.say_bytes(frame)
            self.assertEqual(connection.closed, code)

    def test_own_frames_are_sent_and_answers_seen(self):
        frames = []
        connection = self.opened(on_message=frames.append)
        self.client.send(b'{"meta":{"type":5}}')
        self.assertEqual(connection.sent, [{"meta": {"type": 5}}])
        connection.say(juggler.ACK, for_=UUID, for_type=5)
        self.assertEqual(json.loads(frames[0])["payload"], {"for": UUID, "for_type": 5})
        connection.lose()
        with self.assertRaises(Disconnected):
            self.client.send(b"{}")

    def test_async_with_connects_and_closes(self):
        async def use():
            async with self.client as client:
                return client.state

        used = Deferred.fromCoroutine(use())
        connection = self.dialer.accept()
        self.assertEqual(self.successResultOf(used), State.OPEN)
        self.assertEqual(connection.closed, 1000)
