"""Messages that wait for middleware: their order, their bounds, and the end of the server."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from pelotontx.broker.hub import Event
from pelotontx.gateway.juggler import Message, Next, Session
from tests.unit.gateway.case import MiddlewareTestCase, uuid


class WaitingTests(MiddlewareTestCase):
    def setUp(self) -> None:
        self.gates: list[Deferred[None]] = []
        super().setUp()

    async def wait_for_gate(self, session: Session, message: Message, next: Next) -> None:
        """Holds what comes in until the test opens its gate."""
        if message.direction == "in":
            gate: Deferred[None] = Deferred()
            self.gates.append(gate)
            await gate
        await next(message)

    async def hold_back(self, session: Session, message: Message, next: Next) -> None:
        """The same for what goes out."""
        if message.direction == "out":
            gate: Deferred[None] = Deferred()
            self.gates.append(gate)
            await gate
        await next(message)

    def test_messages_of_a_connection_keep_their_order(self) -> None:
        self.use(self.wait_for_gate)
        sent = [self.send(4, channel=f"c{n}") for n in range(3)]
        self.assertEqual(len(self.gates), 1)
        for n in range(3):
            self.gates[n].callback(None)
        self.assertEqual(self.connection.answers(), [("ACK", uuid) for uuid in sent])
        self.assertEqual(len(self.wheel), 0)

    def test_answers_and_events_keep_their_order(self) -> None:
        self.use(self.hold_back)
        self.send(3, channel="c")
        self.send(1, uri="u")
        self.send(2, channel="c")
        self.answer()
        while self.gates:
            self.gates.pop().callback(None)
        self.assertEqual(self.connection.types(), ["ACK", "ACK", "ACK", "EVNT", "RES"])

    def test_who_waits_holds_up_its_own_connection_only(self) -> None:
        self.use(self.wait_for_gate)
        self.send(4, channel="c")
        first = self.connection
        self.open()
        self.send(4, channel="c")
        self.gates[1].callback(None)
        self.assertEqual((first.types(), self.connection.types()), ([], ["ACK"]))

    def test_what_waits_is_bounded_on_the_way_in(self) -> None:
        self.use(self.wait_for_gate, waiting_limit=2)
        for _ in range(4):
            self.send(4, channel="c")
        self.assertEqual(self.nacks(), [(429, "too many messages wait")])
        self.assertEqual(self.endpoint.limits_exceeded, 1)

    def test_what_waits_is_bounded_on_the_way_out(self) -> None:
        self.use(self.hold_back, waiting_limit=2)
        for _ in range(3):
            self.send(4, channel="c")
        self.assertIsNone(self.connection.closed)
        self.send(4, channel="c")
        self.assertEqual(self.connection.closed, (4008, "slow consumer: too many messages wait"))
        self.gates[0].callback(None)
        self.assertEqual(len(self.gates), 1)  # nor is more let through

    def test_what_waits_is_bounded_in_bytes_on_the_way_in(self) -> None:
        self.use(self.wait_for_gate, waiting_limit_bytes=100)
        for size in (200, 200, 1):
            self.send(2, channel="c", args="x" * size)
        self.assertEqual(self.nacks(), [(429, "too many messages wait")])

    def test_what_waits_is_bounded_in_bytes_on_the_way_out(self) -> None:
        self.use(self.hold_back, waiting_limit_bytes=1000)
        event = Event("c", None, uuid(1), b'"%b"' % (b"x" * 400))
        for _ in range(3):  # one is on its way
            self.session.event(event)
        self.assertIsNone(self.connection.closed)
        self.session.event(event)
        self.assertEqual(self.connection.closed, (4008, "slow consumer: too many messages wait"))

    def test_who_takes_too_long_is_cancelled_and_the_next_goes_on(self) -> None:
        self.use(self.wait_for_gate, hook_timeout_s=5)
        for _ in range(2):
            self.send(4, channel="c")
        self.clock.advance(6)
        self.gates[1].callback(None)
        self.assertEqual(self.nacks(), [(500, "it took too long")])
        self.assertEqual(self.connection.types(), ["NACK", "ACK"])
        self.assertEqual(self.endpoint.panics_recovered, 0)

    def test_a_lost_connection_cancels_and_leaves_nothing(self) -> None:
        cancelled: list[str] = []

        async def wait(session: Session, message: Message, next: Next) -> None:
            await Deferred(lambda _: cancelled.append(message.channel))

        self.use(wait)
        self.send(4, channel="a")
        self.send(4, channel="b")
        self.session.connection_lost(1006)
        self.assertEqual(cancelled, ["a"])
        self.assertEqual(self.connection.types(), [])
        self.assertEqual(len(self.wheel), 0)

    def test_a_subscription_that_was_passed_on_too_late_is_not_made(self) -> None:
        gate: Deferred[None] = Deferred()

        async def stubborn(session: Session, message: Message, next: Next) -> None:
            while not gate.called:
                try:
                    await gate
                except Exception:  # swallows its cancelling
                    break
            await next(message)

        self.use(stubborn)
        self.send(3, channel="c")
        self.session.connection_lost(1006)
        self.assertEqual(self.hub.topics, 0)

    def test_draining_waits_for_what_is_on_its_way(self) -> None:
        self.use(self.wait_for_gate)
        self.send(4, channel="c")
        drained = Deferred.fromCoroutine(self.endpoint.drain(5))
        self.assertIsNone(self.connection.closed)
        self.gates[0].callback(None)
        self.assertEqual(self.connection.types(), ["ACK"])
        self.assertEqual(self.connection.closed, (1001, "the server is stopping"))
        self.session.connection_lost(1001)
        self.successResultOf(drained)

    def test_draining_takes_no_more_messages(self) -> None:
        self.use(self.wait_for_gate)
        self.send(4, channel="c")
        self.drain()
        for type_ in (2, 3, 300):
            self.send(type_, channel="c")
        self.assertEqual(self.nacks(), [(503, "the server is stopping")] * 3)
        self.assertEqual(len(self.gates), 1)

    def test_draining_does_not_wait_for_ever(self) -> None:
        for hold in (self.wait_for_gate, self.hold_back):
            self.gateway.middlewares.clear()
            self.use(hold, hook_timeout_s=60)
            for _ in range(3):
                self.send(4, channel="c")
            drained = self.drain(5)
            self.clock.advance(4.9)
            self.assertIsNone(self.connection.closed)
            self.clock.advance(0.3)
            self.assertEqual(self.connection.closed, (1001, "the server is stopping"))
            self.session.connection_lost(1001)
            self.successResultOf(drained)
            self.assertEqual(len(self.wheel), 0)

    def test_waiting_messages_have_no_timers_of_their_own_in_the_reactor(self) -> None:
        self.use(self.wait_for_gate)
        for _ in range(10):
            self.open()
            self.send(4, channel="c")
        self.assertEqual((len(self.wheel), len(self.clock.getDelayedCalls())), (10, 1))
