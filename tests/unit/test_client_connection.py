"""The connection of the client: opening, losing and mending it, closing."""

import json

from twisted.internet.defer import Deferred

from pelotontx.client import Client, State
from pelotontx.errors import (
    Disconnected,
)
from pelotontx.wire import juggler
from tests.support.client_case import UUID, ClientTestCase


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
